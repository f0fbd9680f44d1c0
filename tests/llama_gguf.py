"""A tiny random transformer of the llama architecture with the shipped model's tokenizer: a server can chat with it."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

import llamackpt
from llamackpt.bench.state_heavy import copy_tokenizer

N_EMBD, N_FF, N_LAYER, N_HEAD, N_CTX = 64, 128, 2, 4, 4096


def write_llama(path: Path, seed: int = 3) -> Path:
    """Writes it to `path`; the same seed gives the same file."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(N_CTX)
    writer.add_embedding_length(N_EMBD)
    writer.add_block_count(N_LAYER)
    writer.add_feed_forward_length(N_FF)
    writer.add_head_count(N_HEAD)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(N_EMBD // N_HEAD)
    n_vocab = copy_tokenizer(gguf.GGUFReader(llamackpt.default_model()), writer)
    writer.add_vocab_size(n_vocab)
    rng = np.random.default_rng(seed)

    def add(name: str, *shape: int) -> None:
        values = np.ones(shape) if "norm" in name else rng.standard_normal(shape) * shape[-1] ** -0.5
        writer.add_tensor(name, values.astype(np.float32))

    add("token_embd.weight", n_vocab, N_EMBD)
    add("output_norm.weight", N_EMBD)
    add("output.weight", n_vocab, N_EMBD)
    for layer in range(N_LAYER):
        for name in ("attn_norm", "ffn_norm"):
            add(f"blk.{layer}.{name}.weight", N_EMBD)
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{layer}.{name}.weight", N_EMBD, N_EMBD)
        add(f"blk.{layer}.ffn_gate.weight", N_FF, N_EMBD)
        add(f"blk.{layer}.ffn_up.weight", N_FF, N_EMBD)
        add(f"blk.{layer}.ffn_down.weight", N_EMBD, N_FF)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
