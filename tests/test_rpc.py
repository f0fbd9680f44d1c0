"""Checkpoints on a device whose memory is not the host's: ggml-rpc-server on this machine.

What is not tested is a server that dies: llama.cpp aborts the process that was connected to it, whatever that did.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rwkv_gguf import write_rwkv7

import llamackpt
from llamackpt import _remote
from llamackpt.bench.rpc_server import rpc_server

CLIENT = Path(__file__).with_name("rpc_session.py")


@pytest.fixture(scope="module")
def port() -> Iterator[str]:
    with rpc_server("-t", "1", "-d", "CPU") as address:
        yield address.rpartition(":")[2]


@pytest.fixture(scope="module")
def ports(port: str) -> Iterator[str]:
    with rpc_server("-t", "1", "-d", "CPU") as address:
        yield f"{port},{address.rpartition(':')[2]}"


def run(port: str, path: Path, tier: str, full: bool) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(CLIENT), port, str(path), tier, "full" if full else "rollback"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("tier", ["auto", "device", "host"])
@pytest.mark.parametrize("name", ["shipped", "llama-dense", "rwkv7"])
def test_a_restore_there_is_exact(port: str, archs: Path, name: str, tier: str, full: bool) -> None:
    """And a shared one, saved and restored, says nothing to the server at all."""
    path = llamackpt.default_model() if name == "shipped" else archs / f"{name}.gguf"
    if name == "rwkv7":
        write_rwkv7(path)
    result = run(port, path, tier, full)
    assert all(result["same"])
    attention = name == "llama-dense"
    assert result["tier"] == ("shared" if tier == "auto" or (attention and tier == "device") else tier)
    if result["tier"] == "shared":
        assert (result["save"], result["restore"]) == (0, 0)
    elif result["tier"] == "device":  # the commands alone
        assert 0 < result["save"] + result["restore"] < result["state"] / 4
    else:
        assert result["save"] > 1000
        assert result["restore"] > 1000


@pytest.mark.parametrize("name", ["qwen4exp-moe", "glm5-next-moe", "deepseek4-moe"])
def test_a_copy_of_the_whole_state_stays_there(port: str, archs: Path, name: str) -> None:
    """The bytes on the way are those of the commands."""
    result = run(port, archs / f"{name}.gguf", "auto", True)
    assert all(result["same"])
    assert result["tier"] == "device"
    assert 0 < result["save"] < result["state"] / 8
    assert 0 < result["restore"] < result["state"] / 4  # it makes a backup first


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("tier", ["auto", "device", "host"])
@pytest.mark.parametrize("name", ["shipped", "lfm2-dense", "llama-dense"])
def test_split_over_two_devices_it_is_shared_as_well(ports: str, archs: Path, name: str, tier: str, full: bool) -> None:
    """What cannot be shared is on the host: nothing copies within the memory of split tensors."""
    path = llamackpt.default_model() if name == "shipped" else archs / f"{name}.gguf"
    result = run(ports, path, tier, full)
    assert all(result["same"])
    shares = tier == "auto" or (tier == "device" and name == "llama-dense")
    assert result["tier"] == ("shared" if shares else "host")
    if shares:
        assert (result["save"], result["restore"]) == (0, 0)


FORKS = """
import sys
import numpy as np
import llamackpt

rpc, path = [f"127.0.0.1:{port}" for port in sys.argv[1].split(",")], sys.argv[2]
with llamackpt.Model(path, rpc=rpc, split_mode="tensor") as model:
    with model.context(n_ctx=256, n_seq_max=2, kv_unified=False, n_threads=1) as ctx:
        tokens = [int(token) for token in np.random.default_rng(1).integers(0, model.n_vocab, 30)]
        ctx.decode(tokens)
        with ctx.checkpoint(full=True) as ck:
            for _ in range(60):
                ctx.seq_cp(0, 1)
                if ck.tier == "shared":
                    ck.restore(1)
            found = np.array(ctx.decode([5], 1))
        ctx.clear()
        ctx.decode(tokens, 1)
        print(np.allclose(found, ctx.decode([5], 1), rtol=1e-2, atol=1e-2 * np.abs(found).max()))
"""


@pytest.mark.parametrize("name", ["shipped", "qwen35-dense", "deepseek4-moe"])
def test_split_over_two_devices_it_is_forked_as_often_as_you_like(ports: str, archs: Path, name: str) -> None:
    """The backend that splits has room for 16 views of a tensor between two decodes, and aborts with the next one."""
    path = llamackpt.default_model() if name == "shipped" else archs / f"{name}.gguf"
    done = subprocess.run(
        [sys.executable, "-c", FORKS, ports, str(path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


def test_an_address_without_a_server_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for endpoint in (f"127.0.0.1:{port}", "127.0.0.1", "nowhere.invalid:1", ":"):
        with pytest.raises(llamackpt.ModelLoadError, match="no RPC server"):
            llamackpt.Model(llamackpt.default_model(), rpc=[endpoint])
    with pytest.raises(TypeError, match="list"):
        llamackpt.Model(llamackpt.default_model(), rpc="127.0.0.1:1")
    with pytest.raises(TypeError, match='each "host:port" of rpc is a str, not 5'):
        llamackpt.Model(llamackpt.default_model(), rpc=[5])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"HTTP/1.0 400 Bad Request\r\n\r\n" + 50 * b" ", "not an RPC server"),
        (b"", "not an RPC server"),
        ((28).to_bytes(8, "little") + b"\x63" + bytes(27), "version 99.0"),
        (None, "no RPC server answers"),
    ],
)
def test_what_is_no_rpc_server_is_refused(answer: bytes | None, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp aborts the process, or waits for ever."""
    monkeypatch.setattr(_remote, "_TIMEOUT", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                if answer is None:
                    done.wait(30)
                else:
                    connection.recv(64)
                    connection.sendall(answer)

        done = threading.Event()
        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(llamackpt.ModelLoadError, match=why):
            llamackpt.Model(llamackpt.default_model(), rpc=[f"127.0.0.1:{listener.getsockname()[1]}"])
        done.set()
        thread.join()
