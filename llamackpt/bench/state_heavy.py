"""Writes a GGUF with the recurrent state of a 27B model and the weights of a small one, for benchmarks.

64 layers, 48 of them Gated DeltaNet with 48 value heads of 128x128: 149.62 MiB of state a sequence, as Qwen3.6-27B has.
The weights are random, so its text means nothing; the tokenizer is the shipped model's, so that text can be fed in.
Needs the `gguf` package, which llamackpt itself does not.

    python -m llamackpt.bench.state_heavy OUT.gguf
"""

import argparse
import math
import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

CONV_KERNEL = 4


@dataclass(frozen=True)
class Shape:
    """The sizes of a qwen35. The default has the recurrent state of Qwen3.6-27B and few weights beside it."""

    n_layer: int = 64
    full_attention_interval: int = 4
    n_embd: int = 256
    n_ff: int = 256
    n_ctx: int = 262144
    n_head: int = 4
    n_head_kv: int = 1
    head_dim: int = 64
    state_dim: int = 128
    n_key_heads: int = 16
    n_value_heads: int = 48

    @property
    def value_dim(self) -> int:
        return self.n_value_heads * self.state_dim

    @property
    def conv_dim(self) -> int:
        return 2 * self.n_key_heads * self.state_dim + self.value_dim

    @property
    def state_bytes(self) -> int:
        """f32, a sequence: the last CONV_KERNEL - 1 inputs of the convolution, and one matrix a value head."""
        n_recurrent = self.n_layer - self.n_layer // self.full_attention_interval
        return 4 * ((CONV_KERNEL - 1) * self.conv_dim + self.n_value_heads * self.state_dim**2) * n_recurrent


STATE_HEAVY = Shape()

# one attention layer with one head: 100k tokens take about a minute, and only the number of cells matters
LONG_CONTEXT = Shape(
    n_layer=2, full_attention_interval=2, n_embd=64, n_ff=64, n_head=1, state_dim=32, n_key_heads=1, n_value_heads=2
)


def import_gguf() -> Any:
    """The `gguf` package; ImportError says what to install."""
    try:
        import gguf
    except ImportError as error:
        raise ImportError("writing the benchmark model needs the gguf package: pip install gguf") from error
    return gguf


def write_state_heavy(path: str | os.PathLike[str], seed: int = 0, shape: Shape = STATE_HEAVY) -> None:
    """Writes the model to `path` (q8_0 matrices, about 0.3 GB by default); the same seed gives the same file.

    Raises ImportError without the `gguf` package, OSError where `path` cannot be written.
    """
    gguf = import_gguf()
    writer = gguf.GGUFWriter(path, "qwen35")
    _add_metadata(writer, shape)
    with resources.as_file(resources.files("llamackpt") / "data" / "pystdlib-hybrid.gguf") as shipped:
        reader = gguf.GGUFReader(shipped)
        n_vocab = copy_tokenizer(reader, writer)

    # two passes, so that one tensor at a time is in memory: first names and sizes, then data in the same order
    shapes = _tensor_shapes(shape, n_vocab)
    types = {name: _tensor_type(gguf, name, dims) for name, dims in shapes.items()}
    for name, dims in shapes.items():
        quant_type = types[name]
        block, block_bytes = gguf.GGML_QUANT_SIZES[quant_type]
        n_bytes = math.prod(dims) // block * block_bytes
        raw_shape = (*dims[:-1], dims[-1] // block * block_bytes) if block > 1 else dims
        dtype = np.dtype("uint8" if block > 1 else "float32")
        writer.add_tensor_info(name, raw_shape, dtype, n_bytes, raw_dtype=quant_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.default_rng(seed)
    for name, dims in shapes.items():
        writer.write_tensor_data(gguf.quants.quantize(_tensor_value(rng, name, dims), types[name]))
    writer.close()


def _add_metadata(writer: Any, shape: Shape) -> None:
    writer.add_name("state-heavy")
    writer.add_context_length(shape.n_ctx)
    writer.add_embedding_length(shape.n_embd)
    writer.add_block_count(shape.n_layer)
    writer.add_feed_forward_length(shape.n_ff)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(32)
    writer.add_rope_dimension_sections([6, 5, 5, 0])
    writer.add_ssm_conv_kernel(CONV_KERNEL)
    writer.add_ssm_state_size(shape.state_dim)
    writer.add_ssm_group_count(shape.n_key_heads)
    writer.add_ssm_time_step_rank(shape.n_value_heads)
    writer.add_ssm_inner_size(shape.value_dim)
    writer.add_full_attention_interval(shape.full_attention_interval)


def copy_field(field: Any, writer: Any, value: Any = None) -> None:
    """Copies a field of the metadata, with another value if there is one."""
    sub_type = field.types[-1] if len(field.types) > 1 else None
    writer.add_key_value(field.name, field.contents() if value is None else value, field.types[0], sub_type=sub_type)


def copy_tokenizer(reader: Any, writer: Any) -> int:
    """Copies every tokenizer.* field; returns the number of tokens."""
    for field in reader.fields.values():
        if field.name.startswith("tokenizer."):
            copy_field(field, writer)
    return len(reader.fields["tokenizer.ggml.tokens"].data)


def _tensor_shapes(shape: Shape, n_vocab: int) -> dict[str, tuple[int, ...]]:
    """Rows first, as numpy has it; GGUF's own order is the reverse."""
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (n_vocab, shape.n_embd), "output_norm.weight": (shape.n_embd,)}
    for layer in range(shape.n_layer):
        recurrent = (layer + 1) % shape.full_attention_interval != 0
        mixer = _delta_net_shapes(shape) if recurrent else _attention_shapes(shape)
        for name, dims in (mixer | _shared_shapes(shape)).items():
            shapes[f"blk.{layer}.{name}"] = dims
    return shapes


def _shared_shapes(s: Shape) -> dict[str, tuple[int, ...]]:
    return {
        "attn_norm.weight": (s.n_embd,),
        "post_attention_norm.weight": (s.n_embd,),
        "ffn_gate.weight": (s.n_ff, s.n_embd),
        "ffn_up.weight": (s.n_ff, s.n_embd),
        "ffn_down.weight": (s.n_embd, s.n_ff),
    }


def _attention_shapes(s: Shape) -> dict[str, tuple[int, ...]]:
    return {
        "attn_q.weight": (2 * s.n_head * s.head_dim, s.n_embd),
        "attn_k.weight": (s.n_head_kv * s.head_dim, s.n_embd),
        "attn_v.weight": (s.n_head_kv * s.head_dim, s.n_embd),
        "attn_q_norm.weight": (s.head_dim,),
        "attn_k_norm.weight": (s.head_dim,),
        "attn_output.weight": (s.n_embd, s.n_head * s.head_dim),
    }


def _delta_net_shapes(s: Shape) -> dict[str, tuple[int, ...]]:
    return {
        "attn_qkv.weight": (s.conv_dim, s.n_embd),
        "attn_gate.weight": (s.value_dim, s.n_embd),
        "ssm_conv1d.weight": (s.conv_dim, CONV_KERNEL),
        "ssm_beta.weight": (s.n_value_heads, s.n_embd),
        "ssm_alpha.weight": (s.n_value_heads, s.n_embd),
        "ssm_a": (s.n_value_heads,),
        "ssm_dt.bias": (s.n_value_heads,),
        "ssm_norm.weight": (s.state_dim,),
        "ssm_out.weight": (s.n_embd, s.value_dim),
    }


def _tensor_type(gguf: Any, name: str, shape: tuple[int, ...]) -> Any:
    kept_f32 = len(shape) == 1 or "ssm_conv1d" in name or "ssm_beta" in name or "ssm_alpha" in name
    return gguf.GGMLQuantizationType.F32 if kept_f32 else gguf.GGMLQuantizationType.Q8_0


def _tensor_value(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    if "norm" in name:
        return np.ones(shape, dtype=np.float32)
    if name.endswith("ssm_a"):
        return -rng.uniform(0.1, 4.0, shape).astype(np.float32)
    if name.endswith("ssm_dt.bias"):
        return rng.uniform(-4.0, -1.0, shape).astype(np.float32)
    scale = 0.5 if "conv1d" in name else shape[-1] ** -0.5
    return np.asarray(rng.standard_normal(shape, dtype=np.float32) * np.float32(scale))


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the state-heavy benchmark model.")
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    write_state_heavy(args.out)
    print(f"{args.out}: {args.out.stat().st_size} bytes, {STATE_HEAVY.state_bytes / 2**20:.3f} MiB of state a sequence")


if __name__ == "__main__":
    main()
