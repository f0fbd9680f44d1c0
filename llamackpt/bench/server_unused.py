"""What the patches cost a server that takes no checkpoint: the same prompts and answers, and the memory after them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .server import Bench, Setup, context_size, medians, texts

__all__ = ["measure_unused"]

N_CTX = 4096
N_PROMPT = 2048
N_ANSWER = 512
WARMUP = 2


def measure_unused(
    bench: Bench, setup: Setup, model: Path, architecture: str, runs: int, progress: Callable[[str], None]
) -> None:
    """`runs` prompts, each decoded anew and answered greedily, by each server in turn; no drafts, no context checkpoints."""
    speed: dict[str, dict[str, list[float]]] = {"prefill": {}, "decode": {}}
    rss: dict[str, float] = {}
    with setup.pair(model, *context_size(architecture, N_CTX), "--ctx-checkpoints", "0") as servers:
        clients = {name: server.client(600) for name, server in servers.items()}
        for client in clients.values():  # both: it leaves megabytes behind
            tokens = client.tokenize("\n".join(texts(10**5)))
        for run in range(runs + WARMUP):
            progress(f"unused: {run + 1} of {runs + WARMUP}")
            prompt = (tokens[run:] + tokens[:run])[:N_PROMPT]
            for name in sorted(clients, reverse=bool(run % 2)):
                done = clients[name].completion(
                    prompt, max_tokens=N_ANSWER, temperature=0, ignore_eos=True, cache_prompt=False
                )
                if run >= WARMUP:
                    timings = done.timings.raw
                    speed["prefill"].setdefault(name, []).append(float(timings["prompt_per_second"]))
                    speed["decode"].setdefault(name, []).append(float(timings["predicted_per_second"]))
        for name, server in servers.items():
            rss[name] = server.rss() / 2**20
    bench.details["unused"] = speed
    what = {"prefill": f"prompts of {len(prompt)}", "decode": f"answers of {N_ANSWER}"}
    for key, values in speed.items():
        bench.add(f"{key}, unused", f"tokens a second of {what[key]} tokens, without checkpoints, median of {runs}", "1/s",
                  medians(values))  # fmt: skip
        bench.add_quotient(f"{key}, unused / stock", "the same, patched over stock prompt by prompt, median", values)
    bench.add("memory, unused", "resident memory after them", "MiB", rss)
