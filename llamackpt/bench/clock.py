"""How the benchmarks of the package time a call."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal, TypeVar

from ..checkpoint import CheckpointPerf

__all__ = ["clock", "inside", "timed"]

T = TypeVar("T")


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """What the call returned, and how long it took in microseconds."""
    start = time.perf_counter()
    result = call()
    return result, (time.perf_counter() - start) * 1e6


def clock(call: Callable[[], object]) -> float:
    """How long the call took in microseconds."""
    return timed(call)[1]


def inside(operation: Literal["save", "restore"], before: CheckpointPerf, after: CheckpointPerf) -> float:
    """The mean of what the library measured itself between two readings of its counters, in microseconds."""
    if operation == "save":
        return (after.t_save_us - before.t_save_us) / (after.n_save - before.n_save)
    return (after.t_restore_us - before.t_restore_us) / (after.n_restore - before.n_restore)
