"""Licences of what a user gets, by allow list: an SPDX expression that the list does not satisfy is a finding.

Promises: no package passes because its licence could not be read. What a package says of itself comes from the
metadata of the installed version, which must be the locked one; where metadata is older than SPDX (a classifier, a free
text) the exact text must be in `SAYS`, or the package in `READ`, for which somebody opened the licence file.
Does not: give legal advice, or look at what a wheel bundles (the SBOM names the larger ones).
"""

from __future__ import annotations

import re
from importlib import metadata

from supply.lock import Package

# EPL-2.0: weak copyleft, by file; asyncssh is used as it is and never changed.
ALLOWED = frozenset(
    {"Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "EPL-2.0", "ISC", "MIT", "MIT-0", "PSF-2.0", "Unicode-3.0"}
)
SAYS = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache 2.0": "Apache-2.0",
    "BSD 3-Clause License": "BSD-3-Clause",
    "MIT License": "MIT",
    "OSI Approved :: Apache Software License": "Apache-2.0",
    "OSI Approved :: MIT License": "MIT",
    "OSI Approved :: Python Software Foundation License": "PSF-2.0",
}
VAGUE = {"OSI Approved", "OSI Approved :: BSD License"}  # contradict nothing, and are not enough
READ = {"google-re2": "BSD-3-Clause"}  # LICENSE of RE2; its metadata says "BSD License" alone
_WORD = re.compile(r"\(|\)|[A-Za-z0-9.+-]+")


def problems(packages: list[Package]) -> tuple[list[str], list[str]]:
    """(findings, what could not be looked at) for each package."""
    found, unknown = [], []
    for package in packages:
        label = f"{package.name} {package.version}"
        expression = READ.get(package.name) or licence_of(package)
        if expression is None:
            unknown.append(f"{label}: not installed here in this version, so its metadata cannot be read")
        elif not expression:
            found.append(f"{label}: says nothing that we can read about its licence")
        elif not satisfied(expression):
            found.append(f"{label}: {expression} is not on the allow list")
    return found, unknown


def licence_of(package: Package) -> str | None:
    """The SPDX expression that the installed package says of itself; "" for what we cannot read, None if not here."""
    try:
        said = metadata.distribution(package.name)
    except metadata.PackageNotFoundError:
        return None
    if said.version != package.version:
        return None
    fields = said.metadata
    if "License-Expression" in fields:
        return fields["License-Expression"]
    classified = [line for line in fields.get_all("Classifier") or [] if line.startswith("License :: ")]
    classified = [line.removeprefix("License :: ") for line in classified]
    if any(text not in SAYS and text not in VAGUE for text in classified):
        return ""  # whatever else it says
    for text in [*([fields["License"]] if "License" in fields else []), *classified]:
        if text in SAYS:
            return SAYS[text]
        if text and all(word in ALLOWED | {"AND", "OR", "GPL-2.0-or-later"} for word in _WORD.findall(text)):
            return text
    return ""


def satisfied(expression: str) -> bool:
    """Whether the allow list satisfies an SPDX expression: every side of AND, one side of OR. WITH is never satisfied.

    Raises:
        ValueError: not an expression.
    """
    words = _WORD.findall(expression)
    if "".join(words) != re.sub(r"\s", "", expression):
        raise ValueError(f"not an SPDX expression: {expression!r}")
    value, rest = _either(words)
    if rest:
        raise ValueError(f"not an SPDX expression: {expression!r}")
    return value


def _either(words: list[str]) -> tuple[bool, list[str]]:
    value, words = _both(words)
    while words[:1] == ["OR"]:
        other, words = _both(words[1:])
        value = value or other
    return value, words


def _both(words: list[str]) -> tuple[bool, list[str]]:
    value, words = _one(words)
    while words[:1] == ["AND"]:
        other, words = _one(words[1:])
        value = value and other
    return value, words


def _one(words: list[str]) -> tuple[bool, list[str]]:
    if words[:1] == ["("]:
        value, words = _either(words[1:])
        if words[:1] != [")"]:
            raise ValueError("not an SPDX expression: a parenthesis is not closed")
        return value, words[1:]
    if not words or words[0] in ("AND", "OR", "WITH", ")"):
        raise ValueError("not an SPDX expression: a name is missing")
    value, words = words[0] in ALLOWED, words[1:]
    if words[:1] == ["WITH"]:
        return False, words[2:]
    return value, words
