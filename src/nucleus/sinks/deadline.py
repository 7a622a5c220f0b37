"""An end to whatever is being waited for: a server that sends a byte now and then holds up a socket's own timeout.

Relies on: the process's main thread, and nobody else who wants SIGALRM.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from nucleus.sinks.base import Later

DEADLINE_S = 30


@contextmanager
def deadline(seconds: int = DEADLINE_S) -> Iterator[None]:
    """What is done inside raises `Later` after so many seconds."""

    def over(_number: int, _frame: FrameType | None) -> None:
        raise Later(f"no answer within {seconds} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
