"""The benchmark of the server: a small run of all of it, and the model that it widens."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from llama_gguf import write_llama

import llamackpt
from llamackpt.bench import run_server, server
from llamackpt.bench.widen import widen
from llamackpt.server.process import server_program


def test_all_rows_are_there_with_the_same_program_on_both_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_server, "N_TURNS", 3)
    monkeypatch.setattr(run_server, "N_ROUNDS", 20)
    monkeypatch.setattr(run_server, "N_RESTORED", 200)
    monkeypatch.setattr(run_server, "N_UNUSED", 1)
    bench = run_server.measure_server(
        str(llamackpt.default_model()), tmp_path, stock=str(server_program()), runs=2, n_tokens=32, n_history=400,
        flags=["--threads", "1"],
    )  # fmt: skip
    rows = {row.name: row for row in bench.rows}
    assert rows["different texts"].patched == rows["different texts"].stock == 0
    assert rows["accepted"].patched == rows["accepted"].stock
    assert max(row.patched for name, row in rows.items() if name.startswith("decoded / new")) <= 1.05
    for row in bench.rows:
        assert row.measures
        assert (row.stock is None) == bool(row.why_not)
    assert json.loads(json.dumps(server.as_json(bench)))["details"]["conversation, text"]
    assert all(name in server.format_server(bench) for name in rows)


@pytest.mark.parametrize("rpc", [False, True])
def test_without_a_stock_server_each_row_says_so(tmp_path: Path, rpc: bool) -> None:
    bench = server.Bench()
    setup = server.Setup(None, tmp_path, ("--threads", "1"), rpc=rpc)
    server.measure_speculation(bench, setup, llamackpt.default_model(), 1, 24, lambda _: None)
    assert all(row.stock is None and row.why_not for row in bench.rows)


def test_a_wrong_stock_program_is_one_line(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "none", "no such file"), (tmp_path, "is a directory, not a program")):
        command = [sys.executable, "-m", "llamackpt", "bench", "server", "--stock", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (2, f"llamackpt: {path}: {why}\n")


def test_flags_that_cannot_be_split_are_named() -> None:
    command = [sys.executable, "-m", "llamackpt", "bench", "server", "--flags", '"x']
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "argument --flags: No closing quotation in" in done.stderr


def test_the_widened_model_writes_the_same_text(tmp_path: Path, model: llamackpt.Model) -> None:
    mib = widen(llamackpt.default_model(), tmp_path / "wide.gguf", state_mib=18.0)
    prompt = model.tokenize("def read(self, size=-1):\n")
    with llamackpt.Model(tmp_path / "wide.gguf") as wide, wide.context(n_ctx=64) as ctx, model.context(n_ctx=64) as narrow:
        assert len(ctx.state_get(partial=True)) < 2**12  # nothing yet
        logits, expected = ctx.decode(prompt), narrow.decode(prompt)
        assert len(ctx.state_get(partial=True)) == pytest.approx(mib * 2**20, rel=0.01)
        assert np.argmax(logits) == np.argmax(expected)
        assert float(np.mean((logits - expected) ** 2) / np.var(expected)) < 1e-3


def test_a_model_that_cannot_be_widened_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a qwen35"):
        widen(write_llama(tmp_path / "llama.gguf"), tmp_path / "wide.gguf")
