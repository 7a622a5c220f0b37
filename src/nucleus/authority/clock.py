"""The clocks that the authority stamps with, as one reading; passed in, so that tests can turn them."""

from __future__ import annotations

import time
from collections.abc import Callable

Clock = Callable[[], tuple[int, int]]
"""() -> (nanoseconds since the epoch, monotonic nanoseconds)"""


def system() -> tuple[int, int]:
    """The system's clocks."""
    return time.time_ns(), time.monotonic_ns()
