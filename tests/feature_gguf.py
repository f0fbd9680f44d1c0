"""Draft models that read hidden states of the shipped model, and write with its tokens: EAGLE3, DFlash and DSpark.

EAGLE3 is fitted: from the hidden state after a token, and the next token, it guesses the hidden state after that, and goes on
from its own guess. To see the next token its attention looks at one position only, where the angles of the rotary embedding
agree; one more head looks at all of them, so that the drafts depend on its cache. DSpark knows which token follows which, as
fitted, and no more; DFlash puts the same token everywhere. In both the cache has a little influence, as random weights have.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from hidden_states import Array, continue_greedily, fit, hidden_states, unit

from llamackpt.bench.state_heavy import copy_tokenizer

HEAD = 32  # and as many channels beside those of the model, the first of them is always 1
FOCUS = 8.0  # with the rotary frequencies below, any other position has less than e^-20 of the attention
NOISE = 0.02
N_FF = 32
BLOCK = 8
MASK = 1  # any token will do


class Teacher:
    """The shipped model or another one with its tokens, and what it makes of some texts.

    source: what write_f32 or write_llama wrote; texts: the beginnings of what the drafts are fitted to.
    """

    def __init__(self, source: Path, texts: Sequence[str]) -> None:
        reader: Any = gguf.GGUFReader(source)
        tensors = {tensor.name: np.array(tensor.data, np.float32).reshape(tensor.shape[::-1]) for tensor in reader.tensors}
        self.reader = reader
        self.n_layer = next(int(field.contents()) for name, field in reader.fields.items() if name.endswith(".block_count"))
        self.embedding: Array = tensors["token_embd.weight"]
        self.head: Array = tensors.get("output.weight", self.embedding)
        self.norm: Array = tensors["output_norm.weight"]
        self.tokens = continue_greedily(source, texts)
        self.states = hidden_states(source, self.tokens)
        self.n_vocab, self.n_embd = self.embedding.shape


def write_drafts(source: Path, directory: Path, texts: Sequence[str]) -> dict[str, Path]:
    """One of each kind, fitted to the texts that begin so. source: what write_f32 or write_llama wrote."""
    teacher = Teacher(source, texts)
    return {
        "eagle3": write_eagle3(teacher, directory / "eagle3.gguf"),
        "dflash": write_dflash(teacher, directory / "dflash.gguf", markov=False),
        "dspark": write_dflash(teacher, directory / "dspark.gguf", markov=True),
    }


def write_eagle3(teacher: Teacher, path: Path) -> Path:
    n_tgt, n = teacher.n_embd, teacher.n_embd + HEAD
    states = [state / teacher.norm for state in teacher.states]
    guess = fit(teacher.tokens, states, teacher.embedding, np.ones(n_tgt, np.float32))  # of [token, state]
    # the state is added to what the attention says
    guess[:, n_tgt:] -= np.eye(n_tgt, dtype=np.float32)
    writer, add = _start(path, "eagle3", teacher, n, n // HEAD + 1)
    writer.add_rope_freq_base(4.0)
    writer.add_uint32("eagle3.target_hidden_size", n_tgt)
    writer.add_array("eagle3.target_layers", [1, teacher.n_layer // 2, teacher.n_layer])

    last = np.zeros((n, 3 * n_tgt), np.float32)  # of the three layers the last one, without the weights of its norm
    last[:n_tgt, 2 * n_tgt :] = np.diag(1 / teacher.norm)
    embedding = np.zeros((teacher.n_vocab, n), np.float32)
    embedding[:, :n_tgt] = unit(teacher.embedding)
    embedding[:, n_tgt] = 1
    head = np.zeros((teacher.n_vocab, n), np.float32)
    head[:, :n_tgt] = teacher.head * teacher.norm
    focus = np.zeros((n, 2 * n), np.float32)
    focus[:, n_tgt] = FOCUS
    value = np.zeros((n, 2 * n), np.float32)
    value[:n_tgt, :n_tgt] = guess[:, :n_tgt]
    value[:n_tgt, n : n + n_tgt] = guess[:, n_tgt:]

    rng = np.random.default_rng(5)
    everywhere = [rng.standard_normal((HEAD, 2 * n)).astype(np.float32) * NOISE for _ in range(3)]
    output = np.hstack([np.eye(n, dtype=np.float32), rng.standard_normal((n, HEAD)).astype(np.float32) * NOISE])
    add("fc.weight", last)
    add("token_embd.weight", embedding)
    add("output.weight", head)
    add("output_norm.weight", np.full(n, np.sqrt(n_tgt / n), np.float32))
    add("blk.0.attn_norm.weight", np.full(n, np.sqrt((n_tgt + 1) / n), np.float32))
    add("blk.0.attn_norm_2.weight", np.full(n, np.sqrt(n_tgt / n), np.float32))
    add("blk.0.attn_q.weight", np.vstack([focus, everywhere[0]]))
    add("blk.0.attn_k.weight", np.vstack([focus, everywhere[1]]))
    add("blk.0.attn_v.weight", np.vstack([value, everywhere[2]]))
    add("blk.0.attn_output.weight", output)
    _finish(writer, add, n)
    return path


def write_dflash(teacher: Teacher, path: Path, *, markov: bool) -> Path:
    """markov: a DSpark, which knows what follows on each token."""
    n = teacher.n_embd
    n_head = n // HEAD
    writer, add = _start(path, "dflash", teacher, n, n_head)
    writer.add_uint32("dflash.block_size", BLOCK)
    writer.add_array("dflash.target_layers", [1, teacher.n_layer // 2])
    writer.add_mask_token_id(MASK)

    rng = np.random.default_rng(6)

    def noise(*shape: int) -> Array:
        values: Array = (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)
        return values

    frequent = np.bincount(np.concatenate(teacher.tokens), minlength=teacher.n_vocab).argmax()
    embedding = unit(teacher.embedding)
    embedding[MASK] = unit(teacher.head[frequent] * teacher.norm)
    head = (teacher.head * teacher.norm).astype(np.float32)
    if markov:
        before = np.concatenate([unit(teacher.embedding[text[:-1]]) for text in teacher.tokens])
        after = np.concatenate([np.eye(teacher.n_vocab, dtype=np.float32)[text[1:]] for text in teacher.tokens])
        follows = np.linalg.lstsq(before, after, rcond=None)[0]
        add("markov_w1.weight", unit(teacher.embedding))
        add("markov_w2.weight", np.asarray(100 * follows.T, np.float32))
        head *= 0.01
        writer.add_bool("dflash.has_confidence_head", False)
    add("fc.weight", noise(n, 2 * n))
    add("enc.output_norm.weight", np.ones(n, np.float32))
    add("token_embd.weight", embedding)
    add("output.weight", head)
    add("output_norm.weight", np.ones(n, np.float32))
    add("blk.0.attn_norm.weight", np.ones(n, np.float32))
    for name in ("q", "k", "v"):
        add(f"blk.0.attn_{name}.weight", noise(n, n))
    for name in ("q", "k"):
        add(f"blk.0.attn_{name}_norm.weight", np.ones(HEAD, np.float32))
    add("blk.0.attn_output.weight", noise(n, n) * np.float32(0.1))
    _finish(writer, add, n)
    return path


def _start(path: Path, arch: str, teacher: Teacher, n_embd: int, n_head: int) -> tuple[gguf.GGUFWriter, Any]:
    writer = gguf.GGUFWriter(str(path), arch)
    writer.add_context_length(4096)
    writer.add_embedding_length(n_embd)
    writer.add_block_count(1)
    writer.add_feed_forward_length(N_FF)
    writer.add_head_count(n_head)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_rope_dimension_count(HEAD)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(copy_tokenizer(teacher.reader, writer))
    return writer, lambda name, values: writer.add_tensor(name, np.ascontiguousarray(values, np.float32))


def _finish(writer: gguf.GGUFWriter, add: Any, n_embd: int) -> None:
    add("blk.0.ffn_norm.weight", np.ones(n_embd, np.float32))
    for name in ("gate", "up"):
        add(f"blk.0.ffn_{name}.weight", np.zeros((N_FF, n_embd)))
    add("blk.0.ffn_down.weight", np.zeros((n_embd, N_FF)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
