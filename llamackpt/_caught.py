"""Exceptions raised in a callback, where llama.cpp is between them and the caller: by a signal handler (Ctrl-C), by a
handler of logging, by a progress function. They are kept, of each thread its own, and raised when llama.cpp has returned.
"""

from __future__ import annotations

import threading
from types import TracebackType

__all__ = ["keep", "reraise", "take"]


class _Thread(threading.local):
    error: BaseException | None = None


_thread = _Thread()
kept = False  # whether there ever was one, in any thread: until then nobody needs to look


def keep(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The first one counts. It is an onerror of cffi."""
    global kept
    if _thread.error is None:
        _thread.error = error
        kept = True


def take() -> BaseException | None:
    """The exception, which is forgotten."""
    error, _thread.error = _thread.error, None
    return error


def reraise() -> None:
    """Raise it, if there is one."""
    if (error := take()) is not None:
        raise error
