"""A ggml-rpc-server of the package on this machine, for as long as it is needed."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator

from ..errors import ServerError
from ..server.process import server_program

__all__ = ["rpc_server"]

_START = 30.0  # seconds


@contextlib.contextmanager
def rpc_server(*flags: str) -> Iterator[str]:
    """Its address, once it takes connections. Raises ServerError if it does not; FileNotFoundError without the program."""
    program = server_program().with_name("ggml-rpc-server")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    process = subprocess.Popen(
        [str(program), "-H", "127.0.0.1", "-p", str(port), *flags],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=dict(os.environ, LD_LIBRARY_PATH=str(program.parent.parent / "lib")),
    )
    try:
        _wait(process, port)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + _START
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    how = "takes no connection" if process.poll() is None else f"ended with exit code {process.returncode}"
    raise ServerError(f"ggml-rpc-server {how}")
