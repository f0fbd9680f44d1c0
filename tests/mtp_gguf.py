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
from hidden_states import continue_greedily, fit, hidden_states

from llamackpt.bench.state_heavy import copy_field

ATTENTION = 0.1


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
