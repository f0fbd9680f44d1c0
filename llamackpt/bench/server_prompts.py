"""Prompts that a server has seen before: a conversation whose reasoning is stripped, and a slot that comes from a file."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ..server import Client, Server
from .server import Bench, Setup, context_size, medians, texts

__all__ = ["MARKERS", "measure_conversation", "measure_restore"]

# one token and the role in front of each message, as in most chat templates
TEMPLATE = """\
{%- for message in messages -%}
{{ "<|endoftext|>" + message.role + "\\n" + message.content }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ "<|endoftext|>assistant\\nMARKER" }}
{%- endif -%}
"""
# what a template puts behind that for the model to think: one token in most vocabularies, several where it is plain text
MARKERS = {"1 token": "<|endoftext|>", "text": "<think>\\n"}
N_GENERATED = 32


def ask(client: Client, prompt: Sequence[int], n_tokens: int) -> tuple[float, int]:
    """Milliseconds until the first token is here, and how many tokens of the prompt were decoded for it."""
    start = time.perf_counter()
    first = 0.0
    for chunk in client.stream(prompt, max_tokens=n_tokens, temperature=0, ignore_eos=True):
        first = first or (time.perf_counter() - start) * 1e3
        if chunk.completion:
            return first, chunk.completion.timings.prompt_n
    raise AssertionError("a stream has a last item")


def ask_chat(client: Client, messages: Sequence[dict[str, str]], n_tokens: int) -> tuple[float, int]:
    """The same, of a chat."""
    body = {"messages": messages, "max_tokens": n_tokens, "temperature": 0, "ignore_eos": True, "stream": True}
    start = time.perf_counter()
    first = 0.0
    with client._open("POST", "/v1/chat/completions", body, stream=True) as response:
        for line in response.iter_lines():
            if not line.startswith(b"data: {"):
                continue
            first = first or (time.perf_counter() - start) * 1e3  # the role, with the first token
            event = json.loads(line[6:])
            if "timings" in event:
                return first, int(event["timings"]["prompt_n"])
    raise AssertionError("a stream has a last item")


def measure_conversation(
    bench: Bench,
    setup: Setup,
    model: Path,
    architecture: str,
    n_history: int,
    n_turns: int,
    marker: str,
    progress: Callable[[str], None],
) -> None:
    """Each turn's prompt has what the one before had, its answer without what was thought, and a new message.

    marker: of MARKERS, what begins the reasoning and goes with it.

    New are the tokens behind what two prompts have in common; the first turn has no prompt before it and is left out.
    """
    n_ctx = n_history + n_turns * 160 + 1024
    template = setup.logs / "template.jinja"
    template.write_text(TEMPLATE.replace("MARKER", MARKERS[marker]))
    flags = (*context_size(architecture, n_ctx), "--jinja", "--chat-template-file", f"{template}")
    material = "\n".join(texts(10**6))
    first_ms: dict[str, list[float]] = {}
    decoded: dict[str, int] = {}
    detail: list[dict[str, object]] = []
    n_new = 0
    with setup.pair(model, *flags) as servers:
        clients = {name: server.client(1800) for name, server in servers.items()}
        messages = [{"role": "user", "content": _cut(clients["patched"], material, n_history).strip()}]
        last: list[int] = []
        for turn in range(n_turns):
            progress(f"conversation, {marker}: turn {turn + 1} of {n_turns}")
            prompt = _prompt(clients["patched"], messages)
            new = len(prompt) - _common(prompt, last)
            n_new += new if turn else 0
            row: dict[str, object] = {"prompt": len(prompt), "new": new}
            for name in sorted(clients, reverse=bool(turn % 2)):
                ms, n_decoded = ask_chat(clients[name], messages, N_GENERATED)
                row[name] = {"first token, ms": ms, "decoded": n_decoded}
                if turn:
                    first_ms.setdefault(name, []).append(ms)
                    decoded[name] = decoded.get(name, 0) + n_decoded
            detail.append(row)
            last = prompt
            message = material[(turn + 1) * 997 :][:240].strip()
            messages += [{"role": "assistant", "content": f"Step {turn} is done."}, {"role": "user", "content": message}]
    bench.details[f"conversation, {marker}"] = detail
    what = f"turns 2 to {n_turns}, {n_history} tokens of history, reasoning and its marker ({marker}) stripped"
    bench.add(f"decoded / new, {marker}", f"prompt tokens decoded for each new one, {what}", "",
              {name: n / n_new for name, n in decoded.items()})  # fmt: skip
    bench.add(f"turn, first token, {marker}", f"median time to the first token, {what}", "ms", medians(first_ms))


def measure_restore(
    bench: Bench, setup: Setup, model: Path, n_prompt: int, runs: int, slots: Path, progress: Callable[[str], None]
) -> None:
    """A prompt, answered, and then the prompt with another end: on the warm slot, and on a new server that read its file."""
    flags = ("--ctx-size", str(n_prompt + 256), "--slot-save-path", f"{slots}")
    warm: dict[str, list[float]] = {}
    restored: dict[str, list[float]] = {}
    decoded: dict[str, float] = {}
    detail: list[dict[str, object]] = []

    def longer(client: Client, run: int) -> list[int]:
        return prompt + client.tokenize(f"\n# and then, number {run}\ndef ")

    with setup.pair(model, *flags) as servers:
        clients = {name: server.client(1800) for name, server in servers.items()}
        prompt = clients["patched"].tokenize("\n".join(texts(10**5)))[:n_prompt]
        for name, client in clients.items():
            progress(f"restore: prompt, {name}")
            ask(client, prompt, N_GENERATED)
            client.save_slot(0, name)
            for run in range(runs):
                warm.setdefault(name, []).append(ask(client, longer(client, run), 1)[0])
                ask(client, prompt, N_GENERATED)
    for run in range(runs):
        for name in warm:
            progress(f"restore: run {run + 1} of {runs}, {name}")
            with setup.start(model, *flags, stock=name == "stock") as server:
                ms, decoded[name] = _after_restore(server, name, longer(server.client(), run))
            restored.setdefault(name, []).append(ms)
            detail.append({"server": name, "warm, ms": warm[name][run], "restored, ms": ms, "decoded": decoded[name]})
    bench.details["restore"] = detail
    what = f"an answered prompt of {n_prompt} tokens with another end"
    bench.add("first token, warm", f"median time to the first token of {what}, slot warm", "ms", medians(warm))
    bench.add("first token, restored", f"the same after a restart and a restore, median of {runs}", "ms", medians(restored))
    bench.add("restored / warm", "the quotient of the two", "",
              {name: medians(restored)[name] / medians(warm)[name] for name in warm})  # fmt: skip
    bench.add("decoded, restored", f"tokens decoded after a restore, of {what}", "", dict(decoded))


def _after_restore(server: Server, filename: str, prompt: Sequence[int]) -> tuple[float, int]:
    client = server.client(1800)
    # the first decode of a process is slower, restored or not: it is the first to touch much of its memory
    client.completion(prompt[-16:], max_tokens=1, cache_prompt=False)
    client.restore_slot(0, filename)
    return ask(client, prompt, 1)


def _cut(client: Client, text: str, n_tokens: int) -> str:
    return client.detokenize(client.tokenize(text)[:n_tokens])


def _prompt(client: Client, messages: Sequence[dict[str, str]]) -> list[int]:
    """What the server makes of a chat."""
    return client.tokenize(str(client._json("POST", "/apply-template", {"messages": messages})["prompt"]))


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))
