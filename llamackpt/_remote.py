"""The devices of ggml-rpc-server processes. A server that is lost later aborts the process: llama.cpp cannot do without it."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

from ._ffi import ffi, lib
from .errors import ModelLoadError

__all__ = ["remote_devices"]


def remote_devices(endpoints: Sequence[str]) -> list[Any]:
    """The handles of all devices that the servers have. Raises ModelLoadError if one does not answer."""
    if isinstance(endpoints, str):
        raise TypeError('rpc is a list of "host:port", not one of them')
    devices = []
    for endpoint in endpoints:
        _check(endpoint)
        reg = lib.ggml_backend_reg_by_name(b"RPC")
        if reg == ffi.NULL:
            raise ModelLoadError("llama.cpp was built without RPC")
        address = lib.ggml_backend_reg_get_proc_address(reg, b"ggml_backend_rpc_add_server")
        server = ffi.cast("ggml_backend_reg_t (*)(const char *)", address)(endpoint.encode())
        if server == ffi.NULL:
            raise ModelLoadError(f"{endpoint}: the RPC server has no devices")
        devices += [lib.ggml_backend_reg_dev_get(server, i) for i in range(lib.ggml_backend_reg_dev_count(server))]
    return devices


def _check(endpoint: str) -> None:
    """llama.cpp aborts the process where there is no server."""
    host, _, port = endpoint.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, ValueError) as err:
        raise ModelLoadError(f"{endpoint}: there is no RPC server ({err})") from err
