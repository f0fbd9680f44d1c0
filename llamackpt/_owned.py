"""What llama.cpp gives out to be freed: freed once, with the last reference to it, in the process that asked for it.

A call into llama.cpp holds a reference to its arguments, so nothing is freed under a call that runs in another thread.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NoReturn

from ._ffi import ffi, lib

__all__ = ["Handle", "forks", "owned", "slot_for", "taken"]

_forks = 0
_needed: dict[object, Any] = {}


def _count_fork() -> None:
    global _forks
    _forks += 1


os.register_at_fork(before=lib.llamackpt_before_fork, after_in_child=_count_fork)


def forks() -> int:
    """How many forks lie between this process and the one that imported the package."""
    return _forks


def owned(pointer: Any, free: Callable[[Any], object]) -> Any:
    """The pointer, freed with the last reference to what this returns. A forked process leaves it to the other one."""
    made = _forks

    def release(pointer: Any) -> None:
        if _forks == made:
            free(pointer)

    return ffi.gc(pointer, release)


def slot_for(kind: str, free: Callable[[Any], object], needed: Any = None) -> Any:
    """Memory for a pointer that llama.cpp writes there: it is owned before Python runs again, or a signal handler that raises
    then would lose it. kind: as "struct llama_model **". needed: what has to be freed after it, though both are in a cycle.
    """
    made, key = _forks, object()

    def release(slot: Any) -> None:
        if _forks == made and slot[0]:
            free(slot[0])
        _needed.pop(key, None)

    _needed[key] = needed  # the collector ends what is in a cycle in any order
    return ffi.gc(ffi.new(kind), release)


def taken(slot: Any) -> Any:
    """What llama.cpp wrote into this slot_for(), freed with the last reference to what this returns."""
    return ffi.gc(slot[0], lambda _, slot=slot: None)  # all that it does is to hold the slot


class Handle:
    """What stands for something of llama.cpp's. There is one for each: it cannot be copied or pickled."""

    __slots__ = ()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} of llamackpt cannot be copied or pickled")
