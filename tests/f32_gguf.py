"""The shipped model with its matrices as f32. q8_0 also rounds activations, by which whole tokens change with the shape of a
batch; in f32 that is far below what two tokens differ by."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

import llamackpt


def write_f32(path: Path) -> Path:
    reader = gguf.GGUFReader(llamackpt.default_model())
    writer = gguf.GGUFWriter(str(path), "qwen35")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name not in ("general.architecture", "general.file_type"):
            sub_type = field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=sub_type)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(tensor.shape[::-1])
        writer.add_tensor(tensor.name, np.ascontiguousarray(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
