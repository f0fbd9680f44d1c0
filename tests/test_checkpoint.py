"""Checkpoints as a user takes them: they bring the very same logits back, or say why not."""

from __future__ import annotations

import contextlib
import gc
import subprocess
import sys
import threading

import numpy as np
import pytest
from conftest import ctrl_c_after, interrupted_rounds

import llamackpt
from llamackpt import CheckpointError, ClosedError, StaleCheckpointError
from llamackpt._ffi import ffi, lib

PROMPT = "import os\n\n\ndef walk(top):\n    "
DRAFT = "raise NotImplementedError(top)\n"


def start(ctx: llamackpt.Context, seq_id: int = 0) -> int:
    tokens = ctx.model.tokenize(PROMPT)
    ctx.decode(tokens, seq_id, logits=None)
    return len(tokens)


def reference(model: llamackpt.Model, *texts: str) -> np.ndarray:
    """The logits after the texts, one batch each, in a context that never took a checkpoint."""
    with model.context(n_ctx=512, n_seq_max=3) as fresh:
        for text in texts:
            logits = fresh.decode(model.tokenize(text))
        return logits


@pytest.mark.parametrize("tier", ["auto", "device", "host"])
@pytest.mark.parametrize("full", [False, True])
def test_a_rejected_draft_leaves_no_trace(model: llamackpt.Model, tier: str, full: bool) -> None:
    expected = reference(model, PROMPT, "for name")
    with model.context(n_ctx=512, n_seq_max=3, checkpoints=2) as ctx:
        n = start(ctx)
        with ctx.checkpoint(full=full, tier=tier) as ck:
            for _ in range(3):
                ctx.decode(model.tokenize(DRAFT))
                ck.restore()
                assert ctx.pos_max() == n - 1
        assert np.array_equal(ctx.decode(model.tokenize("for name")), expected)


def test_a_shared_checkpoint_copies_nothing(ctx: llamackpt.Context) -> None:
    start(ctx)
    with ctx.checkpoint() as ck:
        ctx.decode(ctx.model.tokenize(DRAFT))
        ck.restore()
        assert ck.tier == "shared"
    perf = ctx.checkpoint_perf()
    assert perf.size_copied_device == perf.size_copied_host == 0
    assert (perf.n_save, perf.n_restore, perf.n_delete, perf.n_seq_rm) == (1, 1, 1, 1)


def test_without_a_spare_cell_the_state_is_copied_and_says_so(model: llamackpt.Model) -> None:
    with model.context(n_ctx=256) as ctx:
        start(ctx)
        assert ctx.checkpoint().tier == "device"
        assert ctx.checkpoint(tier="host").nbytes_host > 0
        ctx.reserve(1)
        assert ctx.checkpoint().tier == "shared"


def test_any_number_of_checkpoints_of_one_sequence(model: llamackpt.Model) -> None:
    words = ["def ", "f", "(", "a", ", ", "b", "):\n"]
    with model.context(n_ctx=256, checkpoints=2) as ctx:
        taken = []
        for word in words:
            ctx.decode(model.tokenize(word))
            taken.append(ctx.checkpoint())
        assert {ck.tier for ck in taken} == {"shared", "device"}
        for i in reversed(range(len(words))):
            taken[i].restore()
            assert np.array_equal(ctx.decode(model.tokenize("x")), reference(model, *words[: i + 1], "x"))


def test_more_full_checkpoints_than_there_are_sequence_ids_share_their_cells(model: llamackpt.Model) -> None:
    """As a search over many branches takes them: each of another state, and of another length."""
    n = 300  # llama.cpp has 256 sequence ids
    words = model.tokenize("\n".join(PROMPT.split() * n))[:n]
    with model.context(n_ctx=512, n_seq_max=2, checkpoints=n) as ctx:
        taken, logits = [], []
        for word in words:
            logits.append(ctx.decode([word])[0])
            taken.append(ctx.checkpoint(full=True))
        assert {ck.tier for ck in taken} == {"shared"}
        ctx.seq_rm(0)
        for i in (n - 2, 255, 254, 0, 128):
            taken[i].restore(1)
            found = ctx.decode([words[i + 1]], 1)[0]
            # the checkpoints hold all the cells, so the next token goes behind them, where more cells are summed
            assert np.sum((found - logits[i + 1]) ** 2) < 1e-3 * np.sum(logits[i + 1] ** 2)
            assert i < 255 or np.array_equal(found, logits[i + 1])
        taken[0].delete()
        assert ctx.checkpoint(1, full=True).tier == "shared"


def test_a_full_checkpoint_is_a_fork_that_outlives_its_sequence(ctx: llamackpt.Context) -> None:
    start(ctx)
    ck = ctx.checkpoint(full=True)
    ctx.seq_rm(0)
    assert ctx.pos_max(0) == -1
    for seq_id in (1, 2):
        ck.restore(seq_id)
    expected = reference(ctx.model, PROMPT, "for name")
    assert np.array_equal(ctx.decode(ctx.model.tokenize("for name"), 1), expected)
    assert ctx.pos_max(2) == ck.pos


def test_with_a_cache_for_each_sequence_a_fork_is_a_copy_on_the_device(model: llamackpt.Model) -> None:
    expected = reference(model, PROMPT, "for name")
    with model.context(n_ctx=3 * 512, n_seq_max=3, checkpoints=2, kv_unified=False) as ctx:
        n = start(ctx)
        with ctx.checkpoint(full=True) as ck:
            assert ck.tier == "shared"
            ctx.seq_rm(0)
            ck.restore()
            assert ctx.checkpoint_perf().size_copied_device == 0
            for seq_id in (2, 0):
                ck.restore(seq_id=seq_id)
                assert np.array_equal(ctx.decode(model.tokenize("for name"), seq_id), expected)
            assert ctx.checkpoint_perf().size_copied_device > 0
            assert ctx.checkpoint_perf().size_copied_host == 0
            ctx.seq_rm(0)
            ctx.seq_cp(2, 0)  # takes all of the cache that the checkpoint is in
            assert ck.tier == "device"
            assert 0 < ck.nbytes_host < ck.nbytes / 4  # not the cells, but what they hold
            assert ctx.checkpoint_perf().size_copied_host == 0
            ck.restore(seq_id=1)
            assert ctx.pos_max(1) == n - 1
            assert np.allclose(ctx.decode(model.tokenize("for name"), 1), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("full", [False, True])
def test_the_bytes_of_a_checkpoint_are_those_of_its_sequence(model: llamackpt.Model, full: bool) -> None:
    expected = reference(model, PROMPT, "for name")
    with model.context(n_ctx=512, n_seq_max=3, checkpoints=2) as ctx, model.context(n_ctx=512) as other:
        start(ctx)
        states = [ctx.state_get(partial=partial) for partial in (False, True)]
        with ctx.checkpoint(full=full) as ck:
            ctx.decode(model.tokenize(DRAFT))
            with ctx.checkpoint() as newer:
                assert [ck.state_get(partial=partial) for partial in (False, True)] == states
                assert newer.valid
            after = ctx.decode(model.tokenize("for name"))
            other.state_set(0, ck.state_get())
        assert np.array_equal(after, reference(model, PROMPT, DRAFT, "for name"))
        assert np.array_equal(other.decode(model.tokenize("for name")), expected)


def test_what_cannot_be_read_says_why(ctx: llamackpt.Context) -> None:
    with ctx.checkpoint() as empty, pytest.raises(llamackpt.UnsupportedError, match="it is empty"):
        empty.state_get()
    start(ctx)
    on_host, stale = ctx.checkpoint(tier="host"), ctx.checkpoint()
    with pytest.raises(llamackpt.UnsupportedError, match="host tier"):
        on_host.state_get()
    assert on_host.state_get(partial=True) == ctx.state_get(partial=True)
    ctx.seq_rm(0)
    with pytest.raises(StaleCheckpointError):
        stale.state_get()
    stale.delete()
    with pytest.raises(ClosedError):
        stale.state_get()


def test_the_other_sequences_do_not_notice(model: llamackpt.Model) -> None:
    def run(with_checkpoints: bool) -> list[np.ndarray]:
        out = []
        with model.context(n_ctx=512, n_seq_max=3, checkpoints=2) as ctx:
            for seq_id in range(3):
                ctx.decode(model.tokenize(PROMPT), seq_id)
            for step in range(6):
                if with_checkpoints:
                    with ctx.checkpoint(step % 3) as ck:
                        ctx.decode(model.tokenize(DRAFT), step % 3)
                        ck.restore()
                batch = llamackpt.Batch()
                for seq_id in range(3):
                    batch.add(100 + step + seq_id, ctx.pos_max(seq_id) + 1, seq_id, logits=True)
                out.append(ctx.decode_batch(batch))
        return out

    for plain, interrupted in zip(run(False), run(True), strict=True):
        assert np.array_equal(plain, interrupted)


def test_a_checkpoint_of_an_empty_sequence_empties_it(ctx: llamackpt.Context) -> None:
    ck = ctx.checkpoint(1)
    start(ctx, 1)
    ck.restore()
    assert (ck.pos, ctx.pos_max(1)) == (-1, -1)


def test_a_stale_checkpoint_is_refused_and_changes_nothing(ctx: llamackpt.Context) -> None:
    start(ctx)
    early = ctx.checkpoint()
    ctx.decode(ctx.model.tokenize("for"))
    late = ctx.checkpoint()
    early.restore()
    assert (early.valid, late.valid) == (True, False)
    before = ctx.pos_max()
    with pytest.raises(StaleCheckpointError, match="full=True") as caught:
        late.restore()
    assert caught.value.code == lib.LLAMA_CHECKPOINT_STALE
    assert ctx.pos_max() == before
    assert late.nbytes == 0


def test_a_rollback_checkpoint_stays_in_its_sequence(ctx: llamackpt.Context) -> None:
    start(ctx)
    with pytest.raises(CheckpointError, match="take a full one"):
        ctx.checkpoint().restore(1)


def test_clear_deletes_checkpoints(ctx: llamackpt.Context) -> None:
    start(ctx)
    ck = ctx.checkpoint()
    ctx.clear()
    assert not ck.valid
    with pytest.raises(ClosedError, match="clear"):
        ck.restore()
    ck.delete()


def test_after_delete_and_after_close_there_is_an_error_and_no_crash(model: llamackpt.Model) -> None:
    ctx = model.context(n_ctx=256, checkpoints=1)
    start(ctx)
    deleted, open_one = ctx.checkpoint(), ctx.checkpoint()
    deleted.delete()
    deleted.delete()
    with pytest.raises(ClosedError):
        deleted.restore()
    with pytest.raises(ClosedError), deleted:
        pass
    ctx.close()
    ctx.close()
    assert not open_one.valid
    with pytest.raises(ClosedError):
        open_one.restore()
    open_one.delete()


def test_an_exception_in_a_with_deletes_the_checkpoint(ctx: llamackpt.Context) -> None:
    start(ctx)
    with pytest.raises(RuntimeError, match="mine"), ctx.checkpoint() as ck:
        raise RuntimeError("mine")
    assert not ck.valid
    assert ctx.checkpoint_perf().n_delete == 1


def test_a_forgotten_checkpoint_gives_its_cell_back(model: llamackpt.Model) -> None:
    with model.context(n_ctx=256, checkpoints=1) as ctx:
        start(ctx)
        for _ in range(20):
            assert ctx.checkpoint().tier == "shared"
            ctx.decode([5])
            gc.collect()


def test_a_checkpoint_collected_in_another_thread_is_deleted(ctx: llamackpt.Context) -> None:
    start(ctx)
    held = [ctx.checkpoint()]
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    ctx.pos_max()
    assert ctx.checkpoint_perf().n_delete == 1


def alive(ctx: llamackpt.Context) -> int:
    perf = ctx.checkpoint_perf()
    return perf.n_save - perf.n_delete


def test_a_checkpoint_in_a_cycle_is_deleted(ctx: llamackpt.Context) -> None:
    start(ctx)
    cycle: list[object] = [ctx.checkpoint()]
    cycle.append(cycle)
    del cycle
    gc.collect()
    assert alive(ctx) == 0


def test_a_checkpoint_that_is_deleted_while_the_context_is_busy_waits_for_the_next_call(ctx: llamackpt.Context) -> None:
    start(ctx)
    ck = ctx.checkpoint()
    with ctx._gate:  # as a call that a handler interrupts
        ck.delete()
        ck.delete()
        assert not ck.valid
    assert alive(ctx) == 0


@pytest.mark.parametrize("split", [False, True])
def test_ctrl_c_as_a_checkpoint_is_saved_loses_none(model: llamackpt.Model, split: bool) -> None:
    with model.context(n_ctx=256, n_batch=8, checkpoints=1) as ctx:
        start(ctx)
        before = alive(ctx)
        with contextlib.suppress(KeyboardInterrupt), ctrl_c_after("checkpoint_save"):
            ctx.decode(list(range(20))) if split else ctx.checkpoint()
        assert ctx.checkpoint().tier == "shared"
        assert alive(ctx) == before == 0


def test_a_signal_handler_that_raises_anywhere_loses_no_checkpoint(ctx: llamackpt.Context) -> None:
    def work() -> None:
        for _ in range(200):
            ck = ctx.checkpoint()
            ck.delete()
            ck = ctx.checkpoint()
            del ck

    start(ctx)
    for _ in interrupted_rounds(work, 500, 2e-5, 4e-4):
        pass
    assert alive(ctx) == 0


ENDS = """
import os, sys, llamackpt
model = llamackpt.Model(llamackpt.default_model())
ctx = model.context(n_ctx=256, n_threads=1, checkpoints=2)
ctx.decode([1, 2, 3])
kept, forgotten, deleted = ctx.checkpoint(), ctx.checkpoint(), ctx.checkpoint()
if os.fork() == 0:
    deleted.delete()
    del forgotten
    sys.exit(0)
assert os.wait()[1] == 0
perf = ctx.checkpoint_perf()
assert (perf.n_save, perf.n_delete) == (3, 0), perf
for ck in (kept, forgotten, deleted):
    ck.restore()
sys.modules["kept"] = kept
"""


def test_a_fork_and_the_end_of_python_delete_no_checkpoint_of_another_process() -> None:
    done = subprocess.run([sys.executable, "-c", ENDS], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("seq_id", [-1, 3, 255, 256, 2**31 - 1])
def test_a_sequence_out_of_range_is_named(ctx: llamackpt.Context, seq_id: int) -> None:
    start(ctx)
    ck = ctx.checkpoint(full=True)
    with pytest.raises(ValueError, match="out of range"):
        ctx.checkpoint(seq_id)
    with pytest.raises(ValueError, match="out of range"):
        ck.restore(seq_id)


def test_an_unknown_tier_is_named(ctx: llamackpt.Context) -> None:
    for tier in ("disk", None, []):
        with pytest.raises(ValueError, match="auto, device, host"):
            ctx.checkpoint(tier=tier)  # type: ignore[arg-type]


def test_a_flag_that_is_neither_true_nor_false_is_named(ctx: llamackpt.Context) -> None:
    start(ctx)
    ck = ctx.checkpoint(full=np.True_)  # type: ignore[arg-type]
    ck.restore(1)
    for name, call in (
        ("full", lambda: ctx.checkpoint(0, "host")), ("full", lambda: ctx.checkpoint(full=None)),
        ("partial", lambda: ctx.state_get(0, "x")), ("partial", lambda: ctx.state_set(0, b"", "x")),
        ("partial", lambda: ck.state_get("x")), ("data", lambda: ctx.clear("x")),
    ):  # fmt: skip
        with pytest.raises(TypeError, match=f"{name} is True or False, not"):
            call()
    assert ctx.pos_max() == ctx.pos_max(1) == ck.pos


def test_ids_are_never_reused(ctx: llamackpt.Context, model: llamackpt.Model) -> None:
    start(ctx)
    with model.context(n_ctx=256) as other:
        ids = [context.checkpoint().id for context in (ctx, other, ctx, other)]
        assert ids == sorted(set(ids))
        foreign = ctx.checkpoint()
        memory = lib.llama_get_memory(other._gate.ctx)
        assert lib.llama_memory_checkpoint_restore(memory, 0, foreign.id) == lib.LLAMA_CHECKPOINT_INVALID
        assert lib.llama_memory_checkpoint_delete(memory, foreign.id) == lib.LLAMA_CHECKPOINT_INVALID
        assert foreign.valid


def test_the_c_api_takes_null_and_nonsense(ctx: llamackpt.Context) -> None:
    info = ffi.new("struct llama_checkpoint_info *")
    perf = ffi.new("struct llama_checkpoint_perf *")
    bad = lib.LLAMA_CHECKPOINT_INVALID
    assert not lib.llama_memory_checkpoint_supported(ffi.NULL)
    assert lib.llama_memory_checkpoint_reserve(ffi.NULL, 1) == bad
    assert lib.llama_memory_checkpoint_save(ffi.NULL, 0, 0) == bad
    assert lib.llama_memory_checkpoint_restore(ffi.NULL, 0, 0) == bad
    assert lib.llama_memory_checkpoint_delete(ffi.NULL, 0) == bad
    assert lib.llama_memory_checkpoint_get_info(ffi.NULL, 0, info) == bad
    lib.llama_memory_checkpoint_get_perf(ffi.NULL, perf)
    assert perf.n_save == 0
    memory = lib.llama_get_memory(ctx._gate.ctx)
    lib.llama_memory_checkpoint_get_perf(memory, ffi.NULL)
    start(ctx)
    ident = lib.llama_memory_checkpoint_save(memory, 0, 0)
    assert lib.llama_memory_checkpoint_get_info(memory, ident, ffi.NULL) == bad
    for flags in (8, 2**31, lib.LLAMA_CHECKPOINT_DEVICE | lib.LLAMA_CHECKPOINT_HOST):
        assert lib.llama_memory_checkpoint_save(memory, 0, flags) == bad
    for wrong in (-1, -(2**63), 2**62):
        assert lib.llama_memory_checkpoint_restore(memory, 0, wrong) == bad
        assert lib.llama_memory_checkpoint_delete(memory, wrong) == bad


@pytest.mark.parametrize("n_spare", [2**31 - 16, 2**31 - 1])
def test_more_spare_cells_than_memory_is_refused_and_changes_nothing(ctx: llamackpt.Context, n_spare: int) -> None:
    n = start(ctx)
    ck = ctx.checkpoint()
    with pytest.raises(llamackpt.CheckpointMemoryError):
        ctx.reserve(n_spare)
    ctx.decode(ctx.model.tokenize("for"))
    ck.restore()
    assert ctx.pos_max() == n - 1


def test_reserve_grows_and_shrinks_around_live_states(model: llamackpt.Model) -> None:
    expected = reference(model, PROMPT, "for name")
    with model.context(n_ctx=512, n_seq_max=3) as ctx:
        start(ctx)
        ck = ctx.checkpoint(full=True)
        for n in (3, 9, 1, 0, 4):
            ctx.reserve(n)
            ctx.decode(model.tokenize(DRAFT))
            ck.restore()
        assert np.array_equal(ctx.decode(model.tokenize("for name")), expected)


def test_llama_cpp_own_rollback_planes_live_beside_checkpoints(model: llamackpt.Model) -> None:
    expected = reference(model, PROMPT, "for name")
    with model.context(n_ctx=512, n_seq_max=3, n_rs_seq=4, checkpoints=2) as ctx:
        n = start(ctx)
        ctx.decode([7, 8, 9])
        ctx.seq_rm(0, n + 1)
        ck = ctx.checkpoint()
        assert ck.pos == n
        ctx.decode([11])
        ck.restore()
        ctx.decode([11])
        first = ctx.checkpoint()
        first.restore()
        assert ctx.pos_max() == n + 1
        ctx.seq_rm(0)
        ctx.decode(model.tokenize(PROMPT))
        assert ctx.decode(model.tokenize("for name")).shape == expected.shape


def test_a_rollback_finds_its_own_snapshots_after_other_sequences_of_the_batch(model: llamackpt.Model) -> None:
    """The batch is split: sequence 1 first, then 0 and 2, between which it is in the way. Upstream moves it without them."""
    parts = [(1, [7, 8, 9, 10, 11, 12, 13]), (0, [17, 18, 19, 20]), (2, [27, 28, 29, 30])]
    rows = []
    for together in (True, False):
        with model.context(n_ctx=512, n_seq_max=3, n_rs_seq=6) as ctx:
            for seq_id in range(3):
                ctx.decode(model.tokenize(PROMPT), seq_id=seq_id)
            batch = llamackpt.Batch()
            for seq_id, tokens in parts:
                for pos, token in enumerate(tokens, ctx.pos_max(seq_id) + 1):
                    batch.add(token, pos, seq_id)
                if not together:
                    ctx.decode(tokens, seq_id=seq_id)
            if together:
                ctx.decode_batch(batch)
            for seq_id, _ in parts:
                ctx.seq_rm(seq_id, ctx.pos_max(seq_id) - 2)
            rows.append([ctx.decode([40], seq_id=seq_id) for seq_id, _ in parts])
    assert np.array_equal(*rows)


def test_serialising_state_into_a_sequence_makes_its_checkpoints_stale(ctx: llamackpt.Context) -> None:
    start(ctx)
    ck, state = ctx.checkpoint(), ctx.state_get()
    ctx.state_set(0, state)
    assert not ck.valid


def test_removing_all_sequences_removes_a_running_state_without_tokens(ctx: llamackpt.Context) -> None:
    """A partial state has none, and while a checkpoint was held the next prompt continued from it."""
    start(ctx)
    ctx.state_set(1, ctx.state_get(0, partial=True), partial=True)
    with ctx.checkpoint():
        assert lib.llama_memory_seq_rm(lib.llama_get_memory(ctx._gate.ctx), -1, -1, -1)
    assert np.array_equal(ctx.decode([5, 6, 7], 1), ctx.decode([5, 6, 7], 2))
