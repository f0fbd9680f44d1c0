"""What the shipped model makes of its own text, and a linear guess of what comes next: what draft models are fitted to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import requests

import llamackpt
from llamackpt.server import Server

N_WRITTEN = 100
RIDGE = 0.3
Array = npt.NDArray[np.float32]


def continue_greedily(model: Path, texts: Sequence[str]) -> list[list[int]]:
    written = []
    with llamackpt.Model(model) as loaded:
        for text in texts:
            tokens = loaded.tokenize(text).tolist()
            with loaded.context(n_ctx=len(tokens) + N_WRITTEN, n_threads=1) as ctx:
                logits = ctx.decode(tokens)
                for _ in range(N_WRITTEN):
                    tokens.append(int(np.argmax(logits[-1])))
                    logits = ctx.decode(tokens[-1:])
            written.append(tokens)
    return written


def hidden_states(model: Path, texts: Sequence[Sequence[int]]) -> list[Array]:
    """The output of the model's last norm after each token of each text, [n_tokens, n_embd]."""
    states = []
    with Server(model, "--embedding", "--pooling", "none", "--threads", "1") as server:
        for text in texts:
            body = {"content": text, "embd_normalize": -1}
            answer = requests.post(f"{server.url}/embedding", json=body, timeout=60)
            answer.raise_for_status()
            states.append(np.array(answer.json()[0]["embedding"], np.float32))
    return states


def unit(rows: Array) -> Array:
    """What an RMS norm without weights makes of them."""
    scaled: Array = rows / np.sqrt(np.mean(rows**2, axis=-1, keepdims=True))
    return scaled


def fit(texts: Sequence[Sequence[int]], states: Sequence[Array], embedding: Array, norm: Array) -> Array:
    """The projection [n_embd, 2 n_embd] of the next token and of a hidden state to the next one, before its norm."""
    pairs = list(zip(texts, states, strict=True))
    n_embd = len(norm)
    inputs = [np.hstack([unit(embedding[text[1:]]), unit(state[:-1])]) for text, state in pairs]
    targets = [state[1:] / norm for _, state in pairs]
    inputs.append(RIDGE * np.eye(2 * n_embd, dtype=np.float32))
    targets.append(np.zeros((2 * n_embd, n_embd), np.float32))
    return np.asarray(np.linalg.lstsq(np.concatenate(inputs), np.concatenate(targets), rcond=None)[0].T, np.float32)
