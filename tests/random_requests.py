"""Requests to one llama-server, what is known of it, and what must hold after each; random_server.py draws them."""

from __future__ import annotations

import contextlib
import json
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import requests
from random_flags import Config
from server_checks import PROMPTS, held, template
from test_server_garbage import choose

import llamackpt
from llamackpt.errors import PromptTooLongError, RequestError
from llamackpt.server import Chunk, Completion, Server

STATE = 114 * 2**10  # bytes of one
LETTERS = "root ::= [a-z ]+"
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
REASONS = {"", "cache_disabled", "no_common_prefix", "checkpoint_before", "checkpoint_dropped", "no_checkpoint",
           "checkpoints_disabled"}  # fmt: skip
FULL = "Context size has been exceeded|is not inside the current sub-batch|failed to process speculative batch"


class Mismatch(AssertionError):
    """The server did what it must not do."""


def need(condition: object, text: str) -> None:
    if not condition:
        raise Mismatch(text)


class Oracle:
    """What the model says, one token after another and in one batch."""

    def __init__(self, path: Path, margin: float) -> None:
        self.margin = margin
        self.model = llamackpt.Model(path)
        self._ctx = self.model.context(n_ctx=2048, n_threads=1, type_k="f32", type_v="f32", flash_attn=False)
        n_vocab = self._ctx.decode([1]).shape[1]
        pieces = [self.model.token_to_piece(token) for token in range(n_vocab)]
        self.ends = np.array([self.model.is_eog(token) for token in range(n_vocab)])
        self.letters = np.array([re.fullmatch(rb"[a-z ]+", piece) is not None for piece in pieces]) | self.ends

    def logits(self, prompt: Sequence[int], tokens: Sequence[int]) -> Any:
        """Behind the prompt and behind each token."""
        self._ctx.clear()
        n_before = len(prompt) - 1
        mask = [False] * n_before + [True] * (1 + len(tokens))
        return self._ctx.decode([*prompt, *tokens], logits=mask)

    def close(self) -> None:
        self._ctx.close()
        self.model.close()


@dataclass
class Asked:
    """A request, and all that there is to know to check its answer."""

    prompt: list[int]
    n_predict: int
    cache: bool
    letters: bool = False
    checked: bool = True  # the tokens can be compared
    no_end: bool = False


@dataclass
class Run:
    """A server and what is known of it."""

    directory: Path
    config: Config
    oracle: Oracle
    done: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.texts: list[list[int]] = []
        self.files: dict[str, tuple[int, int, str]] = {}  # name: tokens, parts, kind of draft
        self.counters: dict[str, float] = {}
        self.lock = threading.Lock()
        (self.directory / "slots").mkdir(exist_ok=True)
        for path in (self.directory / "slots").iterdir():
            path.unlink()
        (self.directory / "template").write_text(template("<think>\n"))
        self.slot: tuple[list[int], int] | None = None  # what the only slot holds: tokens, of which so many for certain
        if self.config.arch:
            some = random.Random(1)
            parts = [[some.randrange(1, 100) for _ in range(12)] for _ in range(8)]
            self.corpus = [token for _ in range(60) for token in some.choice(parts)]
        else:
            self.corpus = self.oracle.model.tokenize("".join(PROMPTS) * 2).tolist()
        self.chats: list[list[dict[str, str]]] = [[]]
        self.start()

    def start(self) -> None:
        model, flags = self.config.model(self.directory), self.config.flags(self.directory)
        self.server = Server(model, *flags, log=self.directory / "log")
        self.client = self.server.client(120)
        self.counters = {}

    def close(self) -> None:
        self.server.close()

    # -- requests

    def prompt(self, rng: random.Random) -> list[int]:
        """Most of them share a part with one that was there."""
        with self.lock:
            known = [list(text) for text in self.texts]
        kind = rng.choice(["new", "on", "on", "on", "edit", "strip", "cut", "same", "end", "long"])
        at = rng.randrange(len(self.corpus) - 200)
        some = self.corpus[at : at + rng.choice([1, 3, 10, 40, 100, 150])]
        text = rng.choice(known[-4:] if rng.random() < 0.7 else known) if known else []
        cut = rng.randrange(len(text) + 1)
        if kind == "on":
            text = text + some
        elif kind == "edit":
            text = text[:cut] + some[:20] + text[cut + rng.randrange(20) :]
        elif kind == "strip":
            text = text[:cut] + text[cut + rng.randrange(40) :] + some[:20]
        elif kind == "cut":
            text = text[:cut]
        elif kind == "end":
            text = text[: len(text) - rng.randrange(6)] + some[:10]
        elif kind == "long":
            text = (text + self.corpus)[: self.config.n_slot + rng.randrange(-30, 10)]
        elif kind == "new" or not text:
            text = some
        limit = self.config.n_slot + 10 if kind == "long" else self.config.n_slot * 3 // 4
        return text[:limit] if rng.random() < 0.95 else text[-limit:]

    def ask(self, rng: random.Random) -> tuple[Asked, dict[str, Any]]:
        asked = Asked(self.prompt(rng), rng.choice([0, 1, 2, 8, 20, 40]), rng.random() < 0.85)
        more: dict[str, Any] = {"cache_prompt": asked.cache, "temperature": 0}
        if rng.random() < 0.4:
            more["id_slot"] = rng.randrange(self.config.parallel)
        kind = rng.random()
        if self.config.arch:
            more["ignore_eos"] = asked.no_end = True
            if kind < 0.2:
                more["n_probs"] = 4
        elif kind < 0.1:
            more["grammar"], asked.letters = LETTERS, True
        elif kind < 0.15:
            more["json_schema"], asked.checked = SCHEMA, False
        elif kind < 0.3:
            more["n_probs"] = 4
        elif kind < 0.5:
            more["ignore_eos"] = asked.no_end = True
        return asked, more

    def post(self, asked: Asked, more: dict[str, Any], stream: bool) -> Completion | None:
        """None if it was refused as it must be."""
        try:
            if not stream:
                return self.client.completion(asked.prompt or "", max_tokens=asked.n_predict, **more)
            chunks = list(self.client.stream(asked.prompt or "", max_tokens=asked.n_predict, **more))
            return chunks[-1].completion
        except PromptTooLongError:
            need(len(asked.prompt) >= self.config.n_slot, f"{len(asked.prompt)} tokens were refused")
        return None

    def check_answer(self, asked: Asked, found: Completion | None, alone: bool) -> None:
        if found is None:
            self.done["refused"] += 1
            return
        need(len(asked.prompt) < self.config.n_slot, f"{len(asked.prompt)} tokens were not refused")
        timings, n = found.timings, len(asked.prompt)
        need(timings.cache_n + timings.prompt_n == n, f"{timings.cache_n} + {timings.prompt_n} tokens of {n}")
        need(asked.cache or timings.cache_n == 0, "tokens of the cache with cache_prompt=false")
        need(timings.cache_n + timings.cache_miss_n <= n, f"{timings.cache_miss_n} missed")
        need(timings.cache_miss_reason in REASONS, timings.cache_miss_reason)
        need(timings.cache_miss_n == 0 or timings.cache_miss_reason, f"no reason for {timings.cache_miss_n} missed")
        if n == 0:
            need(not found.tokens, "an empty prompt was answered")
            return
        need(timings.prompt_n > 0, "no token was decoded")
        if alone:
            self.check_reuse(asked, found)
        self.check_tokens(asked, found)
        self.done["reused"] += timings.cache_n > 0
        self.done["from a checkpoint"] += "cache_checkpoint_n" in timings.raw
        self.done["rejected"] += timings.draft_n > timings.draft_n_accepted
        with self.lock:
            self.texts = [*self.texts[-11:], asked.prompt + found.tokens]

    def check_reuse(self, asked: Asked, found: Completion) -> None:
        """The tokens that the slot had, and nothing but these, were reused or are accounted for."""
        cfg, before = self.config, self.slot
        self.slot = asked.prompt + found.tokens[:-1], len(asked.prompt)
        if cfg.parallel > 1 or cfg.ram or cfg.reuse or not asked.cache or before is None:
            return
        had, n_sure = before
        common = takewhile(lambda pair: pair[0] == pair[1], zip(had, asked.prompt, strict=False))
        n_max = min(sum(1 for _ in common), len(asked.prompt) - 1)
        n_min = n_max if cfg.draft == "none" else min(n_max, n_sure)
        n = found.timings.cache_n + found.timings.cache_miss_n
        need(n_min <= n <= n_max, f"{found.timings}, and the slot had {n_min} to {n_max} of the prompt")
        if cfg.draft == "none" and n_max == len(had):
            need(found.timings.cache_n == n_max, f"{found.timings} of a prompt that goes on where the slot was, at {n_max}")

    def check_tokens(self, asked: Asked, found: Completion) -> None:
        tokens = found.tokens
        need(len(tokens) <= max(asked.n_predict, 1), f"{len(tokens)} tokens, not {asked.n_predict}")
        room = self.config.n_slot - len(asked.prompt)
        if found.stop == "limit":
            at_end = found.truncated and len(tokens) >= room - 1
            need(len(tokens) >= asked.n_predict or at_end, f"{len(tokens)} tokens, not {asked.n_predict}, room for {room}")
        if not asked.checked:
            return
        logits = self.oracle.logits(asked.prompt, tokens)
        allowed = self.oracle.letters if asked.letters else np.ones(logits.shape[1], bool)
        if asked.no_end:
            allowed = allowed & ~self.oracle.ends
        for index, token in enumerate(tokens):
            row = np.where(allowed, logits[index], -np.inf)
            if asked.letters and index == 0:
                row[self.oracle.ends] = -np.inf  # at least one letter
            best = int(np.argmax(row))
            gap = float(row[best] - row[token])
            if not gap <= self.oracle.margin:
                where = f"token {index} of {len(tokens)} behind {len(asked.prompt)}"
                raise Mismatch(f"{where} is {token}, not {best}: {gap} apart; {found.timings}")
        if found.stop == "eos" and not self.oracle.ends[tokens[-1:]].any():
            row = logits[len(tokens)]
            need(row[self.oracle.ends].max() >= row.max() - self.oracle.margin or asked.letters, "it ended without an end")
        for index, item in enumerate(found.raw.get("completion_probabilities", [])):
            row = logits[index].astype(np.float64)
            row -= row.max() + np.log(np.exp(row - row.max()).sum())
            for one in item.get("top_logprobs", []):
                gap = abs(one["logprob"] - row[one["id"]])
                need(gap < self.oracle.margin or row[one["id"]] < -20, f"logprob of {one['id']} at {index} is {gap} off")

    # -- operations

    def complete(self, rng: random.Random) -> None:
        asked, more = self.ask(rng)
        self.check_answer(asked, self.post(asked, more, rng.random() < 0.4), True)

    def chat(self, rng: random.Random) -> None:
        """Another turn, mostly; answers lose what they were thinking."""
        if self.config.arch:
            self.complete(rng)
            return
        messages = rng.choice(self.chats)
        kind = rng.random()
        if kind < 0.2 or len(self.oracle.model.tokenize(str(messages))) > self.config.n_slot // 2:
            messages = []
        elif kind < 0.4:
            messages = messages[: 2 * rng.randrange(1 + len(messages) // 2)]
        at = rng.randrange(300)
        question = self.oracle.model.detokenize(self.corpus[at : at + rng.choice([2, 10, 40])])
        messages = [*messages, {"role": "user", "content": question}]
        prompt = self.client._json("POST", "/apply-template", {"messages": messages})["prompt"]
        asked = Asked(self.client.tokenize(prompt), rng.choice([1, 8, 24]), True)
        body: dict[str, Any] = {"messages": messages, "max_tokens": asked.n_predict, "temperature": 0, "logprobs": True}
        if rng.random() < 0.3:
            body["id_slot"] = rng.randrange(self.config.parallel)
        try:
            answer = self.client._json("POST", "/v1/chat/completions", body)
        except PromptTooLongError:
            need(len(asked.prompt) >= self.config.n_slot, f"{len(asked.prompt)} tokens were refused")
            return
        tokens = [item["id"] for item in (answer["choices"][0].get("logprobs") or {}).get("content", [])]
        stop = "eos" if answer["choices"][0]["finish_reason"] == "stop" else "limit"
        raw = {"timings": answer["timings"], "stop_type": stop, "truncated": True}
        self.check_answer(asked, Completion.parse(raw, "", tokens), True)
        done = {"role": "assistant", "content": f"{len(messages)} is done."}
        self.chats = [*self.chats[-3:], [*messages, done]]

    def several(self, rng: random.Random) -> None:
        """At once: completions, clients that leave, and what is done with slots meanwhile."""
        jobs = [random.Random(rng.random()) for _ in range(rng.randrange(2, 6))]
        asks = [self.ask(job) for job in jobs]

        def one(index: int) -> tuple[Asked, Completion | None] | None:
            job, (asked, more) = jobs[index], asks[index]
            kind = job.random()
            try:
                if index == 0 or kind < 0.6:
                    return asked, self.post(asked, more, job.random() < 0.5)
                if kind < 0.75:
                    self.leave(job)
                elif kind < 0.9:
                    getattr(self, job.choice(["save", "restore", "erase", "misuse"]))(job)
                else:
                    self.client.tokenize("x")
                    self.client.metrics()
                    self.client.slots()
            except RequestError as error:
                need(self.config.unified and self.config.parallel > 1 and re.search(FULL, str(error)), str(error))
                self.done["full"] += 1
            return None

        with ThreadPoolExecutor(len(jobs)) as pool:
            found = [answer for answer in pool.map(one, range(len(jobs))) if answer]
        for asked, completion in found:
            self.check_answer(asked, completion, False)

    def answers(self, rng: random.Random) -> None:
        """Several to one prompt."""
        asked, more = self.ask(rng)
        n = rng.randrange(1, self.config.parallel + 2)
        body = {"prompt": asked.prompt or "", "n_predict": asked.n_predict, "n_cmpl": n, "return_tokens": True, **more}
        try:
            found = self.client._json("POST", "/completion", body)
        except RequestError as error:
            full = self.config.unified and re.search(FULL, str(error))
            need(isinstance(error, PromptTooLongError) or n > self.config.parallel or full, str(error))
            return
        found = found if n > 1 else [found]
        need(len(found) == n, f"{len(found)} answers, not {n}")
        for one in found:
            self.check_answer(asked, Completion.parse(one), False)

    def leave(self, rng: random.Random) -> None:
        asked, more = self.ask(rng)
        stream: Iterator[Chunk] = self.client.stream(asked.prompt or "", max_tokens=100, **more)
        with contextlib.suppress(PromptTooLongError):
            for _ in range(rng.randrange(6)):
                next(stream, None)
        stream.close()  # type: ignore[attr-defined]

    def save(self, rng: random.Random) -> None:
        name = rng.choice("pqr")
        saved = self.client.save_slot(rng.randrange(self.config.parallel), name)
        need(saved.nbytes == (self.directory / "slots" / name).stat().st_size or len(self.files) > 0, "size of the file")
        self.files[name] = saved.n_tokens, self.config.n_parts, self.config.draft

    def restore(self, rng: random.Random) -> None:
        if not self.files:
            return
        name = rng.choice(sorted(self.files))
        n_tokens, n_parts, draft = self.files[name]
        try:
            restored = self.client.restore_slot(rng.randrange(self.config.parallel), name)
        except RequestError as error:
            said = str(error)
            fits = n_parts == self.config.n_parts and n_tokens <= self.config.n_slot and draft == self.config.draft
            full = self.config.unified and "does not fit in the memory" in said
            need(not fits or full, f"restore of {self.files[name]}: {said}")
            return
        self.done["restored"] += 1
        need(restored.n_tokens == n_tokens or threading.current_thread() is not threading.main_thread(), "other tokens")

    def erase(self, rng: random.Random) -> None:
        self.client.erase_slot(rng.randrange(self.config.parallel))

    def misuse(self, rng: random.Random) -> None:
        """What is always refused."""
        (self.directory / "slots" / "bad").write_bytes(rng.randbytes(rng.choice([0, 3, 8, 100, 4096])))
        calls: list[Callable[[], object]] = [
            lambda: self.client.restore_slot(0, "bad"), lambda: self.client.restore_slot(0, "none"),
            lambda: self.client.restore_slot(0, "../template"), lambda: self.client.save_slot(0, "x.tmp"),
            lambda: self.client.completion([10**9], max_tokens=1), lambda: self.client.completion([-1], max_tokens=1),
            lambda: self.client.completion("x", max_tokens=1, grammar="root ::= ("),
            lambda: self.client._json("POST", "/completion", {"n_predict": 1}),
        ]  # fmt: skip
        call = rng.choice(calls)
        try:
            call()
        except RequestError as error:
            need(error.code in (400, 404, 500), f"{error.code}: {error}")
        else:
            raise Mismatch(f"not refused: {calls.index(call)}")

    def garbage(self, rng: random.Random) -> None:
        if self.config.arch:
            self.answers(rng)
            return
        for _ in range(4):
            path, body = choose(rng)
            data: bytes = json.dumps(body).encode()
            kind = rng.random()
            if kind < 0.05:
                data = b"[" * rng.randrange(5000)
            elif kind < 0.1:
                data = data.replace(b"a", b"\xff\xfe")
            elif kind < 0.15:
                data = data[: rng.randrange(len(data) + 1)]
            with requests.post(self.server.url + path, data, stream=True, timeout=120) as response:
                left, n = rng.choice([10**9, 10**9, 0, 200]), 0
                for part in response.iter_content(50):
                    n += len(part)
                    if n > left:
                        break

    def erase_all(self, _: random.Random) -> None:
        for slot in range(self.config.parallel):
            self.client.erase_slot(slot)
        need(not any(held(self.client).values()), f"all slots are empty, and there is {held(self.client)}")
        need(self.client.metrics()["llamacpp:checkpoint_held_count"] == 0, "all slots are empty, and checkpoints are held")

    def restart(self, rng: random.Random) -> None:
        self.server.signal(15)
        need(self.server.wait(30) == 0, f"it ended with {self.server.returncode}")
        if rng.random() < 0.3:
            self.config = Config.draw(rng, self.config.arch)
        self.start()
        self.restore(rng)

    # -- after each

    def check(self) -> None:
        """What holds whenever no request runs."""
        for _ in range(300):
            slots = self.client.slots()
            if not any(slot.is_processing for slot in slots):
                break
            time.sleep(0.02)
        need(not any(slot.is_processing for slot in slots), "a slot is busy and there is no request")
        metrics = self.client.metrics()
        for name, value in self.counters.items():
            need(metrics.get(name, -1) >= value, f"{name} was {value} and is {metrics.get(name)}")
        grow = re.compile(r"_total($|{)|checkpoint_(save|restore|seq_rm)_count|tokens_max")
        self.counters = {name: value for name, value in metrics.items() if grow.search(name)}
        now = held(self.client)
        room = 4 if self.config.device < 0 else self.config.device * 2**20 // STATE
        need(metrics["llamacpp:checkpoint_held_count"] < max(room, 1), f"on the device: {metrics}")
        if self.config.n_checkpoints == 0 or self.config.device == self.config.host == 0:
            need(not any(now.values()), f"there are no context checkpoints, and {now}")
        need(now["host"] <= self.config.host * 2**20, f"on the host: {now}")
        need(all(slot.n_tokens <= self.config.n_slot for slot in slots), "more tokens than a slot has room for")
