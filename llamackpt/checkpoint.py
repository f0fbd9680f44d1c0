"""A handle on one checkpoint. What it holds is llama.cpp's; it only knows its id and its context."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from . import log
from ._ffi import ffi, lib
from ._owned import Handle
from ._params import check_flag
from .errors import (
    CheckpointError,
    CheckpointMemoryError,
    ClosedError,
    StaleCheckpointError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from .context import Context

__all__ = ["Checkpoint", "CheckpointPerf", "Tier", "check_status"]

Tier = Literal["shared", "device", "host"]

TIERS: dict[int, Tier] = {
    lib.LLAMA_CHECKPOINT_TIER_SHARED: "shared",
    lib.LLAMA_CHECKPOINT_TIER_DEVICE: "device",
    lib.LLAMA_CHECKPOINT_TIER_HOST: "host",
}

FLAGS = {"auto": 0, "device": lib.LLAMA_CHECKPOINT_DEVICE, "host": lib.LLAMA_CHECKPOINT_HOST}

_ERRORS: dict[int, tuple[type[CheckpointError], str]] = {
    lib.LLAMA_CHECKPOINT_INVALID: (CheckpointError, "the checkpoint or the sequence does not exist here"),
    lib.LLAMA_CHECKPOINT_UNSUPPORTED: (UnsupportedError, "the memory of this model cannot do that"),
    lib.LLAMA_CHECKPOINT_STALE: (
        StaleCheckpointError,
        "the tokens before its position were removed or moved; one taken with full=True is safe from removals",
    ),
    lib.LLAMA_CHECKPOINT_NO_MEMORY: (
        CheckpointMemoryError,
        "not enough memory or free cells; delete checkpoints or remove sequences",
    ),
}


def check_status(status: int, what: str) -> int:
    """The status itself if it is not an error, otherwise the exception for it."""
    if status < 0:
        kind, reason = _ERRORS.get(status, (CheckpointError, f"status {status}"))
        raise kind(f"{what}: {reason}", status, log.reason())
    return status


class CheckpointPerf:
    """Counts, microseconds (total and worst) and bytes of the checkpoints of a context since its start."""

    def __init__(self, perf: Any) -> None:
        self.n_save, self.n_restore = int(perf.n_save), int(perf.n_restore)
        self.n_delete, self.n_seq_rm = int(perf.n_delete), int(perf.n_seq_rm)
        self.t_save_us, self.t_save_max_us = float(perf.t_save_us), float(perf.t_save_max_us)
        self.t_restore_us, self.t_restore_max_us = float(perf.t_restore_us), float(perf.t_restore_max_us)
        self.t_delete_us, self.t_delete_max_us = float(perf.t_delete_us), float(perf.t_delete_max_us)
        self.t_seq_rm_us, self.t_seq_rm_max_us = float(perf.t_seq_rm_us), float(perf.t_seq_rm_max_us)
        self.size_copied_device = int(perf.size_copied_device)
        self.size_copied_host = int(perf.size_copied_host)

    def __repr__(self) -> str:
        return f"CheckpointPerf({', '.join(f'{key}={value}' for key, value in vars(self).items())})"


class Checkpoint(Handle):
    """The state of one sequence at one position. Made by Context.checkpoint().

    A rollback checkpoint goes back into its own sequence. A full one goes into any (a fork), and outlives its sequence.
    Restoring does not consume it. It is deleted at the end of a `with`, by delete(), or with the last reference to it, by the
    next call into its context.
    """

    __slots__ = ("__weakref__", "_context", "_id", "_slot", "full", "seq_id")

    def __init__(self, context: Context, slot: Any, ident: int, seq_id: int, full: bool) -> None:
        self._context: Context | None = context
        self._slot = slot  # for its end alone: see Gate.slot()
        self._id = ident
        self.seq_id = seq_id
        self.full = full

    def _owner(self) -> Context:
        context = self._context
        if context is None:
            raise ClosedError("the checkpoint is deleted")
        return context

    def _info(self) -> Any:
        context = self._owner()
        info = ffi.new("struct llama_checkpoint_info *")
        with context._gate as handle:
            status = lib.llama_memory_checkpoint_get_info(handle.memory, self._id, info)
        if status == lib.LLAMA_CHECKPOINT_INVALID:
            raise ClosedError("the checkpoint was deleted by clear()")
        return info

    @property
    def id(self) -> int:
        """llama.cpp's id: not negative, unique in the process, never reused."""
        return self._id

    @property
    def pos(self) -> int:
        """The last position of the sequence, -1 if it was empty."""
        return int(self._info().pos)

    @property
    def tier(self) -> Tier:
        """Where the state is: "shared" (it did not move), "device" (a copy there) or "host"."""
        return TIERS[self._info().tier]

    @property
    def nbytes(self) -> int:
        """Bytes that it holds, on the device and on the host."""
        info = self._info()
        return int(info.size_device + info.size_host)

    @property
    def nbytes_host(self) -> int:
        """Bytes that it holds in host memory. Of attention cells that were copied on the device, these are their positions."""
        return int(self._info().size_host)

    @property
    def valid(self) -> bool:
        """Whether restore() would work: not deleted, not stale, its context open. Raises LlamaError while another thread
        is in the context.
        """
        try:
            return bool(self._info().restorable)
        except ClosedError:
            return False

    def restore(self, seq_id: int | None = None) -> None:
        """Bring the sequence back to this state; what it holds now is lost. seq_id: another sequence, if this is a full one.

        Raises StaleCheckpointError, CheckpointMemoryError, CheckpointError, ClosedError; then nothing has changed.
        """
        context = self._owner()
        target = self.seq_id if seq_id is None else seq_id
        with context._gate as handle:
            context._check_seq(target)
            log.reset_reason()
            status = lib.llama_memory_checkpoint_restore(handle.memory, target, self._id)
            if status < 0:
                self._refuse(status, target)
            if context._interrupted:
                context._interrupted.discard(target)

    def _refuse(self, status: int, target: int) -> None:
        if status == lib.LLAMA_CHECKPOINT_INVALID:
            if not self.full and target != self.seq_id:
                raise CheckpointError(
                    f"a rollback checkpoint of sequence {self.seq_id} cannot be restored into {target}; take a full one",
                    status,
                )
            raise ClosedError("the checkpoint was deleted by clear()", status)
        check_status(status, "restore")

    def state_get(self, partial: bool = False) -> bytes:
        """The state at the checkpoint as bytes for Context.state_set(), to keep it in a file. The sequence stays as it is.

        partial: without what the memory can roll back by itself (attention).
        Raises StaleCheckpointError, and UnsupportedError if llama.cpp cannot read it where it is.
        """
        check_flag("partial", partial)
        info = self._info()
        flags = lib.LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY if partial else 0
        with self._owner()._gate as handle:
            log.reset_reason()
            size = lib.llama_memory_checkpoint_get_data(handle.memory, self._id, ffi.NULL, 0, flags)
            buffer = bytearray(size)
            dst = ffi.from_buffer("uint8_t[]", buffer)
            if size > 0 and lib.llama_memory_checkpoint_get_data(handle.memory, self._id, dst, size, flags) == size:
                return bytes(buffer)
        if not info.restorable:
            check_status(lib.LLAMA_CHECKPOINT_STALE, "state_get")
        reason = "it is empty" if info.pos < 0 else f"it cannot be read from the {TIERS[info.tier]} tier now; restore it first"
        raise UnsupportedError(f"state_get: {reason}", lib.LLAMA_CHECKPOINT_UNSUPPORTED, log.reason())

    def delete(self) -> None:
        """Give back what it holds. Deleting twice is fine."""
        context = self._context
        if context is not None:
            try:
                context._gate.delete_checkpoint(self._slot)
            finally:  # it can raise what a handler raised in an earlier call
                self._context = None

    def __enter__(self) -> Checkpoint:
        self._owner()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.delete()

    def __repr__(self) -> str:
        state = "" if self._context is not None else " (deleted)"
        return f"<llamackpt.Checkpoint {self._id} of sequence {self.seq_id}{', full' if self.full else ''}{state}>"
