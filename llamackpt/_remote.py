"""The devices of ggml-rpc-server processes. A server that is lost later aborts the process: llama.cpp cannot do without it."""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from typing import Any

from ._ffi import ffi, lib
from ._params import check_type
from .errors import ModelLoadError

__all__ = ["remote_devices"]

_TIMEOUT = 10.0
_HELLO = struct.pack("<BQ24x", 14, 24)  # the command, the size of what follows, no capabilities
_REPLY = struct.Struct("<QBB26x")  # the size of what follows, the version, the capabilities

_connected: set[str] = set()


def remote_devices(endpoints: Sequence[str]) -> list[Any]:
    """The handles of all devices that the servers have. Raises ModelLoadError if one does not answer."""
    if isinstance(endpoints, str):
        raise TypeError('rpc is a list of "host:port", not one of them')
    devices = []
    for endpoint in endpoints:
        check_type('each "host:port" of rpc', endpoint, str)
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
    """llama.cpp aborts the process where no server of its version answers. One that serves this process serves no other."""
    host, _, port = endpoint.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_TIMEOUT) as connection:
            if endpoint in _connected:
                return
            connection.sendall(_HELLO)
            reply = _receive(connection, _REPLY.size)
    except TimeoutError as err:
        raise ModelLoadError(f"{endpoint}: no RPC server answers (another process may be using it)") from err
    except (OSError, ValueError) as err:
        raise ModelLoadError(f"{endpoint}: there is no RPC server ({err})") from err
    if len(reply) != _REPLY.size or _REPLY.unpack(reply)[0] != _REPLY.size - 8:
        raise ModelLoadError(f"{endpoint}: what answers there is not an RPC server")
    _, major, minor = _REPLY.unpack(reply)
    if major != lib.RPC_PROTO_MAJOR_VERSION or minor > lib.RPC_PROTO_MINOR_VERSION:
        ours = f"{lib.RPC_PROTO_MAJOR_VERSION}.{lib.RPC_PROTO_MINOR_VERSION}"
        raise ModelLoadError(f"{endpoint}: the RPC server speaks version {major}.{minor} of the protocol, not {ours}")
    _connected.add(endpoint)


def _receive(connection: socket.socket, n: int) -> bytes:
    data = b""
    while len(data) < n and (part := connection.recv(n - len(data))):
        data += part
    return data
