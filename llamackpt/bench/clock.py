"""How the benchmarks of the package time a call."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["clock", "timed"]

T = TypeVar("T")


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """What the call returned, and how long it took in microseconds."""
    start = time.perf_counter()
    result = call()
    return result, (time.perf_counter() - start) * 1e6


def clock(call: Callable[[], object]) -> float:
    """How long the call took in microseconds."""
    return timed(call)[1]
