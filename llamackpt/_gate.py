"""The door to one llama_context: closed contexts, a second thread and a fork of the process do not get through.

It knows the pointers and nothing of what is done with them.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from . import _caught
from ._ffi import ffi, lib
from ._owned import forks
from .errors import ClosedError, LlamaError

__all__ = ["Gate"]

_SLOT = ffi.typeof("llama_checkpoint_id *")


class Gate:
    """`with gate:` around every call into llama.cpp. It does not wait: the second of two threads gets an error.

    model: what the context needs for as long as it lives.
    """

    __slots__ = ("_deleted", "_forks", "_lock", "_note", "ctx", "memory", "model")

    def __init__(self, ctx: Any, memory: Any, model: Any) -> None:
        self.ctx = ctx
        self.memory = memory
        self.model = model
        self._forks = forks()
        self._lock = threading.RLock()  # not to enter it twice: it knows its thread
        self._deleted: deque[Any] = deque()  # what was in slots that are gone
        self._note = self._deleted.append

    def __enter__(self) -> Gate:
        lock = self._lock
        if lock._is_owned():  # type: ignore[attr-defined]
            raise LlamaError("the context is in use by a call that this handler of a signal or of logging interrupts")
        try:
            if not lock.acquire(False):
                raise LlamaError("the context is in use by another thread; use one context per thread, or a lock of your own")
            if self.ctx is None:
                raise ClosedError("the context is closed")
            if self._forks != forks():
                raise LlamaError("the context belongs to the process that this one was forked from; make another one here")
            if _caught.kept:
                _caught.reraise()  # of an earlier call, before this one does anything
            if self._deleted:
                self._flush()
        except BaseException:  # a signal handler can raise wherever it likes
            if lock._is_owned():  # type: ignore[attr-defined]
                lock.release()
            raise
        return self

    @property
    def __exit__(self) -> Callable[..., None]:
        """The lock's own. It is in C: no signal handler can raise between the end of the block and the release."""
        return self._lock.__exit__

    def slot(self) -> Any:
        """Memory for the id of a checkpoint, for llamackpt_checkpoint_save(). When the slot goes the checkpoint is deleted by
        the next call, in whatever thread and at whatever time: the destructor is in C, where no signal handler can raise.
        """
        return ffi.gc(ffi.new(_SLOT, -1), self._note)

    def _flush(self) -> None:
        while self._deleted:  # an id is never used again, so it may be deleted twice; the -1 of an unused slot is none
            lib.llama_memory_checkpoint_delete(self.memory, self._deleted[0][0])
            self._deleted.popleft()

    def delete_checkpoint(self, slot: Any) -> None:
        """Now, or with the next call if the context is busy. The slot cannot be read afterwards."""
        ffi.release(slot)
        try:
            with self:
                pass
        except LlamaError:
            pass

    def close(self) -> None:
        """Free the context. Raises LlamaError if another thread is in it. In a fork it only forgets it."""
        if self._forks != forks():  # and the lock may be held by a thread that is not here
            self.ctx = self.memory = self.model = None
            return
        error = _caught.take()  # it is the next call's: closing is done all the same
        try:
            with self:
                self.ctx = None  # which frees it
                self.memory = self.model = None
        except ClosedError:
            pass
        finally:
            if error is not None:
                _caught.keep(type(error), error, None)
