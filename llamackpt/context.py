"""A context: the memory of its sequences, decoding into it, and checkpoints of it. Its scratch batch is in _scratch.py."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from . import log
from ._ffi import ffi, lib
from ._gate import Gate
from ._scratch import Poll, Scratch
from .batch import Batch
from .checkpoint import FLAGS, Checkpoint, CheckpointPerf, check_status
from .errors import (
    CheckpointMemoryError,
    ClosedError,
    ContextFullError,
    DecodeError,
    LlamaError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from .model import Model

__all__ = ["Context"]

LogitsChoice = Literal["last", "all"] | Sequence[bool] | npt.NDArray[np.bool_] | None

_MAX_SEQ = 256
_CACHE_TYPES = {
    "f32": lib.GGML_TYPE_F32,
    "f16": lib.GGML_TYPE_F16,
    "bf16": lib.GGML_TYPE_BF16,
    "q8_0": lib.GGML_TYPE_Q8_0,
    "q4_0": lib.GGML_TYPE_Q4_0,
}
_FLASH = {
    "auto": lib.LLAMA_FLASH_ATTN_TYPE_AUTO,
    False: lib.LLAMA_FLASH_ATTN_TYPE_DISABLED,
    True: lib.LLAMA_FLASH_ATTN_TYPE_ENABLED,
}


class Context:
    """The memory of up to n_seq_max sequences of a model.

    n_ctx:       tokens in all, 0 for what the model was trained with.
    n_batch:     tokens that are passed to llama.cpp at once; longer inputs are split.
    n_ubatch:    tokens that are computed at once.
    n_seq_max:   number of sequences, at most 256.
    checkpoints: number of checkpoints that move no state: that many spare cells are reserved for the recurrent layers.
    n_threads:   CPU threads, None for one per processor that this process may use.
    kv_unified:  one cache for all sequences rather than one each; forks of full checkpoints are free only in a unified one.
    flash_attn:  "auto", True or False.
    type_k, type_v: type of the KV cache, "f16" by default.
    n_rs_seq:    llama.cpp's own rollback snapshots per sequence, for the architectures that have them.

    Raises LlamaError if llama.cpp cannot make the context, CheckpointMemoryError if there is no memory for the spare cells.
    Use a context in one thread at a time.
    """

    def __init__(
        self,
        model: Model,
        *,
        n_ctx: int = 0,
        n_batch: int = 2048,
        n_ubatch: int = 512,
        n_seq_max: int = 1,
        checkpoints: int = 0,
        n_threads: int | None = None,
        kv_unified: bool = True,
        flash_attn: bool | Literal["auto"] = "auto",
        type_k: str = "f16",
        type_v: str = "f16",
        n_rs_seq: int = 0,
        offload_kqv: bool = True,
        swa_full: bool = False,
    ) -> None:
        self._gate = Gate(None, None)
        self._interrupted: set[int] = set()
        self.model = model
        handle = model._handle()
        if model.vocab_only:
            raise LlamaError("the model was loaded with vocab_only=True and has no weights to make a context of")
        _check_range("n_ctx", n_ctx, 0, 2**31 - 1)
        _check_range("n_batch", n_batch, 1, 2**31 - 1)
        _check_range("n_ubatch", n_ubatch, 1, 2**31 - 1)
        _check_range("n_seq_max", n_seq_max, 1, _MAX_SEQ)
        _check_range("n_rs_seq", n_rs_seq, 0, 2**16)
        _check_range("checkpoints", checkpoints, 0, 2**31 - 1)

        params = lib.llama_context_default_params()
        self._arch = model.metadata.get("general.architecture", "")
        n_ubatch = min(n_ubatch, n_batch)
        if self._arch == "kimi-linear" and not kv_unified:  # llama.cpp aborts on another size
            n_ubatch = max(n_ubatch // n_seq_max, 1) * n_seq_max
        params.n_ctx, params.n_batch, params.n_ubatch = n_ctx, n_batch, n_ubatch
        params.n_seq_max, params.n_rs_seq = n_seq_max, n_rs_seq
        # llama.cpp's own default is four, however many there are: more threads than processors spin against each other
        n_threads = _n_processors() if n_threads is None else n_threads
        _check_range("n_threads", n_threads, 1, 512)
        params.n_threads = params.n_threads_batch = n_threads
        params.kv_unified, params.offload_kqv, params.swa_full = kv_unified, offload_kqv, swa_full
        params.flash_attn_type = _choice("flash_attn", flash_attn, _FLASH)
        params.type_k = _choice("type_k", type_k, _CACHE_TYPES)
        params.type_v = _choice("type_v", type_v, _CACHE_TYPES)
        params.no_perf = False
        self._poll = Poll()
        params.abort_callback = ffi.addressof(lib, "llamackpt_abort_poll")
        params.abort_callback_data = self._poll.data

        log.reset_reason()
        ctx = lib.llama_init_from_model(handle, params)
        if ctx == ffi.NULL:
            raise LlamaError("llama.cpp cannot make a context of this model with these options", log=log.reason())
        self._gate = Gate(ctx, lib.llama_get_memory(ctx))
        model._contexts.add(self)
        self.n_ctx = int(lib.llama_n_ctx(ctx))
        self.n_batch = int(lib.llama_n_batch(ctx))
        self.n_ubatch = int(lib.llama_n_ubatch(ctx))
        self.n_seq_max = int(lib.llama_n_seq_max(ctx))
        self.n_rs_seq = int(lib.llama_n_rs_seq(ctx))
        self.kv_unified = kv_unified
        self._n_vocab = model.n_vocab
        self._one = np.zeros(1, dtype=np.int32)
        # a model without memory attends to the whole batch, which has to be computed at once
        room = self.n_ubatch if self._gate.memory == ffi.NULL else self.n_batch
        self._scratch = Scratch(min(room, self.n_ctx), self.n_seq_max)
        if checkpoints:
            try:
                self.reserve(checkpoints)
            except BaseException:
                self.close()
                raise

    def _use(self) -> Gate:
        return self._gate

    def _check_seq(self, seq_id: int) -> None:
        if not 0 <= seq_id < self.n_seq_max:
            raise ValueError(f"sequence {seq_id} is out of range [0, {self.n_seq_max}); see n_seq_max")

    def _memory(self, gate: Gate) -> Any:
        if gate.memory == ffi.NULL:
            raise UnsupportedError("this model keeps no memory of its tokens (it is not autoregressive)")
        return gate.memory

    # decoding

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

        Raises ContextFullError with nothing decoded, DecodeError, ValueError. KeyboardInterrupt stops a running decode; of a
        recurrent model the sequence is then lost: restore a checkpoint of it, or remove it.
        """
        if type(tokens) is list and len(tokens) == 1 and type(tokens[0]) is int and 0 <= tokens[0] < self._n_vocab:
            ids = self._one  # the usual case of generation, without a new array
            ids[0] = tokens[0]
            self.model._handle()
        else:
            ids = self.model._check_tokens([tokens] if isinstance(tokens, int | np.integer) else tokens)
        n = len(ids)
        if n == 0:
            raise ValueError("there are no tokens to decode")
        with self._gate as gate:
            self._check_seq(seq_id)
            memory = gate.memory
            start = 0 if memory == ffi.NULL else lib.llama_memory_seq_pos_max(memory, seq_id) + 1
            if pos is not None and pos != start:
                if start > 0 or pos < 0:
                    raise ValueError(f"position {pos} does not follow the sequence, which goes on at {start}")
                start = pos
            scratch = self._scratch
            if n <= scratch.capacity:
                scratch.fill(ids, start, seq_id, logits)
                self._decode(gate, scratch, (seq_id,))
                return self._logits(gate, scratch, copy)
            if memory == ffi.NULL:
                raise ValueError(f"this model takes at most n_ubatch={self.n_ubatch} tokens, not {n}")
            return self._decode_split(gate, ids, start, seq_id, logits)

    def _decode_split(
        self, gate: Gate, ids: npt.NDArray[np.int32], start: int, seq_id: int, logits: LogitsChoice
    ) -> npt.NDArray[np.float32]:
        """Several batches. If a later one does not fit, the sequence goes back to where it was."""
        scratch, out = self._scratch, []
        mask = scratch.mask(len(ids), logits)
        ident = lib.llama_memory_checkpoint_save(gate.memory, seq_id, 0)
        try:
            for at in range(0, len(ids), scratch.capacity):
                part = slice(at, at + scratch.capacity)
                scratch.fill(ids[part], start + at, seq_id, mask[part])
                self._decode(gate, scratch, (seq_id,))
                out.append(self._logits(gate, scratch, True))
        except BaseException as err:
            if ident >= 0 and lib.llama_memory_checkpoint_restore(gate.memory, seq_id, ident) == 0:
                self._interrupted.discard(seq_id)
            elif isinstance(err, ContextFullError):
                raise DecodeError(f"no room for {len(ids)} tokens, and the {at} decoded ones cannot be taken back") from err
            raise
        finally:
            if ident >= 0:
                lib.llama_memory_checkpoint_delete(gate.memory, ident)
        return np.concatenate(out)

    def decode_batch(self, batch: Batch, *, copy: bool = True) -> npt.NDArray[np.float32]:
        """Decode tokens of several sequences together; at most n_batch of them.

        Returns float32 [n_out, n_vocab], a row for each token that was added with logits=True, in that order.
        """
        self.model._check_tokens([entry.token for entry in batch.entries])
        with self._gate as gate:
            if not 0 < len(batch) <= self._scratch.capacity:
                raise ValueError(f"a batch has 1 to {self._scratch.capacity} tokens, not {len(batch)}; see n_batch, n_ctx")
            follows: dict[int, int] = {}
            for entry in batch.entries:
                for seq_id in entry.seq_ids:
                    self._check_seq(seq_id)
                    if gate.memory != ffi.NULL and seq_id not in follows:
                        follows[seq_id] = lib.llama_memory_seq_pos_max(gate.memory, seq_id) + 1
                    expected = follows.get(seq_id, 0)
                    if entry.pos < 0 or (expected > 0 and entry.pos != expected):
                        raise ValueError(f"position {entry.pos} does not follow sequence {seq_id}, at {expected}")
                    follows[seq_id] = entry.pos + 1
                if len(entry.seq_ids) > 1 and (self.model.is_recurrent or self._arch == "qwen4exp"):
                    raise UnsupportedError("a token of this model belongs to one sequence; use a full checkpoint or seq_cp")
                if len(set(entry.seq_ids)) != len(entry.seq_ids):
                    raise ValueError(f"a token belongs to a sequence once, not as in {entry.seq_ids}")
            self._scratch.fill_batch(batch)
            self._decode(gate, self._scratch, {s for entry in batch.entries for s in entry.seq_ids})
            return self._logits(gate, self._scratch, copy)

    def _decode(self, gate: Gate, scratch: Scratch, seq_ids: Iterable[int]) -> None:
        if self._interrupted and not self._interrupted.isdisjoint(seq_ids):
            raise DecodeError("a decode of this sequence was interrupted; restore a checkpoint of it, or remove it")
        if self.model.has_encoder:
            raise UnsupportedError("llamackpt does not run models with an encoder")
        log.reset_reason()
        status = lib.llama_decode(gate.ctx, scratch.batch)
        if status != 0:
            self._fail(gate, status, scratch.batch.n_tokens, seq_ids)

    def _fail(self, gate: Gate, status: int, n: int, seq_ids: Iterable[int]) -> None:
        if status == 1:
            raise ContextFullError(f"no room for {n} tokens in a context of {self.n_ctx}", status)
        if gate.memory != ffi.NULL and (self.model.is_recurrent or self.model.is_hybrid) and status in (2, -2, -3):
            self._interrupted.update(seq_ids)
        if status == 2:
            raise self._poll.take() or KeyboardInterrupt()
        raise DecodeError(f"llama.cpp cannot decode the batch of {n} tokens", status, log.reason())

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

    # the memory

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
            if not lib.llama_memory_seq_rm(self._memory(gate), seq_id, p0, p1):
                raise UnsupportedError(f"the memory cannot remove positions [{p0}, {p1}) alone; restore a checkpoint")
            if p0 <= 0:
                self._interrupted.discard(seq_id)

    def seq_cp(self, src: int, dst: int, p0: int = 0, p1: int = -1) -> None:
        """Copy the tokens of sequence src at positions [p0, p1) to dst."""
        with self._gate as gate:
            self._check_seq(src)
            self._check_seq(dst)
            whole_only = not self.kv_unified or self._arch == "deepseek4"
            if whole_only and (p0 > 0 or p1 >= 0) and not self.model.is_recurrent:
                raise UnsupportedError("only whole sequences can be copied here (kv_unified=False, or DeepSeek V4)")
            lib.llama_memory_seq_cp(self._memory(gate), src, dst, p0, p1)

    def seq_keep(self, seq_id: int) -> None:
        """Remove all sequences but this one."""
        with self._gate as gate:
            self._check_seq(seq_id)
            lib.llama_memory_seq_keep(self._memory(gate), seq_id)

    def seq_add(self, seq_id: int, p0: int, p1: int, delta: int) -> None:
        """Shift the positions [p0, p1) of the sequence by delta."""
        with self._gate as gate:
            self._check_seq(seq_id)
            self._check_shift(gate)
            lib.llama_memory_seq_add(self._memory(gate), seq_id, p0, p1, delta)

    def seq_div(self, seq_id: int, p0: int, p1: int, d: int) -> None:
        """Divide the positions [p0, p1) of the sequence by d >= 1."""
        with self._gate as gate:
            self._check_seq(seq_id)
            _check_range("d", d, 1, 2**31 - 1)
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
        flags = lib.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY if partial else 0
        with self._gate as gate:
            self._check_seq(seq_id)
            self._memory(gate)
            size = lib.llama_state_seq_get_size_ext(gate.ctx, seq_id, flags)
            buffer = bytearray(size)
            n = lib.llama_state_seq_get_data_ext(gate.ctx, ffi.from_buffer("uint8_t[]", buffer), size, seq_id, flags)
            if n != size or size == 0:
                raise LlamaError("llama.cpp cannot serialise the sequence", log=log.reason())
            return bytes(buffer)

    def state_set(self, seq_id: int, data: bytes, partial: bool = False) -> None:
        """Replace a sequence by a state of state_get(). Raises LlamaError if it does not fit; the sequence is empty then."""
        flags = lib.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY if partial else 0
        with self._gate as gate:
            self._check_seq(seq_id)
            self._memory(gate)
            log.reset_reason()
            n = lib.llama_state_seq_set_data_ext(gate.ctx, ffi.from_buffer("uint8_t[]", data), len(data), seq_id, flags)
            if n == 0:
                raise LlamaError("the bytes are not a state of this model", log=log.reason())
            self._interrupted.discard(seq_id)

    # checkpoints

    @property
    def supports_checkpoints(self) -> bool:
        """Whether checkpoints work without a copy through host memory."""
        with self._gate as gate:
            return bool(lib.llama_memory_checkpoint_supported(gate.memory))

    def reserve(self, n: int) -> None:
        """Have n spare cells: that many checkpoints move no state. Fewer than before give memory back.

        Raises CheckpointMemoryError; then nothing has changed. It does nothing where no cells are needed (attention only).
        """
        _check_range("n", n, 0, 2**31 - 1)
        with self._gate as gate:
            if gate.memory == ffi.NULL:
                return
            log.reset_reason()
            status = lib.llama_memory_checkpoint_reserve(gate.memory, n)
            if status == lib.LLAMA_CHECKPOINT_NO_MEMORY:
                raise CheckpointMemoryError(f"no memory for {n} spare cells", status, log.reason())
            check_status(status, "reserve")

    def checkpoint(
        self, seq_id: int = 0, full: bool = False, tier: Literal["auto", "device", "host"] = "auto"
    ) -> Checkpoint:
        """Take a checkpoint of a sequence.

        full: hold the attention cells as well, so that it can be restored into any sequence and outlives its own.
        tier: "auto" takes the cheapest one: shared while there are spare cells, then a copy on the device, then on the host.

        Raises UnsupportedError, CheckpointMemoryError.
        """
        flags = FLAGS.get(tier)
        if flags is None:
            raise ValueError(f"tier is one of {', '.join(FLAGS)}, not {tier!r}")
        with self._gate as gate:
            if not 0 <= seq_id < self.n_seq_max:
                self._check_seq(seq_id)
            if self._interrupted and seq_id in self._interrupted:
                raise DecodeError("a decode of this sequence was interrupted; there is no state to save")
            ident = lib.llama_memory_checkpoint_save(gate.memory, seq_id, flags | lib.LLAMA_CHECKPOINT_FULL if full else flags)
            if ident < 0:
                self._memory(gate)
                check_status(ident, f"checkpoint of sequence {seq_id}")
        return Checkpoint(self, ident, seq_id, full)

    def _delete_checkpoint(self, ident: int) -> None:
        self._gate.delete_checkpoint(ident)

    def checkpoint_perf(self) -> CheckpointPerf:
        """Counts and times of the checkpoints so far."""
        perf = ffi.new("struct llama_checkpoint_perf *")
        with self._gate as gate:
            lib.llama_memory_checkpoint_get_perf(gate.memory, perf)
        return CheckpointPerf(perf)

    # life

    def close(self) -> None:
        """Free the context and its checkpoints. Closing twice is fine."""
        self._gate.close()

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return self._gate.ctx is None

    def __enter__(self) -> Context:
        if self.closed:
            raise ClosedError("the context is closed")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()

    def __repr__(self) -> str:
        if self.closed:
            return "<llamackpt.Context (closed)>"
        return f"<llamackpt.Context of {self.model.path.name!r}, n_ctx={self.n_ctx}, n_seq_max={self.n_seq_max}>"


def _n_processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _check_range(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} is {low} to {high}, not {value}")


def _choice(name: str, value: Any, choices: dict[Any, int]) -> int:
    if value not in choices:
        raise ValueError(f"{name} is one of {', '.join(map(str, choices))}, not {value!r}")
    return choices[value]
