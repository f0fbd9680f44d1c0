"""Sampling and generation on the model that ships with the package."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import llamackpt
from llamackpt.errors import ClosedError, ContextFullError, LlamaError
from llamackpt.generate import NO_TOKEN, StopText, Token, generate, stream_generate
from llamackpt.sampling import Sampler

PROMPT = "def read(self, size=-1):\n    "


@pytest.fixture
def ctx(model: llamackpt.Model) -> Iterator[llamackpt.Context]:
    with model.context(n_ctx=256, n_seq_max=2, checkpoints=2) as context:
        yield context


# the sampler


def test_threads_that_share_a_sampler_wait_for_each_other_and_may_close_it() -> None:
    logits = np.arange(200_000, dtype=np.float32)

    def draw() -> set[int]:
        drawn = set()
        with contextlib.suppress(ClosedError):
            while True:
                drawn.add(sampler.sample(logits))
        return drawn

    sampler = Sampler(1e-3, seed=1)
    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(draw) for _ in range(3)]
        time.sleep(0.2)
        sampler.close()
    assert set().union(*(future.result() for future in futures)) == {199_999}


@pytest.mark.parametrize("temperature", [0.0, 5e-324, 1e-39, 1e-30])
def test_temperature_zero_takes_the_largest_logit(temperature: float) -> None:
    """And one so small that logits divided by it overflow."""
    logits = np.random.default_rng(1).standard_normal(1000).astype(np.float32)
    with Sampler(temperature) as sampler:
        assert sampler.sample(logits) == int(logits.argmax())


def test_of_several_rows_the_last_one_is_sampled() -> None:
    logits = np.zeros((3, 10), dtype=np.float32)
    logits[0, 1], logits[2, 7] = 5.0, 5.0
    with Sampler() as sampler:
        assert sampler.sample(logits) == 7


def test_sampling_does_not_write_to_the_logits() -> None:
    logits = np.random.default_rng(1).standard_normal(100).astype(np.float32)
    before = logits.copy()
    with Sampler(1.0, seed=3) as sampler:
        sampler.sample(logits)
    assert np.array_equal(before, logits)


def test_the_same_seed_draws_the_same_tokens_and_another_seed_does_not() -> None:
    logits = np.zeros(500, dtype=np.float32)

    def draw(seed: int) -> list[int]:
        with Sampler(1.0, top_k=0, top_p=1.0, min_p=0.0, seed=seed) as sampler:
            return [sampler.sample(logits) for _ in range(20)]

    assert draw(5) == draw(5)
    assert draw(5) != draw(6)


def test_the_seed_that_was_drawn_can_be_used_again() -> None:
    logits = np.zeros(500, dtype=np.float32)
    with Sampler(1.0, top_k=0) as first, Sampler(1.0, top_k=0, seed=first.seed) as second:
        assert [first.sample(logits) for _ in range(20)] == [second.sample(logits) for _ in range(20)]


def test_top_k_of_one_leaves_no_choice() -> None:
    logits = np.random.default_rng(2).standard_normal(50).astype(np.float32)
    with Sampler(2.0, top_k=1, seed=1) as sampler:
        assert {sampler.sample(logits) for _ in range(20)} == {int(logits.argmax())}


def test_top_k_top_p_and_min_p_each_cut_the_tail() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], dtype=np.float32))
    for options in ({"top_k": 2}, {"top_p": 0.7}, {"min_p": 0.5}):
        off = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
        with Sampler(1.0, seed=1, **{**off, **options}) as sampler:
            assert {sampler.sample(logits) for _ in range(200)} == {0, 1}, options


def test_a_clone_draws_what_its_original_would_and_restore_goes_back_to_it() -> None:
    logits = np.zeros(500, dtype=np.float32)
    with Sampler(1.0, top_k=0, seed=9) as sampler:
        sampler.sample(logits)
        with sampler.clone() as saved:
            first = [sampler.sample(logits) for _ in range(10)]
            sampler.restore(saved)
            assert [sampler.sample(logits) for _ in range(10)] == first
            sampler.restore(saved)  # a restore does not consume the clone
            assert [sampler.sample(logits) for _ in range(10)] == first
            assert [saved.sample(logits) for _ in range(10)] == first


def test_reset_starts_the_seed_again() -> None:
    logits = np.zeros(500, dtype=np.float32)
    with Sampler(1.0, top_k=0, seed=9) as sampler:
        first = [sampler.sample(logits) for _ in range(10)]
        sampler.reset()
        assert [sampler.sample(logits) for _ in range(10)] == first


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"min_p": 2.0},
        {"seed": -1},
        {"seed": 2**32 - 1},
    ],
)
def test_a_parameter_out_of_range_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        Sampler(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"top_k": 2.5}, {"top_k": None}, {"seed": 1.5}])
def test_a_fraction_is_no_count_and_no_seed(options: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="is an integer, not"):
        Sampler(**options)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("logits", [[np.nan] * 5, [-np.inf] * 5, [0, np.inf, 0], [0, np.nan, 1]])
def test_of_logits_that_are_not_finite_none_is_chosen(logits: list[float], temperature: float) -> None:
    with Sampler(temperature, seed=1) as sampler:
        with pytest.raises(LlamaError, match="the largest of the logits is"):
            sampler.sample(logits)
        assert sampler.sample([-np.inf, 0, -np.inf]) == 1


@pytest.mark.parametrize("shape", [(0,), (0, 5), (2, 0), (1, 1, 5), ()])
def test_logits_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with Sampler() as sampler, pytest.raises(ValueError):
        sampler.sample(np.zeros(shape, dtype=np.float32))


def test_a_closed_sampler_says_so_whatever_is_asked_of_it() -> None:
    sampler = Sampler()
    sampler.close()
    sampler.close()
    with Sampler() as other:
        uses = [
            lambda: sampler.sample(np.zeros(3, dtype=np.float32)),
            lambda: sampler.accept(1),
            sampler.reset,
            sampler.clone,
            sampler.__enter__,
            lambda: sampler.restore(other),
            lambda: other.restore(sampler),
        ]
        for use in uses:
            with pytest.raises(ClosedError):
                use()
        assert other.sample(np.array([0, 1], dtype=np.float32)) == 1
    assert "closed" in repr(sampler)


# the stream


def test_greedy_generation_is_the_argmax_loop(ctx: llamackpt.Context, model: llamackpt.Model) -> None:
    result = generate(ctx, PROMPT, max_tokens=np.int64(12))
    tokens = [int(t) for t in model.tokenize(PROMPT)]
    expected = []
    for _ in range(12):
        tokens = [int(ctx.decode(tokens, seq_id=1)[-1].argmax())]
        expected += tokens
    assert result.tokens == expected
    assert result.text == model.detokenize(expected)


def test_a_result_counts_its_tokens_and_says_why_it_ended(ctx: llamackpt.Context) -> None:
    result = generate(ctx, PROMPT, max_tokens=5)
    assert (len(result.tokens), result.finish) == (5, "length")
    assert result.n_prompt > 1
    assert result.prompt_us > 0 and result.eval_us > 0
    assert result.prompt_per_s > 0 and result.eval_per_s > 0


def test_only_the_last_item_has_a_finish_and_the_indices_count_up(ctx: llamackpt.Context) -> None:
    items = list(stream_generate(ctx, PROMPT, max_tokens=6))
    assert [item.index for item in items] == list(range(6))
    assert [item.finish for item in items] == [None] * 5 + ["length"]


def test_a_seed_repeats_a_text_after_a_checkpoint(
    ctx: llamackpt.Context, model: llamackpt.Model
) -> None:
    tokens = model.tokenize(PROMPT)
    ctx.decode(tokens[:-1])
    with ctx.checkpoint() as ck:
        texts = []
        for seed in (1, 2, 1):
            ck.restore()
            texts.append(generate(ctx, tokens[-1:], max_tokens=20, temperature=1.0, seed=seed).tokens)
    assert texts[0] == texts[2]
    assert texts[0] != texts[1]


def test_a_stop_string_ends_the_text_before_it(ctx: llamackpt.Context) -> None:
    text = generate(ctx, PROMPT, max_tokens=24).text
    stop = text[5:9]
    result = generate(ctx, PROMPT, max_tokens=24, seq_id=1, stop=("never in there", stop))
    assert result.finish == "stop"
    assert result.text == text[: text.index(stop)]


def test_without_a_stop_in_it_the_text_is_the_same(ctx: llamackpt.Context) -> None:
    text = generate(ctx, PROMPT, max_tokens=24).text
    assert generate(ctx, PROMPT, max_tokens=24, seq_id=1, stop=(text + "x",)).text == text


def test_closing_a_stream_in_the_middle_leaves_all_but_its_last_token_decoded(
    ctx: llamackpt.Context, model: llamackpt.Model
) -> None:
    full = generate(ctx, PROMPT, max_tokens=10, seq_id=1).tokens
    stream = stream_generate(ctx, PROMPT, max_tokens=10)
    head = [next(stream).id for _ in range(4)]
    stream.close()
    assert ctx.pos_max(0) == len(model.tokenize(PROMPT)) + 4 - 1 - 1
    assert head + generate(ctx, head[-1:], max_tokens=6).tokens == full


def test_a_sampler_that_was_passed_in_stays_open(ctx: llamackpt.Context) -> None:
    with Sampler() as sampler:
        generate(ctx, PROMPT, max_tokens=2, sampler=sampler)
        assert sampler.sample(np.array([0, 1], dtype=np.float32)) == 1


def test_a_full_context_ends_the_stream_with_everything_that_was_drawn(model: llamackpt.Model) -> None:
    with model.context(n_ctx=256) as ctx:
        prompt = [5] * (ctx.n_ctx - 4)
        items = list(stream_generate(ctx, prompt, max_tokens=50))
        assert items[-1].finish == "context"
        assert items[-1].id == NO_TOKEN
        assert ctx.pos_max(0) == ctx.n_ctx - 1
        assert len(items) - 1 == 5


def test_a_prompt_that_does_not_fit_is_an_error(model: llamackpt.Model) -> None:
    with model.context(n_ctx=256) as ctx, pytest.raises(ContextFullError):
        generate(ctx, [5] * (ctx.n_ctx + 1), max_tokens=1)


def test_an_end_of_generation_token_ends_the_stream_and_is_not_in_the_result(
    ctx: llamackpt.Context, model: llamackpt.Model
) -> None:
    class OnlyEnd(Sampler):
        def sample(self, logits: object) -> int:
            return model.eos

    if not model.is_eog(model.eos):
        pytest.skip("the model has no end-of-generation token")
    with OnlyEnd() as sampler:
        result = generate(ctx, PROMPT, sampler=sampler)
    assert (result.text, result.tokens, result.finish) == ("", [], "eog")


@pytest.mark.parametrize(
    "options", [{"max_tokens": 0}, {"stop": "one string"}, {"temperature": -1.0}, {"top_p": 7.0}]
)
def test_bad_arguments_are_refused_by_the_call_itself(
    ctx: llamackpt.Context, options: dict[str, object]
) -> None:
    with pytest.raises(ValueError):
        stream_generate(ctx, PROMPT, **options)  # type: ignore[arg-type]
    assert ctx.pos_max(0) == -1


def test_an_empty_prompt_is_refused(ctx: llamackpt.Context) -> None:
    with pytest.raises(ValueError, match="empty"):
        generate(ctx, [])


def test_a_closed_context_is_a_clear_error(model: llamackpt.Model) -> None:
    ctx = model.context(n_ctx=256)
    ctx.close()
    with pytest.raises(ClosedError):
        generate(ctx, PROMPT)


# text


def test_a_character_split_over_tokens_comes_out_whole(
    ctx: llamackpt.Context, model: llamackpt.Model
) -> None:
    tokens = iter(int(t) for t in model.tokenize("é€😀", add_special=False))

    class Dictated(Sampler):
        def sample(self, logits: object) -> int:
            return next(tokens)

    n = len(model.tokenize("é€😀", add_special=False))
    with Dictated() as sampler:
        items: list[Token] = list(stream_generate(ctx, PROMPT, max_tokens=n, sampler=sampler))
    assert "".join(item.text for item in items) == "é€😀"
    assert all("\N{REPLACEMENT CHARACTER}" not in item.text for item in items)


@pytest.mark.parametrize("pieces", [["abc", "def"], list("abcdef"), ["abcde", "f"], ["", "abcdef", ""]])
def test_a_stop_string_is_found_however_the_text_is_split(pieces: list[str]) -> None:
    stops, out = StopText(["cde", ""]), ""
    for piece in pieces:
        ready, stopped = stops.feed(piece)
        out += ready
        if stopped:
            break
    assert out == "ab"


def test_text_that_might_become_a_stop_is_held_back_and_let_go() -> None:
    stops = StopText(["\n\n"])
    assert stops.feed("a\n") == ("a", False)
    assert stops.feed("b\n") == ("\nb", False)
    assert stops.flush() == "\n"
    assert stops.flush() == ""


def test_of_two_stop_strings_the_earlier_one_counts() -> None:
    assert StopText(["late", "soon"]).feed("too soon, too late") == ("too ", True)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"prompt": [1.7]}, TypeError), ({"prompt": [10**6]}, ValueError), ({"prompt": b"def"}, TypeError),
        ({"seq_id": 2}, ValueError), ({"max_tokens": 1.5}, TypeError), ({"stop": [b"x"]}, TypeError),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_refused_by_the_call_itself(
    ctx: llamackpt.Context, options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        stream_generate(ctx, **({"prompt": [1]} | options))
    sampler = Sampler()
    sampler.close()
    with pytest.raises(ClosedError):
        stream_generate(ctx, [1], sampler=sampler)
    for named, wrong in (
        ("ctx is a Context, not None", lambda: generate(None, "x")),  # type: ignore[arg-type]
        ("sampler is a Sampler, not 'x'", lambda: generate(ctx, "x", sampler="x")),  # type: ignore[arg-type]
        ("saved is a Sampler, not None", lambda: Sampler().restore(None)),  # type: ignore[arg-type]
    ):
        with pytest.raises(TypeError, match=named):
            wrong()
    assert ctx.pos_max() == -1
