"""Proving on a model that its checkpoints are exact. Measures and returns data; `format_check` and
`format_summary` report.

Every check decodes the same batches twice: with checkpoints, and in a reference context without any.
Where the attention cells lie in the same order in both, the logits must agree bit by bit. They may lie
in another order only behind a copy of a sliding-window memory, in device or host memory, that was written
out (a part of such a copy is on the host in any case): its cells are packed anew on the way back. Floats
are then summed in another order, and an NMSE (squared error over squared reference) below 1e-6 passes.
The line says which of the two it was.

Knows nothing of speed: the times are those of whole checks, contexts included.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .batch import Batch
from .checkpoint import Checkpoint
from .context import Context
from .errors import LlamaError, StaleCheckpointError, UnsupportedError
from .model import Model

NMSE_MAX = 1e-6
RESERVED = 2
Logits = npt.NDArray[np.float32]
Status = Literal["PASS", "FAIL", "SKIP"]


@dataclass(frozen=True, slots=True)
class Check:
    """The outcome of one check."""

    name: str
    status: Status
    detail: str
    ms: float


class CheckFailed(Exception):
    """A check found a difference; its text becomes the detail of the line."""


class Bench:
    """What the checks share: the model, contexts of one shape, and reproducible tokens."""

    def __init__(self, model: Model, n_threads: int | None = None) -> None:
        self.model = model
        self._n_threads = n_threads
        self._tokens = np.random.default_rng(7).integers(0, model.n_vocab, size=256, dtype=np.int32)
        self.window = sliding_window(model)
        self.tolerant = self.window > 0

    def context(self, checkpoints: int = RESERVED, n_seq_max: int = 3) -> Context:
        options: dict[str, Any] = {} if self._n_threads is None else {"n_threads": self._n_threads}
        return self.model.context(
            n_ctx=512, n_batch=64, n_ubatch=64, n_seq_max=n_seq_max, checkpoints=checkpoints, **options
        )

    def tokens(self, start: int, n: int) -> npt.NDArray[np.int32]:
        return self._tokens[start : start + n]


def sliding_window(model: Model) -> int:
    """The attention window in tokens, 0 without one, from the model's metadata."""
    arch = model.metadata.get("general.architecture", "")
    try:
        return int(model.metadata.get(f"{arch}.attention.sliding_window", "0"))
    except ValueError:
        return 0


def compare(got: Sequence[Logits], want: Sequence[Logits], tolerant: bool) -> str:
    """'exact' or 'nmse=...'; raises CheckFailed where that is not good enough."""
    a, b = np.concatenate(got), np.concatenate(want)
    if not np.isfinite(b).all():
        raise CheckFailed("the model's own logits are not finite")
    if a.tobytes() == b.tobytes():
        return "exact"
    square = float(np.square(b, dtype=np.float64).sum())
    nmse = float(np.square(a.astype(np.float64) - b).sum()) / square if square > 0 else float("inf")
    row = int(np.flatnonzero((a != b).any(axis=1))[0]) if (a != b).any() else 0
    text = f"nmse={nmse:.1e} from output {row} of {len(b)}"
    if tolerant and nmse < NMSE_MAX:
        return text
    raise CheckFailed(f"not the same logits: {text}")


def go_on(ctx: Context, bench: Bench, start: int, seq_id: int = 0) -> list[Logits]:
    """A continuation in single tokens and in a batch: 3 + 4 tokens, all outputs."""
    out = [ctx.decode(bench.tokens(start + i, 1), seq_id=seq_id) for i in range(3)]
    out.append(ctx.decode(bench.tokens(start + 3, 4), seq_id=seq_id, logits="all"))
    return out


def step(ctx: Context, bench: Bench, start: int, seq_ids: Sequence[int]) -> Logits:
    """One batch with the next token of several sequences; logits [len(seq_ids), n_vocab]."""
    batch = Batch()
    for i, seq_id in enumerate(seq_ids):
        batch.add(int(bench.tokens(start + i, 1)[0]), ctx.pos_max(seq_id) + 1, seq_id, logits=True)
    return ctx.decode_batch(batch)


def check_repeatable(bench: Bench) -> str:
    """Two contexts agree without any checkpoint: otherwise nothing below could be judged."""
    runs = []
    for _ in range(2):
        with bench.context(checkpoints=0) as ctx:
            runs.append([ctx.decode(bench.tokens(0, 24), logits="all"), *go_on(ctx, bench, 40)])
    return compare(runs[0], runs[1], False)


def check_round_trip(bench: Bench) -> str:
    """Save, decode a draft, restore, decode on."""
    with bench.context() as ctx:
        ctx.decode(bench.tokens(0, 24))
        with ctx.checkpoint() as ck:
            ctx.decode(bench.tokens(100, 5), logits="all")
            ck.restore()
            got, tier, written = go_on(ctx, bench, 40), ck.tier, ck.nbytes_host > 0
            ck.restore()  # a restore does not consume it
            again = go_on(ctx, bench, 40)
    with bench.context(checkpoints=0) as ref:
        ref.decode(bench.tokens(0, 24))
        want = go_on(ref, bench, 40)
    tolerant = bench.tolerant and written
    first, second = compare(got, want, tolerant), compare(again, want, tolerant)
    return f"{first}, tier {tier}" if first == second else f"{first}, then {second}, tier {tier}"


def check_fork(bench: Bench) -> str:
    """A full checkpoint into another sequence while the first goes on; then back after its removal."""
    with bench.context() as ctx:
        ctx.decode(bench.tokens(0, 24))
        with ctx.checkpoint(full=True) as ck:
            tier, written = ck.tier, ck.nbytes_host > 0
            ctx.decode(bench.tokens(100, 5))
            ck.restore(seq_id=1)
            fork = go_on(ctx, bench, 40, seq_id=1)
            first = go_on(ctx, bench, 120)
            ctx.seq_rm(1)
            ctx.seq_rm(0)
            ck.restore()
            back = go_on(ctx, bench, 60)
    with bench.context(checkpoints=0) as ref:
        ref.decode(bench.tokens(0, 24))
        if not written:
            ref.seq_cp(0, 1)
        ref.decode(bench.tokens(100, 5))
        if written:  # it comes back into cells of its own
            ref.decode(bench.tokens(0, 24), seq_id=1)
        want_fork = go_on(ref, bench, 40, seq_id=1)
        want_first = go_on(ref, bench, 120)
    with bench.context(checkpoints=0) as ref:
        ref.decode(bench.tokens(0, 24))
        want_back = go_on(ref, bench, 60)
    tolerant = bench.tolerant and written
    parts = {
        "fork": compare(fork, want_fork, tolerant),
        "origin": compare(first, want_first, tolerant),
        "after its sequence": compare(back, want_back, tolerant),
    }
    return ", ".join(f"{name} {text}" for name, text in parts.items()) + f", tier {tier}"


def check_many(bench: Bench) -> str:
    """More checkpoints than reserved, restored from the newest to the oldest."""
    n, taken = RESERVED + 4, list[Checkpoint]()
    results: list[list[Logits]] = []
    with bench.context() as ctx, ExitStack() as stack:
        for i in range(n):
            ctx.decode(bench.tokens(8 * i, 3 + i))
            taken.append(stack.enter_context(ctx.checkpoint()))
        tiers, written = [ck.tier for ck in taken], any(ck.nbytes_host > 0 for ck in taken)
        taken.pop(2).delete()
        for ck in reversed(taken):
            ck.restore()
            results.append(go_on(ctx, bench, 150))
    kept = [i for i in range(n) if i != 2]
    outcomes = set[str]()
    for got, last in zip(results, reversed(kept), strict=True):
        with bench.context(checkpoints=0) as ref:
            for i in range(last + 1):
                ref.decode(bench.tokens(8 * i, 3 + i))
            outcomes.add(compare(got, go_on(ref, bench, 150), bench.tolerant and written))
    counts = " + ".join(f"{tiers.count(tier)} {tier}" for tier in dict.fromkeys(tiers))
    return f"{', '.join(sorted(outcomes))}; {n} checkpoints: {counts}"


def check_isolation(bench: Bench) -> str:
    """What happens to one sequence leaves no trace in the logits of the others."""

    def run(checkpoints: bool) -> tuple[list[Logits], str, bool]:
        tier, written = "", False
        with bench.context(RESERVED if checkpoints else 0) as ctx:
            for seq_id in range(3):
                ctx.decode(bench.tokens(30 * seq_id, 20), seq_id=seq_id)
            ck = ctx.checkpoint(seq_id=0) if checkpoints else None
            out = [step(ctx, bench, 100, (1, 2))]
            ctx.decode(bench.tokens(110, 5), seq_id=0)
            out.append(step(ctx, bench, 120, (1, 2)))
            if ck is None:
                ctx.decode(bench.tokens(130, 5), seq_id=0)
            else:
                ck.restore()
                ctx.decode(bench.tokens(130, 5), seq_id=0)
                ctx.decode(bench.tokens(135, 5), seq_id=0)
            out.append(step(ctx, bench, 140, (1, 2)))
            out.append(step(ctx, bench, 150, (0, 1, 2))[1:])
            if ck is not None:
                tier, written = ck.tier, ck.nbytes_host > 0
                ck.delete()
            out.append(step(ctx, bench, 160, (0, 1, 2))[1:])
        return out, tier, written

    got, tier, written = run(True)
    want, *_ = run(False)
    return f"{compare(got, want, bench.tolerant and written)}, tier {tier}"


def check_rounds(bench: Bench) -> str:
    """Speculative decoding: each checkpoint is deleted before the accepted tokens are decoded.

    A short sliding window goes around the end of its cells meanwhile.
    """
    n = 100 if 0 < bench.window <= 64 else 25

    def run(drafts: bool) -> tuple[list[Logits], set[str], bool]:
        out, tiers, written = list[Logits](), set[str](), False
        with bench.context(n_seq_max=1) as ctx:
            ctx.decode(bench.tokens(0, 24))
            for i in range(n):
                if drafts:
                    with ctx.checkpoint(full=i % 2 == 1) as ck:
                        tiers.add(ck.tier)
                        written = written or ck.nbytes_host > 0
                        ctx.decode(bench.tokens(100 + i, 9 if i % 4 else 40))
                        ck.restore()
                out.append(ctx.decode(bench.tokens(i, 1 + i % 5), logits="all"))
        return out, tiers, written

    got, tiers, written = run(True)
    want, *_ = run(False)
    outcome = compare(got, want, bench.tolerant and written)
    return f"{outcome}, {n} rounds, tier {' and '.join(sorted(tiers))}"


def check_stale(bench: Bench) -> str:
    """Its sequence gone, a rollback checkpoint is refused, or needs nothing of it and is exact."""
    with bench.context() as ctx:
        ctx.decode(bench.tokens(0, 24))
        ck = ctx.checkpoint()
        ctx.seq_rm(0)
        valid = ck.valid
        try:
            ck.restore()
        except StaleCheckpointError:
            if valid:
                raise CheckFailed("refused, though it called itself valid") from None
            if ctx.pos_max(0) != -1:
                raise CheckFailed("refused, but the sequence has changed") from None
            prompt, outcome = ctx.decode(bench.tokens(0, 24)), "refused, the context goes on"
        else:
            if not valid:
                raise CheckFailed("restored, though it called itself stale")
            prompt, outcome = None, "not stale: it holds all there is"  # type: ignore[assignment]
        got = go_on(ctx, bench, 40)
    with bench.context(checkpoints=0) as ref:
        want_prompt = ref.decode(bench.tokens(0, 24))
        want = go_on(ref, bench, 40)
    if prompt is not None:
        got, want = [prompt, *got], [want_prompt, *want]
    return f"{outcome}, {compare(got, want, bench.tolerant)}"


def check_empty(bench: Bench) -> str:
    """The checkpoint of an empty sequence brings it back to empty."""
    with bench.context() as ctx, ctx.checkpoint() as ck:
        if ck.pos != -1:
            raise CheckFailed(f"position {ck.pos} of an empty sequence")
        ctx.decode(bench.tokens(100, 9))
        ck.restore()
        if ctx.pos_max(0) != -1:
            raise CheckFailed(f"the sequence still ends at {ctx.pos_max(0)}")
        got, tier = [ctx.decode(bench.tokens(0, 24)), *go_on(ctx, bench, 40)], ck.tier
    with bench.context(checkpoints=0) as ref:
        want = [ref.decode(bench.tokens(0, 24)), *go_on(ref, bench, 40)]
    return f"{compare(got, want, False)}, tier {tier}"


CHECKS: dict[str, Callable[[Bench], str]] = {
    "repeatable": check_repeatable,
    "round trip": check_round_trip,
    "fork": check_fork,
    "many": check_many,
    "isolation": check_isolation,
    "rounds": check_rounds,
    "stale": check_stale,
    "empty": check_empty,
}


def no_memory(bench: Bench) -> str:
    """Why the model has no state to keep, "" where it has one."""
    with bench.context(checkpoints=0) as ctx:
        if not ctx.has_memory:
            return "its contexts have no memory (a diffusion or encoder model)"
        try:
            ctx.decode(bench.tokens(0, 4))
        except LlamaError as error:
            return f"it does not decode ({error})"
        return ""


def verify_checks(model: Model, n_threads: int | None = None) -> Iterator[Check]:
    """Run every check, each as it is asked for. One check's failure does not end the others."""
    bench = Bench(model, n_threads)
    reason = no_memory(bench)
    for name, check in CHECKS.items():
        if reason:
            yield Check(name, "SKIP", reason, 0.0)
            continue
        start = time.perf_counter()
        status: Status = "PASS"
        try:
            detail = check(bench)
        except CheckFailed as failure:
            status, detail = "FAIL", str(failure)
        except UnsupportedError as error:
            status, detail = "FAIL", f"refused: {error}"
        except LlamaError as error:
            status, detail = "FAIL", f"{type(error).__name__}: {error}"
        yield Check(name, status, detail, (time.perf_counter() - start) * 1e3)


def format_check(check: Check) -> str:
    return f"{check.status}  {check.name:<11} {check.ms:8.0f} ms  {check.detail}"


def format_summary(checks: Sequence[Check]) -> str:
    count = {status: sum(c.status == status for c in checks) for status in ("PASS", "FAIL", "SKIP")}
    return ", ".join(f"{n} {status.lower()}" for status, n in count.items() if n)


def as_json(path: str, checks: Sequence[Check]) -> dict[str, Any]:
    failed = any(check.status == "FAIL" for check in checks)
    return {"model": path, "ok": not failed, "checks": [asdict(check) for check in checks]}
