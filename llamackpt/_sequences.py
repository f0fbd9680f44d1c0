"""The sequences in a context's memory: where they are, removing, copying and shifting them, and their state as bytes.

It decodes nothing and takes no checkpoints; _decoding.py and context.py build on it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from . import log
from ._ffi import ffi, lib
from ._gate import Gate
from ._params import check_flag, check_range
from .errors import DecodeError, LlamaError, UnsupportedError

if TYPE_CHECKING:
    from .model import Model

__all__ = ["Sequences"]

_POS_MAX = 2**31 - 2  # llama_pos; llama.cpp adds 1 to it


class Sequences:
    """The part of a Context that this file is about; Context.__init__ sets what it reads."""

    model: Model
    n_seq_max: int
    kv_unified: bool
    _arch: str
    _gate: Gate
    _has_state: bool  # one that cannot go back a token: recurrent and hybrid models
    _interrupted: set[int]  # sequences that lost their state in a decode that was stopped

    def _check_seq(self, seq_id: int) -> None:
        # of a fraction llama.cpp would get the integer part. The type comes first: the union is made each time, which is slow
        if type(seq_id) is not int and not isinstance(seq_id, int | np.integer):
            raise TypeError(f"a sequence is an integer, not {seq_id!r}")
        if not 0 <= seq_id < self.n_seq_max:
            raise ValueError(f"sequence {seq_id} is out of range [0, {self.n_seq_max}); see n_seq_max")

    def _check_span(self, p0: int, p1: int) -> None:
        check_range("p0", p0, -(2**31), 2**31 - 1)
        check_range("p1", p1, -(2**31), 2**31 - 1)

    def _check_interrupted(self, seq_id: int) -> None:
        if self._interrupted and seq_id in self._interrupted:
            raise DecodeError("a decode of this sequence was interrupted; restore a checkpoint of it, or remove it")

    def _memory(self, gate: Gate) -> Any:
        if gate.memory == ffi.NULL:
            raise UnsupportedError("this model keeps no memory of its tokens (it is not autoregressive)")
        return gate.memory

    def pos_min(self, seq_id: int = 0) -> int:
        """The smallest position that the memory holds of the sequence, -1 if it is empty."""
        with self._gate as gate:
            self._check_seq(seq_id)
            return int(lib.llama_memory_seq_pos_min(self._memory(gate), seq_id))

    def pos_max(self, seq_id: int = 0) -> int:
        """The largest position of the sequence, -1 if it is empty."""
        with self._gate as gate:
            self._check_seq(seq_id)
            return int(lib.llama_memory_seq_pos_max(self._memory(gate), seq_id))

    def seq_rm(self, seq_id: int = 0, p0: int = 0, p1: int = -1) -> None:
        """Remove the tokens at positions [p0, p1), p1 < 0: to the end.

        Raises UnsupportedError if the memory cannot remove a part of a sequence (use a checkpoint); nothing has changed then.
        """
        with self._gate as gate:
            self._check_seq(seq_id)
            self._check_span(p0, p1)
            if not lib.llama_memory_seq_rm(self._memory(gate), seq_id, p0, p1):
                raise UnsupportedError(f"the memory cannot remove positions [{p0}, {p1}) alone; restore a checkpoint")
            if self._interrupted and lib.llama_memory_seq_pos_max(gate.memory, seq_id) < 0:
                self._interrupted.discard(seq_id)

    def seq_cp(self, src: int, dst: int, p0: int = 0, p1: int = -1) -> None:
        """Copy the tokens of sequence src at positions [p0, p1) to dst, in place of its own there.

        Raises UnsupportedError for a part of a sequence whose running state is that of all its tokens (recurrent, hybrid);
        there p0 is 0, wherever the sequence begins.
        """
        with self._gate as gate:
            self._check_seq(src)
            self._check_seq(dst)
            self._check_span(p0, p1)
            whole_only = not self.kv_unified or self._arch == "deepseek4"
            if whole_only and (p0 > 0 or p1 >= 0) and not self.model.is_recurrent:
                raise UnsupportedError("only whole sequences can be copied here (kv_unified=False, or DeepSeek V4)")
            self._check_interrupted(src)
            memory = self._memory(gate)
            if self._has_state and (p0 > 0 or 0 <= p1 <= lib.llama_memory_seq_pos_max(memory, src)):
                raise UnsupportedError("only whole sequences can be copied here: the running state is that of all tokens")
            if src != dst:  # llama.cpp would add them to those that it has, if both share a cache
                whole = whole_only or self._has_state
                lib.llama_memory_seq_rm(memory, dst, -1 if whole else p0, -1 if whole else p1)
            lib.llama_memory_seq_cp(memory, src, dst, p0, p1)
            self._interrupted.discard(dst)

    def seq_keep(self, seq_id: int) -> None:
        """Remove all sequences but this one."""
        with self._gate as gate:
            self._check_seq(seq_id)
            lib.llama_memory_seq_keep(self._memory(gate), seq_id)
            self._interrupted &= {seq_id}

    def seq_add(self, seq_id: int, p0: int, p1: int, delta: int) -> None:
        """Shift the positions [p0, p1) of the sequence by delta; what comes before 0 is removed."""
        with self._gate as gate:
            self._check_seq(seq_id)
            self._check_span(p0, p1)
            self._check_shift(gate)
            pos_max = max(int(lib.llama_memory_seq_pos_max(self._memory(gate), seq_id)), 0)
            check_range("delta", delta, -_POS_MAX, _POS_MAX - pos_max)
            lib.llama_memory_seq_add(self._memory(gate), seq_id, p0, p1, delta)

    def seq_div(self, seq_id: int, p0: int, p1: int, d: int) -> None:
        """Divide the positions [p0, p1) of the sequence by d >= 1."""
        with self._gate as gate:
            self._check_seq(seq_id)
            self._check_span(p0, p1)
            check_range("d", d, 1, 2**31 - 1)
            self._check_shift(gate)
            lib.llama_memory_seq_div(self._memory(gate), seq_id, p0, p1, d)

    def _check_shift(self, gate: Gate) -> None:
        if not lib.llama_memory_can_shift(self._memory(gate)):
            raise UnsupportedError("the memory of this model cannot shift positions")
        # both would abort: positions of several dimensions, and hybrids with a window cache that has no layers
        if not self.model.is_recurrent and (self.model._has_multi_dim_pos or self.model._is_windowed_hybrid):
            raise UnsupportedError("the memory of this model cannot shift positions")

    def clear(self, data: bool = False) -> None:
        """Remove all sequences and delete all checkpoints. data: also zero the buffers."""
        check_flag("data", data)
        with self._gate as gate:
            lib.llama_memory_clear(self._memory(gate), data)
            self._interrupted.clear()

    def synchronize(self) -> None:
        """Wait until all computation is done."""
        with self._gate as gate:
            lib.llama_synchronize(gate.ctx)

    # host serialisation, as llama.cpp has it: what checkpoints are compared with

    def state_get(self, seq_id: int = 0, partial: bool = False) -> bytes:
        """The state of a sequence as bytes. partial: without what the memory can roll back by itself (attention)."""
        check_flag("partial", partial)
        flags = lib.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY if partial else 0
        with self._gate as gate:
            self._check_seq(seq_id)
            self._check_interrupted(seq_id)
            self._memory(gate)
            log.reset_reason()
            size = lib.llama_state_seq_get_size_ext(gate.ctx, seq_id, flags)
            buffer = bytearray(size)
            n = lib.llama_state_seq_get_data_ext(gate.ctx, ffi.from_buffer("uint8_t[]", buffer), size, seq_id, flags)
            if n != size or size == 0:
                raise LlamaError("llama.cpp cannot serialise the sequence", log=log.reason())
            return bytes(buffer)

    def state_set(
        self, seq_id: int, data: bytes | bytearray | memoryview | npt.NDArray[Any], partial: bool = False
    ) -> None:
        """Replace a sequence by a state of state_get(). Raises LlamaError if it does not fit; the sequence is empty then."""
        check_flag("partial", partial)
        flags = lib.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY if partial else 0
        with self._gate as gate:
            self._check_seq(seq_id)
            memory = self._memory(gate)
            log.reset_reason()
            source = ffi.from_buffer("uint8_t[]", data)  # its length is in bytes, len(data) is in elements
            n = lib.llama_state_seq_set_data_ext(gate.ctx, source, len(source), seq_id, flags)
            if 0 < n < len(source):
                lib.llama_memory_seq_rm(memory, seq_id, -1, -1)
            if n == len(source) or lib.llama_memory_seq_pos_max(memory, seq_id) < 0:
                self._interrupted.discard(seq_id)
            if n == 0:
                raise LlamaError("the bytes are not a state of this model", log=log.reason())
            if n < len(source):
                raise LlamaError(f"the bytes are more than a state: it ends after {n} of {len(source)}")
