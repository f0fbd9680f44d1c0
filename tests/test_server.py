"""What llama-server must do on a model with a recurrent state: real processes, over HTTP.

The reference is a server that does not draft and has one slot. llama.cpp's sums depend on the shape of a batch: batches of
the same shape give the same bits, others the same up to rounding, by which two tokens that are all but equally likely may
change places. So weights and attention's cache are f32 here, and `assert_same` lets such a tie pass, and nothing else. That
goes for a draft, for several slots at once and for a prompt in parts, with and without --kv-unified.
"""

from __future__ import annotations

import random
import re
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from pathlib import Path

import gguf
import numpy as np
import pytest
import requests
from conftest import ROOT
from f32_gguf import write_f32
from llama_gguf import write_llama
from lora_gguf import write_lora
from server_checks import (
    NOISE,
    PROMPTS,
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

DRAFTS = ("--spec-type", "ngram-simple", "--spec-ngram-simple-size-n", "2", "--spec-ngram-simple-size-m", "8")
# a single token that was there before is enough for a draft of 12
WILD = ("--spec-type", "ngram-simple", "--spec-ngram-simple-size-n", "1", "--spec-ngram-simple-size-m", "12")
SERIES = [path.read_text() for path in (ROOT / "patches").glob("*.patch")]
needs_checkpoint_flags = pytest.mark.skipif(
    not any("--ckpt-device-mem" in patch for patch in SERIES), reason="the series does not change llama-server's prompts yet"
)


@pytest.fixture(scope="module")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("model") / "llama.gguf")


@pytest.fixture(scope="module")
def plain(hybrid: Path) -> Iterator[Client]:
    with start(hybrid) as server:
        yield server.client()


@pytest.fixture(scope="module")
def slots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("slots")


@pytest.fixture(scope="module")
def drafting_server(hybrid: Path, slots: Path) -> Iterator[Server]:
    with start(hybrid, *DRAFTS, "--slot-save-path", str(slots)) as server:
        yield server


@pytest.fixture
def drafting(drafting_server: Server) -> Iterator[Client]:
    client = drafting_server.client()
    yield client
    assert drafting_server.returncode is None, drafting_server.log_lines()
    assert client.health()


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


@pytest.mark.parametrize(
    "pair",
    [
        "hybrid, shipped",
        "hybrid, transformer",
        pytest.param(
            "transformer, hybrid",
            marks=pytest.mark.xfail(
                not any("recurrent draft models" in patch for patch in SERIES),
                reason="upstream: aborts when the draft model cannot remove single tokens",
                strict=True,
            ),
        ),
    ],
)
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


@needs_checkpoint_flags
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


# -- prompts that are known already ---------------------------------------------------------------------------------------


@needs_checkpoint_flags
@pytest.mark.parametrize("cache", ["--kv-unified", "--no-kv-unified"])
def test_conversations_in_turn_go_back_to_checkpoints_on_the_device(plain: Client, hybrid: Path, cache: str) -> None:
    """Each slot's own, with one cache for all slots and with one each."""
    with start(hybrid, *DRAFTS, cache, n_ctx=2 * 2048, parallel=2) as server:
        client = server.client()
        histories = ["".join(PROMPTS[:4]), "".join(PROMPTS[4:])]
        for turn in range(8):
            slot = turn % 2
            prompt = histories[slot] + f"\n# question {turn}\n"
            found = greedy(client, prompt, 24, cache_prompt=True, id_slot=slot)
            assert_same(plain, prompt, greedy(plain, prompt, 24), found)
            if turn > 1:
                assert found.timings.prompt_n < 0.2 * found.n_prompt
            histories[slot] = prompt + f"answer {turn}\n"
            assert held(client)["shared"] > 0


def test_a_conversation_decodes_only_what_is_new(plain: Client, drafting: Client) -> None:
    """Each turn takes back what was generated, as an agent does with its reasoning, and puts a shorter answer there."""
    history = "".join(PROMPTS) * 2
    drafting.erase_slot(0)
    for turn in range(6):
        n_known = len(drafting.tokenize(history))
        prompt = history + f"\n# question {turn}\n"
        found = greedy(drafting, prompt, 24, cache_prompt=True)
        assert_same(plain, prompt, greedy(plain, prompt, 24), found)
        if turn > 0:
            assert found.timings.prompt_n <= found.n_prompt - n_known + 8 + 16
        history = prompt + f"answer {turn}\n"


# thinks behind every header, and the next prompt has an answer there
TEMPLATE = """\
{%- for message in messages -%}
<|endoftext|>{{ message.role }}
{{ message.content }}
{% endfor -%}
{%- if add_generation_prompt -%}
<|endoftext|>assistant
<think>
The question is:
{% endif -%}"""


def n_decoded_and_new(server: Server, turn: Callable[[Client, str], tuple[str, Completion]]) -> list[tuple[int, int]]:
    """Of each turn: tokens of the prompt that were decoded, and those behind what it has in common with the one before."""
    client, last, counts = server.client(), list[int](), []
    for number in range(6):
        lines = [f"x{i} = {i * number}\n" for i in range(10 if number > 1 else 40)]
        text, done = turn(client, f"Step {number}: " + "".join(lines))
        prompt = client.tokenize(text)
        n_common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prompt, last, strict=False)))
        counts.append((done.timings.prompt_n, len(prompt) - n_common))
        last = prompt
    return counts


@needs_checkpoint_flags
@pytest.mark.parametrize("flags", [(), ("--skip-chat-parsing",)], ids=["roles", "only the generation prompt"])
def test_a_chat_whose_reasoning_is_stripped_decodes_what_is_new(tmp_path: Path, flags: tuple[str, ...]) -> None:
    """From the second turn on, whether or not the server can tell the roles of the template apart."""
    (tmp_path / "template").write_text(TEMPLATE)
    messages = []

    def turn(client: Client, question: str) -> tuple[str, Completion]:
        messages.append({"role": "user", "content": question})
        prompt = requests.post(f"{client.url}/apply-template", json={"messages": messages}, timeout=60).json()["prompt"]
        body = {"messages": messages, "max_tokens": 16, "temperature": 0}
        answer = requests.post(f"{client.url}/v1/chat/completions", json=body, timeout=60).json()
        messages.append({"role": "assistant", "content": f"Step {len(messages)} is done."})
        return prompt, Completion.parse({"content": "", "stop": True, **answer})

    template = ("--jinja", "--chat-template-file", str(tmp_path / "template"))
    with start(llamackpt.default_model(), *template, *flags, n_ctx=4096) as server:
        turns = n_decoded_and_new(server, turn)
    header = 6  # <|endoftext|>assistant
    assert all(new <= decoded <= new + header for decoded, new in turns)
    assert sum(decoded for decoded, _ in turns[1:]) <= 1.05 * sum(new for _, new in turns[1:])


@needs_checkpoint_flags
def test_a_turn_takes_two_decodes_to_its_first_token(hybrid: Path, tmp_path: Path) -> None:
    """What is new and the header of the answer: the end of the last answer has no batch of its own, up to 64 tokens."""
    (tmp_path / "template").write_text(TEMPLATE)
    messages = [{"role": "user", "content": "".join(PROMPTS)}]

    def turn(client: Client) -> dict[str, int]:
        body = {"messages": messages, "max_tokens": 1, "temperature": 0}
        timings: dict[str, int] = requests.post(f"{client.url}/v1/chat/completions", json=body, timeout=60).json()["timings"]
        return timings

    with start(hybrid, "--jinja", "--chat-template-file", str(tmp_path / "template"), n_ctx=4096) as server:
        client = server.client()
        turn(client)
        for number, answer in enumerate(("Done.", "Done.", "".join(PROMPTS), "Done.")):
            messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": f"{number}: {PROMPTS[1]}"}]
            took = counted(client, lambda: turn(client))["llamacpp:n_decode_total"]
            assert took == (2 if answer == "Done." else 3)
        messages[-1]["content"] = PROMPTS[2]  # another question instead of the last one
        assert turn(client)["prompt_n"] < len(client.tokenize(PROMPTS[2])) + 64


@needs_checkpoint_flags
def test_a_raw_conversation_whose_reasoning_is_stripped_decodes_what_is_new(plain: Client, hybrid: Path) -> None:
    """From the third turn on: nobody says where the answer starts, so the server has to see it once."""
    history = [""]

    def turn(client: Client, question: str) -> tuple[str, Completion]:
        history.append(f"{history[-1]}\nuser: {question}")
        prompt = history[-1] + "\nassistant: Let me think, step by step, about the numbers.\n"
        done = greedy(client, prompt, 16, cache_prompt=True)
        assert_same(plain, prompt, greedy(plain, prompt, 16), done)
        history[-1] += "\nassistant: done.\n"
        return prompt, done

    with start(hybrid, n_ctx=4096) as server:
        turns = n_decoded_and_new(server, turn)
    assert turns[1][0] > 1.5 * turns[1][1]
    assert all(new <= decoded <= new + 4 for decoded, new in turns[2:])


def test_a_prompt_that_differs_in_the_last_token_of_a_checkpoint_has_none_of_it(plain: Client, hybrid: Path) -> None:
    """The second prompt leaves a checkpoint of 91 tokens behind, the others have another one as the last of these."""
    tokens = plain.tokenize("".join(PROMPTS) * 2)
    same, changed = tokens[:91], tokens[:90] + tokens[200:201]
    assert same != changed
    prompts = [same + tokens[91:94], same + tokens[300:304], changed + tokens[30:60], changed + tokens[120:128]]
    with start(hybrid) as server:
        for prompt in prompts:
            found = server.client().completion(prompt, max_tokens=24, temperature=0)
            expected = plain.completion(prompt, max_tokens=24, temperature=0, cache_prompt=False)
            assert found.tokens == expected.tokens
        assert found.timings.cache_n == 90


@needs_checkpoint_flags
def test_a_checkpoint_that_is_used_comes_back_to_the_device(plain: Client, hybrid: Path) -> None:
    """A long conversation pushes it to the host, then others start where it is."""
    with start(hybrid, "--checkpoint-min-step", "1", n_ctx=4096) as server:
        client = server.client()
        history = in_turns(client, 6)
        assert held(client)["host"] > 0
        first = history[: history.index("# 1\n")]
        for end in ("# one\n", "# another\n"):
            found = greedy(client, first + end, 24, cache_prompt=True)
            assert found.timings.prompt_n < 16
            assert client.metrics()["llamacpp:checkpoint_held_count"] == 1  # the prompt is too short for a new one
            assert_same(plain, first + end, greedy(plain, first + end, 24), found)


def in_turns(client: Client, n: int, **more: object) -> str:
    """A prompt that has grown by a message each time; there is a checkpoint in front of each one."""
    delimiters = [{"role": "user", "delimiter": "<|endoftext|>user"}]
    prompt = ""
    for turn in range(n):
        prompt += f"<|endoftext|>user\n{PROMPTS[turn % 8]}# {turn}\n"
        greedy(client, prompt, 4, cache_prompt=True, message_delimiters=delimiters, **more)
    return prompt


def test_a_prompt_of_other_adapters_is_not_reused(hybrid: Path, tmp_path: Path) -> None:
    """Whether they were of the request before or of the server; one of its own, or the default, comes after."""
    prompt = "".join(PROMPTS)
    asked: list[dict[str, object]] = [{}, {"lora": [{"id": 0, "scale": 0.0}]}]
    with start(hybrid, "--lora", str(write_lora(tmp_path / "lora.gguf"))) as server:
        client = server.client()

        def ask(body: dict[str, object], cache: bool = True) -> str:
            return client.completion(prompt, max_tokens=24, temperature=0, cache_prompt=cache, **body).text

        adapted, plain = (ask(body, False) for body in asked)
        assert adapted != plain
        for body, expected in zip(asked * 2, (adapted, plain) * 2, strict=True):
            assert ask(body) == expected
        client._json("POST", "/lora-adapters", [{"id": 0, "scale": 1.0}])
        assert ask({}) == adapted
        client._json("POST", "/lora-adapters", [{"id": 0, "scale": 0.0}])
        assert ask({}) == plain


@needs_checkpoint_flags
@pytest.mark.parametrize("flags", [(), ("--ckpt-device-mem", "0")], ids=["device", "host"])
@pytest.mark.parametrize("arch", ["lfm2-dense", "deepseek4-moe"])
def test_a_window_beside_a_state_that_cannot_go_back_decodes_what_is_new(
    archs: Path, arch: str, flags: tuple[str, ...]
) -> None:
    """A window of 32 tokens: where the sequence ends, and at each checkpoint, it is all there."""
    with start(archs / f"{arch}.gguf", "--ubatch-size", "16", *flags, n_ctx=256) as server:
        client = server.client()

        def ask(prompt: list[int], cache: bool = True) -> Completion:
            return client.completion(prompt, max_tokens=6, temperature=0, ignore_eos=True, cache_prompt=cache)

        prompt, asked = [1 + 7 * i % 100 for i in range(100)], []
        for turn in range(6):
            done = ask(prompt)
            asked.append((prompt, done))
            assert turn == 0 or done.timings.prompt_n <= 6
            prompt = prompt + done.tokens + [5, 6, 7, 8, 9 + turn]
        last = prompt[: len(prompt) - 11]  # as the last one was
        for end in ([], [3], [3, 4, 5], [90] * 4):
            asked.append((last + end, ask(last + end)))
            assert asked[-1][1].timings.prompt_n <= 8
        back = asked[2][0] + [11, 12]  # before all that was decoded since
        asked.append((back, ask(back)))
        for prompt, done in asked:
            assert ask(prompt, cache=False).tokens == done.tokens


def test_a_prompt_of_other_adapters_does_not_come_back_from_the_host(hybrid: Path, tmp_path: Path) -> None:
    """The slot's prompts wait in host memory for each other, each for a request with its adapters."""
    prompts = ["".join(PROMPTS), "".join(reversed(PROMPTS))]
    asked = [{"lora": [{"id": 0, "scale": scale}]} for scale in (1.0, 0.0)]
    with start(hybrid, "--lora", str(write_lora(tmp_path / "lora.gguf")), "--cache-ram", "64") as server:
        client = server.client()

        def ask(prompt: str, body: dict[str, list[dict[str, float]]], cache: bool = True) -> Completion:
            return client.completion(prompt, max_tokens=16, temperature=0, cache_prompt=cache, **body)

        expected = [[ask(prompt, body, False).text for body in asked] for prompt in prompts]
        assert expected[0][0] != expected[0][1] and expected[1][0] != expected[1][1]
        for turn in range(8):
            prompt, body = turn % 2, turn // 2 % 2
            found = ask(prompts[prompt], asked[body])
            assert found.text == expected[prompt][body]
        assert found.timings.prompt_n < 16  # from the host


def test_two_conversations_in_turn_on_one_slot_keep_apart(plain: Client, hybrid: Path) -> None:
    """The slot's prompts wait in host memory for each other, with their checkpoints."""
    histories = ["".join(PROMPTS) * 2, "".join(reversed(PROMPTS)) * 2]
    with start(hybrid, *DRAFTS, "--cache-ram", "64") as server:
        client = server.client()
        for turn in range(8):
            prompt = histories[turn % 2] + f"\n# question {turn}\n"
            found = greedy(client, prompt, 24, cache_prompt=True)
            assert_same(plain, prompt, greedy(plain, prompt, 24), found)
            if turn > 1:
                assert found.timings.prompt_n < 0.2 * found.n_prompt
            histories[turn % 2] = prompt + f"answer {turn}\n"


def test_checkpoints_give_way_when_the_context_is_full(plain: Client, hybrid: Path) -> None:
    """Each prompt leaves another branch behind, with its checkpoints and what they hold of the context."""
    with start(hybrid, *DRAFTS, n_ctx=512) as server:
        client = server.client()
        for turn in range(8):
            prompt = PROMPTS[0] + "".join(PROMPTS[(turn + i) % 8] for i in range(1, 8)) + f"# {turn}\n"
            assert 200 < len(plain.tokenize(prompt)) < 280
            found = greedy(client, prompt, 220, cache_prompt=True)
            assert len(found.tokens) == 220 or found.stop == "eos"
            assert_same(plain, prompt, greedy(plain, prompt, 220), found)
        (slot,) = client.slots()
        assert slot.n_tokens <= 512


@needs_checkpoint_flags
@pytest.mark.parametrize("cache", ["--kv-unified", "--no-kv-unified"])
def test_checkpoints_keep_to_their_memory(plain: Client, hybrid: Path, cache: str) -> None:
    """One state is 114 KiB. The device has room for some, then the host for some, then the least useful go."""
    flags = ("--ckpt-device-mem", "1", "--ckpt-host-mem", "1", "--checkpoint-min-step", "1", cache)
    delimiters = [{"role": "user", "delimiter": "<|endoftext|>user"}]
    with start(hybrid, *DRAFTS, *flags, n_ctx=8192, parallel=2) as server:
        client = server.client()
        prompts = ["", ""]
        for turn in range(48):
            slot = turn % 2
            prompts[slot] += f"<|endoftext|>user\n{PROMPTS[turn % 8]}# {turn}\n"
            found = greedy(client, prompts[slot], 4, cache_prompt=True, id_slot=slot, message_delimiters=delimiters)
            now = held(client)
            assert now["device"] == 0  # no copies there
            assert now["host"] <= 2**20
        assert now["shared"] > 0.5 * 2**20
        assert now["host"] > 0.5 * 2**20
        assert found.timings.prompt_n < 100
        for prompt in prompts:
            last = prompt[-2000:]
            assert_same(plain, last, greedy(plain, last, 4), greedy(client, last, 4))


@needs_checkpoint_flags
def test_timings_and_metrics_say_what_checkpoints_did(hybrid: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with start(hybrid, *DRAFTS, log=log, env={"LLAMA_TRACE": "1"}) as server:
        client = server.client()
        prompt = "".join(PROMPTS)
        first = greedy(client, prompt, 40, cache_prompt=True).timings
        again = greedy(client, prompt + "# else\n", 40, cache_prompt=True).timings
        metrics = client.metrics()
    assert (first.cache_miss_reason, first.cache_n, first.cache_miss_n) == ("", 0, 0)
    assert (again.cache_miss_reason, 0 < again.cache_miss_n < 8) == ("checkpoint_before", True)
    assert again.cache_n > 0.9 * again.prompt_n
    assert first.checkpoint_save_n >= first.checkpoint_restore_n > 0
    for what in ("save", "restore"):
        total = sum(timings.raw[f"checkpoint_{what}_n"] for timings in (first, again))
        assert metrics[f"llamacpp:checkpoint_{what}_count"] == total
        assert metrics[f"llamacpp:checkpoint_{what}_seconds_total"] > 0
    assert metrics["llamacpp:checkpoint_hits_total"] == 1
    assert metrics['llamacpp:checkpoint_misses_total{reason="slot_empty"}'] == 1
    # one decode a round: each draft is checked once, and what is left of it is decoded with the next one
    assert log.read_text().count(" draft tokens") == metrics["llamacpp:spec_decode_num_drafts_total"]


@needs_checkpoint_flags
@pytest.mark.parametrize("flags", [("--ckpt-device-mem", "0"), ("--ckpt-device-mem", "0", "--ckpt-host-mem", "0")])
def test_without_memory_for_checkpoints_answers_stay_the_same(plain: Client, hybrid: Path, flags: tuple[str, ...]) -> None:
    with start(hybrid, *DRAFTS, *flags) as server:
        client = server.client()
        for prompt in PROMPTS[:4]:
            expected = greedy(plain, prompt)
            for cache in (False, True, True):
                assert_same(plain, prompt, expected, greedy(client, prompt, cache_prompt=cache))


def test_a_plain_transformer_is_served_as_before(transformer: Path, slots: Path) -> None:
    with start(transformer) as server, start(transformer, *DRAFTS, "--slot-save-path", str(slots)) as other:
        reference, client = server.client(), other.client()
        rejected = 0
        for prompt in PROMPTS:
            expected, found = greedy(reference, prompt), greedy(client, prompt, cache_prompt=True)
            assert_same(reference, prompt, expected, found)
            rejected += found.timings.draft_n - found.timings.draft_n_accepted
        assert rejected > 0
        saved = client.save_slot(0, "transformer")
        client.erase_slot(0)
        assert client.restore_slot(0, "transformer").n_tokens == saved.n_tokens
        again = greedy(client, PROMPTS[-1], cache_prompt=True)
        assert again.timings.prompt_n <= 1
        assert_same(reference, PROMPTS[-1], expected, again)


def test_a_transformer_whose_context_is_shifted_goes_on_drafting(transformer: Path) -> None:
    with start(transformer, *DRAFTS, "--context-shift", n_ctx=256) as server:
        done = greedy(server.client(), PROMPTS[1], 600)
        assert (len(done.tokens), done.truncated) == (600, True)
        assert done.timings.draft_n > 0
        assert greedy(server.client(), PROMPTS[1], 600).tokens == done.tokens


# -- slot files -----------------------------------------------------------------------------------------------------------


def test_a_restored_slot_goes_on_as_the_saved_one(plain: Client, drafting: Client) -> None:
    prompt = "".join(PROMPTS)
    first = greedy(drafting, prompt, 8, cache_prompt=True)
    saved = drafting.save_slot(0, "one")
    assert saved.nbytes > 0 and saved.n_tokens >= first.n_prompt
    drafting.erase_slot(0)
    restored = drafting.restore_slot(0, "one")
    assert restored.n_tokens == saved.n_tokens
    longer = prompt + first.text + "\n# and then\n"
    assert_same(plain, longer, greedy(plain, longer), greedy(drafting, longer, cache_prompt=True))


@needs_checkpoint_flags
def test_a_slot_file_carries_its_checkpoints_to_another_server(plain: Client, hybrid: Path, slots: Path) -> None:
    prompt = "".join(PROMPTS) * 2
    with start(hybrid, *DRAFTS, "--slot-save-path", str(slots)) as server:
        greedy(server.client(), prompt, 24, cache_prompt=True)
        server.client().save_slot(0, "carried")
    changed = prompt + "\n# something else\n"
    with start(hybrid, *DRAFTS, "--slot-save-path", str(slots)) as server:
        server.client().restore_slot(0, "carried")
        found = greedy(server.client(), changed, cache_prompt=True)
    assert found.timings.prompt_n < 0.2 * found.n_prompt
    assert_same(plain, changed, greedy(plain, changed), found)


@needs_checkpoint_flags
@pytest.mark.parametrize("flags", [(), ("--ckpt-host-mem", "0"), ("--ckpt-device-mem", "0")], ids=["all", "device", "host"])
def test_a_restored_slot_has_its_newest_checkpoints_on_the_device(
    plain: Client, hybrid: Path, slots: Path, flags: tuple[str, ...]
) -> None:
    """As many as there is room for: three states, and one in flight."""
    with start(hybrid, *DRAFTS, "--checkpoint-min-step", "1", "--slot-save-path", str(slots), n_ctx=2048) as server:
        prompt = in_turns(server.client(), 6)
        full = held(server.client())
        server.client().save_slot(0, "turns")
    with start(hybrid, *DRAFTS, *flags, "--slot-save-path", str(slots), n_ctx=2048) as server:
        client = server.client()
        client.restore_slot(0, "turns")
        restored = held(client)
        assert (restored["shared"] > 0) == ("--ckpt-device-mem" not in flags)
        assert (restored["host"] > 0) == ("--ckpt-host-mem" not in flags)
        if not flags:
            assert restored == full
        used = counted(client, lambda: greedy(client, prompt + "# else\n", cache_prompt=True))
        assert used["llamacpp:checkpoint_hits_total"] == 1
        assert used["llamacpp:prompt_tokens_total"] < 32
        for end in ("# else\n", "# other\n"):
            assert_same(plain, prompt + end, greedy(plain, prompt + end), greedy(client, prompt + end, cache_prompt=True))


@needs_checkpoint_flags
def test_a_restored_slot_leaves_the_checkpoints_of_others_where_they_are(plain: Client, hybrid: Path, slots: Path) -> None:
    flags = ("--kv-unified", "--checkpoint-min-step", "1", "--slot-save-path", str(slots))
    with start(hybrid, *DRAFTS, *flags, n_ctx=4096, parallel=2) as server:
        client = server.client()
        prompt = in_turns(client, 6, id_slot=0)
        client.save_slot(0, "turns")
        before = held(client)
        client.restore_slot(1, "turns")
        after = held(client)
        assert after["shared"] == before["shared"]
        assert after["host"] > before["host"]
        client.erase_slot(0)
        client.restore_slot(1, "turns")  # now there is room, of which half is for this slot
        assert 0 < held(client)["shared"] < before["shared"]
        for slot in (0, 1):
            found = greedy(client, prompt + "# else\n", cache_prompt=True, id_slot=slot)
            assert_same(plain, prompt + "# else\n", greedy(plain, prompt + "# else\n"), found)


@needs_checkpoint_flags
def test_a_checkpoint_of_a_restored_slot_moves_to_room_that_comes_later(plain: Client, hybrid: Path, slots: Path) -> None:
    """When it is used: there was none on the device for this slot."""
    flags = ("--kv-unified", "--checkpoint-min-step", "1", "--slot-save-path", str(slots))
    with start(hybrid, *flags, n_ctx=4096, parallel=2) as server:
        client = server.client()
        prompt = in_turns(client, 6, id_slot=0)
        client.save_slot(0, "turns")
        full = held(client)
        client.restore_slot(1, "turns")
        assert held(client)["shared"] == full["shared"]  # all of the other slot
        client.erase_slot(0)
        assert client.metrics()["llamacpp:checkpoint_held_count"] == 0
        first = prompt[: prompt.index("# 1\n")]
        for end in ("# one\n", "# another\n"):
            found = greedy(client, first + end, 24, cache_prompt=True, id_slot=1)
            assert found.timings.prompt_n < 16
            assert client.metrics()["llamacpp:checkpoint_held_count"] == 1  # the prompt is too short for a new one
            assert_same(plain, first + end, greedy(plain, first + end, 24), found)


@needs_checkpoint_flags
def test_a_cut_or_changed_slot_file_is_refused_and_changes_nothing(hybrid: Path, slots: Path) -> None:
    prompt = "".join(PROMPTS[:4])
    with start(hybrid, *DRAFTS, "--slot-save-path", str(slots)) as server:
        client = server.client()
        greedy(client, prompt, 16, cache_prompt=True)
        client.save_slot(0, "whole")
        warm = greedy(client, prompt, 16, cache_prompt=True)
        before = held(client)
        for index, content in enumerate(broken_copies((slots / "whole").read_bytes())):
            (slots / "broken").write_bytes(content)
            with pytest.raises(RequestError) as caught:
                client.restore_slot(0, "broken")
            assert caught.value.code == 400, index
        assert held(client) == before
        again = greedy(client, prompt, 16, cache_prompt=True)
        assert again.tokens == warm.tokens
        assert again.timings.prompt_n == warm.timings.prompt_n
        assert client.restore_slot(0, "whole").n_tokens > 0


@needs_checkpoint_flags
def test_a_slot_file_of_another_model_or_cache_is_refused(plain: Client, hybrid: Path, transformer: Path, slots: Path) -> None:
    with start(hybrid, *DRAFTS, "--slot-save-path", str(slots), n_ctx=2048, parallel=2) as server:
        client = server.client()
        greedy(client, PROMPTS[0], 24, cache_prompt=True, id_slot=0)
        client.save_slot(0, "of two")
        assert client.restore_slot(1, "of two").n_tokens > 24
        longer = PROMPTS[0] + greedy(plain, PROMPTS[0], 24).text + "\n#"
        assert_same(plain, longer, greedy(plain, longer), greedy(client, longer, cache_prompt=True, id_slot=1))
    with start(hybrid, "--slot-save-path", str(slots), n_ctx=512, parallel=2) as server:  # another size, and no drafts
        assert server.client().restore_slot(0, "of two").n_tokens > 24
        assert_same(plain, longer, greedy(plain, longer), greedy(server.client(), longer, cache_prompt=True, id_slot=0))
    others: list[tuple[Path, tuple[str, ...]]] = [
        (llamackpt.default_model(), ()),
        (transformer, ()),
        (hybrid, ("--cache-type-k", "f16", "--cache-type-v", "f16")),
    ]
    for model, flags in others:
        with start(model, "--slot-save-path", str(slots), *flags, n_ctx=2048, parallel=2) as server:
            with pytest.raises(RequestError, match="another model or of another type of cache") as caught:
                server.client().restore_slot(0, "of two")
            assert caught.value.code == 400
            assert len(greedy(server.client(), PROMPTS[0], 8).tokens) == 8
    with start(hybrid, "--slot-save-path", str(slots)) as server:
        with pytest.raises(RequestError, match="split into 2 parts in the file and into 1 here") as caught:
            server.client().restore_slot(0, "of two")
        assert caught.value.code == 400


@needs_checkpoint_flags
@pytest.mark.parametrize("n_tensors", [0, 40], ids=["one file", "several files"])
def test_a_slot_file_of_other_weights_is_refused(tmp_path: Path, slots: Path, n_tensors: int) -> None:
    """Same metadata, same size, one matrix changed."""
    write_f32(tmp_path / "model.gguf", n_tensors)
    files = sorted(tmp_path.glob("*.gguf"))
    assert (len(files) > 1) == (n_tensors > 0)
    with start(files[0], "--slot-save-path", str(slots)) as server:
        greedy(server.client(), PROMPTS[0], 8, cache_prompt=True)
        server.client().save_slot(0, "weights")
    with start(files[0], "--slot-save-path", str(slots)) as server:
        assert server.client().restore_slot(0, "weights").n_tokens > 8
    matrix = max(gguf.GGUFReader(files[-1]).tensors, key=lambda tensor: tensor.n_bytes)
    with files[-1].open("r+b") as file:
        file.seek(matrix.data_offset)
        file.write((-matrix.data).tobytes())
    with start(files[0], "--slot-save-path", str(slots)) as server:
        with pytest.raises(RequestError, match="another model"):
            server.client().restore_slot(0, "weights")


@needs_checkpoint_flags
def test_a_slot_file_of_other_adapters_is_refused(hybrid: Path, slots: Path, tmp_path: Path) -> None:
    """By what is in them and how strong they are, not by where they are; unless the restore says that they are meant."""
    one, other = write_lora(tmp_path / "one.gguf"), write_lora(tmp_path / "other.gguf", 2)
    moved = tmp_path / "moved.gguf"
    moved.write_bytes(one.read_bytes())
    prompt = "".join(PROMPTS)
    more = {"temperature": 0, "max_tokens": 24}
    refused = "other LoRA adapters: .* \\(expected: "

    def lora(*scales: float) -> dict[str, object]:
        return {"lora": [{"id": index, "scale": scale} for index, scale in enumerate(scales)]}

    def restore(client: Client, name: str, **body: object) -> None:
        client._json("POST", "/slots/0?action=restore", {"filename": name, **body})

    texts = {}
    flags = ("--slot-save-path", str(slots))
    with start(hybrid, *flags, "--lora", str(one)) as server:
        client = server.client()
        for name, body in {"adapted": {}, "plain": lora(0.0), "half": lora(0.5)}.items():
            texts[name] = client.completion(prompt, cache_prompt=False, **more, **body).text
            client.save_slot(0, name)
        assert len(set(texts.values())) == 3
        restore(client, "adapted")
        client._json("POST", "/lora-adapters", [{"id": 0, "scale": 0.5}])
        with pytest.raises(RequestError, match=refused):
            restore(client, "adapted")
        restore(client, "half")

    with start(hybrid, *flags, "--lora", f"{other},{moved}") as server:
        client = server.client()
        for name in texts:
            with pytest.raises(RequestError, match=refused) as caught:
                restore(client, name)
            assert caught.value.code == 400
        for name, body in {"adapted": lora(0.0, 1.0), "half": lora(0.0, 0.5), "plain": lora(0.0)}.items():
            restore(client, name, **body)
            found = client.completion(prompt, **more, **body)
            assert (found.text, found.timings.prompt_n <= 4) == (texts[name], True)
        with pytest.raises(RequestError, match="'lora' must be an array"):
            restore(client, "plain", lora=1)

    for flag, value in (("--lora-scaled", f"{one}:0.5"), ("--lora", str(other)), ("--threads", "1")):
        with start(hybrid, *flags, flag, value) as server:
            for name in texts:
                expected = {"half": "--lora-scaled", "plain": "--threads"}.get(name, "")
                if flag == expected:
                    restore(server.client(), name)
                else:
                    with pytest.raises(RequestError, match=refused):
                        restore(server.client(), name)


@needs_checkpoint_flags
def test_a_slot_file_of_another_control_vector_is_refused(hybrid: Path, slots: Path, tmp_path: Path) -> None:
    vectors = [tmp_path / "one.gguf", tmp_path / "other.gguf"]
    for strength, path in enumerate(vectors):
        writer = gguf.GGUFWriter(str(path), "controlvector")
        writer.add_tensor("direction.1", np.full(192, 0.01 * (1 + strength), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    flags = ("--slot-save-path", str(slots), "--control-vector")
    with start(hybrid, *flags, str(vectors[0])) as server:
        greedy(server.client(), PROMPTS[0], 8, cache_prompt=True)
        server.client().save_slot(0, "vector")
        assert server.client().restore_slot(0, "vector").n_tokens > 8
    for more in (flags[:2], (*flags, str(vectors[1]))):
        with start(hybrid, *more) as server:
            with pytest.raises(RequestError, match="another model"):
                server.client().restore_slot(0, "vector")


@needs_checkpoint_flags
def test_saving_a_slot_leaves_its_checkpoints_where_they_are(plain: Client, hybrid: Path, slots: Path) -> None:
    with start(hybrid, *DRAFTS, "--slot-save-path", str(slots)) as server:
        client = server.client()
        prompt = "".join(PROMPTS)
        greedy(client, prompt, 24, cache_prompt=True)
        before = held(client)
        assert before["shared"] > before["host"] == 0
        client.save_slot(0, "kept")
        assert held(client) == before
        for end in ("# one\n", "# another\n"):
            found = greedy(client, prompt + end, 24, cache_prompt=True)
            assert found.timings.prompt_n < 16
            assert_same(plain, prompt + end, greedy(plain, prompt + end, 24), found)


def broken_copies(whole: bytes) -> list[bytes]:
    """Cut at every twentieth, one byte short, one byte more, and with a bit flipped in the header and anywhere."""
    rng = random.Random(5)
    copies = [whole[: len(whole) * part // 20] for part in range(20)] + [whole[:-1], whole + b"\0"]
    for at in [*range(0, 64, 4), *(rng.randrange(len(whole)) for _ in range(24))]:
        flipped = bytearray(whole)
        flipped[at] ^= 1 << rng.randrange(8)
        copies.append(bytes(flipped))
    return copies


def test_a_slot_file_that_is_not_there_or_not_allowed_is_refused(drafting: Client) -> None:
    for name in ("none", "../whole", "/etc/passwd", ""):
        with pytest.raises(RequestError) as caught:
            drafting.restore_slot(0, name)
        assert caught.value.code == 400
    with pytest.raises(RequestError):
        drafting.restore_slot(7, "none")
