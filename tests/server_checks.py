"""What the tests of llama-server share: how it is started, prompts, and what several of them check of different drafts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import requests

from llamackpt.server import Client, Completion, Server

COMMON = ("--threads", "1", "--cache-ram", "0", "--metrics", "--cache-type-k", "f32", "--cache-type-v", "f32")
DRAFTS = ("--spec-type", "ngram-simple", "--spec-ngram-simple-size-n", "2", "--spec-ngram-simple-size-m", "8")
# a single token that was there before is enough for a draft of 12
WILD = ("--spec-type", "ngram-simple", "--spec-ngram-simple-size-n", "1", "--spec-ngram-simple-size-m", "12")
TIE = 1e-3  # nats between the two likeliest tokens: what rounding may turn around


PROMPTS = [
    "def read(self, size=-1):\n",
    "class Stack:\n    def push(self, item):\n        self.items.append(item)\n\n    def pop(self):\n",
    "import os\nimport sys\nimport re\nimport os.path\nimport ",
    "    def __eq__(self, other):\n        return self.x == other.x and self.y == other.y\n\n    def __ne__(self, other):\n",
    'parser.add_argument("--verbose")\nparser.add_argument("--quiet")\nparser.add_argument("--output")\nparser.',
    "for i in range(10):\n    for j in range(10):\n        if a[i][j] == 0:\n            a[i][j] = 1\n        elif ",
    "try:\n    value = int(text)\nexcept ValueError:\n    value = 0\ntry:\n    other = float(text)\nexcept ",
    "x = [1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4, 1, 2, ",
]

# letters in no order that could be learned: nearly every draft is wrong from its first token on
NOISE = {"grammar": "root ::= [a-p]{1,2000}", "temperature": 20.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}

# what thinks behind every header; the next prompt has an answer there
_TEMPLATE = """\
{%- for message in messages -%}
<|endoftext|>{{ message.role }}
{{ message.content }}
{% endfor -%}
{%- if add_generation_prompt -%}
<|endoftext|>assistant
OPENING{% endif -%}"""


def template(opening: str) -> str:
    """Of a chat, in Jinja. opening: the lines that begin the reasoning."""
    return _TEMPLATE.replace("OPENING", opening)


def greedy(client: Client, prompt: str | list[int], n: int = 60, **more: object) -> Completion:
    return client.completion(prompt, max_tokens=n, temperature=0, **{"cache_prompt": False, **more})  # type: ignore[arg-type]


def assert_same(reference: Client, prompt: str | list[int], expected: Completion, found: Completion) -> None:
    """The same tokens, up to the first place where the reference itself hardly prefers its own."""
    if found.tokens == expected.tokens:
        return
    at = next(i for i, pair in enumerate(zip(expected.tokens, found.tokens, strict=False)) if pair[0] != pair[1])
    prefix = (reference.tokenize(prompt) if isinstance(prompt, str) else prompt) + expected.tokens[:at]
    last = reference.completion(prefix, max_tokens=1, temperature=0, n_probs=20, cache_prompt=False)
    logprobs = {item["id"]: item["logprob"] for item in last.raw["completion_probabilities"][0]["top_logprobs"]}
    gap = logprobs[expected.tokens[at]] - logprobs.get(found.tokens[at], float("-inf"))
    assert abs(gap) < TIE, f"token {at} of {prompt!r} is {found.text!r}, not {expected.text!r}; {gap} nats apart"


def start(model: Path, *args: str, n_ctx: int = 1024, parallel: int = 1, **more: Any) -> Server:
    return Server(model, *COMMON, "--ctx-size", str(n_ctx), "--parallel", str(parallel), *args, **more)


def held(client: Client) -> dict[str, float]:
    """Bytes that checkpoints hold by tier; upstream has no such metric."""
    prefix, suffix = 'llamacpp:checkpoint_bytes{tier="', '"}'
    items = client.metrics().items()
    return {name.removeprefix(prefix).removesuffix(suffix): value for name, value in items if name.startswith(prefix)}


def counted(client: Client, what: Callable[[], object]) -> dict[str, float]:
    """By how much each metric grew meanwhile."""
    before = client.metrics()
    what()
    return {name: value - before.get(name, 0.0) for name, value in client.metrics().items()}


def check_seed(plain: Client, drafting: Client, seed: int) -> None:
    """Each token takes one random number, and a rollback takes the numbers of the rejected tokens back."""
    options = {"temperature": 0.7, "seed": seed, "repeat_penalty": 1.1, "cache_prompt": False, "max_tokens": 60}
    rejected = 0
    for prompt in PROMPTS:
        expected = plain.completion(prompt, **options)
        found = drafting.completion(prompt, **options)
        rejected += found.timings.draft_n - found.timings.draft_n_accepted
        assert found.tokens == expected.tokens
    assert rejected > 0


def check_grammar(plain: Client, drafting: Client) -> Completion:
    """A grammar holds over rejected drafts. Returns the answer of the one that drafts."""
    grammar = 'root ::= "[" item (", " item){12} "]"\nitem ::= "(" [0-9]{1,3} ", " [0-9]{1,3} ")"'
    prompt = "points = [(1, 2), (3, 4), (1, 2), (5, 6)]\nother = "
    expected = greedy(plain, prompt, 200, grammar=grammar)
    found = greedy(drafting, prompt, 200, grammar=grammar)
    assert found.timings.draft_n > found.timings.draft_n_accepted
    assert_same(plain, prompt, expected, found)
    pairs = eval(found.text, {"__builtins__": {}})  # digits, commas and brackets, as the grammar says
    assert len(pairs) == 13 and all(len(pair) == 2 for pair in pairs)
    return found


def leave(client: Client, prompt: str, seed: int, n_chunks: int) -> None:
    """Ask for something of which every draft is rejected, and go after so many chunks."""
    stream = client.stream(prompt, max_tokens=200, seed=seed, **NOISE)
    for _ in range(n_chunks):
        next(stream, None)
    stream.close()  # type: ignore[attr-defined]


def check_left(client: Client, n_clients: int) -> None:
    """Clients that leave in the middle leave nothing behind."""
    expected = greedy(client, PROMPTS[0], 24)
    for n in range(n_clients):
        leave(client, PROMPTS[n % 4], n, 1 + 5 * n)
        assert greedy(client, PROMPTS[0], 24).tokens == expected.tokens
    assert not any(slot.is_processing for slot in client.slots())


def check_slots(plain: Client, server: Server, jobs: Iterable[tuple[str, int]], n_slots: int, n_rounds: int) -> None:
    """Jobs, a prompt and a number of tokens each, in all slots at once: each gets what it gets alone."""
    jobs, client = list(jobs), server.client()
    expected = [greedy(plain, *job) for job in jobs]
    with ThreadPoolExecutor(n_slots) as threads:
        for _ in range(n_rounds):
            found = list(threads.map(lambda job: greedy(client, *job), jobs))
            for (prompt, _), one, other in zip(jobs, expected, found, strict=True):
                assert_same(plain, prompt, one, other)
    assert len({answer.id_slot for answer in found}) == n_slots


def check_answers(plain: Client, server: Server) -> None:
    """Several answers to one prompt start from copies of one slot, and then draft and roll back for themselves."""
    client = server.client()
    for prompt in PROMPTS[1:4]:
        body = {"prompt": prompt, "n_predict": 60, "temperature": 0, "n_cmpl": 4, "return_tokens": True}
        answers = requests.post(f"{server.url}/completion", json=body, timeout=60).json()
        assert len(answers) == 4
        expected = greedy(plain, prompt)
        for answer in answers:
            assert_same(plain, prompt, expected, Completion.parse(answer))
        assert_same(plain, prompt, expected, greedy(client, prompt, cache_prompt=True))


def check_concurrent(plain: Client, server: Server, prompts: list[str], n_threads: int) -> None:
    """Requests side by side with some that are cancelled: nobody disturbs anybody."""
    client = server.client()
    leaving = threading.Thread(target=lambda: [leave(client, PROMPTS[seed % 8], seed, 1 + seed % 5) for seed in range(20)])
    leaving.start()
    with ThreadPoolExecutor(n_threads) as threads:
        found = list(threads.map(lambda prompt: greedy(client, prompt, 40), prompts))
    leaving.join()
    assert server.returncode is None, server.log_lines()
    for prompt, answer in zip(prompts, found, strict=True):
        assert_same(plain, prompt, greedy(plain, prompt, 40), answer)
    assert not any(slot.is_processing for slot in client.slots())


def check_conversations(plain: Client, client: Client) -> tuple[str, Completion]:
    """Two in turn on one slot, each going on from where it was. The last prompt, and its answer."""
    histories = ["".join(PROMPTS) * 2, "".join(reversed(PROMPTS)) * 2]
    for turn in range(8):
        prompt = histories[turn % 2] + f"\n# question {turn}\n"
        found = greedy(client, prompt, 24, cache_prompt=True)
        assert_same(plain, prompt, greedy(plain, prompt, 24), found)
        if turn > 1:
            assert found.timings.prompt_n < 0.2 * found.n_prompt
        histories[turn % 2] = prompt + f"answer {turn}\n"
    return prompt, found


def check_slot_file(plain: Client, client: Client, text: str) -> None:
    """The slot holds the text, and goes on with it after it was saved, erased and restored."""
    client.save_slot(0, "one")
    client.erase_slot(0)
    client.restore_slot(0, "one")
    longer = text + "\n# and then\n"
    again = greedy(client, longer, cache_prompt=True)
    assert_same(plain, longer, greedy(plain, longer), again)
    assert again.timings.prompt_n < 0.2 * again.n_prompt


def in_turns(client: Client, n: int, **more: object) -> str:
    """A prompt that has grown by a message each time; there is a checkpoint in front of each one."""
    delimiters = [{"role": "user", "delimiter": "<|endoftext|>user"}]
    prompt = ""
    for turn in range(n):
        prompt += f"<|endoftext|>user\n{PROMPTS[turn % 8]}# {turn}\n"
        greedy(client, prompt, 4, cache_prompt=True, message_delimiters=delimiters, **more)
    return prompt
