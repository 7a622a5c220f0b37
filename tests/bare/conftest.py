"""A bare Debian 12, made by mmdebstrap: run by `make test-bare` alone, as root, with the network."""

from __future__ import annotations

import os
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

BARE = os.environ.get("NUCLEUS_BARE", "")  # where it is made
collect_ignore_glob = [] if BARE else ["test_*.py"]
