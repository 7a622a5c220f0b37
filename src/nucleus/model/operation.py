"""What an agent can ask for: one frozen, strictly typed model per operation, unknown fields refused.

Promises: an `Operation` that exists has the right fields and types and nothing else. Lengths, paths, patterns and
argv are checked by `validate`, not here. `operation_hash` names an operation: approvals and grants are bound to it.
To add an operation: one class here, one entry in `OPERATIONS`; a test shows that nothing else refuses to start.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter

from nucleus.limits import LIMITS

HASH_DOMAIN = b"nucleus/operation/v1\0"


class Base(BaseModel):
    """An operation. `capability` is the lattice dimension that decides it."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", hide_input_in_errors=True)
    capability: ClassVar[str]
    path_fields: ClassVar[tuple[str, ...]] = ()  # which fields name workspace paths
    resolved: ClassVar[tuple[str, ...]] = ()  # fields that the gate fills in, from what the pod's repository says
    effect: ClassVar[bool] = False  # changes state inside the pod
    egress: ClassVar[bool] = False  # needs a way out of the pod


class Read(Base):
    """Return part of a file. offset and limit in bytes."""

    capability = "read_files"
    path_fields = ("path",)
    kind: Literal["read"] = "read"
    path: str
    offset: int = Field(default=0, ge=0, lt=1 << 53)
    limit: int = Field(default=LIMITS.read_bytes, ge=1, le=LIMITS.read_bytes)


class Write(Base):
    """Create or replace a file with `content` (text as UTF-8, or base64)."""

    capability = "write_files"
    path_fields = ("path",)
    effect = True
    kind: Literal["write"] = "write"
    path: str
    content: str
    encoding: Literal["utf-8", "base64"] = "utf-8"


class Edit(Base):
    """Replace `old` by `new`; refused unless `old` occurs exactly `count` times."""

    capability = "edit_files"
    path_fields = ("path",)
    effect = True
    kind: Literal["edit"] = "edit"
    path: str
    old: str = Field(min_length=1)
    new: str
    count: int = Field(default=1, ge=1, le=LIMITS.content_bytes)


class Glob(Base):
    """List the files under `path` whose relative name matches `pattern` (``**`` crosses directories).

    `sort`: by name, or by time of change, the newest first. `gitignore`: leave out what `.gitignore` files name.
    """

    capability = "glob_search"
    path_fields = ("path",)
    kind: Literal["glob"] = "glob"
    pattern: str
    path: str = "."
    sort: Literal["name", "mtime"] = "name"
    gitignore: bool = False
    limit: int = Field(default=LIMITS.result_count, ge=1, le=LIMITS.result_count)


class Grep(Base):
    """Search file contents under `path` for an RE2 `pattern`; `include` is a glob on names.

    `context`: lines to show before and after each match. `multiline`: a match may go over the ends of lines (``.`` only
    with ``(?s)``). `per_file`: most matching lines of one file.
    """

    capability = "grep_search"
    path_fields = ("path",)
    kind: Literal["grep"] = "grep"
    pattern: str
    path: str = "."
    include: str = "**"
    ignore_case: bool = False
    multiline: bool = False
    context: int = Field(default=0, ge=0, le=20)
    per_file: int = Field(default=LIMITS.result_count, ge=1, le=LIMITS.result_count)
    gitignore: bool = False
    limit: int = Field(default=LIMITS.result_count, ge=1, le=LIMITS.result_count)


class Run(Base):
    """Run `argv` (no shell) in directory `cwd`.

    `files`: where a person is asked, the files of the workspace that the words name, each with its SHA-256, or with why
    it has none: the yes is to them.
    """

    capability = "run_bash"
    path_fields = ("cwd",)
    effect = True
    resolved = ("files",)
    kind: Literal["run"] = "run"
    argv: tuple[str, ...] = Field(min_length=1, strict=False)
    cwd: str = "."
    stdin: str = ""
    timeout_ms: int = Field(default=LIMITS.run_timeout_ms, ge=1, le=LIMITS.run_timeout_max_ms)
    files: tuple[tuple[str, str], ...] = Field(default=(), strict=False)


class GitStatus(Base):
    """Working-tree status, porcelain v1."""

    capability = "read_files"
    kind: Literal["git_status"] = "git_status"


class GitDiff(Base):
    """Diff of the working tree (or of the index when `staged`)."""

    capability = "read_files"
    kind: Literal["git_diff"] = "git_diff"
    staged: bool = False


class GitCommit(Base):
    """Commit `paths` (all tracked changes when empty) with `message`; hooks never run."""

    capability = "git_commit"
    path_fields = ("paths",)
    effect = True
    kind: Literal["git_commit"] = "git_commit"
    message: str = Field(min_length=1)
    paths: tuple[str, ...] = Field(default=(), strict=False)


class WebFetch(Base):
    """Fetch a URL. Decided here; carried by the egress gateway."""

    capability = "web_fetch"
    egress = True
    kind: Literal["web_fetch"] = "web_fetch"
    url: str
    method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"] = "GET"
    body: str = ""
    content_type: str = "application/json"
    limit: int = Field(default=262_144, ge=1, le=LIMITS.read_bytes)
    timeout_ms: int = Field(default=30_000, ge=1, le=120_000)
    raw: bool = False


class WebSearch(Base):
    """Search the web. Decided here; carried by the egress gateway."""

    capability = "web_search"
    egress = True
    kind: Literal["web_search"] = "web_search"
    query: str


class GitPush(Base):
    """Push one ref: a branch (HEAD for the current one), a tag by its full name, or ``source:target``.

    Decided, shown and carried out by what `resolved` says: the remote's URL, the ref there, its id before and after,
    and whether history is lost (`forced`); the gateway lets exactly that through.
    """

    capability = "git_push"
    effect = True
    egress = True
    resolved = ("url", "target", "old", "new", "forced")
    kind: Literal["git_push"] = "git_push"
    remote: str = "origin"
    ref: str = "HEAD"
    force: bool = False
    delete: bool = False
    url: str = ""
    target: str = ""
    old: str = ""
    new: str = ""
    forced: bool = False


class CreatePr(Base):
    """Open a pull request (GitLab: a merge request) in a remote's repository. `head`: HEAD for the current branch."""

    capability = "create_pr"
    effect = True
    egress = True
    resolved = ("url",)
    kind: Literal["create_pr"] = "create_pr"
    title: str
    body: str = ""
    base: str = "main"
    head: str = "HEAD"
    draft: bool = False
    remote: str = "origin"
    url: str = ""


class ManagePods(Base):
    """Create, list or destroy child pods. Decided here; carried by the node."""

    capability = "manage_pods"
    effect = True
    egress = True
    kind: Literal["manage_pods"] = "manage_pods"
    action: Literal["create", "list", "destroy"]
    name: str = ""


class CallTool(Base):
    """Call one tool of an external MCP server. Decided by the policy's ``tools``, carried by the tool host.

    `capability` is no lattice dimension here: what a tool can do is what the policy declares of it.
    """

    capability = "tools"
    kind: Literal["tool"] = "tool"
    server: str
    tool: str
    arguments: dict[str, JsonValue] = Field(default_factory=dict)


class Connect(Base):
    """One connection out of the pod, or one request of it. Asked by the pod's gateway alone, and carried by it.

    Args:
        conn: the gateway's number for it.
        host: a name in lower case, or an address.
        inner: the name that the connection itself names (SNI, Host): "" where it is not looked into, "-" for none,
            "ech" for a hidden one.
        method, path: of a request that is seen.
        part: the n-th allowance of bytes of the same connection.
        upper: micro-dollars to reserve beyond the base.
        fault: what the gateway found wrong with it: asked for only to be refused and put on record.
    """

    capability = "network"
    egress = True
    kind: Literal["connect"] = "connect"
    conn: int = Field(ge=0, lt=1 << 53)
    host: str
    port: int = Field(ge=1, le=65_535)
    protocol: Literal["tls", "http", "https", "tcp"]
    inner: str = ""
    method: str = ""
    path: str = ""
    part: int = Field(default=0, ge=0, lt=1 << 31)
    upper: int = Field(default=0, ge=0, lt=1 << 40)
    fault: str = Field(default="", max_length=200)


OPERATIONS: tuple[type[Base], ...] = (
    Read, Write, Edit, Glob, Grep, Run, GitStatus, GitDiff, GitCommit,
    WebFetch, WebSearch, GitPush, CreatePr, ManagePods, CallTool,
)  # fmt: skip

Operation = Annotated[
    Read | Write | Edit | Glob | Grep | Run | GitStatus | GitDiff | GitCommit
    | WebFetch | WebSearch | GitPush | CreatePr | ManagePods | CallTool,
    Field(discriminator="kind"),
]  # fmt: skip

ADAPTER: TypeAdapter[Operation] = TypeAdapter(Operation)
CONNECT: TypeAdapter[Connect] = TypeAdapter(Connect)  # no door takes it: only the gateway's channel


def canonical(operation: Base) -> bytes:
    """The operation's canonical bytes: JSON with sorted keys, no blanks, UTF-8."""
    data = operation.model_dump(mode="json")
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8")


def operation_hash(operation: Base) -> str:
    """SHA-256 (hex) over a domain prefix and the canonical bytes."""
    return hashlib.sha256(HASH_DOMAIN + canonical(operation)).hexdigest()
