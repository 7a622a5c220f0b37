"""The bill of materials: CycloneDX 1.6 JSON, made from the lock, the same bytes each time.

Promises: each package that a user gets on Linux, with version, purl, the SHA-256 of every file that the lock allows,
its licence where it is installed here, and what it depends on; what a wheel is known to bundle as a component in it.
Hashes are in the package's one reference, not one reference a file: a validator takes 20 ms for each IRI.
Does not: list the system's Python, OpenSSL, SQLite and libc, which we do not ship (docs/memory-safety.md names them).
"""

from __future__ import annotations

import datetime
import json
import uuid
from typing import Any

from supply.licences import READ, licence_of
from supply.lock import PROJECT, Package

# What the wheels hold that somebody else wrote: (wheel's package, name, language, version or "" where it cannot be
# asked). The tests ask what is installed.
BUNDLED = (
    ("aiohttp", "llhttp", "C", ""),
    ("cffi", "libffi", "C", ""),
    ("cryptography", "openssl", "C", "4.0.3"),
    ("google-re2", "re2", "C++", "2025-11-05"),
    ("google-re2", "abseil-cpp", "C++", ""),
    ("pyyaml", "libyaml", "C", "0.2.5"),
)
_NAMESPACE = uuid.UUID("6f1d2c1e-94c6-5a0b-8f4f-5a1e7f2d1b55")


def bill(version: str, needs: tuple[tuple[str, str], ...], packages: list[Package], seconds: int) -> dict[str, Any]:
    """The document.

    Args:
        version: of the project.
        needs: what the project itself depends on.
        packages: all of them.
        seconds: since the epoch, of the document's date (SOURCE_DATE_EPOCH).
    """
    root = {"type": "application", "bom-ref": f"pkg:pypi/{PROJECT}@{version}", "name": PROJECT, "version": version,
            "purl": f"pkg:pypi/{PROJECT}@{version}", "licenses": [{"expression": "Apache-2.0"}]}  # fmt: skip
    refs = {(one.name, one.version): one.purl for one in packages}
    depends = [(root["bom-ref"], needs), *((one.purl, one.needs) for one in packages)]
    body = {
        "components": [_component(one) for one in packages],
        "dependencies": [{"ref": ref, "dependsOn": sorted(refs[key] for key in needed)} for ref, needed in depends],
    }
    serial = uuid.uuid5(_NAMESPACE, json.dumps([version, body], sort_keys=True))
    date = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        "metadata": {"timestamp": date.strftime("%Y-%m-%dT%H:%M:%SZ"), "component": root},
        **body,
    }


def written(document: dict[str, Any]) -> bytes:
    """Its bytes."""
    return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()


def _component(package: Package) -> dict[str, Any]:
    hashes = [{"alg": "SHA-256", "content": digest.partition(":")[2]} for _, digest in package.files]
    made: dict[str, Any] = {
        "type": "library", "bom-ref": package.purl, "name": package.name, "version": package.version,
        "purl": package.purl, "scope": "required",
        "properties": [{"name": "nucleus:native", "value": str(package.native).lower()}],
        "externalReferences": [
            {"type": "distribution", "url": f"https://pypi.org/project/{package.name}/{package.version}/",
             "comment": "the files that the lock allows, for any platform", "hashes": hashes}
        ],
    }  # fmt: skip
    if licence := READ.get(package.name) or licence_of(package):
        made["licenses"] = [{"expression": licence}]
    inside = [(name, kind, version) for owner, name, kind, version in BUNDLED if owner == package.name]
    if inside:
        made["components"] = [
            {"type": "library", "bom-ref": f"{package.purl}#{name}", "name": name,
             "properties": [{"name": "nucleus:language", "value": kind}], **({"version": version} if version else {})}
            for name, kind, version in inside
        ]  # fmt: skip
    return made
