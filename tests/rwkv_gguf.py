"""Tiny random RWKV 6 and 7 models: upstream's generator of test models does not write these.

Shapes are those of llama.cpp's loaders (src/models/rwkv6.cpp, rwkv7.cpp), in ggml's order, fastest dimension first.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

# heads of 64 as in the real ones: llama.cpp's CPU kernel of RWKV 7 reads past the end of smaller heads
N_EMBD, N_FF, N_LAYER, N_VOCAB, HEAD, RANK = 128, 128, 2, 256, 64, 16


def write_rwkv6(path: Path) -> Path:
    """A random RWKV 6 at `path`."""
    writer = _start(path, "rwkv6")
    writer.add_uint32("rwkv6.time_mix_extra_dim", RANK)
    writer.add_uint32("rwkv6.time_decay_extra_dim", RANK)
    writer.add_uint32("rwkv6.rescale_every_n_layers", 6)
    shapes: dict[str, tuple[int, ...]] = {
        "time_mix_w1": (N_EMBD, RANK * 5),
        "time_mix_w2": (RANK, N_EMBD, 5),
        "time_mix_lerp_x": (N_EMBD, 1, 1),
        "time_mix_lerp_fused": (N_EMBD, 1, 1, 5),
        "time_mix_first": (HEAD, N_EMBD // HEAD),
        "time_mix_decay": (N_EMBD,),
        "time_mix_decay_w1": (N_EMBD, RANK),
        "time_mix_decay_w2": (RANK, N_EMBD),
        "time_mix_gate": (N_EMBD, N_EMBD),
        "channel_mix_lerp_r": (N_EMBD, 1, 1),
        "channel_mix_receptance": (N_EMBD, N_EMBD),
    }
    return _finish(writer, path, dict.fromkeys(range(N_LAYER), shapes))


def write_rwkv7(path: Path) -> Path:
    """A random RWKV 7 at `path`."""
    writer = _start(path, "rwkv7")
    for key in ("decay_lora_rank", "iclr_lora_rank", "value_residual_mix_lora_rank", "gate_lora_rank"):
        writer.add_uint32(f"rwkv7.attention.{key}", RANK)
    shapes: dict[str, tuple[int, ...]] = {"time_mix_lerp_fused": (N_EMBD, 1, 1, 6)}
    for name in "wav":
        shapes[f"time_mix_{name}0"] = (N_EMBD,)
    for name in "wavg":
        shapes[f"time_mix_{name}1"] = (N_EMBD, RANK)
        shapes[f"time_mix_{name}2"] = (RANK, N_EMBD)
    for name in ("k_k", "k_a", "r_k"):
        shapes[f"time_mix_{name}"] = (N_EMBD,)
    return _finish(writer, path, dict.fromkeys(range(N_LAYER), shapes))


def _start(path: Path, arch: str) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(str(path), arch)
    writer.add_context_length(1024)
    writer.add_embedding_length(N_EMBD)
    writer.add_block_count(N_LAYER)
    writer.add_feed_forward_length(N_FF)
    writer.add_head_count(0)
    writer.add_layer_norm_eps(1e-5)
    writer.add_wkv_head_size(HEAD)
    writer.add_token_shift_count(2)
    writer.add_vocab_size(N_VOCAB)
    writer.add_tokenizer_model("no_vocab")
    return writer


def _finish(writer: gguf.GGUFWriter, path: Path, layers: dict[int, dict[str, tuple[int, ...]]]) -> Path:
    rng = np.random.default_rng(7)

    def add(name: str, shape: tuple[int, ...]) -> None:
        scale = 0.5 / np.sqrt(shape[0]) if len(shape) == 2 else 0.2
        values = rng.standard_normal(shape[::-1]) * scale
        if name.endswith(("norm.weight", "norm_2.weight")) or "_ln.weight" in name:
            values += 1
        if "lerp" in name:
            values = rng.random(shape[::-1])
        writer.add_tensor(name, values.astype(np.float32))

    add("token_embd.weight", (N_EMBD, N_VOCAB))
    add("output.weight", (N_EMBD, N_VOCAB))
    for name in ("token_embd_norm", "output_norm"):
        add(f"{name}.weight", (N_EMBD,))
        add(f"{name}.bias", (N_EMBD,))
    common: dict[str, tuple[int, ...]] = {
        "time_mix_key": (N_EMBD, N_EMBD),
        "time_mix_value": (N_EMBD, N_EMBD),
        "time_mix_receptance": (N_EMBD, N_EMBD),
        "time_mix_output": (N_EMBD, N_EMBD),
        "channel_mix_lerp_k": (N_EMBD, 1, 1),
        "channel_mix_key": (N_EMBD, N_FF),
        "channel_mix_value": (N_FF, N_EMBD),
    }
    for i, shapes in layers.items():
        for name in ("attn_norm", "attn_norm_2", "time_mix_ln"):
            add(f"blk.{i}.{name}.weight", (N_EMBD,))
            add(f"blk.{i}.{name}.bias", (N_EMBD,))
        for name, shape in {**common, **shapes}.items():
            add(f"blk.{i}.{name}.weight", shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
