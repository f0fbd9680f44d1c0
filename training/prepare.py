"""python prepare.py RUN_DIR: writes tokenizer.json, train.npy and held_out.npy (uint16 tokens) into RUN_DIR."""

import argparse
from pathlib import Path

import numpy as np
from bpe import encode_documents, train_tokenizer
from corpus import read_corpus


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--n-vocab", type=int, default=1536)
    args = parser.parse_args()
    args.run_dir.mkdir(parents=True, exist_ok=True)

    training, held_out = read_corpus()
    tokenizer = train_tokenizer(training.values(), args.n_vocab)
    tokenizer.save(str(args.run_dir / "tokenizer.json"))
    for name, files in (("train", training), ("held_out", held_out)):
        tokens = encode_documents(tokenizer, files.values())
        np.save(args.run_dir / f"{name}.npy", tokens)
        n_chars = sum(map(len, files.values()))
        print(f"{name}: {len(files)} files, {n_chars} characters, {len(tokens)} tokens")
    print("held out:", " ".join(held_out))


if __name__ == "__main__":
    main()
