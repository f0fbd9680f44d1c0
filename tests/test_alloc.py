"""Every allocation of reserve, save, restore and get_data fails once: see alloc_failures.cpp, which this compiles and runs.

What it finds has to be in KNOWN, with a reason. The list is to become empty, except for ggml's own.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, generator
from rwkv_gguf import write_rwkv7

SOURCE = Path(__file__).with_name("alloc_failures.cpp")
LLAMA = ROOT / "vendor" / "llama.cpp"

# what happens, a function on the way to the allocation, and why
KNOWN = (
    ("aborts", "ggml_init", "ggml aborts where it cannot have the few bytes of a ggml_context"),
    ("crashes", "ggml_backend_alloc_ctx_tensors_from_buft", "ggml does not look at what realloc() returns"),
    ("loses memory", "ggml_backend_buffer_init", "ggml loses the memory of a buffer whose description has no room"),
    ("returns status -2", "llama_memory_checkpoints::host_save", "upstream's state functions do not tell why they fail"),
    ("fails and changes", "llama_context::state_seq_read_data", "the sequence was removed, and is not put back as it was"),
)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if sys.platform != "linux" or os.confstr("CS_GNU_LIBC_VERSION") is None:
        pytest.skip("the allocator that is replaced is glibc's")
    libraries = generator().parent
    binary = tmp_path_factory.mktemp("alloc") / "alloc_failures"
    subprocess.run(
        [
            *shlex.split(os.environ.get("CXX", "c++")), "-std=c++17", "-O1", "-rdynamic", "-Wall", "-Wextra", "-Werror",
            f"-I{LLAMA / 'include'}", f"-I{LLAMA / 'ggml' / 'include'}", str(SOURCE), "-o", str(binary),
            f"-L{libraries}", "-lllama", "-lggml", "-lggml-base", f"-Wl,-rpath,{libraries}", "-pthread", "-ldl",
        ],
        check=True,
    )  # fmt: skip
    return binary


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("qwen35-dense", []), ("rwkv7", []), ("llama-dense", []), ("gemma3-dense", []),
        ("qwen35-dense", ["streams"]), ("gemma3-dense", ["unreserved"]),
    ],
)  # fmt: skip
def test_a_call_without_memory_says_so_and_changes_nothing(
    program: Path, archs: Path, name: str, options: list[str]
) -> None:
    path = archs / f"{name}.gguf"
    if name == "rwkv7":
        write_rwkv7(path)
    done = subprocess.run([str(program), str(path), *options], capture_output=True, text=True, timeout=600, check=False)
    lines = done.stdout.splitlines()
    wrong = [line.removeprefix("WRONG: ") for line in lines if line.startswith("WRONG: ")]
    unknown = [line for line in wrong if not any(f": {what}" in line and where in line for what, where, _ in KNOWN)]
    assert unknown == []
    assert sum("refused" in line for line in lines) == 16, done.stderr  # it got to its end
