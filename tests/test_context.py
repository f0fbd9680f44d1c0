"""Decoding and the memory: what goes in, what comes out, and what is refused."""

from __future__ import annotations

import contextlib
import gc
import inspect
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from conftest import ctrl_c_after, interrupted_rounds

import llamackpt
from llamackpt import ContextFullError, LlamaError, UnsupportedError, _caught, _scratch
from llamackpt._ffi import ffi
from llamackpt._owned import slot_for, taken
from llamackpt._params import ContextOptions


def test_logits_have_a_row_for_each_wanted_token(ctx: llamackpt.Context) -> None:
    tokens = [10, 11, 12]
    every = ctx.decode(tokens, 0, logits="all")
    assert every.shape == (3, ctx.model.n_vocab)
    assert every.dtype == np.float32
    last = ctx.decode(tokens, 1)
    some = ctx.decode(tokens, 2, logits=[True, False, True])
    assert np.allclose(last, every[-1:], atol=1e-3)
    assert np.allclose(some, every[[0, 2]], atol=1e-3)
    ctx.clear()
    assert ctx.decode(tokens, logits=None).shape == (0, ctx.model.n_vocab)


def test_tokens_can_be_any_integers(ctx: llamackpt.Context) -> None:
    for i, tokens in enumerate([7, [7], (7,), np.array([7]), np.array([7], dtype=np.uint16), iter([7])]):
        ctx.decode(tokens)
        assert ctx.pos_max() == i


@pytest.mark.parametrize(
    ("tokens", "error"),
    [
        ([], ValueError), ([-1], ValueError), ([1536], ValueError), ([1, 2**70], ValueError), ([-(2**70)], ValueError),
        ([-1, 2**63], ValueError), ([1.5], TypeError), ([[1]], ValueError), (["a"], TypeError), ([None, 2**70], TypeError),
        (memoryview(b"ab"), TypeError),
    ],
)  # fmt: skip
def test_bad_tokens_are_refused(ctx: llamackpt.Context, tokens: list[object], error: type[Exception]) -> None:
    with pytest.raises(error):
        ctx.decode(tokens)  # type: ignore[arg-type]
    assert ctx.pos_max() == -1


def test_a_long_input_is_split_and_comes_out_the_same(model: llamackpt.Model) -> None:
    tokens = model.tokenize("import sys\n" * 30)
    with model.context(n_ctx=1024, n_batch=32, n_ubatch=32) as split, model.context(n_ctx=1024, n_ubatch=32) as whole:
        a, b = split.decode(tokens, logits="all"), whole.decode(tokens, logits="all")
        assert a.shape == b.shape == (len(tokens), model.n_vocab)
        assert np.allclose(a, b, atol=1e-2)


def test_a_full_context_says_so_and_stays_as_it_was(model: llamackpt.Model) -> None:
    for n_batch in (2048, 64):
        with model.context(n_ctx=256, n_batch=n_batch) as ctx:
            ctx.decode(np.arange(100), logits=None)
            with pytest.raises(ContextFullError, match=r"no room for 200 tokens in a context of 256$"):
                ctx.decode(np.arange(200))
            assert ctx.pos_max() == 99
            assert ctx.decode([5]).shape == (1, model.n_vocab)


def test_a_full_context_with_a_cache_for_each_sequence_names_the_room_of_one(model: llamackpt.Model) -> None:
    with model.context(n_ctx=512, n_seq_max=2, kv_unified=False) as ctx:
        with pytest.raises(ContextFullError, match="no room for 300 tokens in a context of 512, 256 for each sequence"):
            ctx.decode(np.arange(300))


def test_a_view_is_overwritten_and_a_copy_is_not(ctx: llamackpt.Context) -> None:
    kept = ctx.decode([1, 2, 3])
    view = ctx.decode([4], copy=False)
    saved = view.copy()
    ctx.decode([900], copy=False)
    assert not np.array_equal(view, saved)
    assert np.isfinite(kept).all()


def test_several_sequences_in_one_batch(ctx: llamackpt.Context) -> None:
    batch = llamackpt.Batch()
    for pos, token in enumerate([3, 4, 5]):
        batch.add(token, pos, (0, 1, 2), logits=pos == 2)
    assert ctx.decode_batch(batch).shape == (1, ctx.model.n_vocab)
    assert [ctx.pos_max(s) for s in range(3)] == [2, 2, 2]
    batch.clear()
    for seq_id in range(3):
        batch.add(10 + seq_id, 3, seq_id, logits=True)
    rows = ctx.decode_batch(batch)
    assert rows.shape == (3, ctx.model.n_vocab)
    assert not np.array_equal(rows[0], rows[1])


def test_a_batch_takes_the_integers_of_numpy_and_no_others(ctx: llamackpt.Context) -> None:
    batch = llamackpt.Batch()
    batch.add(np.int64(5), np.int32(0), np.int64(1))
    batch.add(6, 0, np.array([2]), logits=True)
    assert ctx.decode_batch(batch).shape == (1, ctx.model.n_vocab)
    for wrong in ((1.5, 0), (1, 0.5), (1, 0, 0.5), (1, 0, [0.5])):
        with pytest.raises(TypeError):
            batch.add(*wrong)  # type: ignore[arg-type]
    assert len(batch) == 2


def test_bad_batches_are_refused(ctx: llamackpt.Context) -> None:
    def batch(*entries: tuple[int, int, object]) -> llamackpt.Batch:
        made = llamackpt.Batch()
        for token, pos, seq_id in entries:
            made.add(token, pos, seq_id)  # type: ignore[arg-type]
        return made

    for bad in (batch(), batch((1, 0, 3)), batch((1, -1, 0)), batch((1, 0, (0, 0))), batch((9999, 0, 0)), batch((1, 0, -1))):
        with pytest.raises(ValueError, match=r".+"):
            ctx.decode_batch(bad)
    ctx.decode([1, 2, 3])
    with pytest.raises(TypeError, match=r"batch is a Batch, not \[1\]"):
        ctx.decode_batch([1])  # type: ignore[arg-type]
    for gap in (batch((1, 1, 0)), batch((1, 3, 0), (1, 5, 0)), batch((1, 7, 0))):
        with pytest.raises(ValueError, match="follow"):
            ctx.decode_batch(gap)
    for pos in (0, 2, 4, 100):
        with pytest.raises(ValueError, match="follow"):
            ctx.decode([5], pos=pos)
    assert ctx.pos_max() == 2


@pytest.mark.parametrize("kv_unified", [True, False])
@pytest.mark.parametrize("name", ["qwen35-dense", "llama-dense", "gemma3-dense", "mamba2-dense"])
def test_sequences_are_copied_kept_and_removed(archs: Path, name: str, kv_unified: bool) -> None:
    with llamackpt.Model(archs / f"{name}.gguf") as model, model.context(n_seq_max=3, kv_unified=kv_unified) as ctx:
        ctx.decode([1, 2, 3], 0)
        ctx.seq_cp(0, 1)
        assert [ctx.pos_max(s) for s in range(3)] == [2, 2, -1]
        ctx.seq_keep(1)
        assert [ctx.pos_max(s) for s in range(3)] == [-1, 2, -1]
        ctx.seq_rm(1)
        assert ctx.pos_max(1) == -1
        assert ctx.pos_min(1) == -1


@pytest.mark.parametrize("kv_unified", [True, False])
@pytest.mark.parametrize("name", ["qwen35-dense", "llama-dense", "gemma3-dense", "mamba2-dense"])
def test_a_copy_takes_the_place_of_what_a_sequence_had(archs: Path, name: str, kv_unified: bool) -> None:
    """Where sequences share a cache, llama.cpp adds the tokens to those that are there, and there are two at a position."""
    with llamackpt.Model(archs / f"{name}.gguf") as model, model.context(n_seq_max=3, kv_unified=kv_unified) as ctx:
        ctx.decode([1, 2, 3], 0)
        ctx.decode([9, 8, 7, 6, 5], 1)
        ctx.seq_cp(0, 1)
        assert ctx.pos_max(1) == 2
        np.testing.assert_allclose(ctx.decode([4], 1), ctx.decode([4], 0), atol=1e-4)
        ctx.seq_cp(2, 1)
        assert (ctx.pos_min(1), ctx.pos_max(1)) == (-1, -1)


def test_a_part_that_is_copied_takes_the_place_of_that_part(archs: Path) -> None:
    with llamackpt.Model(archs / "llama-dense.gguf") as model, model.context(n_seq_max=3) as ctx:
        ctx.decode([1, 2, 3, 4], 0)
        ctx.decode([1, 2, 7, 8, 9], 1)
        ctx.seq_cp(0, 1, 2, 4)
        ctx.seq_rm(1, 4)
        np.testing.assert_allclose(ctx.decode([5], 1), ctx.decode([5], 0), atol=1e-4)


def test_more_bytes_than_a_state_are_refused(ctx: llamackpt.Context) -> None:
    ctx.decode([1, 2, 3])
    with pytest.raises(llamackpt.LlamaError, match="more than a state"):
        ctx.state_set(0, ctx.state_get() + b"x")
    assert ctx.pos_max() == -1


def test_a_part_of_a_recurrent_sequence_cannot_be_removed(ctx: llamackpt.Context) -> None:
    ctx.decode([1, 2, 3])
    with pytest.raises(UnsupportedError, match="checkpoint"):
        ctx.seq_rm(0, 2)
    assert ctx.pos_max() == 2


def test_a_part_of_a_recurrent_sequence_cannot_be_copied(ctx: llamackpt.Context) -> None:
    ctx.decode([1, 2, 3])
    for part in ((0, 2), (1, -1), (1, 3)):
        with pytest.raises(UnsupportedError, match="whole sequences"):
            ctx.seq_cp(0, 1, *part)
    assert ctx.pos_max(1) == -1
    ctx.seq_cp(0, 1, 0, 3)
    assert ctx.pos_max(1) == 2


def test_what_would_abort_llama_cpp_is_refused(model: llamackpt.Model, archs: Path) -> None:
    with model.context(n_ctx=256, n_seq_max=2, kv_unified=False) as ctx:
        ctx.decode([1, 2, 3])
        with pytest.raises(UnsupportedError, match="whole sequences"):
            ctx.seq_cp(0, 1, 1, 2)
        with pytest.raises(UnsupportedError, match="shift"):
            ctx.seq_add(0, 0, -1, 5)
        with pytest.raises(UnsupportedError, match="shift"):
            ctx.seq_div(0, 0, -1, 2)
        with pytest.raises(ValueError, match="d is 1"):
            ctx.seq_div(0, 0, -1, 0)
    with llamackpt.Model(archs / "llama-dense.gguf") as llama, llama.context(n_ctx=256) as ctx:
        ctx.decode([1, 2, 3])
        ck = ctx.checkpoint()
        ctx.seq_add(0, 0, -1, 5)
        assert ctx.pos_max() == 7
        assert not ck.valid
        ctx.seq_div(0, 0, -1, 2)
        ctx.decode([4])


def test_options_out_of_range_are_named(model: llamackpt.Model) -> None:
    for bad in (
        {"n_ctx": -1}, {"n_seq_max": 0}, {"n_seq_max": 257}, {"n_batch": 0}, {"n_threads": 0}, {"type_k": "f8"},
        {"type_k": []}, {"flash_attn": {}}, {"n_ctx": 2, "n_seq_max": 3},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=next(iter(bad))):
            model.context(**bad)
    for wrong in ({"n_ctx": 256.0}, {"n_seq_max": "2"}, {"checkpoints": None}):
        with pytest.raises(TypeError, match=f"{next(iter(wrong))} is an integer, not"):
            model.context(**wrong)
    for wrong in ({"kv_unified": "no"}, {"swa_full": None}, {"offload_kqv": []}, {"kv_unified": 2}, {"swa_full": 1.0}):
        with pytest.raises(TypeError, match=f"{next(iter(wrong))} is True or False, not"):
            model.context(**wrong)
    model.context(n_ctx=256, kv_unified=np.True_, swa_full=1).close()
    with pytest.raises(ValueError, match="n_batch is n_seq_max=3 or more, not 2"):
        model.context(n_ctx=256, n_batch=2, n_seq_max=3)
    model.context(n_ctx=256, n_batch=3, n_seq_max=3).close()


def test_a_context_is_made_of_a_model() -> None:
    with pytest.raises(TypeError, match="model is a Model, not 'x'"):
        llamackpt.Context("x")  # type: ignore[arg-type]


def test_snapshots_need_room_in_a_part_of_a_batch(model: llamackpt.Model) -> None:
    with pytest.raises(LlamaError, match=r"n_ubatch \(7\) must be larger than n_rs_seq \+ 1"):
        model.context(n_ctx=256, n_ubatch=7, n_rs_seq=6)
    with model.context(n_ctx=256, n_ubatch=8, n_rs_seq=6) as ctx:
        assert ctx.decode(list(range(30))).shape == (1, model.n_vocab)


def test_a_model_without_memory_decodes_and_has_no_checkpoints(archs: Path) -> None:
    with llamackpt.Model(archs / "dream-dense.gguf") as dream, dream.context(n_ctx=256, checkpoints=2) as ctx:
        assert not ctx.supports_checkpoints
        with pytest.raises(UnsupportedError, match="no memory"):
            ctx.checkpoint()
        with pytest.raises(UnsupportedError, match="no memory"):
            ctx.pos_max()
    with llamackpt.Model(archs / "dream-dense.gguf") as dream, dream.context(n_ctx=256, n_ubatch=32) as ctx:
        with pytest.raises(ValueError, match="n_ubatch"):
            ctx.decode(np.arange(64) % dream.n_vocab)
        assert np.isfinite(ctx.decode(np.arange(32) % dream.n_vocab)).all()


def test_architectures_that_abort_on_some_calls_refuse_them(archs: Path) -> None:
    with llamackpt.Model(archs / "kimi-linear-moe.gguf") as kimi:
        kimi.context(n_ctx=768, n_ubatch=32, n_seq_max=3, kv_unified=False).close()
    with llamackpt.Model(archs / "deepseek4-moe.gguf") as deepseek, deepseek.context(n_ctx=512, n_seq_max=2) as ctx:
        ctx.decode([1, 2, 3])
        with pytest.raises(UnsupportedError, match="whole sequences"):
            ctx.seq_cp(0, 1, 0, 2)
    batch = llamackpt.Batch()
    batch.add(1, 0, (0, 1))
    for arch in ("qwen4exp-moe", "mamba-dense"):
        with llamackpt.Model(archs / f"{arch}.gguf") as one, one.context(n_ctx=512, n_seq_max=2) as ctx:
            with pytest.raises(UnsupportedError, match="one sequence"):
                ctx.decode_batch(batch)


@pytest.mark.parametrize("arch", ["deepseek4-moe", "qwen4exp-moe"])
def test_a_sequence_that_has_to_begin_at_0_does(arch: str, archs: Path) -> None:
    batch = llamackpt.Batch()
    batch.add(1, 300)
    with llamackpt.Model(archs / f"{arch}.gguf") as model, model.context(n_ctx=512) as ctx:
        for begin in (lambda: ctx.decode([1], pos=300), lambda: ctx.decode_batch(batch)):
            with pytest.raises(UnsupportedError, match="begins at position 0, not 300"):
                begin()
        ctx.decode([1], pos=0)


@pytest.mark.parametrize("arch", ["gpt2-dense", "mpt-dense", "starcoder-dense"])
def test_a_table_of_positions_has_an_end(arch: str, archs: Path) -> None:
    with llamackpt.Model(archs / f"{arch}.gguf") as model:
        end = model.n_ctx_train
        with model.context(n_ctx=2 * end, n_batch=32) as ctx:
            ctx.decode([1, 2], pos=end - 3)
            with pytest.raises(ContextFullError, match=f"learned {end}"):
                ctx.decode([3, 4])
            assert ctx.pos_max() == end - 2
            assert llamackpt.generate(ctx, [3], max_tokens=5).finish == "context"
            batch = llamackpt.Batch()
            batch.add(3, end)
            with pytest.raises(ContextFullError, match="learned"):
                ctx.decode_batch(batch)


def test_positions_out_of_range_are_refused(ctx: llamackpt.Context) -> None:
    for pos in (2**31 - 1, 2**31, 2**40):
        batch = llamackpt.Batch()
        batch.add(1, pos)
        for decode in (lambda pos=pos: ctx.decode([1], pos=pos), lambda batch=batch: ctx.decode_batch(batch)):
            with pytest.raises(ValueError, match=f"position {pos} is out of range"):
                decode()
    with pytest.raises(TypeError):
        ctx.decode([1], pos=1.5)  # type: ignore[arg-type]
    assert ctx.pos_max() == -1
    with pytest.raises(ValueError, match=r"p1 is .*, not 2147483648"):
        ctx.seq_rm(0, 0, 2**31)
    with pytest.raises(ValueError, match=r"p0 is .*, not -1099511627776"):
        ctx.seq_cp(0, 0, -(2**40), 2)
    with pytest.raises(TypeError, match="p0 is an integer"):
        ctx.seq_rm(0, 1.5)  # type: ignore[arg-type]


def test_positions_are_not_shifted_out_of_range(archs: Path) -> None:
    with llamackpt.Model(archs / "llama-dense.gguf") as model, model.context(n_ctx=64, n_threads=1) as ctx:
        ctx.decode([1, 2, 3])
        with pytest.raises(ValueError, match=r"delta is .*, not 2147483647"):
            ctx.seq_add(0, 0, -1, 2**31 - 1)
        with pytest.raises(ValueError, match=r"p1 is .*, not 2147483648"):
            ctx.seq_div(0, 0, 2**31, 2)
        assert (ctx.pos_min(), ctx.pos_max()) == (0, 2)


def test_the_types_of_the_options_are_those_of_a_context() -> None:
    wanted = inspect.get_annotations(llamackpt.Context.__init__)
    wanted = {name: kind for name, kind in wanted.items() if name not in ("model", "return")}
    assert {name: kind.__forward_arg__ for name, kind in ContextOptions.__annotations__.items()} == wanted


@pytest.mark.parametrize("wrong", [np.float32(0.5), Decimal("0.5"), Fraction(1, 2), np.array(1), 1.0, "1"])
def test_a_sequence_is_an_integer_and_nothing_happens_with_another_thing(ctx: llamackpt.Context, wrong: object) -> None:
    for seq_id in range(2):
        ctx.decode([1, 2, 3], seq_id)
    ck, state = ctx.checkpoint(full=True), ctx.state_get()
    for call in (
        ctx.pos_max, ctx.seq_rm, ctx.seq_keep, lambda s: ctx.seq_cp(0, s), lambda s: ctx.seq_cp(s, 0), ctx.state_get,
        ctx.checkpoint, lambda s: ctx.decode([4], s), lambda s: ctx.state_set(s, state), lambda s: ck.restore(s),
    ):  # fmt: skip
        with pytest.raises(TypeError, match="sequence is an integer, not"):
            call(wrong)
    assert [ctx.pos_max(s) for s in range(3)] == [2, 2, -1]
    assert ctx.pos_max(np.int64(1)) == ctx.pos_max(True) == ctx.checkpoint(np.int8(1)).pos == 2  # type: ignore[arg-type]


def test_a_state_is_read_by_its_bytes_whatever_they_come_in(ctx: llamackpt.Context) -> None:
    ctx.decode([1, 2, 3])
    state = ctx.state_get()
    padded = state + bytes(-len(state) % 4)
    for data in (bytearray(state), memoryview(padded).cast("i"), np.frombuffer(padded, np.int32)):
        ctx.state_set(1, data)
        assert ctx.pos_max(1) == 2
        ctx.seq_rm(1)


def test_state_goes_out_and_in_and_garbage_does_not(ctx: llamackpt.Context) -> None:
    ctx.decode([1, 2, 3])
    state = ctx.state_get()
    a = ctx.decode([4])
    ctx.state_set(1, state)
    assert np.allclose(ctx.decode([4], 1), a, atol=1e-3)
    for bad in (b"", b"x", b"\xff" * 100, state[: len(state) // 2]):
        with pytest.raises(LlamaError):
            ctx.state_set(2, bad)
        ctx.seq_rm(2)
    assert ctx.pos_max(0) == 3


def test_a_second_thread_is_turned_away(model: llamackpt.Model) -> None:
    with model.context(n_ctx=2048, n_threads=1) as ctx:
        failed = threading.Event()
        thread = threading.Thread(target=lambda: ctx.decode(np.arange(1500)))
        thread.start()
        time.sleep(0.05)  # so that it is the first to enter
        deadline = time.monotonic() + 30
        while thread.is_alive() and time.monotonic() < deadline and not failed.is_set():
            try:
                ctx.pos_max()
            except LlamaError as err:
                assert "another thread" in str(err)
                failed.set()
        thread.join()
        assert failed.is_set()
        assert ctx.pos_max() == 1499


def test_a_call_that_is_turned_away_does_not_replace_the_token_of_the_other(
    ctx: llamackpt.Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = ctx.decode([5], 1)
    check, refused = ctx._check_seq, []

    def other() -> None:
        try:
            ctx.decode([7])
        except LlamaError as error:
            refused.append(error)

    def meanwhile(seq_id: int) -> None:
        """In the middle of the decode, as another thread."""
        monkeypatch.setattr(ctx, "_check_seq", check)
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        check(seq_id)

    monkeypatch.setattr(ctx, "_check_seq", meanwhile)
    np.testing.assert_array_equal(ctx.decode([5]), expected)
    assert refused


def test_a_signal_handler_that_raises_anywhere_leaves_the_context_usable(ctx: llamackpt.Context) -> None:
    def work() -> None:
        for _ in range(200):  # not for ever: what is raised while a checkpoint is collected is only printed
            ctx.pos_max()
            ctx.seq_rm()

    for _ in interrupted_rounds(work, 300, 1e-4, 1e-3):
        ctx.pos_max()


def test_a_handler_of_logging_cannot_use_the_context_that_it_interrupts(
    model: llamackpt.Model, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    def use(_: logging.LogRecord) -> None:
        try:
            ctx.pos_max()
        except LlamaError as error:
            said.append(str(error))

    monkeypatch.setattr(caplog.handler, "emit", use)
    with model.context(n_ctx=256) as ctx, caplog.at_level(logging.INFO, logger="llamackpt.llama"):
        ctx.reserve(1)
    assert said
    assert "handler" in said[0]
    assert "another thread" not in said[0]


def test_a_sequence_that_was_interrupted_is_not_used_until_it_is_whole_again(ctx: llamackpt.Context) -> None:
    ctx.decode([1, 2, 3])
    ck, state = ctx.checkpoint(), ctx.state_get()
    for mend in (
        ck.restore, ctx.seq_rm, ctx.clear, lambda: ctx.state_set(0, state), lambda: ctx.seq_keep(1), lambda: ctx.seq_cp(1, 0),
    ):  # fmt: skip
        ctx._interrupted.add(0)  # as after Ctrl-C in the middle of a decode
        for use in (lambda: ctx.decode([4]), ctx.checkpoint, ctx.state_get, lambda: ctx.seq_cp(0, 1)):
            with pytest.raises(llamackpt.DecodeError, match="interrupted"):
                use()
        mend()
        ctx.decode([4])
        ctx.state_get()


@pytest.mark.parametrize("second", [False, True])
def test_a_sequence_that_ctrl_c_loses_is_known_to_be_lost(
    model: llamackpt.Model, second: bool, request: pytest.FixtureRequest
) -> None:
    """The first Ctrl-C stops the decode, a second one comes as llama.cpp returns."""
    polls = _scratch.llamackpt_on_poll
    declare = ffi.def_extern(name="llamackpt_on_poll", error=True, onerror=_caught.keep)
    request.addfinalizer(lambda: declare(polls))

    def stop() -> bool:
        raise KeyboardInterrupt

    with model.context(n_ctx=512, n_ubatch=16, n_threads=1) as ctx:
        ctx.decode(list(range(20)))
        declare(stop)
        ctx._polled[0], ctx._polled[1] = 31, 0  # poll at once
        with pytest.raises(KeyboardInterrupt), ctrl_c_after("_decode" if second else "nothing"):
            ctx.decode(list(range(20, 100)))
        declare(polls)
        with pytest.raises(llamackpt.DecodeError, match="interrupted"):
            ctx.decode([7])
        ctx.seq_rm()
        ctx.decode([7])


def test_ctrl_c_as_a_decode_ends_leaves_its_sequence_as_it_is(ctx: llamackpt.Context) -> None:
    expected = ctx.decode([1, 2, 3, 4], 1)
    ctx.decode([1], 0)
    with contextlib.suppress(KeyboardInterrupt), ctrl_c_after("_decode"):
        ctx.decode([2, 3])
    assert ctx.pos_max() == 2
    np.testing.assert_allclose(ctx.decode([4]), expected, rtol=1e-3, atol=1e-3)


def test_ctrl_c_while_a_batch_is_filled_puts_no_token_into_another_sequence(ctx: llamackpt.Context) -> None:
    class Interrupted:
        def __getitem__(self, i: int) -> object:
            if i == 5:
                raise KeyboardInterrupt
            return ids[i]

    batch = llamackpt.Batch()
    for pos in range(8):
        batch.add(1, pos, 1)
    scratch = ctx._scratch
    ids = scratch.seq_id
    for interrupted in (lambda: ctx.decode([1] * 8, 1), lambda: ctx.decode_batch(batch)):
        ctx.decode([1] * 8)
        scratch.seq_id = Interrupted()
        with pytest.raises(KeyboardInterrupt):
            interrupted()
        scratch.seq_id = ids
        ctx.decode([1] * 8)
        assert (ctx.pos_max(0), ctx.pos_max(1)) == (15, -1)
        ctx.clear()


def test_a_model_is_freed_after_its_contexts_though_all_are_in_a_cycle() -> None:
    order: list[str] = []

    def made(name: str, needed: object = None) -> object:
        slot = slot_for("int **", lambda _: order.append(name), needed)
        slot[0] = ffi.cast("int *", 1)
        return taken(slot)

    cycle: list[object] = [made("model")]
    cycle += [made("context", cycle[0]), cycle]
    del cycle
    gc.collect()
    assert order == ["context", "model"]


FORKED = """
import os, signal, llamackpt
model = llamackpt.Model(llamackpt.default_model())
ctx = model.context(n_ctx=256, n_threads=2)
ctx.decode([1, 2, 3])
ck = ctx.checkpoint()
if os.fork() == 0:
    signal.alarm(20)
    for use in (lambda: ctx.decode([4]), ck.restore, lambda: ctx.pos_max()):
        try:
            use()
        except llamackpt.LlamaError as error:
            assert "forked" in str(error), error
        else:
            os._exit(1)
    for own in (model, llamackpt.Model(llamackpt.default_model())):
        own.context(n_ctx=256, n_threads=2).decode(own.tokenize("def"))
    os._exit(0)
_, status = os.wait()
assert status == 0, status
ck.restore()
ctx.decode([4])
"""


def test_a_fork_makes_contexts_of_its_own_with_as_many_threads() -> None:
    """It does not have the threads of OpenMP's pool, and waited for them forever: a load starts them too, with AMX."""
    subprocess.run([sys.executable, "-c", FORKED], check=True, timeout=60)


LEFT = """
import os, sys, llamackpt
with llamackpt.Model(llamackpt.default_model()) as model, model.context(n_ctx=256, n_threads=1, checkpoints=1) as ctx:
    ctx.decode([1, 2, 3])
    with ctx.checkpoint() as ck:
        if os.fork() == 0:
            sys.exit(0)
        _, status = os.wait()
        assert status == 0, status
        ck.restore()
        ctx.decode([4])
"""


def test_the_blocks_of_a_fork_are_left_without_a_word() -> None:
    done = subprocess.run([sys.executable, "-c", LEFT], stderr=subprocess.PIPE, text=True, timeout=60, check=True)
    assert done.stderr == ""


INTERRUPTED = """
import sys, numpy as np, llamackpt
model = llamackpt.Model(llamackpt.default_model())
ctx = model.context(n_ctx=65536, n_batch=16384, n_ubatch=16384, n_threads=1, checkpoints=2)
ctx.decode([1, 2, 3])
ck = ctx.checkpoint()
print("ready", flush=True)
try:
    while True:
        ctx.decode(np.arange(16000) % 1500)
except KeyboardInterrupt:
    pass
else:
    sys.exit(1)
try:
    ctx.decode([4])
except llamackpt.DecodeError as err:
    assert "interrupted" in str(err)
ck.restore()
again = ctx.decode([4])
fresh = model.context(n_ctx=65536, n_batch=16384, n_ubatch=16384, n_threads=1)
fresh.decode([1, 2, 3])
assert np.array_equal(again, fresh.decode([4]))
print("restored", flush=True)
"""


def test_ctrl_c_stops_a_decode_and_a_checkpoint_brings_the_sequence_back() -> None:
    child = subprocess.Popen([sys.executable, "-c", INTERRUPTED], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    time.sleep(1)
    os.kill(child.pid, signal.SIGINT)
    out, _ = child.communicate(timeout=120)
    assert (child.returncode, out) == (0, "restored\n")


def test_a_removed_sequence_starts_anew_whatever_it_was_rolled_back_to(model: llamackpt.Model) -> None:
    """seq_keep left the pending rollback of the others, and their next token was computed from a snapshot."""
    with model.context(n_ctx=256, n_seq_max=2, n_rs_seq=4) as ctx:
        expected = ctx.decode([5, 6], 1)
        ctx.clear()
        ctx.decode(list(range(10, 19)), 1)
        ctx.seq_rm(1, 7)
        ctx.seq_keep(0)
        np.testing.assert_array_equal(ctx.decode([5, 6], 1), expected)


@pytest.mark.parametrize("kv_unified", [True, False])
def test_a_state_has_the_copies_and_shifts_that_are_not_computed_yet(archs: Path, kv_unified: bool) -> None:
    """llama.cpp computes them with the next batch. It wrote a state without them, and let them overwrite one that was read."""
    with (
        llamackpt.Model(archs / "llama-dense.gguf") as model,
        model.context(n_ctx=512, n_seq_max=3, kv_unified=kv_unified) as ctx,
        model.context(n_ctx=512, n_seq_max=3, kv_unified=kv_unified) as ref,
    ):
        ctx.decode(range(1, 9), 0)
        ctx.seq_cp(0, 1)
        ctx.seq_add(1, 0, -1, 20)
        other = ctx.state_get(1)
        ref.state_set(0, other)
        want = ctx.decode([9], 1)
        np.testing.assert_allclose(ref.decode([9], 0), want, rtol=0, atol=1e-5)

        ctx.seq_cp(0, 2)
        ctx.state_set(2, other)  # in the place of the copy
        np.testing.assert_allclose(ctx.decode([9], 2), want, rtol=0, atol=1e-5)
