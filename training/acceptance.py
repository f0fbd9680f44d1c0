"""python acceptance.py RUN_DIR MODEL.gguf: how much of an n-gram draft the model itself would have written.

For each held-out file long enough, the model continues the file's beginning greedily. Greedy text does not depend on
drafts, so they are proposed and counted afterwards. Needs an installed llamackpt.
"""

import argparse
from pathlib import Path

import numpy as np
from bpe import load_tokenizer
from corpus import read_corpus

import llamackpt

N_DRAFT = 8
N_GRAM = (3, 2)


def propose(tokens: list[int]) -> list[int]:
    """What followed the last occurrence of the last 3, else 2, tokens; at most N_DRAFT tokens, perhaps none."""
    for n in N_GRAM:
        for start in range(len(tokens) - n - 1, -1, -1):
            if tokens[start : start + n] == tokens[-n:]:
                return tokens[start + n : start + n + N_DRAFT]
    return []


def count_drafts(prompt: list[int], written: list[int]) -> tuple[int, int, int]:
    """Returns (steps, drafted, accepted) of writing `written` with drafts; each step writes one token besides."""
    steps = drafted = accepted = at = 0
    while at < len(written):
        draft = propose(prompt + written[:at])[: len(written) - at]
        right = 0
        while right < len(draft) and at + right < len(written) and draft[right] == written[at + right]:
            right += 1
        steps, drafted, accepted, at = steps + 1, drafted + len(draft), accepted + right, at + right + 1
    return steps, drafted, accepted


def write_greedily(model: llamackpt.Model, prompt: list[int], n: int) -> list[int]:
    written: list[int] = []
    with model.context(n_ctx=len(prompt) + n) as ctx:
        token = int(np.argmax(ctx.decode(prompt)[-1]))
        while len(written) < n:
            written.append(token)
            token = int(np.argmax(ctx.decode([token])[-1]))
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--n-prompt", type=int, default=400)
    parser.add_argument("--n-written", type=int, default=300)
    parser.add_argument("--show", default="types.py", help="held-out file whose continuation is printed")
    args = parser.parse_args()
    tokenizer = load_tokenizer(args.run_dir / "tokenizer.json")
    _, held_out = read_corpus()

    totals = np.zeros(4, dtype=int)
    with llamackpt.Model(args.model) as model:
        for name, text in held_out.items():
            tokens = tokenizer.encode(text).ids
            if len(tokens) < args.n_prompt + args.n_written:
                continue
            prompt = tokens[: args.n_prompt]
            written = write_greedily(model, prompt, args.n_written)
            steps, drafted, accepted = count_drafts(prompt, written)
            totals += (len(written), steps, drafted, accepted)
            print(f"{name}: {len(written)} tokens in {steps} steps, {accepted} of {drafted} drafted tokens accepted")
            if name == args.show:
                print(tokenizer.decode(prompt[-40:]), "<<<HERE>>>", tokenizer.decode(written), sep="")
    n_written, steps, drafted, accepted = totals
    share = f"{accepted / drafted:.1%}"
    print(f"all: {n_written} tokens in {steps} steps, {accepted} of {drafted} drafted tokens accepted: {share}")


if __name__ == "__main__":
    main()
