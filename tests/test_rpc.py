"""Checkpoints on a device whose memory is not the host's: ggml-rpc-server on this machine.

What is not tested is a server that dies: llama.cpp aborts the process that was connected to it, whatever that did.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from rwkv_gguf import write_rwkv7

import llamackpt

SERVER = ROOT / "llamackpt" / "bin" / "ggml-rpc-server"
CLIENT = Path(__file__).with_name("rpc_session.py")


class Server:
    """A ggml-rpc-server on a free port."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        environment = dict(os.environ, LD_LIBRARY_PATH=str(SERVER.parent.parent / "lib"))
        self.process = subprocess.Popen(
            [str(SERVER), "-H", "127.0.0.1", "-p", str(self.port), "-t", "2", "-d", "CPU"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment,
        )  # fmt: skip
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self.process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        self.kill()
        raise RuntimeError("ggml-rpc-server does not start")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.kill()


def run(server: Server, path: Path, tier: str, full: bool) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(CLIENT), str(server.port), str(path), tier, "full" if full else "rollback"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("tier", ["auto", "device", "host"])
@pytest.mark.parametrize("name", ["shipped", "llama-dense", "rwkv7"])
def test_a_restore_there_is_exact(server: Server, archs: Path, name: str, tier: str, full: bool) -> None:
    """And a shared one, saved and restored, says nothing to the server at all."""
    path = llamackpt.default_model() if name == "shipped" else archs / f"{name}.gguf"
    if name == "rwkv7":
        write_rwkv7(path)
    result = run(server, path, tier, full)
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


def test_an_address_without_a_server_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for endpoint in (f"127.0.0.1:{port}", "127.0.0.1", "nowhere.invalid:1", ":"):
        with pytest.raises(llamackpt.ModelLoadError, match="no RPC server"):
            llamackpt.Model(llamackpt.default_model(), rpc=[endpoint])
    with pytest.raises(TypeError, match="list"):
        llamackpt.Model(llamackpt.default_model(), rpc="127.0.0.1:1")
