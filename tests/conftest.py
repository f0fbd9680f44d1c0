"""Models for the tests: the shipped one, and one of each architecture, written by upstream's own generator."""

from __future__ import annotations

import contextlib
import os
import random
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from f32_gguf import write_f32
from llama_gguf import write_llama

import llamackpt
from llamackpt.server import Client, Server

pytest.register_assert_rewrite("server_checks")

from server_checks import DRAFTS, start  # noqa: E402

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and so would what they start

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def model() -> Iterator[llamackpt.Model]:
    with llamackpt.Model(llamackpt.default_model()) as shipped:
        yield shipped


@pytest.fixture
def ctx(model: llamackpt.Model) -> Iterator[llamackpt.Context]:
    with model.context(n_ctx=512, n_seq_max=3, checkpoints=2) as context:
        yield context


def generator() -> Path:
    """test-llama-archs of the newest build."""
    found = sorted(ROOT.glob("build/*/bin/test-llama-archs"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise FileNotFoundError("test-llama-archs is not built; run ./build.sh")
    return found[-1]


def preloadable(name: str, directory: Path, *flags: str) -> Path:
    """A C file of this directory as a library for LD_PRELOAD; skips the test where there is none."""
    if sys.platform != "linux":
        pytest.skip("LD_PRELOAD is Linux's")
    source, library = Path(__file__).with_name(name), directory / f"{name}.so"
    compiler = [*shlex.split(os.environ.get("CC", "cc")), "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([*compiler, *flags, source, "-o", library, "-ldl"], check=True)
    return library


@contextlib.contextmanager
def ctrl_c_after(name: str) -> Iterator[None]:
    """Raises KeyboardInterrupt, as a signal handler can, the moment that a function in C with `name` in its own returns."""

    def profile(_: object, event: str, function: object) -> None:
        if event == "c_return" and name in function.__name__:  # type: ignore[attr-defined]
            raise KeyboardInterrupt  # which also ends the profiling

    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(None)


def interrupted_rounds(work: Callable[[], object], rounds: int, shortest: float, longest: float) -> Iterator[None]:
    """Does the work once a round, in which a signal handler raises after a random time in seconds; yields after each."""

    class Tick(Exception):
        pass

    def tick(*_: object) -> None:
        raise Tick

    rng = random.Random(1)
    before = signal.signal(signal.SIGALRM, tick)
    try:
        for _ in range(rounds):
            with contextlib.suppress(Tick):
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(shortest, longest))
                work()
                signal.setitimer(signal.ITIMER_REAL, 0)
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="session")
def archs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tiny random GGUF of each architecture; the same weights each time."""
    directory = tmp_path_factory.mktemp("archs")
    subprocess.run([str(generator()), "-s", "1234", "-o", str(directory)], check=True, capture_output=True, timeout=300)
    return directory


@pytest.fixture(scope="session")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model in f32: drafts and slots change the shape of a batch, and with it how q8_0 would round."""
    return write_f32(tmp_path_factory.mktemp("hybrid") / "f32.gguf")


# -- servers, one of each for a module ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("model") / "llama.gguf")


@pytest.fixture(scope="module")
def plain(hybrid: Path) -> Iterator[Client]:
    with start(hybrid) as server:
        yield server.client()


@pytest.fixture(scope="module")
def slots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("slots")


@pytest.fixture(scope="module")
def drafting_server(hybrid: Path, slots: Path) -> Iterator[Server]:
    with start(hybrid, *DRAFTS, "--slot-save-path", str(slots)) as server:
        yield server


@pytest.fixture
def drafting(drafting_server: Server) -> Iterator[Client]:
    client = drafting_server.client()
    yield client
    assert drafting_server.returncode is None, drafting_server.log_lines()
    assert client.health()
