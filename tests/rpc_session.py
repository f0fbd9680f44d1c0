"""A client of a ggml-rpc-server, in a process of its own: llama.cpp aborts the process when its server is gone.

    python tests/rpc_session.py PORT[,PORT...] MODEL TIER FULL

saves, restores and forks there, and prints as JSON what came of it. The bytes between the two are counted on their way.
Over several servers each tensor is split.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
import time
from typing import Any

import numpy as np

import llamackpt


class Counter:
    """Listens on a port, passes everything on to another one, and counts the bytes."""

    def __init__(self, port: int) -> None:
        self.n_bytes = 0
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            server = socket.create_connection(("127.0.0.1", self._target))
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # or each small message waits for 40 ms
            for pair in ((client, server), (server, client)):
                threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                self.n_bytes += len(data)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def settled(self) -> int:
        """The count, once nothing moves."""
        before = -1
        while before != self.n_bytes:
            before = self.n_bytes
            time.sleep(0.1)
        return before


def session(ports: list[int], path: str, tier: str, full: bool) -> dict[str, Any]:
    counters = [Counter(port) for port in ports]
    rpc = [f"127.0.0.1:{counter.port}" for counter in counters]

    def settled() -> int:
        return sum(counter.settled() for counter in counters)

    with llamackpt.Model(path, rpc=rpc, split_mode="tensor" if len(rpc) > 1 else "layer") as model:
        prompt, draft, more = (np.random.default_rng(i).integers(0, model.n_vocab, n) for i, n in enumerate((40, 7, 3)))

        def fresh(seq_id: int) -> np.ndarray:
            with model.context(n_ctx=256, n_seq_max=3) as ctx:
                ctx.decode(prompt, seq_id)
                return ctx.decode(more, seq_id)

        with model.context(n_ctx=256, n_seq_max=3, checkpoints=2) as ctx:
            ctx.decode(prompt)
            start = settled()
            ck = ctx.checkpoint(full=full, tier=tier)  # type: ignore[arg-type]
            n_save = settled() - start
            ctx.decode(draft)
            start = settled()
            ck.restore()
            n_restore = settled() - start
            same = [np.array_equal(ctx.decode(more), fresh(0))]
            if full:
                ctx.seq_rm(0)
                ck.restore(1)
                same.append(np.array_equal(ctx.decode(more, 1), fresh(1)))
            n_state = len(ctx.state_get(1 if full else 0))
            result = {"tier": ck.tier, "same": same, "save": n_save, "restore": n_restore, "state": n_state}
            ck.delete()
    return result


if __name__ == "__main__":
    print(json.dumps(session([int(port) for port in sys.argv[1].split(",")], sys.argv[2], sys.argv[3], sys.argv[4] == "full")))
