"""What a launcher asks for: `PodSpec`, parsed strictly from the `spec` of `create_pod`.

Promises: unknown fields, wrong types and values over their bounds are an `InvalidError` that names the field; a parsed
spec is frozen. Relies on `nucleus.limits`. Pure: nothing here looks at the file system.
Does not: judge the policy's text (the gate parses it), nor the workspace (it comes as a descriptor, not as a path).
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from nucleus.errors import InvalidError
from nucleus.limits import LIMITS

LADDER = ("namespaces", "gvisor", "qemu", "firecracker")  # the rungs, weakest first
TOOLCHAINS = 16  # read-only directories of one pod
ENV_COUNT = 64  # variables of the agent
ENV_BYTES = 32_768  # all of them together
RESOURCE_BOUNDS = {"memory_mib": (64, 1_048_576), "cpu_percent": (5, 25_600), "pids": (16, 32_768)}
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
# Exactly these are too wide or not data: each would show host state, secrets of others, or kernel interfaces.
REFUSED_TREES = ("/etc", "/var", "/run", "/proc", "/sys", "/dev", "/boot", "/tmp", "/workspace")  # noqa: S108
REFUSED_EXACT = ("/", "/root", "/home", "/usr", "/opt", "/srv", "/mnt", "/media")


@dataclass(frozen=True, slots=True)
class AgentSpec:
    """The agent to start in the pod's agent compartment.

    Args:
        argv: the program and its arguments; the program is looked up in the pod's PATH unless it has a slash.
        env: variables added to the pod's own short list; what the pod sets itself wins.
        stdio: ``pty`` (a fresh one made inside the pod) or ``pipes`` (three descriptors from the launcher).
        rows, cols: the pty's size in characters.
    """

    argv: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict, repr=False)
    stdio: Literal["pty", "pipes"] = "pty"
    rows: int = 24
    cols: int = 80


@dataclass(frozen=True, slots=True)
class Resources:
    """What each of a pod's compartments may use at most.

    Args:
        memory_mib: resident memory and page cache.
        cpu_percent: of one processor; 200 is two whole ones.
        pids: processes and threads.
    """

    memory_mib: int = 2_048
    cpu_percent: int = 200
    pids: int = 256


@dataclass(frozen=True, slots=True)
class PodSpec:
    """One pod, as a launcher asks for it (docs/design.md, "launcher → builder").

    session: pods of one name, in one namespace, one after another, share what has been seen; "" for this pod alone.
    account: the budget that it is charged to, as `nucleus.budget.names`; "" for the host's default.
    tools: the last descriptor is a channel to the tool host, for the gate.
    resources: its limits, or none for the usual ones; where they are asked for and cannot be had, there is no pod.
    serve: no agent inside; the gate's door is the launcher's listening socket, for the orchestrator's SVID.
    isolation: the rung that is asked for (`LADDER`), or "" for the policy's floor.
    """

    policy_text: str = field(repr=False)
    policy_source: str
    namespace: str = "default"
    session: str = ""
    account: str = ""
    task: str = ""
    workdir: str = ""
    share_workspace: bool = False
    trust_workspace: bool = False
    toolchains: tuple[str, ...] = ()
    agent: AgentSpec | None = None
    resources: Resources | None = None
    serve: bool = False
    tools: bool = False
    isolation: str = ""
    test_seam: str = ""

    @classmethod
    def from_dict(cls, raw: object) -> PodSpec:
        """Parse a JSON object.

        Raises:
            InvalidError: rule ``spec.<field>``.
        """
        values = _known(raw, cls, "spec")
        agent = values.get("agent")
        return cls(
            policy_text=_text(values, "policy_text", LIMITS.policy_bytes, required=True),
            policy_source=_text(values, "policy_source", LIMITS.path_bytes, required=True),
            namespace=_label(values, "namespace", "default"),
            session=_label(values, "session", ""),
            account=_account(values),
            task=_text(values, "task", LIMITS.message_bytes),
            workdir=_text(values, "workdir", LIMITS.path_bytes),
            share_workspace=_flag(values, "share_workspace"),
            trust_workspace=_flag(values, "trust_workspace"),
            toolchains=tuple(_toolchain(item) for item in _list(values, "toolchains", TOOLCHAINS)),
            agent=None if agent is None else _agent(agent),
            resources=_resources(values.get("resources")),
            serve=_flag(values, "serve") and _no_agent(agent),
            tools=_flag(values, "tools"),
            isolation=_rung(values),
            test_seam=_text(values, "test_seam", 64),
        )


def _no_agent(agent: object) -> bool:
    if agent is not None:
        raise InvalidError("a pod has an agent inside or is served to an orchestrator, not both", rule="spec.serve")
    return True


def _agent(raw: object) -> AgentSpec:
    values = _known(raw, AgentSpec, "spec.agent")
    argv = tuple(_string(item, "agent.argv", LIMITS.argv_bytes) for item in _list(values, "argv", LIMITS.argv_count))
    if not argv or not argv[0]:
        raise InvalidError("the agent has no program", rule="spec.agent.argv")
    total = sum(len(item.encode()) + 1 for item in argv)
    if total > LIMITS.argv_bytes:
        problem = f"too long: limit {LIMITS.argv_bytes} bytes, got {total}"
        raise InvalidError(f"the agent's arguments: {problem}", rule="spec.agent.argv")
    stdio = values.get("stdio", "pty")
    if stdio not in ("pty", "pipes"):
        raise InvalidError("agent.stdio is neither pty nor pipes", rule="spec.agent.stdio")
    return AgentSpec(argv, _env(values.get("env", {})), stdio, _size(values, "rows", 24), _size(values, "cols", 80))


def _resources(raw: object) -> Resources | None:
    if raw is None:
        return None
    values = _known(raw, Resources, "spec.resources")
    for name, (least, most) in RESOURCE_BOUNDS.items():
        value = values.get(name, least)
        if type(value) is not int or not least <= value <= most:
            raise InvalidError(f"resources.{name} is not in {least}..{most}", rule=f"spec.resources.{name}")
    return Resources(**values)


def _env(raw: object) -> dict[str, str]:
    if not isinstance(raw, dict) or len(raw) > ENV_COUNT:
        raise InvalidError(f"agent.env is not an object of at most {ENV_COUNT} variables", rule="spec.agent.env")
    env = {}
    for name, value in raw.items():
        if not _ENV_NAME.fullmatch(name):
            raise InvalidError("agent.env has a malformed name", rule="spec.agent.env")
        env[name] = _string(value, "agent.env", ENV_BYTES)
    if sum(len(name) + len(value.encode()) for name, value in env.items()) > ENV_BYTES:
        raise InvalidError(f"agent.env exceeds {ENV_BYTES} bytes", rule="spec.agent.env")
    return env


def _toolchain(raw: object) -> str:
    path = _string(raw, "toolchains", LIMITS.path_bytes)
    if not path.startswith("/") or posixpath.normpath(path) != path or path.startswith("//"):
        raise InvalidError("a toolchain is not an absolute, normalized path", rule="spec.toolchains")
    refuse_wide(path)
    return path


def refuse_wide(path: str) -> None:
    """Refuse a toolchain that is a whole system tree or a home of homes.

    Called for the name that was asked for and again for the canonical one.

    Raises:
        InvalidError: rule ``spec.toolchains``.
    """
    in_tree = any(path == tree or path.startswith(tree + "/") for tree in REFUSED_TREES)
    whole_home = path.count("/") == 2 and path.startswith("/home/")
    if in_tree or whole_home or path in REFUSED_EXACT:
        raise InvalidError(
            f"{path} is too wide for a toolchain",
            rule="spec.toolchains",
            next_step="Name the toolchain's own directory, such as ~/.local/share/uv/python/cpython-3.12.",
        )


def _known(raw: object, cls: type, where: str) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise InvalidError(f"{where} is not an object", rule=where)
    unknown = set(raw) - {item.name for item in fields(cls)}
    if unknown:
        raise InvalidError(f"{where} has an unknown field: {sorted(unknown)[0]!r}", rule=where)
    return raw


def _string(value: object, name: str, limit: int) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise InvalidError(f"{name} is not a string without NUL", rule=f"spec.{name}")
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        raise InvalidError(f"{name} is not UTF-8", rule=f"spec.{name}") from error
    if size > limit:
        raise InvalidError(f"{name} exceeds {limit} bytes", rule=f"spec.{name}")
    return value


def _text(values: dict[str, Any], name: str, limit: int, *, required: bool = False) -> str:
    if name not in values and not required:
        return ""
    return _string(values.get(name), name, limit)


def _flag(values: dict[str, Any], name: str) -> bool:
    value = values.get(name, False)
    if not isinstance(value, bool):
        raise InvalidError(f"{name} is not true or false", rule=f"spec.{name}")
    return value


def _list(values: dict[str, Any], name: str, limit: int) -> list[object]:
    value = values.get(name, [])
    if not isinstance(value, list) or len(value) > limit:
        raise InvalidError(f"{name} is not a list of at most {limit}", rule=f"spec.{name}")
    return value


def _label(values: dict[str, Any], name: str, default: str) -> str:
    value = values.get(name, default)
    if value != default and (not isinstance(value, str) or not _LABEL.fullmatch(value)):
        raise InvalidError(f"{name} is not a DNS label", rule=f"spec.{name}")
    return str(value)


def _rung(values: dict[str, Any]) -> str:
    value = values.get("isolation", "")
    if value not in ("", *LADDER):
        raise InvalidError(f"isolation is one of {', '.join(LADDER)}", rule="spec.isolation")
    return str(value)


def _account(values: dict[str, Any]) -> str:
    if not (value := values.get("account", "")):
        return ""
    from nucleus.budget.names import check  # weight: pods with an account only

    return check(value)


def _size(values: dict[str, Any], name: str, default: int) -> int:
    value = values.get(name, default)
    if type(value) is not int or not 1 <= value <= 1000:
        raise InvalidError(f"agent.{name} is not in 1..1000", rule=f"spec.agent.{name}")
    return value
