"""Receivers of others, as they are: installed by `make test-sinks`, and only run by it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

SINKS = os.environ.get("NUCLEUS_SINKS", "")  # where they are
collect_ignore_glob = [] if SINKS else ["test_*.py"]
