"""Generation: a streaming generator, and a call that runs it to its end.

Knows nothing of checkpoints: take one before and restore it after, as often as needed.
"""

from __future__ import annotations

import codecs
import operator
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from ._params import check_type
from .context import Context
from .errors import ContextFullError
from .sampling import Sampler

Finish = Literal["stop", "length", "eog", "context"]
"""A stop string, max_tokens, an end-of-generation token, or no free place in the context."""

NO_TOKEN = -1
"""Token.id of a last item that carries text that was held back but no token."""


@dataclass(frozen=True, slots=True)
class Token:
    """One step of a stream. The last item, and it alone, has a finish."""

    id: int
    text: str
    """What is ready: "" while a character is incomplete or could still become a stop string."""
    index: int
    t_us: float
    """Microseconds of decoding and sampling behind this item; the first one's include the prompt."""
    finish: Finish | None = None


@dataclass(frozen=True, slots=True)
class Result:
    text: str
    """Without the stop string and without the end-of-generation token."""
    tokens: list[int]
    """Every token drawn, without the end-of-generation token."""
    finish: Finish
    n_prompt: int
    prompt_us: float
    """The prompt and the first token."""
    eval_us: float
    """The tokens after the first."""

    @property
    def prompt_per_s(self) -> float:
        """Prompt tokens a second."""
        return self.n_prompt / self.prompt_us * 1e6 if self.prompt_us > 0 else 0.0

    @property
    def eval_per_s(self) -> float:
        """Tokens a second after the first."""
        return max(len(self.tokens) - 1, 0) / self.eval_us * 1e6 if self.eval_us > 0 else 0.0


class StopText:
    """Lets text through until a stop string begins, holding back what could still become one."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = [s for s in stop if s]
        self._held = ""

    def feed(self, text: str) -> tuple[str, bool]:
        """The text that is ready, and whether a stop string is complete. The earliest one counts."""
        self._held += text
        found = [i for i in (self._held.find(s) for s in self._stop) if i >= 0]
        if found:
            ready, self._held = self._held[: min(found)], ""
            return ready, True
        keep = max((_overlap(self._held, s) for s in self._stop), default=0)
        cut = len(self._held) - keep
        ready, self._held = self._held[:cut], self._held[cut:]
        return ready, False

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of text that begins stop."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


def encode_prompt(ctx: Context, prompt: str | Iterable[int], seq_id: int = 0) -> list[int]:
    """Tokens of a prompt. Text gets the model's begin token only where the sequence is empty.

    Raises ValueError for an empty prompt: there is nothing to predict from.
    """
    check_type("ctx", ctx, Context)
    ctx._check_seq(seq_id)
    if isinstance(prompt, str):
        tokens = ctx.model.tokenize(prompt, add_special=ctx.pos_max(seq_id) < 0)
    else:
        tokens = ctx.model._check_tokens(prompt)
    if tokens.size == 0:
        raise ValueError("the prompt is empty")
    return [int(token) for token in tokens]


def stream_generate(
    ctx: Context,
    prompt: str | Iterable[int],
    *,
    max_tokens: int = 128,
    seq_id: int = 0,
    temperature: float = 0.0,
    top_k: int = 40,
    top_p: float = 0.95,
    min_p: float = 0.05,
    seed: int | None = None,
    sampler: Sampler | None = None,
    stop: Sequence[str] = (),
) -> Iterator[Token]:
    """Continue a sequence, token by token.

    The prompt goes behind what the sequence holds. When the stream ends or is closed, that is
    the prompt and every token that was yielded but the last one, which has been drawn and not decoded:
    to go on, pass it first. A sampler that is passed in replaces temperature ... seed, and stays open.

    Arguments are checked by the call, not by the first step. Raises ValueError, TypeError, ClosedError for them,
    ContextFullError where the prompt does not fit, DecodeError. A context that fills up later ends the
    stream with "context".
    """
    max_tokens = operator.index(max_tokens)
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be 1 or more, not {max_tokens}")
    if isinstance(stop, str):
        raise ValueError("stop must be a sequence of strings, not one string")
    stop = list(stop)
    if not all(isinstance(text, str) for text in stop):
        raise TypeError(f"stop must be a sequence of strings, not {stop}")
    tokens = encode_prompt(ctx, prompt, seq_id)
    if sampler is not None:
        check_type("sampler", sampler, Sampler)
        sampler._handle()
    own = sampler is None
    if sampler is None:
        sampler = Sampler(temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
    return _stream(ctx, tokens, max_tokens, seq_id, sampler, own, StopText(stop))


def _stream(
    ctx: Context,
    tokens: list[int],
    max_tokens: int,
    seq_id: int,
    sampler: Sampler,
    own: bool,
    stops: StopText,
) -> Iterator[Token]:
    model = ctx.model
    utf8 = codecs.getincrementaldecoder("utf-8")("replace")
    try:
        for index in range(max_tokens):
            start = time.perf_counter()
            try:
                logits = ctx.decode(tokens, seq_id=seq_id, logits="last", copy=False)
            except ContextFullError:
                if index == 0:
                    raise
                ready, _ = stops.feed(utf8.decode(b"", final=True))
                yield Token(NO_TOKEN, ready + stops.flush(), index, _since(start), "context")
                return
            token = sampler.sample(logits[-1])
            finish: Finish | None = "eog" if model.is_eog(token) else None
            last = index == max_tokens - 1
            piece = b"" if finish else model.token_to_piece(token)
            ready, stopped = stops.feed(utf8.decode(piece, final=last or finish is not None))
            if stopped:
                finish = "stop"
            elif finish or last:
                ready += stops.flush()
                finish = finish or "length"
            yield Token(token, ready, index, _since(start), finish)
            if finish:
                return
            tokens = [token]
    finally:
        if own:
            sampler.close()


def _since(start: float) -> float:
    return (time.perf_counter() - start) * 1e6


def generate(
    ctx: Context,
    prompt: str | Iterable[int],
    *,
    max_tokens: int = 128,
    seq_id: int = 0,
    temperature: float = 0.0,
    top_k: int = 40,
    top_p: float = 0.95,
    min_p: float = 0.05,
    seed: int | None = None,
    sampler: Sampler | None = None,
    stop: Sequence[str] = (),
) -> Result:
    """`stream_generate` to its end; arguments and errors are the same."""
    tokens = encode_prompt(ctx, prompt, seq_id)
    items = list(
        stream_generate(
            ctx, tokens, max_tokens=max_tokens, seq_id=seq_id, temperature=temperature, top_k=top_k,
            top_p=top_p, min_p=min_p, seed=seed, sampler=sampler, stop=stop,
        )
    )  # fmt: skip
    finish = items[-1].finish or "length"
    drawn = items[:-1] if finish in ("eog", "context") else items
    return Result(
        text="".join(item.text for item in items),
        tokens=[item.id for item in drawn],
        finish=finish,
        n_prompt=len(tokens),
        prompt_us=items[0].t_us,
        eval_us=sum(item.t_us for item in items[1:]),
    )
