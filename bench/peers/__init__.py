"""The peers: installed once, pinned, into an environment and a node_modules of their own below `.venv-bench`.

What does not install, or is not there, is named with its reason and not measured. NUCLEUS_BENCH_INSTALL=0 forbids
installing; NUCLEUS_BENCH_PEERS is another directory than `.venv-bench`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from bench.measure import ROOT

HERE = Path(__file__).resolve().parent
BENCH = HERE.parent
VENV = Path(os.environ.get("NUCLEUS_BENCH_PEERS") or ROOT / ".venv-bench")
PYTHON = VENV / "bin" / "python"
HOME = VENV / "home"  # codex refuses a home below /tmp
UV = ROOT / ".venv" / "bin" / "uv"
REQUIREMENTS = [BENCH / "decision" / "requirements.txt", HERE / "requirements.txt"]
CONSTRAINTS = BENCH / "decision" / "constraints.txt"
NODE = [HERE / "package.json", HERE / "package-lock.json"]
OURS = {"google-re2", "pydantic", "PyYAML"}  # what Nucleus itself needs there
DEBIAN = {"bwrap": "bubblewrap", "rg": "ripgrep", "npm": "npm", "ip": "iproute2"}
NPM = {"srt": "@anthropic-ai/sandbox-runtime", "codex": "@openai/codex"}


def allowed() -> bool:
    return os.environ.get("NUCLEUS_BENCH_INSTALL", "1") != "0"


def install() -> dict[str, str]:
    """All of it, where allowed and possible; what failed, by name."""
    if not allowed():
        return {}
    failed = {}
    for name, package in DEBIAN.items():
        if shutil.which(name) is None and (why := _debian(package)):
            failed[name] = why
    for step, name in ((_python, "PyPI peers"), (_node, "npm peers")):
        if why := step():
            failed[name] = why
    return failed


def _debian(package: str) -> str:
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return f"Debian's {package} is not installed, and only root may"
    words = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", package]
    return _said(words, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})


def _python() -> str:
    """Together; where that fails, one by one, so that the others are measured."""
    stamp, wanted = VENV / ".requirements", "".join(path.read_text() for path in (*REQUIREMENTS, CONSTRAINTS))
    if stamp.exists() and stamp.read_text() == wanted:
        return ""
    if not PYTHON.exists() and (why := _said([str(UV), "venv", "-q", "--python", sys.executable, str(VENV)])):
        return why
    pip = [str(UV), "pip", "install", "-q", "--no-config", "--python", str(PYTHON), "-c", str(CONSTRAINTS)]
    if not _said([*pip, *(word for path in REQUIREMENTS for word in ("-r", str(path)))]):
        stamp.write_text(wanted)
        return ""
    lines = [line for path in REQUIREMENTS for line in path.read_text().splitlines() if line and line[0] != "#"]
    failed = {line: why for line in lines if (why := _said([*pip, line]))}
    return "; ".join(f"{line}: {why}" for line, why in failed.items())  # without the stamp: the next run tries again


def _node() -> str:
    stamp, wanted = VENV / "node" / ".package-lock", NODE[1].read_text()
    if stamp.exists() and stamp.read_text() == wanted:
        return ""
    if shutil.which("npm") is None:
        return "npm is not installed"
    (VENV / "node").mkdir(parents=True, exist_ok=True)
    for path in NODE:
        shutil.copy(path, VENV / "node")
    if why := _said(["npm", "ci", "--prefix", str(VENV / "node"), "--no-audit", "--no-fund", "--silent"]):
        return why
    stamp.write_text(wanted)
    return ""


def _said(argv: list[str], env: dict[str, str] | None = None) -> str:
    """Why it failed; "" where it did not."""
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=env, timeout=600)
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)[-300:]
    return "" if done.returncode == 0 else " ".join((done.stderr or done.stdout).split())[-300:] or "it failed"


def has_module(name: str) -> bool:
    """Whether the peers' Python can find it."""
    if not PYTHON.exists():
        return False
    find = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({name!r}) is None)"
    return subprocess.run([PYTHON, "-c", find], check=False).returncode == 0


def srt() -> str:
    """Anthropic's sandbox-runtime, "" where it is not."""
    return os.environ.get("SRT") or _program(VENV / "node/node_modules/.bin/srt", "srt")


def codex() -> str:
    """The native program, which npm's `codex` wraps in Node (40 ms more)."""
    native = sorted((VENV / "node/node_modules/@openai").glob("codex-linux-*/vendor/*/bin/codex"))
    return os.environ.get("CODEX") or (str(native[0]) if native else _program(Path("/nonexistent"), "codex"))


def _program(path: Path, name: str) -> str:
    return str(path) if path.exists() else shutil.which(name) or ""


def absent(name: str) -> str:
    """The reason that is shown of a program that is not there."""
    if name in NPM:
        return f"not installed (npm {NPM[name]})"
    return f"not installed ({f'Debian {DEBIAN[name]}' if name in DEBIAN else f'PyPI {name}'})"


def versions() -> dict[str, str]:
    """Of the peers that are there."""
    asked = {"bwrap": ["bwrap", "--version"], "rg": ["rg", "--version"]}
    asked |= {"codex": [codex(), "--version"], "srt": [srt(), "--version"]}
    found = {}
    for name, argv in asked.items():
        if argv[0] and shutil.which(argv[0]):
            done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
            words = done.stdout.split("\n")[0].split()
            found[name] = next((word for word in words if word[0].isdigit()), "")
    if PYTHON.exists():
        lines = [line for path in REQUIREMENTS for line in path.read_text().splitlines() if "==" in line]
        names = {line.partition("==")[0] for line in lines} - OURS
        ask = (
            "import sys\nfrom importlib.metadata import version, PackageNotFoundError\nfor n in sys.argv[1:]:\n"
            "    try: print(n, version(n))\n    except PackageNotFoundError: pass"
        )
        done = subprocess.run([str(PYTHON), "-c", ask, *sorted(names)], capture_output=True, text=True, check=False)
        found |= dict(line.split() for line in done.stdout.splitlines())
    return found
