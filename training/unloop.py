"""python unloop.py RUN_DIR: makes greedy text of RUN_DIR/checkpoint.pt loop less; writes the result over it.

In turns, the model continues beginnings of training windows greedily, and is then trained to give less probability to
what repeats itself there, while it goes on learning from the corpus: sequence-level unlikelihood, Welleck et al.,
"Neural Text Generation with Unlikelihood Training", arXiv:1908.04319.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from model import Config, Model
from torch import Tensor
from train import SHORT, held_out_loss, loss_of, make_optimizer, take_windows

N_PROMPT, N_WRITTEN = 64, 128
N_TEXTS = 32
N_GRAM = 8


@torch.no_grad()
def write_greedily(model: Model, prompts: Tensor) -> Tensor:
    """[batch, time] -> [batch, time + N_WRITTEN]; plain recomputation, as training has no cache."""
    tokens = prompts
    for _ in range(N_WRITTEN):
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(tokens)
        tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], dim=1)
    return tokens


def repeats(tokens: Tensor) -> Tensor:
    """bool [batch, time]: written tokens that complete an N_GRAM that the text has already had."""
    mask = torch.zeros(tokens.shape, dtype=torch.bool)
    for row, text in enumerate(tokens.tolist()):
        seen = set()
        for end in range(N_GRAM, len(text) + 1):
            gram = tuple(text[end - N_GRAM : end])
            mask[row, end - 1] = gram in seen and end > N_PROMPT
            seen.add(gram)
    return mask


def unlikelihood(model: Model, tokens: Tensor, mask: Tensor) -> Tensor:
    """Mean of -log(1 - p) over the masked tokens."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(tokens[:, :-1])
    p = logits.softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]
    penalty = -torch.log((1 - p).clamp(min=1e-4)) * mask[:, 1:]
    return penalty.sum() / mask.sum().clamp(min=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=24, help="optimizer steps a turn")
    parser.add_argument("--lr", type=float, default=4e-4)
    args = parser.parse_args()
    torch.manual_seed(0)
    rng = np.random.default_rng(2)
    train = np.load(args.run_dir / "train.npy")
    path = args.run_dir / "checkpoint.pt"
    saved = torch.load(path, weights_only=True)
    model = Model(Config(**saved["config"]))
    model.load_state_dict(saved["model"])
    optimizer = make_optimizer(model)

    for turn in range(args.turns):
        texts = write_greedily(model, take_windows(train, N_TEXTS, N_PROMPT, rng)[:, :-1])
        mask = repeats(texts)
        print(f"turn {turn + 1}: {mask.sum() / (N_TEXTS * N_WRITTEN):.1%} of the written tokens repeat", flush=True)
        for step in range(args.steps):
            done = (turn * args.steps + step) / (args.turns * args.steps)
            for group in optimizer.param_groups:
                group["lr"] = args.lr * min(1.0, (turn * args.steps + step + 1) / 10) * (1 - 0.9 * done)
            rows = torch.from_numpy(rng.choice(N_TEXTS, 8, replace=False))
            loss = loss_of(model, take_windows(train, *SHORT, rng)) + unlikelihood(model, texts[rows], mask[rows])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
            optimizer.step()
            optimizer.zero_grad()
        print(f"turn {turn + 1}: loss with unlikelihood {float(loss.detach()):.4f}", flush=True)
    print(f"held-out loss {held_out_loss(model, np.load(args.run_dir / 'held_out.npy')):.4f}")
    torch.save(saved | {"model": model.state_dict()}, path)


if __name__ == "__main__":
    main()
