"""Pull requests on the wire: where a git remote leads, the request to its forge, and the forge's answer. No I/O.

 1. A remote is read by an allowlist of three forms; what git would run (`ext::`), read from disk, take for an option,
    or send a password with is none of them. A host is read by `validate.urls` alone, a path has plain names only.
 2. Title and body are what a person can see. Lines that GitLab would carry out as quick actions (``/merge``,
    ``/approve``) are refused: the text of a pull request must not act with the rights of its credential.
 3. Branches are names by git-check-ref-format(1): "refs/heads/main" is no second spelling of one, "fork:main" none.
 4. A path goes quoted into a forge's URL.
 5. Of an answer, a number and a URL are kept; of a refusal its first message, cleaned and cut. It is the forge's text,
    which may quote that of others: untrusted, as a search's result.

Promises: `parse_remote` raises InvalidError ``git.remote`` alone, `created` OperationError alone (and InvalidError for
a kind that there is not).
Relies on: whoever sends a `Wire` to add `key_header`, and to keep the answer's size bounded while it comes.
Does not: send, decide, resolve HEAD, or ask whether a branch exists.
Sources: GitHub's "Create a pull request" (REST, 2022-11-28), GitLab's "Create MR" (REST v4), git-check-ref-format(1).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Literal, Never
from urllib.parse import quote

from nucleus.errors import InvalidError, OperationError
from nucleus.network import addresses
from nucleus.network.names import is_name
from nucleus.network.searches import AGENT, Wire, check_key, checked_base, clean, load, page
from nucleus.validate.text import check_prose, check_size, check_visible
from nucleus.validate.urls import split_url

TITLE = 256  # characters
GITLAB_TITLE = 255
BODY_BYTES = 65_536
REF_BYTES = 255
PATH_CHARACTERS = 1_024
SEGMENTS = 22  # GitLab: a group, 20 levels of subgroups, a project
MESSAGE = 300  # characters of a forge's own words
HTTPS_PORT, SSH_PORT = 443, 22
GITHUB_VERSION = "2022-11-28"

_SEGMENT = re.compile(r"[A-Za-z0-9._][A-Za-z0-9._-]{0,254}")
_SCP = re.compile(r"git@([^:/@\[\]\\]+):(.*)")
_QUICK_ACTION = re.compile(r"\s*/[A-Za-z]\w*(?![\w/.-])")
_REF_FORBIDDEN = frozenset(" ~^:?*[\\")

Kind = Literal["github", "gitlab"]


@dataclass(frozen=True, slots=True)
class Remote:
    """Where a repository is.

    Args:
        scheme: ``https`` or ``ssh``.
        host: lower case.
        port: the scheme's own unless one was named.
        path: ``owner/repo``, with GitLab's subgroups between; no slash at its ends, no ``.git``.
    """

    scheme: str
    host: str
    port: int
    path: str

    @property
    def ssh(self) -> bool:
        """Is it reached by SSH?"""
        return self.scheme == "ssh"

    @property
    def https_url(self) -> str:
        """The repository over HTTPS; for one that is reached by SSH, at that host's usual port."""
        port = "" if self.ssh or self.port == HTTPS_PORT else f":{self.port}"
        return f"https://{self.host}{port}/{self.path}.git"

    @property
    def ssh_url(self) -> str:
        """The repository over SSH; for one that is reached by HTTPS, at that host's usual port."""
        port = "" if not self.ssh or self.port == SSH_PORT else f":{self.port}"
        return f"ssh://git@{self.host}{port}/{self.path}.git"


def parse_remote(url: str) -> Remote:
    """Step 1.

    Args:
        url: ``https://host[:port]/owner/repo[.git]``, ``ssh://git@host[:port]/owner/repo[.git]``, or
            ``git@host:owner/repo[.git]``.

    Raises:
        InvalidError: ``git.remote``; the message has nothing of `url`, which may hold a password.
    """
    try:
        check_size("remote", url, 2_048, "git.remote")
        check_visible("remote", url)
        if (scp := _SCP.fullmatch(url)) is not None:
            scheme, authority, path = "ssh", scp[1], scp[2]
        else:
            scheme, mark, rest = url.partition("://")
            authority, slash, path = rest.partition("/")
            if not mark or not slash or scheme not in ("https", "ssh"):
                _not_remote("https://host/owner/repo, ssh://git@host/owner/repo or git@host:owner/repo")
            if scheme == "ssh":
                user, _, authority = authority.rpartition("@")
                if user != "git":
                    _not_remote("the user of an SSH remote is git, without a password")
        # https: `split_url` refuses any user information, of which a token may be the user.
        found = split_url("remote", f"https://{authority}/")
        if found.target != "/":  # a "?" or "#" would end the host for one reader, and not for git
            _not_remote("malformed host")
        port = found.port if _has_port(authority) else SSH_PORT if scheme == "ssh" else HTTPS_PORT
    except InvalidError as error:
        raise InvalidError(error.message, rule="git.remote") from None
    if not is_name(found.host) and addresses.literal(found.host) is None:
        _not_remote("malformed host")
    return Remote(scheme, found.host, port, _path(path))


def kind_of(host: str) -> tuple[Kind, str] | None:
    """(kind, base of its API) of the forge at `host`, in lower case; None where a policy must say it."""
    return _KNOWN.get(host)


def pull_request(
    kind: str,
    api_base: str,
    remote: Remote,
    title: str,
    body: str,
    head: str,
    base: str,
    draft: bool = False,
) -> Wire:
    """The request that opens a pull request (GitLab: merge request) within one repository.

    Args:
        kind: ``github`` or ``gitlab``.
        api_base: such as ``https://api.github.com``; of the policy or `kind_of`.
        remote: the repository.
        title: one line, at most 256 characters (GitLab 255, with its mark of a draft).
        body: at most 64 KiB.
        head, base: branches of `remote`: what is to be merged, and where.
        draft: not yet to be merged.

    Raises:
        InvalidError: ``pr.kind``, ``pr.api``, ``pr.title``, ``pr.body``, ``pr.quick_action``, ``git.ref``, or
            ``git.remote`` for a path that GitHub cannot have.
    """
    kind = _kind(kind)
    api = checked_base("pr.api", api_base)
    check_branch("head", head)
    check_branch("base", base)
    if kind == "gitlab" and draft:
        title = f"Draft: {title}"
    _check_text(kind, title, body)
    headers = (("user-agent", AGENT), ("content-type", "application/json"))
    if kind == "gitlab":
        url = f"{api}/projects/{quote(remote.path, safe='')}/merge_requests"  # 4
        sent = {"source_branch": head, "target_branch": base, "title": title, "description": body}
        return Wire("POST", url, (("accept", "application/json"), *headers), json.dumps(sent).encode())
    owner, _, repo = remote.path.partition("/")
    if "/" in repo:
        _not_remote("GitHub has no groups of owners: owner/repo")
    url = f"{api}/repos/{quote(owner, safe='')}/{quote(repo, safe='')}/pulls"
    fields = {"title": title, "body": body, "head": head, "base": base, **({"draft": True} if draft else {})}
    accepted = (("accept", "application/vnd.github+json"), ("x-github-api-version", GITHUB_VERSION))
    return Wire("POST", url, (*accepted, *headers), json.dumps(fields).encode())


def key_header(kind: str, key: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """The header lines that carry `key`. Raises InvalidError ``pr.kind`` or ``credentials.value``."""
    if _kind(kind) == "github":
        return ((b"authorization", b"Bearer " + check_key(key)),)
    return ((b"private-token", check_key(key)),)


def created(kind: str, status: int, body: bytes) -> dict[str, Any]:
    """What a forge answered: ``{number: int, url: str}`` (step 5).

    Raises:
        OperationError: ``pr.credential`` (401, 403), ``pr.repository`` (404), ``pr.refused`` (409, 422; with the
            forge's first message), ``pr.answer`` for all else.
        InvalidError: ``pr.kind``.
    """
    number, url = ("number", "html_url") if _kind(kind) == "github" else ("iid", "web_url")
    if status != 201:
        _refused(status, body)
    answer = _object(body)
    found, where = answer.get(number), page(answer.get(url))
    if type(found) is not int or not 0 < found < 1 << 63 or not where:
        raise OperationError(
            "the forge's answer cannot be read; the pull request may be open",
            rule="pr.answer",
            next_step="Look at the repository before trying again.",
        )
    return {"number": found, "url": where}


def check_branch(field: str, name: str) -> None:
    """Step 3: a branch's name by ``git check-ref-format --branch``, visible, at most 255 bytes, not a full ref.

    Raises:
        InvalidError: ``git.ref``.
    """
    try:
        check_size(field, name, REF_BYTES, "git.ref")
        check_visible(field, name)
    except InvalidError as error:
        raise InvalidError(error.message, rule="git.ref") from None
    parts = name.split("/")
    if (
        any(not part or part[0] == "." or part.endswith(".lock") for part in parts)
        or name[-1] == "."
        or name[0] == "-"
        or name in ("@", "HEAD")
        or name.startswith("refs/")  # the same branch by another spelling
        or ".." in name
        or "@{" in name
        or not _REF_FORBIDDEN.isdisjoint(name)
    ):
        raise InvalidError(f"{field}: not the name of a branch", rule="git.ref")


_KNOWN: dict[str, tuple[Kind, str]] = {
    "github.com": ("github", "https://api.github.com"),
    "gitlab.com": ("gitlab", "https://gitlab.com/api/v4"),
}


def _not_remote(problem: str) -> Never:
    raise InvalidError(f"remote: {problem}", rule="git.remote")


def _has_port(authority: str) -> bool:
    _, colon, port = authority.rpartition("]")[2].partition(":")
    return bool(colon and port)


def _path(path: str) -> str:
    """``owner/repo`` of a remote's path."""
    path = path.removesuffix("/").removesuffix(".git")
    segments = path.split("/")
    if len(path) > PATH_CHARACTERS or not 2 <= len(segments) <= SEGMENTS:
        _not_remote("the path must be owner/repo")
    if ".." in path or any(_SEGMENT.fullmatch(segment) is None or segment == "." for segment in segments):
        _not_remote("the path must be owner/repo, of letters, digits, '.', '_' and '-' (not first)")
    return path


def _kind(kind: str) -> Kind:
    if kind == "github":
        return "github"
    if kind == "gitlab":
        return "gitlab"
    raise InvalidError("no such kind of forge; there are github, gitlab", rule="pr.kind")


def _check_text(kind: Kind, title: str, body: str) -> None:
    """Step 2."""
    most = GITLAB_TITLE if kind == "gitlab" else TITLE
    if not title.strip() or len(title) > most:
        raise InvalidError(f"title: one line of 1 to {most} characters", rule="pr.title")
    _text("title", title, TITLE * 4, "pr.title", check_visible)
    _text("body", body, BODY_BYTES, "pr.body", check_prose)
    if kind == "gitlab" and any(map(_QUICK_ACTION.match, body.splitlines())):
        raise InvalidError(
            "body: a line that begins with /word is a command to GitLab",
            rule="pr.quick_action",
            next_step="Begin the line with another word.",
        )


def _text(field: str, value: str, most: int, rule: str, check: Any) -> None:
    try:
        check_size(field, value, most, rule)
        check(field, value)
    except InvalidError as error:
        raise InvalidError(error.message, rule=rule) from None


def _refused(status: int, body: bytes) -> Never:
    if status in (401, 403):
        raise OperationError(
            f"the forge does not accept the credential for this (status {status})",
            rule="pr.credential",
            next_step="Give it one that may open pull requests in this repository; or its rate limit is reached.",
        )
    if status == 404:
        raise OperationError("no such repository, or not for this credential", rule="pr.repository")
    if status in (409, 422):
        reason = _reason(_object(body)) or "it gave no reason that can be read"
        raise OperationError(f"the forge refused the pull request: {reason}", rule="pr.refused")
    moved = "; the repository has moved" if status in (301, 302, 307, 308) else ""
    raise OperationError(f"the forge answered with status {status}{moved}", rule="pr.answer")


def _object(body: bytes) -> dict[str, Any]:
    """An answer that is a JSON object; empty for any other."""
    try:
        answer = load(body)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _reason(answer: dict[str, Any]) -> str:
    """The first message of a refusal, cleaned; "" if there is none.

    GitHub: ``{message, errors: [{resource, field, code, message?} or text]}``. GitLab: ``{message: text, [text] or
    {field: [text]}}`` or ``{error: text}``.
    """
    errors = answer.get("errors")
    first = errors[0] if isinstance(errors, list) and errors else None
    if isinstance(first, dict) and not isinstance(first.get("message"), str):
        words = [first.get(name) for name in ("field", "code")]
        first = " ".join(word for word in words if isinstance(word, str))
    elif isinstance(first, dict):
        first = first["message"]
    if found := clean(first, MESSAGE):
        return found
    message = answer.get("message")
    if isinstance(message, dict) and message:
        field, message = next(iter(message.items()))
        message = message[0] if isinstance(message, list) and message else message
        if isinstance(message, str):
            message = message if field == "base" else f"{field} {message}"
    elif isinstance(message, list) and message:
        message = message[0]
    return clean(message, MESSAGE) or clean(answer.get("error"), MESSAGE)
