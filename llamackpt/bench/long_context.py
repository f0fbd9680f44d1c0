"""What a checkpoint costs when the context holds many tokens: only the number of attention cells matters here.

Times are in microseconds: medians of calls from Python, right after a decode that left the caches cold, and beside them the
mean and the worst that the library measured inside.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass

from ..context import Context
from ..model import Model
from .clock import clock, inside, timed
from .machine import where

__all__ = ["LongContext", "as_json", "format_long_context", "measure_long_context"]

N_DRAFT = 64


@dataclass
class LongContext:
    """Rows in the order in which they were measured, in microseconds."""

    model: str
    n_ctx: int
    n_tokens: int
    n_draft: int
    fill_s: float
    rows: dict[str, float]
    inside: dict[str, float]


def measure_long_context(
    model: Model, n_ctx: int = 262144, n_tokens: int = 100_000, runs: int = 50, n_threads: int | None = None
) -> LongContext:
    """Fills a sequence with `n_tokens`, then saves, decodes a draft of 64 and restores, `runs` times for each kind."""
    with model.context(n_ctx=n_ctx, n_batch=2048, n_ubatch=512, n_seq_max=2, checkpoints=8, n_threads=n_threads) as ctx:
        filled = clock(lambda: _fill(ctx, n_tokens)) / 1e6
        rows = {}
        rows["save, rollback"], rows[f"restore over {N_DRAFT} tokens"] = _rounds(ctx, runs, full=False)
        measured = {**_inside(ctx), "save, mean, in a tight loop": _tight_save(ctx)}
        rows["save, full"], rows["restore, full, own sequence"] = _rounds(ctx, runs, full=True)
        rows |= _fork(ctx, max(3, runs // 10))
        n_ctx = ctx.n_ctx
    return LongContext(model.desc, n_ctx, n_tokens, N_DRAFT, filled, rows, measured)


def _fill(ctx: Context, n_tokens: int) -> None:
    for pos in range(0, n_tokens, 2048):
        n = min(2048, n_tokens - pos)
        ctx.decode([5 + (pos + i) % 97 for i in range(n)], logits=None)


def _inside(ctx: Context) -> dict[str, float]:
    perf = ctx.checkpoint_perf()
    return {
        "save, mean": perf.t_save_us / perf.n_save,
        "save, worst": perf.t_save_max_us,
        "restore, mean": perf.t_restore_us / perf.n_restore,
        "restore, worst": perf.t_restore_max_us,
        "its seq_rm, mean": perf.t_seq_rm_us / perf.n_seq_rm,
    }


def _tight_save(ctx: Context, n: int = 2000) -> float:
    """The mean of saves with nothing but their deletion between them: warm caches."""
    before = ctx.checkpoint_perf()
    for _ in range(n):
        ctx.checkpoint().delete()
    return inside("save", before, ctx.checkpoint_perf())


def _rounds(ctx: Context, runs: int, *, full: bool) -> tuple[float, float]:
    """Medians of a save and of the restore over a draft."""
    saved, restored = [], []
    for _ in range(runs):
        ck, us = timed(lambda: ctx.checkpoint(full=full))
        saved.append(us)
        ctx.decode([7] * N_DRAFT, logits=None)
        restored.append(clock(ck.restore))
        ck.delete()
    return statistics.median(saved), statistics.median(restored)


def _fork(ctx: Context, runs: int) -> dict[str, float]:
    """Into another sequence every cell gets a second owner, which cannot be had for nothing; seq_cp does the same."""
    with ctx.checkpoint(full=True) as ck:
        forked, copied = [], []
        for _ in range(runs):
            ctx.seq_rm(1)
            forked.append(clock(lambda: ck.restore(1)))
            ctx.seq_rm(1)
            copied.append(clock(lambda: ctx.seq_cp(0, 1)))
        ctx.seq_rm(1)
    return {"restore, full, other sequence": statistics.median(forked), "seq_cp to compare": statistics.median(copied)}


def as_json(result: LongContext) -> dict[str, object]:
    """With where and when it was measured."""
    return {**where(), **asdict(result)}


def format_long_context(result: LongContext) -> str:
    """For a person."""
    held = f"{result.n_tokens} tokens of {result.n_ctx} held, filled in {result.fill_s:.0f} s"
    lines = [f"{result.model}: {held}; medians in us", ""]
    lines += [f"{name:34}{value:12.1f}" for name, value in result.rows.items()]
    lines.append("inside the library, rollback")
    lines += [f"  {name:32}{value:12.2f}" for name, value in result.inside.items()]
    return "\n".join(lines)
