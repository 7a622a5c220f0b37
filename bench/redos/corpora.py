"""Patterns from pinned packages (fetched into a scratch directory, digests checked) and from this Python's own files."""

from __future__ import annotations

import ast
import base64
import hashlib
import io
import json
import re
import subprocess
import sys
import sysconfig
import tarfile
import urllib.request
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.redos import pins

HERE = Path(__file__).resolve().parent
RE_CALLS = {"compile", "match", "search", "fullmatch", "split", "findall", "finditer", "sub", "subn"}
FLAGS = {"I": "i", "IGNORECASE": "i", "M": "m", "MULTILINE": "m", "S": "s", "DOTALL": "s", "X": "x", "VERBOSE": "x"}


@dataclass(frozen=True, slots=True)
class Pattern:
    """`javascript`: the syntax it is written in; else Python's. `flags`: of i, m, s, x."""

    source: str
    flags: str
    javascript: bool

    def for_re2(self) -> str:
        """The same expression in RE2's syntax, as far as that is a matter of spelling."""
        text = unverbose(self.source) if "x" in self.flags else self.source
        text = _respell(text, self.javascript)
        flags = "".join(flag for flag in "ims" if flag in self.flags)
        return f"(?{flags}){text}" if flags else text

    def for_oracle(self) -> tuple[str, str]:
        """The same expression in JavaScript's."""
        if self.javascript:
            return self.source, "".join(flag for flag in "imsu" if flag in self.flags)
        text, flags = unverbose(self.source) if "x" in self.flags else self.source, set(self.flags) - {"x"}
        if head := re.match(r"\(\?([aiLmsux]+)\)", text):
            if "x" in head[1]:
                text = unverbose(text)
            flags |= set(head[1]) & set("ims")
            text = text[text.index(")") + 1 :]
        text = text.replace("(?P<", "(?<").replace(r"\A", "^").replace(r"\Z", "$")
        return text, "".join(sorted(flags))


def _respell(text: str, javascript: bool) -> str:
    def one(match: re.Match[str]) -> str:
        found = match[0]
        if found.startswith("\\u"):
            return "\\x{" + found.removeprefix("\\u").strip("{}") + "}"
        return {"\\Z": "\\z", "[^]": "[\\s\\S]", "\\/": "/"}.get(found, found)

    kinds = r"\\u[0-9a-fA-F]{4}|\\u\{[0-9a-fA-F]+\}|\[\^\]|\\." if javascript else r"\\u[0-9a-fA-F]{4}|\\."
    return re.sub(kinds, one, text, flags=re.DOTALL)


def unverbose(text: str) -> str:
    """Without the white space and the comments that re.VERBOSE passes over."""
    return re.sub(r"(\\.|\[\^?\]?(?:\\.|[^\]\\])*\])|\s+|#[^\n]*", lambda match: match[1] or "", text, flags=re.DOTALL)


# --- fetching ---


def fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=120) as answer:
        return bytes(answer.read())


def archive(scratch: Path, name: str, digest: str, urls: Iterable[str]) -> Path:
    """The unpacked archive, fetched when it is not there; the digest is checked each time."""
    kept, target = scratch / name, scratch / (name + ".d")
    if not kept.exists():
        for url in urls:
            kept.write_bytes(fetch(url))
    data = kept.read_bytes()
    seen = {hashlib.sha256(data).hexdigest(), base64.b64encode(hashlib.sha512(data).digest()).decode()}
    if digest not in seen:
        kept.unlink()
        raise SystemExit(f"bench.redos: {name} is not what was pinned")
    if not target.exists():
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            for member in tar:
                path = target / member.name.lstrip("/")
                if member.isfile() and path.suffix in {".py", ".js", ".json"} and ".." not in path.parts:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(tar.extractfile(member).read())  # type: ignore[union-attr]
    return target


def npm(scratch: Path, pin: tuple[str, str, str]) -> Path:
    name, version, digest = pin
    file = f"{name}-{version}.tgz"
    return archive(scratch, file, digest, [f"https://registry.npmjs.org/{name}/-/{file}"])


def pypi(scratch: Path, pin: tuple[str, str, str]) -> Path:
    name, file, digest = pin

    def urls() -> Iterator[str]:
        page = fetch(f"https://pypi.org/simple/{name}/").decode()
        yield next(url for url in re.findall(r'href="([^"#]+)', page) if url.endswith("/" + file))

    return archive(scratch, file, digest, urls())


# --- finding the patterns ---


def javascript(scratch: Path, trees: list[Path]) -> set[Pattern]:
    files = [str(p) for tree in trees for p in sorted(tree.rglob("*.js")) if ".min." not in p.name]
    parser = npm(scratch, pins.ACORN) / "package"
    done = subprocess.run(
        ["node", str(HERE / "literals.cjs"), str(parser)],
        input="\n".join(files), capture_output=True, text=True, check=True,
    )  # fmt: skip
    return {Pattern(source, flags, True) for source, flags in map(json.loads, done.stdout.splitlines())}


def python(trees: Iterable[Path], *, lists: bool = False) -> set[Pattern]:
    """What is handed to `re` as a constant, and Pygments' rules; `lists`: any constant that looks like a pattern."""
    found: set[Pattern] = set()
    for tree in trees:
        for file in sorted(tree.rglob("*.py")):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    parsed = ast.parse(file.read_bytes())
            except (SyntaxError, ValueError):
                continue
            found.update(_patterns(parsed, lists=lists, rules="lexers" in file.parts))
    return {pattern for pattern in found if _compiles(pattern)}


def _patterns(tree: ast.AST, *, lists: bool, rules: bool) -> Iterator[Pattern]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in RE_CALLS:
            if isinstance(node.func.value, ast.Name) and node.func.value.id in {"re", "regex"} and node.args:
                source = _constant(node.args[0])
                if source is not None:
                    words = [
                        n.attr
                        for a in (*node.args[1:], *(k.value for k in node.keywords))
                        for n in ast.walk(a)
                        if isinstance(n, ast.Attribute)
                    ]
                    yield Pattern(source, "".join(sorted({FLAGS[w] for w in words if w in FLAGS})), False)
        elif isinstance(node, ast.Tuple) and (rules or lists) and len(node.elts) >= 2:
            source = _constant(node.elts[0])
            if source is not None and (rules or re.search(r"[*+}]", source)):
                yield Pattern(source, "", False)
        elif lists and isinstance(node, ast.List | ast.Call):
            for item in node.elts if isinstance(node, ast.List) else node.args[:1]:
                source = _constant(item)
                if source is not None and re.search(r"[^\w\s][*+}]", source):
                    yield Pattern(source, "", False)


def _constant(node: ast.expr) -> str | None:
    if isinstance(node, ast.Constant):
        return (
            node.value
            if isinstance(node.value, str)
            else node.value.decode("latin-1")
            if isinstance(node.value, bytes)
            else None
        )
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _constant(node.left), _constant(node.right)
        return None if left is None or right is None else left + right
    return None


def _compiles(pattern: Pattern) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            re.compile(pattern.source, re.VERBOSE if "x" in pattern.flags else 0)
    except (re.error, OverflowError, RecursionError):
        return False
    return True


def corpora(scratch: Path) -> dict[str, set[Pattern]]:
    """Name of the corpus to its patterns."""
    site = Path(sysconfig.get_paths()["purelib"])
    library = Path(sysconfig.get_paths()["stdlib"])
    tools = [pypi(scratch, pin) for pin in pins.TOOLS_PYPI]
    return {
        "lists of ReDoS tools": javascript(scratch, [npm(scratch, pin) for pin in pins.TOOLS_NPM])
        | python((tree / inner for tree in tools for inner in _roots(tree)), lists=True),
        "releases with advisories": javascript(scratch, [npm(scratch, pin) for pin in pins.ADVISORIES_NPM])
        | python(pypi(scratch, pin) for pin in pins.ADVISORIES_PYPI),
        f"standard library of Python {sys.version_info[0]}.{sys.version_info[1]}": python(
            [
                entry
                for entry in sorted(library.iterdir())
                if entry.is_dir() and entry.name not in ("site-packages", "dist-packages", "test")
            ]
        )
        | _single(library),
        "site-packages, with Pygments": python([site]),
        "validator and marked (npm)": javascript(scratch, [npm(scratch, pin) for pin in pins.CURRENT_NPM]),
    }


def _roots(tree: Path) -> list[str]:
    return [str(p.relative_to(tree)) for p in tree.glob("*/tests")]


def _single(library: Path) -> set[Pattern]:
    found: set[Pattern] = set()
    for file in sorted(library.glob("*.py")):
        found.update(_patterns(ast.parse(file.read_bytes()), lists=False, rules=False))
    return {pattern for pattern in found if _compiles(pattern)}
