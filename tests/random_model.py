"""What the memory must hold: sequences as the events that made them, checkpoints, and when these go stale.

It knows no llama.cpp, except for the oracle at the end, which computes a history again in a context of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from random_kinds import Kind

import llamackpt

Logits = npt.NDArray[np.float32]
Event = tuple[Any, ...]  # ("token", id, position), ("rm", p0, p1) or ("add", p0, p1, delta)

N_CTX, N_SEQ, MAX_LEN = 256, 4, 200

_cells = itertools.count()


def new_cell() -> int:
    """The identity of a cell that nothing else shares."""
    return next(_cells)


@dataclass(frozen=True)
class State:
    """A sequence at one moment."""

    events: tuple[Event, ...] = ()
    cells: tuple[tuple[int, int], ...] = ()  # position and identity of each attention cell
    pos: int = -1
    cell: int = -1  # identity of the recurrent cell
    n_last: int = 0  # tokens of it in its last batch
    pending: bool = False  # a rollback of llama.cpp's own is to be done by the next decode
    copied: bool = False  # the state came without rollback snapshots

    def decoded(self, tokens: list[int], cells: list[int]) -> State:
        start = self.pos + 1
        return State(
            events=self.events + tuple(("token", token, start + i) for i, token in enumerate(tokens)),
            cells=self.cells + tuple((start + i, cell) for i, cell in enumerate(cells)),
            pos=start + len(tokens) - 1,
            cell=new_cell(),
            n_last=len(tokens),
        )

    def removed(self, p0: int, p1: int, recurrent: bool) -> State:
        """Without the tokens at [p0, p1), which is not all of them."""
        cells = tuple(cell for cell in self.cells if not p0 <= cell[0] < p1)
        if self.cells and not cells and not recurrent:
            return EMPTY
        if p1 > self.pos and all(event[0] == "token" for event in self.events):
            events = tuple(event for event in self.events if event[2] < p0)
        else:
            events = (*self.events, ("rm", p0, p1 if p1 <= self.pos else -1))
        if recurrent and p1 <= self.pos:  # the running state knows nothing of it
            return replace(self, events=events, cells=cells)
        return replace(self, events=events, cells=cells, pos=cells[-1][0] if cells else p0 - 1)

    def shifted(self, p0: int, p1: int, delta: int) -> State:
        def move(pos: int) -> int:
            return pos + delta if p0 <= pos < p1 else pos

        cells = tuple((move(pos), cell) for pos, cell in self.cells)
        return replace(self, events=(*self.events, ("add", p0, p1, delta)), cells=cells, pos=move(self.pos))

    def copy(self) -> State:
        """The same in other cells."""
        return replace(self, cells=tuple((pos, new_cell()) for pos, _ in self.cells), cell=new_cell(), copied=True)


EMPTY = State()


@dataclass(eq=False)
class Saved:
    """A checkpoint, and what it has to bring back."""

    handle: llamackpt.Checkpoint
    seq: int
    full: bool
    state: State
    tier: str
    written: bool  # its attention cells are in a copy, on the device or on the host
    stale: bool = False
    same: int = -1  # full: up to this position the sequence has its tokens
    draft: tuple[list[int], Logits] | None = None  # tokens that followed it once, alone in their batch, and their logits

    def __post_init__(self) -> None:
        self.same = self.state.pos

    @property
    def holds_cells(self) -> bool:
        return self.full and not self.stale and not self.written


@dataclass
class Memory:
    """All sequences and checkpoints of a context."""

    kind: Kind
    unified: bool
    seqs: list[State] = field(default_factory=lambda: [EMPTY] * N_SEQ)
    saved: list[Saved] = field(default_factory=list)

    # what makes checkpoints stale; the rules are those of DESIGN: rollback checkpoints belong to their sequence's history

    def on_removed(self, seq: int, p0: int, p1: int = 2**31) -> None:
        for ck in self.saved:
            if not self.kind.tokens or ck.seq != seq or max(p0, 0) >= p1:
                continue
            if ck.full:
                ck.same = min(ck.same, p0 - 1)
            else:
                ck.stale |= p0 <= ck.state.pos

    def on_restored(self, ck: Saved, seq: int) -> None:
        """Tokens that the sequence still had are the same ones, if the checkpoint holds them and not copies of them."""
        mine = ck.full and not ck.written and seq == ck.seq
        self.on_removed(seq, ck.same + 1 if mine else 0 if ck.full else ck.state.pos + 1)
        if mine:
            ck.same = ck.state.pos

    def on_moved(self, seq: int, p0: int, p1: int) -> None:
        """Before the tokens of the sequence at [p0, p1) move."""
        if not self.kind.tokens:
            return
        moving = {cell for pos, cell in self.seqs[seq].cells if p0 <= pos < p1}
        for ck in self.saved:
            if ck.seq == seq:
                ck.same = min(ck.same, p0 - 1)
            if ck.full:
                ck.stale |= not ck.written and any(cell in moving for _, cell in ck.state.cells)
            elif p0 < min(p1, ck.state.pos + 1):
                held = (cell for pos, cell in self.seqs[ck.seq].cells if pos <= ck.state.pos)
                ck.stale |= ck.seq == seq or any(cell in moving for cell in held)

    def is_shared(self, seq: int) -> bool:
        """Whether another sequence has cells of this one."""
        mine = {cell for _, cell in self.seqs[seq].cells}
        tokens = self.kind.tokens and any(cell in mine for other in self._others(seq) for _, cell in other.cells)
        return tokens or self.shares_state(seq)

    def shares_state(self, seq: int) -> bool:
        """Whether another sequence is in the same recurrent cell."""
        return self.kind.recurrent and any(other.cell == self.seqs[seq].cell for other in self._others(seq))

    def is_parted(self, state: State, seq: int) -> bool:
        """Whether a sequence that gets this state leaves the cell to another one, which is at a different position of it."""
        shared = [other for other in self._others(seq) if other.cell == state.cell]
        return self.kind.recurrent and any((other.pos, other.pending) != (state.pos, state.pending) for other in shared)

    def _others(self, seq: int) -> list[State]:
        return [other for i, other in enumerate(self.seqs) if i != seq and other.pos >= 0]

    def is_alone(self, seq: int) -> bool:
        """Whether no other sequence and no checkpoint holds its tokens."""
        mine = {cell for _, cell in self.seqs[seq].cells}
        held = (ck.state.cells for ck in self.saved if ck.holds_cells)
        return not self.is_shared(seq) and all(cell not in mine for cells in held for _, cell in cells)

    def fits(self, more: dict[int, int], without: int = -1) -> bool:
        """Whether there certainly is room for so many tokens more in the sequences, `without` being removed before."""
        if not self.kind.tokens:
            return True
        if self.unified:
            return self._used(range(N_SEQ), without) + sum(more.values()) <= N_CTX
        return all(self._used([seq], without) + n <= N_CTX for seq, n in more.items())

    def _used(self, seqs: Collection[int], without: int) -> int:
        """How many cells they have, and the checkpoints of them."""
        used = {cell for seq in seqs if seq != without for _, cell in self.seqs[seq].cells}
        for ck in self.saved:
            if ck.seq in seqs and ck.holds_cells:
                used.update(cell for _, cell in ck.state.cells)
        return len(used)


class Oracle:
    """Logits of a history, computed in contexts that hold a single sequence and never see a checkpoint."""

    def __init__(self, model: llamackpt.Model, n_slots: int = 6, n_seq_max: int = 1, flash_attn: bool = False) -> None:
        self._contexts = [
            model.context(
                n_ctx=N_CTX,
                n_batch=64,
                n_ubatch=64,
                n_seq_max=n_seq_max,
                n_threads=1,
                flash_attn=flash_attn,
                type_k="f32",
                type_v="f32",
            )
            for _ in range(n_slots)
        ]
        self._held: list[tuple[Event, ...]] = [()] * n_slots
        self._used = [0] * n_slots
        self._clock = itertools.count(1)
        self._logits: list[Logits | None] = [None] * n_slots

    def logits(self, events: tuple[Event, ...]) -> Logits:
        """After the last event, which is a token."""
        slot = self._find(events)
        held, ctx = self._held[slot], self._contexts[slot]
        if held != events[: len(held)]:
            ctx.clear()
            held = ()
        todo = list(events[len(held) :])
        self._held[slot] = ()  # in case of an exception
        while todo:
            kind, *args = todo[0]
            if kind == "token":
                run = [event[1] for event in itertools.takewhile(lambda event: event[0] == "token", todo)]
                self._logits[slot] = ctx.decode(run, pos=args[1])[0]
                del todo[: len(run)]
                continue
            if kind == "rm":
                ctx.seq_rm(0, *args)
            else:
                ctx.seq_add(0, *args)
            del todo[0]
        self._held[slot], self._used[slot] = events, next(self._clock)
        logits = self._logits[slot]
        assert logits is not None
        return logits

    def _find(self, events: tuple[Event, ...]) -> int:
        """The context that holds the longest beginning of it, else the one that was not used for longest."""
        slots = range(len(self._held))
        best = max(slots, key=lambda i: len(self._held[i]) if self._held[i] == events[: len(self._held[i])] else 0)
        if self._held[best] and self._held[best] == events[: len(self._held[best])]:
            return best
        return min(slots, key=self._used.__getitem__)


def nmse(a: Logits, b: Logits) -> float:
    """Of a, against b."""
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("inf")
    return float(np.sum((a - b) ** 2, dtype=np.float64) / np.sum(b**2, dtype=np.float64))
