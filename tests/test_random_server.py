"""Random requests to llama-server: see random_server.py, which does as many as you ask for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from random_server import LENGTH, OPS, Bench, draw, error_of, report


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, archs: Path) -> Iterator[Bench]:
    made = Bench(tmp_path_factory.mktemp("random"), archs)
    yield made
    made.close()


# the first four of the hybrid with a window: of a server with checkpoints on the host beyond the limit, an abort with
# --cache-reuse, an answer that ended too soon, and again the limit, by a prompt of the cache
SEEDS = [("12", ""), ("33", ""), *((seed, "lfm2-dense") for seed in ("1", "3", "7", "10", "11")), ("4", "gemma3-dense")]


@pytest.mark.parametrize(("seed", "arch"), SEEDS)
def test_whatever_is_asked_the_answer_is_that_of_the_model(bench: Bench, seed: str, arch: str) -> None:
    config, ops = draw(seed, [arch])
    if error := error_of(bench, config, ops):
        pytest.fail(report(bench, config, ops, error), pytrace=False)


def test_the_operations_reach_what_they_are_for(bench: Bench) -> None:
    assert sum(bench.done[name] for name in OPS) >= LENGTH * len(SEEDS)
    for what in ("reused", "from a checkpoint", "rejected", "restored"):
        assert bench.done[what] > 4, bench.done
