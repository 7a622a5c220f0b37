"""Every limit of the seed's table at its edge, path normal forms, and strict URLs, refs and base64."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nucleus.errors import InvalidError
from nucleus.limits import LIMITS
from nucleus.model import operation as ops
from nucleus.validate import validate_operation
from nucleus.validate.paths import collapse, validate_path
from nucleus.validate.urls import split_url


def refused(operation: ops.Base) -> InvalidError:
    with pytest.raises(InvalidError) as caught:
        validate_operation(operation)
    return caught.value


@pytest.mark.parametrize(
    ("given_path", "normal"),
    [
        ("./a//b/../c", "a/c"), ("a", "a"), ("a/", "a"), ("/workspace", "."), ("/workspace/", "."), (".", "."),
        ("/workspace/a/./b", "a/b"), ("//workspace//a", "a"), ("a/b/../..", "."), ("...", "..."), ("~/x", "~/x"),
        ("ünïcode", "ünïcode"), ("a b", "a b"),
    ],
)  # fmt: skip
def test_paths_are_normalized(given_path: str, normal: str) -> None:
    done = validate_operation(ops.Read(path=given_path))
    assert isinstance(done, ops.Read)
    assert done.path == normal


@pytest.mark.parametrize(
    ("path", "rule"),
    [
        ("..", "paths.escape"), ("a/../../b", "paths.escape"), ("/etc/passwd", "paths.escape"), ("/", "paths.escape"),
        ("/workspace/../etc", "paths.escape"), ("/workspacex/a", "paths.escape"), ("", "paths.empty"),
        ("a\0b", "text.characters"), ("a\nb", "text.characters"), ("a\x1b[1m", "text.characters"),
        ("a\u202eb", "text.characters"), ("a\u200bb", "text.characters"), ("a\ufeff", "text.characters"),
        ("a\u2028b", "text.characters"), ("a\U000e0041", "text.characters"), ("\ud800", "text.surrogate"),
        ("a" * 256, "limits.path"), ("a/" * 2048 + "b", "limits.path"), ("é" * 2049, "limits.path"),
    ],
)  # fmt: skip
def test_paths_that_are_refused(path: str, rule: str) -> None:
    assert refused(ops.Read(path=path)).rule == rule


def test_a_path_at_the_limit_passes() -> None:
    path = "/".join(["a" * 255] * 16)
    assert validate_path("path", path) == path
    assert len(path) == 4095


def test_every_path_field_of_every_operation_is_normalized() -> None:
    done = validate_operation(ops.GitCommit(message="m", paths=("./a", "b/../c")))
    assert isinstance(done, ops.GitCommit)
    assert done.paths == ("a", "c")
    assert refused(ops.GitCommit(message="m", paths=("a", "../b"))).rule == "paths.escape"
    assert refused(ops.Run(argv=("ls",), cwd="..")).rule == "paths.escape"


LONG: list[tuple[ops.Base, str, int]] = [
    (ops.Glob(pattern="a" * 1025), "limits.pattern", 1024),
    (ops.Grep(pattern="a" * 1025), "limits.pattern", 1024),
    (ops.Grep(pattern="é" * 513), "limits.pattern", 1024),
    (ops.Grep(pattern="a", include="a" * 1025), "limits.pattern", 1024),
    (ops.WebSearch(query="q" * 513), "limits.query", 512),
    (ops.Run(argv=("a" * 16384,)), "limits.argv", 16384),
    (ops.Run(argv=("a",) * 1025), "limits.argv_count", 1024),
    (ops.Run(argv=("cat",), stdin="a" * 1_048_577), "limits.stdin", 1_048_576),
    (ops.WebFetch(url="http://a/" + "b" * 2040), "limits.url", 2048),
    (ops.Write(path="a", content="x" * (LIMITS.content_bytes + 1)), "limits.content", LIMITS.content_bytes),
    (ops.GitCommit(message="m" * 16385), "limits.message", 16384),
]


@pytest.mark.parametrize(("operation", "rule", "limit"), LONG, ids=[f"{o.kind}-{r}" for o, r, _ in LONG])  # type: ignore[attr-defined]
def test_one_too_long_names_field_limit_and_size(operation: ops.Base, rule: str, limit: int) -> None:
    error = refused(operation)
    assert error.rule == rule
    assert str(limit) in error.message
    assert "got" in error.message


@pytest.mark.parametrize(
    "operation",
    [
        ops.Glob(pattern="a" * 1024), ops.Grep(pattern="a" * 1024), ops.WebSearch(query="q" * 512),
        ops.Run(argv=("a" * 16383,)), ops.Run(argv=("a" * 8191, "é" * 4095 + "x")),
        ops.Run(argv=("cat",), stdin="a" * 1_048_576), ops.WebFetch(url="http://a/" + "b" * 2039),
        ops.Write(path="a", content=base64.b64encode(b"x" * 1000).decode(), encoding="base64"),
        ops.GitCommit(message="Fix\n\n- it\twas 👩‍💻"), ops.GitPush(), ops.GitPush(ref="HEAD:refs/heads/x"),
        ops.CreatePr(title="t"),
        ops.ManagePods(action="list"), ops.GitStatus(), ops.GitDiff(), ops.Edit(path="a", old="b", new="c"),
        ops.Run(argv=("python3", "-c", "a\nb\t\x1b")),
    ],
)  # fmt: skip
def test_what_is_within_the_limits_passes_unchanged(operation: ops.Base) -> None:
    assert validate_operation(operation) == operation


BAD: list[tuple[ops.Base, str]] = [
    (ops.Run(argv=("a", "b\0c")), "text.characters"),
    (ops.Run(argv=("",)), "argv.program"),
    (ops.Run(argv=("a\u202e",)), "text.characters"),
    (ops.Run(argv=("a", "\udc80")), "text.surrogate"),
    (ops.Run(argv=("a",), stdin="\ud800"), "text.surrogate"),
    (ops.Write(path="a", content="not base64!", encoding="base64"), "content.base64"),
    (ops.Write(path="a", content="QQ", encoding="base64"), "content.base64"),
    (ops.Write(path="a", content="QQ==\n", encoding="base64"), "content.base64"),
    (ops.Write(path="a", content="\ud800"), "text.surrogate"),
    (ops.Glob(pattern="../*"), "paths.escape"),
    (ops.Glob(pattern="/etc/*"), "paths.escape"),
    (ops.Glob(pattern="[a"), "patterns.glob"),
    (ops.Glob(pattern="[a/b]"), "patterns.glob"),
    (ops.Glob(pattern=""), "patterns.glob"),
    (ops.Glob(pattern="a\n"), "text.characters"),
    (ops.Grep(pattern="(a+)+"), "patterns.nested_quantifiers"),
    (ops.GitCommit(message=" \n"), "message.empty"),
    (ops.GitCommit(message="a\x1b[2J"), "text.characters"),
    (ops.GitCommit(message="a\u202eb"), "text.characters"),
    (ops.WebSearch(query=" "), "query.empty"),
    (ops.WebSearch(query="a\nb"), "text.characters"),
    (ops.GitPush(remote="ext::sh -c id"), "git.ref"),
    (ops.GitPush(remote="https://evil/x"), "git.ref"),
    (ops.GitPush(ref="--mirror"), "git.ref"),
    (ops.GitPush(ref="a..b"), "git.ref"),
    (ops.CreatePr(title="t", base="-x"), "git.ref"),
    (ops.ManagePods(action="create", name="A/b"), "pods.name"),
    (ops.ManagePods(action="destroy"), "pods.name"),
]


@pytest.mark.parametrize(("operation", "rule"), BAD, ids=[f"{i}-{r}" for i, (_, r) in enumerate(BAD)])
def test_malformed_fields_are_refused(operation: ops.Base, rule: str) -> None:
    assert refused(operation).rule == rule


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a/", "file:///etc/passwd", "javascript:x", "http://", "http://user@host/", "http://u:p@host/", "//host/",
        "http://a b/", "http://a\\b/", "http://exa\u0301mple/", "http://a:0/", "http://a:99999/", "http://a:x/",
        "http://0x7f.1/", "http://2130706433/", "http://127.1/", "http://010.0.0.1/", "http://[::1/", "http://[g::]/",
        "http://a..b/", "http://a%2eb/", "http://\u202ea/", "http://a/\n",
    ],
)  # fmt: skip
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises(InvalidError):
        split_url("url", url)


def test_urls_are_split_once() -> None:
    url = split_url("url", "HTTPS://Example.COM.:8443/a?b#c")
    assert (url.scheme, url.host, url.port, url.target) == ("https", "example.com", 8443, "/a?b#c")
    assert split_url("url", "http://127.0.0.1").port == 80
    assert split_url("url", "http://[::1]:81/").host == "[::1]"
    assert split_url("url", "http://a?@b").host == "a"


def test_errors_never_show_the_value() -> None:
    error = refused(ops.Run(argv=("a", "s3cret\0")))
    assert "s3cret" not in error.message


def test_every_operation_has_a_limit_on_every_text_field() -> None:
    """Whatever string field exists, one of 20 MB is refused."""
    huge = "a" * (LIMITS.request_bytes + 1)
    samples: dict[str, dict[str, Any]] = {
        "read": {"path": "a"}, "write": {"path": "a", "content": ""}, "edit": {"path": "a", "old": "a", "new": ""},
        "glob": {"pattern": "a"}, "grep": {"pattern": "a"}, "run": {"argv": ("a",)}, "git_commit": {"message": "m"},
        "web_fetch": {"url": "http://a/"}, "web_search": {"query": "q"}, "create_pr": {"title": "t"},
        "manage_pods": {"action": "list"}, "tool": {"server": "s", "tool": "t"},
    }  # fmt: skip
    for family in ops.OPERATIONS:
        for name, info in family.model_fields.items():
            if name == "kind" or info.annotation not in (str, tuple[str, ...]):
                continue
            kind = family.model_fields["kind"].default
            value = huge if info.annotation is str else (huge,)
            with pytest.raises(InvalidError):
                validate_operation(family(**{**samples.get(kind, {}), name: value}))


@given(
    st.text(max_size=40) | st.lists(st.sampled_from(["..", ".", "", "a", "/", "workspace"]), max_size=9).map("/".join)
)
def test_a_normal_path_is_relative_and_inside(path: str) -> None:
    normal = collapse(path)
    if normal is not None:
        assert not normal.startswith("/")
        assert ".." not in normal.split("/")
        assert collapse(normal) == normal
