"""The shipped model with its matrices as f32. q8_0 also rounds activations, by which whole tokens change with the shape of a
batch; in f32 that is far below what two tokens differ by."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

import llamackpt
from llamackpt.bench.state_heavy import copy_field


def write_f32(path: Path, n_tensors: int = 0) -> Path:
    """n_tensors: the most in one file, 0 writes all to `path`."""
    reader = gguf.GGUFReader(llamackpt.default_model())
    writer = gguf.GGUFWriter(str(path), "qwen35", split_max_tensors=n_tensors)
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name not in ("general.architecture", "general.file_type"):
            copy_field(field, writer)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(tensor.shape[::-1])
        writer.add_tensor(tensor.name, np.ascontiguousarray(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
