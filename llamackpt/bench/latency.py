"""What a checkpoint costs beside llama.cpp's own serialisation, in one process, in pairs.

Measuring returns data; reporting is apart. It knows the package as a user does, and reads the clock of this process only.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

from .._ffi import lib
from ..checkpoint import Checkpoint
from ..context import Context
from ..model import Model
from .clock import clock, inside, timed
from .machine import where

__all__ = ["Latency", "as_json", "format_latency", "measure_latency"]

WARMUP = 5


@dataclass
class Latency:
    """Medians. Times in microseconds, sizes in bytes; a dict has the statistic of each operation."""

    model: str
    n_ctx: int
    state_bytes: int
    from_python: dict[str, float]
    inside_c: dict[str, float]
    serialisation: dict[str, float]
    device_copy: dict[str, float]
    decode: dict[str, float]
    decode_one: dict[str, float]
    import_s: float


def _repeat(call: Callable[[], object], n: int) -> None:
    for _ in range(n):
        call()


def measure_latency(model: Model, n_ctx: int = 512, runs: int = 50, n_threads: int | None = None) -> Latency:
    """All of it, on one sequence; `runs` of each in turn. Takes runs x (six decodes and two copies of the state)."""
    tokens = [i % model.n_vocab for i in range(3, 11)]
    with model.context(n_ctx=n_ctx, checkpoints=31, n_threads=n_threads) as ctx:
        ctx.decode(tokens)
        opened = ctx.checkpoint_perf()
        base, n_held = ctx.checkpoint(full=True), ctx.n_ctx
        checkpoint, serial = _operations(ctx, runs, base.restore)
        perf = ctx.checkpoint_perf()
        decode = _decodes(ctx, runs, base.restore)
        state_bytes = len(ctx.state_get(partial=True))
        tight, inside_tight = _tight_loop(ctx)
        base.delete()
        device = _device(ctx, runs)
    with model.context(n_ctx=max(n_ctx, 4096), n_threads=n_threads) as ctx:
        one = _decode_one(ctx)
    return Latency(
        model=model.desc,
        n_ctx=n_held,
        state_bytes=state_bytes,
        from_python={**checkpoint, **tight},
        inside_c={"save": inside("save", opened, perf), "restore": inside("restore", opened, perf), **inside_tight},
        serialisation=serial,
        device_copy=device,
        decode=decode,
        decode_one=one,
        import_s=_import_seconds(),
    )


def _operations(ctx: Context, runs: int, reset: Callable[[], None]) -> tuple[dict[str, float], dict[str, float]]:
    """Save and restore, a decoded token between them; then the same with serialised state."""
    times: dict[str, list[float]] = {key: [] for key in ("save", "restore", "delete", "get", "set")}
    for run in range(runs + WARMUP):
        ck, saved = timed(ctx.checkpoint)
        ctx.decode([5])
        restored = clock(ck.restore)
        deleted = clock(ck.delete)
        state, got = timed(lambda: ctx.state_get(partial=True))
        put = clock(lambda data=state: ctx.state_set(0, data, partial=True))  # type: ignore[misc]
        reset()
        if run >= WARMUP:
            for key, value in zip(times, (saved, restored, deleted, got, put), strict=True):
                times[key].append(value)
    medians = {key: statistics.median(values) for key, values in times.items()}
    serial = {"save": medians.pop("get"), "restore": medians.pop("set")}
    return medians, serial


def _tight_loop(ctx: Context, n: int = 2000) -> tuple[dict[str, float], dict[str, float]]:
    """The same calls again and again, nothing between them: warm caches. From Python, and inside the library."""

    def save() -> None:
        ctx.checkpoint()

    before = ctx.checkpoint_perf()
    ck = ctx.checkpoint()
    result = {"save, warm": clock(lambda: _repeat(save, n)) / n}
    result["restore, warm"] = clock(lambda: _repeat(ck.restore, n)) / n
    ck.delete()
    after = ctx.checkpoint_perf()
    return result, {"save, warm": inside("save", before, after), "restore, warm": inside("restore", before, after)}


def _device(ctx: Context, runs: int) -> dict[str, float]:
    def save() -> Checkpoint:
        ck = ctx.checkpoint(tier="device")
        ctx.synchronize()
        return ck

    def restore(ck: Checkpoint) -> None:
        ck.restore()
        ctx.synchronize()

    times: dict[str, list[float]] = {"save": [], "restore": []}
    for _ in range(runs):
        ck, saved = timed(save)
        times["save"].append(saved)
        times["restore"].append(clock(partial(restore, ck)))
        ck.delete()
    return {key: statistics.median(values) for key, values in times.items()}


def _decodes(ctx: Context, runs: int, reset: Callable[[], None]) -> dict[str, float]:
    """A token: with nothing held, right after a save, and with 30 idle checkpoints. The three in turn."""

    def token() -> float:
        return clock(lambda: ctx.decode([5]))

    plain, first, second, idle = [], [], [], []
    for run in range(runs + WARMUP):
        token()
        a = token()
        ck = ctx.checkpoint()
        b, c = token(), token()
        held = [ctx.checkpoint() for _ in range(30)]
        token()
        d = token()
        for one in (ck, *held):
            one.delete()
        reset()
        if run >= WARMUP:
            plain.append(a)
            first.append(b)
            second.append(c)
            idle.append(d)
    return {
        "plain": statistics.median(plain),
        "first after a save": statistics.median(first),
        "second after a save": statistics.median(second),
        "with 31 idle checkpoints": statistics.median(idle),
        "first / plain": statistics.median(b / a for a, b in zip(plain, first, strict=True)),
        "idle / plain": statistics.median(d / a for a, d in zip(plain, idle, strict=True)),
    }


def _decode_one(ctx: Context, rounds: int = 15) -> dict[str, float]:
    """One token at a time, in Python and in a loop in C, in turn; both read the logits. About 20 ms each time."""
    ratios, python, native = [], [], []
    ctx.decode([5, 6])
    n = max(5, min(50, int(20e3 / clock(lambda: ctx.decode([5])))))
    for run in range(rounds + 2):
        ctx.clear()
        ctx.decode([5])
        a = clock(lambda: [ctx.decode([5], copy=False) for _ in range(n)]) / n
        ctx.clear()
        ctx.decode([5])
        b = lib.llamackpt_decode_loop(ctx._gate.ctx, 5, n) / n
        if run >= 2:
            python.append(a)
            native.append(b)
            ratios.append(a / b)
    return {"python": statistics.median(python), "c": statistics.median(native), "ratio": statistics.median(ratios)}


def _import_seconds() -> float:
    code = "import time; t = time.perf_counter(); import llamackpt; print(time.perf_counter() - t)"
    times = [float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout) for _ in range(5)]
    return statistics.median(times)


def as_json(result: Latency) -> dict[str, object]:
    """With where and when it was measured."""
    return {**where(), **asdict(result)}


def format_latency(result: Latency) -> str:
    """For a person."""
    lines = [f"{result.model}, {result.state_bytes / 2**20:.2f} MiB of state, n_ctx {result.n_ctx}; medians in us", ""]
    lines.append(f"{'':32}{'save':>12}{'restore':>12}")
    rows = [
        ("checkpoint, from Python", result.from_python["save"], result.from_python["restore"]),
        ("  in a tight loop", result.from_python["save, warm"], result.from_python["restore, warm"]),
        ("  inside the library, mean", result.inside_c["save"], result.inside_c["restore"]),
        ("    in a tight loop", result.inside_c["save, warm"], result.inside_c["restore, warm"]),
        ("copy on the device", result.device_copy["save"], result.device_copy["restore"]),
        ("host serialisation", result.serialisation["save"], result.serialisation["restore"]),
    ]
    lines += [f"{name:32}{save:12.2f}{restore:12.2f}" for name, save, restore in rows]
    ratio = [result.serialisation[key] / result.from_python[key] for key in ("save", "restore")]
    lines += [f"{'  times the checkpoint':32}{ratio[0]:12.0f}{ratio[1]:12.0f}", ""]
    lines += [f"decode, {key:28}{value:12.{3 if '/' in key else 1}f}" for key, value in result.decode.items()]
    lines += [f"one token, {key:25}{value:12.{3 if key == 'ratio' else 1}f}" for key, value in result.decode_one.items()]
    lines.append(f"import llamackpt, seconds{result.import_s:23.3f}")
    return "\n".join(lines)
