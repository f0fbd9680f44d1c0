"""What this is for, in under 20 s: two continuations, a wrong draft taken back, and the cost of it.

`run_demo` decodes and measures and returns data, `format_demo` reports.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .context import Context
from .generate import generate
from .model import Model
from .sampling import Sampler

MIB = 1024.0 * 1024.0
PROMPT = 'def read_lines(path, encoding="utf-8"):\n    """Return the lines of a text file."""\n'
RUNS = 41


@dataclass(frozen=True, slots=True)
class Row:
    """Medians in microseconds over the same runs."""

    name: str
    save_us: float
    restore_us: float
    mib: float


@dataclass(frozen=True, slots=True)
class Demo:
    model: str
    prompt: str
    n_prompt: int
    tier: str
    continuations: list[tuple[int, str]]
    """(seed, text)"""
    n_draft: int
    repeated: str
    identical: bool
    """The same tokens and bit for bit the same logits as before the draft."""
    rows: list[Row]
    runs: int


def run_demo(model: Model, prompt: str = PROMPT, n_tokens: int = 40, n_threads: int | None = None) -> Demo:
    """Runs on any model that keeps a state; raises UnsupportedError on one that does not."""
    tokens = [int(t) for t in model.tokenize(prompt)]
    with model.context(n_ctx=1024, n_seq_max=1, checkpoints=2, n_threads=n_threads) as ctx:
        if len(tokens) > 1:
            ctx.decode(tokens[:-1])
        with ctx.checkpoint() as ck:
            tier = ck.tier
            texts, logits = [], []
            for seed in (1, 2):
                ck.restore()
                with Sampler(0.8, seed=seed) as sampler:
                    result = generate(ctx, tokens[-1:], max_tokens=n_tokens, sampler=sampler)
                texts.append(result)
                logits.append(_replay(ctx, ck.restore, tokens[-1:] + result.tokens[:-1]))
            draft = list(reversed(tokens))[:16]
            ck.restore()
            ctx.decode(draft)
            ck.restore()
            with Sampler(0.8, seed=1) as sampler:
                again = generate(ctx, tokens[-1:], max_tokens=n_tokens, sampler=sampler)
            repeat = _replay(ctx, ck.restore, tokens[-1:] + again.tokens[:-1])
            identical = again.tokens == texts[0].tokens and np.array_equal(repeat, logits[0])
        rows = measure(ctx)
    return Demo(
        model=model.desc,
        prompt=prompt,
        n_prompt=len(tokens),
        tier=tier,
        continuations=[(1, texts[0].text), (2, texts[1].text)],
        n_draft=len(draft),
        repeated=again.text,
        identical=identical,
        rows=rows,
        runs=RUNS,
    )


def _replay(ctx: Context, restore: Callable[[], object], tokens: list[int]) -> npt.NDArray[np.float32]:
    """Logits of a continuation, decoded again one by one, as a generation does."""
    restore()
    return np.concatenate([ctx.decode([token]) for token in tokens])


def measure(ctx: Context, runs: int = RUNS) -> list[Row]:
    """Save and restore beside host serialisation, in turn.

    A token is decoded between the two, so that each has work to do.
    """
    token = [0]
    times: dict[str, tuple[list[float], list[float]]] = {"checkpoint": ([], []), "serialised": ([], [])}
    size = {"checkpoint": 0, "serialised": 0}
    for run in range(runs + 2):  # two to warm up
        start = time.perf_counter()
        ck = ctx.checkpoint()
        saved = time.perf_counter()
        ctx.decode(token)
        back = time.perf_counter()
        ck.restore()
        done = time.perf_counter()
        size["checkpoint"] = ck.nbytes
        ck.delete()
        if run >= 2:
            times["checkpoint"][0].append(saved - start)
            times["checkpoint"][1].append(done - back)

        start = time.perf_counter()
        data = ctx.state_get(0)
        saved = time.perf_counter()
        ctx.decode(token)
        back = time.perf_counter()
        ctx.state_set(0, data)
        done = time.perf_counter()
        size["serialised"] = len(data)
        if run >= 2:
            times["serialised"][0].append(saved - start)
            times["serialised"][1].append(done - back)
    return [
        Row(name, statistics.median(save) * 1e6, statistics.median(restore) * 1e6, size[name] / MIB)
        for name, (save, restore) in times.items()
    ]


def format_demo(demo: Demo) -> str:
    quick, slow = demo.rows
    lines = [
        f"model: {demo.model}",
        "",
        f"A prompt of {demo.n_prompt} tokens, a checkpoint behind it (tier {demo.tier}),",
        "and two continuations from it:",
        "",
        _indent(demo.prompt, "  | "),
    ]
    for seed, text in demo.continuations:
        lines += [f"  seed {seed}:", _indent(text, "  | "), ""]
    verdict = "identical" if demo.identical else "NOT IDENTICAL"
    lines += [
        f"A wrong draft of {demo.n_draft} tokens, taken back, then seed 1 again: {verdict}"
        + (
            " (the same tokens, and every logit bit for bit)"
            if demo.identical
            else ":\n" + demo.repeated
        ),
        "",
        f"Medians of {demo.runs} runs, one token decoded between save and restore:",
        "",
        "                      save         restore      state",
    ]
    names = {quick.name: "checkpoint", slow.name: "host serialisation"}
    for row in demo.rows:
        lines.append(
            f"  {names[row.name]:<18}{row.save_us:9.1f} us {row.restore_us:11.1f} us {row.mib:7.2f} MiB"
        )
    lines += [
        f"  ratio             {_ratio(slow.save_us, quick.save_us)}"
        f"   {_ratio(slow.restore_us, quick.restore_us)}",
        "",
        "Next: `llamackpt verify MODEL` proves it on yours; README.md has it in ten lines.",
    ]
    return "\n".join(lines)


def _ratio(slow: float, quick: float) -> str:
    return f"{slow / quick:10,.0f} x" if quick > 0 else f"{'-':>12}"


def _indent(text: str, prefix: str) -> str:
    return "\n".join(prefix + line for line in text.rstrip("\n").split("\n"))
