"""What llama-server must do with a model that drafts for itself (MTP), as Qwen3.5 and 3.6 do: real processes, over HTTP.

Such a draft is as long as the memory's snapshots (n_rs_seq), and is rolled back with these. Together with n-grams there are
longer ones: these go back to a checkpoint, and what was accepted of them is decoded again in front of the next draft.
The block is fitted to every other one of PROMPTS: half of the drafts are mostly accepted, half are mostly rejected.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from mtp_gguf import write_mtp
from server_checks import (
    NOISE,
    PROMPTS,
    assert_same,
    check_answers,
    check_concurrent,
    check_conversations,
    check_grammar,
    check_left,
    check_seed,
    check_slot_file,
    check_slots,
    counted,
    greedy,
    held,
    start,
)  # fmt: skip

from llamackpt.server import Client, Completion, Server

MTP = ("--spec-type", "draft-mtp", "--spec-draft-n-max", "3")
LONG = ("--spec-type", "draft-mtp", "--spec-draft-n-max", "6")
UNEQUAL = (*LONG, "--spec-draft-p-min", "0.2")  # a draft ends where the block is not sure
# drafts of up to 8 from n-grams, with snapshots for 3 and for 1
MIXED = ("--spec-type", "draft-mtp,ngram-simple", "--spec-ngram-simple-size-n", "2", "--spec-ngram-simple-size-m", "8")
MIXED_3 = (*MIXED, "--spec-draft-n-max", "3")
MIXED_1 = (*MIXED, "--spec-draft-n-max", "1")
NO_CONTEXT_CHECKPOINTS = ("--ctx-checkpoints", "0")  # and so no spare cell, unless drafts need one


@pytest.fixture(scope="module")
def mtp(hybrid: Path) -> Path:
    return write_mtp(hybrid, hybrid.with_name("mtp.gguf"), PROMPTS[::2])


@pytest.fixture(scope="module")
def plain(hybrid: Path) -> Iterator[Client]:
    """A server of the model without the block, which does not draft."""
    with start(hybrid, *NO_CONTEXT_CHECKPOINTS) as server:
        yield server.client()


@pytest.fixture(scope="module")
def mixed_server(mtp: Path) -> Iterator[Server]:
    with start(mtp, *MIXED_1, *NO_CONTEXT_CHECKPOINTS, n_ctx=256) as server:
        yield server


@pytest.fixture
def mixed(mixed_server: Server) -> Iterator[Client]:
    client = mixed_server.client()
    yield client
    assert mixed_server.returncode is None, mixed_server.log_lines()
    assert client.health()
    assert not any(held(client).values())


# -- the same answers, and what they cost ---------------------------------------------------------------------------------


def test_the_block_changes_nothing_where_it_is_not_used(plain: Client, mtp: Path) -> None:
    with start(mtp) as server:
        for prompt in PROMPTS:
            assert greedy(server.client(), prompt).tokens == greedy(plain, prompt).tokens


@pytest.mark.parametrize("flags", [MTP, LONG, UNEQUAL, MIXED_3, MIXED_1], ids=["3", "6", "unequal", "mixed 3", "mixed 1"])
def test_drafts_write_what_the_model_alone_writes(plain: Client, mtp: Path, flags: tuple[str, ...]) -> None:
    accepted = rejected = 0
    with start(mtp, *flags) as server:
        for prompt in PROMPTS:
            for cache in (False, True):
                found = greedy(server.client(), prompt, cache_prompt=cache)
                accepted += found.timings.draft_n_accepted
                rejected += found.timings.draft_n - found.timings.draft_n_accepted
                assert_same(plain, prompt, greedy(plain, prompt), found)
    assert accepted > 200
    assert rejected > 200


@pytest.mark.parametrize("flags", [LONG, MIXED_3, MIXED_1], ids=["6", "mixed 3", "mixed 1"])
def test_a_round_is_one_decode_and_each_accepted_token_saves_one(plain: Client, mtp: Path, flags: tuple[str, ...]) -> None:
    """Whatever is rejected: what was accepted goes with the next draft, and not in a batch of its own."""
    answers: list[Completion] = []
    many = counted(plain, lambda: [greedy(plain, prompt) for prompt in PROMPTS])["llamacpp:n_decode_total"]
    with start(mtp, *flags, *NO_CONTEXT_CHECKPOINTS) as server:
        client = server.client()
        grown = counted(client, lambda: answers.extend(greedy(client, prompt) for prompt in PROMPTS))
    assert grown["llamacpp:n_decode_total"] == many - sum(answer.timings.draft_n_accepted for answer in answers)
    if flags == LONG:  # the snapshots are enough
        assert grown["llamacpp:checkpoint_save_count"] == grown["llamacpp:checkpoint_restore_count"] == 0
    else:
        assert 0 < grown["llamacpp:checkpoint_restore_count"] < grown["llamacpp:spec_decode_num_drafts_total"]
        assert 0 < grown["llamacpp:checkpoint_save_count"] < grown["llamacpp:spec_decode_num_drafts_total"]


def test_drafts_after_a_rollback_to_a_checkpoint_are_as_good_as_others(mtp: Path, tmp_path: Path) -> None:
    """They are made from the hidden state of the last accepted token. The block knows these prompts and is mostly right."""
    log = tmp_path / "log"
    with start(mtp, *MIXED_1, log=log, env={"LLAMA_TRACE": "1"}) as server:
        for prompt in PROMPTS[::2]:
            greedy(server.client(), prompt, 100)
    rounds = re.findall(r"accepted +(\d+)/ *(\d+) draft tokens( \(restore)?", log.read_text())
    after = [int(right) for (_, _, restored), (right, drafted, _) in pairwise(rounds) if restored and drafted == "1"]
    assert len(after) > 8
    assert sum(after) > 0.6 * len(after)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_seed_draws_the_same_tokens(plain: Client, mixed: Client, seed: int) -> None:
    check_seed(plain, mixed, seed)


def test_a_grammar_goes_back_with_the_memory(plain: Client, mixed: Client) -> None:
    assert check_grammar(plain, mixed).timings.draft_n_accepted > 0


# -- rejection ------------------------------------------------------------------------------------------------------------


def test_rejected_drafts_leave_nothing_and_memory_stays_flat(mixed: Client, mixed_server: Server) -> None:
    def rounds(n: int) -> None:
        for seed in range(n):
            done = mixed.completion(PROMPTS[0], max_tokens=200, seed=seed, cache_prompt=False, **NOISE)
            assert set(done.text) <= set("abcdefghijklmnop")

    expected = greedy(mixed, PROMPTS[0], 24)
    rounds(3)
    before = mixed_server.rss()
    rounds(12)
    assert mixed_server.rss() - before < 8 * 2**20
    assert greedy(mixed, PROMPTS[0], 24).tokens == expected.tokens


def test_generation_ends_at_the_end_of_the_context(plain: Client, mixed: Client) -> None:
    for prompt in PROMPTS[:4]:
        found = greedy(mixed, prompt, 1000)
        assert (found.stop, found.truncated) == ("limit", True) or found.stop == "eos"
        assert found.n_prompt + len(found.tokens) <= 256
        assert_same(plain, prompt, greedy(plain, prompt, len(found.tokens)), found)
    assert len(mixed.completion([40] * 254, max_tokens=20).tokens) >= 1


def test_clients_that_leave_are_cleaned_up_after(mixed: Client) -> None:
    check_left(mixed, 12)


# -- several slots --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", ["--kv-unified", "--no-kv-unified"])
@pytest.mark.parametrize(
    "flags",
    [(*UNEQUAL, *NO_CONTEXT_CHECKPOINTS), UNEQUAL, MIXED_3, (*MIXED_1, *NO_CONTEXT_CHECKPOINTS)],
    ids=["unequal, no spare cell", "unequal", "mixed 3", "mixed 1"],
)
def test_four_slots_at_once_write_what_each_writes_alone(plain: Client, mtp: Path, flags: tuple[str, ...], cache: str) -> None:
    """Drafts of unequal length split a batch. A slot that is decoded first must keep its snapshots meanwhile: upstream moves
    its state to another cell without them, and the rollback then reads those of another slot."""
    jobs = [(prompt, 20 + 12 * index) for index, prompt in enumerate(PROMPTS)]
    with start(mtp, *flags, cache, n_ctx=4 * 512, parallel=4) as server:
        check_slots(plain, server, jobs, 4, 3)


def test_concurrent_and_cancelled_requests_do_not_disturb_each_other(plain: Client, mtp: Path) -> None:
    with start(mtp, *MIXED_1, n_ctx=4 * 512, parallel=4) as server:
        check_concurrent(plain, server, PROMPTS * 2, 4)


def test_several_answers_to_one_prompt_are_each_what_one_would_be(plain: Client, mtp: Path) -> None:
    with start(mtp, *MIXED_3, n_ctx=4 * 512, parallel=4) as server:
        check_answers(plain, server)


# -- prompts that are known already ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [MTP, MIXED_1], ids=["3", "mixed 1"])
def test_a_conversation_goes_on_from_its_checkpoints(plain: Client, mtp: Path, tmp_path: Path, flags: tuple[str, ...]) -> None:
    """Over two conversations in turn on one slot, and over a slot file."""
    with start(mtp, *flags, "--cache-ram", "64", "--slot-save-path", str(tmp_path)) as server:
        client = server.client()
        prompt, found = check_conversations(plain, client)
        assert held(client)["host"] < 8 * 114 * 2**10  # states that made room; of what the block holds, nothing
        check_slot_file(plain, client, prompt + found.text)
