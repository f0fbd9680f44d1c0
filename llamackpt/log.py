"""llama.cpp's log, routed to logging.getLogger("llamackpt.llama"). Quiet unless the application sets up logging.

It does not know which object a line belongs to: llama.cpp logs per process. The last warning or error of each thread is kept
for the exceptions.
"""

from __future__ import annotations

import atexit
import logging
import threading

from ._ffi import ffi, lib

__all__ = ["last_line", "logger", "reset_last_line"]

logger = logging.getLogger("llamackpt.llama")
logging.getLogger("llamackpt").addHandler(logging.NullHandler())

# ggml_log_level; a continuation (5) keeps the level of the line that it continues
_LEVELS = {1: logging.DEBUG, 2: logging.INFO, 3: logging.WARNING, 4: logging.ERROR}


class _Thread(threading.local):
    """The line in the making of one thread, and its last warning or error."""

    level = logging.INFO
    text = ""
    last = ""


_thread = _Thread()


@ffi.def_extern()  # type: ignore[untyped-decorator]
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
    if me.level >= logging.WARNING:
        me.last = line
    logger.log(me.level, "%s", line)


def reset_last_line() -> None:
    """Forget the last warning or error of this thread."""
    _thread.last = ""


def last_line() -> str:
    """llama.cpp's last warning or error in this thread since reset_last_line(), "" if there was none."""
    return _thread.last


lib.llamackpt_log_enable()
# llama.cpp can log while the interpreter goes down, when no Python code may run anymore
atexit.register(lib.llamackpt_log_disable)
