"""Writes a GGUF with the recurrent state of a 27B model and the weights of a small one, for benchmarks.

64 layers, 48 of them Gated DeltaNet with 48 value heads of 128x128: 149.62 MiB of state a sequence, as Qwen3.6-27B has.
The weights are random, so its text means nothing; the tokenizer is the shipped model's, so that text can be fed in.
Needs the `gguf` package, which llamackpt itself does not.

    python -m llamackpt.bench.state_heavy OUT.gguf
"""

import argparse
import math
import os
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

N_LAYER, FULL_ATTENTION_INTERVAL = 64, 4
N_EMBD, N_FF, N_CTX = 256, 256, 262144
N_HEAD, N_HEAD_KV, HEAD_DIM = 4, 1, 64
STATE_DIM, N_KEY_HEADS, N_VALUE_HEADS, CONV_KERNEL = 128, 16, 48, 4
KEY_DIM, VALUE_DIM = N_KEY_HEADS * STATE_DIM, N_VALUE_HEADS * STATE_DIM
CONV_DIM = 2 * KEY_DIM + VALUE_DIM

# f32, per sequence: the last CONV_KERNEL - 1 inputs of the convolution, and one matrix a value head
STATE_BYTES = (
    4 * ((CONV_KERNEL - 1) * CONV_DIM + N_VALUE_HEADS * STATE_DIM**2) * (N_LAYER - N_LAYER // FULL_ATTENTION_INTERVAL)
)


def import_gguf() -> Any:
    """The `gguf` package; ImportError says what to install."""
    try:
        import gguf
    except ImportError as error:
        raise ImportError("writing the benchmark model needs the gguf package: pip install gguf") from error
    return gguf


def write_state_heavy(path: str | os.PathLike[str], seed: int = 0) -> None:
    """Writes the model to `path` (about 0.3 GB, q8_0 matrices); the same seed gives the same file.

    Raises ImportError without the `gguf` package, OSError where `path` cannot be written.
    """
    gguf = import_gguf()
    writer = gguf.GGUFWriter(path, "qwen35")
    _add_metadata(writer)
    with resources.as_file(resources.files("llamackpt") / "data" / "pystdlib-hybrid.gguf") as shipped:
        reader = gguf.GGUFReader(shipped)
        n_vocab = copy_tokenizer(reader, writer)

    # two passes, so that one tensor at a time is in memory: first names and sizes, then data in the same order
    shapes = _tensor_shapes(n_vocab)
    types = {name: _tensor_type(gguf, name, shape) for name, shape in shapes.items()}
    for name, shape in shapes.items():
        quant_type = types[name]
        block, block_bytes = gguf.GGML_QUANT_SIZES[quant_type]
        n_bytes = math.prod(shape) // block * block_bytes
        raw_shape = (*shape[:-1], shape[-1] // block * block_bytes) if block > 1 else shape
        dtype = np.dtype("uint8" if block > 1 else "float32")
        writer.add_tensor_info(name, raw_shape, dtype, n_bytes, raw_dtype=quant_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.default_rng(seed)
    for name, shape in shapes.items():
        writer.write_tensor_data(gguf.quants.quantize(_tensor_value(rng, name, shape), types[name]))
    writer.close()


def _add_metadata(writer: Any) -> None:
    writer.add_name("state-heavy")
    writer.add_context_length(N_CTX)
    writer.add_embedding_length(N_EMBD)
    writer.add_block_count(N_LAYER)
    writer.add_feed_forward_length(N_FF)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_head_count(N_HEAD)
    writer.add_head_count_kv(N_HEAD_KV)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(32)
    writer.add_rope_dimension_sections([6, 5, 5, 0])
    writer.add_ssm_conv_kernel(CONV_KERNEL)
    writer.add_ssm_state_size(STATE_DIM)
    writer.add_ssm_group_count(N_KEY_HEADS)
    writer.add_ssm_time_step_rank(N_VALUE_HEADS)
    writer.add_ssm_inner_size(VALUE_DIM)
    writer.add_full_attention_interval(FULL_ATTENTION_INTERVAL)


def copy_tokenizer(reader: Any, writer: Any) -> int:
    """Copies every tokenizer.* field; returns the number of tokens."""
    for field in reader.fields.values():
        if field.name.startswith("tokenizer."):
            sub_type = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=sub_type)
    return len(reader.fields["tokenizer.ggml.tokens"].data)


def _tensor_shapes(n_vocab: int) -> dict[str, tuple[int, ...]]:
    """Rows first, as numpy has it; GGUF's own order is the reverse."""
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (n_vocab, N_EMBD), "output_norm.weight": (N_EMBD,)}
    for layer in range(N_LAYER):
        recurrent = (layer + 1) % FULL_ATTENTION_INTERVAL != 0
        mixer = _delta_net_shapes() if recurrent else _attention_shapes()
        for name, shape in (mixer | _shared_shapes()).items():
            shapes[f"blk.{layer}.{name}"] = shape
    return shapes


def _shared_shapes() -> dict[str, tuple[int, ...]]:
    return {
        "attn_norm.weight": (N_EMBD,),
        "post_attention_norm.weight": (N_EMBD,),
        "ffn_gate.weight": (N_FF, N_EMBD),
        "ffn_up.weight": (N_FF, N_EMBD),
        "ffn_down.weight": (N_EMBD, N_FF),
    }


def _attention_shapes() -> dict[str, tuple[int, ...]]:
    return {
        "attn_q.weight": (2 * N_HEAD * HEAD_DIM, N_EMBD),
        "attn_k.weight": (N_HEAD_KV * HEAD_DIM, N_EMBD),
        "attn_v.weight": (N_HEAD_KV * HEAD_DIM, N_EMBD),
        "attn_q_norm.weight": (HEAD_DIM,),
        "attn_k_norm.weight": (HEAD_DIM,),
        "attn_output.weight": (N_EMBD, N_HEAD * HEAD_DIM),
    }


def _delta_net_shapes() -> dict[str, tuple[int, ...]]:
    return {
        "attn_qkv.weight": (CONV_DIM, N_EMBD),
        "attn_gate.weight": (VALUE_DIM, N_EMBD),
        "ssm_conv1d.weight": (CONV_DIM, CONV_KERNEL),
        "ssm_beta.weight": (N_VALUE_HEADS, N_EMBD),
        "ssm_alpha.weight": (N_VALUE_HEADS, N_EMBD),
        "ssm_a": (N_VALUE_HEADS,),
        "ssm_dt.bias": (N_VALUE_HEADS,),
        "ssm_norm.weight": (STATE_DIM,),
        "ssm_out.weight": (N_EMBD, VALUE_DIM),
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
    print(f"{args.out}: {args.out.stat().st_size} bytes, {STATE_BYTES / 2**20:.3f} MiB of state a sequence")


if __name__ == "__main__":
    main()
