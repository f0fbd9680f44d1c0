"""Faults of llama.cpp that the series mends, where a caller of this package met them."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

import llamackpt
from llamackpt._ffi import ffi, lib
from llamackpt.errors import DecodeError, LlamaError


def test_bytes_that_are_no_text_are_replaced(model: llamackpt.Model) -> None:
    replaced = model.tokenize(b"\xff" * 4)
    for beyond in (b"\xf4\x90\x80\x80", b"\xf7\xbf\xbf\xbf"):  # U+110000 and U+1FFFFF, if there were such
        assert model.tokenize(beyond).tolist() == replaced.tolist()
    assert model.tokenize("\U0010ffff".encode()).size > 0


def test_a_context_goes_on_after_memory_for_a_batch_could_not_be_had(archs: Path) -> None:
    with llamackpt.Model(archs / "minimax-m3-moe.gguf") as model, model.context(n_ctx=256, n_batch=1) as ctx:
        expected = ctx.decode([1, 2, 3])
        ctx.seq_rm()
        with pytest.raises(DecodeError, match="memory"):
            ctx.decode([25], pos=2**31 - 3)  # its buffer grows with the position
        ctx.seq_rm()
        assert np.array_equal(ctx.decode([1, 2, 3]), expected)


@pytest.mark.parametrize("name", ["llama-dense", "gemma3-dense", "minimax-m3-moe", "stablelm-dense"])
@pytest.mark.parametrize("type_k", ["bf16", "q8_0"])
def test_keys_of_any_type_are_shifted(archs: Path, name: str, type_k: str) -> None:
    """Attention sees distances. Those are the same after all tokens moved, and others after some of them did."""

    def logits(cache: str, cut: bool, delta: int) -> np.ndarray:
        with model.context(n_ctx=256, type_k=cache) as ctx:
            ctx.decode(range(1, 30))
            if cut:
                ctx.seq_rm(0, 4, 12)
            if delta:
                ctx.seq_add(0, 12 if cut else 0, -1, delta)
            return ctx.decode([5])[0].astype(float)

    def error(a: np.ndarray, b: np.ndarray) -> float:
        return float(((a - b) ** 2).sum() / (b**2).sum())

    with llamackpt.Model(archs / f"{name}.gguf") as model:
        whole, cut = logits("f32", False, 0), logits("f32", True, -8)
        far = error(cut, whole)
        assert error(logits(type_k, False, 7), whole) < 0.1 * far
        assert error(logits(type_k, True, -8), cut) < 0.1 * far


@pytest.mark.parametrize(
    "name",
    ["llama-dense", "gemma3-dense", *(f"{name}-moe" for name in ("minimax-m3", "deepseek32", "glm-dsa", "dots3note"))],
)
def test_shifted_keys_are_those_of_tokens_that_were_there(archs: Path, name: str) -> None:
    """In all caches of the memory, also in one that only chooses what attention sees."""

    def state(start: int, delta: int) -> np.ndarray:
        with model.context(n_ctx=256, type_k="f32", type_v="f32") as ctx:
            ctx.decode(range(1, 30), pos=start)
            if delta:
                ctx.seq_add(0, 0, -1, delta)
            return np.frombuffer(ctx.state_get(), np.uint8)

    with llamackpt.Model(archs / f"{name}.gguf") as model:
        was_there, shifted = state(7, 0), state(0, 7)
        assert was_there.size == shifted.size
        n = was_there.size // 4 * 4
        a, b = was_there[:n].view(np.float32), shifted[:n].view(np.float32)
        assert np.allclose(a, b, rtol=1e-3, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("name", ["llama-dense", "gemma3-dense", "jamba-dense", "mamba-dense"])
def test_a_state_with_an_impossible_position_is_refused_or_harmless(archs: Path, name: str) -> None:
    refused = 0
    with llamackpt.Model(archs / f"{name}.gguf") as model, model.context(n_ctx=256) as ctx:
        ctx.decode([1, 2, 3, 4, 5, 6])
        state = ctx.state_get()
        for at in range(0, min(len(state), 200), 4):
            wrong = bytearray(state)
            wrong[at : at + 4] = struct.pack("<i", -1)
            try:
                ctx.state_set(0, bytes(wrong))
            except LlamaError:
                refused += 1
            ctx.decode([5])
            ctx.seq_rm()
    assert refused > 5


def test_a_state_that_is_refused_before_it_is_read_leaves_the_checkpoints(archs: Path) -> None:
    for name in ("llama-dense", "qwen35-dense", "gemma3-dense"):
        with llamackpt.Model(archs / f"{name}.gguf") as model, model.context(n_ctx=256, checkpoints=1) as ctx:
            ctx.decode([1, 2, 3])
            with ctx.checkpoint() as ck:
                expected = ctx.decode([4])
                with pytest.raises(LlamaError):
                    ctx.state_set(0, b"none")
                ck.restore()
                assert np.array_equal(ctx.decode([4]), expected)


@pytest.mark.parametrize("name", ["mamba2-dense", "qwen35-dense", "llama-dense"])
def test_all_sequences_can_be_removed_at_once(archs: Path, name: str) -> None:
    with llamackpt.Model(archs / f"{name}.gguf") as model, model.context(n_ctx=256, n_seq_max=3) as ctx:
        expected = ctx.decode([1, 2, 3], seq_id=1)
        ctx.decode([4, 5], seq_id=0)
        assert lib.llama_memory_seq_rm(ctx._gate.memory, -1, -1, -1)
        assert [ctx.pos_max(seq_id) for seq_id in range(3)] == [-1] * 3
        assert np.array_equal(ctx.decode([1, 2, 3], seq_id=1), expected)


def test_tokens_of_several_sequences_are_computed_as_those_of_one(archs: Path) -> None:
    """Their decay was written over the inputs of other operations with this model."""
    with llamackpt.Model(archs / "minimax-01-moe.gguf") as model:

        def logits(seq_ids: tuple[int, ...]) -> np.ndarray:
            batch = llamackpt.Batch()
            for pos in range(5):
                batch.add(10 + pos, pos, seq_ids, logits=pos == 4)
            with model.context(n_ctx=256, n_seq_max=4) as ctx:
                return ctx.decode_batch(batch).copy()

        assert np.allclose(logits((0, 1)), logits((0,)), rtol=1e-3, atol=1e-4)


def test_a_copy_on_the_device_has_all_of_a_quantized_cache(archs: Path) -> None:
    on_device = 2  # LLAMA_STATE_SEQ_FLAGS_ON_DEVICE
    with (
        llamackpt.Model(archs / "gemma3-dense.gguf") as model,
        model.context(n_ctx=256, type_k="q8_0", type_v="q8_0", flash_attn=True) as ctx,
    ):
        ctx.decode(range(1, 60))
        size = lib.llama_state_seq_get_size_ext(ctx._gate.ctx, 0, on_device)
        state = ffi.new("uint8_t[]", size)
        assert lib.llama_state_seq_get_data_ext(ctx._gate.ctx, state, size, 0, on_device) == size
        expected = ctx.decode([5])
        ctx.seq_rm()
        ctx.decode(range(50, 120))  # other keys, in the same cells
        ctx.seq_rm()
        assert lib.llama_state_seq_set_data_ext(ctx._gate.ctx, state, size, 0, on_device) == size
        assert np.allclose(ctx.decode([5]), expected, rtol=1e-4, atol=1e-5)
