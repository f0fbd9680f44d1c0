"""The door to one llama_context: closed contexts and a second thread do not get through.

It knows the pointers and nothing of what is done with them.
"""

from __future__ import annotations

import threading
from collections import deque
from types import TracebackType
from typing import Any

from ._ffi import lib
from .errors import ClosedError, LlamaError

__all__ = ["Gate"]


class Gate:
    """`with gate:` around every call into llama.cpp. It does not wait: the second of two threads gets an error.

    model: what the context needs for as long as it lives.
    """

    __slots__ = ("_deleted", "_lock", "ctx", "memory", "model")

    def __init__(self, ctx: Any, memory: Any, model: Any) -> None:
        self.ctx = ctx
        self.memory = memory
        self.model = model
        self._lock = threading.Lock()
        self._deleted: deque[int] = deque()

    def __enter__(self) -> Gate:
        if not self._lock.acquire(False):
            raise LlamaError("the context is in use by another thread; use one context per thread, or a lock of your own")
        if self.ctx is None:
            self._lock.release()
            raise ClosedError("the context is closed")
        if self._deleted:
            self._flush()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def _flush(self) -> None:
        while self._deleted:
            lib.llama_memory_checkpoint_delete(self.memory, self._deleted.popleft())

    def delete_checkpoint(self, ident: int) -> None:
        """Now, or with the next call if the context is busy: a checkpoint can be collected in any thread at any time."""
        self._deleted.append(ident)
        if self._lock.acquire(False):
            try:
                if self.ctx is not None:
                    self._flush()
            finally:
                self._lock.release()

    def close(self) -> None:
        """Free the context. Raises LlamaError if another thread is in it."""
        if not self._lock.acquire(False):
            raise LlamaError("the context is in use by another thread and cannot be closed")
        try:
            self.ctx = None  # which frees it
            self.memory = self.model = None
        finally:
            self._lock.release()
