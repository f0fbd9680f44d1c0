"""What llama-server answers, with types. `raw` is the answer as it came: servers add fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Chunk", "Completion", "Slot", "SlotFile", "Timings", "parse_metrics"]

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Timings:
    """Of one request. Tokens, and milliseconds inside the server."""

    cache_n: int
    """Prompt tokens that were in the slot already."""
    prompt_n: int
    """Prompt tokens that were decoded."""
    prompt_ms: float
    predicted_n: int
    predicted_ms: float
    draft_n: int
    draft_n_accepted: int
    cache_miss_n: int
    """Prompt tokens that the slot had and that were decoded again all the same. This and the rest: not from upstream."""
    cache_miss_reason: str
    """Why not all that the prompt and the slot have in common was used again; "" if it was."""
    checkpoint_save_n: int
    checkpoint_save_ms: float
    checkpoint_restore_n: int
    checkpoint_restore_ms: float
    raw: Json = field(repr=False)

    @classmethod
    def parse(cls, raw: Json) -> Timings:
        return cls(
            cache_n=int(raw.get("cache_n", 0)),
            prompt_n=int(raw.get("prompt_n", 0)),
            prompt_ms=float(raw.get("prompt_ms", 0.0)),
            predicted_n=int(raw.get("predicted_n", 0)),
            predicted_ms=float(raw.get("predicted_ms", 0.0)),
            draft_n=int(raw.get("draft_n", 0)),
            draft_n_accepted=int(raw.get("draft_n_accepted", 0)),
            cache_miss_n=int(raw.get("cache_miss_n", 0)),
            cache_miss_reason=str(raw.get("cache_miss_reason", "")),
            checkpoint_save_n=int(raw.get("checkpoint_save_n", 0)),
            checkpoint_save_ms=float(raw.get("checkpoint_save_ms", 0.0)),
            checkpoint_restore_n=int(raw.get("checkpoint_restore_n", 0)),
            checkpoint_restore_ms=float(raw.get("checkpoint_restore_ms", 0.0)),
            raw=raw,
        )

    @property
    def predicted_per_second(self) -> float:
        """Tokens a second after the first, which comes with the prompt."""
        return max(self.predicted_n - 1, 0) / self.predicted_ms * 1e3 if self.predicted_ms > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Completion:
    text: str
    tokens: list[int]
    """Those that were generated."""
    stop: str
    """"eos", "limit" (of tokens, or of the context), "word" (a stop string) or "none" (the prompt was empty)."""
    truncated: bool
    """The context was full."""
    n_prompt: int
    id_slot: int
    timings: Timings
    raw: Json = field(repr=False)

    @classmethod
    def parse(cls, raw: Json, text: str | None = None, tokens: list[int] | None = None) -> Completion:
        """text, tokens: what a stream has collected; its last item does not repeat them."""
        return cls(
            text=str(raw.get("content", "")) if text is None else text,
            tokens=list(raw.get("tokens", [])) if tokens is None else tokens,
            stop=str(raw.get("stop_type", "")),
            truncated=bool(raw.get("truncated", False)),
            n_prompt=int(raw.get("tokens_evaluated", 0)),
            id_slot=int(raw.get("id_slot", -1)),
            timings=Timings.parse(raw.get("timings", {})),
            raw=raw,
        )


@dataclass(frozen=True, slots=True)
class Chunk:
    """One event of a stream. The last one, and it alone, has the completion, with the whole text."""

    text: str
    tokens: list[int]
    completion: Completion | None = None


@dataclass(frozen=True, slots=True)
class Slot:
    id: int
    n_ctx: int
    is_processing: bool
    speculative: bool
    n_tokens: int
    """In its cache."""
    raw: Json = field(repr=False)

    @classmethod
    def parse(cls, raw: Json) -> Slot:
        return cls(
            id=int(raw["id"]),
            n_ctx=int(raw["n_ctx"]),
            is_processing=bool(raw["is_processing"]),
            speculative=bool(raw.get("speculative", False)),
            n_tokens=int(raw.get("n_prompt_tokens", 0)),
            raw=raw,
        )


@dataclass(frozen=True, slots=True)
class SlotFile:
    """What a save wrote, or a restore read."""

    id_slot: int
    filename: str
    n_tokens: int
    nbytes: int
    ms: float
    raw: Json = field(repr=False)

    @classmethod
    def parse(cls, raw: Json) -> SlotFile:
        timings = raw.get("timings", {})
        return cls(
            id_slot=int(raw["id_slot"]),
            filename=str(raw["filename"]),
            n_tokens=int(raw.get("n_saved", raw.get("n_restored", 0))),
            nbytes=int(raw.get("n_written", raw.get("n_read", 0))),
            ms=float(timings.get("save_ms", timings.get("restore_ms", 0.0))),
            raw=raw,
        )


def parse_metrics(text: str) -> dict[str, float]:
    """Prometheus's text: each sample by its name, labels included, as `name{label="value"}`."""
    samples = [line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, value in samples}
