"""Choosing the next token: llama.cpp's own sampler chain behind a handle.

Knows nothing of text or of generation loops. A sampler has a state (its random generator), so a rollback
of the model's memory needs the sampler's rollback as well: `clone` before, `restore` after.
"""

from __future__ import annotations

import math
import secrets
import threading
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from ._ffi import ffi, lib
from ._owned import Handle, owned
from ._params import check_range, check_type
from .errors import ClosedError, LlamaError

Logits = npt.NDArray[np.float32]

# the layout of llama_token_data; checked against the compiled header below
_TOKEN_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])

# LLAMA_DEFAULT_SEED means "draw one" to llama.cpp, so it is not a seed that can be repeated
_SEED_MAX = 0xFFFFFFFE

# logits that are divided by less overflow
_COLD = 1e-30

if ffi.sizeof("llama_token_data") != _TOKEN_DATA.itemsize:  # pragma: no cover
    raise ImportError("llama_token_data has another layout in this build of llama.cpp")


class Sampler(Handle):
    """Draws tokens from logits.

    temperature 0 takes the most likely token, whatever the other parameters say. Above 0 the order is
    top_k, top_p, min_p, temperature, draw. top_k 0, top_p 1 and min_p 0 switch a step off.
    Without a seed one is drawn and kept in `seed`, so that a run can be repeated. Threads that share one wait for each other.

    Raises ValueError and TypeError for a parameter out of range.
    """

    def __init__(
        self,
        temperature: float = 0.0,
        *,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        seed: int | None = None,
    ) -> None:
        self._chain: Any = None  # before anything can fail, so that close() is always safe
        self._lock = threading.RLock()
        self._candidates: npt.NDArray[Any] = np.empty(0, dtype=_TOKEN_DATA)
        if not (math.isfinite(temperature) and temperature >= 0.0):
            raise ValueError(f"temperature must be 0 or more, not {temperature}")
        check_range("top_k", top_k, 0, 0x7FFFFFFF)
        if not 0.0 < top_p <= 1.0:
            raise ValueError(f"top_p must be above 0 and at most 1 (off), not {top_p}")
        if not 0.0 <= min_p <= 1.0:
            raise ValueError(f"min_p must be between 0 (off) and 1, not {min_p}")
        if seed is not None:
            check_range("seed", seed, 0, _SEED_MAX)
        self._temperature = temperature
        self._seed = secrets.randbelow(_SEED_MAX + 1) if seed is None else seed
        self._chain = owned(lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params()), lib.llama_sampler_free)
        if temperature < _COLD:
            self._add(lib.llama_sampler_init_greedy())
            return
        if top_k > 0:
            self._add(lib.llama_sampler_init_top_k(top_k))
        if top_p < 1.0:
            self._add(lib.llama_sampler_init_top_p(top_p, 1))
        if min_p > 0.0:
            self._add(lib.llama_sampler_init_min_p(min_p, 1))
        if temperature != 1.0:
            self._add(lib.llama_sampler_init_temp(temperature))
        self._add(lib.llama_sampler_init_dist(self._seed))

    def _add(self, step: Any) -> None:
        lib.llama_sampler_chain_add(self._handle(), step)

    def _handle(self) -> Any:
        if self._chain is None:
            raise ClosedError("the sampler is closed")
        return self._chain

    @property
    def temperature(self) -> float:
        return self._temperature

    @property
    def seed(self) -> int:
        """The seed in use; without meaning at temperature 0."""
        return self._seed

    def sample(self, logits: npt.ArrayLike) -> int:
        """The next token, accepted already.

        logits: float32 [n_vocab] or [n, n_vocab], of which the last row is taken; they are not changed.
        Raises ValueError for another shape, LlamaError if one of them is inf or nan, or all are -inf.
        """
        row = np.asarray(logits, dtype=np.float32)
        if row.ndim == 2 and row.shape[0] > 0:
            row = row[-1]
        if row.ndim != 1 or row.size == 0:
            raise ValueError(f"logits must be [n_vocab] or [n, n_vocab], not {list(np.shape(logits))}")
        if not math.isfinite(row.max()):
            raise LlamaError(f"no token can be sampled: the largest of the logits is {row.max()}")
        with self._lock:
            return self._sample_row(row)

    def _sample_row(self, row: Logits) -> int:
        chain = self._handle()
        if self._candidates.size != row.size:
            self._candidates = np.empty(row.size, dtype=_TOKEN_DATA)
        data = self._candidates
        data["id"] = np.arange(row.size, dtype=np.int32)  # the steps reorder the candidates in place
        data["logit"] = row
        data["p"] = 0.0
        array = ffi.new("llama_token_data_array *")
        array.data = ffi.cast("llama_token_data *", data.ctypes.data)
        array.size = row.size
        array.selected = -1
        array.sorted = False
        lib.llama_sampler_apply(chain, array)
        if not 0 <= array.selected < array.size:
            raise LlamaError("the sampler chose no token")
        token = int(array.data[array.selected].id)
        lib.llama_sampler_accept(chain, token)
        return token

    def accept(self, token: int) -> None:
        """Tell the chain of a token that came from elsewhere, a prompt or a draft."""
        with self._lock:
            lib.llama_sampler_accept(self._handle(), token)

    def reset(self) -> None:
        """Back to the start: the same seed again."""
        with self._lock:
            lib.llama_sampler_reset(self._handle())

    def clone(self) -> Sampler:
        """An independent sampler in the same state: it goes on to draw the same tokens."""
        other = Sampler.__new__(Sampler)
        other._chain = None
        other._lock = threading.RLock()
        other._candidates = np.empty(0, dtype=_TOKEN_DATA)
        other._take(self)
        return other

    def _take(self, saved: Sampler) -> None:
        with saved._lock:
            chain = owned(lib.llama_sampler_clone(saved._handle()), lib.llama_sampler_free)
            state = saved._temperature, saved._seed
        with self._lock:
            self._chain = chain
            self._temperature, self._seed = state

    def restore(self, saved: Sampler) -> None:
        """Take over the state of a clone, which stays as it is. The other half of a rollback."""
        check_type("saved", saved, Sampler)
        self._handle()
        self._take(saved)

    def close(self) -> None:
        """Free the chain; a second call does nothing."""
        self._chain = None

    def __enter__(self) -> Sampler:
        self._handle()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = (
            "closed" if self._chain is None else f"temperature={self._temperature:g} seed={self._seed}"
        )
        return f"<Sampler {state}>"
