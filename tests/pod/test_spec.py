"""A spec is parsed strictly: what is unknown, mistyped or too long is refused by name."""

from __future__ import annotations

import pytest

from nucleus.errors import InvalidError
from nucleus.pod.spec import PodSpec

GOOD = {"policy_text": "x", "policy_source": "y"}


def test_defaults() -> None:
    spec = PodSpec.from_dict(GOOD)
    assert (spec.namespace, spec.agent, spec.toolchains, spec.share_workspace) == ("default", None, (), False)
    with pytest.raises(AttributeError):
        spec.namespace = "other"  # type: ignore[misc]


def test_agent() -> None:
    agent = {"argv": ["claude", "-p"], "env": {"API_KEY": "SECRET"}, "stdio": "pipes", "rows": 10, "cols": 20}
    spec = PodSpec.from_dict({**GOOD, "agent": agent})
    assert spec.agent is not None
    assert (spec.agent.argv, spec.agent.rows) == (("claude", "-p"), 10)
    assert "SECRET" not in repr(spec)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"extra": 1}, "spec"),
        ({"policy_text": None}, "spec.policy_text"),
        ({"policy_text": "x" * 65_537}, "spec.policy_text"),
        ({"policy_text": "a\0b"}, "spec.policy_text"),
        ({"policy_text": "\ud800"}, "spec.policy_text"),
        ({"namespace": "Über"}, "spec.namespace"),
        ({"namespace": "a/b"}, "spec.namespace"),
        ({"namespace": "a\n"}, "spec.namespace"),
        ({"share_workspace": 1}, "spec.share_workspace"),
        ({"trust_workspace": "true"}, "spec.trust_workspace"),
        ({"toolchains": "/opt/x"}, "spec.toolchains"),
        ({"toolchains": ["relative"]}, "spec.toolchains"),
        ({"toolchains": ["/opt/../etc"]}, "spec.toolchains"),
        ({"toolchains": ["/opt/x"] * 17}, "spec.toolchains"),
        ({"agent": []}, "spec.agent"),
        ({"agent": {"argv": []}}, "spec.agent.argv"),
        ({"agent": {"argv": [""]}}, "spec.agent.argv"),
        ({"agent": {"argv": ["x", 1]}}, "spec.agent.argv"),
        ({"agent": {"argv": ["x" * 999] * 17}}, "spec.agent.argv"),
        ({"agent": {"argv": ["x"], "stdio": "tty"}}, "spec.agent.stdio"),
        ({"agent": {"argv": ["x"] * 1_025}}, "spec.argv"),
        ({"agent": {"argv": ["x"], "rows": True}}, "spec.agent.rows"),
        ({"agent": {"argv": ["x"], "cols": 0}}, "spec.agent.cols"),
        ({"agent": {"argv": ["x"], "env": {"A=B": "x"}}}, "spec.agent.env"),
        ({"agent": {"argv": ["x"], "env": {"A": 1}}}, "spec.agent.env"),
        ({"agent": {"argv": ["x"], "uid": 0}}, "spec.agent"),
    ],
)
def test_refused(change: dict, rule: str) -> None:
    with pytest.raises(InvalidError) as caught:
        PodSpec.from_dict({**GOOD, **change})
    assert caught.value.rule.startswith(rule)


@pytest.mark.parametrize(
    "path",
    ["/", "/root", "/home", "/home/me", "/etc", "/etc/ssl", "/var/lib", "/run/user/1", "/proc", "/sys", "/dev", "/usr"],
)
def test_wide_toolchains_are_refused(path: str) -> None:
    with pytest.raises(InvalidError, match="too wide"):
        PodSpec.from_dict({**GOOD, "toolchains": [path]})


def test_toolchains_in_a_home_are_fine() -> None:
    assert PodSpec.from_dict({**GOOD, "toolchains": ["/home/me/.nvm"]}).toolchains == ("/home/me/.nvm",)


@pytest.mark.parametrize("raw", [None, [], "x", 3])
def test_not_an_object(raw: object) -> None:
    with pytest.raises(InvalidError):
        PodSpec.from_dict(raw)
