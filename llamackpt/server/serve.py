"""llama-server in the foreground: its log on standard error, its URL on standard output, its exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType

from ..errors import ServerStartError
from .process import Server, server_program

__all__ = ["serve"]

_HELP = {"-h", "--help", "--usage"}
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def serve(model: str, flags: Sequence[str]) -> int:
    """Run it until it ends, with llama-server's own default address; signals go to it. Returns its exit code (128 + n for
    the signal n). Only the main thread may call this. Raises FileNotFoundError without the model.
    """
    if _HELP.intersection(flags):  # on standard output, where a pager can read it
        return _exit_code(subprocess.run([server_program(), "--help"], check=False).returncode)
    log = os.devnull if sys.stderr is None else sys.stderr.buffer  # closed from the start, as by 2>&-
    running: list[Server] = []

    def forward(number: int, _: FrameType | None) -> None:
        if not running:
            raise SystemExit(128 + number)  # ends the one that is being started
        running[0].signal(number)

    before = {number: signal.signal(number, forward) for number in _FORWARDED}
    try:
        with Server(model, *flags, port=None, timeout=None, log=log) as server:
            running.append(server)
            print(server.url, flush=True)
            return _exit_code(server.wait())
    except ServerStartError as error:  # its log has said why
        return _exit_code(error.code)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _exit_code(code: int | None) -> int:
    return 128 - code if code is not None and code < 0 else code or 0
