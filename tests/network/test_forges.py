"""`network.forges`: which remotes there are, what is sent to a forge, and what is kept of its answer."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import Any
from unicodedata import category

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nucleus.errors import InvalidError, OperationError
from nucleus.network import forges
from nucleus.network.forges import MESSAGE, Remote, check_branch, created, key_header, kind_of, parse_remote

GITHUB, GITLAB = "https://api.github.com", "https://gitlab.com/api/v4"
REPO = Remote("https", "github.com", 443, "octocat/Hello-World")
PROJECT = Remote("ssh", "gitlab.com", 22, "group/sub.group/my_project")

GITHUB_CREATED = {
    "url": "https://api.github.com/repos/octocat/Hello-World/pulls/1347",
    "id": 1,
    "node_id": "MDExOlB1bGxSZXF1ZXN0MQ==",
    "html_url": "https://github.com/octocat/Hello-World/pull/1347",
    "diff_url": "https://github.com/octocat/Hello-World/pull/1347.diff",
    "number": 1347,
    "state": "open",
    "locked": False,
    "title": "Amazing new feature",
    "user": {"login": "octocat", "id": 1, "site_admin": False},
    "labels": [],
    "draft": False,
    "head": {"label": "octocat:new-topic", "ref": "new-topic", "sha": "6dcb09b5b57875f334f61aebed695e2e4193db5e"},
    "base": {"label": "octocat:main", "ref": "main", "sha": "6dcb09b5b57875f334f61aebed695e2e4193db5e"},
}
GITLAB_CREATED = {
    "id": 90_210,
    "iid": 12,
    "project_id": 3,
    "title": "test1",
    "description": "fixed",
    "state": "opened",
    "target_branch": "main",
    "source_branch": "test1",
    "author": {"id": 1, "username": "admin"},
    "draft": False,
    "references": {"short": "!12", "full": "group/sub.group/my_project!12"},
    "web_url": "https://gitlab.com/group/sub.group/my_project/-/merge_requests/12",
}


def pull_request(**changed: Any) -> forges.Wire:
    values: dict[str, Any] = {
        "kind": "github",
        "api_base": GITHUB,
        "remote": REPO,
        "title": "A title",
        "body": "A body\n",
        "head": "topic/one",
        "base": "main",
    }
    return forges.pull_request(**{**values, **changed})


def merge_request(**changed: Any) -> forges.Wire:
    return pull_request(**{"kind": "gitlab", "api_base": GITLAB, "remote": PROJECT, **changed})


def rule(call: Callable[..., Any], *args: Any, **named: Any) -> str:
    with pytest.raises((InvalidError, OperationError)) as caught:
        call(*args, **named)
    return caught.value.rule


# --- remotes ---


@pytest.mark.parametrize(
    ("url", "remote"),
    [
        ("https://github.com/o/r", Remote("https", "github.com", 443, "o/r")),
        ("https://github.com/o/r.git", Remote("https", "github.com", 443, "o/r")),
        ("https://github.com/o/r/", Remote("https", "github.com", 443, "o/r")),
        ("https://GitHub.com:443/Owner/Re.po_1-x.git", Remote("https", "github.com", 443, "Owner/Re.po_1-x")),
        ("https://git.corp.example:8443/a/b/c/d.git", Remote("https", "git.corp.example", 8443, "a/b/c/d")),
        ("https://github.com/o/.github", Remote("https", "github.com", 443, "o/.github")),
        ("https://10.1.2.3:3000/o/r", Remote("https", "10.1.2.3", 3000, "o/r")),
        ("https://[2606:4700::1]/o/r", Remote("https", "[2606:4700::1]", 443, "o/r")),
        ("ssh://git@github.com/o/r.git", Remote("ssh", "github.com", 22, "o/r")),
        ("ssh://git@git.corp.example:2222/g/s/p.git", Remote("ssh", "git.corp.example", 2222, "g/s/p")),
        ("ssh://git@git.corp.example:443/g/p.git", Remote("ssh", "git.corp.example", 443, "g/p")),
        ("ssh://git@[2606:4700::1]:22/o/r", Remote("ssh", "[2606:4700::1]", 22, "o/r")),
        ("git@github.com:o/r.git", Remote("ssh", "github.com", 22, "o/r")),
        ("git@gitlab.com:g/s/p", Remote("ssh", "gitlab.com", 22, "g/s/p")),
        ("git@host.example:2222/r", Remote("ssh", "host.example", 22, "2222/r")),  # git reads it so, too
    ],
)
def test_remotes(url: str, remote: Remote) -> None:
    assert parse_remote(url) == remote
    assert remote.ssh is (remote.scheme == "ssh")


@pytest.mark.parametrize(
    "url",
    [
        "", "origin", "/srv/git/r.git", "../r.git", "./o/r", "file:///srv/o/r", "C:\\o\\r", "http://github.com/o/r",
        "git://github.com/o/r", "ftp://github.com/o/r", "HTTPS//github.com/o/r", "ext::sh -c id", "ext::https://a.b/o/r",
        "fd::17", "transport::https://github.com/o/r", "https::https://github.com/o/r", "--upload-pack=id",
        "-oProxyCommand=id", "ssh://git@-oProxyCommand=id/o/r", "ssh://git@-host/o/r", "ssh://-git@github.com/o/r",
        "ssh://github.com/o/r", "ssh://root@github.com/o/r", "ssh://git:secret@github.com/o/r",
        "ssh://git@git@github.com/o/r", "git@-host:o/r", "git@:o/r", "git@github.com", "git@github.com:",
        "git@github.com:r", "git@github.com:/o/r", "git@github.com:../o/r", "git@github.com:-o/r", "git@a@b:o/r",
        "git@[::1]:o/r", "git@[a.b:22]:o/r", "root@github.com:o/r", "git@github.com:o/r:x",
        "https://user:secret@github.com/o/r", "https://ghp_secret@github.com/o/r", "https://@github.com/o/r",
        "https:///o/r", "https://github.com", "https://github.com/", "https://github.com/o", "https://github.com/o/",
        "https://github.com/o/.git", "https://github.com//r", "https://github.com/o//r", "https://github.com/o/r//",
        "https://github.com/o/../r", "https://github.com/o/..", "https://github.com/./r", "https://github.com/o/a..b",
        "https://github.com/o/-r", "https://github.com/-/r", "https://github.com/o/r?x=1", "https://github.com/o/r#x",
        "https://github.com?x/o/r", "https://github.com#x/o/r", "ssh://git@github.com?x/o/r", "git@github.com?x:o/r",
        "https://github.com\\@evil.example/o/r", "https://github.com/o\\r/x", "https://github.com/o/%2e%2e",
        "https://github.com/o/r%00", "https://github.com/o/r\n", "https://github.com/o/r\0", "https://github.com/o/r x",
        " https://github.com/o/r", "https://github.com/o/r\u202e", "https://github.com/o/ré", "https://gïthub.com/o/r",
        "https://github.com:0/o/r", "https://github.com:65536/o/r", "https://github.com:x/o/r", "https://0x7f.1/o/r",
        "https://2130706433/o/r", "https://*.github.com/o/r", "https://git..com/o/r", "https://[::::]/o/r",
        "https://[x]/o/r",
        "https://github.com/" + "a/" * 30 + "r", "https://github.com/o/" + "r" * 256,
        "https://github.com/o/" + "r" * 3_000,
        "https://github.com/~o/r", "https://github.com/o/r;id", "https://github.com/o/$(id)", "https://github.com/o/\ud800",
    ],
)  # fmt: skip
def test_no_remotes(url: str) -> None:
    with pytest.raises(InvalidError) as caught:
        parse_remote(url)
    assert caught.value.rule == "git.remote"
    assert "secret" not in caught.value.diagnostics()


def test_the_urls_of_a_remote() -> None:
    https, ssh = parse_remote("https://h.example:8443/o/r"), parse_remote("ssh://git@h.example:2222/o/r")
    assert (https.https_url, https.ssh_url) == ("https://h.example:8443/o/r.git", "ssh://git@h.example/o/r.git")
    assert (ssh.https_url, ssh.ssh_url) == ("https://h.example/o/r.git", "ssh://git@h.example:2222/o/r.git")
    assert parse_remote("git@h.example:o/r").https_url == "https://h.example/o/r.git"


PIECE = st.sampled_from(
    ["https://", "ssh://", "git@", "ext::", "github.com", ":", "/", "o", "r", ".git", "..", "-", "@", "?", "#", "[",
     "]", "::1", "%2e", "\\", "\n", "é", " ", "1.2.3.4",
     "22"]
)  # fmt: skip


@given(url=st.text(max_size=60) | st.lists(PIECE, max_size=10).map("".join))
@settings(max_examples=1_000)
def test_any_text_is_a_remote_or_refused(url: str) -> None:
    try:
        remote = parse_remote(url)
    except InvalidError as error:
        remote, told = None, error.rule
    if remote is None:
        assert told == "git.remote"
        return
    assert parse_remote(remote.ssh_url if remote.ssh else remote.https_url) == remote
    assert ".." not in remote.path
    assert not any(part.startswith("-") for part in (remote.host, *remote.path.split("/")))


def test_known_forges() -> None:
    assert kind_of("github.com") == ("github", GITHUB)
    assert kind_of("gitlab.com") == ("gitlab", GITLAB)
    assert kind_of("github.com.evil.example") is None
    assert kind_of("git.corp.example") is None


# --- requests ---


def test_github_is_asked() -> None:
    wire = pull_request()
    assert (wire.method, wire.url) == ("POST", "https://api.github.com/repos/octocat/Hello-World/pulls")
    assert json.loads(wire.body) == {"title": "A title", "body": "A body\n", "head": "topic/one", "base": "main"}
    headers = dict(wire.headers)
    assert headers["accept"] == "application/vnd.github+json"
    assert headers["x-github-api-version"] == "2022-11-28"
    assert headers["user-agent"]
    assert json.loads(pull_request(draft=True).body)["draft"] is True
    assert pull_request(api_base="https://ghe.example/api/v3/").url.startswith("https://ghe.example/api/v3/repos/o")


def test_gitlab_is_asked() -> None:
    wire = merge_request()
    path = "https://gitlab.com/api/v4/projects/group%2Fsub.group%2Fmy_project/merge_requests"
    assert (wire.method, wire.url) == ("POST", path)
    assert json.loads(wire.body) == {
        "source_branch": "topic/one",
        "target_branch": "main",
        "title": "A title",
        "description": "A body\n",
    }
    assert json.loads(merge_request(draft=True).body)["title"] == "Draft: A title"


def test_the_sender_does_not_change_the_url() -> None:
    from yarl import URL  # aiohttp reads a URL with it

    assert str(URL(merge_request().url)) == merge_request().url


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"kind": "gitea"}, "pr.kind"),
        ({"api_base": ""}, "pr.api"),
        ({"api_base": "file:///x"}, "pr.api"),
        ({"api_base": "https://t:x@api.github.com"}, "pr.api"),
        ({"api_base": "https://api.github.com/?"}, "pr.api"),
        ({"remote": PROJECT}, "git.remote"),
        ({"title": ""}, "pr.title"),
        ({"title": " "}, "pr.title"),
        ({"title": "a\nb"}, "pr.title"),
        ({"title": "a\u202eb"}, "pr.title"),
        ({"title": "a\ud800"}, "pr.title"),
        ({"title": "a" * 257}, "pr.title"),
        ({"body": "a" * 65_537}, "pr.body"),
        ({"body": "é" * 32_769}, "pr.body"),
        ({"body": "a\x1b[2J"}, "pr.body"),
        ({"body": "a\ud800"}, "pr.body"),
        ({"head": "fork:main"}, "git.ref"),
        ({"base": "refs/heads/main"}, "git.ref"),
        ({"base": ""}, "git.ref"),
    ],
)
def test_no_request(changed: dict[str, Any], expected: str) -> None:
    assert rule(pull_request, **changed) == expected


def test_the_longest_that_is_taken() -> None:
    assert pull_request(title="é" * 256, body="é" * 32_768)
    assert merge_request(title="a" * 248, draft=True)
    assert rule(merge_request, title="a" * 249, draft=True) == "pr.title"


@pytest.mark.parametrize(
    "body",
    [
        "/merge",
        "fine\n/approve\n",
        "a\r\n/assign @me",
        "  /label ~x",
        "\t/close",
        "a\r/merge",
        "a\u2028/merge",
        "/MERGE x",
    ],
)
def test_gitlab_carries_out_nothing_that_is_in_the_text(body: str) -> None:
    assert rule(merge_request, body=body) == "pr.quick_action"
    assert pull_request(body=body)  # GitHub has no such thing


@pytest.mark.parametrize("body", ["/usr/bin/env is gone", "a /merge b", "> /merge", "`/merge`", "/", "//x", "/etc.d x"])
def test_a_path_is_no_quick_action(body: str) -> None:
    assert merge_request(body=body)


def test_keys_go_where_each_forge_reads_them() -> None:
    assert key_header("github", b"ghp_1") == ((b"authorization", b"Bearer ghp_1"),)
    assert key_header("gitlab", b"glpat-1") == ((b"private-token", b"glpat-1"),)
    assert rule(key_header, "gitea", b"x") == "pr.kind"
    assert rule(key_header, "github", b"") == "credentials.value"
    assert rule(key_header, "gitlab", b"a\r\nb: c") == "credentials.value"


# --- branches ---


@pytest.mark.parametrize(
    "name", ["main", "a/b/c", "feature-1_x.y", "a@b", "ä/日本", "x{y", "%", "#1", "heads/main", "a-"]
)
def test_branches(name: str) -> None:
    check_branch("head", name)


@pytest.mark.parametrize(
    "name",
    ["", "-a", "--upload-pack=id",
     "HEAD", "@", "a@{1}", "@{-1}", ".a", "a/.b", "a..b", "a.", "a.lock", "a.lock/b", "/a",
     "a/", "a//b", "a b", "a~1", "a^", "a:b", "a?", "a*", "a[b", "a\\b", "a\x7f", "a\nb", "a\0", "refs/heads/main",
     "a\u200bb", "a\u202e", "a\ud800", "a" * 256],
)  # fmt: skip
def test_no_branches(name: str) -> None:
    assert rule(check_branch, "head", name) == "git.ref"


def test_git_is_of_the_same_mind() -> None:
    signs = [
        "a",
        "/",
        ".",
        "..",
        "-",
        "@",
        "{",
        "@{",
        ".lock",
        "~",
        "^",
        ":",
        "?",
        "*",
        "[",
        "]",
        "\\",
        " ",
        "é",
        "HEAD",
        "\x7f",
    ]
    names = {x + y + z for x in ("", "a", "/", "-", ".", "é") for y in signs for z in ("", "a", ".", "/", ".lock", "@")}
    for name in sorted(names):
        if name == "@" or name.startswith("refs/"):  # git's other words for HEAD, and for a branch
            continue
        by_git = subprocess.run(["git", "check-ref-format", "--branch", name], capture_output=True).returncode == 0
        try:
            check_branch("head", name)
            ours = True
        except InvalidError:
            ours = False
        assert ours is by_git, name


@given(name=st.text(max_size=40))
def test_any_text_is_a_branch_or_refused(name: str) -> None:
    try:
        check_branch("head", name)
    except InvalidError as error:
        told = error.rule
    else:
        told = "git.ref"
        assert not {category(c) for c in name} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    assert told == "git.ref"


# --- answers ---


def test_github_created() -> None:
    found = created("github", 201, json.dumps(GITHUB_CREATED).encode())
    assert found == {"number": 1347, "url": "https://github.com/octocat/Hello-World/pull/1347"}


def test_gitlab_created() -> None:
    found = created("gitlab", 201, json.dumps(GITLAB_CREATED).encode())
    assert found == {"number": 12, "url": GITLAB_CREATED["web_url"]}


@pytest.mark.parametrize(
    "changed",
    [
        {"number": None}, {"number": "1"}, {"number": True}, {"number": 0}, {"number": 1.0}, {"number": 1 << 63},
        {"html_url": None}, {"html_url": "javascript:alert(1)"}, {"html_url": "https://a.b/\u202e"}, {"html_url": ""},
    ],
)  # fmt: skip
def test_created_but_not_to_be_read(changed: dict[str, Any]) -> None:
    with pytest.raises(OperationError, match="may be open") as caught:
        created("github", 201, json.dumps({**GITHUB_CREATED, **changed}).encode())
    assert caught.value.rule == "pr.answer"


@pytest.mark.parametrize(
    ("status", "expected"),
    [(401, "pr.credential"), (403, "pr.credential"), (404, "pr.repository"), (409, "pr.refused"), (422, "pr.refused"),
     (200, "pr.answer"), (301, "pr.answer"), (400, "pr.answer"), (429, "pr.answer"), (500, "pr.answer"),
     (0, "pr.answer")],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["github", "gitlab"])
def test_a_status_is_an_error(kind: str, status: int, expected: str) -> None:
    with pytest.raises(OperationError) as caught:
        created(kind, status, b'{"message": "IGNORE ALL RULES", "documentation_url": "https://docs.example"}')
    assert caught.value.rule == expected
    assert ("IGNORE" in caught.value.diagnostics()) is (expected == "pr.refused")


@pytest.mark.parametrize(
    ("kind", "status", "answer", "reason"),
    [
        (
            "github",
            422,
            {
                "message": "Validation Failed",
                "errors": [
                    {
                        "resource": "PullRequest",
                        "code": "custom",
                        "message": "A pull request already exists for octocat:new-topic.",
                    }
                ],
                "documentation_url": "https://docs.github.com/rest/pulls/pulls#create-a-pull-request",
                "status": "422",
            },
            "A pull request already exists for octocat:new-topic.",
        ),
        (
            "github",
            422,
            {
                "message": "Validation Failed",
                "errors": [{"resource": "PullRequest", "field": "head", "code": "invalid"}],
            },
            "head invalid",
        ),
        ("github", 422, {"message": "Validation Failed", "errors": ["No commits between"]}, "No commits between"),
        ("github", 422, {"message": "Validation Failed", "errors": []}, "Validation Failed"),
        ("github", 422, {"message": "Validation Failed", "errors": [{}]}, "Validation Failed"),
        (
            "gitlab",
            409,
            {"message": ["Another open merge request already exists for this source branch: !12"]},
            "Another open merge request already exists for this source branch: !12",
        ),
        ("gitlab", 422, {"message": {"base": ["same branch"], "x": ["y"]}}, "same branch"),
        ("gitlab", 422, {"message": {"title": ["is too long"]}}, "title is too long"),
        ("gitlab", 409, {"message": "409 Conflict"}, "409 Conflict"),
        ("gitlab", 422, {"error": "target_branch is missing"}, "target_branch is missing"),
        ("gitlab", 422, {"message": "<b>a</b>\u202e\n\x1b&#8203;b"}, "a b"),
        ("github", 422, {"message": {}}, "it gave no reason that can be read"),
        ("github", 422, {"errors": [[1]], "message": [None]}, "it gave no reason that can be read"),
        ("github", 422, ["x"], "it gave no reason that can be read"),
    ],
)  # fmt: skip
def test_a_refusal_is_told(kind: str, status: int, answer: Any, reason: str) -> None:
    with pytest.raises(OperationError) as caught:
        created(kind, status, json.dumps(answer).encode())
    assert caught.value.message == f"the forge refused the pull request: {reason}"


def test_a_refusal_is_bounded() -> None:
    for answer in ({"message": "x" * 100_000}, {"errors": ["x" * 100_000]}, {"message": {"f" * 9_000: ["x" * 9_000]}}):
        with pytest.raises(OperationError) as caught:
            created("github", 422, json.dumps(answer).encode())
        assert len(caught.value.message) <= MESSAGE + 40
        assert caught.value.message.endswith("…")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["message", "errors", "error", "field", "code", "number", "iid", "html_url", "web_url", "base"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(
    kind=st.sampled_from(["github", "gitlab"]),
    status=st.sampled_from([201, 401, 404, 409, 422, 500]) | st.integers(),
    body=st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()),
)
def test_any_answer_is_a_request_or_an_error(kind: str, status: int, body: bytes) -> None:
    try:
        found = created(kind, status, body)
    except OperationError as error:
        told = error
    else:
        assert set(found) == {"number", "url"}
        return
    assert told.rule in {"pr.credential", "pr.repository", "pr.refused", "pr.answer"}
    assert told.message.isprintable()


@pytest.mark.parametrize(
    "body", [b"[" * 100_000, b'{"message":' * 90_000, b"\xff", b"", b"9" * 5_000, b"x" * 3_000_000]
)
@pytest.mark.parametrize("status", [201, 422])
def test_an_answer_that_would_cost_too_much(status: int, body: bytes) -> None:
    assert rule(created, "github", status, body) in ("pr.answer", "pr.refused")
