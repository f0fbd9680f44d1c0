"""llama.cpp's own tests of what the series changes are green with it, also where every context has room for checkpoints, and
where it holds some: reserve_checkpoints.c is loaded before libllama for that. Two tests have no context, and run as they are.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from conftest import ROOT, generator, preloadable
from rwkv_gguf import write_rwkv7
from test_series import ARCHS

import llamackpt

LLAMA = ROOT / "vendor" / "llama.cpp"
Run = Callable[..., str]


def run(directory: Path, *command: str | Path, env: Mapping[str, str] | None = None) -> str:
    """What it prints, both streams, if its exit code is 0. directory: where it may write."""
    done = subprocess.run(
        [str(word) for word in command], env=None if env is None else {**os.environ, **env},
        cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def reserve(tmp_path_factory: pytest.TempPathFactory) -> Path:
    include = [f"-I{LLAMA / part / 'include'}" for part in (".", "ggml")]
    return preloadable("reserve_checkpoints.c", tmp_path_factory.mktemp("reserve"), *include)


@pytest.fixture(params=["plain", "reserved", "held"])
def run_with(request: pytest.FixtureRequest) -> Run:
    """`run`, which also asserts that the contexts had what the parameter says."""
    if request.param == "plain":
        return run
    env = {"LD_PRELOAD": str(request.getfixturevalue("reserve"))}
    if request.param == "held":
        env["HOLD_CHECKPOINTS"] = "1"

    def run_reserved(directory: Path, *command: str | Path) -> str:
        out = run(directory, *command, env=env)
        said = re.findall(r"reserve_checkpoints: (\d+) contexts, (\d+) reserved, (\d+) checkpoints held", out)
        assert said, out[-4000:]
        contexts, reserved, held = map(int, said[-1])
        assert 0 < 0.9 * contexts < reserved <= contexts  # a memory of none of our kinds has no room for any
        assert (held > 0) == (request.param == "held")
        return out

    return run_reserved


def program(name: str) -> Path:
    return generator().parent / name


def test_batches_are_split_as_before(tmp_path: Path) -> None:
    assert "failures   : 0" in run(tmp_path, program("test-batch-alloc"))


def test_the_cells_of_the_kv_cache_are_what_a_plain_list_says(tmp_path: Path) -> None:
    assert "failures   : 0" in run(tmp_path, program("test-kv-cells"))


@pytest.mark.parametrize("operation", ["GATED_DELTA_NET", "GATED_DELTA_NET_CACHE_FUSION"])
def test_states_that_are_computed_in_the_cache_are_those_that_are_copied(tmp_path: Path, operation: str) -> None:
    out = run(tmp_path, program("test-backend-ops"), "test", "-b", "CPU", "-o", operation)
    passed, of = map(int, re.findall(r"(\d+)/(\d+) tests passed", out)[-1])
    assert passed == of > 30


@pytest.mark.parametrize("run_with", ["plain", "held"], indirect=True)  # it is the long one
def test_the_backends_agree_on_every_architecture(run_with: Run, tmp_path: Path) -> None:
    out = run_with(tmp_path, program("test-llama-archs"), "-s", "1234")
    assert "FAIL" not in out
    assert out.count("OK") > 100


def test_states_are_saved_and_loaded(run_with: Run, archs: Path, tmp_path: Path) -> None:
    names = [name for name in ARCHS if name != "dream-dense"]  # it has no memory
    for name in names:
        shutil.copy(archs / f"{name}.gguf", tmp_path)
    write_rwkv7(tmp_path / "rwkv7.gguf")
    out = run_with(tmp_path, program("test-save-load-state"), "--models", tmp_path, "-t", "1")
    assert "FAIL" not in out
    assert out.count(".gguf") == len(names) + 1
    assert out.count("PASS") >= 5 * len(names)


def test_a_state_goes_into_a_fragmented_cache(run_with: Run, tmp_path: Path) -> None:
    out = run_with(tmp_path, program("test-state-restore-fragmented"), "-m", llamackpt.default_model(), "-t", "1")
    assert "SUCCESS" in out


def test_snapshots_are_rolled_back_to(run_with: Run, archs: Path, tmp_path: Path) -> None:
    names = ["qwen35-dense", "nemotron_h-dense", "lfm2-dense"]
    for name in names:
        shutil.copy(archs / f"{name}.gguf", tmp_path)
    out = run_with(tmp_path, program("test-recurrent-state-rollback"), "--models", tmp_path, "-t", "1")
    assert "FAIL" not in out
    assert out.count("PASS") == 2 * len(names)


def test_two_rpc_servers_do_not_mix(tmp_path: Path) -> None:
    script = LLAMA / "tests" / "test-rpc-multi-server.sh"
    run(tmp_path, "bash", script, program("ggml-rpc-server"), program("test-rpc-multi-server"))
