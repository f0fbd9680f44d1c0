"""What llama-server must do on a model with a recurrent state: real processes, over HTTP.

The reference is a server that does not draft and has one slot. llama.cpp's sums depend on the shape of a batch: batches of
the same shape give the same bits, others the same up to rounding, by which two tokens that are all but equally likely may
change places. So weights and attention's cache are f32 here, and `assert_same` lets such a tie pass, and nothing else. That
goes for a draft, for several slots at once and for a prompt in parts, with and without --kv-unified.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import requests
from server_checks import (
    DRAFTS,
    NOISE,
    PROMPTS,
    WILD,
    assert_same,
    check_answers,
    check_concurrent,
    check_grammar,
    check_left,
    check_seed,
    check_slots,
    counted,
    greedy,
    held,
    start,
)  # fmt: skip

import llamackpt
from llamackpt.errors import PromptTooLongError, RequestError
from llamackpt.server import Client, Completion, Server
from llamackpt.server.process import server_program


@pytest.fixture(scope="module")
def wild_server(hybrid: Path) -> Iterator[Server]:
    with start(hybrid, *WILD, "--ctx-checkpoints", "0", n_ctx=256) as server:
        yield server


@pytest.fixture
def wild(wild_server: Server) -> Iterator[Client]:
    client = wild_server.client()
    yield client
    assert wild_server.returncode is None, wild_server.log_lines()
    assert client.health()
    assert not any(held(client).values())
    assert client.metrics().get("llamacpp:checkpoint_held_count", 0) == 0


# -- the same answers -----------------------------------------------------------------------------------------------------


def test_ten_identical_requests_have_one_answer(drafting: Client) -> None:
    answers = [greedy(drafting, PROMPTS[1]) for _ in range(10)]
    assert len({answer.text for answer in answers}) == 1
    assert answers[0].timings.draft_n_accepted > 0


def test_ten_identical_requests_on_a_warm_slot_have_one_answer(plain: Client, drafting: Client) -> None:
    expected = greedy(plain, PROMPTS[1])
    for _ in range(10):
        assert_same(plain, PROMPTS[1], expected, greedy(drafting, PROMPTS[1], cache_prompt=True))


def test_twenty_requests_in_turn_are_those_of_a_server_without_drafts(plain: Client, drafting: Client) -> None:
    drafted = rejected = 0
    for turn in range(20):
        prompt = PROMPTS[turn % len(PROMPTS)] * (1 + turn // len(PROMPTS))
        expected, found = greedy(plain, prompt, 48), greedy(drafting, prompt, 48, cache_prompt=turn % 2 == 0)
        assert_same(plain, prompt, expected, found)
        drafted += found.timings.draft_n
        rejected += found.timings.draft_n - found.timings.draft_n_accepted
    assert drafted > rejected > 50


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_seed_draws_the_same_tokens_with_and_without_drafts(plain: Client, drafting: Client, seed: int) -> None:
    check_seed(plain, drafting, seed)


def test_a_grammar_holds_and_goes_back_with_the_memory(plain: Client, drafting: Client) -> None:
    check_grammar(plain, drafting)


def test_the_shipped_model_repeats_itself_bit_for_bit() -> None:
    with start(llamackpt.default_model(), *DRAFTS) as server:
        answers = [greedy(server.client(), PROMPTS[1]) for _ in range(10)]
    assert len({answer.text for answer in answers}) == 1
    assert answers[0].timings.draft_n_accepted > 0


MODEL_FREE = {
    "ngram-simple": ("--spec-ngram-simple-size-n", "2", "--spec-ngram-simple-size-m", "8"),
    "ngram-mod": ("--spec-ngram-mod-n-match", "2", "--spec-ngram-mod-n-min", "2", "--spec-ngram-mod-n-max", "8"),
    "ngram-map-k": ("--spec-ngram-map-k-size-n", "2", "--spec-ngram-map-k-size-m", "8"),
    "ngram-map-k4v": ("--spec-ngram-map-k4v-size-n", "2", "--spec-ngram-map-k4v-size-m", "8"),
    "ngram-cache": (),
    "ngram-cache,ngram-mod": ("--spec-ngram-mod-n-match", "2", "--spec-ngram-mod-n-min", "2", "--spec-ngram-mod-n-max", "8"),
}


def test_no_model_free_kind_of_draft_is_forgotten_here() -> None:
    done = subprocess.run([server_program(), "--help"], capture_output=True, text=True, timeout=60, check=True)
    kinds = next(line for line in done.stdout.splitlines() if line.startswith("--spec-type"))
    assert set(re.findall(r"ngram-[a-z0-9-]+", kinds)) == {kind for kind in MODEL_FREE if "," not in kind}


@pytest.mark.parametrize("kind", MODEL_FREE)
def test_drafts_without_a_model_write_the_same(plain: Client, hybrid: Path, kind: str) -> None:
    accepted = rejected = 0
    with start(hybrid, "--spec-type", kind, *MODEL_FREE[kind]) as server:
        for prompt in PROMPTS:
            again = prompt * 3
            found = greedy(server.client(), again, 100)
            accepted += found.timings.draft_n_accepted
            rejected += found.timings.draft_n - found.timings.draft_n_accepted
            assert_same(plain, again, greedy(plain, again, 100), found)
    assert accepted > 0
    assert rejected > 0


@pytest.mark.parametrize("pair", ["hybrid, shipped", "hybrid, transformer", "transformer, hybrid"])
def test_a_draft_model_changes_nothing(plain: Client, hybrid: Path, transformer: Path, pair: str) -> None:
    """The shipped model is nearly always right about its own f32 copy, a random transformer about nothing."""
    models = {"hybrid": hybrid, "transformer": transformer, "shipped": llamackpt.default_model()}
    target, draft = (models[name] for name in pair.split(", "))
    flags = ("--spec-type", "draft-simple", "--model-draft", str(draft), "--spec-draft-n-max", "6", "--spec-draft-p-min", "0")
    accepted = rejected = 0
    with start(target) as alone, start(target, *flags, parallel=2, n_ctx=2048) as server:
        reference = plain if target == hybrid else alone.client()
        client = server.client()
        with ThreadPoolExecutor(2) as threads:
            answers = list(threads.map(lambda prompt: greedy(client, prompt, 40, cache_prompt=True), PROMPTS))
        for prompt, found in zip(PROMPTS, answers, strict=True):
            accepted += found.timings.draft_n_accepted
            rejected += found.timings.draft_n - found.timings.draft_n_accepted
            assert_same(reference, prompt, greedy(reference, prompt, 40), found)
    assert rejected > 0
    assert accepted > rejected or "transformer" in pair


@pytest.mark.parametrize("pair", ["transformer, hybrid", "hybrid, hybrid"])
def test_a_draft_model_goes_on_from_a_prompt_that_is_known(hybrid: Path, transformer: Path, pair: str) -> None:
    """The target goes back to the last common token, whether or not the draft model can."""
    target, draft = ({"hybrid": hybrid, "transformer": transformer}[name] for name in pair.split(", "))
    flags = ("--spec-type", "draft-simple", "--model-draft", str(draft), "--spec-draft-n-max", "6", "--spec-draft-p-min", "0")
    with start(target) as alone, start(target, *flags) as server:
        for prompt in ("".join(PROMPTS), "".join(PROMPTS) + "# one\n", "".join(PROMPTS[:6]) + "# other\n", PROMPTS[0]):
            found = greedy(server.client(), prompt, 20, cache_prompt=True)
            assert_same(alone.client(), prompt, greedy(alone.client(), prompt, 20), found)
            assert target == hybrid or prompt == "".join(PROMPTS) or found.timings.cache_n >= 8


def test_drafts_save_decodes(plain: Client, drafting: Client) -> None:
    few = counted(drafting, lambda: greedy(drafting, PROMPTS[7], 100))["llamacpp:n_decode_total"]
    many = counted(plain, lambda: greedy(plain, PROMPTS[7], 100))["llamacpp:n_decode_total"]
    assert few < many


# -- rejection ------------------------------------------------------------------------------------------------------------


def test_rejected_drafts_leave_nothing_in_a_small_context(wild: Client) -> None:
    expected = greedy(wild, PROMPTS[0], 24)
    drafted = accepted = 0
    for seed in range(12):
        done = wild.completion(PROMPTS[0], max_tokens=240, seed=seed, **NOISE)
        drafted, accepted = drafted + done.timings.draft_n, accepted + done.timings.draft_n_accepted
        assert set(done.text) <= set("abcdefghijklmnop")
    assert drafted > 3000
    assert accepted < 0.05 * drafted
    assert greedy(wild, PROMPTS[0], 24).tokens == expected.tokens
    (slot,) = wild.slots()
    assert slot.n_tokens < 256


def test_drafts_that_are_all_rejected_change_nothing(plain: Client, hybrid: Path) -> None:
    """By llama-server's own switch, which rejects what the model would have accepted."""
    with start(hybrid, *DRAFTS, "--spec-synth-rates", ",".join(["0"] * 8)) as server:
        drafted = 0
        for prompt in PROMPTS:
            found = greedy(server.client(), prompt)
            drafted += found.timings.draft_n
            assert found.timings.draft_n_accepted == 0
            assert_same(plain, prompt, greedy(plain, prompt), found)
        assert drafted > 200


def test_memory_stays_flat_over_rejected_drafts(wild: Client, wild_server: Server) -> None:
    def rounds(n: int) -> None:
        for seed in range(n):
            wild.completion(PROMPTS[0], max_tokens=200, seed=seed, cache_prompt=False, **NOISE)

    rounds(3)
    before = wild_server.rss()
    rounds(12)
    assert wild_server.rss() - before < 8 * 2**20


def test_no_checkpoint_of_a_rejected_draft_stays_in_the_memory(wild: Client) -> None:
    """Counted by the memory, which also knows those that nobody else remembers: one while it drafts, none after that."""
    before = wild.metrics()
    for seed in range(12):
        for index, _ in enumerate(wild.stream(PROMPTS[0], max_tokens=200, seed=seed, cache_prompt=False, **NOISE)):
            assert index % 20 or wild.metrics()["llamacpp:checkpoint_held_count"] <= 1
        assert wild.metrics()["llamacpp:checkpoint_held_count"] == 0
    assert wild.metrics()["llamacpp:spec_decode_num_drafts_total"] - before["llamacpp:spec_decode_num_drafts_total"] > 300


def test_generation_ends_at_the_end_of_the_context(wild: Client) -> None:
    prompt = wild.tokenize(PROMPTS[0])
    done = wild.completion(prompt, max_tokens=1000, seed=1, **NOISE)
    assert (done.stop, done.truncated) == ("limit", True)
    assert len(prompt) + len(done.tokens) <= 256
    with pytest.raises(PromptTooLongError):
        wild.completion([40] * 300)
    with pytest.raises(PromptTooLongError):
        wild.completion([40] * 256)
    assert len(wild.completion([40] * 254, max_tokens=20).tokens) >= 1


def test_clients_that_leave_during_rollbacks_are_cleaned_up_after(wild: Client) -> None:
    check_left(wild, 20)
    assert len(wild.slots()) == 1


def test_a_request_may_have_numbers_of_numpy(wild: Client) -> None:
    numbers = {"max_tokens": np.int64(2), "seed": np.uint32(3), "id_slot": np.int32(0), "temperature": np.float32(0)}
    assert len(wild.completion([1, 2, 3], ignore_eos=True, **numbers).tokens) == 2


def test_a_request_that_is_no_json_or_no_prompt_is_refused(wild: Client) -> None:
    for body in (b"{", b"[]", b'{"prompt": {}}', b'{"prompt": [99999999]}', b'{"prompt": "x", "n_predict": "many"}'):
        answer = requests.post(f"{wild.url}/completion", data=body, timeout=30)
        assert answer.status_code >= 400
        assert answer.json()["error"]["message"]


# -- several slots --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", ["--kv-unified", "--no-kv-unified"])
def test_eight_slots_at_once_write_what_each_writes_alone(plain: Client, hybrid: Path, cache: str) -> None:
    """Prompts and answers of mixed length; each slot drafts, is rejected and rolls back for itself."""
    jobs = [(prompt * (1 + index % 3), 20 + 12 * index) for index, prompt in enumerate(PROMPTS)]
    with start(hybrid, *DRAFTS, cache, n_ctx=8 * 512, parallel=8) as server:
        check_slots(plain, server, jobs, 8, 2)


def test_several_answers_to_one_prompt_are_each_what_one_would_be(plain: Client, hybrid: Path) -> None:
    with start(hybrid, *DRAFTS, n_ctx=4 * 512, parallel=4) as server:
        check_answers(plain, server)


@pytest.mark.parametrize("n_prompt", [275, 420], ids=["the end does not fit", "more does not fit"])
def test_several_answers_take_the_room_of_what_their_slots_had(plain: Client, hybrid: Path, n_prompt: int) -> None:
    """A batch that does not fit is decoded in parts; the others start when all of the prompt is there."""
    tokens = plain.tokenize("".join(PROMPTS) * 3)
    prompt = tokens[-n_prompt:]
    expected = greedy(plain, prompt, 20)
    with start(hybrid, "--kv-unified", "--batch-size", "64", n_ctx=512, parallel=2) as server:
        greedy(server.client(), tokens[:236], 4, cache_prompt=True, id_slot=1)
        body = {"prompt": prompt, "n_predict": 20, "temperature": 0, "n_cmpl": 2, "return_tokens": True, "id_slot": 0}
        answers = requests.post(f"{server.url}/completion", json=body, timeout=60).json()
    assert len(answers) == 2
    for answer in map(Completion.parse, answers):
        assert answer.timings.prompt_n == n_prompt
        assert_same(plain, prompt, expected, answer)


@pytest.mark.parametrize("n_prompt", range(200, 206))
def test_an_answer_with_drafts_fills_the_context_as_one_without(plain: Client, wild: Client, n_prompt: int) -> None:
    prompt = (wild.tokenize(PROMPTS[7]) * 20)[:n_prompt]
    found = greedy(wild, prompt, 100, ignore_eos=True)
    assert found.timings.draft_n_accepted > 0
    assert (found.stop, found.truncated, n_prompt + len(found.tokens)) == ("limit", True, 256)
    assert_same(plain, prompt, greedy(plain, prompt, len(found.tokens), ignore_eos=True), found)


def test_several_answers_to_an_empty_prompt_are_empty(hybrid: Path) -> None:
    with start(hybrid, n_ctx=512, parallel=2) as server:
        for n in (1, 2):
            body = {"prompt": "", "n_predict": 4, "n_cmpl": n}
            answer = requests.post(f"{server.url}/completion", json=body, timeout=20).json()
            assert [one["content"] for one in (answer if n > 1 else [answer])] == [""] * n
        assert not any(slot.is_processing for slot in server.client().slots())


def test_a_sampler_that_fails_ends_its_own_answer(plain: Client, hybrid: Path) -> None:
    """A grammar whose text is over, and no end allowed: found out with the token, while others are generated and drafted."""
    impossible = {"grammar": 'root ::= "self.x = self.x + 1"', "ignore_eos": True}
    with start(hybrid, *WILD, n_ctx=3 * 512, parallel=3) as server:
        client = server.client()

        def ask(job: int) -> Completion | None:
            if job % 2 == 0:
                return greedy(client, PROMPTS[job // 2], 40, cache_prompt=True)
            with pytest.raises(RequestError, match="empty grammar stack"):
                greedy(client, PROMPTS[3] * 2, 40, cache_prompt=True, **impossible)
            return None

        with ThreadPoolExecutor(3) as threads:
            found = list(threads.map(ask, range(8)))
        for prompt, answer in zip(PROMPTS, found[::2], strict=False):
            assert answer
            assert_same(plain, prompt, greedy(plain, prompt, 40), answer)
        assert not any(slot.is_processing for slot in client.slots())


def test_concurrent_and_cancelled_requests_do_not_disturb_each_other(plain: Client, hybrid: Path) -> None:
    with start(hybrid, *WILD, n_ctx=4 * 512, parallel=4) as server:
        check_concurrent(plain, server, PROMPTS * 3, 8)


@pytest.mark.parametrize("draft", ["shipped", "n-gram"])
def test_a_cache_that_is_full_in_the_middle_of_a_draft_leaves_nothing_wrong(
    plain: Client, hybrid: Path, tmp_path: Path, draft: str
) -> None:
    """Three slots share 512 tokens and ask for more: a draft model has no room for its next token, a batch is cut inside of a
    draft. What fails says so, and its slot goes on with the next request, right behind what it had, as any other would."""
    model = ("--model-draft", str(llamackpt.default_model()), "--spec-draft-n-max", "6", "--spec-draft-p-min", "0")
    flags = ("--spec-type", "draft-simple", *model) if draft == "shipped" else DRAFTS
    prompts = [plain.tokenize(prompt * (1 + index % 3)) for index, prompt in enumerate(PROMPTS[:5])]
    expected = [greedy(plain, prompt, 280, ignore_eos=True) for prompt in prompts]
    failed = []

    def ask(client: Client, job: int) -> int:
        """How many tokens came, -1 if it was all of them."""
        tokens: list[int] = []
        try:
            for chunk in client.stream(prompts[job], max_tokens=280, temperature=0, ignore_eos=True, id_slot=job % 3):
                tokens += chunk.tokens
        except RequestError as error:
            assert re.search("is not inside the current sub-batch|Context size has been exceeded", str(error))
            return len(tokens)
        return -1

    with start(hybrid, *flags, "--kv-unified", n_ctx=512, parallel=3, log=tmp_path / "log") as server:
        client = server.client()
        for jobs in ((0, 1, 2), (3, 4, 2), (0, 4, 2)):
            with ThreadPoolExecutor(3) as threads:
                counts = list(threads.map(lambda job: ask(client, job), jobs))
            for job, count in zip(jobs, counts, strict=True):
                if count >= 0:
                    failed.append(job)
                    longer = prompts[job] + expected[job].tokens[: count + 8]  # drafted already, if the draft was right
                    found = greedy(client, longer, 16, cache_prompt=True, id_slot=job % 3)
                    assert_same(plain, longer, greedy(plain, longer, 16), found)
        assert not any(slot.is_processing for slot in client.slots())
    log = (tmp_path / "log").read_text()
    assert len(failed) > 3
    assert "is not inside the current sub-batch" in log
    assert draft != "shipped" or re.search(r"draft: llama_process\[\d+\] returned 1", log)
