"""Tokens of one or several sequences that are decoded together. It knows nothing of a context."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, SupportsIndex

import numpy as np

__all__ = ["Batch", "BatchToken"]


@dataclass(frozen=True)
class BatchToken:
    """One entry of a batch."""

    token: int
    pos: int
    seq_ids: tuple[int, ...]
    logits: bool


class Batch:
    """A list of tokens for Context.decode_batch().

    Tokens of the same sequence have to come in the order of their positions. A token that belongs to several sequences
    is decoded once, and its state is shared by them.
    """

    def __init__(self) -> None:
        self.entries: list[BatchToken] = []

    def __len__(self) -> int:
        return len(self.entries)

    def add(
        self,
        token: SupportsIndex,
        pos: SupportsIndex,
        seq_id: int | np.integer[Any] | Iterable[SupportsIndex] = 0,
        logits: bool = False,
    ) -> None:
        """Append a token at position `pos` of the sequence(s). logits: whether its logits are returned."""
        ids = (seq_id,) if isinstance(seq_id, int | np.integer) else seq_id
        seq_ids = tuple(operator.index(s) for s in ids)
        if not seq_ids:
            raise ValueError("a token has to belong to at least one sequence")
        self.entries.append(BatchToken(operator.index(token), operator.index(pos), seq_ids, bool(logits)))

    def clear(self) -> None:
        """Remove all tokens."""
        self.entries.clear()
