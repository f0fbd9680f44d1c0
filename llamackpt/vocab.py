"""Text to tokens and back, with llama.cpp's tokenizers. It knows vocabularies, and nothing of models.

llama.cpp ends the process where a token is out of range or where there is no tokenizer, so both are checked here.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from ._ffi import ffi, lib
from ._params import is_bytes
from .errors import LlamaError

__all__ = ["Vocab"]


class Vocab:
    """The vocabulary of a loaded model, which it keeps."""

    def __init__(self, vocab: Any, model: Any) -> None:
        self._vocab = vocab
        self._model = model
        self.n_tokens = int(lib.llama_vocab_n_tokens(vocab))

    @property
    def bos(self) -> int | None:
        """The token that begins a text."""
        return _token(lib.llama_vocab_bos(self._vocab))

    @property
    def eos(self) -> int | None:
        """The token that ends a text."""
        return _token(lib.llama_vocab_eos(self._vocab))

    def is_eog(self, token: int) -> bool:
        """Whether the token ends the generation."""
        return bool(lib.llama_vocab_is_eog(self._vocab, self.check_token(token)))

    def _need_tokenizer(self) -> None:
        if lib.llama_vocab_type(self._vocab) == lib.LLAMA_VOCAB_TYPE_NONE:
            raise LlamaError("the model has no tokenizer; pass token ids")

    def tokenize(self, text: str | bytes, add_special: bool, parse_special: bool) -> npt.NDArray[np.int32]:
        """int32 [n]"""
        self._need_tokenizer()
        if not isinstance(text, str | bytes | bytearray | memoryview):  # bytes(3) are three zeros
            raise TypeError(f"the text is a str or bytes, not {type(text).__name__}")
        raw = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else bytes(text)
        if len(raw) > 2**31 - 64:
            raise ValueError("the text is larger than 2 GiB")
        size = len(raw) + 8
        while True:
            tokens = np.empty(size, dtype=np.int32)
            out = ffi.from_buffer("int32_t[]", tokens)
            n = lib.llama_tokenize(self._vocab, raw, len(raw), out, size, add_special, parse_special)
            if n >= 0:
                return np.array(tokens[:n], dtype=np.int32)
            if n == -(2**31):
                raise LlamaError("the text has too many tokens")
            size = -n

    def detokenize(self, tokens: Iterable[int], remove_special: bool, unparse_special: bool) -> str:
        """The text; bytes that are not UTF-8 become U+FFFD."""
        self._need_tokenizer()
        ids = self.check_tokens(tokens)
        if ids.size == 0:
            return ""
        size = 16 * len(ids) + 16
        while True:
            buffer = ffi.new("char[]", size)
            source = ffi.from_buffer("int32_t[]", ids)
            n = lib.llama_detokenize(self._vocab, source, len(ids), buffer, size, remove_special, unparse_special)
            if n >= 0:
                return str(ffi.buffer(buffer, n)[:].decode("utf-8", "replace"))
            size = -n

    def token_to_piece(self, token: int) -> bytes:
        """The bytes of one token; they can be a part of a character."""
        self._need_tokenizer()
        token = self.check_token(token)
        size = 64
        while True:
            buffer = ffi.new("char[]", size)
            n = lib.llama_token_to_piece(self._vocab, token, buffer, size, 0, True)
            if n >= 0:
                return bytes(ffi.buffer(buffer, n)[:])
            size = -n

    def check_token(self, token: int) -> int:
        """The token, or ValueError, TypeError."""
        token = operator.index(token)
        if not 0 <= token < self.n_tokens:
            raise ValueError(f"token {token} is not in the vocabulary [0, {self.n_tokens})")
        return token

    def check_tokens(self, tokens: Iterable[int]) -> npt.NDArray[np.int32]:
        """The tokens as int32 [n], or ValueError, TypeError."""
        if is_bytes(tokens):
            raise TypeError(f"tokens have to be integers, not {type(tokens).__name__}; tokenize() makes them of text")
        given = tokens if isinstance(tokens, np.ndarray) else list(tokens)
        ids = np.asarray(given)
        if ids.ndim != 1:
            raise ValueError(f"tokens have to be one-dimensional, not of shape {ids.shape}")
        if ids.size == 0:
            return np.empty(0, dtype=np.int32)
        if ids.dtype.kind in "Of" and all(isinstance(token, int | np.integer) for token in given):  # too large for numpy
            self.check_token(max(given, key=abs))
        if ids.dtype.kind not in "iu":
            raise TypeError(f"tokens have to be integers, not {ids.dtype}")
        if ids.min() < 0 or ids.max() >= self.n_tokens:
            bad = ids[(ids < 0) | (ids >= self.n_tokens)][0]
            raise ValueError(f"token {bad} is not in the vocabulary [0, {self.n_tokens})")
        return np.ascontiguousarray(ids, dtype=np.int32)


def _token(token: int) -> int | None:
    return None if token == lib.LLAMA_TOKEN_NULL else int(token)
