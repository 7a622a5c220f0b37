"""The operations as MCP tools: names, JSON schemas, annotations. Data only.

The schemas say what `nucleus.model.operation` says, by hand because the pod has no pydantic; tests/sdk/test_tools.py
compares every field's name, type, default, bound and requiredness, so the two cannot drift apart.
Does not: validate. The gate does.
"""

from __future__ import annotations

from typing import Any

_READ_BYTES = 8_388_608
_RESULTS = 1_000


def _text(description: str, **more: Any) -> dict[str, Any]:
    return {"type": "string", "description": description, **more}


def _int(description: str, **more: Any) -> dict[str, Any]:
    return {"type": "integer", "description": description, **more}


def _flag(description: str) -> dict[str, Any]:
    return {"type": "boolean", "description": description, "default": False}


def _list(description: str, **more: Any) -> dict[str, Any]:
    return {"type": "array", "items": {"type": "string"}, "description": description, **more}


_LIMIT = _int("Most results to return.", default=_RESULTS, minimum=1, maximum=_RESULTS)

# name: (title, description, properties, required, (readOnly, destructive, idempotent, openWorld))
_TABLE: dict[str, tuple[str, str, dict[str, Any], list[str], tuple[bool, bool, bool, bool]]] = {
    "read": (
        "Read a file",
        "Return part of a file of the workspace.",
        {
            "path": _text("Path relative to the workspace."),
            "offset": _int("First byte.", default=0, minimum=0),
            "limit": _int("Most bytes to return.", default=_READ_BYTES, minimum=1, maximum=_READ_BYTES),
        },
        ["path"],
        (True, False, True, False),
    ),
    "write": (
        "Write a file",
        "Create or replace a file of the workspace.",
        {
            "path": _text("Path relative to the workspace."),
            "content": _text("The whole new content."),
            "encoding": _text("How content is encoded.", enum=["utf-8", "base64"], default="utf-8"),
        },
        ["path", "content"],
        (False, True, True, False),
    ),
    "edit": (
        "Edit a file",
        "Replace a text in a file; refused unless it occurs exactly count times.",
        {
            "path": _text("Path relative to the workspace."),
            "old": _text("The exact text to replace.", minLength=1),
            "new": _text("What to put in its place."),
            "count": _int("How often old must occur.", default=1, minimum=1, maximum=8_388_608),
        },
        ["path", "old", "new"],
        (False, True, False, False),
    ),
    "glob": (
        "Find files by name",
        "List the files under path whose relative name matches pattern (** crosses directories).",
        {
            "pattern": _text("Glob pattern, e.g. **/*.py"),
            "path": _text("Directory to start from.", default="."),
            "sort": _text("By name, or the newest first.", enum=["name", "mtime"], default="name"),
            "gitignore": _flag("Leave out what .gitignore files name."),
            "limit": _LIMIT,
        },
        ["pattern"],
        (True, False, True, False),
    ),
    "grep": (
        "Search file contents",
        "Search file contents under path for an RE2 pattern.",
        {
            "pattern": _text("RE2 regular expression."),
            "path": _text("Directory or file to search.", default="."),
            "include": _text("Glob on file names.", default="**"),
            "ignore_case": _flag("Match without regard to case."),
            "multiline": _flag("A match may go over the ends of lines (. only with (?s))."),
            "context": _int("Lines to show before and after each match.", default=0, minimum=0, maximum=20),
            "per_file": _int("Most matching lines of one file.", default=_RESULTS, minimum=1, maximum=_RESULTS),
            "gitignore": _flag("Leave out what .gitignore files name."),
            "limit": _LIMIT,
        },
        ["pattern"],
        (True, False, True, False),
    ),
    "run": (
        "Run a command",
        "Run a program with arguments in the sandbox. No shell: argv is passed as it is.",
        {
            "argv": _list("Program and arguments.", minItems=1),
            "cwd": _text("Directory to run in.", default="."),
            "stdin": _text("Text for standard input.", default=""),
            "timeout_ms": _int("Deadline in milliseconds.", default=120_000, minimum=1, maximum=3_600_000),
        },
        ["argv"],
        (False, True, False, False),
    ),
    "git_status": ("Git status", "Working-tree status, porcelain v1.", {}, [], (True, False, True, False)),
    "git_diff": (
        "Git diff",
        "Diff of the working tree, or of the index.",
        {"staged": _flag("The index instead of the working tree.")},
        [],
        (True, False, True, False),
    ),
    "git_commit": (
        "Git commit",
        "Commit paths (all tracked changes when empty). Hooks never run.",
        {"message": _text("Commit message.", minLength=1), "paths": _list("Paths to commit.", default=[])},
        ["message"],
        (False, False, False, False),
    ),
    "web_fetch": (
        "Fetch a URL",
        "Fetch a URL through the pod's egress gateway, where the policy allows it.",
        {
            "url": _text("The URL."),
            "method": _text("HTTP method.", enum=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"], default="GET"),
            "body": _text("Request body.", default=""),
            "content_type": _text("Of the body.", default="application/json"),
            "limit": _int("Most bytes of the answer.", default=262_144, minimum=1, maximum=8_388_608),
            "timeout_ms": _int("Deadline in milliseconds.", default=30_000, minimum=1, maximum=120_000),
            "raw": _flag("The bytes as they are, in base64."),
        },
        ["url"],
        (False, True, False, True),
    ),
    "web_search": (
        "Search the web",
        "Search the web through the pod's egress gateway, where the policy allows it.",
        {"query": _text("What to search for.")},
        ["query"],
        (True, False, True, True),
    ),
    "git_push": (
        "Git push",
        "Push a ref through the pod's egress gateway, where the policy allows it.",
        {
            "remote": _text("Remote name.", default="origin"),
            "ref": _text("Ref to push: a branch, a tag by its full name, or source:target.", default="HEAD"),
            "force": _flag("Give up what the remote's branch has that this one has not; a person is asked."),
            "delete": _flag("Delete the ref on the remote; a person is asked."),
        },
        [],
        (False, True, True, True),
    ),
    "create_pr": (
        "Open a pull request",
        "Open a pull request through the pod's egress gateway, where the policy allows it.",
        {
            "title": _text("Title."),
            "body": _text("Description.", default=""),
            "base": _text("Branch to merge into.", default="main"),
            "head": _text("Branch to merge.", default="HEAD"),
            "draft": _flag("As a draft."),
            "remote": _text("Remote of the repository.", default="origin"),
        },
        ["title"],
        (False, False, False, True),
    ),
    "manage_pods": (
        "Manage child pods",
        "Create, list or destroy child pods, where the policy allows it.",
        {
            "action": _text("What to do.", enum=["create", "list", "destroy"]),
            "name": _text("The pod's name.", default=""),
        },
        ["action"],
        (False, True, False, False),
    ),
}


def _tool(name: str) -> dict[str, Any]:
    title, description, properties, required, hints = _TABLE[name]
    schema: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
    if required:
        schema["required"] = required
    keys = ("readOnlyHint", "destructiveHint", "idempotentHint", "openWorldHint")
    return {
        "name": name,
        "title": title,
        "description": description,
        "inputSchema": schema,
        "annotations": {"title": title, **dict(zip(keys, hints))},  # noqa: B905 - no `strict` in Python 3.9
    }


NAMES = frozenset(_TABLE)
TOOLS: list[dict[str, Any]] = [_tool(name) for name in _TABLE]
