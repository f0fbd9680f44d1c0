"""Random operations on every kind of memory, each checked against a model of it and against recomputation.

    python tests/random_ops.py --ops 1000000 --seed 1

runs that many and says how many each kind got. A failure ends it, with the shortest list of operations that shows it.
It does not know what the operations do: see random_context.py.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import gguf
from random_context import Mismatch, Run
from random_kinds import EXCLUDED, KINDS, Kind
from random_model import Oracle
from rwkv_gguf import write_rwkv7

import llamackpt
from llamackpt.bench.rpc_server import rpc_server

Op = tuple[str, int, int, int]

# name of the operation, and how often it comes
OPS = {
    "decode": 6, "decode_one": 4, "decode_some": 8, "decode_shared": 2, "fill": 1, "draft": 4, "save": 8, "restore": 8,
    "probe": 3, "fork": 2, "delete": 2, "remove_tail": 4, "remove_middle": 2, "remove_all": 2, "copy": 3, "transfer": 1,
    "read": 2, "shift": 2, "reserve": 2, "keep": 1, "misuse": 1, "clear": 1,
}  # fmt: skip
NAMES = [name for name, n in OPS.items() for _ in range(n)]
LENGTH = 60  # operations on one context
CONFIGS = 16


@dataclass
class Bench:
    """A model, its oracle, and what was done so far."""

    kind: Kind
    directory: Path
    include: frozenset[str] = frozenset()
    done: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        path = self.directory / f"{self.kind.model}.gguf"
        if self.kind.model == "rwkv7" and not path.exists():
            write_rwkv7(path)
        self.servers = contextlib.ExitStack()
        if self.kind.devices:
            rpc = [self.servers.enter_context(rpc_server("-t", "1")) for _ in range(self.kind.devices)]
            self.model = llamackpt.Model(telling(path), rpc=rpc, split_mode="tensor")
        else:
            self.model = llamackpt.Model(telling(path))
        # llama.cpp cannot split the state of a context for one sequence
        self.oracle = Oracle(self.model, n_seq_max=2 if self.kind.devices else 1, flash_attn=self.kind.flash_attn)

    def run(self, config: int, ops: list[Op]) -> None:
        """Raises what goes wrong."""
        run = Run(self.kind, self.model, self.oracle, config, self.include)
        try:
            for name, a, b, c in ops:
                getattr(run, name)(a, b, c)
                run.check()
                run.done[name] += 1
            run.sweep()
        finally:
            self.done += run.done
            run.close()

    def close(self) -> None:
        self.model.close()
        self.servers.close()


def telling(path: Path) -> Path:
    """The model, but with logits that tell what is in the memory: random weights hide it below the rounding.

    Norms scale by one, attention and state count thirty times as much, and an indexer selects eight tokens, not all.
    """
    told, half_made = path.with_suffix(".told"), path.with_suffix(f".{os.getpid()}")
    shutil.copy(path, half_made)
    reader = gguf.GGUFReader(half_made, "r+")
    for tensor in reader.tensors:
        if re.search(r"norm(_\w+)?\.weight$", tensor.name) and tensor.data.ndim == 1 and abs(tensor.data.mean()) < 0.5:
            tensor.data[...] += 1
        if re.search(r"(attn_output|attn_output_b|ssm_out|shortconv\.out_proj|time_mix_output)\.weight$", tensor.name):
            tensor.data[...] *= 30
    for name, entry in reader.fields.items():
        if name.endswith(".attention.indexer.top_k") and entry.contents() > 0:
            entry.parts[entry.data[0]][...] = 8
    del reader
    half_made.replace(told)  # another process may have mapped the one that was there
    return told


def error_of(bench: Bench, config: int, ops: list[Op]) -> str:
    try:
        bench.run(config, ops)
    except (Mismatch, llamackpt.LlamaError) as err:
        return f"{type(err).__name__}: {err}"
    return ""


def shortest(fails: Callable[[list[Op]], bool], ops: list[Op]) -> list[Op]:
    """The operations without those that are not needed to fail."""
    size = len(ops) // 2
    while size > 0:
        i = 0
        while i < len(ops):
            without = ops[:i] + ops[i + size :]
            if fails(without):
                ops = without
            else:
                i += size
        size //= 2
    return ops


def report(bench: Bench, config: int, ops: list[Op]) -> str:
    """What fails, shortened."""
    ops = shortest(lambda some: bool(error_of(bench, config, some)), ops)
    return (
        f"{bench.kind.name} ({bench.kind.model}), config {config}, {len(ops)} operations: {error_of(bench, config, ops)}\n"
        f"python tests/random_ops.py --replay '{json.dumps([bench.kind.name, config, ops])}'"
    )


def draw(rng: random.Random) -> tuple[int, list[Op]]:
    """A configuration and a list of operations."""
    ops = [(rng.choice(NAMES), rng.randrange(8), rng.randrange(64), rng.randrange(256)) for _ in range(LENGTH)]
    return rng.randrange(CONFIGS), ops


def shares(n_ops: int, kinds: list[Kind]) -> dict[str, int]:
    """How many of n_ops each kind gets."""
    total = sum(kind.share for kind in kinds)
    return {kind.name: -(-n_ops * kind.share // total) for kind in kinds}


def run_many(name: str, directory: Path, n_ops: int, seed: str, include: frozenset[str]) -> tuple[str, Counter[str], str]:
    """That many operations or a few more, on one kind. Returns what was done, and what went wrong."""
    bench, rng, failed = Bench(KINDS[name], directory, include), random.Random(f"{seed} {name}"), ""
    while sum(bench.done[op] for op in OPS) < n_ops and not failed:
        config, ops = draw(rng)
        if error_of(bench, config, ops):
            failed = report(bench, config, ops)
    done = bench.done
    bench.close()
    return name, done, failed


def generate(directory: Path) -> Path:
    """The models, by llama.cpp's own generator."""
    found = sorted(Path(__file__).resolve().parent.parent.glob("build/*/bin/test-llama-archs"))
    if not found:
        sys.exit("test-llama-archs is not built; run ./build.sh")
    subprocess.run([str(found[0]), "-s", "1234", "-o", str(directory)], check=True, capture_output=True)
    return directory


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ops", type=int, default=20000, metavar="N", help="operations in all (default: %(default)s)")
    parser.add_argument("--seed", default="1", help="any text (default: %(default)s)")
    parser.add_argument("--kind", action="append", choices=KINDS, help="only this kind of memory; can be repeated")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: %(default)s)")
    parser.add_argument("--models", type=Path, metavar="DIR", help="of test-llama-archs -o DIR (default: made anew)")
    parser.add_argument("--include", action="append", choices=EXCLUDED, default=[], help="what is left out otherwise")
    parser.add_argument("--replay", metavar="JSON", help="a list of operations, as a failure prints it")
    args = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        directory = args.models or generate(Path(temporary))
        if args.replay:
            name, config, ops = json.loads(args.replay)
            bench = Bench(KINDS[name], directory, frozenset(args.include))
            error = error_of(bench, config, ops)
            bench.close()
            print(error or "no failure")
            return 1 if error else 0
        kinds = [KINDS[name] for name in args.kind or KINDS]
        total, failures = Counter[str](), []
        with ProcessPoolExecutor(args.jobs) as pool:
            parts = [
                pool.submit(run_many, name, directory, n, args.seed, frozenset(args.include))
                for name, n in shares(args.ops, kinds).items()
            ]
            for part in parts:
                name, done, failed = part.result()
                n = sum(done[op] for op in OPS)
                total += done
                print(f"{name:16} {KINDS[name].model:18} {n:8} operations", "FAIL" if failed else "ok", flush=True)
                failures += [failed] if failed else []
    print(*failures, sep="\n\n")
    print("operations: " + ", ".join(f"{name} {total[name]}" for name in OPS))
    print("outcomes: " + ", ".join(f"{name} {n}" for name, n in sorted(total.items()) if name not in OPS))
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    print(
        f"{sum(total[op] for op in OPS)} operations, {len(failures)} failures, seed {args.seed}, commit {head.stdout.strip()},"
        f" {datetime.date.today()}, {platform.machine()} {platform.system()}, {time.monotonic() - started:.0f} s"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
