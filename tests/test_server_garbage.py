"""What llama-server must survive: requests that get in each other's way, and requests that make no sense.

Nothing is asked of the answers to garbage but that there is one. Which fields are read is llama.cpp's, so most of it is
refused, and what is not must not disturb the others.
"""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from server_checks import PROMPTS, WILD, assert_same, greedy, held, start

from llamackpt.errors import RequestError
from llamackpt.server import Client, Completion, Server

VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 7, 2**31 - 1, -(2**31), 2**40, -(2**63), 1e308, -0.5, float("nan"), "", "x", "../../x",
    "a" * 3000, [], {}, [1], [[1]], [-1], [2**31], ["x", 5], {"a": 1},
]  # fmt: skip
FIELDS = [
    "prompt", "n_predict", "max_tokens", "n_keep", "n_discard", "temperature", "top_k", "top_p", "min_p", "typical_p", "seed",
    "repeat_penalty", "repeat_last_n", "dry_multiplier", "dry_allowed_length", "dry_sequence_breakers", "mirostat", "id_slot",
    "cache_prompt", "n_probs", "min_keep", "samplers", "logit_bias", "grammar", "json_schema", "stop", "ignore_eos", "n",
    "lora", "return_tokens", "timings_per_token", "post_sampling_probs", "t_max_predict_ms", "speculative.n_max",
    "speculative.n_min", "speculative.p_min", "response_fields", "messages", "tools", "tool_choice", "response_format",
    "chat_template_kwargs",
]  # fmt: skip
GRAMMARS = ['root ::= "a"*', "root ::= [a-z]+", "root ::= x", '( "a" |', "root ::= root", 'root ::= ""']


def test_a_request_for_a_busy_slot_waits_and_leaves_its_prompt_alone(plain: Client, hybrid: Path) -> None:
    """The cache of prompts puts one away and another in its place when a slot changes hands, but not before."""
    long, short = PROMPTS[0], PROMPTS[1]
    with start(hybrid, "--cache-ram", "64", n_ctx=2048, parallel=2) as server, ThreadPoolExecutor(1) as pool:
        client = server.client()
        greedy(client, short, 20, id_slot=0)  # the next request puts this into the cache, and the one after would take it out
        answer = client.stream(long, max_tokens=300, temperature=0, cache_prompt=False, id_slot=0)
        next(answer)
        other = pool.submit(greedy, client, short, 20, id_slot=0)
        done = [chunk.completion for chunk in answer][-1]
        assert isinstance(done, Completion) and len(done.tokens) > 20
        assert_same(plain, long, greedy(plain, long, 300), done)
        assert_same(plain, short, greedy(plain, short, 20), other.result())


def test_requests_that_wait_are_answered_whatever_the_one_before_them_does(hybrid: Path, tmp_path: Path) -> None:
    """One that is refused when its turn comes, or that needs no slot for long, gives no slot back, and so wakes nobody."""
    with start(hybrid, "--slot-save-path", str(tmp_path), n_ctx=1024) as server, ThreadPoolExecutor(6) as pool:
        client = server.client()
        answer = client.stream(PROMPTS[0], max_tokens=300, temperature=0)
        next(answer)
        waiting: list[Any] = []
        for _ in range(2):
            waiting.append(pool.submit(client.erase_slot, 0))
            waiting.append(pool.submit(client.completion, PROMPTS[1], max_tokens=5, grammar="root ::= x"))
            waiting.append(pool.submit(client.completion, PROMPTS[1], max_tokens=5))
        assert [chunk.completion for chunk in answer][-1]
        errors = [future.exception() for future in waiting]
        assert [type(error) for error in errors] == [type(None), RequestError, type(None)] * 2


@pytest.mark.parametrize("seed", range(2))
def test_garbage_ends_nothing_but_itself(plain: Client, hybrid: Path, tmp_path: Path, seed: int) -> None:
    """Several clients at once, some of whom leave before their answer; then the server answers as on its first day."""
    flags = ("--cache-ram", "64", "--ctx-checkpoints", "4", "--slot-save-path", str(tmp_path), "-b", "64", "-ub", "32")
    with start(hybrid, *WILD, *flags, n_ctx=1536, parallel=3) as server:
        with ThreadPoolExecutor(4) as pool:
            done = list(pool.map(lambda i: send(server, tmp_path, random.Random(f"{seed} {i}")), range(400)))
        assert server.returncode is None, server.log_lines()
        assert sum(done) > 50, "nearly all was refused, which tests little"
        client = server.client()
        assert not any(slot.is_processing for slot in client.slots())
        for slot in range(3):
            assert_same(plain, PROMPTS[2], greedy(plain, PROMPTS[2]), greedy(client, PROMPTS[2], id_slot=slot))
            client.erase_slot(slot)
        assert held(client)["device"] == held(client)["shared"] == 0


def send(server: Server, slots: Path, rng: random.Random) -> bool:
    """One request. Whether it was accepted; that it is answered at all is checked by the timeout."""
    path, body = choose(rng)
    if files := [file for file in slots.iterdir() if file.is_file() and rng.random() < 0.05]:
        data = bytearray(files[0].read_bytes())
        files[0].write_bytes(data[: rng.randrange(len(data))] if data else b"")
    data = json.dumps(body) if rng.random() < 0.97 else "{" * rng.randrange(2000)
    headers = {"Content-Type": "application/json"}
    with requests.post(server.url + path, data, headers=headers, stream=True, timeout=60) as response:
        left, n = rng.choice([10**9, 10**9, 0, 200]), 0
        for part in response.iter_content(50):
            n += len(part)
            if n > left:
                break
        return response.ok


def choose(rng: random.Random) -> tuple[str, Any]:
    kind = rng.random()
    if kind < 0.2:
        slot = rng.choice([0, 1, 2, 3, -1, "x", 10**12])
        action = rng.choice(["save", "save", "restore", "restore", "erase", "x", ""])
        return f"/slots/{slot}?action={action}", {"filename": rng.choice(["a", "b", "c", "..", "a/b", "", 5, None])}
    text = "".join(PROMPTS)
    start = rng.choice([0, 0, 0, 100, rng.randrange(len(text))])
    body: dict[str, Any] = {"n_predict": rng.choice([0, 1, 5, 20, 60]), "stream": rng.random() < 0.4}
    if kind < 0.75:
        prompts: list[Any] = [text[start:][: rng.choice([5, 60, 300, 900])], [text[:40], rng.randrange(300), text[50:90]]]
        prompts += [[rng.randrange(500) for _ in range(rng.randrange(200))], [text[:60], text[100:190]], rng.choice(VALUES)]
        path, body["prompt"] = rng.choice(["/completion", "/v1/completions"]), rng.choice(prompts[:1] * 4 + prompts)
    else:
        roles = ["system", "user", "assistant", "tool", None]
        path = "/v1/chat/completions"
        body["messages"] = [{"role": rng.choice(roles), "content": text[start:][:60]} for _ in range(rng.randrange(4))]
    if rng.random() < 0.3:
        body["id_slot"] = rng.randrange(-1, 4)
    if rng.random() < 0.2:
        body["grammar"] = rng.choice(GRAMMARS)
    for _ in range(rng.choice([0, 0, 1, 3])):
        body[rng.choice(FIELDS)] = rng.choice(VALUES)
    return path, body
