"""The one check that every operation passes before it is decided (seed: "Input Validation").

 1. every string is UTF-8 and within the limit of its kind
 2. every path is lexically normal and inside the workspace
 3. patterns have none of the seed's three ReDoS classes; globs cannot leave their directory
 4. argv has no NUL; its bytes, one NUL each counted, are within the limit; a shell string that is plain commands is
    written so that every shell reads it as we do
 5. URLs, refs and names have their strict forms

Pure: returns a new operation whose paths are normalized. Errors name field, limit and size, never the value.
"""

from __future__ import annotations

import binascii
import json
from collections.abc import Callable
from typing import Any

from nucleus.limits import LIMITS
from nucleus.model import operation as ops
from nucleus.validate import shell
from nucleus.validate.paths import validate_glob, validate_path
from nucleus.validate.patterns import validate_pattern
from nucleus.validate.text import byte_length, check_prose, check_size, check_visible, refuse
from nucleus.validate.urls import split_url

_REF = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._/-")
_POD = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")
_SERVER = _POD | {"_"}


def validate_operation(operation: ops.Base) -> ops.Base:
    """Check `operation` and return it with every path normalized.

    Raises:
        InvalidError: with the field, the limit and what was got in the message, and the rule that fired.
    """
    changes: dict[str, Any] = {}
    for name in operation.path_fields:  # step 2
        value = getattr(operation, name)
        if isinstance(value, str):
            normal: str | tuple[str, ...] = validate_path(name, value)
        else:
            if len(value) > LIMITS.argv_count:
                refuse(name, f"too many: limit {LIMITS.argv_count}, got {len(value)}", "limits.paths")
            normal = tuple(validate_path(name, path) for path in value)
        if normal != value:
            changes[name] = normal
    check = _CHECKS.get(type(operation))
    if check is not None:
        check(operation, changes)
    return operation.model_copy(update=changes) if changes else operation


def _write(operation: Any, changes: dict[str, Any]) -> None:
    if operation.encoding == "base64":
        # Four characters carry three bytes.
        limit = (LIMITS.content_bytes + 2) // 3 * 4
        check_size("content", operation.content, limit, "limits.content")
        try:
            size = len(binascii.a2b_base64(operation.content.encode("ascii"), strict_mode=True))
        except (binascii.Error, UnicodeEncodeError):
            refuse("content", "not strict base64", "content.base64")
        if size > LIMITS.content_bytes:
            refuse("content", f"too long: limit {LIMITS.content_bytes} bytes, got {size}", "limits.content")
        return
    check_size("content", operation.content, LIMITS.content_bytes, "limits.content")


def _edit(operation: Any, changes: dict[str, Any]) -> None:
    check_size("old", operation.old, LIMITS.content_bytes, "limits.content")
    check_size("new", operation.new, LIMITS.content_bytes, "limits.content")


def _glob(operation: Any, changes: dict[str, Any]) -> None:
    _keep(changes, "pattern", operation.pattern, validate_glob("pattern", operation.pattern))


def _grep(operation: Any, changes: dict[str, Any]) -> None:
    validate_pattern("pattern", operation.pattern, ignore_case=operation.ignore_case)  # step 3
    _keep(changes, "include", operation.include, validate_glob("include", operation.include))


def _run(operation: Any, changes: dict[str, Any]) -> None:
    argv = operation.argv  # step 4
    if len(argv) > LIMITS.argv_count:
        refuse("argv", f"too many arguments: limit {LIMITS.argv_count}, got {len(argv)}", "limits.argv_count")
    total = 0
    for index, word in enumerate(argv):
        total += len(word) + 1  # cheap lower bound first
        if total > LIMITS.argv_bytes:
            refuse("argv", f"too long: limit {LIMITS.argv_bytes} bytes, got at least {total}", "limits.argv")
        if "\0" in word:
            refuse("argv", f"argument {index} holds NUL", "text.characters")
    total = sum(byte_length("argv", word) + 1 for word in argv)
    if total > LIMITS.argv_bytes:
        refuse("argv", f"too long: limit {LIMITS.argv_bytes} bytes, got {total}", "limits.argv")
    if not argv or not argv[0]:
        refuse("argv", "the program's name is empty", "argv.program")
    check_visible("argv[0]", argv[0])
    plain = shell.canonical(argv)
    # What is decided, shown, run and put on record; where it would be too long it stays what it is, and asks.
    if plain is not None and sum(byte_length("argv", word) + 1 for word in plain) <= LIMITS.argv_bytes:
        _keep(changes, "argv", argv, plain)
    check_size("stdin", operation.stdin, LIMITS.stdin_bytes, "limits.stdin")
    _unresolved(operation)


def _git_commit(operation: Any, changes: dict[str, Any]) -> None:
    check_size("message", operation.message, LIMITS.message_bytes, "limits.message")
    check_prose("message", operation.message)
    if not operation.message.strip():
        refuse("message", "the message is blank", "message.empty")


def _web_fetch(operation: Any, changes: dict[str, Any]) -> None:
    split_url("url", operation.url)  # step 5
    check_size("body", operation.body, LIMITS.stdin_bytes, "limits.body")
    check_size("content_type", operation.content_type, 128, "limits.content_type")
    check_visible("content_type", operation.content_type)


def _web_search(operation: Any, changes: dict[str, Any]) -> None:
    check_size("query", operation.query, LIMITS.query_bytes, "limits.query")
    check_visible("query", operation.query)
    if not operation.query.strip():
        refuse("query", "the query is blank", "query.empty")


def _git_push(operation: Any, changes: dict[str, Any]) -> None:
    # A remote is a configured name: a URL here could be `ext::sh -c ...`.
    _ref("remote", operation.remote)
    if "/" in operation.remote:
        refuse("remote", "must be the name of a remote", "git.ref")
    source, mark, target = operation.ref.partition(":")
    _ref("ref", source)
    if mark:
        _ref("ref", target)
    _unresolved(operation)


def _create_pr(operation: Any, changes: dict[str, Any]) -> None:
    check_size("title", operation.title, LIMITS.message_bytes, "limits.message")
    check_visible("title", operation.title)
    check_size("body", operation.body, LIMITS.message_bytes, "limits.message")
    check_prose("body", operation.body)
    _ref("base", operation.base)
    _ref("head", operation.head)
    _ref("remote", operation.remote)
    if "/" in operation.remote:
        refuse("remote", "must be the name of a remote", "git.ref")
    _unresolved(operation)


def _unresolved(operation: Any) -> None:
    for name in operation.resolved:
        if getattr(operation, name):
            refuse(name, "is the gate's to fill in", "operation.resolved")


def _manage_pods(operation: Any, changes: dict[str, Any]) -> None:
    if len(operation.name) > 63 or not set(operation.name) <= _POD:
        refuse("name", "at most 63 of a-z, 0-9 and '-'", "pods.name")
    if operation.action == "destroy" and not operation.name:
        refuse("name", "which pod?", "pods.name")


def _call_tool(operation: Any, changes: dict[str, Any]) -> None:
    if not 0 < len(operation.server) <= 63 or not set(operation.server) <= _SERVER:
        refuse("server", "1 to 63 of a-z, 0-9, '-' and '_'", "tools.name")
    check_size("tool", operation.tool, 128, "tools.name")
    check_visible("tool", operation.tool)
    if not operation.tool or "/" in operation.tool or " " in operation.tool:
        refuse("tool", "a tool's name, without blanks and slashes", "tools.name")
    try:
        text = json.dumps(operation.arguments, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except ValueError:
        refuse("arguments", "not JSON: a number is out of range", "json.number")
    check_size("arguments", text, LIMITS.stdin_bytes, "limits.arguments")


def _ref(field: str, ref: str) -> None:
    """A subset of git-check-ref-format(1); never an option."""
    check_size(field, ref, 255, "limits.ref")
    bad = not ref or ref[0] in "-/." or ref[-1] in "/." or ".." in ref or "//" in ref or ref.endswith(".lock")
    if bad or not set(ref) <= _REF:
        refuse(field, "not a plain git ref", "git.ref")


def _keep(changes: dict[str, Any], name: str, old: object, new: object) -> None:
    if new != old:
        changes[name] = new


def _connect(operation: Any, changes: dict[str, Any]) -> None:
    for field, limit in (("host", 253), ("inner", 253), ("method", 32)):
        check_size(field, getattr(operation, field), limit, "limits.host")
        check_visible(field, getattr(operation, field))
    check_size("path", operation.path, LIMITS.url_bytes, "limits.url")
    check_visible("path", operation.path)
    if not operation.host or operation.host != operation.host.lower() or set(operation.host) & set(" /?#@\\"):
        refuse("host", "not a plain host", "network.host")


_CHECKS: dict[type[ops.Base], Callable[[Any, dict[str, Any]], None]] = {
    ops.Write: _write,
    ops.Edit: _edit,
    ops.Glob: _glob,
    ops.Grep: _grep,
    ops.Run: _run,
    ops.GitCommit: _git_commit,
    ops.WebFetch: _web_fetch,
    ops.WebSearch: _web_search,
    ops.GitPush: _git_push,
    ops.CreatePr: _create_pr,
    ops.ManagePods: _manage_pods,
    ops.CallTool: _call_tool,
    ops.Connect: _connect,
}
