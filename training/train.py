"""python train.py RUN_DIR: trains on RUN_DIR/train.npy and writes RUN_DIR/checkpoint.pt every few hundred steps.

Windows start at random offsets and may cross from one file into the next, over an end-of-text token. Short windows
first; the last steps use long ones, so that attention has seen far positions. One line per report, on stdout.
"""

import argparse
import dataclasses
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from model import Config, Model

SHORT = (8, 512)  # batch, time
LONG = (4, 2048)
WARMUP = 100


def take_windows(tokens: np.ndarray, batch: int, length: int, rng: np.random.Generator) -> torch.Tensor:
    """int64 [batch, length + 1]: inputs, and shifted by one the targets."""
    starts = rng.integers(0, len(tokens) - length - 1, batch)
    return torch.from_numpy(np.stack([tokens[s : s + length + 1] for s in starts]).astype(np.int64))


def loss_of(model: Model, windows: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy, in nats per token."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(windows[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(model: Model, tokens: np.ndarray, length: int = 512, batch: int = 8) -> float:
    """Over all whole windows of the held-out files."""
    n = (len(tokens) - 1) // length
    windows = torch.from_numpy(np.stack([tokens[i * length : (i + 1) * length + 1] for i in range(n)]).astype(np.int64))
    losses = [loss_of(model, part) * len(part) for part in windows.split(batch)]
    return float(sum(losses)) / n


def learning_rate(step: int, n_steps: int, peak: float) -> float:
    if step < WARMUP:
        return peak * (step + 1) / WARMUP
    progress = (step - WARMUP) / max(1, n_steps - WARMUP)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def make_optimizer(model: Model) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--long-steps", type=int, default=300, help="of these, the last with long windows")
    parser.add_argument("--peak-lr", type=float, default=2.5e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stop-at", type=int, help="leave after this step of the schedule; a multiple of 400 is saved")
    parser.add_argument("--init", type=Path, help="checkpoint whose weights to start from; the optimizer starts anew")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    train = np.load(args.run_dir / "train.npy")
    held_out = np.load(args.run_dir / "held_out.npy")

    model = Model(Config())
    if args.init:
        model.load_state_dict(torch.load(args.init, weights_only=True)["model"])
    optimizer = make_optimizer(model)
    started, seen, recent = time.monotonic(), 0, []
    for step in range(args.steps):
        batch, length = SHORT if step < args.steps - args.long_steps else LONG
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, args.peak_lr)
        loss = loss_of(model, take_windows(train, batch, length, rng))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
        optimizer.step()
        optimizer.zero_grad()
        seen += batch * length
        recent.append(float(loss.detach()))
        if (step + 1) % 50 == 0:
            seconds = time.monotonic() - started
            speed = f"seconds {seconds:.0f} tokens/s {seen / seconds:.0f}"
            print(f"step {step + 1} loss {np.mean(recent):.4f} norm {norm:.2f} tokens {seen} {speed}", flush=True)
            recent.clear()
        if (step + 1) % 400 == 0 or step + 1 == args.steps:
            print(f"step {step + 1} held-out loss {held_out_loss(model, held_out):.4f}", flush=True)
            saved = {"config": dataclasses.asdict(model.c), "model": model.state_dict(), "step": step + 1}
            torch.save(saved, args.run_dir / "checkpoint.pt")
        if step + 1 == args.stop_at:
            break


if __name__ == "__main__":
    main()
