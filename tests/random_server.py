"""Random requests to llama-server, each answer checked against a context that decodes the same tokens and nothing else.

    python tests/random_server.py --ops 2000 --seed 1

does so many, LENGTH of them to each of as many servers, with flags and operations that follow from the seed. What an operation
does follows from its number and from what is known of earlier ones, so a list of operations can be shortened: a failure ends
with the shortest one that shows it. Several requests at once meet in another order each time, so it may have to be run again.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import requests
from f32_gguf import write_f32
from random_flags import ARCHS, Config
from random_ops import shortest, telling
from random_requests import Mismatch, Oracle, Run, need

import llamackpt

Op = tuple[str, int]  # a name, and the seed of what it does

OPS = {
    "complete": 14, "chat": 4, "several": 5, "answers": 2, "leave": 2, "save": 3, "restore": 4, "erase": 1, "misuse": 2,
    "garbage": 2, "erase_all": 1, "restart": 1,
}  # fmt: skip
NAMES = [name for name, n in OPS.items() for _ in range(n)]
LENGTH = 40
MARGIN = 1e-4  # logits, or nats: what the shape of a batch may turn around, in f32 and without flash attention
MARGIN_OF_OTHERS = 2e-3  # their logits are large, and those of Gemma round more


@dataclass
class Bench:
    """The models, their oracle, and what was done so far."""

    directory: Path
    archs: Path | None = None  # models of test-llama-archs
    verbose: bool = False
    done: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.oracles: dict[str, Oracle] = {}
        write_f32(self.directory / "f32.gguf")

    def oracle(self, arch: str) -> Oracle:
        """Its model is made with it."""
        if arch not in self.oracles:
            path = self.directory / "f32.gguf"
            if arch and self.archs:
                path = telling(Path(shutil.copy(self.archs / f"{arch}.gguf", self.directory)))
            self.oracles[arch] = Oracle(path, MARGIN_OF_OTHERS if arch else MARGIN)
        return self.oracles[arch]

    def run(self, config: Config, ops: Sequence[Op]) -> None:
        """Raises what goes wrong."""
        run = Run(self.directory, config, self.oracle(config.arch))
        try:
            for name, seed in ops:
                if self.verbose:
                    print(name, seed, flush=True)
                slot = run.slot
                getattr(run, name)(random.Random(seed))
                if run.slot is slot and name not in ("misuse", "save"):
                    run.slot = None
                run.check()
                run.done[name] += 1
            run.erase_all(random.Random(0))
            run.server.signal(15)
            need(run.server.wait(30) == 0, f"it ended with {run.server.returncode}")
        except (Mismatch, llamackpt.LlamaError, requests.RequestException) as error:
            raise Mismatch(f"{type(error).__name__}: {error}\n{run.config}") from error
        finally:
            self.done += run.done
            run.close()

    def close(self) -> None:
        for oracle in self.oracles.values():
            oracle.close()


def draw(seed: str, archs: Sequence[str] = ("",)) -> tuple[Config, list[Op]]:
    rng = random.Random(seed)
    return Config.draw(rng, rng.choice(archs)), [(rng.choice(NAMES), rng.randrange(2**32)) for _ in range(LENGTH)]


def error_of(bench: Bench, config: Config, ops: Sequence[Op]) -> str:
    try:
        bench.run(config, ops)
    except Mismatch as error:
        return str(error)
    return ""


def fails(bench: Bench, config: Config, ops: Sequence[Op]) -> bool:
    return bool(error_of(bench, config, ops))


def report(bench: Bench, config: Config, ops: Sequence[Op], error: str) -> str:
    """What fails, how to do it again, and the end of the server's log."""
    lines = (bench.directory / "log").read_text("utf-8", "replace").splitlines()
    replay = json.dumps([asdict(config), list(ops)])
    return "\n".join([error, *lines[-40:], f"python tests/random_server.py --archs DIR --replay '{replay}'"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ops", type=int, default=400, metavar="N", help="operations in all (default: %(default)s)")
    parser.add_argument("--seed", default="1", help="any text (default: %(default)s)")
    parser.add_argument("--shorten", action="store_true", help="look for the shortest list of operations that fails")
    parser.add_argument("--keep-on", action="store_true", help="go on after a failure")
    parser.add_argument("--replay", metavar="JSON", help="a server and its operations, as a failure prints them")
    parser.add_argument("--archs", type=Path, metavar="DIR", help="other kinds of memory: what test-llama-archs -o DIR wrote")
    parser.add_argument("--verbose", action="store_true", help="print each operation")
    args = parser.parse_args()
    failures, started = 0, time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(Path(temporary), args.archs, args.verbose)
        archs = ARCHS if args.archs else [""]
        for number in range(1 if args.replay else -(-args.ops // LENGTH)):
            config, ops = draw(f"{args.seed} {number}", archs)
            if args.replay:
                given, replayed = json.loads(args.replay)
                config, ops = Config(**given), [(name, seed) for name, seed in replayed]
            error = error_of(bench, config, ops)
            print(f"{number:4} {config.arch or 'shipped':16} {'FAIL' if error else 'ok'}", flush=True)
            if error:
                failures += 1
                if args.shorten:
                    ops = shortest(partial(fails, bench, config), ops)
                    error = error_of(bench, config, ops) or f"{error}\n(and not with the operations below)"
                print(report(bench, config, ops, error), flush=True)
                if not args.keep_on:
                    break
        bench.close()
    print(", ".join(f"{name} {n}" for name, n in sorted(bench.done.items())))
    n_ops = sum(bench.done[name] for name in OPS)
    print(f"{n_ops} operations, {failures} failures, seed {args.seed}, {time.monotonic() - started:.0f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
