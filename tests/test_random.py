"""Random operations on every kind of memory, against a model of it and against recomputation: see random_ops.py.

LLAMACKPT_OPS=1000000 runs more of them; `python tests/random_ops.py --ops 1000000` does the same without pytest and sums up.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from random_kinds import EXCLUDED, KINDS
from random_model import nmse
from random_ops import CONFIGS, LENGTH, NAMES, OPS, Bench, Op, error_of, report, shares, shortest

N_OPS = int(os.environ.get("LLAMACKPT_OPS", "24000"))

op = st.tuples(st.sampled_from(NAMES), st.integers(0, 7), st.integers(0, 63), st.integers(0, 255))


@pytest.fixture(scope="module", params=KINDS)
def bench(request: pytest.FixtureRequest, archs: Path) -> Iterator[Bench]:
    made = Bench(KINDS[request.param], archs)
    yield made
    made.close()


def test_whatever_is_done_a_sequence_goes_on_as_its_history_says(bench: Bench) -> None:
    n_ops = shares(N_OPS, list(KINDS.values()))[bench.kind.name]

    @settings(
        max_examples=-(-n_ops // LENGTH), derandomize=True, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.integers(0, CONFIGS - 1), st.lists(op, min_size=LENGTH, max_size=LENGTH))
    def many(config: int, ops: list[Op]) -> None:
        if error_of(bench, config, ops):
            pytest.fail(report(bench, config, ops), pytrace=False)

    many()
    assert sum(bench.done[name] for name in OPS) >= n_ops
    for what in ("restored full", "restored rollback"):  # the operations do reach what they are for
        assert sum(n for name, n in bench.done.items() if name.startswith(what)) > n_ops / 50


def test_the_oracle_sees_a_token_that_is_not_there(bench: Bench) -> None:
    """A history that differs in one token, the first of 24 even, gives logits far beyond the bound."""
    events = tuple(("token", (7 * i) % bench.model.n_vocab, i) for i in range(24))
    logits = bench.oracle.logits(events)
    beyond = 4 if bench.kind.flash_attn else 100  # it rounds to f16
    for i in (0, 8, 16):
        other = (*events[:i], ("token", 99, i), *events[i + 1 :])
        assert nmse(bench.oracle.logits(other), logits) > beyond * bench.kind.bound
    bench.oracle.logits(events[:-1])
    assert nmse(bench.oracle.logits(events), logits) < bench.kind.bound


def test_a_failure_is_reported_with_what_is_needed_for_it() -> None:
    ops: list[Op] = [("save", i, 0, 0) for i in range(50)]
    needed = {ops[7], ops[31]}
    assert set(shortest(lambda some: needed <= set(some), ops)) == needed


def test_what_is_left_out_has_a_reason() -> None:
    assert all(len(reason) > 40 for reason in EXCLUDED.values())
