"""The patch series: in order, exported as it is, with its own C++ test green."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from conftest import ROOT, generator

PATCHES = ROOT / "patches"
TREE = ROOT / "vendor" / "llama.cpp"

# one of each kind of memory, and those that the series found something in
ARCHS = [
    "qwen35-dense", "mamba-dense", "mamba2-dense", "jamba-dense", "falcon-h1-dense", "lfm2-dense", "plamo2-dense",
    "kimi-k3-moe", "qwen4exp-moe", "llama-dense", "gemma3-dense", "gpt-oss-moe", "deepseek4-moe", "deepseek32-moe",
    "minimax-m3-moe", "dots3note-moe", "dream-dense",
]  # fmt: skip


def series() -> list[str]:
    return [line for line in (PATCHES / "series").read_text().splitlines() if line and not line.startswith("#")]


def test_the_order_file_names_every_patch_once() -> None:
    assert sorted(series()) == sorted(path.name for path in PATCHES.glob("*.patch"))
    assert len(set(series())) == len(series())


@pytest.mark.parametrize("name", series())
def test_a_patch_says_why_and_leaves_no_trailing_space(name: str) -> None:
    text = (PATCHES / name).read_text()
    head, _, diff = text.partition("\n---\n") if "\n---\n" in text else text.partition("\ndiff --git")
    subject, _, body = head.partition("\n\n")
    assert " : " in subject.split("Subject:")[1]
    assert len(body.split()) > 10 or "combine" in subject
    added = [line[1:] for line in diff.splitlines() if line.startswith("+") and not line.startswith("+++")]
    assert [line for line in added if line != line.rstrip() or "\t" in line] == []
    assert all(line.isascii() for line in added)


def test_the_tree_is_upstream_and_one_commit_a_patch() -> None:
    log = subprocess.run(
        ["git", "-C", str(TREE), "log", "--reverse", "--format=%s"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert log[0] == "upstream"
    assert len(log) == 1 + len(series())


@pytest.mark.parametrize("arch", ARCHS)
def test_the_series_own_test_passes(archs: Path, arch: str) -> None:
    binary = generator().parent / "test-memory-checkpoint"
    done = subprocess.run(
        [str(binary), "-m", str(archs / f"{arch}.gguf"), "-t", "1"], capture_output=True, text=True, timeout=300, check=False
    )
    if arch == "dream-dense":  # it has no memory: all is skipped, and a test that tested nothing fails
        assert "16 skipped" in done.stdout
        return
    assert done.returncode == 0, done.stdout + done.stderr
    assert "16 passed, 0 skipped, 0 failed" in done.stdout
