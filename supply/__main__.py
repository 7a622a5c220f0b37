"""`python -m supply`: the checks of `make audit-deps`. Exit 0; 1 for a finding; 3 where something could not be audited.

lock              every package from the one registry, with hashes, as a wheel
licences          the allow list, over what a user gets
vulnerabilities   known ones, of all that is locked, and of what builds and installs (--service pypi|osv, --url BASE)
offline           the first two
(nothing)         the first three
sbom [FILE]       write the bill of materials
attest DIR        sign DIR, what `make dist` made, with --key (private, PEM): provenance in DIR/nucleus.intoto.jsonl
verify DIR        check DIR with --key (public, PEM)
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
from pathlib import Path

from supply import licences, lock, sbom, vulnerabilities

FINDING, UNKNOWN = 1, 3
CHECKS = ("lock", "licences", "vulnerabilities", "offline", "sbom", "attest", "verify")
TOOLS = (lock.ROOT / "supply/build.txt", lock.ROOT / "supply/uv.txt")
NEXT = (
    "  next: nothing is known of these, which is a failure. Ask a service that knows them: AUDIT_SERVICE=pypi|osv and "
    "AUDIT_URL=https://HOST for make, --service and --url here"
)


def main(argv: list[str] | None = None) -> int:
    """Run the checks; print what was found; the worst of their exit codes, a finding before what is not known."""
    parser = argparse.ArgumentParser(
        prog="python -m supply", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("check", nargs="?", choices=CHECKS)
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--lock", type=Path, default=lock.ROOT / "uv.lock")
    parser.add_argument("--service", default=os.environ.get("AUDIT_SERVICE") or "pypi")
    parser.add_argument("--url", default=os.environ.get("AUDIT_URL", ""))
    parser.add_argument("--key", type=Path)
    options = parser.parse_args(argv)
    if options.check in ("attest", "verify"):
        if not options.file or not options.key:
            parser.error(f"{options.check} DIR --key FILE")
        return _release(options.check, options.file, options.key.read_bytes())
    packages = lock.read(options.lock)
    shipped = lock.runtime(packages)
    if options.check == "sbom":
        return _bill(options.file, packages, shipped)
    codes = []
    if options.check in (None, "offline", "lock"):
        codes.append(_report("lock", len(packages) - 1, lock.problems(packages), []))
    if options.check in (None, "offline", "licences"):
        codes.append(_report("licences", len(shipped), *licences.problems(shipped)))
    if options.check in (None, "vulnerabilities"):
        try:
            service = vulnerabilities.Service(options.service, options.url)
        except ValueError as error:
            parser.error(str(error))
        others = [one for one in packages.values() if one.registry] + lock.pinned(*TOOLS)
        today = datetime.datetime.now(datetime.UTC).date()
        codes.append(_report("vulnerabilities", len(others), *vulnerabilities.audit(others, service, today)))
    return FINDING if FINDING in codes else max(codes)


def _report(what: str, count: int, found: list[str], unknown: list[str]) -> int:
    for line in found:
        print(f"{what}: FOUND {line}")
    for line in unknown:
        print(f"{what}: COULD NOT BE AUDITED {line}")
    if unknown:
        print(NEXT)
    verdict = "nothing found" if not found and not unknown else f"{len(found)} found, {len(unknown)} not audited"
    print(f"{what}: {count} packages, {verdict}")
    return FINDING if found else UNKNOWN if unknown else 0


def _release(what: str, directory: Path, key: bytes) -> int:
    from supply import release

    try:
        if what == "attest":
            print(f"wrote {release.attest(directory, key, os.environ.get('BUILDER_ID') or release.BY_HAND)}")
        said = release.verify(directory, key) if what == "verify" else None
    except release.Refused as error:
        print(f"{what}: {error}")
        return FINDING
    if said:
        commit = said["predicate"]["buildDefinition"]["resolvedDependencies"][0]["digest"]["gitCommit"]
        print(f"verify: {len(said['subject'])} files of commit {commit}")
    return 0


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
