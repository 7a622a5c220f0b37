"""Known vulnerabilities of the locked versions, asked of a service; what the service cannot say is a failure.

Promises: first the service is asked about `CANARY`, a release whose vulnerabilities are old and unfixed: one that knows
nothing of it knows nothing. A package for which there is no answer about its very version "could not be audited".
Nothing is ignored unless `Ignored` says which, why and until when.
Relies on: PyPI's JSON API (`/pypi/NAME/VERSION/json`, or `/pypi/NAME/json` where the locked version is the newest) or
an OSV service (`POST /v1/query`). Does not: install, resolve, or trust a cache.
"""

from __future__ import annotations

import datetime
import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from supply.lock import Package

SERVICES = {"pypi": "https://pypi.org", "osv": "https://api.osv.dev"}
CANARY = ("pycrypto", "2.6.1", "CVE-2013-7459")
# (advisory, package): (why it does not bite here, last day of this)
Ignored = dict[tuple[str, str], tuple[str, datetime.date]]
IGNORED: Ignored = {}
_ANSWER = 64 << 20  # bytes; a project with thousands of releases has a few MiB
_SECONDS = 30
_AT_ONCE = 8


class NoAnswer(Exception):
    """The service said nothing about this release; the message says how."""


class Service:
    """A vulnerability service.

    Args:
        kind: "pypi" or "osv".
        url: its base, without a path.
    """

    def __init__(self, kind: str, url: str = "") -> None:
        if kind not in SERVICES:
            raise ValueError(f"the service is one of {', '.join(SERVICES)}, not {kind!r}")
        self.kind = kind
        self.url = (url or SERVICES[kind]).rstrip("/")
        if not self.url.startswith(("https://", "http://127.0.0.1:")):
            raise ValueError("the service's URL is https://…")

    def known(self, name: str, version: str) -> list[dict[str, Any]]:
        """The advisories for one release, those that were withdrawn not among them. Raises NoAnswer."""
        found = self._pypi(name, version) if self.kind == "pypi" else self._osv(name, version)
        return [one for one in found if not one.get("withdrawn")]

    def _pypi(self, name: str, version: str) -> list[dict[str, Any]]:
        try:
            answer = self._get(f"/pypi/{name}/{version}/json")
        except NoAnswer as first:
            answer = self._get(f"/pypi/{name}/json")
            newest = answer.get("info", {}).get("version")
            if newest != version:
                raise NoAnswer(f"{first}, and the newest that it speaks of is {newest}") from first
        if answer.get("info", {}).get("version") != version:
            raise NoAnswer("the answer is about another version")
        return _advisories(answer.get("vulnerabilities"))

    def _osv(self, name: str, version: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        question: dict[str, Any] = {"package": {"name": name, "ecosystem": "PyPI"}, "version": version}
        while True:
            answer = self._get("/v1/query", json.dumps(question).encode())
            found += _advisories(answer.get("vulns", []))
            token = answer.get("next_page_token")
            if not token:
                return found
            question["page_token"] = token

    def _get(self, path: str, body: bytes | None = None) -> dict[str, Any]:
        headers = {"Accept": "application/json", **({"Content-Type": "application/json"} if body else {})}
        request = urllib.request.Request(self.url + path, body, headers)  # noqa: S310 -- https, or our own test's
        try:
            with urllib.request.urlopen(request, timeout=_SECONDS) as response:  # noqa: S310
                data = response.read(_ANSWER + 1)
            answer = json.loads(data) if len(data) <= _ANSWER else None
        except urllib.error.HTTPError as error:
            with error:
                raise NoAnswer(f"{self.url}{path}: HTTP {error.code}") from None
        except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
            raise NoAnswer(f"{self.url}{path}: {error}") from None
        if not isinstance(answer, dict):
            raise NoAnswer(f"{self.url}{path}: not an object")
        return answer


def audit(
    packages: Iterable[Package], service: Service, today: datetime.date, ignored: Ignored | None = None
) -> tuple[list[str], list[str]]:
    """(findings, what could not be audited)."""
    ignored = IGNORED if ignored is None else ignored
    name, version, cve = CANARY
    try:
        if not any(cve in _names(one) for one in service.known(name, version)):
            return [], [f"everything: {service.url} does not know {cve} of {name} {version}, so it knows nothing"]
    except NoAnswer as error:
        return [], [f"everything: {service.url} does not answer about {name} {version}: {error}"]
    found, unknown = [], []
    asked = list(packages)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        answers = list(pool.map(lambda package: _ask(service, package), asked))
    for package, known in zip(asked, answers, strict=True):
        label = f"{package.name} {package.version}"
        if isinstance(known, NoAnswer):
            unknown.append(f"{label}: {known}")
            continue
        for one in known:
            names = _names(one)
            reasons = [entry for key, entry in ignored.items() if key[1] == package.name and key[0] in names]
            if not any(until >= today for _, until in reasons):
                late = " (was ignored until a day that has passed)" if reasons else ""
                found.append(f"{label}: {', '.join(names)}{late}{_fixed(one)}")
    return found, unknown


def _ask(service: Service, package: Package) -> list[dict[str, Any]] | NoAnswer:
    try:
        return service.known(package.name, package.version)
    except NoAnswer as error:
        return error


def _advisories(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(one, dict) and one.get("id") for one in value):
        raise NoAnswer("the answer has no list of advisories")
    return value


def _names(advisory: dict[str, Any]) -> list[str]:
    return [str(advisory["id"]), *map(str, advisory.get("aliases") or [])]


def _fixed(advisory: dict[str, Any]) -> str:
    versions = advisory.get("fixed_in")
    return f"; fixed in {', '.join(map(str, versions))}" if isinstance(versions, list) and versions else ""
