"""llama.cpp's log, routed to logging.getLogger("llamackpt.llama"). Quiet unless the application sets up logging.

It does not know which object a line belongs to: llama.cpp logs per process. Of each call the first error is kept for the
exceptions (those after it only say that something failed), or the first warning if there was none.
"""

from __future__ import annotations

import atexit
import logging
import threading

from . import _caught
from ._ffi import ffi, lib

__all__ = ["logger", "reason", "reset_reason"]

logger = logging.getLogger("llamackpt.llama")
logging.getLogger("llamackpt").addHandler(logging.NullHandler())

# ggml_log_level; a continuation (5) keeps the level of the line that it continues
_LEVELS = {1: logging.DEBUG, 2: logging.INFO, 3: logging.WARNING, 4: logging.ERROR}


class _Thread(threading.local):
    """The line in the making of one thread, and the one that says why something failed."""

    level = logging.INFO
    text = ""
    reason = ""
    reason_level = logging.INFO


_thread = _Thread()


@ffi.def_extern(onerror=_caught.keep)  # type: ignore[untyped-decorator]
def llamackpt_on_log(level: int, text: object) -> None:
    me = _thread
    if level in _LEVELS:
        me.level, me.text = _LEVELS[level], ""
    me.text += ffi.string(text).decode("utf-8", "replace")
    if not me.text.endswith("\n"):
        return
    line, me.text = me.text.strip(), ""
    if not line:
        return
    if me.level > me.reason_level:
        me.reason, me.reason_level = line, me.level
    logger.log(me.level, "%s", line)


def reset_reason() -> None:
    """Forget what this thread's calls have failed of; called before the next one."""
    if _thread.reason:
        _thread.reason, _thread.reason_level = "", logging.INFO


def reason() -> str:
    """What llama.cpp gave as a reason in this thread since reset_reason(), "" if it said nothing.

    Raises what a handler of logging or of a signal has raised meanwhile, rather than let an error of llama.cpp hide it.
    """
    _caught.reraise()
    return _thread.reason


lib.llamackpt_log_enable()
# llama.cpp can log while the interpreter goes down, when no Python code may run anymore
atexit.register(lib.llamackpt_log_disable)
