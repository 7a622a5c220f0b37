"""`python -m supply`: the checks of `make audit-deps`. Exit 0; 1 for a finding; 3 where something could not be audited.

lock              every package from the one registry, with hashes, as a wheel
licences          the allow list, over what a user gets
vulnerabilities   known ones, of all that is locked (--service pypi|osv, --url BASE)
sbom FILE         write the bill of materials
(nothing)         the first three
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
from pathlib import Path

from supply import licences, lock, sbom, vulnerabilities

FINDING, UNKNOWN = 1, 3


def main(argv: list[str] | None = None) -> int:
    """Run the checks; print what was found; the worst of their exit codes, a finding before what is not known."""
    parser = argparse.ArgumentParser(prog="python -m supply", description=__doc__)
    parser.add_argument("check", nargs="?", choices=["lock", "licences", "vulnerabilities", "sbom"])
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--lock", type=Path, default=lock.ROOT / "uv.lock")
    parser.add_argument("--service", default=os.environ.get("AUDIT_SERVICE") or "pypi")
    parser.add_argument("--url", default=os.environ.get("AUDIT_URL", ""))
    options = parser.parse_args(argv)
    packages = lock.read(options.lock)
    shipped = lock.runtime(packages)
    if options.check == "sbom":
        return _bill(options.file, packages, shipped)
    codes = []
    if options.check in (None, "lock"):
        codes.append(_report("lock", len(packages) - 1, lock.problems(packages), []))
    if options.check in (None, "licences"):
        codes.append(_report("licences", len(shipped), *licences.problems(shipped)))
    if options.check in (None, "vulnerabilities"):
        try:
            service = vulnerabilities.Service(options.service, options.url)
        except ValueError as error:
            parser.error(str(error))
        others = [one for one in packages.values() if one.registry]
        today = datetime.datetime.now(datetime.UTC).date()
        codes.append(_report("vulnerabilities", len(others), *vulnerabilities.audit(others, service, today)))
    return FINDING if FINDING in codes else max(codes)


def _report(what: str, count: int, found: list[str], unknown: list[str]) -> int:
    for line in found:
        print(f"{what}: FOUND {line}")
    for line in unknown:
        print(f"{what}: COULD NOT BE AUDITED {line}")
    verdict = "nothing found" if not found and not unknown else f"{len(found)} found, {len(unknown)} not audited"
    print(f"{what}: {count} packages, {verdict}")
    return FINDING if found else UNKNOWN if unknown else 0


def _bill(file: Path | None, packages: dict[tuple[str, str], lock.Package], shipped: list[lock.Package]) -> int:
    (root,) = [one for one in packages.values() if one.name == lock.PROJECT]
    document = sbom.bill(root.version, root.needs, shipped, int(os.environ.get("SOURCE_DATE_EPOCH", "0")))
    if file is None:
        sys.stdout.buffer.write(sbom.written(document))
        return 0
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(sbom.written(document))
    print(f"sbom: {len(shipped)} components in {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
