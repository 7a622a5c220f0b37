"""The supply chain's gates bite: each is given what it must refuse. Services are stand-ins on loopback."""

from __future__ import annotations

import base64
import datetime
import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from supply.lock import Package

from supply import __main__ as program
from supply import licences, lock, sbom, vulnerabilities

ROOT = Path(__file__).resolve().parents[2]
UV = Path(sys.executable).with_name("uv")
TODAY = datetime.date(2026, 11, 23)
CANARY = {"id": "PYSEC-2017-94", "aliases": ["CVE-2013-7459"]}
# As the service has it: the h11 before the one that is locked takes a chunk's end that is no end.
H11 = {"id": "GHSA-vqfr-h8mv-ghfj", "aliases": ["CVE-2025-43859"], "fixed_in": ["0.16.0"]}
OLD = Package("h11", "0.14.0", lock.REGISTRY, (), ())


class Services(http.server.BaseHTTPRequestHandler):
    """PyPI's JSON API and OSV's, as far as they are asked; `answers` is by name and version."""

    answers: dict[tuple[str, str], list[dict[str, Any]]] = {}  # noqa: RUF012
    newest: dict[str, str] = {}  # noqa: RUF012

    def do_GET(self) -> None:
        words = self.path.split("/")[2:-1]
        name, version = words[0], words[1] if len(words) == 2 else self.newest.get(words[0], "")
        known = self.answers.get((name, version))
        self._say(None if known is None else {"info": {"version": version}, "vulnerabilities": known})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        known = self.answers.get((asked["package"]["name"], asked["version"]), [])
        if not known:
            return self._say({})
        at = int(asked.get("page_token", "0"))
        more = {"next_page_token": str(at + 1)} if at + 1 < len(known) else {}
        return self._say({"vulns": known[at : at + 1], **more})

    def _say(self, answer: dict[str, Any] | None) -> None:
        body = json.dumps(answer or {}).encode()
        self.send_response(404 if answer is None else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    Services.answers = {("pycrypto", "2.6.1"): [CANARY]}
    Services.newest = {}
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Services) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


# --- known vulnerabilities ---


@pytest.mark.parametrize("kind", ["pypi", "osv"])
def test_a_planted_old_version_is_found(url: str, kind: str) -> None:
    Services.answers["h11", "0.14.0"] = [{"id": "X-WITHDRAWN", "withdrawn": "2025-01-01T00:00:00Z"}, H11]
    found, unknown = vulnerabilities.audit([OLD], vulnerabilities.Service(kind, url), TODAY)
    assert not unknown
    assert len(found) == 1
    assert found[0].startswith("h11 0.14.0: GHSA-vqfr-h8mv-ghfj, CVE-2025-43859")


def test_a_planted_old_version_in_the_lock_fails_the_gate(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Services.answers["h11", "0.14.0"] = [H11]
    planted = tmp_path / "uv.lock"
    planted.write_text(
        (ROOT / "uv.lock").read_text().replace('name = "h11"\nversion = "0.16.0"', 'name = "h11"\nversion = "0.14.0"')
    )
    argv = ["vulnerabilities", "--lock", str(planted), "--service", "osv", "--url", url]
    assert program.main(argv) == 1
    assert "FOUND h11 0.14.0: GHSA-vqfr-h8mv-ghfj" in capsys.readouterr().out
    assert program.main(["vulnerabilities", "--service", "osv", "--url", url]) == 0


def test_what_the_service_does_not_know_is_a_failure(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    service = vulnerabilities.Service("pypi", url)
    Services.newest = {"h11": "0.16.0"}
    Services.answers["h11", "0.16.0"] = []
    found, unknown = vulnerabilities.audit([OLD], service, TODAY)
    assert not found
    assert unknown == [f"h11 0.14.0: {url}/pypi/h11/0.14.0/json: HTTP 404, and the newest that it speaks of is 0.16.0"]
    assert program.main(["vulnerabilities", "--service", "pypi", "--url", url]) == 3
    said = capsys.readouterr().out
    assert "COULD NOT BE AUDITED aiohttp" in said
    assert "COULD NOT BE AUDITED hatchling" in said, "what builds the wheel is asked for, too"
    assert "AUDIT_URL=https://HOST" in said


def test_a_service_that_does_not_know_the_canary_knows_nothing(url: str) -> None:
    Services.answers = {("h11", "0.14.0"): []}
    for kind in ("pypi", "osv"):
        found, unknown = vulnerabilities.audit([OLD], vulnerabilities.Service(kind, url), TODAY)
        assert (found, len(unknown)) == ([], 1)
        assert "everything" in unknown[0]


def test_a_service_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["vulnerabilities", "--service", "osv", "--url", "http://127.0.0.1:1"]) == 3
    said = capsys.readouterr().out
    assert "COULD NOT BE AUDITED everything" in said
    assert "AUDIT_SERVICE=pypi|osv" in said
    with pytest.raises(ValueError, match="https"):
        vulnerabilities.Service("osv", "http://example.org")


def test_ignoring_ends(url: str) -> None:
    Services.answers["h11", "0.14.0"] = [H11]
    service = vulnerabilities.Service("osv", url)
    ignored = {("CVE-2025-43859", "h11"): ("its chunks are read by our own code", TODAY)}
    assert vulnerabilities.audit([OLD], service, TODAY, ignored) == ([], [])
    found, _ = vulnerabilities.audit([OLD], service, TODAY + datetime.timedelta(days=1), ignored)
    assert "a day that has passed" in found[0]


# --- licences ---


@pytest.mark.parametrize(
    ("expression", "good"),
    [
        ("MIT", True), ("Apache-2.0 AND MIT", True), ("EPL-2.0 OR GPL-2.0-or-later", True), ("GPL-3.0-only", False),
        ("MIT AND GPL-3.0-only", False), ("(MIT OR GPL-3.0-only) AND Apache-2.0", True), ("SSPL-1.0", False),
        ("MIT OR GPL-3.0-only AND AGPL-3.0-only", True), ("GPL-2.0-only WITH Classpath-exception-2.0", False),
    ],
)  # fmt: skip
def test_licence_expressions(expression: str, good: bool) -> None:
    assert licences.satisfied(expression) is good


@pytest.mark.parametrize("expression", ["", "MIT MIT", "(MIT", "MIT OR", "MIT; GPL"])
def test_what_is_no_expression(expression: str) -> None:
    with pytest.raises(ValueError, match="SPDX"):
        licences.satisfied(expression)


def test_every_licence_is_allowed_and_an_unreadable_one_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = lock.runtime(lock.read())
    assert licences.problems(shipped) == ([], [])
    monkeypatch.setattr(licences, "ALLOWED", licences.ALLOWED - {"EPL-2.0"})
    found, _ = licences.problems(shipped)
    assert [line.partition(" ")[0] for line in found] == ["asyncssh"]
    monkeypatch.setattr(licences, "READ", {})
    found, _ = licences.problems(shipped)
    assert any(line.startswith("google-re2") and "nothing that we can read" in line for line in found)
    _, unknown = licences.problems([Package("h11", "0.0.1", lock.REGISTRY, (), ())])
    assert "not installed here in this version" in unknown[0]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["License: MIT"], "MIT"),
        (["License: MIT", "Classifier: License :: OSI Approved"], "MIT"),
        (["License: MIT", "Classifier: License :: OSI Approved :: GNU General Public License v3 (GPLv3)"], ""),
        (
            ["Classifier: License :: OSI Approved :: MIT License", "Classifier: License :: Other/Proprietary License"],
            "",
        ),
        (["License: BSD", "Classifier: License :: OSI Approved :: BSD License"], ""),
        (["License-Expression: GPL-3.0-only", "License: MIT"], "GPL-3.0-only"),
        ([], ""),
    ],
)
def test_what_metadata_says(lines: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x_y_z-1.dist-info").mkdir()
    text = "\n".join(["Metadata-Version: 2.4", "Name: x-y-z", "Version: 1", *lines]) + "\n"
    (tmp_path / "x_y_z-1.dist-info/METADATA").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert licences.licence_of(Package("x-y-z", "1", lock.REGISTRY, (), ())) == expected


# --- the lock ---


def test_the_lock_is_hashed_from_one_registry_and_all_wheels() -> None:
    packages = lock.read()
    assert lock.problems(packages) == []
    shipped = {one.name for one in lock.runtime(packages)}
    assert {"cryptography", "pydantic-core", "mcp", "cffi"} <= shipped
    assert not shipped & {"pytest", "ruff", "pywin32"}


@pytest.mark.parametrize(
    ("files", "registry", "problem"),
    [
        ((("x-1.tar.gz", "sha256:" + "0" * 64),), lock.REGISTRY, "no wheel"),
        ((("x-1-py3-none-any.whl", "md5:0"),), lock.REGISTRY, "no SHA-256"),
        ((("x-1-py3-none-any.whl", "sha256:" + "0" * 64),), "https://example.org/simple", "from https://example.org"),
    ],
)
def test_what_the_lock_must_not_have(files: tuple[tuple[str, str], ...], registry: str, problem: str) -> None:
    package = Package("x", "1", registry, files, ())
    (line,) = lock.problems({("x", "1"): package})
    assert problem in line


def test_requirements_are_pins_with_hashes(tmp_path: Path) -> None:
    builds = lock.pinned(ROOT / "supply/build.txt", ROOT / "supply/uv.txt")
    assert {"hatchling", "uv"} <= {one.name for one in builds}
    good = "x==1 \\\n    --hash=sha256:" + "0" * 64
    file = tmp_path / "r.txt"
    for bad in ("x>=1", "x==1", "x==1 --hash=md5:0", "https://example.org/x.whl", good + " -r other.txt"):
        file.write_text(bad + "\n")
        with pytest.raises(ValueError, match=r"r\.txt"):
            lock.pinned(file)
    file.write_text(f"# why\n{good}\n")
    assert [(one.name, one.version) for one in lock.pinned(file)] == [("x", "1")]


def test_new_releases_wait_and_nothing_is_built_but_ours() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert settings["tool"]["uv"]["exclude-newer"] == "7 days"
    assert tomllib.loads((ROOT / "uv.lock").read_text())["options"]["exclude-newer-span"] == "P7D"
    makefile = (ROOT / "Makefile").read_text()
    assert "sync -q --locked --inexact --no-build\n" in makefile
    for line in makefile.splitlines():
        if "pip install" in line:
            assert "--require-hashes" in line, line
    built = dict(
        line.split()[0].split("==") for line in (ROOT / "supply/build.txt").read_text().splitlines() if "==" in line
    )
    named = settings["tool"]["uv"]["build-constraint-dependencies"]
    assert built == dict(line.split("==") for line in named)
    assert settings["build-system"]["requires"] == [f"hatchling=={built['hatchling']}"]


def wheel(path: Path, code: str) -> str:
    """A wheel of a package that does nothing; its SHA-256."""
    files = {
        "planted.py": code, "planted-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: planted\nVersion: 1\n",
        "planted-1.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: us\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }  # fmt: skip
    rows = []
    for name, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        rows.append(f"{name},sha256={digest},{len(text)}")
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        archive.writestr("planted-1.dist-info/RECORD", "\n".join([*rows, "planted-1.dist-info/RECORD,,"]) + "\n")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_an_install_refuses_what_is_not_what_was_locked(tmp_path: Path) -> None:
    """The tool that `make setup` uses, as it uses it, on a registry of our own whose file is then another."""
    index, project = tmp_path / "index", tmp_path / "project"
    index.mkdir()
    project.mkdir()
    digest = wheel(index / "planted-1-py3-none-any.whl", "x = 1\n")
    (project / "pyproject.toml").write_text(
        '[project]\nname = "p"\nversion = "1"\nrequires-python = ">=3.11"\ndependencies = ["planted"]\n'
        f'[[tool.uv.index]]\nname = "ours"\nurl = "{index.as_uri()}"\nformat = "flat"\ndefault = true\n'
    )
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "UV_CACHE_DIR": str(tmp_path / "cache")}

    def uv(*words: str) -> subprocess.CompletedProcess[str]:
        argv = [str(UV), *words, "--offline", "--no-config" if words[0] == "nothing" else "--quiet"]
        return subprocess.run(argv, cwd=project, env=environment, capture_output=True, text=True, check=False)

    done = uv("lock", "--python", sys.executable)
    assert done.returncode == 0, done.stderr
    written = (project / "uv.lock").read_text()
    if digest not in written:  # a local index is locked without its hashes: say them, as a remote one would
        written = written.replace('.whl" }', f'.whl", hash = "sha256:{digest}" }}')
        (project / "uv.lock").write_text(written)
    assert digest in written
    sync = ("sync", "--locked", "--inexact", "--no-build", "--python", sys.executable)
    assert uv(*sync).returncode == 0
    shutil.rmtree(project / ".venv")
    shutil.rmtree(tmp_path / "cache")
    wheel(index / "planted-1-py3-none-any.whl", "import os\n")
    done = uv(*sync)
    assert done.returncode != 0
    assert "ash mismatch" in done.stderr


# --- what is built ---


def test_the_wheel_is_reproducible(tmp_path: Path) -> None:
    """Two builds of two copies: other directories, dates, modes, time zones and umasks; the same bytes."""
    digests = []
    for number, zone in enumerate(("UTC", "Asia/Kathmandu")):
        copy = tmp_path / f"copy{number}" / ("x" * (1 + 20 * number))
        copy.mkdir(parents=True)
        for name in ("pyproject.toml", "README.md", "uv.lock"):
            shutil.copyfile(ROOT / name, copy / name)
        shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__"))
        for path in copy.rglob("*"):
            os.utime(path, (1_000_000_000 + number, 1_000_000_000 + number))
            path.chmod(0o700 if path.is_dir() else 0o600 if number else 0o644)
        done = subprocess.run(
            [str(UV), "build", "-q", "--wheel", "--offline", "--build-constraints", str(ROOT / "supply/build.txt"),
             "--require-hashes", "--out-dir", str(copy / "dist"), "--python", sys.executable],
            cwd=copy, env={**os.environ, "SOURCE_DATE_EPOCH": "1700000000", "TZ": zone}, umask=0o077 * number,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if "network was disabled" in done.stderr or "is not cached" in done.stderr:
            pytest.skip("what builds the wheel is not in uv's cache, and a test does not go to the network: make dist")
        assert done.returncode == 0, done.stderr
        (made,) = (copy / "dist").glob("*.whl")
        digests.append(hashlib.sha256(made.read_bytes()).hexdigest())
        with zipfile.ZipFile(made) as archive:
            names = archive.namelist()
        assert not any(name.startswith(("supply", "tests", "demo")) for name in names)
        assert "nucleus/py.typed" not in names or (ROOT / "src/nucleus/py.typed").exists()
    assert digests[0] == digests[1]


def test_the_bill_has_every_package_and_nothing_else(tmp_path: Path) -> None:
    packages = lock.read()
    shipped = lock.runtime(packages)
    assert program.main(["sbom", str(tmp_path / "bill.json")]) == 0
    document = json.loads((tmp_path / "bill.json").read_text())
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    assert [(one["name"], one["version"]) for one in document["components"]] == [
        (one.name, one.version) for one in shipped
    ]
    for package, component in zip(shipped, document["components"], strict=True):
        (reference,) = component["externalReferences"]
        assert {one["content"] for one in reference["hashes"]} == {
            digest.removeprefix("sha256:") for _, digest in package.files
        }
        assert component["licenses"]
    refs = {one["bom-ref"] for one in document["components"]}
    named = {ref for one in document["dependencies"] for ref in one["dependsOn"]}
    assert named == refs, "each is needed by something"
    assert {owner for owner, *_ in sbom.BUNDLED} <= {one.name for one in shipped if one.native}
    assert program.main(["sbom", str(tmp_path / "again.json")]) == 0
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "bill.json").read_bytes()


def test_the_bill_is_cyclonedx(tmp_path: Path) -> None:
    python = ROOT / ".venv-audit/bin/python"
    if not python.exists():
        pytest.skip("CycloneDX's own schema is in .venv-audit: make audit-deps")
    assert program.main(["sbom", str(tmp_path / "bill.json")]) == 0
    validate = [str(python), str(ROOT / "supply/validate.py")]
    assert subprocess.run([*validate, str(tmp_path / "bill.json")], check=False).returncode == 0
    other = (tmp_path / "bill.json").read_text().replace('"type": "library"', '"type": "libary"', 1)
    (tmp_path / "other.json").write_text(other)
    assert subprocess.run([*validate, str(tmp_path / "other.json")], check=False, capture_output=True).returncode == 1
