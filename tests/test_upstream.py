"""llama.cpp's own tests of what the series changes are green with it; test-recurrent-state-rollback is in test_series.py."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from conftest import ROOT, generator
from rwkv_gguf import write_rwkv7
from test_series import ARCHS

import llamackpt


def run(directory: Path, *command: str | Path) -> str:
    """What it prints, both streams, if its exit code is 0. directory: where it may write."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def program(name: str) -> Path:
    return generator().parent / name


def test_batches_are_split_as_before(tmp_path: Path) -> None:
    assert "failures   : 0" in run(tmp_path, program("test-batch-alloc"))


def test_the_cells_of_the_kv_cache_are_what_a_plain_list_says(tmp_path: Path) -> None:
    assert "failures   : 0" in run(tmp_path, program("test-kv-cells"))


def test_the_backends_agree_on_every_architecture(tmp_path: Path) -> None:
    out = run(tmp_path, program("test-llama-archs"), "-s", "1234")
    assert "FAIL" not in out
    assert out.count("OK") > 100


def test_states_are_saved_and_loaded(archs: Path, tmp_path: Path) -> None:
    names = [name for name in ARCHS if name != "dream-dense"]  # it has no memory
    for name in names:
        shutil.copy(archs / f"{name}.gguf", tmp_path)
    write_rwkv7(tmp_path / "rwkv7.gguf")
    out = run(tmp_path, program("test-save-load-state"), "--models", tmp_path, "-t", "1")
    assert "FAIL" not in out
    assert out.count(".gguf") == len(names) + 1
    assert out.count("PASS") >= 5 * len(names)


def test_a_state_goes_into_a_fragmented_cache(tmp_path: Path) -> None:
    out = run(tmp_path, program("test-state-restore-fragmented"), "-m", llamackpt.default_model(), "-t", "1")
    assert "SUCCESS" in out


def test_two_rpc_servers_do_not_mix(tmp_path: Path) -> None:
    script = ROOT / "vendor" / "llama.cpp" / "tests" / "test-rpc-multi-server.sh"
    run(tmp_path, "bash", script, program("ggml-rpc-server"), program("test-rpc-multi-server"))
