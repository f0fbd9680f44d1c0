"""llama-server from Python: a process of one's own, and a client of any.

    with Server(llamackpt.default_model(), "--parallel", "2") as server:
        print(server.client().completion("def read(", max_tokens=40).text)

The client needs requests (`pip install llamackpt[server]`); the process does not.
"""

from __future__ import annotations

from ..errors import (
    PromptTooLongError,
    RequestError,
    ServerConnectionError,
    ServerError,
    ServerStartError,
    ServerTimeoutError,
)
from .client import Client
from .process import Server
from .replies import Chunk, Completion, Slot, SlotFile, Timings

__all__ = [
    "Chunk",
    "Client",
    "Completion",
    "PromptTooLongError",
    "RequestError",
    "Server",
    "ServerConnectionError",
    "ServerError",
    "ServerStartError",
    "ServerTimeoutError",
    "Slot",
    "SlotFile",
    "Timings",
]
