"""The lock file read as a supply chain: which packages a user gets, from where, with which hashes.

Promises: `runtime` is every package that the wheel with all its extras can bring onto Linux, on any Python that the
lock covers; `problems` is empty only if each comes from the one registry, has a SHA-256 for every file, and a wheel (an
sdist runs its author's code at install).
Relies on: uv.lock, version 1. Does not: go to the network.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.markers import Marker

ROOT = Path(__file__).resolve().parents[1]
REGISTRY = "https://pypi.org/simple"
PROJECT = "nucleus"
PYTHONS = ("3.11.2", "3.11.14", "3.12.12", "3.13.9", "3.14.0")


@dataclass(frozen=True, slots=True)
class Package:
    """One package of the lock, in one version."""

    name: str
    version: str
    registry: str
    files: tuple[tuple[str, str], ...]
    """(file name, "sha256:…") of each wheel and of the sdist."""
    needs: tuple[tuple[str, str], ...]
    """(name, version) of what it depends on, on Linux."""

    @property
    def wheels(self) -> list[str]:
        return [name for name, _ in self.files if name.endswith(".whl")]

    @property
    def native(self) -> bool:
        """Whether its wheel for Linux holds compiled code (one that is for any platform too is the fallback)."""
        return any("manylinux" in name for name in self.wheels)

    @property
    def purl(self) -> str:
        return f"pkg:pypi/{self.name}@{self.version}"


def read(path: Path = ROOT / "uv.lock") -> dict[tuple[str, str], Package]:
    """Every package of the lock by (name, version), the project itself included (its registry is "").

    Raises:
        ValueError: not a lock of the version that we know.
    """
    data = tomllib.loads(path.read_text())
    if data.get("version") != 1:
        raise ValueError(f"{path.name}: version {data.get('version')!r}, not 1")
    versions: dict[str, list[str]] = {}
    for entry in data["package"]:
        versions.setdefault(entry["name"], []).append(entry.get("version", ""))
    found = {}
    for entry in data["package"]:
        package = Package(
            entry["name"],
            entry.get("version", ""),
            entry["source"].get("registry", ""),
            tuple(_files(entry)),
            tuple(_needs(entry, versions)),
        )
        found[package.name, package.version] = package
    return found


def runtime(packages: dict[tuple[str, str], Package]) -> list[Package]:
    """What the project needs with all its extras, without the project, sorted."""
    (root,) = [package for package in packages.values() if package.name == PROJECT]
    seen: set[tuple[str, str]] = set()
    waiting = list(root.needs)
    while waiting:
        key = waiting.pop()
        if key not in seen:
            seen.add(key)
            waiting += packages[key].needs
    return [packages[key] for key in sorted(seen)]


def pinned(*paths: Path) -> list[Package]:
    """What requirements files pin, with hashes; they say neither registry nor files' names.

    Raises:
        ValueError: a line that is neither a pin nor a hash.
    """
    found = []
    for path in paths:
        for line in path.read_text().replace("\\\n", " ").splitlines():
            words = line.partition("#")[0].split()
            if not words:
                continue
            name, equals, version = words[0].partition("==")
            digests = [word.removeprefix("--hash=") for word in words[1:] if word.startswith("--hash=")]
            if not equals or len(digests) != len(words) - 1 or not digests or not all(map(_is_sha256, digests)):
                raise ValueError(f"{path.name}: not NAME==VERSION --hash=sha256:…: {line[:100]!r}")
            found.append(Package(name, version, REGISTRY, tuple(("", digest) for digest in digests), ()))
    return found


def problems(packages: dict[tuple[str, str], Package]) -> list[str]:
    """What is wrong with where the packages come from; of all of them, the tools that we develop with included."""
    found = []
    for package in packages.values():
        label = f"{package.name} {package.version}"
        if package.name == PROJECT:
            continue
        if package.registry != REGISTRY:
            found.append(f"{label}: from {package.registry or 'no registry'}, not {REGISTRY}")
        if not package.wheels:
            found.append(f"{label}: has no wheel: its author's code would run at install")
        found += [f"{label}: {name} has no SHA-256" for name, digest in package.files if not _is_sha256(digest)]
    return found


def _files(entry: dict[str, Any]) -> list[tuple[str, str]]:
    files = [*entry.get("wheels", ()), *([entry["sdist"]] if "sdist" in entry else [])]
    return [(file["url"].rpartition("/")[2], file.get("hash", "")) for file in files]


def _needs(entry: dict[str, Any], versions: dict[str, list[str]]) -> list[tuple[str, str]]:
    """Extras are not told apart: what an extra would bring counts."""
    listed = [*entry.get("dependencies", ())]
    for extra in entry.get("optional-dependencies", {}).values():
        listed += extra
    return [
        (one["name"], one.get("version") or versions[one["name"]][0])
        for one in listed
        if "marker" not in one or _on_linux(one["marker"])
    ]


def _on_linux(marker: str) -> bool:
    parsed = Marker(marker)
    common = {
        "sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "implementation_name": "cpython",
        "platform_python_implementation": "CPython", "extra": "",
    }  # fmt: skip
    return any(
        parsed.evaluate({**common, "python_version": full.rpartition(".")[0], "python_full_version": full})
        for full in PYTHONS
    )


def _is_sha256(digest: str) -> bool:
    kind, _, value = digest.partition(":")
    return kind == "sha256" and len(value) == 64 and all(digit in "0123456789abcdef" for digit in value)
