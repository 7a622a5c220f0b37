"""For all tests: a run in the background (``&``, nohup) has SIGINT ignored, and would hand that on to its children."""

from __future__ import annotations

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
