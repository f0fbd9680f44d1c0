"""What a context needs during a decode: a batch that is filled again and again, and the abort poll."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from . import _caught
from ._ffi import ffi, lib
from .batch import Batch

__all__ = ["Scratch"]

@ffi.def_extern(error=True, onerror=_caught.keep)  # type: ignore[untyped-decorator]
def llamackpt_on_poll() -> bool:
    # returning to Python is enough: it runs the pending signal handlers, and what they raise is kept and stops the decode
    return False


class Scratch:
    """A llama_batch with room for `capacity` tokens, and numpy views of its arrays."""

    def __init__(self, capacity: int, n_seq_max: int) -> None:
        self.capacity = capacity
        batch = lib.llama_batch_init(capacity, 0, n_seq_max)
        self.batch = batch
        self._free = ffi.gc(ffi.new("char *"), lambda _, batch=batch, free=lib.llama_batch_free: free(batch))
        self.token = _view(batch.token, capacity, np.int32)
        self.pos = _view(batch.pos, capacity, np.int32)
        self.n_seq_id = _view(batch.n_seq_id, capacity, np.int32)
        self.logits = _view(batch.logits, capacity, np.int8)
        self.seq_id = batch.seq_id
        # the ids of each token lie apart; those of single-sequence batches rarely change
        self._seq_filled = np.full(capacity, -1, dtype=np.int32)
        self.n_seq_id[:] = 1
        self._plain = True
        self.n_out = 0
        self._kept = np.empty((0, 0), dtype=np.float32)

    def keep(self, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """A copy in a buffer that is used again: llama.cpp's own can be gone when it is read."""
        if self._kept.shape != rows.shape:
            self._kept = np.empty_like(rows)
        np.copyto(self._kept, rows)
        return self._kept

    def mask(self, n: int, logits: Any) -> npt.NDArray[np.bool_]:
        """Which of n tokens have logits, as a mask."""
        if logits is None:
            return np.zeros(n, dtype=bool)
        if isinstance(logits, str):
            if logits == "all":
                return np.ones(n, dtype=bool)
            if logits == "last":
                mask = np.zeros(n, dtype=bool)
                mask[-1] = True
                return mask
            raise ValueError(f'logits is "last", "all", a mask or None, not {logits!r}')
        mask = np.asarray(logits)
        if mask.dtype != np.bool_ or mask.shape != (n,):
            raise ValueError(f"the mask has to be {n} booleans, not {mask.dtype} of shape {mask.shape}")
        return mask

    def fill(self, ids: npt.NDArray[np.int32], start: int, seq_id: int, logits: Any) -> None:
        """Consecutive tokens of one sequence."""
        n = len(ids)
        if not self._plain:
            self.n_seq_id[:] = 1
            self._plain = True
        if n == 1:
            self.token[0], self.pos[0] = ids[0], start
            wanted = 1 if isinstance(logits, str) and logits == "last" else int(self.mask(1, logits)[0])
            self.logits[0] = self.n_out = wanted
            if self._seq_filled[0] != seq_id:
                self.seq_id[0][0] = self._seq_filled[0] = seq_id
        else:
            self.token[:n] = ids
            self.pos[:n] = np.arange(start, start + n, dtype=np.int32)
            mask = self.mask(n, logits)
            self.logits[:n] = mask
            self.n_out = int(mask.sum())
            other = np.flatnonzero(self._seq_filled[:n] != seq_id)
            self._seq_filled[other] = -1  # until all of them are written: Ctrl-C may come between two
            for i in other:
                self.seq_id[int(i)][0] = seq_id
            self._seq_filled[:n] = seq_id
        self.batch.n_tokens = n

    def fill_batch(self, batch: Batch) -> None:
        """Any tokens of any sequences. The ranges were checked before."""
        self._plain = False
        self._seq_filled[: len(batch)] = -1
        for i, entry in enumerate(batch.entries):
            self.token[i], self.pos[i] = entry.token, entry.pos
            self.n_seq_id[i] = len(entry.seq_ids)
            for j, seq_id in enumerate(entry.seq_ids):
                self.seq_id[i][j] = seq_id
            self._seq_filled[i] = entry.seq_ids[0]
            self.logits[i] = entry.logits
        self.n_out = sum(entry.logits for entry in batch.entries)
        self.batch.n_tokens = len(batch)


def _view(pointer: Any, n: int, dtype: Any) -> Any:
    return np.frombuffer(ffi.buffer(pointer, n * np.dtype(dtype).itemsize), dtype=dtype)
