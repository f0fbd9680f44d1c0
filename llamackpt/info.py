"""What a model is and what a checkpoint of it costs. `model_info` measures, `format_info` reports."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .errors import LlamaError, UnsupportedError
from .model import Model

MIB = 1024.0 * 1024.0


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """One kind of checkpoint, taken for the purpose on a short sequence."""

    kind: str
    """"rollback" or "full"."""
    tier: str
    """"shared", "device" or "host"; "" where it was refused."""
    nbytes: int
    nbytes_host: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    path: str
    desc: str
    arch: str
    name: str
    n_params: int
    size: int
    """Bytes of all tensors."""
    n_vocab: int
    n_ctx_train: int
    n_layer: int
    n_embd: int
    memory: str
    """"recurrent", "hybrid", "attention" or "none"."""
    supports_checkpoints: bool
    """Without a copy through host memory."""
    checkpoints: list[CheckpointInfo]


def model_info(model: Model, path: str, n_threads: int | None = None) -> ModelInfo:
    """Read the metadata, then take one checkpoint of each kind in a small context."""
    supported, taken, has_memory = _probe(model, n_threads)
    if model.is_hybrid:
        memory = "hybrid"
    elif model.is_recurrent:
        memory = "recurrent"
    else:
        memory = "attention" if has_memory else "none"
    return ModelInfo(
        path=path,
        desc=model.desc,
        arch=model.metadata.get("general.architecture", ""),
        name=model.metadata.get("general.name", ""),
        n_params=model.n_params,
        size=model.size,
        n_vocab=model.n_vocab,
        n_ctx_train=model.n_ctx_train,
        n_layer=model.n_layer,
        n_embd=model.n_embd,
        memory=memory,
        supports_checkpoints=supported,
        checkpoints=taken,
    )


def _probe(model: Model, n_threads: int | None) -> tuple[bool, list[CheckpointInfo], bool]:
    taken: list[CheckpointInfo] = []
    with model.context(n_ctx=256, n_batch=32, n_ubatch=32, n_threads=n_threads) as ctx:
        if not ctx.has_memory:
            return False, taken, False
        try:
            ctx.decode([0, 0])
        except LlamaError:
            return False, taken, False
        supported = ctx.supports_checkpoints
        if supported:
            ctx.reserve(1)
        for kind, full in (("rollback", False), ("full", True)):
            try:
                with ctx.checkpoint(full=full) as ck:
                    taken.append(CheckpointInfo(kind, ck.tier, ck.nbytes, ck.nbytes_host))
            except UnsupportedError as error:
                taken.append(CheckpointInfo(kind, "", 0, 0, str(error)))
        return supported, taken, True


def format_info(info: ModelInfo) -> str:
    rows = [
        ("file", info.path),
        ("model", f"{info.name or '(no name)'}: {info.desc}, architecture {info.arch}"),
        ("parameters", f"{info.n_params:,} in {info.size / MIB:.1f} MiB"),
        ("shape", f"{info.n_layer} layers of {info.n_embd}, vocabulary {info.n_vocab:,}"),
        ("trained for", f"{info.n_ctx_train:,} tokens of context"),
        ("memory", info.memory),
        ("checkpoints", _support(info)),
    ]
    for ck in info.checkpoints:
        if ck.reason:
            rows.append((f"  {ck.kind}", f"refused: {ck.reason}"))
        else:
            host = f", {ck.nbytes_host / MIB:.2f} MiB of it in host memory" if ck.nbytes_host else ""
            rows.append(
                (f"  {ck.kind}", f"tier {ck.tier}, {ck.nbytes / MIB:.2f} MiB after 2 tokens{host}")
            )
    return "\n".join(f"{name:<12} {value}" for name, value in rows)


def _support(info: ModelInfo) -> str:
    if info.memory == "none":
        return "none: the model keeps no state between calls"
    return "without a host copy" if info.supports_checkpoints else "through host memory"


def as_json(info: ModelInfo) -> dict[str, Any]:
    return asdict(info)
