"""Prompts that llama-server knows already: what it decodes of them again, and where it keeps the checkpoints for that."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from pathlib import Path

import pytest
import requests
from conftest import preloadable
from lora_gguf import write_lora
from server_checks import (
    DRAFTS,
    PROMPTS,
    assert_same,
    check_conversations,
    counted,
    greedy,
    held,
    in_turns,
    start,
    template,
)  # fmt: skip

import llamackpt
from llamackpt.bench.state_heavy import Shape, write_state_heavy
from llamackpt.errors import RequestError
from llamackpt.server import Client, Completion, Server


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


TEMPLATE = template("<think>\nThe question is:\n")


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
    with start(hybrid, *DRAFTS, "--cache-ram", "64") as server:
        check_conversations(plain, server.client())


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


@pytest.mark.parametrize("draft", ["", "hybrid"])
def test_no_checkpoint_is_on_the_host_where_none_may_be(plain: Client, hybrid: Path, draft: str) -> None:
    """Neither the draft's part of one on the device, nor those of a prompt that comes back from the cache of prompts."""
    flags = ("--cache-ram", "64", "--ckpt-host-mem", "0", "--checkpoint-min-step", "1")
    if draft:
        flags += ("--spec-type", "draft-simple", "--spec-draft-p-min", "0", "--model-draft", str(llamackpt.default_model()))
    with start(hybrid, *flags, n_ctx=2048) as server:
        client = server.client()
        histories = ["".join(PROMPTS), "".join(reversed(PROMPTS))]
        for turn in range(6):
            prompt = histories[turn % 2] + f"# question {turn}\n"
            found = greedy(client, prompt, 16, cache_prompt=True)
            assert held(client)["host"] == 0
            assert_same(plain, prompt, greedy(plain, prompt, 16), found)
            assert turn < 2 or found.timings.prompt_n < 0.2 * found.n_prompt


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


def test_a_checkpoint_that_cannot_be_allocated_costs_nothing_else(plain: Client, hybrid: Path, tmp_path: Path) -> None:
    """Neither the request, nor what the slot believes of its memory after it."""
    library, now = preloadable("failing_malloc.c", tmp_path), tmp_path / "now"
    prompt, flags = "".join(PROMPTS), ("--ckpt-device-mem", "0", "--batch-size", "64")
    with start(hybrid, *flags) as server:
        greedy(server.client(), prompt, 1, cache_prompt=True)
        size = int(held(server.client())["host"] / server.client().metrics()["llamacpp:checkpoint_save_count"])
    env = {"LD_PRELOAD": str(library), "FAIL_SIZE": str(size), "FAIL_FILE": str(now)}
    with start(hybrid, *flags, env=env) as server:
        client = server.client()
        now.touch()
        assert_same(plain, prompt, greedy(plain, prompt, 8), greedy(client, prompt, 8, cache_prompt=True))
        assert not now.exists()
        assert_same(plain, prompt + "x", greedy(plain, prompt + "x", 8), greedy(client, prompt + "x", 8, cache_prompt=True))


def test_idle_slots_keep_their_checkpoints_while_the_cache_has_copies(hybrid: Path) -> None:
    """With a cache for each slot, the prompt of an idle one stays where it is, and its checkpoints on the device."""
    with start(hybrid, "--cache-ram", "64", "--no-kv-unified", n_ctx=2048, parallel=2) as server:
        client = server.client()
        for slot, prompts in enumerate([PROMPTS, PROMPTS[::-1]]):
            greedy(client, "".join(prompts), 4, cache_prompt=True, id_slot=slot)
        assert held(client)["host"] == 0
        again = greedy(client, "".join(PROMPTS) + "# more\n", 4, cache_prompt=True, id_slot=0)
        assert again.timings.cache_n > 200 and held(client)["host"] == 0


def test_a_checkpoint_of_several_slots_counts_once_and_none_while_asleep(hybrid: Path) -> None:
    with start(hybrid, "--sleep-idle-seconds", "1", n_ctx=4096, parallel=4) as server:
        client, seen = server.client(), []
        body = {"prompt": "".join(PROMPTS), "n_predict": 300, "temperature": 1, "n_cmpl": 4, "ignore_eos": True}
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(requests.post, f"{server.url}/completion", json=body, timeout=60)
            while not answer.done():
                seen.append(held(client)["shared"])
        assert max(seen) == held(client)["shared"] > 0
        for _ in range(100):
            if client._json("GET", "/props")["is_sleeping"]:
                break
            time.sleep(0.1)
        assert not any(held(client).values())
        assert client.metrics()["llamacpp:checkpoint_held_count"] == 0


def test_a_prompt_that_is_reused_in_full_is_no_miss(transformer: Path) -> None:
    with start(transformer) as server:
        client = server.client()
        greedy(client, PROMPTS[0], 4, cache_prompt=True)
        grown = counted(client, lambda: greedy(client, PROMPTS[0], 4, cache_prompt=True))
        assert not any(value for name, value in grown.items() if "misses" in name)


@pytest.mark.parametrize("n_written", [4, 1], ids=["to before the end", "to the end"])
@pytest.mark.parametrize("arch", ["jamba-dense", "mamba-dense"])
def test_chunks_that_move_do_not_bring_back_the_state_of_what_was_between(archs: Path, arch: str, n_written: int) -> None:
    """--cache-reuse moves attention cells; a recurrent state still knows of the tokens that are gone."""
    head, gone, kept, new = ([1 + (7 * i + salt) % 90 for i in range(n)] for salt, n in ((0, 40), (3, 30), (5, 60), (1, 8)))
    flags = ("--cache-reuse", "8", "--ubatch-size", "32", "--ckpt-device-mem", "0")
    with start(archs / f"{arch}.gguf", *flags, n_ctx=256) as server:
        client = server.client()
        prompt = [*head, *kept, *new]
        client.completion([*head, *gone, *kept], max_tokens=n_written, ignore_eos=True)
        found = client.completion(prompt, max_tokens=1, temperature=0)
        assert found.timings.cache_n <= len(head)


def test_a_context_is_shifted_where_no_layer_is_without_a_window(archs: Path) -> None:
    """The cache of the layers without one has nothing to shift."""
    with start(archs / "lfm2-dense.gguf", "--context-shift", n_ctx=256) as server:
        assert len(server.client().completion([1, 2, 3] * 30, max_tokens=300, ignore_eos=True).tokens) == 300


def test_a_request_that_fails_with_other_adapters_leaves_the_memory_to_the_others(hybrid: Path, tmp_path: Path) -> None:
    with start(hybrid, "--lora", str(write_lora(tmp_path / "lora.gguf")), "--kv-unified", n_ctx=512, parallel=2) as server:
        client = server.client()
        tokens = client.tokenize("".join(PROMPTS) * 3)
        greedy(client, tokens[:400], 4, cache_prompt=True, id_slot=0)
        with pytest.raises(RequestError):
            client.completion([*tokens[:10], 10**5], id_slot=0, lora=[{"id": 0, "scale": 0.5}])
        assert len(greedy(client, tokens[5:305], 4, id_slot=1).tokens) > 0


def test_a_checkpoint_that_was_dropped_is_the_reason_until_its_tokens_are_decoded(hybrid: Path) -> None:
    """The requests in between do not need it."""
    with start(hybrid, "--ctx-checkpoints", "2", "--checkpoint-min-step", "1", n_ctx=2048) as server:
        client = server.client()
        prompt = in_turns(client, 6)
        greedy(client, prompt + "# more\n", 4, cache_prompt=True)
        back = prompt[: prompt.index("# 3\n")]
        found = [greedy(client, back + end, 4, cache_prompt=True).timings for end in ("# x\n", "# y\n")]
        assert found[0].cache_miss_n > 20
        assert [timings.cache_miss_reason for timings in found] == ["checkpoint_dropped", "checkpoint_before"]


NO_ROOM = ("--ckpt-device-mem", "0", "--ckpt-host-mem", "0")


@pytest.mark.parametrize("flags", [NO_ROOM, ("--ckpt-device-mem", "0", "--ckpt-host-mem", "1")], ids=["none", "too little"])
def test_a_prompt_is_not_split_for_checkpoints_without_room(tmp_path: Path, flags: tuple[str, ...]) -> None:
    """Neither on the device nor on the host; when a state is larger than that, from the second time on."""
    model = tmp_path / "heavy.gguf"
    write_state_heavy(model, shape=Shape(n_layer=4))  # 10 MB a state
    delimiters = [{"role": "user", "delimiter": "class"}]
    decodes = {}
    for more in (flags, ("--ctx-checkpoints", "0")):
        with start(model, *more) as server:
            client = server.client()

            def ask(prompt: str, client: Client = client) -> Completion:
                return greedy(client, prompt, 1, cache_prompt=True, message_delimiters=delimiters)

            ask("class A:\n    pass\nclass B:\n    pass\n")
            grown = counted(client, lambda: ask("# new\n" + "".join(PROMPTS[:3])))
            decodes[more] = grown["llamacpp:n_decode_total"]
            assert grown["llamacpp:checkpoint_save_count"] == 0
            assert ask("# new\n" + PROMPTS[0]).timings.cache_miss_reason == "checkpoints_disabled"
    assert len(set(decodes.values())) == 1


def test_embeddings_are_no_misses(hybrid: Path) -> None:
    """They never use what the slot has; a request that asks not to is one."""
    with start(hybrid, "--embeddings", "--pooling", "last") as server:

        def grown() -> float:
            body = {"content": PROMPTS[0]}
            counts = counted(server.client(), lambda: requests.post(f"{server.url}/embedding", json=body, timeout=60))
            return sum(count for name, count in counts.items() if "misses" in name)

        grown()  # the slot is empty
        assert grown() == 0
    with start(hybrid) as server:
        greedy(server.client(), PROMPTS[0], 1)
        counts = counted(server.client(), lambda: greedy(server.client(), PROMPTS[0], 1))
        assert counts['llamacpp:checkpoint_misses_total{reason="cache_disabled"}'] == 1


def test_a_draft_context_that_is_cut_is_not_counted_as_a_restore(hybrid: Path, transformer: Path, tmp_path: Path) -> None:
    """Where the states are serialized, as the one of the model is here; the draft's tokens are removed."""
    env = {"LD_PRELOAD": str(preloadable("no_checkpoints.c", tmp_path))}
    flags = ("--spec-type", "draft-simple", "--model-draft", str(transformer), "--spec-draft-p-min", "0")
    with start(hybrid, *flags, "--ctx-checkpoints", "0", env=env) as server:
        client = server.client()
        counts = counted(client, lambda: [greedy(client, prompt, 40) for prompt in PROMPTS[:3]])
    assert 0 < counts["llamacpp:checkpoint_restore_count"] <= counts["llamacpp:spec_decode_num_drafts_total"]
    assert counts["llamacpp:checkpoint_save_count"] <= counts["llamacpp:spec_decode_num_drafts_total"]


def test_a_checkpoint_that_is_moved_is_not_taken_again(hybrid: Path, tmp_path: Path) -> None:
    """Three stay on the device; the log names each of them."""
    log, flags = tmp_path / "log", ("--checkpoint-min-step", "1", "--verbosity", "5")
    with start(hybrid, *flags, n_ctx=2048, log=log) as server:
        client = server.client()
        grown = counted(client, lambda: in_turns(client, 6))
        text = log.read_text()
        n_taken, n_moved = text.count("created context checkpoint"), text.count("moving context checkpoint to the host")
        assert n_taken > 3 and n_moved == n_taken - 3
        assert grown["llamacpp:checkpoint_save_count"] == n_taken
        assert grown["llamacpp:checkpoint_move_count"] == n_moved


def test_a_checkpoint_holds_as_much_after_a_long_prompt(hybrid: Path) -> None:
    """The state. The attention cells before it are those of the slot."""
    with start(hybrid, "--ctx-checkpoints", "1", "--batch-size", "2048", "--ubatch-size", "2048", n_ctx=2048) as server:
        client = server.client()
        text, sizes = client.tokenize("".join(PROMPTS) * 8), set()
        for n in (100, 1600):
            client.completion(text[:n], max_tokens=1)
            assert client.metrics()["llamacpp:checkpoint_held_count"] == 1
            sizes.add(held(client)["shared"])
        assert len(sizes) == 1 and min(sizes) > 0


@pytest.mark.parametrize(("memory", "count"), [("-1", 2), ("100", 2), ("1", 2)])
def test_no_more_is_reserved_than_the_slots_can_have(hybrid: Path, tmp_path: Path, memory: str, count: int) -> None:
    """A checkpoint of the only slot, and the one that is being taken."""
    log, flags = tmp_path / "log", ("--ctx-checkpoints", "1", "--ckpt-device-mem", memory, "--verbosity", "5")
    start(hybrid, *flags, log=log).close()
    text = log.read_text()
    assert f"room for {count} on the device" in text
    assert ("MiB for context checkpoints on the device, there are not more than" in text) == (memory != "-1")


def test_a_counter_counts_beyond_a_million(transformer: Path) -> None:
    """Here the tokens that were reused."""
    with start(transformer, n_ctx=4096) as server:
        client, name = server.client(), "llamacpp:prompt_tokens_cached_total"
        prompt, total = [5 + n % 90 for n in range(4000)], 0
        while total < 1_000_000:
            total += client.completion(prompt, max_tokens=1).timings.cache_n
        assert client.metrics()[name] == total
        total += client.completion(prompt[:7], max_tokens=1).timings.cache_n
        assert client.metrics()[name] == total
