"""The CUDA kernel that the series changes, compiled for the CPU: its source, and the part of ggml-cuda that calls it."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

from conftest import ROOT, generator

HERE = Path(__file__).with_name("cuda_on_cpu")
GGML = ROOT / "vendor" / "llama.cpp" / "ggml"
CUDA = GGML / "src" / "ggml-cuda"


def function(source: str, start: str) -> str:
    """The text of a function, from its first words to the brace that ends it."""
    begin = source.index(start)
    return source[begin : source.index("\n}\n", begin) + 3]


def test_the_kernel_of_gated_delta_net_stores_the_states_where_the_graph_says(tmp_path: Path) -> None:
    text = (CUDA / "ggml-cuda.cu").read_text()
    names = ["bool ggml_cuda_is_view_or_noop", "int ggml_cuda_try_gdn_cache_fusion"]
    (tmp_path / "fusion.h").write_text("\n".join(function(text, f"static {name}(") for name in names))
    (tmp_path / "ggml-cuda").mkdir()
    for directory in (tmp_path, tmp_path / "ggml-cuda"):  # instead of ggml's own
        shutil.copy(HERE / "common.cuh", directory)
    shutil.copy(CUDA / "gated_delta_net.cuh", tmp_path)
    shutil.copy(CUDA / "gated_delta_net.cu", tmp_path / "gated_delta_net.cpp")

    lib = generator().parent
    compiler = [*shlex.split(os.environ.get("CXX", "c++")), "-std=c++20", "-O1", "-pthread"]
    include = [f"-I{path}" for path in (tmp_path, GGML / "include", GGML / "src")]
    libraries = [f"-L{lib}", "-lggml-cpu", "-lggml-base", f"-Wl,-rpath,{lib}"]
    sources = [HERE / "gdn_cache.cpp", tmp_path / "gated_delta_net.cpp"]
    subprocess.run([*compiler, *include, *sources, *libraries, "-o", tmp_path / "gdn_cache"], check=True)

    done = subprocess.run([tmp_path / "gdn_cache"], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok\n") == 10
