"""One root, and a subclass for each outcome that a caller acts on. Nothing here calls into llama.cpp."""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "CheckpointMemoryError",
    "ClosedError",
    "ContextFullError",
    "DecodeError",
    "LlamaError",
    "ModelLoadError",
    "StaleCheckpointError",
    "UnsupportedError",
]


class LlamaError(Exception):
    """Root of all errors of llamackpt.

    code: the status that llama.cpp returned, None if there was none.
    log:  what llama.cpp's own log gives as the reason, "" if it said nothing.
    """

    def __init__(self, message: str, code: int | None = None, log: str = "") -> None:
        super().__init__(f"{message}: {log}" if log else message)
        self.code = code
        self.log = log


class ClosedError(LlamaError):
    """The model, context or checkpoint was closed or deleted before."""


class ModelLoadError(LlamaError):
    """The file cannot be loaded as a model, or its loading was cancelled."""


class DecodeError(LlamaError):
    """llama.cpp could not decode the batch."""


class ContextFullError(DecodeError):
    """There is no room for the batch. Nothing was decoded; remove tokens or use a larger n_ctx."""


class CheckpointError(LlamaError):
    """A checkpoint cannot be saved, restored or deleted as asked. Nothing was changed."""


class StaleCheckpointError(CheckpointError):
    """The tokens that the rollback checkpoint relies on were removed or moved. A full one is safe from that."""


class CheckpointMemoryError(CheckpointError):
    """There is not enough memory, or there are not enough free cells."""


class UnsupportedError(CheckpointError):
    """The memory of this model cannot do what was asked for."""
