"""The same text from a model with the state of a large one, for benchmarks that need drafts to be accepted.

    python -m llamackpt.bench.widen IN.gguf OUT.gguf [--state-mib 150]

IN is a qwen35 whose Gated DeltaNet heads are narrow, as the shipped model. Needs the `gguf` package, as state_heavy does.

Every Gated DeltaNet layer gets the shape that Qwen3.6-27B has, 48 value heads and 16 key heads of 128, and layers are
added until the recurrent state of a sequence reaches the size asked for (64 layers: 149.62 MiB). What is added is
alive, with random weights and a state that changes with every token, but its output projections are zero, so that
nothing of it reaches the logits. They agree with the original's up to rounding, not bit for bit: sums have another
order, and q8_0 also rounds activations.

How narrow heads become 128-wide ones, r times as wide: query and key are padded with zeros, the value is repeated, so
that the mean square over a head stays; the output projection reads the first copy. The scale 1/sqrt(128) divides what
goes into the delta rule's norm by sqrt(r). For that norm's epsilon not to notice, epsilon is divided by r, and with it
everything else that is normalised by sqrt(r): the residual stream, and attention's queries and keys. With r a power
of 4 this is exact. Only the epsilon under Gated DeltaNet's own keys and queries differs, by less than f32 resolves.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .state_heavy import copy_field, import_gguf

STATE_DIM, N_KEY_HEADS, N_VALUE_HEADS = 128, 16, 48
EPSILON = "qwen35.attention.layer_norm_rms_epsilon"
Array = npt.NDArray[np.float32]
Tensors = dict[str, Array]


class Shape:
    """The widths that matter here, read from the metadata."""

    def __init__(self, reader: Any) -> None:
        def read(key: str) -> int:
            if f"qwen35.{key}" not in reader.fields:
                raise ValueError(f"not a qwen35 that can be widened: it has no qwen35.{key}")
            return int(reader.fields[f"qwen35.{key}"].contents())

        self.n_layer = read("block_count")
        self.interval = read("full_attention_interval")
        self.conv_kernel = read("ssm.conv_kernel")
        self.state_dim = read("ssm.state_size")
        self.n_key_heads = read("ssm.group_count")
        self.n_value_heads = read("ssm.time_step_rank")
        self.head_dim = read("attention.key_length")
        self.ratio = STATE_DIM // self.state_dim
        if self.ratio not in (1, 4, 16) or self.n_key_heads > N_KEY_HEADS or self.n_value_heads > N_VALUE_HEADS:
            raise ValueError("the model's Gated DeltaNet heads do not fit into the wide ones")

    def value_head(self, head: int) -> int:
        """Where a value head goes: it must still read its own key head, and head i reads key head i mod n_key_heads."""
        return head // self.n_key_heads * N_KEY_HEADS + head % self.n_key_heads


def group_state_bytes(shape: Shape) -> int:
    """Recurrent state, f32, of `interval` layers: all but one of them are recurrent."""
    conv = (shape.conv_kernel - 1) * (2 * N_KEY_HEADS + N_VALUE_HEADS) * STATE_DIM
    return (shape.interval - 1) * 4 * (conv + N_VALUE_HEADS * STATE_DIM**2)


def rescale(tensors: Tensors, s: Shape) -> Tensors:
    """Divides the residual stream, and the queries and keys of attention, by sqrt(ratio); see above."""
    factor = np.float32(s.ratio**-0.5)
    scaled = dict(tensors)
    for name in ("token_embd.weight", "ssm_out.weight", "attn_output.weight", "ffn_down.weight", "attn_k.weight"):
        if name in tensors:
            scaled[name] = tensors[name] * factor
    if "output_norm.weight" in tensors:  # the output embedding is the divided input embedding
        scaled["output_norm.weight"] = tensors["output_norm.weight"] / factor
    if "attn_q.weight" in tensors:
        heads = tensors["attn_q.weight"].reshape(-1, 2, s.head_dim, tensors["attn_q.weight"].shape[1])
        scaled["attn_q.weight"] = (heads * np.array([factor, 1], np.float32)[:, None, None]).reshape(
            tensors["attn_q.weight"].shape
        )
    return scaled


def widen_delta_net(layer: Tensors, s: Shape, rng: np.random.Generator) -> Tensors:
    """Tensors of one Gated DeltaNet layer, f32, by their name without the layer."""
    wide = dict(layer)
    narrow_keys = s.n_key_heads * s.state_dim
    for name in ("attn_qkv.weight", "ssm_conv1d.weight"):
        q, k, v = np.split(layer[name], [narrow_keys, 2 * narrow_keys])
        noise = 0.5 if "conv1d" in name else layer[name].shape[1] ** -0.5
        wide[name] = np.concatenate(
            [_place_keys(q, s, rng, noise), _place_keys(k, s, rng, noise), _place_values(v, s, rng, noise)]
        )
    wide["attn_gate.weight"] = _place_values(layer["attn_gate.weight"], s, rng, 0.0)
    wide["ssm_norm.weight"] = np.tile(layer["ssm_norm.weight"], s.ratio)
    for name, default in (("ssm_alpha.weight", 0.0), ("ssm_beta.weight", 0.0), ("ssm_a", -0.1), ("ssm_dt.bias", -1.0)):
        wide[name] = np.full((N_VALUE_HEADS, *layer[name].shape[1:]), default, np.float32)
        for head in range(s.n_value_heads):
            wide[name][s.value_head(head)] = layer[name][head]
    out = layer["ssm_out.weight"]
    wide["ssm_out.weight"] = np.zeros((len(out), N_VALUE_HEADS * STATE_DIM), np.float32)
    for head in range(s.n_value_heads):
        at = s.value_head(head) * STATE_DIM
        wide["ssm_out.weight"][:, at : at + s.state_dim] = out[:, head * s.state_dim : (head + 1) * s.state_dim]
    return wide


def _place_keys(rows: Array, s: Shape, rng: np.random.Generator, noise: float) -> Array:
    wide: Array = rng.standard_normal((N_KEY_HEADS, STATE_DIM, rows.shape[1]), np.float32) * np.float32(noise)
    wide[: s.n_key_heads] = 0
    wide[: s.n_key_heads, : s.state_dim] = rows.reshape(s.n_key_heads, s.state_dim, -1)
    return wide.reshape(-1, rows.shape[1])


def _place_values(rows: Array, s: Shape, rng: np.random.Generator, noise: float) -> Array:
    wide: Array = rng.standard_normal((N_VALUE_HEADS, STATE_DIM, rows.shape[1]), np.float32) * np.float32(noise)
    for head, block in enumerate(rows.reshape(s.n_value_heads, s.state_dim, -1)):
        wide[s.value_head(head)] = np.tile(block, (s.ratio, 1))
    return wide.reshape(-1, rows.shape[1])


def silent_copy(layer: Tensors) -> Tensors:
    """The same layer, adding nothing to the residual stream."""
    silent = dict(layer)
    for name in ("ssm_out.weight", "attn_output.weight", "ffn_down.weight"):
        if name in silent:
            silent[name] = np.zeros_like(silent[name])
    return silent


def copy_metadata(reader: Any, writer: Any, n_layer: int, ratio: int) -> None:
    replaced = {
        EPSILON: reader.fields[EPSILON].contents() / ratio,
        "general.name": "widened",
        "qwen35.block_count": n_layer,
        "qwen35.ssm.state_size": STATE_DIM,
        "qwen35.ssm.group_count": N_KEY_HEADS,
        "qwen35.ssm.time_step_rank": N_VALUE_HEADS,
        "qwen35.ssm.inner_size": N_VALUE_HEADS * STATE_DIM,
    }
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        copy_field(field, writer, replaced.get(field.name))


def widen(
    source: str | os.PathLike[str], target: str | os.PathLike[str], state_mib: float = 150.0, seed: int = 0
) -> float:
    """Writes the wide model of `source` to `target`; returns the MiB of recurrent state of a sequence of it.

    Raises ImportError without `gguf`, ValueError for a model that does not fit, OSError.
    """
    gguf = import_gguf()
    reader = gguf.GGUFReader(source)
    shape = Shape(reader)
    groups = round(state_mib * 2**20 / group_state_bytes(shape))
    n_layer = max(shape.n_layer, groups * shape.interval)
    writer = gguf.GGUFWriter(target, "qwen35", use_temp_file=True)
    copy_metadata(reader, writer, n_layer, shape.ratio)

    layers: list[Tensors] = [{} for _ in range(shape.n_layer)]
    outside: Tensors = {}
    types: dict[str, Any] = {}
    for tensor in reader.tensors:
        value = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(tensor.shape[::-1])
        where, name = outside, tensor.name
        if tensor.name.startswith("blk."):
            _, index, name = tensor.name.split(".", 2)
            where = layers[int(index)]
        where[name] = value
        types[name] = tensor.tensor_type

    def add(prefix: str, tensors: Tensors) -> None:
        for name, value in tensors.items():
            data = gguf.quants.quantize(np.ascontiguousarray(value, np.float32), types[name])
            writer.add_tensor(prefix + name, data, raw_dtype=types[name])

    add("", rescale(outside, shape))
    rng = np.random.default_rng(seed)
    for index in range(n_layer):
        layer = layers[index] if index < shape.n_layer else silent_copy(layers[index % shape.interval])
        layer = rescale(layer, shape)
        if "ssm_a" in layer:
            layer = widen_delta_net(layer, shape, rng)
        add(f"blk.{index}.", layer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return n_layer // shape.interval * group_state_bytes(shape) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description="Widen the recurrent state of a model.")
    parser.add_argument("source", type=Path, metavar="IN.gguf")
    parser.add_argument("target", type=Path, metavar="OUT.gguf")
    parser.add_argument("--state-mib", type=float, default=150.0)
    args = parser.parse_args()
    mib = widen(args.source, args.target, args.state_mib)
    print(f"{args.target}: {args.target.stat().st_size} bytes, {mib:.3f} MiB of state a sequence")


if __name__ == "__main__":
    main()
