"""The byte-level BPE tokenizer, and the corpus as one array of tokens.

llama.cpp splits text with the regex that `tokenizer.ggml.pre = "qwen35"` stands for; the same regex is used here, so
that both sides give the same tokens (`compare.py` checks it). Knows nothing about the model.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.trainers import BpeTrainer

END_OF_TEXT = "<|endoftext|>"
PRE_NAME = "qwen35"
# from Qwen3.5's tokenizer.json, as llama.cpp's llama-vocab.cpp quotes it
PRE_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer(texts: Iterable[str], n_vocab: int) -> Tokenizer:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = Sequence(
        [Split(Regex(PRE_REGEX), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=n_vocab,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    return Tokenizer.from_file(str(path))


def encode_documents(tokenizer: Tokenizer, texts: Iterable[str]) -> np.ndarray:
    """All documents after one another, each followed by the end-of-text token: uint16 [n_tokens]."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    parts = [[*encoding.ids, end] for encoding in tokenizer.encode_batch(list(texts))]
    return np.concatenate([np.asarray(part, dtype=np.uint16) for part in parts])
