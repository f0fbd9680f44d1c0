"""Checkpoints for every kind of model memory of llama.cpp.

    with llamackpt.Model(llamackpt.default_model()) as model:
        ctx = model.context(n_ctx=4096, checkpoints=2)
        ctx.decode(model.tokenize("def f("))
        with ctx.checkpoint() as ck:
            ctx.decode(draft); ck.restore()
"""

from __future__ import annotations

from pathlib import Path

from .batch import Batch
from .checkpoint import Checkpoint, CheckpointPerf
from .context import Context
from .errors import (
    CheckpointError,
    CheckpointMemoryError,
    ClosedError,
    ContextFullError,
    DecodeError,
    LlamaError,
    ModelLoadError,
    StaleCheckpointError,
    UnsupportedError,
)
from .generate import Result, Token, generate, stream_generate
from .model import Model
from .sampling import Sampler

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "Checkpoint",
    "CheckpointError",
    "CheckpointMemoryError",
    "CheckpointPerf",
    "ClosedError",
    "Context",
    "ContextFullError",
    "DecodeError",
    "LlamaError",
    "Model",
    "ModelLoadError",
    "Result",
    "Sampler",
    "StaleCheckpointError",
    "Token",
    "UnsupportedError",
    "__version__",
    "default_model",
    "generate",
    "stream_generate",
]


def default_model() -> Path:
    """The small trained hybrid model that ships with the package; see MODEL_CARD.md beside it."""
    return Path(__file__).parent / "data" / "pystdlib-hybrid.gguf"
