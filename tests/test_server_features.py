"""What llama-server must do with draft models that read hidden states of the model: EAGLE3, DFlash and DSpark. Real
processes, over HTTP.

As with MTP a draft goes back by the memory's snapshots if it is no longer than these. Here it comes from n-grams now and then,
and goes back to a checkpoint: the tokens that were accepted are decoded again, and with them what the draft model has read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from feature_gguf import write_drafts
from server_checks import (
    PROMPTS,
    assert_same,
    check_answers,
    check_conversations,
    check_grammar,
    check_slot_file,
    check_slots,
    counted,
    greedy,
    start,
)  # fmt: skip

from llamackpt.server import Client

TYPES = {"eagle3": "draft-eagle3", "dflash": "draft-dflash", "dspark": "draft-dspark"}
NGRAMS = ("--spec-ngram-simple-size-n", "2", "--spec-ngram-simple-size-m", "8")
NO_CONTEXT_CHECKPOINTS = ("--ctx-checkpoints", "0")  # and so no spare cell, unless drafts need one


@pytest.fixture(scope="module")
def drafts(hybrid: Path) -> dict[str, Path]:
    return write_drafts(hybrid, hybrid.parent, PROMPTS[::2])


@pytest.fixture(scope="module")
def plain(hybrid: Path) -> Iterator[Client]:
    with start(hybrid, *NO_CONTEXT_CHECKPOINTS) as server:
        yield server.client()


def flags(drafts: dict[str, Path], name: str, n_max: int) -> tuple[str, ...]:
    """n_max: of the draft model, and of the memory's snapshots; 1 brings n-grams of up to 8 as well."""
    types = TYPES[name] + (",ngram-simple" if n_max == 1 else "")
    model = ("--spec-draft-model", str(drafts[name]), "--spec-draft-n-max", str(n_max), "--spec-draft-p-min", "0")
    return ("--spec-type", types, *NGRAMS, *model)


@pytest.mark.parametrize("n_max", [3, 1])
@pytest.mark.parametrize("name", TYPES)
def test_drafts_write_what_the_model_alone_writes(
    plain: Client, hybrid: Path, drafts: dict[str, Path], name: str, n_max: int
) -> None:
    accepted = rejected = 0
    with start(hybrid, *flags(drafts, name, n_max)) as server:
        for prompt in PROMPTS:
            for cache in (False, True):
                found = greedy(server.client(), prompt, cache_prompt=cache)
                accepted += found.timings.draft_n_accepted
                rejected += found.timings.draft_n - found.timings.draft_n_accepted
                assert_same(plain, prompt, greedy(plain, prompt), found)
    assert accepted > (10 if name == "dflash" else 200)
    assert rejected > 200


@pytest.mark.parametrize("name", TYPES)
def test_a_round_is_one_decode_and_has_a_draft(hybrid: Path, drafts: dict[str, Path], name: str) -> None:
    """After a rollback as well: what was accepted goes with the next draft, and not in a batch of its own."""
    with start(hybrid, *flags(drafts, name, 1), *NO_CONTEXT_CHECKPOINTS) as server:
        client = server.client()
        grown = counted(client, lambda: [greedy(client, prompt) for prompt in PROMPTS])
    assert grown["llamacpp:checkpoint_restore_count"] > 2 * len(PROMPTS)
    # of each answer the prompt and perhaps the last token, for which there is no room to draft
    without = grown["llamacpp:n_decode_total"] - grown["llamacpp:spec_decode_num_drafts_total"]
    assert len(PROMPTS) <= without <= 2 * len(PROMPTS)


def test_drafts_after_a_rollback_to_a_checkpoint_are_as_good_as_others(
    hybrid: Path, drafts: dict[str, Path], tmp_path: Path
) -> None:
    """They are made from the hidden state of the last accepted token, and what the draft model has read of the others."""
    log = tmp_path / "log"
    with start(hybrid, *flags(drafts, "eagle3", 1), log=log, env={"LLAMA_TRACE": "1"}) as server:
        for prompt in PROMPTS[::2]:
            greedy(server.client(), prompt, 100)
    rounds = re.findall(r"accepted +(\d+)/ *(\d+) draft tokens( \(restore)?", log.read_text())
    after = [int(right) for (_, _, restored), (right, drafted, _) in pairwise(rounds) if restored and drafted == "1"]
    others = [int(right) for (_, _, restored), (right, drafted, _) in pairwise(rounds) if not restored and drafted == "1"]
    assert len(after) > 8
    assert sum(after) / len(after) > 0.7 * sum(others) / len(others)


@pytest.mark.parametrize("name", TYPES)
def test_a_grammar_goes_back_with_the_memory(plain: Client, hybrid: Path, drafts: dict[str, Path], name: str) -> None:
    with start(hybrid, *flags(drafts, name, 1)) as server:
        check_grammar(plain, server.client())


@pytest.mark.parametrize("name", TYPES)
def test_four_slots_at_once_write_what_each_writes_alone(
    plain: Client, hybrid: Path, drafts: dict[str, Path], name: str
) -> None:
    jobs = [(prompt, 20 + 12 * index) for index, prompt in enumerate(PROMPTS)]
    with start(hybrid, *flags(drafts, name, 1), n_ctx=4 * 512, parallel=4) as server:
        check_slots(plain, server, jobs, 4, 3)


@pytest.mark.parametrize("name", TYPES)
def test_a_conversation_goes_on_from_its_checkpoints(
    plain: Client, hybrid: Path, drafts: dict[str, Path], name: str, tmp_path: Path
) -> None:
    """Over two conversations in turn on one slot, and over a slot file."""
    with start(hybrid, *flags(drafts, name, 1), "--cache-ram", "64", "--slot-save-path", str(tmp_path)) as server:
        client = server.client()
        prompt, found = check_conversations(plain, client)
        check_slot_file(plain, client, prompt + found.text)


def test_the_draft_model_goes_on_where_a_restored_prompt_ends(hybrid: Path, drafts: dict[str, Path], tmp_path: Path) -> None:
    """The first draft of EAGLE3 is from the hidden state of the last token, which is not in the memory of any model."""
    prompt, more = PROMPTS[0], "    "
    answers = []
    with start(hybrid, *flags(drafts, "eagle3", 3), "--cache-ram", "64", "--slot-save-path", str(tmp_path)) as server:
        client = server.client()
        first = greedy(client, prompt, 20)
        tokens = client.tokenize(prompt) + first.tokens[:-1] + client.tokenize(more)
        answers.append(greedy(client, tokens, 40, cache_prompt=True))
        client.erase_slot(0)
        greedy(client, prompt, 20)
        client.save_slot(0, "one")
        greedy(client, PROMPTS[1], 20)  # makes it a cached prompt
        answers.append(greedy(client, tokens, 40, cache_prompt=True))
        greedy(client, PROMPTS[1], 20)
        client.restore_slot(0, "one")
        answers.append(greedy(client, tokens, 40, cache_prompt=True))
    assert all(answer.timings.prompt_n < 8 for answer in answers)
    assert len({tuple(answer.tokens) for answer in answers}) == 1
    assert len({(answer.timings.draft_n, answer.timings.draft_n_accepted) for answer in answers}) == 1


@pytest.mark.parametrize("name", TYPES)
def test_several_answers_to_one_prompt_are_each_what_one_would_be(
    plain: Client, hybrid: Path, drafts: dict[str, Path], name: str
) -> None:
    with start(hybrid, *flags(drafts, name, 1), n_ctx=4 * 512, parallel=4) as server:
        check_answers(plain, server)


def test_a_draft_goes_on_where_the_context_was_shifted(transformer: Path, tmp_path: Path) -> None:
    """EAGLE3 keeps the position of the last token outside of its cache: it moves with the others."""
    log, drafts = tmp_path / "log", write_drafts(transformer, tmp_path, PROMPTS[::2])
    with start(transformer, *flags(drafts, "eagle3", 3), "--context-shift", n_ctx=256, log=log) as server:
        done = greedy(server.client(), PROMPTS[1], 600, ignore_eos=True)
    assert (len(done.tokens), done.truncated) == (600, True)
    assert "context shift, n_keep" in log.read_text()
    assert "inconsistent sequence positions" not in log.read_text()
