"""llama-server of this package beside a stock one: the same requests, in pairs, on the same machine in one run.

Measuring returns data; reporting is apart. It knows both servers as any client does: by HTTP, their metrics and their log.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .. import __file__ as package
from ..errors import ServerError
from ..model import Model
from ..server import Client, Completion, Server
from .machine import where
from .rpc_server import rpc_server

__all__ = ["Bench", "Row", "Setup", "as_json", "find_stock", "format_server", "measure_rejection", "measure_speculation"]

TEXTS = ("argparse", "textwrap", "difflib", "shlex", "statistics", "fractions", "csv", "configparser")
N_PROMPT = 128
N_ROUNDS = "llamacpp:spec_decode_num_drafts_total"
TIE = 0.1  # nats; q8_0 models differ by so much when the shape of a batch changes
NO_STOCK = "no stock server: ./build.sh stock, or --stock PROGRAM"


@dataclass(frozen=True)
class Setup:
    """What all servers have in common.

    stock: the program of a stock server, None without one.
    logs:  a directory; what a server logs is added to a file there.
    flags: more of llama-server's.
    draft: the most tokens of a draft.
    rpc:   each server has its model in a ggml-rpc-server of its own on this machine.
    """

    stock: Path | None
    logs: Path
    flags: tuple[str, ...] = ()
    draft: int = 8
    rpc: bool = False

    def drafts(self) -> tuple[str, ...]:
        """What followed the last occurrence of the last two tokens; flags of llama-server."""
        n = "--spec-ngram-simple-size-n"
        return ("--spec-type", "ngram-simple", n, "2", "--spec-ngram-simple-size-m", f"{self.draft}")

    @contextlib.contextmanager
    def start(self, model: Path, *args: str, stock: bool = False) -> Iterator[Server]:
        """One slot, no cache in host memory beside the slots."""
        common = ("--parallel", "1", "--cache-ram", "0", "--metrics", *self.flags)
        program, log = (self.stock, self.log("stock")) if stock else (None, self.log("patched"))
        with contextlib.ExitStack() as stack:
            if self.rpc:
                common += ("--rpc", stack.enter_context(rpc_server("-t", "1")))
            yield stack.enter_context(
                Server(model, *common, *args, program=program, timeout=600, env={"LLAMA_TRACE": "1"}, log=log)
            )

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    @contextlib.contextmanager
    def pair(self, model: Path, *args: str) -> Iterator[dict[str, Server]]:
        """ "patched", and "stock" if there is one."""
        with contextlib.ExitStack() as stack:
            servers = {"patched": stack.enter_context(self.start(model, *args))}
            if self.stock:
                servers["stock"] = stack.enter_context(self.start(model, *args, stock=True))
            yield servers


@dataclass
class Row:
    """One figure of both servers. stock is None where it cannot run there; `why_not` says the reason."""

    name: str
    measures: str
    unit: str
    patched: float
    stock: float | None = None
    why_not: str = ""


@dataclass
class Bench:
    rows: list[Row] = field(default_factory=list)
    details: dict[str, object] = field(default_factory=dict)
    """Every single measurement behind the rows."""

    def add(self, name: str, measures: str, unit: str, values: dict[str, float], why_not: str = NO_STOCK) -> None:
        stock = values.get("stock")
        self.rows.append(Row(name, measures, unit, values["patched"], stock, why_not if stock is None else ""))

    def add_quotient(self, name: str, measures: str, values: dict[str, list[float]]) -> None:
        """The median of patched over stock, pair by pair; nothing without a stock server."""
        if "stock" in values:
            quotients = [one / other for one, other in zip(values["patched"], values["stock"], strict=True)]
            self.add(name, measures, "", {"patched": statistics.median(quotients)}, "is the divisor")


def find_stock() -> Path | None:
    """What ./build.sh stock built last in the tree that this package is installed from."""
    found = Path(package).parent.parent.glob("build/stock/build/*/bin/llama-server")
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def texts(n_chars: int, n: int = len(TEXTS)) -> list[str]:
    """Beginnings of modules of the standard library, as this Python has them."""
    return [inspect.getsource(importlib.import_module(name))[:n_chars] for name in TEXTS[:n]]


def prompts(client: Client, n: int) -> list[list[int]]:
    return [client.tokenize(text)[:N_PROMPT] for text in texts(8 * N_PROMPT, n)]


def context_size(architecture: str, n_ctx: int) -> tuple[str, ...]:
    """Flags of llama-server: a context of this size, also where the model was trained on a shorter one."""
    return ("--ctx-size", f"{n_ctx}", "--override-kv", f"{architecture}.context_length=int:{n_ctx}")


def medians(values: dict[str, list[float]]) -> dict[str, float]:
    return {key: statistics.median(one) for key, one in values.items()}


# -- drafts ---------------------------------------------------------------------------------------------------------------


def measure_speculation(
    bench: Bench, setup: Setup, model: Path, n_texts: int, n_tokens: int, progress: Callable[[str], None]
) -> None:
    """Each text continued greedily by each server, with drafts and without, the order changing from text to text."""
    size = ("--ctx-size", str(N_PROMPT + n_tokens + 64))
    detail: list[dict[str, Any]] = []
    undrafted: dict[str, list[float]] = {}
    drafted: dict[str, list[float]] = {}
    same = {"stock": 0, "patched": 0}
    wrong = {"stock": 0, "patched": 0}
    with setup.pair(model, *size) as plain, setup.pair(model, *size, *setup.drafts()) as drafting:
        names = list(drafting)
        reference = plain["patched"].client(600)
        for index, prompt in enumerate(prompts(reference, n_texts)):
            progress(f"drafts: text {index + 1} of {n_texts}")
            order = sorted(names, reverse=bool(index % 2))
            texts_of = {name: _continue(plain[name], prompt, n_tokens) for name in order}
            row: dict[str, object] = {"text": TEXTS[index]}
            for name in order:
                undrafted.setdefault(name, []).append(texts_of[name].timings.predicted_per_second)
                found = _continue(drafting[name], prompt, n_tokens)
                drafted.setdefault(name, []).append(found.timings.predicted_per_second)
                gap = difference(reference, prompt, texts_of["patched"], found)
                same[name] += gap is None
                wrong[name] += gap is not None and gap > TIE
                row[f"{name}, undrafted"] = dict(texts_of[name].timings.raw)
                row[name] = {**found.timings.raw, "first difference, nats": gap}
            detail.append(row)
        rounds = {name: server.client().metrics()[N_ROUNDS] for name, server in drafting.items()}
    decodes = {name: setup.log(name).read_text("utf-8", "replace").count(" draft tokens") for name in names}
    bench.details["drafts"] = detail
    what = f"n-gram drafts of up to {setup.draft}"
    bench.add("undrafted", "tokens a second without drafts, median of the texts", "1/s", medians(undrafted))
    bench.add_quotient("undrafted / stock", "the same, patched over stock text by text, median", undrafted)
    bench.add("drafted", f"tokens a second with {what}, median of the texts", "1/s", medians(drafted))
    bench.add_quotient("drafted / stock", "the same, patched over stock text by text, median", drafted)
    gain = {name: [one / other for one, other in zip(drafted[name], undrafted[name], strict=True)] for name in names}
    bench.add("drafted / undrafted", "of the same server text by text, median", "", medians(gain))
    accepted = {name: _share(detail, name) for name in names}
    bench.add("accepted", "share of the drafted tokens that were right", "", accepted)
    bench.add("decodes a round", "decodes that check a draft, or repeat what is left of it, for each draft", "",
              {name: decodes[name] / max(rounds[name], 1) for name in names})  # fmt: skip
    bench.add("identical texts", f"of {n_texts}, the same tokens as without drafts", "", {name: same[name] for name in names})
    bench.add("different texts", f"of {n_texts}, other tokens that were not within {TIE} nats of the undrafted choice", "",
              {name: wrong[name] for name in names})  # fmt: skip


def _continue(server: Server, prompt: Sequence[int], n_tokens: int) -> Completion:
    return server.client(600).completion(prompt, max_tokens=n_tokens, temperature=0, ignore_eos=True)


def difference(reference: Client, prompt: Sequence[int], expected: Completion, found: Completion) -> float | None:
    """How much likelier, in nats, the reference finds its own token where the two part; None if they do not."""
    pairs = enumerate(zip(expected.tokens, found.tokens, strict=False))
    at = next((index for index, (one, other) in pairs if one != other), None)
    if at is None:
        return None
    prefix = [*prompt, *expected.tokens[:at]]
    last = reference.completion(prefix, max_tokens=1, temperature=0, n_probs=50, ignore_eos=True)
    top = {item["id"]: item["logprob"] for item in last.raw["completion_probabilities"][0]["top_logprobs"]}
    return float(abs(top.get(expected.tokens[at], -99.0) - top.get(found.tokens[at], -99.0)))


def _share(detail: list[dict[str, Any]], name: str) -> float:
    timings = [row[name] for row in detail]
    drafted = sum(int(one.get("draft_n", 0)) for one in timings)
    return sum(int(one.get("draft_n_accepted", 0)) for one in timings) / max(drafted, 1)


# -- rejection ------------------------------------------------------------------------------------------------------------


def measure_rejection(bench: Bench, setup: Setup, model: Path, n_rounds: int, progress: Callable[[str], None]) -> None:
    """Drafts of which every token is rejected, by llama-server's own switch; memory at a tenth of them and at the end."""
    grown: dict[str, float] = {}
    held: dict[str, float] = {}
    drafts: dict[str, float] = {}
    none_right = ("--spec-synth-rates", ",".join(["0"] * setup.draft))
    with setup.pair(model, "--ctx-size", "1024", *setup.drafts(), *none_right) as servers:
        for name, server in servers.items():
            progress(f"rejection: {name}")
            client = server.client(600)
            _reject(client, n_rounds // 10)
            rss, bytes_held = server.rss(), _checkpoint_bytes(client)
            drafts[name] = _reject(client, n_rounds)
            grown[name] = (server.rss() - rss) / 2**20
            if bytes_held is not None:
                held[name] = ((_checkpoint_bytes(client) or 0.0) - bytes_held) / 2**20
    what = f"after {n_rounds // 10} and after {n_rounds} drafts that were all rejected"
    bench.details["rejection"] = {"drafts": drafts}
    bench.add("memory, rejection", f"growth of resident memory between {what}", "MiB", grown)
    if held:
        bench.add("checkpoints, rejection", f"growth of the bytes that checkpoints hold between {what}", "MiB", held,
                  "has no such metric")  # fmt: skip


def _reject(client: Client, n_rounds: int) -> float:
    """Completions until there were so many drafts; returns how many."""
    start = count = client.metrics()[N_ROUNDS]
    while count - start < n_rounds:
        done = client.completion("x = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, ", max_tokens=900, temperature=0, seed=1, ignore_eos=True)
        before, count = count, client.metrics()[N_ROUNDS]
        if count == before:
            raise ServerError(f"a completion of {len(done.tokens)} tokens had no draft: there is nothing to measure")
    return count - start


def _checkpoint_bytes(client: Client) -> float | None:
    values = [value for name, value in client.metrics().items() if name.startswith("llamacpp:checkpoint_bytes")]
    return sum(values) if values else None


# -- reporting ------------------------------------------------------------------------------------------------------------


def describe(model: Path) -> str:
    with Model(model, vocab_only=True) as one:
        return f"{model.name}: {one.metadata.get('general.name', '')}, {one.metadata.get('general.architecture', '')}"


def as_json(bench: Bench) -> dict[str, object]:
    """With where and when it was measured."""
    return {**where(), **asdict(bench)}


def format_server(bench: Bench) -> str:
    """For a person."""
    lines = [f"{'':26}{'patched':>12}{'stock':>12}"]
    for row in bench.rows:
        stock = "-" if row.stock is None else f"{row.stock:.3g}"
        lines.append(f"{row.name:26}{row.patched:12.3g}{stock:>12} {row.unit:5} {row.measures}")
        if row.why_not:
            lines.append(f"{'':56}(stock: {row.why_not})")
    return "\n".join(lines)
