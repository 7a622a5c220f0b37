"""`nucleus --version --json`: which files this program is made of, as one SHA-256, and whether they are the wheel's.

Promises: the digest is what anybody gets without us, in the directory that holds `nucleus/`:
    find nucleus -type f ! -path '*/__pycache__/*' | LC_ALL=C sort | xargs sha256sum | sha256sum
A release publishes it (`make dist`, docs/release.md). Where the installed wheel's RECORD is beside the package, each
file is compared with it too: what differs, is missing or is not in it is named, and the exit code is 1.
Relies on: who wrote the files did not write this one. An answer about oneself finds accidents; what
finds an intruder is the command above, run from outside, against the published digest.
Does not: look at bytecode in `__pycache__`, at dependencies (pip's hashes and the SBOM speak of those), or at Python.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from base64 import urlsafe_b64encode

from nucleus import __version__

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PACKAGE = "nucleus"
NAMED = 20  # differences that are named; more are counted


def main() -> int:
    """Print the report; 0, or 1 where a file is not the RECORD's."""
    described = report(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    sys.stdout.write(json.dumps(described, indent=2) + "\n")
    return 0 if described["record"] != "differs" else 1


def report(above: str) -> dict[str, Any]:
    """What is printed.

    Args:
        above: the directory that holds the package.

    Raises:
        OSError: a file cannot be read.
    """
    digests = own(above)
    recorded = record(os.path.join(above, f"{PACKAGE}-{__version__}.dist-info", "RECORD"))
    differ = [] if recorded is None else _differences(digests, recorded)
    return {
        "version": __version__,
        "python": ".".join(map(str, sys.version_info[:3])),
        "files": len(digests),
        "sha256": together(digests),
        "record": "none" if recorded is None else "differs" if differ else "matches",
        "differences": differ[:NAMED] + ([f"and {len(differ) - NAMED} more"] if len(differ) > NAMED else []),
    }


def own(above: str) -> dict[str, bytes]:
    """Path below `above`, with slashes, to its file's SHA-256; no wheel has links: those to files are read."""
    found = {}
    for directory, below, names in os.walk(os.path.join(above, PACKAGE)):
        below[:] = sorted(name for name in below if name != "__pycache__")
        for name in names:
            path = os.path.join(directory, name)
            if os.path.isfile(path):
                with open(path, "rb") as file:
                    found[os.path.relpath(path, above)] = hashlib.file_digest(file, "sha256").digest()
    return found


def together(digests: dict[str, bytes]) -> str:
    """The SHA-256 of sha256sum's lines, in the order of the paths' bytes."""
    lines = sorted((os.fsencode(path), digest) for path, digest in digests.items())
    return hashlib.sha256(b"".join(b"%s  %s\n" % (digest.hex().encode(), path) for path, digest in lines)).hexdigest()


def record(path: str) -> dict[str, str] | None:
    """Path to "sha256=…", for our own files, of a wheel's RECORD; None where it lists none (an editable install)."""
    import csv

    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = [row for row in csv.reader(file) if len(row) == 3]
    except FileNotFoundError:
        return None
    return {
        name: digest
        for name, digest, _ in rows
        if name.startswith(f"{PACKAGE}/") and "__pycache__" not in name.split("/")
    } or None


def _differences(digests: dict[str, bytes], recorded: dict[str, str]) -> list[str]:
    found = []
    for name in sorted({*digests, *recorded}):
        if name not in recorded:
            found.append(f"{name}: not in RECORD")
        elif name not in digests:
            found.append(f"{name}: missing")
        elif recorded[name] != "sha256=" + urlsafe_b64encode(digests[name]).rstrip(b"=").decode():
            found.append(f"{name}: not the file of the wheel")
    return found
