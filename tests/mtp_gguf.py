"""The shipped model with a block that predicts one more token (MTP, NextN): what Qwen3.5 and 3.6 are drafted with.

The model itself is as it was, so that its text does not change. The block sees the hidden state after a token, and the next
token, and guesses the hidden state after that. The guess is linear, fitted by least squares to some texts of the model: there
it is mostly right, and elsewhere seldom. On top of it comes the attention of the model's last layer, much weakened, so that
the drafts depend on the block's own cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import requests

import llamackpt
from llamackpt.bench.state_heavy import copy_field
from llamackpt.server import Server

ATTENTION = 0.1
N_WRITTEN = 100
RIDGE = 0.3
Array = npt.NDArray[np.float32]


def continue_greedily(model: Path, texts: Sequence[str]) -> list[list[int]]:
    written = []
    with llamackpt.Model(model) as loaded:
        for text in texts:
            tokens = loaded.tokenize(text).tolist()
            with loaded.context(n_ctx=len(tokens) + N_WRITTEN) as ctx:
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


def write_mtp(source: Path, path: Path, texts: Sequence[str]) -> Path:
    """source: what write_f32 wrote; texts: the beginnings of what the block is fitted to."""
    reader: Any = gguf.GGUFReader(source)
    tensors = {tensor.name: np.array(tensor.data, np.float32).reshape(tensor.shape[::-1]) for tensor in reader.tensors}
    n_layer = int(reader.fields["qwen35.block_count"].contents())
    n_embd = int(reader.fields["qwen35.embedding_length"].contents())
    last = f"blk.{n_layer - 1}."
    block = {name.removeprefix(last): value for name, value in tensors.items() if name.startswith(last)}
    block["attn_output.weight"] = block["attn_output.weight"] * np.float32(ATTENTION)
    block["ffn_down.weight"] = np.zeros_like(block["ffn_down.weight"])
    tokens = continue_greedily(source, texts)
    states = hidden_states(source, tokens)
    block["nextn.eh_proj.weight"] = fit(tokens, states, tensors["token_embd.weight"], tensors["output_norm.weight"])
    block["nextn.enorm.weight"] = block["nextn.hnorm.weight"] = np.ones(n_embd, np.float32)
    tensors.update({f"blk.{n_layer}.{name}": value for name, value in block.items()})

    writer = gguf.GGUFWriter(str(path), "qwen35")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            copy_field(field, writer, n_layer + 1 if field.name == "qwen35.block_count" else None)
    writer.add_nextn_predict_layers(1)
    for name, value in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
