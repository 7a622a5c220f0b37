"""A pod as a file: ``apiVersion: nucleus/v1``, ``kind: Pod``.

    apiVersion: nucleus/v1
    kind: Pod
    metadata: {name: build, namespace: default, labels: {team: web}}
    spec:
      work_dir: .                    # relative to the file
      workspace: copy                # or direct (the default): the pod has a copy, see `nucleus pod diff` and `apply`
      policy: {type: profile, name: codegen}      # or {type: file, path: …}, or {type: inline, text: |…}
      timeout_seconds: 3600          # of the pod's life; 0: none
      session: web                   # what pods of this name have seen counts in the next one
      budget_account: web
      task: the person's own words
      trust_workspace: false
      share_workspace: false
      toolchains: [/opt/python]
      resources: {cpu_cores: 1.5, memory_mib: 1024, pids: 128}
      agent: {command: [python3, agent.py], env: {MODE: batch}}    # none: commands come by `nucleus pod exec`

Promises: every mistake names its line and column; an unknown field is one. What a policy decides (network, credentials,
isolation) is not a field here: it is refused with where it belongs.
Does not: open the workspace, or parse the policy (the gate does).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import Any

from nucleus.errors import InvalidError
from nucleus.lattice.yamltree import Node, parse_tree
from nucleus.pod.spec import ENV_COUNT, RESOURCE_BOUNDS, TOOLCHAINS, PodSpec
from nucleus.store.policies import load_policy_text

VERSION, KIND = "nucleus/v1", "Pod"
LABELS = 32
MAX_TIMEOUT_S = 604_800
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,9}")
_CORES = re.compile(r"(0|[1-9][0-9]{0,2})(\.[0-9]{1,2})?")
_SPEC = (
    "work_dir", "policy", "timeout_seconds", "session", "budget_account", "task", "trust_workspace", "share_workspace",
    "toolchains", "resources", "isolation", "agent", "workspace",
)  # fmt: skip
_ELSEWHERE = {
    "network": "what a pod may reach is the policy's: network.allow",
    "credentials": "credentials stay on the host: `nucleus credentials`, and network.allow in the policy",
    "budget_model": "what things cost is the policy's: budget",
    "image": "a pod of namespaces shows this machine's own /usr",
    "vsock": "a pod's channels are not for choosing",
    "seccomp": "a pod's system calls are not for choosing",
    "cgroup": "limits are `resources`",
}


@dataclass(frozen=True, slots=True)
class PodFile:
    """What a file says. `spec`: as the builder takes it, without `workdir`; `timeout_s`: 0 for none; `copy`: of it."""

    name: str
    namespace: str
    labels: dict[str, str]
    work_dir: str
    timeout_s: int
    policy_source: str
    agent: tuple[str, ...]
    spec: dict[str, Any] = field(repr=False)
    copy: bool = False


def read(path: str) -> PodFile:
    """Read a file. Raises InvalidError: rule ``pod.file``, with line and column."""
    reader = _Reader(path)
    try:
        root = parse_tree(load_policy_text(path=path)[0], path)
    except InvalidError as error:
        raise _wrong(error.message) from None
    return reader.file(root, os.path.dirname(os.path.abspath(path)))


def _wrong(message: str) -> InvalidError:
    return InvalidError(message, rule="pod.file", next_step="docs/pods.md has the format.")


class _Reader:
    def __init__(self, source: str) -> None:
        self._source = source

    def file(self, root: Node, directory: str) -> PodFile:
        top = self.map(root, "the file", ("apiVersion", "kind", "metadata", "spec"))
        for name, wanted in (("apiVersion", VERSION), ("kind", KIND)):
            if name not in top or self.text(top[name], name) != wanted:
                raise self.error(top.get(name, root), f"{name} is {wanted}")
        if "metadata" not in top or "spec" not in top:
            raise self.error(root, "metadata and spec are needed")
        metadata = self.map(top["metadata"], "metadata", ("name", "namespace", "labels"))
        if "name" not in metadata:
            raise self.error(top["metadata"], "metadata.name is needed")
        values = self.map(top["spec"], "spec", _SPEC)
        if "policy" not in values:
            raise self.error(top["spec"], "spec.policy is needed")
        policy, source = self.policy(values["policy"], directory)
        spec: dict[str, Any] = {"policy_text": policy, "policy_source": source}
        spec["namespace"] = self.label(metadata["namespace"], "namespace") if "namespace" in metadata else "default"
        for name, ours in (
            ("session", "session"),
            ("task", "task"),
            ("budget_account", "account"),
            ("isolation", "isolation"),
        ):
            if name in values:
                spec[ours] = self.text(values[name], f"spec.{name}")
        for name in ("trust_workspace", "share_workspace"):
            if name in values:
                spec[name] = self.flag(values[name], f"spec.{name}")
        if "toolchains" in values:
            spec["toolchains"] = self.texts(values["toolchains"], "spec.toolchains", TOOLCHAINS)
        if "resources" in values:
            spec["resources"] = self.resources(values["resources"])
        agent = self.agent(values["agent"]) if "agent" in values else None
        if agent is not None:
            spec["agent"] = agent
        try:
            PodSpec.from_dict(spec)  # what only it checks: lengths, names, the account
        except InvalidError as error:
            raise _wrong(f"{self._source}: {error.message}") from None
        mode = self.text(values["workspace"], "spec.workspace") if "workspace" in values else "direct"
        if mode not in ("direct", "copy"):
            raise self.error(values["workspace"], "spec.workspace is direct or copy")
        work_dir = self.text(values["work_dir"], "spec.work_dir") if "work_dir" in values else "."
        timeout = self.number(values["timeout_seconds"], "spec.timeout_seconds") if "timeout_seconds" in values else 0
        if timeout > MAX_TIMEOUT_S:
            raise self.error(values["timeout_seconds"], f"spec.timeout_seconds is at most {MAX_TIMEOUT_S}")
        return PodFile(
            self.label(metadata["name"], "metadata.name"), spec["namespace"], self.labels(metadata.get("labels")),
            os.path.join(directory, os.path.expanduser(work_dir)), timeout, source,
            tuple(agent["argv"]) if agent is not None else (), spec, mode == "copy",
        )  # fmt: skip

    def policy(self, node: Node, directory: str) -> tuple[str, str]:
        found = self.map(node, "spec.policy", ("type", "name", "path", "text"))
        kind = self.text(found["type"], "spec.policy.type") if "type" in found else ""
        needed = {"profile": "name", "file": "path", "inline": "text"}.get(kind, "")
        if not needed or set(found) != {"type", needed}:
            raise self.error(
                node, "spec.policy is {type: profile, name: …}, {type: file, path: …} or {type: inline, text: …}"
            )
        value = self.text(found[needed], f"spec.policy.{needed}")
        if kind == "inline":
            return value, f"{self._source} (inline)"
        if kind == "file":
            return load_policy_text(path=os.path.join(directory, os.path.expanduser(value)))
        return load_policy_text(profile=value)

    def agent(self, node: Node) -> dict[str, Any]:
        found = self.map(node, "spec.agent", ("command", "env"))
        if "command" not in found:
            raise self.error(node, "spec.agent.command is needed")
        env: dict[str, str] = {}
        if "env" in found:
            values = self.map(found["env"], "spec.agent.env", None, ENV_COUNT)
            env = {name: self.text(value, f"spec.agent.env.{name}") for name, value in values.items()}
        return {"argv": self.texts(found["command"], "spec.agent.command", 1_024), "env": env, "stdio": "pipes"}

    def resources(self, node: Node) -> dict[str, int]:
        found = self.map(node, "spec.resources", ("cpu_cores", "memory_mib", "pids"))
        made: dict[str, int] = {}
        for name in ("memory_mib", "pids"):
            if name in found:
                made[name] = self.number(found[name], f"spec.resources.{name}")
                self.bounded(found[name], f"spec.resources.{name}", made[name], *RESOURCE_BOUNDS[name])
        if "cpu_cores" in found:
            text = self.text(found["cpu_cores"], "spec.resources.cpu_cores")
            if found["cpu_cores"].quoted or not _CORES.fullmatch(text):
                raise self.error(found["cpu_cores"], "spec.resources.cpu_cores is a number such as 2 or 0.5")
            whole, _, part = text.partition(".")
            percent = made["cpu_percent"] = int(whole) * 100 + int(part.ljust(2, "0") or "0")
            least, most = RESOURCE_BOUNDS["cpu_percent"]
            if not least <= percent <= most:
                raise self.error(found["cpu_cores"], f"spec.resources.cpu_cores is in {least / 100:g}..{most / 100:g}")
        return made

    def labels(self, node: Node | None) -> dict[str, str]:
        if node is None:
            return {}
        found = self.map(node, "metadata.labels", None, LABELS)
        return {self._label_key(node, name): self.text(value, f"labels.{name}", 63) for name, value in found.items()}

    def _label_key(self, node: Node, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise self.error(node, "the name of a label is of a-z, 0-9 and -, at most 63")
        return name

    def label(self, node: Node, name: str) -> str:
        text = self.text(node, name, 63)
        if not _NAME.fullmatch(text):
            raise self.error(node, f"{name} is of a-z, 0-9 and -, at most 63, and begins and ends with neither")
        return text

    def map(self, node: Node, name: str, known: tuple[str, ...] | None, most: int = 64) -> dict[str, Node]:
        if node.kind != "map":
            raise self.error(node, f"{name} is a map")
        for key, (at, _) in node.entries.items():
            if known is not None and key not in known:
                hint = _ELSEWHERE.get(key)
                raise self.error(at, f"{name} has no {key!r}: {hint}" if hint else f"{name} has no {key[:60]!r}")
        if len(node.entries) > most:
            raise self.error(node, f"{name} has more than {most} entries")
        return {key: value for key, (_, value) in node.entries.items()}

    def text(self, node: Node, name: str, most: int = 1 << 20) -> str:
        if node.kind != "scalar" or "\0" in node.text or len(node.text) > most:
            raise self.error(node, f"{name} is text of at most {most} characters")
        return node.text

    def texts(self, node: Node, name: str, most: int) -> list[str]:
        if node.kind != "list" or not 0 < len(node.items) <= most:
            raise self.error(node, f"{name} is a list of 1 to {most}")
        return [self.text(item, name) for item in node.items]

    def flag(self, node: Node, name: str) -> bool:
        if node.kind != "scalar" or node.quoted or node.text not in ("true", "false"):
            raise self.error(node, f"{name} is true or false")
        return node.text == "true"

    def number(self, node: Node, name: str) -> int:
        if node.kind != "scalar" or node.quoted or not _NUMBER.fullmatch(node.text):
            raise self.error(node, f"{name} is a whole number")
        return int(node.text)

    def bounded(self, node: Node, name: str, value: int, least: int, most: int) -> None:
        if not least <= value <= most:
            raise self.error(node, f"{name} is in {least}..{most}")

    def error(self, node: Node, problem: str) -> InvalidError:
        return _wrong(f"{self._source}:{node.line}:{node.column}: {problem}")
