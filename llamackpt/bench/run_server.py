"""The whole of `llamackpt bench server`: which models, which measurements, in which order. Progress is on standard error."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from .. import default_model
from ..model import Model
from .server import TEXTS, Bench, Setup, describe, find_stock, measure_rejection, measure_speculation
from .server_prompts import MARKERS, measure_conversation, measure_restore
from .server_unused import measure_unused
from .widen import widen

__all__ = ["measure_server"]

N_TURNS, N_ROUNDS, N_RESTORED, N_UNUSED = 20, 1000, 512, 30


def measure_server(
    model: str | None,
    directory: Path,
    *,
    stock: str | None = None,
    flags: Sequence[str] = (),
    draft: int = 8,
    rpc: bool = False,
    runs: int = 4,
    n_tokens: int = 128,
    n_history: int = 8192,
) -> Bench:
    """All of it. Without a model, drafts and slots are measured on the shipped one with a state of 150 MiB, the rest as it is.

    directory: for the model, logs and slot files; about 1 GB.

    Raises ImportError without requests, or without gguf where a model has to be written, ValueError, FileNotFoundError,
    ServerError.
    """
    if draft < 2:
        raise ValueError("a draft needs 2 tokens or more: llama-server makes none that is shorter than what it looked for")
    if runs > len(TEXTS):
        raise ValueError(f"there are {len(TEXTS)} texts, not {runs}")
    program = Path(stock) if stock else find_stock()
    if program and not program.is_file():
        raise FileNotFoundError(f"{program}: {'is a directory, not a program' if program.is_dir() else 'no such file'}")
    light = Path(model) if model else default_model()
    heavy = light
    if not model:
        heavy = directory / "wide.gguf"
        _progress("writing the model")
        widen(light, heavy)
    bench = Bench(details={"model": describe(heavy), "model of the rest": describe(light)})
    setup = Setup(program, directory, tuple(flags), draft, rpc)
    measure_speculation(bench, setup, heavy, runs, n_tokens, _progress)
    measure_restore(bench, setup, heavy, N_RESTORED, 3, directory, _progress)
    with Model(light, vocab_only=True) as one:
        architecture = one.metadata["general.architecture"]
    for marker in MARKERS:
        measure_conversation(bench, setup, light, architecture, n_history, N_TURNS, marker, _progress)
    measure_rejection(bench, setup, light, N_ROUNDS, _progress)
    measure_unused(bench, setup, light, architecture, N_UNUSED, _progress)
    return bench


def _progress(text: str) -> None:
    print(f"bench server: {text}", file=sys.stderr, flush=True)
