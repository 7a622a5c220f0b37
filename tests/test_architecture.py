"""The house's rules, checked on the source: imports go downwards, the pure core does no I/O, one minter of grants."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "nucleus"

# Lower number = lower floor; a room may import its own floor's entries named here and anything below.
# lattice reads URLs and paths with the parsers of validate: a second one could disagree.
PURE = {"model": 1, "validate": 2, "approval": 2, "budget": 2, "audit": 2, "sanitize": 2, "lattice": 3, "gate": 4}
SHELL = {
    "kernel", "identity", "store", "hands", "pod", "network", "authority", "server", "sdk", "cli", "mcp", "sinks",
    "testing",
}  # fmt: skip
GROUND = {"errors", "limits", "frames", "globs"}
IMPURE_MODULES = {
    "os", "socket", "subprocess", "time", "random", "secrets", "asyncio", "ctypes", "select", "selectors", "signal",
    "threading", "multiprocessing", "shutil", "tempfile", "ssl", "http", "urllib", "fcntl", "pty", "uuid",
}  # fmt: skip
# What makes objects, or runs code, from bytes; and every parser of XML.
DESERIALIZERS = {
    "pickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "jsonpickle", "joblib", "code", "codeop", "runpy",
    "xml", "xmlrpc", "plistlib", "lxml", "defusedxml", "xmltodict", "html5lib", "pyexpat",
}  # fmt: skip


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def room(path: Path) -> str:
    parts = path.relative_to(SOURCE).parts
    return parts[0] if len(parts) > 1 else path.stem


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                assert node.level == 1, f"{path}: a relative import leaves its room"
                continue
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module or ""}
    return found


def rooms_imported(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imports(path) if name.startswith("nucleus.")}


def test_every_module_is_in_a_known_room() -> None:
    known = set(PURE) | SHELL | GROUND | {"__init__"}
    assert {room(path) for path in modules()} <= known


@pytest.mark.parametrize("path", [p for p in modules() if room(p) in PURE or room(p) in GROUND], ids=str)
def test_the_pure_core_does_no_io(path: Path) -> None:
    used = {name.split(".")[0] for name in imports(path)} & IMPURE_MODULES
    assert not used, f"{path} imports {used}"


@pytest.mark.parametrize("path", modules(), ids=str)
def test_imports_go_downwards(path: Path) -> None:
    own = room(path)
    for other in rooms_imported(path) - {own, "__version__"} - GROUND:
        if own in GROUND:
            pytest.fail(f"{path} (ground floor) imports {other}")
        if own in PURE:
            assert other in PURE, f"{path} imports the shell room {other}"
            assert PURE[other] < PURE[own], f"{path} imports {other}, which is not below {own}"


def test_kernel_stands_on_errors_alone() -> None:
    for path in modules():
        if room(path) == "kernel":
            assert rooms_imported(path) <= {"kernel", "errors"}, path


def test_ctypes_is_confined_to_one_room() -> None:
    assert {room(path) for path in modules() if "ctypes" in imports(path)} <= {"kernel"}


def test_only_the_pipeline_mints_grants() -> None:
    users = [path for path in modules() if "nucleus.model.grant.mint" in imports(path)]
    assert users == [SOURCE / "gate" / "pipeline.py"]


def test_the_in_pod_code_needs_nothing_but_the_standard_library_and_re2() -> None:
    import sys

    for path in modules():
        if room(path) in {"hands", "sdk"}:
            outside = {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names) - {"nucleus", "re2"}
            assert not outside, f"{path} imports {outside}"
        if room(path) == "sdk":
            assert rooms_imported(path) <= {"sdk"}, path


def test_callers_patterns_never_reach_pythons_re() -> None:
    for path in modules():
        if room(path) in {"hands", "validate", "lattice"}:
            assert "re" not in {name.split(".")[0] for name in imports(path)}, f"{path} imports re"


def test_no_pickle_no_eval_no_shell() -> None:
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                assert name not in {"eval", "exec", "compile", "os.system", "os.popen"}, f"{path}:{node.lineno}"
                assert not any(k.arg == "shell" and ast.unparse(k.value) == "True" for k in node.keywords), path
        assert not {n.split(".")[0] for n in imports(path)} & DESERIALIZERS, path


def test_yaml_is_read_in_one_place_by_the_safe_loader() -> None:
    users = [path for path in modules() if "yaml" in {name.split(".")[0] for name in imports(path)}]
    assert users == [SOURCE / "lattice" / "yamltree.py"]
    for node in ast.walk(ast.parse(users[0].read_text())):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("yaml", "self.yaml"):
            assert node.attr == "SafeLoader" or node.attr.endswith(("Error", "Event")), f"yaml.{node.attr}"
