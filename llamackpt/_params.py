"""The options of a model and of a context, checked, as llama.cpp wants them."""

from __future__ import annotations

import os
import threading
from typing import Any, Literal, TypedDict

import numpy as np

from ._ffi import lib

__all__ = [
    "SPLIT_MODES",
    "ContextOptions",
    "check_flag",
    "check_range",
    "check_timeout",
    "check_type",
    "choice",
    "context_params",
    "is_bytes",
]

_MAX_SEQ = 256
_CACHE_TYPES = {
    "f32": lib.GGML_TYPE_F32,
    "f16": lib.GGML_TYPE_F16,
    "bf16": lib.GGML_TYPE_BF16,
    "q8_0": lib.GGML_TYPE_Q8_0,
    "q4_0": lib.GGML_TYPE_Q4_0,
}
SPLIT_MODES = {
    "none": lib.LLAMA_SPLIT_MODE_NONE,
    "layer": lib.LLAMA_SPLIT_MODE_LAYER,
    "row": lib.LLAMA_SPLIT_MODE_ROW,
    "tensor": lib.LLAMA_SPLIT_MODE_TENSOR,
}
_FLASH = {
    "auto": lib.LLAMA_FLASH_ATTN_TYPE_AUTO,
    False: lib.LLAMA_FLASH_ATTN_TYPE_DISABLED,
    True: lib.LLAMA_FLASH_ATTN_TYPE_ENABLED,
}


class ContextOptions(TypedDict, total=False):
    """The keyword arguments of Context, which says what they mean; for the type checker."""

    n_ctx: int
    n_batch: int
    n_ubatch: int
    n_seq_max: int
    checkpoints: int
    n_threads: int | None
    kv_unified: bool
    flash_attn: bool | Literal["auto"]
    type_k: str
    type_v: str
    n_rs_seq: int
    offload_kqv: bool
    swa_full: bool


def context_params(
    arch: str,
    *,
    n_ctx: int,
    n_batch: int,
    n_ubatch: int,
    n_seq_max: int,
    n_threads: int | None,
    kv_unified: bool,
    flash_attn: bool | Literal["auto"],
    type_k: str,
    type_v: str,
    n_rs_seq: int,
    offload_kqv: bool,
    swa_full: bool,
) -> Any:
    """A struct llama_context_params; the options are those of Context. arch: the model's. Raises ValueError, TypeError."""
    check_range("n_ctx", n_ctx, 0, 2**31 - 1)
    check_range("n_batch", n_batch, 1, 2**31 - 1)
    check_range("n_ubatch", n_ubatch, 1, 2**31 - 1)
    check_range("n_seq_max", n_seq_max, 1, _MAX_SEQ)
    if n_batch < n_seq_max:  # llama.cpp aborts
        raise ValueError(f"n_batch is n_seq_max={n_seq_max} or more, not {n_batch}")
    if 0 < n_ctx < n_seq_max:  # llama.cpp speaks of its outputs
        raise ValueError(f"n_ctx is n_seq_max={n_seq_max} or more, not {n_ctx}")
    check_range("n_rs_seq", n_rs_seq, 0, 2**16)
    # llama.cpp's own default is four, however many there are: more threads than processors spin against each other
    n_threads = _n_processors() if n_threads is None else n_threads
    check_range("n_threads", n_threads, 1, 512)
    for name, value in (("kv_unified", kv_unified), ("offload_kqv", offload_kqv), ("swa_full", swa_full)):
        check_flag(name, value)

    params = lib.llama_context_default_params()
    n_ubatch = min(n_ubatch, n_batch)
    if arch == "kimi-linear" and not kv_unified:  # llama.cpp aborts on another size
        n_ubatch = max(n_ubatch // n_seq_max, 1) * n_seq_max
    params.n_ctx, params.n_batch, params.n_ubatch = n_ctx, n_batch, n_ubatch
    params.n_seq_max, params.n_rs_seq = n_seq_max, n_rs_seq
    params.n_threads = params.n_threads_batch = n_threads
    params.kv_unified, params.offload_kqv, params.swa_full = kv_unified, offload_kqv, swa_full
    params.flash_attn_type = choice("flash_attn", flash_attn, _FLASH)
    params.type_k = choice("type_k", type_k, _CACHE_TYPES)
    params.type_v = choice("type_v", type_v, _CACHE_TYPES)
    params.no_perf = False
    return params


def _n_processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_range(name: str, value: int, low: int, high: int) -> None:
    if not hasattr(value, "__index__"):
        raise TypeError(f"{name} is an integer, not {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name} is {low} to {high}, not {value}")


def check_flag(name: str, value: object) -> None:
    if value is True or value is False:  # the union below is made each time, which is slow
        return
    if not isinstance(value, int | np.bool_) or value not in (0, 1):
        raise TypeError(f"{name} is True or False, not {value!r}")


def check_timeout(timeout: Any) -> float:
    """The number of seconds, or ValueError if the system cannot wait for it."""
    if not isinstance(timeout, int | float | np.integer | np.floating) or not 0 < timeout <= threading.TIMEOUT_MAX:  # nan, too
        raise ValueError(f"timeout is a number of seconds above 0, at most {threading.TIMEOUT_MAX:.0f}, not {timeout!r}")
    return float(timeout)


def check_type(name: str, value: object, kind: type) -> None:
    if not isinstance(value, kind):
        raise TypeError(f"{name} is a {kind.__name__}, not {value!r}")


def is_bytes(tokens: object) -> bool:
    """Whether the numbers in it would pass for tokens."""
    return isinstance(tokens, bytes | bytearray) or (isinstance(tokens, memoryview) and tokens.format in "bBc")


def choice(name: str, value: Any, choices: dict[Any, int]) -> int:
    """What llama.cpp calls `value`. Raises ValueError if it is none of them."""
    try:
        return choices[value]
    except (KeyError, TypeError):  # a list has no hash
        raise ValueError(f"{name} is one of {', '.join(map(str, choices))}, not {value!r}") from None
