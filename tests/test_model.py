"""Loading, vocabulary and metadata; and files that are not models."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import random
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from conftest import ctrl_c_after

import llamackpt
from llamackpt import ClosedError, LlamaError, ModelLoadError


def test_the_file_says_what_it_is(model: llamackpt.Model) -> None:
    assert model.metadata["general.architecture"] == "qwen35"
    assert (model.is_hybrid, model.is_recurrent, model.has_encoder) == (True, False, False)
    assert (model.n_vocab, model.n_layer, model.n_embd) == (1536, 8, 192)
    assert model.n_params == 3656368
    assert 0 < model.size < 4 * 2**20
    assert "qwen35" in model.desc
    assert model.n_ctx_train >= 2048


@pytest.mark.parametrize("text", ["", "def f(x):\n    return x\n", "é ∑ 你好 \U0001f600", "\x00\x01", "a" * 5000])
def test_text_survives_the_tokenizer(model: llamackpt.Model, text: str) -> None:
    tokens = model.tokenize(text)
    assert tokens.dtype == np.int32
    assert model.detokenize(tokens) == text
    assert b"".join(model.token_to_piece(int(t)) for t in tokens) == text.encode()


def test_tokens_out_of_range_are_named(model: llamackpt.Model) -> None:
    for bad in (-1, model.n_vocab, 2**31, 2**70):
        with pytest.raises(ValueError, match="not in the vocabulary"):
            model.detokenize([bad])
        with pytest.raises(ValueError, match="not in the vocabulary"):
            model.token_to_piece(bad)
    with pytest.raises(TypeError, match="integers"):
        model.detokenize([0.5])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="one-dimensional"):
        model.detokenize(np.zeros((2, 2), dtype=np.int32))


def test_a_number_is_no_text_and_a_fraction_no_token(model: llamackpt.Model) -> None:
    for wrong in (lambda: model.tokenize(5), lambda: model.token_to_piece(1.5), lambda: model.is_eog(1.5)):  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            wrong()


def test_end_of_generation(model: llamackpt.Model) -> None:
    assert model.eos is not None
    assert model.is_eog(model.eos)
    assert not model.is_eog(100)


def test_progress_is_reported_and_can_cancel() -> None:
    seen: list[float] = []
    llamackpt.Model(llamackpt.default_model(), progress=seen.append).close()
    assert seen[-1] == 1.0
    assert seen == sorted(seen)
    with pytest.raises(ModelLoadError, match="cancelled"):
        llamackpt.Model(llamackpt.default_model(), progress=lambda _: False)
    with pytest.raises(ModelLoadError, match="cancelled"):
        llamackpt.Model(llamackpt.default_model(), progress=lambda _: np.False_)  # type: ignore[arg-type, return-value]

    def fail(_: float) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        llamackpt.Model(llamackpt.default_model(), progress=fail)


def test_a_vocabulary_alone_has_no_contexts() -> None:
    with llamackpt.Model(llamackpt.default_model(), vocab_only=True) as model:
        assert len(model.tokenize("def")) > 0
        with pytest.raises(LlamaError, match="vocab_only"):
            model.context()


def test_an_option_that_is_neither_true_nor_false_is_named() -> None:
    for wrong in ({"vocab_only": "x"}, {"vocab_only": 2}, {"use_mmap": None}):
        with pytest.raises(TypeError, match=f"{next(iter(wrong))} is True or False, not"):
            llamackpt.Model(llamackpt.default_model(), **wrong)


def test_closing_a_model_closes_its_contexts() -> None:
    model = llamackpt.Model(llamackpt.default_model())
    ctx = model.context(n_ctx=256)
    ck = ctx.checkpoint()
    model.close()
    model.close()
    assert ctx.closed
    for use in (lambda: model.tokenize("x"), lambda: model.desc, model.context, ctx.pos_max, ck.restore):
        with pytest.raises(ClosedError):
            use()


def test_objects_can_go_in_any_order() -> None:
    for _ in range(3):
        model = llamackpt.Model(llamackpt.default_model())
        ctx = model.context(n_ctx=256, checkpoints=1)
        ck = ctx.checkpoint()
        cycle = [model, ctx, ck]
        cycle.append(cycle)
        del model, ctx, ck, cycle
        gc.collect()


def test_nothing_is_copied_or_pickled(model: llamackpt.Model, ctx: llamackpt.Context) -> None:
    for handle in (model, ctx, ctx.checkpoint(), llamackpt.Sampler()):
        for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match=f"a {type(handle).__name__} of llamackpt cannot be copied or pickled"):
                duplicate(handle)
    ctx.decode([1])


@pytest.mark.parametrize(("call", "free"), [("_load", "llama_model_free"), ("_init", "llama_free")])
def test_ctrl_c_as_llama_cpp_has_made_something_frees_it(model: llamackpt.Model, call: str, free: str) -> None:
    freed: list[str] = []

    def profile(_: object, event: str, function: object) -> None:
        if event == "c_call":
            freed.append(function.__name__)  # type: ignore[attr-defined]

    with pytest.raises(KeyboardInterrupt) as caught, ctrl_c_after(call):
        llamackpt.Model(model.path) if call == "_load" else model.context(n_ctx=256)
    sys.setprofile(profile)
    try:
        del caught
        gc.collect()
    finally:
        sys.setprofile(None)
    assert freed.count(free) == 1


def test_a_context_keeps_what_it_needs_of_its_model() -> None:
    with llamackpt.Model(llamackpt.default_model()) as model:
        native = weakref.ref(model._model)
        ctx = model.context(n_ctx=256)
        model._contexts.clear()  # as when both are collected, or the context is made while another thread closes the model
    assert native() is not None
    ctx.close()
    assert native() is None


def test_a_model_is_closed_under_the_calls_of_other_threads() -> None:
    text = "def f(x): return x\n" * 50_000
    for _ in range(3):
        model = llamackpt.Model(llamackpt.default_model())
        with ThreadPoolExecutor(2) as pool:
            tokens, ctx = pool.submit(model.tokenize, text), pool.submit(model.context, n_ctx=30_000)
            model.close()
            for future in (tokens, ctx):
                assert future.exception() is None or isinstance(future.exception(), ClosedError)


def test_what_is_not_a_model_is_refused_with_a_reason(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="No such file"):
        llamackpt.Model(tmp_path / "missing.gguf")
    with pytest.raises(ModelLoadError, match="directory"):
        llamackpt.Model(tmp_path)
    with pytest.raises(ModelLoadError, match="File name too long"):
        llamackpt.Model("a" * 5000)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelLoadError, match="is a pipe or a device"):
        llamackpt.Model(tmp_path / "pipe")
    for name, content in {"empty": b"", "text": b"hello, world", "magic": b"GGUF", "version": b"GGUF" + b"\xff" * 64}.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ModelLoadError):
            llamackpt.Model(path)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    whole = llamackpt.default_model().read_bytes()
    path = tmp_path / "cut.gguf"
    for i in range(20):
        path.write_bytes(whole[: len(whole) * i // 20])
        with pytest.raises(ModelLoadError):
            llamackpt.Model(path)


def test_a_vocabulary_with_a_duplicate_is_refused(model: llamackpt.Model, tmp_path: Path) -> None:
    pieces = [model.token_to_piece(token) for token in range(model.n_vocab)]
    first, second = [piece for piece in pieces if len(piece) == 5 and piece.isalpha()][:2]
    stored = (5).to_bytes(8, "little") + first, (5).to_bytes(8, "little") + second
    whole = llamackpt.default_model().read_bytes()
    assert whole.count(stored[1]) == 1
    path = tmp_path / "twice.gguf"
    path.write_bytes(whole.replace(stored[1], stored[0]))
    with pytest.raises(ModelLoadError, match="duplicate"):
        llamackpt.Model(path)


def test_an_interval_of_zero_layers_is_refused(tmp_path: Path) -> None:
    key = b"qwen35.full_attention_interval"
    content = bytearray(llamackpt.default_model().read_bytes())
    at = content.index(key) + len(key) + 4
    content[at : at + 4] = bytes(4)
    path = tmp_path / "interval.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelLoadError, match="invalid model"):
        llamackpt.Model(path)


def test_flipped_bytes_in_the_header_never_crash(tmp_path: Path) -> None:
    whole = llamackpt.default_model().read_bytes()
    path = tmp_path / "flipped.gguf"
    rng = random.Random(1)
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(4):
            damaged[rng.randrange(8, 3000)] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            llamackpt.Model(path).close()
        except ModelLoadError as err:
            assert str(err)
