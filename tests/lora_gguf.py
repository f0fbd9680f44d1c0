"""A LoRA adapter for the shipped model, with random matrices: large enough that it writes another text."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

import llamackpt

RANK = 4


def write_lora(path: Path, seed: int = 1) -> Path:
    """Writes it to `path`; the same seed gives the same file."""
    writer = gguf.GGUFWriter(str(path), "qwen35")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", RANK)
    rng = np.random.default_rng(seed)
    for tensor in gguf.GGUFReader(llamackpt.default_model()).tensors:
        if tensor.name.endswith(("ffn_down.weight", "ffn_gate.weight")):
            n_in, n_out = (int(n) for n in tensor.shape)
            for name, shape in (("lora_a", (RANK, n_in)), ("lora_b", (n_out, RANK))):
                values = rng.standard_normal(shape) * n_in**-0.5
                writer.add_tensor(f"{tensor.name}.{name}", values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
