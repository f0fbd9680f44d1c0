"""Decoding into a context: tokens of one sequence or of several, in batches that fit, and the logits that come back.

What a batch is in memory is _scratch.py's.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from . import _caught, log
from ._ffi import ffi, lib
from ._gate import Gate
from ._params import check_type
from ._scratch import Scratch
from ._sequences import Sequences
from .batch import Batch
from .errors import ContextFullError, DecodeError, UnsupportedError

__all__ = ["Decoding"]

# llama.cpp aborts: the index of a position into the compressed keys runs past the cells
_STARTS_AT_0 = ("deepseek4", "qwen4exp")

_LOSSY = (2, -2, -3)  # what llama_decode() returns when a part of the batch is done: stopped, no memory, failed

_MAX_POS = 2**31 - 1

LogitsChoice = Literal["last", "all"] | Sequence[bool] | npt.NDArray[np.bool_] | None


class Decoding(Sequences):
    """The part of a Context that this file is about; Context.__init__ sets what it reads."""

    n_ctx: int
    n_ubatch: int
    _n_vocab: int
    _n_pos: int
    _status: Any  # int32_t *, of the last decode
    _one: npt.NDArray[np.int32]  # a single id, written again by each decode
    _scratch: Scratch

    def decode(
        self,
        tokens: int | Iterable[int] | npt.NDArray[np.integer[Any]],
        seq_id: int = 0,
        *,
        pos: int | None = None,
        logits: LogitsChoice = "last",
        copy: bool = True,
    ) -> npt.NDArray[np.float32]:
        """Decode tokens at the end of a sequence.

        tokens: ids, one-dimensional; a single id works, too.
        pos:    position of the first one, None to go on after the last.
        logits: for which tokens they are returned: "last", "all", a mask of len(tokens), or None.
        copy:   False returns an array that the next decode writes again; it saves an allocation.

        Returns float32 [n_out, n_vocab].

        Raises ContextFullError with nothing decoded, DecodeError, ValueError. KeyboardInterrupt stops a running decode: input
        that is longer than n_batch is taken back; of a single batch an attention model keeps the parts of n_ubatch tokens that
        were computed, as pos_max() says; of a recurrent or hybrid model the sequence is then lost: restore a checkpoint of it,
        or remove it.
        """
        token: Any = tokens[0] if type(tokens) is list and len(tokens) == 1 else None
        single = type(token) is int and 0 <= token < self._n_vocab
        if single:
            ids = self._one  # the usual case of generation, without a new array; it is written where only one thread can be
            self.model._handle()
        else:
            ids = self.model._check_tokens([tokens] if isinstance(tokens, int | np.integer) else tokens)
        n = len(ids)
        if n == 0:
            raise ValueError("there are no tokens to decode")
        with self._gate as gate:
            if single:
                ids[0] = token
            self._check_seq(seq_id)
            memory = gate.memory
            start = 0 if memory == ffi.NULL else lib.llama_memory_seq_pos_max(memory, seq_id) + 1
            if pos is not None and pos != start:
                if start > 0 or pos < 0:
                    raise ValueError(f"position {pos} does not follow the sequence, which goes on at {start}")
                self._check_start(pos)
                start = operator.index(pos)
            self._check_end(start + n)
            scratch = self._scratch
            if n <= scratch.capacity:
                scratch.fill(ids, start, seq_id, logits)
                self._decode(gate, scratch, (seq_id,))
                return self._logits(gate, scratch, copy)
            if memory == ffi.NULL:
                raise ValueError(f"this model takes at most n_ubatch={self.n_ubatch} tokens, not {n}")
            return self._decode_split(gate, ids, start, seq_id, logits)

    def _check_start(self, pos: int) -> None:
        if pos > 0 and self._arch in _STARTS_AT_0:
            raise UnsupportedError(f"a sequence of this model begins at position 0, not {pos}")

    def _check_end(self, end: int) -> None:
        if end > _MAX_POS:
            raise ValueError(f"position {end - 1} is out of range")
        if end > self._n_pos:
            raise ContextFullError(f"no room for position {end - 1}: the model has learned {self._n_pos} of them")

    def _decode_split(
        self, gate: Gate, ids: npt.NDArray[np.int32], start: int, seq_id: int, logits: LogitsChoice
    ) -> npt.NDArray[np.float32]:
        """Several batches. If a later one does not fit, the sequence goes back to where it was."""
        scratch, out = self._scratch, []
        mask = scratch.mask(len(ids), logits)
        slot = gate.slot()
        try:
            lib.llamackpt_checkpoint_save(gate.memory, seq_id, 0, slot)
            for at in range(0, len(ids), scratch.capacity):
                part = slice(at, at + scratch.capacity)
                scratch.fill(ids[part], start + at, seq_id, mask[part])
                self._decode(gate, scratch, (seq_id,), len(ids))
                out.append(self._logits(gate, scratch, True))
        except BaseException as err:
            if slot[0] >= 0 and lib.llama_memory_checkpoint_restore(gate.memory, seq_id, slot[0]) == 0:
                self._interrupted.discard(seq_id)
            elif isinstance(err, ContextFullError):
                raise DecodeError(f"no room for {len(ids)} tokens, and the {at} decoded ones cannot be taken back") from err
            raise
        finally:
            ffi.release(slot)  # the next call deletes it
        return np.concatenate(out)

    def decode_batch(self, batch: Batch, *, copy: bool = True) -> npt.NDArray[np.float32]:
        """Decode tokens of several sequences together; at most n_batch of them.

        Returns float32 [n_out, n_vocab], a row for each token that was added with logits=True, in that order.
        """
        check_type("batch", batch, Batch)
        self.model._check_tokens([entry.token for entry in batch.entries])
        with self._gate as gate:
            if not 0 < len(batch) <= self._scratch.capacity:
                raise ValueError(f"a batch has 1 to {self._scratch.capacity} tokens, not {len(batch)}; see n_batch, n_ctx")
            follows: dict[int, int] = {}
            for entry in batch.entries:
                if len(set(entry.seq_ids)) != len(entry.seq_ids):
                    raise ValueError(f"a token belongs to a sequence once, not as in {entry.seq_ids}")
                for seq_id in entry.seq_ids:
                    self._check_seq(seq_id)
                    if gate.memory != ffi.NULL and seq_id not in follows:
                        follows[seq_id] = lib.llama_memory_seq_pos_max(gate.memory, seq_id) + 1
                    expected = follows.get(seq_id, 0)
                    if entry.pos < 0 or (expected > 0 and entry.pos != expected):
                        raise ValueError(f"position {entry.pos} does not follow sequence {seq_id}, at {expected}")
                    if expected == 0:
                        self._check_start(entry.pos)
                    self._check_end(entry.pos + 1)
                    follows[seq_id] = entry.pos + 1
                if len(entry.seq_ids) > 1 and (self.model.is_recurrent or self._arch == "qwen4exp"):
                    raise UnsupportedError("a token of this model belongs to one sequence; use a full checkpoint or seq_cp")
            self._scratch.fill_batch(batch)
            self._decode(gate, self._scratch, {s for entry in batch.entries for s in entry.seq_ids})
            return self._logits(gate, self._scratch, copy)

    def _decode(self, gate: Gate, scratch: Scratch, seq_ids: Iterable[int], n: int = 0) -> None:
        """n: tokens of the whole input, of which this is a part."""
        for seq_id in seq_ids:
            self._check_interrupted(seq_id)
        if self.model.has_encoder:
            raise UnsupportedError("llamackpt does not run models with an encoder")
        log.reset_reason()
        status = self._status
        status[0] = 0
        try:
            lib.llamackpt_decode(gate.ctx, scratch.batch, status)
        except BaseException:  # a second Ctrl-C, as the call returns that the first one has stopped
            _caught.take()
            raise
        finally:  # no call into Python comes before this, in which a signal handler could raise
            if status[0] in _LOSSY and self._has_state:
                self._interrupted.update(seq_ids)
        if status[0] != 0:
            self._fail(status[0], scratch.batch.n_tokens, n)
        _caught.reraise()

    def _fail(self, status: int, n_batch: int, n: int) -> None:
        _caught.reraise()
        if status == 1:
            each = "" if self.kv_unified else f", {self.n_ctx // self.n_seq_max} for each sequence"
            raise ContextFullError(f"no room for {n or n_batch} tokens in a context of {self.n_ctx}{each}", status)
        if status == 2:
            raise KeyboardInterrupt
        raise DecodeError(f"llama.cpp cannot decode the batch of {n_batch} tokens", status, log.reason())

    def _logits(self, gate: Gate, scratch: Scratch, copy: bool) -> npt.NDArray[np.float32]:
        if scratch.n_out == 0:
            return np.empty((0, self._n_vocab), dtype=np.float32)
        # the rows come in the order of the batch; the call waits for the computation
        data = lib.llama_get_logits(gate.ctx)
        if data == ffi.NULL:
            raise DecodeError("the model has no logits (is it an embedding model?)", log=log.reason())
        shape = (scratch.n_out, self._n_vocab)
        view = np.frombuffer(ffi.buffer(data, 4 * shape[0] * shape[1]), dtype=np.float32).reshape(shape)
        return view.copy() if copy else scratch.keep(view)
