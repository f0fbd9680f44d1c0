"""A context: the memory of the sequences of a model; made, checkpointed and closed here.

Its sequences are in _sequences.py, decoding is in _decoding.py, the options are in _params.py.
"""

from __future__ import annotations

import contextlib
from types import TracebackType
from typing import TYPE_CHECKING, Literal

import numpy as np

from . import _caught, log
from ._decoding import Decoding
from ._ffi import ffi, lib
from ._gate import Gate
from ._owned import Handle, slot_for, taken
from ._params import check_flag, check_range, check_type, context_params
from ._scratch import Scratch
from .checkpoint import FLAGS, Checkpoint, CheckpointPerf, check_status
from .errors import CheckpointMemoryError, ClosedError, LlamaError

if TYPE_CHECKING:
    from .model import Model

__all__ = ["Context"]


class Context(Decoding, Handle):
    """The memory of up to n_seq_max sequences of a model.

    n_ctx:       tokens in all, 0 for what the model was trained with; it is rounded up to a multiple of 256, with
                 kv_unified=False for each sequence.
    n_batch:     tokens that are passed to llama.cpp at once; longer inputs are split.
    n_ubatch:    tokens that are computed at once.
    n_seq_max:   number of sequences, at most 256.
    checkpoints: number of checkpoints that move no state: that many spare cells are reserved for the recurrent layers.
    n_threads:   CPU threads, None for one per processor that this process may use. They spin while they wait, so processes
                 that share processors need a part of them each: two with all of them are many times slower.
    kv_unified:  one cache for all sequences rather than one each, where a fork of a full checkpoint is a copy on the device.
    flash_attn:  "auto", True or False.
    type_k, type_v: type of the KV cache, "f16" by default.
    n_rs_seq:    llama.cpp's own rollback snapshots per sequence, for the architectures that have them: seq_rm() takes
                 back as many of the last batch's tokens, but not the first of these. n_ubatch is at least n_rs_seq + 2 then.
    offload_kqv: keep the KV cache on the GPU, with the layers that are there.
    swa_full:    a cache of full size for the layers with a sliding window.

    Raises ValueError and TypeError for the options, LlamaError if llama.cpp cannot make the context, CheckpointMemoryError if
    there is no memory for the spare cells.
    Use a context in one thread at a time, and in the process that made it.
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
        self._gate = Gate(None, None, None)
        self._interrupted: set[int] = set()
        from .model import Model  # which knows this module

        check_type("model", model, Model)
        self.model = model
        handle = model._handle()
        if model.vocab_only:
            raise LlamaError("the model was loaded with vocab_only=True and has no weights to make a context of")
        check_range("checkpoints", checkpoints, 0, 2**31 - 1)
        self._arch = model.metadata.get("general.architecture", "")
        params = context_params(
            self._arch,
            n_ctx=n_ctx, n_batch=n_batch, n_ubatch=n_ubatch, n_seq_max=n_seq_max, n_threads=n_threads, kv_unified=kv_unified,
            flash_attn=flash_attn, type_k=type_k, type_v=type_v, n_rs_seq=n_rs_seq, offload_kqv=offload_kqv, swa_full=swa_full,
        )  # fmt: skip
        self._polled = ffi.new("double[2]")  # calls, time of the last poll
        params.abort_callback = ffi.addressof(lib, "llamackpt_abort_poll")
        params.abort_callback_data = self._polled

        log.reset_reason()
        slot = slot_for("struct llama_context **", lib.llama_free, handle)
        lib.llamackpt_init(handle, params, slot)
        _caught.reraise()
        if slot[0] == ffi.NULL:
            raise LlamaError("llama.cpp cannot make a context of this model with these options", log=log.reason())
        ctx = taken(slot)
        self._gate = Gate(ctx, lib.llama_get_memory(ctx), handle)
        model._contexts.add(self)
        self.n_ctx = int(lib.llama_n_ctx(ctx))
        self.n_batch = int(lib.llama_n_batch(ctx))
        self.n_ubatch = int(lib.llama_n_ubatch(ctx))
        self.n_seq_max = int(lib.llama_n_seq_max(ctx))
        self.n_rs_seq = int(lib.llama_n_rs_seq(ctx))
        self.kv_unified = kv_unified
        self._n_vocab = model.n_vocab
        self._has_state = model.is_recurrent or model.is_hybrid
        self._status = ffi.new("int32_t *")
        # llama.cpp aborts behind the end of a table of positions
        self._n_pos = model.n_ctx_train if self._arch in ("gpt2", "mpt", "starcoder") else 2**31 - 1
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

    @property
    def has_memory(self) -> bool:
        """Whether anything is kept of the tokens; not of a diffusion model or an encoder."""
        with self._gate as gate:
            return bool(gate.memory != ffi.NULL)

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
        check_range("n", n, 0, 2**31 - 1)
        with self._gate as gate:
            if gate.memory == ffi.NULL:
                return
            log.reset_reason()
            status = lib.llama_memory_checkpoint_reserve(gate.memory, n)
            if status == lib.LLAMA_CHECKPOINT_NO_MEMORY:
                raise CheckpointMemoryError(f"no memory for {n} spare cells", status, log.reason())
            _caught.reraise()
            check_status(status, "reserve")

    def checkpoint(
        self, seq_id: int = 0, full: bool = False, tier: Literal["auto", "device", "host"] = "auto"
    ) -> Checkpoint:
        """Take a checkpoint of a sequence.

        full: hold the attention cells as well, so that it can be restored into any sequence and outlives its own.
        tier: "auto" takes the cheapest one: shared while there are spare cells, then a copy on the device, then on the host.

        Raises UnsupportedError, CheckpointMemoryError.
        """
        try:
            flags = FLAGS[tier]
        except (KeyError, TypeError):  # a list has no hash
            raise ValueError(f"tier is one of {', '.join(FLAGS)}, not {tier!r}") from None
        if full is not False:
            check_flag("full", full)
            flags |= lib.LLAMA_CHECKPOINT_FULL if full else 0
        with self._gate as gate:
            if type(seq_id) is not int or not 0 <= seq_id < self.n_seq_max:
                self._check_seq(seq_id)
            self._check_interrupted(seq_id)
            log.reset_reason()
            slot = gate.slot()
            lib.llamackpt_checkpoint_save(gate.memory, seq_id, flags, slot)
            ident = slot[0]
            if ident < 0:
                self._memory(gate)
                check_status(ident, f"checkpoint of sequence {seq_id}")
        return Checkpoint(self, slot, ident, seq_id, full)

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
