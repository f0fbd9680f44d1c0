"""python export.py RUN_DIR CHECKPOINT OUT.gguf [--type q8_0|f16|f32]: writes the model and its tokenizer as GGUF.

Only matrices take the given type; norms, the convolution and the decay parameters stay f32, as llama.cpp wants them.
"""

import argparse
import json
from pathlib import Path

import gguf
import numpy as np
import torch
from bpe import END_OF_TEXT, PRE_NAME, load_tokenizer
from model import Config

QUANT_TYPES = {t.name.lower(): t for t in (gguf.GGMLQuantizationType[n] for n in ("F32", "F16", "Q8_0"))}
FILE_TYPES = {t.split("_", 1)[1].lower(): gguf.LlamaFileType[t] for t in ("ALL_F32", "MOSTLY_F16", "MOSTLY_Q8_0")}
KEPT_F32 = ("norm", "ssm_conv1d", "ssm_a", "ssm_dt", "ssm_beta", "ssm_alpha")

# the model has no notion of a dialogue; this only lets chat endpoints work
CHAT_TEMPLATE = (
    "{% for message in messages %}# {{ message['role'] }}\n{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}# assistant\n{% endif %}"
)


def add_metadata(writer: gguf.GGUFWriter, c: Config, name: str) -> None:
    writer.add_name(name)
    writer.add_license("PSF-2.0")
    writer.add_context_length(c.n_ctx)
    writer.add_embedding_length(c.n_embd)
    writer.add_block_count(c.n_layer)
    writer.add_feed_forward_length(c.n_ff)
    writer.add_vocab_size(c.n_vocab)
    writer.add_layer_norm_rms_eps(c.eps)
    writer.add_head_count(c.n_head)
    writer.add_head_count_kv(c.n_head_kv)
    writer.add_key_length(c.head_dim)
    writer.add_value_length(c.head_dim)
    writer.add_rope_freq_base(c.rope_base)
    writer.add_rope_dimension_count(c.n_rot)
    writer.add_rope_dimension_sections(rope_sections(c.n_rot))
    writer.add_ssm_conv_kernel(c.conv_kernel)
    writer.add_ssm_state_size(c.state_dim)
    writer.add_ssm_group_count(c.n_k_heads)
    writer.add_ssm_time_step_rank(c.n_v_heads)
    writer.add_ssm_inner_size(c.value_dim)
    writer.add_full_attention_interval(c.full_attention_interval)


def rope_sections(n_rot: int) -> list[int]:
    """Interleaved M-RoPE: every pair belongs to one of three position components, which are equal for text.

    A pair of the fourth section would turn by position 0, that is never: it must be empty.
    """
    pairs = n_rot // 2
    return [(pairs + 2) // 3, (pairs + 1) // 3, pairs // 3, 0]


def add_tokenizer(writer: gguf.GGUFWriter, path: Path) -> None:
    tokenizer = load_tokenizer(path)
    end = tokenizer.token_to_id(END_OF_TEXT)
    n_vocab = tokenizer.get_vocab_size()
    types = [gguf.TokenType.NORMAL] * n_vocab
    types[end] = gguf.TokenType.CONTROL
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE_NAME)
    writer.add_token_list([tokenizer.id_to_token(i) for i in range(n_vocab)])
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(end)
    writer.add_eos_token_id(end)
    writer.add_eot_token_id(end)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def gguf_tensors(state: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Parameter names and values as llama.cpp expects them."""
    tensors = {}
    for name, value in state.items():
        name = name.replace("mixer.", "")
        if name.endswith("a_log"):
            name, value = name.replace("a_log", "ssm_a"), -value.exp()
        elif name.endswith("ssm_dt"):
            name += ".bias"
        elif name.endswith("ssm_conv1d"):
            name += ".weight"
        tensors[name] = value.float().numpy()
    return tensors


def write_model(path: Path, c: Config, state: dict[str, torch.Tensor], tokenizer: Path, type_name: str) -> None:
    writer = gguf.GGUFWriter(path, "qwen35")
    add_metadata(writer, c, "pystdlib-hybrid")
    writer.add_size_label(f"{sum(value.numel() for value in state.values()) / 1e6:.1f}M")
    writer.add_file_type(FILE_TYPES[type_name])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_tokenizer(writer, tokenizer)
    for name, value in gguf_tensors(state).items():
        kept = value.ndim < 2 or any(part in name for part in KEPT_F32)
        qtype = gguf.GGMLQuantizationType.F32 if kept else QUANT_TYPES[type_name]
        writer.add_tensor(name, gguf.quants.quantize(value, qtype), raw_dtype=qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--type", choices=QUANT_TYPES, default="q8_0")
    args = parser.parse_args()
    saved = torch.load(args.checkpoint, weights_only=True)
    write_model(args.out, Config(**saved["config"]), saved["model"], args.run_dir / "tokenizer.json", args.type)
    n_params = sum(value.numel() for value in saved["model"].values())
    print(f"{args.out.name}: {n_params} parameters, {args.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
