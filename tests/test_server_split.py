"""llama-server with each tensor split over two devices, which are two ggml-rpc-servers on this machine."""

from __future__ import annotations

import contextlib

from server_checks import PROMPTS, WILD, assert_same, greedy, held, start

import llamackpt
from llamackpt.bench.rpc_server import rpc_server
from llamackpt.server import Server

SPLIT = ("--split-mode", "tensor", "--fit", "off")


def test_drafts_are_rolled_back_and_prompts_reused_without_a_copy() -> None:
    with contextlib.ExitStack() as stack:

        def split(*flags: str) -> Server:
            endpoints = ",".join(stack.enter_context(rpc_server("-t", "1")) for _ in range(2))
            return stack.enter_context(start(llamackpt.default_model(), "--rpc", endpoints, *SPLIT, *flags))

        plain, drafting = split().client(), split(*WILD).client()
        restored = 0
        for prompt in PROMPTS[:4]:
            expected, found = greedy(plain, prompt), greedy(drafting, prompt)
            assert_same(plain, prompt, expected, found)
            restored += int(found.timings.raw["checkpoint_restore_n"])
        assert restored > 0
        longer = PROMPTS[4] * 4
        for client in (plain, drafting):
            greedy(client, longer, 8, cache_prompt=True)
            again = greedy(client, longer[:-10] + "x", 8, cache_prompt=True)
            assert again.timings.prompt_n < 40
            assert_same(plain, longer[:-10] + "x", greedy(plain, longer[:-10] + "x", 8), again)
            tiers = held(client)
            assert tiers["shared"] > 0
            assert tiers["host"] == 0
