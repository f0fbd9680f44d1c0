"""`verify` passes where checkpoints are exact, and fails where they are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llamackpt
from llamackpt import cli, verify
from llamackpt.errors import StaleCheckpointError


@pytest.fixture(scope="module")
def bench(model: llamackpt.Model) -> verify.Bench:
    return verify.Bench(model)


def statuses(model: llamackpt.Model) -> dict[str, str]:
    return {check.name: check.status for check in verify.verify_checks(model)}


@pytest.mark.parametrize("name", list(verify.CHECKS))
def test_every_check_is_exact_on_the_shipped_model(bench: verify.Bench, name: str) -> None:
    assert "exact" in verify.CHECKS[name](bench)


def test_a_restore_that_does_nothing_fails(
    model: llamackpt.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llamackpt.Checkpoint, "restore", lambda self, seq_id=None: None)
    found = statuses(model)
    assert found["repeatable"] == "PASS"
    for name in ("round trip", "fork", "many", "rounds", "stale", "empty"):
        assert found[name] == "FAIL", name


def test_a_restore_that_touches_its_neighbour_fails_isolation(
    bench: verify.Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    contexts: list[llamackpt.Context] = []
    take, restore = llamackpt.Context.checkpoint, llamackpt.Checkpoint.restore

    def watched(self: llamackpt.Context, *args: Any, **options: Any) -> llamackpt.Checkpoint:
        contexts.append(self)
        return take(self, *args, **options)

    def clumsy(self: llamackpt.Checkpoint, seq_id: int | None = None) -> None:
        restore(self, seq_id)
        last = contexts[-1].pos_max(2)
        contexts[-1].seq_rm(2)
        contexts[-1].decode([1] * (last + 1), seq_id=2)

    monkeypatch.setattr(llamackpt.Context, "checkpoint", watched)
    monkeypatch.setattr(llamackpt.Checkpoint, "restore", clumsy)
    with pytest.raises(verify.CheckFailed, match="not the same logits"):
        verify.check_isolation(bench)


def test_a_refused_restore_is_a_failed_check_and_the_others_still_run(
    model: llamackpt.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: llamackpt.Checkpoint, seq_id: int | None = None) -> None:
        raise StaleCheckpointError(-3, "made up")

    monkeypatch.setattr(llamackpt.Checkpoint, "restore", refuse)
    checks = list(verify.verify_checks(model))
    assert len(checks) == len(verify.CHECKS)
    failed = {check.name for check in checks if check.status == "FAIL"}
    assert failed >= {"round trip", "fork", "many", "isolation", "rounds"}


def test_comparing_tells_bits_from_a_tolerance_and_both_from_a_failure() -> None:
    a = np.linspace(-1, 1, 20, dtype=np.float32).reshape(2, 10)
    near = a.copy()
    near[1, 3] = np.nextafter(near[1, 3], np.float32(9))
    assert verify.compare([a], [a.copy()], False) == "exact"
    assert verify.compare([near], [a], True).startswith("nmse=")
    with pytest.raises(verify.CheckFailed, match="output 1 of 2"):
        verify.compare([near], [a], False)
    with pytest.raises(verify.CheckFailed):
        verify.compare([a + 1], [a], True)
    with pytest.raises(verify.CheckFailed, match="finite"):
        verify.compare([a * np.inf], [a * np.inf], True)


def test_the_command_prints_a_line_a_check_and_exits_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify"]) == 0
    out = capsys.readouterr().out
    assert out.count("PASS") == len(verify.CHECKS)
    assert "FAIL" not in out


def test_a_failed_check_is_exit_code_1_in_json_as_well(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: verify.Bench) -> str:
        raise verify.CheckFailed("made up")

    monkeypatch.setattr(verify, "CHECKS", {"one": fail, "two": lambda _: "exact"})
    assert cli.main(["verify", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is False
    assert [(c["name"], c["status"]) for c in document["checks"]] == [("one", "FAIL"), ("two", "PASS")]


def test_a_model_without_a_memory_is_skipped_with_the_reason_and_exits_0(
    capsys: pytest.CaptureFixture[str], archs: Path
) -> None:
    model = str(archs / "dream-dense.gguf")
    assert cli.main(["verify", model]) == 0
    out = capsys.readouterr().out
    assert out.count("SKIP") == len(verify.CHECKS)
    assert "its contexts have no memory" in out
    assert cli.main(["info", model]) == 0
    assert "none: the model keeps no state" in capsys.readouterr().out
