"""The operations of the random test: each is done to a context and to its model (random_model.py), and what the context
answers is compared. Which operations, and how many, is random_ops.py's.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from random_kinds import EXCLUDED, Kind
from random_model import EMPTY, MAX_LEN, N_CTX, N_SEQ, Logits, Memory, Oracle, Saved, State, new_cell, nmse

import llamackpt
from llamackpt._ffi import lib
from llamackpt.errors import CheckpointMemoryError, ContextFullError, StaleCheckpointError, UnsupportedError

N_WINDOW = 32  # of the generated models
N_SAVED = 6


class Mismatch(AssertionError):
    """The context is not what the model says."""


class Run:
    """One context, and the operations on it. `config` chooses its options."""

    def __init__(self, kind: Kind, model: llamackpt.Model, oracle: Oracle, config: int, include: frozenset[str]) -> None:
        self.kind, self.model, self.oracle = kind, model, oracle
        unified = bool(config & 1)
        self.memory = Memory(kind, unified=unified and not kind.streams)
        self.spare = (0, 1, 3, 6)[config >> 1 & 3]
        self.ctx = model.context(
            n_ctx=N_CTX, n_batch=64, n_ubatch=8, n_seq_max=N_SEQ, checkpoints=self.spare, n_threads=1,
            flash_attn=kind.flash_attn, type_k="f32", type_v="f32",
            kv_unified=unified, n_rs_seq=4 * (config >> 3 & 1),
        )  # fmt: skip
        self.done: Counter[str] = Counter()
        self.include = include
        self.deleted: list[llamackpt.Checkpoint] = []

    def _excluded(self, name: str) -> bool:
        self.done[f"excluded {name}"] += 1
        assert name in EXCLUDED
        return name not in self.include

    # decoding

    def _tokens(self, n: int, salt: int) -> list[int]:
        return [int(token) for token in np.random.default_rng(salt).integers(0, self.model.n_vocab, n)]

    def _room(self, seq: int, n: int) -> None:
        """A sequence that gets too long begins again."""
        if self.memory.seqs[seq].pos + n > MAX_LEN:
            self.remove_all(seq, 0, 0)

    def decode(self, a: int, b: int, c: int) -> None:
        self._decode({a % N_SEQ: 1 + b % 12}, c)

    def decode_one(self, a: int, b: int, c: int) -> None:
        self._decode({a % N_SEQ: 1}, b + c)

    def fill(self, a: int, b: int, c: int) -> None:
        """As many tokens as a batch can have."""
        self._decode({a % N_SEQ: 64 - b % 16}, c)

    def decode_some(self, a: int, b: int, c: int) -> None:
        """Several sequences in one batch, in turn or one after the other."""
        self._decode({seq: 1 + (b >> seq) % 6 for seq in range(N_SEQ) if (a + 1) >> seq & 1} or {0: 2}, c)

    def _decode(self, counts: dict[int, int], salt: int) -> list[int]:
        for seq, n in counts.items():
            self._room(seq, n)
        seqs = self.memory.seqs
        texts = {seq: self._tokens(n, salt + 977 * seq) for seq, n in counts.items()}
        order = [(seq, i) for seq, n in counts.items() for i in range(n)]
        if salt & 1:
            order.sort(key=lambda entry: entry[1])
        batch = llamackpt.Batch()
        for seq, i in order:
            batch.add(texts[seq][i], seqs[seq].pos + 1 + i, seq, logits=i + 1 == counts[seq])
        logits = self._submit(batch, counts)
        if logits is None:
            return []
        rows = [seq for seq, i in order if i + 1 == counts[seq]]
        for seq, row in zip(rows, logits, strict=True):
            seqs[seq] = seqs[seq].decoded(texts[seq], [new_cell() for _ in texts[seq]])
            self._compare(row, seq)
        return rows

    def _submit(self, batch: llamackpt.Batch, counts: dict[int, int]) -> Logits | None:
        """Its logits; None if there is no room for so many tokens more in the sequences, which is checked."""
        fits = self.memory.fits(counts)
        try:
            return self.ctx.decode_batch(batch)
        except ContextFullError:
            if fits:
                raise Mismatch(f"no room for {counts}") from None
            self.done["full"] += 1
            return None

    def _compare(self, row: Logits, seq: int) -> None:
        """With what the tokens of the sequence give in a context of their own."""
        state = self.memory.seqs[seq]
        error = nmse(row, self.oracle.logits(state.events))
        if not error < self.kind.bound:
            raise Mismatch(f"logits of sequence {seq} at {state.pos}: NMSE {error:.2g}")

    def decode_shared(self, a: int, b: int, c: int) -> None:
        """Tokens of two sequences at once, which are the same so far."""
        src, dst, n = a % N_SEQ, b % N_SEQ, 1 + c % 3
        if src == dst or not self.memory.unified:
            return
        self._room(src, n)
        self.copy(src, dst, c)
        state = self.memory.seqs[src]
        tokens = self._tokens(n, c)
        batch = llamackpt.Batch()
        for i, token in enumerate(tokens):
            batch.add(token, state.pos + 1 + i, (src, dst) if c & 1 else (dst, src), logits=i + 1 == n)
        if not self.kind.shared:
            with refused(UnsupportedError):
                self.ctx.decode_batch(batch)
            return
        logits = self._submit(batch, {src: n})
        if logits is None:
            return
        self.memory.seqs[src] = self.memory.seqs[dst] = state.decoded(tokens, [new_cell() for _ in tokens])
        self._compare(logits[0], src)

    # checkpoints

    def save(self, a: int, b: int, c: int) -> Saved | None:
        seq, full, tier = a % N_SEQ, bool(b & 1), ("auto", "auto", "device", "host")[b >> 1 & 3]
        if len(self.memory.saved) >= N_SAVED:
            self.delete(c, 0, 0)
        state, supported = self.memory.seqs[seq], self.ctx.supports_checkpoints
        if tier == "device" and not supported:
            with refused(UnsupportedError):
                self.ctx.checkpoint(seq, full=full, tier=tier)
            return None
        handle = self.ctx.checkpoint(seq, full=full, tier=tier)  # type: ignore[arg-type]
        if handle.tier not in self._tiers(state, full, tier, supported):
            raise Mismatch(f"a checkpoint of {self.kind.name} with tier={tier}, full={full} is on {handle.tier}")
        saved = Saved(handle, seq, full, state, handle.tier, handle.nbytes_host > 0)
        self.memory.saved.append(saved)
        if state.pending:
            self.done["saved with a rollback pending"] += 1
        return saved

    def _tiers(self, state: State, full: bool, tier: str, supported: bool) -> set[str]:
        if state.pos < 0:
            return {"shared"}
        if tier == "host" or not supported:
            return {"host"}
        if self.kind.tokens and full and (self.kind.index or self.kind.streams):
            return {self.kind.copies}
        if self.kind.window or (self.kind.tokens and not self.kind.exact):
            return {"shared", self.kind.copies}
        if not self.kind.recurrent:
            return {"shared"}
        if tier == "device":
            return {self.kind.copies}
        n_shared = sum(ck.tier == "shared" and not ck.stale and ck.state.pos >= 0 for ck in self.memory.saved)
        return {"shared"} if n_shared < self.spare else {"shared", self.kind.copies}

    def _pick(self, a: int) -> Saved | None:
        return self.memory.saved[a % len(self.memory.saved)] if self.memory.saved else None

    def restore(self, a: int, b: int, c: int) -> Saved | None:
        ck = self._pick(a)
        if ck is None:
            return None
        seq = b % N_SEQ if ck.full else ck.seq
        if ck.stale:
            with refused(StaleCheckpointError):
                ck.handle.restore(seq)
            return None
        copies = ck.full and not ck.written and self.kind.tokens and not self.memory.unified and seq != ck.seq
        fits = (not ck.written and not copies) or self.memory.fits({seq: len(ck.state.cells)}, without=seq)
        alone = self.memory.is_alone(seq)
        try:
            ck.handle.restore(seq)
        except CheckpointMemoryError:
            # a sequence that shares its tokens is kept until the new one is in place
            if fits and alone:
                raise
            self.done["no memory"] += 1
            return None
        self.done[f"restored {'full' if ck.full else 'rollback'}, {ck.tier}"] += 1
        state = ck.state
        if not ck.full:  # the attention cells are those that the sequence has now
            state = replace(state, cells=self.memory.seqs[seq].cells[: len(state.cells)])
        if ck.written and state.pos >= 0:
            rewritten = ck.full or not (self.kind.recurrent or self.kind.window)
            state = state.copy() if rewritten else replace(state, cell=new_cell(), copied=True)
        elif ck.tier == "device":
            state = replace(state, cell=new_cell(), copied=True)
        if copies:  # the attention cells, into the cache of the sequence
            state = replace(state, cells=state.copy().cells)
            self.done["restored into the cache of another sequence"] += 1
        if ck.tier != "shared":
            state = replace(state, pending=False)
        elif self.memory.is_parted(state, seq):
            state = replace(state, cell=new_cell())
        self.memory.on_restored(ck, seq)
        self.memory.seqs[seq] = state
        return ck

    def probe(self, a: int, b: int, c: int) -> None:
        """Restore, and decode what followed then. Of a running state alone it is the same bits, wherever it is now."""
        ck = self.restore(a, b, c)
        if ck is None or ck.draft is None or ck.full:
            return
        tokens, logits = ck.draft
        if not self.memory.fits({ck.seq: len(tokens)}):
            return
        again = self._decode_text(ck.seq, tokens)
        if not self.kind.tokens and not np.array_equal(again, logits):
            raise Mismatch(f"not the same bits after a restore: NMSE {nmse(again, logits):.2g}")

    def draft(self, a: int, b: int, c: int) -> None:
        """A rejected draft: save, decode, restore, and decode the same again: the same bits, without the checkpoint too."""
        self._room(a % N_SEQ, 8)
        if c & 48 == 48:  # one that is left can hide what goes wrong without any
            for other in [other for other in self.memory.saved if not other.full]:
                self.delete(self.memory.saved.index(other), 0, 0)
        ck = self.save(a, b, c)
        tokens = self._tokens(1 + c % 8, b)
        if ck is None or not self.memory.fits({ck.seq: 2 * len(tokens) + len(ck.state.cells)}):
            return
        first = self._decode_text(ck.seq, tokens)
        i = self.memory.saved.index(ck)
        if self.restore(i, ck.seq, 0) is None:
            raise Mismatch("a checkpoint of just now cannot be restored")
        deleted = bool(c & 16)
        if deleted:
            self.delete(i, 0, 0)
        again = self._decode_text(ck.seq, tokens)
        # cells of the attention that were written out come back into others: sums in their order
        moved = self.kind.tokens and ck.written and (ck.full or self.kind.window or not self.kind.recurrent)
        if not (nmse(again, first) < self.kind.bound if moved else np.array_equal(first, again)):
            raise Mismatch(f"not the same bits after a rejected draft: NMSE {nmse(again, first):.2g}")
        if deleted:
            self.done["drafts whose checkpoint was deleted"] += 1
            return
        ck.draft = tokens, first
        if c & 8:
            self.restore(i, ck.seq, 0)

    def fork(self, a: int, b: int, c: int) -> None:
        """A full checkpoint into two sequences; the first has other positions in the same state when the second comes."""
        seq = a % N_SEQ
        ck = self.save(seq, 1, c)
        if ck is None:
            return
        self._decode({seq: 1}, c)
        if self.restore(self.memory.saved.index(ck), seq + 1, 0) is None:
            return
        if c & 1:
            self.shift(seq + 1, b, 0)
        else:
            self.remove_tail(seq + 1, b, c)
        self.check()
        self.restore(self.memory.saved.index(ck), seq + 2, 0)

    def _decode_text(self, seq: int, tokens: list[int]) -> np.ndarray:
        logits = self.ctx.decode(tokens, seq)[0]
        self.memory.seqs[seq] = self.memory.seqs[seq].decoded(tokens, [new_cell() for _ in tokens])
        self._compare(logits, seq)
        return logits

    def delete(self, a: int, b: int, c: int) -> None:
        ck = self._pick(a)
        if ck is not None:
            self.memory.saved.remove(ck)
            ck.handle.delete()

    def reserve(self, a: int, b: int, c: int) -> None:
        if b == 0 and self.kind.recurrent and self.ctx.supports_checkpoints:
            with refused(CheckpointMemoryError):
                self.ctx.reserve(2**31 - 1)
        self.spare = a % 8
        self.ctx.reserve(self.spare)

    def misuse(self, a: int, b: int, c: int) -> None:
        """What is refused, in C, whatever the state is."""
        with self.ctx._gate as gate:
            ident, memory = (ck := self._pick(a)) and ck.handle.id, gate.memory
            bad = (-1, N_SEQ, 2**31 - 1, -(2**31))[b % 4]
            statuses = [lib.llama_memory_checkpoint_save(memory, bad, 0), lib.llama_memory_checkpoint_save(memory, 0, 8)]
            statuses += [lib.llama_memory_checkpoint_save(memory, 0, 2 | 4), lib.llama_memory_checkpoint_delete(memory, -1)]
            statuses.append(lib.llama_memory_checkpoint_restore(memory, 0, 2**62))
            if ck is not None:
                statuses.append(lib.llama_memory_checkpoint_restore(memory, bad, ident))
                if not ck.full:
                    statuses.append(lib.llama_memory_checkpoint_restore(memory, (ck.seq + 1) % N_SEQ, ident))
        if statuses != [lib.LLAMA_CHECKPOINT_INVALID] * len(statuses):
            raise Mismatch(f"misuse is answered with {statuses}")

    # sequences

    def remove_all(self, a: int, b: int, c: int) -> None:
        seq = a % N_SEQ
        self.ctx.seq_rm(seq)
        self.memory.on_removed(seq, 0)
        self.memory.seqs[seq] = EMPTY

    def remove_tail(self, a: int, b: int, c: int) -> None:
        seq, state = a % N_SEQ, self.memory.seqs[a % N_SEQ]
        p0 = state.pos - b % (3 if self.ctx.n_rs_seq else 7)
        if p0 <= 0:
            return
        if self.kind.recurrent or self.kind.streams:
            self._roll_back(seq, p0)
            return
        if self.kind.window and not (self._is_text(state) and self.ctx.pos_min(seq) <= max(0, p0 - N_WINDOW)):
            return  # what the window needs is gone
        self.ctx.seq_rm(seq, p0)
        self.memory.on_removed(seq, p0)
        self.memory.seqs[seq] = state.removed(p0, 2**31, False)

    def _roll_back(self, seq: int, p0: int) -> None:
        """llama.cpp's own rollback: of as many tokens as there are snapshots of the last batch."""
        state = self.memory.seqs[seq]
        n = state.pos + 1 - p0
        n_snapshots = 0 if state.copied else self.ctx.n_rs_seq
        # of the last batch, and DeepSeek V4 keeps the state before it as well
        n_snapshots = min(n_snapshots, state.n_last if self.kind.streams else state.n_last - 1)
        allowed = not state.pending and 1 <= n <= n_snapshots and not self.memory.shares_state(seq)
        if not allowed:
            with refused(UnsupportedError):
                self.ctx.seq_rm(seq, p0)
            return
        if not self._is_text(state):
            return
        if not self._whole_window(seq) and self._excluded("snapshots-window"):
            return
        self.ctx.seq_rm(seq, p0)
        self.memory.on_removed(seq, p0)
        self.memory.seqs[seq] = replace(state.removed(p0, 2**31, False), cell=state.cell, pending=True)
        self.done["rolled back"] += 1
        if n & 1:  # what comes next is likely to be a decode, and the rollback then no longer pending
            self.save(seq, p0, 0)
        elif n & 2:
            self.decode_shared(seq, seq + 1, p0)

    @staticmethod
    def _is_text(state: State) -> bool:
        return all(event[0] == "token" for event in state.events)

    def remove_middle(self, a: int, b: int, c: int) -> None:
        seq, state = a % N_SEQ, self.memory.seqs[a % N_SEQ]
        if state.pos < 4 or not self._whole_window(seq):
            return
        if self.kind.name == "hybrid-kpool" and self._excluded("middle-kpool"):
            return
        p0 = b % (state.pos - 1)
        p1 = min(p0 + 1 + c % 5, state.pos)
        if not self.kind.middle:
            with refused(UnsupportedError):
                self.ctx.seq_rm(seq, p0, p1)
            return
        self.ctx.seq_rm(seq, p0, p1)
        self.memory.on_removed(seq, p0, p1)
        self.memory.seqs[seq] = state.removed(p0, p1, self.kind.recurrent)

    def _whole_window(self, seq: int) -> bool:
        """Nothing is out of the window of the next token, so that moving tokens cannot bring back what may be gone."""
        state = self.memory.seqs[seq]
        return not self.kind.window or not self.kind.tokens or state.pos + 1 < N_WINDOW

    def copy(self, a: int, b: int, c: int) -> None:
        src, dst = a % N_SEQ, b % N_SEQ
        state = self.memory.seqs[src]
        if src == dst:
            return
        self.ctx.seq_cp(src, dst)
        self.memory.on_removed(dst, 0)
        if self.kind.streams:
            state = replace(state.copy(), pending=False)
        elif not self.memory.unified and self.kind.tokens:
            state = replace(state.copy(), cell=state.cell, copied=state.copied)
            for ck in self.memory.saved:  # the cache of the sequence is overwritten
                if ck.seq == dst and ck.holds_cells and ck.state.pos >= 0:
                    ck.tier, ck.written = ck.handle.tier, ck.handle.nbytes_host > 0
                    if ck.tier != self.kind.copies or not ck.written:
                        raise Mismatch(f"a full checkpoint is {ck.tier} after its cells were overwritten")
        self.memory.seqs[dst] = state

    def transfer(self, a: int, b: int, c: int) -> None:
        """llama.cpp's own serialisation, from one sequence to another."""
        src, dst = a % N_SEQ, b % N_SEQ
        state = self.memory.seqs[src]
        if src == dst or state.pos < 0 or not self.memory.fits({dst: len(state.cells)}, without=dst):
            return
        self.ctx.state_set(dst, self.ctx.state_get(src))
        self.memory.on_removed(dst, 0)
        self.memory.seqs[dst] = replace(state.copy(), pending=False)

    def read(self, a: int, b: int, c: int) -> None:
        """The bytes of a checkpoint into a sequence. Neither its own sequence nor the checkpoints notice."""
        ck, dst = self._pick(a), b % N_SEQ
        if ck is None:
            return
        if ck.stale or ck.state.pos < 0:
            with refused(UnsupportedError, StaleCheckpointError):
                ck.handle.state_get()
            return
        try:
            data = ck.handle.state_get()
        except UnsupportedError:
            if ck.tier == "shared" and self.kind.exact and not self.kind.index:
                raise
            self.done["not read"] += 1
            return
        if self.memory.fits({dst: len(ck.state.cells)}, without=dst):
            self.ctx.state_set(dst, data)
            self.memory.on_removed(dst, 0)
            self.memory.seqs[dst] = replace(ck.state.copy(), pending=False)
            self.done[f"read from {ck.tier}"] += 1

    def keep(self, a: int, b: int, c: int) -> None:
        if c % 4:
            return
        self.ctx.seq_keep(a % N_SEQ)
        for seq in range(N_SEQ):
            if seq != a % N_SEQ:
                self.memory.on_removed(seq, 0)
                self.memory.seqs[seq] = EMPTY

    def shift(self, a: int, b: int, c: int) -> None:
        """All of a sequence to the right, or its end over a gap to the left."""
        seq, state = a % N_SEQ, self.memory.seqs[a % N_SEQ]
        if not self.kind.shift:
            with refused(UnsupportedError):
                self.ctx.seq_add(seq, 0, -1, 1)
            return
        if state.pos < 0 or state.pos + 8 > MAX_LEN or state.pending or self.memory.is_shared(seq):
            return
        p0, delta = 0, 1 + b % 8
        places = [pos for pos, _ in state.cells]
        gaps = [(y, x + 1 - y) for x, y in zip([-1, *places], places, strict=False) if y > x + 1]
        if gaps and c & 1 and self._whole_window(seq):
            p0, delta = gaps[0]
        self.memory.on_moved(seq, p0, 2**31)
        self.ctx.seq_add(seq, p0, -1, delta)
        self.memory.seqs[seq] = state.shifted(p0, 2**31 - 1, delta)

    def clear(self, a: int, b: int, c: int) -> None:
        if b or c % 4:
            return
        self.ctx.clear(data=bool(a & 1))
        self.deleted += [ck.handle for ck in self.memory.saved]
        self.memory.saved.clear()
        self.memory.seqs[:] = [EMPTY] * N_SEQ
        for handle in self.deleted[-3:]:
            with refused(llamackpt.ClosedError):
                handle.restore()

    # checks

    def check(self) -> None:
        """What can be seen without a decode."""
        for seq, state in enumerate(self.memory.seqs):
            if self.ctx.pos_max(seq) != state.pos:
                raise Mismatch(f"sequence {seq} ends at {self.ctx.pos_max(seq)}, not at {state.pos}")
        for ck in self.memory.saved:
            info = ck.handle._info()
            if info.restorable == ck.stale:
                if not self.kind.exact and self.kind.tokens and not ck.stale:
                    ck.stale = True  # it may be careful
                    continue
                raise Mismatch(f"checkpoint of {ck.seq} at {ck.state.pos} is {'not ' if ck.stale else ''}stale")
            if info.pos != ck.state.pos:
                raise Mismatch(f"checkpoint of {ck.seq} is at {info.pos}, not {ck.state.pos}")

    def sweep(self) -> None:
        """At the end: every sequence, then every checkpoint, goes on as its history says."""
        for seq, state in enumerate(self.memory.seqs):
            if state.pos >= 0:
                self._decode({seq: 2}, 5)
        for i in range(len(self.memory.saved)):
            if self.restore(i, i, 0) is not None:
                ck = self.memory.saved[i]
                self._decode({i % N_SEQ if ck.full else ck.seq: 2}, 6)
            self.check()

    def close(self) -> None:
        self.ctx.close()


@contextlib.contextmanager
def refused(*kinds: type[Exception]) -> Iterator[None]:
    try:
        yield
    except kinds:
        return
    raise Mismatch(f"not refused with {' or '.join(kind.__name__ for kind in kinds)}")
