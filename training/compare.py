"""python compare.py RUN_DIR CHECKPOINT MODEL.gguf: does llama.cpp compute what PyTorch computes?

MODEL.gguf is an f32 export of CHECKPOINT. Prints the normalised mean square error of the logits over a piece of the
held-out text, and checks that llama.cpp cuts every held-out file into the tokens that `tokenizers` cuts it into.
Fails above 1e-4, or on a different token. Needs an installed llamackpt.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from bpe import load_tokenizer
from corpus import read_corpus
from model import Config, Model

import llamackpt

MAX_NMSE = 1e-4


def nmse(reference: np.ndarray, value: np.ndarray) -> float:
    return float(np.square(value - reference).sum() / np.square(reference).sum())


def pytorch_logits(checkpoint: Path, tokens: list[int]) -> np.ndarray:
    saved = torch.load(checkpoint, weights_only=True)
    model = Model(Config(**saved["config"]))
    model.load_state_dict(saved["model"])
    with torch.no_grad():
        return model(torch.tensor([tokens]))[0].numpy()


def compare_tokens(model: llamackpt.Model, run_dir: Path) -> tuple[int, int]:
    """Returns (files, files whose tokens differ)."""
    tokenizer = load_tokenizer(run_dir / "tokenizer.json")
    _, held_out = read_corpus()
    differing = [n for n, text in held_out.items() if list(model.tokenize(text)) != tokenizer.encode(text).ids]
    return len(held_out), len(differing)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--n-tokens", type=int, default=500)
    args = parser.parse_args()

    tokens = np.load(args.run_dir / "held_out.npy")[: args.n_tokens].astype(int).tolist()
    with llamackpt.Model(args.model) as model:
        n_files, n_differing = compare_tokens(model, args.run_dir)
        with model.context(n_ctx=args.n_tokens) as ctx:
            logits = ctx.decode(tokens, logits="all")
    error = nmse(pytorch_logits(args.checkpoint, tokens), np.asarray(logits))
    print(f"NMSE {error:.3e} over {len(tokens)} tokens; {n_differing} of {n_files} files tokenized differently")
    if not error < MAX_NMSE or n_differing:
        raise SystemExit("the GGUF does not compute what the checkpoint computes")


if __name__ == "__main__":
    main()
