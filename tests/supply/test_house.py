"""What the supply chain's pages and the source's own ban say: natives, parsers, deserializers."""

from __future__ import annotations

import json
import re
import sqlite3
import ssl
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from supply import lock, native, sbom

ROOT = Path(__file__).resolve().parents[2]
RUFF = Path(sys.executable).with_name("ruff")


# --- docs/memory-safety.md (that it is the one which is made: tests/test_docs.py) ---


def test_a_native_package_without_its_line_is_refused() -> None:
    shipped = lock.runtime(lock.read())
    file = ("other-1-cp311-cp311-manylinux_2_17_x86_64.whl", "sha256:" + "0" * 64)
    with pytest.raises(ValueError, match="'other'"):
        native.pieces([*shipped, lock.Package("other", "1", lock.REGISTRY, (file,), ())])
    with pytest.raises(ValueError, match="'cryptography'"):
        native.pieces([one for one in shipped if one.name != "cryptography"])


def test_what_is_installed_with_compiled_code_has_its_line() -> None:
    """The lock says it by the names of wheels; here by the files that they brought."""
    found = set()
    for package in lock.runtime(lock.read()):
        files = metadata.distribution(package.name).files or []
        if any(".so" in file.suffixes for file in files):
            found.add(package.name)
    assert found == set(native.WHEELS)


def test_versions_of_what_wheels_bundle_are_asked() -> None:
    import yaml._yaml
    from cryptography.hazmat.backends.openssl import backend

    said = {name: version for _, name, _, version in sbom.BUNDLED}
    assert backend.openssl_version_text().split()[1] == said["openssl"]
    assert yaml._yaml.get_version_string() == said["libyaml"]
    assert metadata.version("google-re2").endswith("." + said["re2"].replace("-", ""))
    # What a wheel says of itself names nothing in C that we do not.
    told = metadata.distribution("cryptography").read_text("sboms/sbom.json")
    assert told is not None
    assert {(one["name"], one["version"]) for one in json.loads(told)["components"]} == {("openssl", said["openssl"])}


def test_this_machine_has_at_least_what_the_page_says() -> None:
    said = {piece.name: tuple(map(int, piece.version.split("."))) for piece in native.SYSTEM}
    assert sys.version_info[:3] >= said["CPython"]
    assert sqlite3.sqlite_version_info >= said["SQLite"]
    assert ssl.OPENSSL_VERSION_INFO[:2] >= said["OpenSSL"]


def test_every_process_of_the_table_is_explained() -> None:
    page = (ROOT / "docs/memory-safety.md").read_text()
    explained = page.split("## What an attacker has", 1)[1].split("## The pieces", 1)[0]
    for piece in native.pieces(lock.runtime(lock.read())):
        for process in piece.confined.split(";")[0].split(", "):
            assert f"| {process} |" in explained or process.startswith("nothing: "), (piece.name, process)


def test_the_roadmap_is_dated() -> None:
    roadmap = (ROOT / "docs/memory-safety.md").read_text().split("## Roadmap", 1)[1]
    months = re.findall(r"^\| (20\d\d-\d\d)", roadmap, re.MULTILINE)
    assert len(months) >= 4
    assert months == sorted(months)


def test_interfaces_by_ctypes_are_found(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text("_libc.syscall(1)\n_libc.mount(2)\n_call('pivot_root', 1)\n")
    assert native.kernel_interfaces(tmp_path) == ["mount", "openat2", "pivot_root", "seccomp"]


# --- what the source may not use ---


@pytest.mark.parametrize(
    ("code", "rule"),
    [
        ("import pickle\npickle.loads(b'')\n", "S301"),
        ("import shelve\nshelve.open('x')\n", "S301"),
        ("import marshal\nmarshal.loads(b'')\n", "S302"),
        ("eval('1')\n", "S307"),
        ("exec('1')\n", "S102"),
        ("import yaml\nyaml.load('', Loader=yaml.Loader)\n", "S506"),
        ("import xml.etree.ElementTree as E\nE.fromstring('')\n", "S314"),
        ("import subprocess\nsubprocess.run('ls', shell=True)\n", "S602"),
        ("import os\nos.system('ls *')\n", "S605"),
        ("import ssl\nssl._create_unverified_context()\n", "S323"),
        ("import hashlib\nhashlib.md5(b'')\n", "S324"),
        ("import tempfile\ntempfile.mktemp()\n", "S306"),
    ],
)
def test_the_static_check_bites(code: str, rule: str) -> None:
    """`make check`'s own settings, as for a file of src (ruff's S are bandit's)."""
    argv = [str(RUFF), "check", "--no-cache", "--output-format", "concise", "--stdin-filename", "src/nucleus/x.py", "-"]
    done = subprocess.run(argv, cwd=ROOT, input=code, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f": {rule} " in done.stdout, done.stdout


def test_no_xml_parser_is_on_a_path() -> None:
    """With every module of ours, and what these import when they are used, in one process."""
    names = {one.name for one in lock.runtime(lock.read())}
    assert not names & {"lxml", "xmltodict", "html5lib", "defusedxml", "untangle", "pyexpat", "xmlsec", "signxml"}
    code = (
        "import importlib, pkgutil, sys, nucleus\n"
        "for one in pkgutil.walk_packages(nucleus.__path__, 'nucleus.'):\n"
        "    one.name.endswith('__main__') or importlib.import_module(one.name)\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))\n"
    )
    lazily = ["aiohttp", "asyncssh", "bs4", "cryptography.x509", "google.protobuf.message", "grpclib.server", "h11"]
    lazily += ["markdownify", "mcp.client.stdio", "pydantic", "re2", "ssl", "yaml"]
    done = subprocess.run([sys.executable, "-I", "-c", code, *lazily], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert {"nucleus", "yaml", "markdownify"} <= loaded
    assert not loaded & {"xml", "pyexpat", "lxml", "xmlrpc", "plistlib", "html5lib"}


# --- CI ---


UNPINNED = re.compile(
    r"^\s*-?\s*(?:uses:\s*(?!\./)[^\s@]+(?:@(?![0-9a-f]{40}\b).*)?|image:\s*(?!.*@sha256:[0-9a-f]{64}).*)$", re.M
)


def test_workflows_and_actions_are_pinned() -> None:
    """There are none (`.ci/run` is all); one that is added names commits and image digests."""
    for line, bad in (
        ("      - uses: actions/checkout@v4", True),
        ("      - uses: actions/checkout", True),
        ("      - uses: actions/checkout@" + "0" * 40 + " # v4", False),
        ("      - uses: ./.github/actions/own", False),
        ("    image: debian:12", True),
        ("    image: debian@sha256:" + "0" * 64, False),
    ):
        assert bool(UNPINNED.search(line)) is bad, line
    files = subprocess.run(["git", "ls-files", ".github", ".gitlab-ci.yml", ".ci"], cwd=ROOT, capture_output=True)
    for name in files.stdout.decode().splitlines():
        assert not UNPINNED.findall((ROOT / name).read_text()), name


def test_ci_runs_the_supply_chain() -> None:
    script = (ROOT / ".ci/run").read_text()
    assert script.index("make audit-offline") < script.index("-m supply vulnerabilities") < script.index("make test")


@pytest.mark.parametrize(("code", "strict", "expected"), [(0, "", 0), (1, "", 1), (3, "", 0), (3, "1", 3), (2, "", 2)])
def test_what_ci_makes_of_the_audit(code: int, strict: str, expected: int, tmp_path: Path) -> None:
    """`.ci/run` itself, with a `make` that does nothing and a `python` that ends with the audit's code."""
    for name, does in (("bin/make", "exit 0"), (".venv/bin/python", f"exit {code}")):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_text(f"#!/bin/sh\n{does}\n")
        path.chmod(0o755)
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci/run").write_text((ROOT / ".ci/run").read_text())
    environment = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "AUDIT_STRICT": strict}
    done = subprocess.run(["bash", str(tmp_path / ".ci/run")], env=environment, capture_output=True, text=True)
    assert done.returncode == expected
    assert ("NOT AUDITED" in done.stdout) is (code == 3 and not strict)
