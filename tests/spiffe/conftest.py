"""SPIFFE clients of others, as they are: installed by `make test-spiffe`, and only run by it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

SPIFFE = os.environ.get("NUCLEUS_SPIFFE", "")  # where they are
collect_ignore_glob = [] if SPIFFE else ["test_*.py"]


def in_a_pod(*argv: str) -> str:
    """What an agent in a pod of its own prints; the clients and their tests' programs are shown to it."""
    from integration.site import BIN, Site

    site = Site(0)
    try:
        paths = [SPIFFE, str(TESTS / "spiffe")]
        python = Path(SPIFFE, "venv/bin/python").resolve().parents[1]
        if not python.is_relative_to("/usr"):  # which a pod has anyway
            paths.append(str(python))
        shown = [word for path in paths for word in ("--toolchain", path)]
        options = ["--profile", "codegen", "--workdir", str(site.workspace), *shown]
        with site.start([str(BIN / "nucleus"), "run", *options, "--", *argv]) as child:
            out, err = child.communicate(timeout=120)
        assert child.returncode == 0, err[-4_000:]
        return str(out).strip().splitlines()[-1]
    finally:
        site.close()
