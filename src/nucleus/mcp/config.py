"""Which MCP servers a person attaches to a pod: the field's ``{"mcpServers": {...}}`` file, strictly read.

    {"mcpServers": {"mail": {"command": "mail-server", "args": ["--stdio"], "env": {"TOKEN": "..."}}}}

Promises: unknown keys, wrong types and oversize are refused; so is a file that lies in the workspace, that others than
its owner can write, or that belongs to somebody else: whoever writes it chooses what runs as the person.
Does not: start anything, or keep what it read.
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass, field

from nucleus.errors import InvalidError

FILE_BYTES = 262_144
SERVERS = 16
WORDS = 256
_NAME = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_-")


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """How one server is started (stdio). `env` may hold its secrets: it is in no repr."""

    name: str
    command: str
    args: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict, repr=False)


def parse(data: object) -> tuple[ServerConfig, ...]:
    """Check parsed JSON. Raises InvalidError (rule ``mcp.config``)."""
    if not isinstance(data, dict) or set(data) != {"mcpServers"} or not isinstance(data["mcpServers"], dict):
        raise _bad('one key, "mcpServers", with an object of servers')
    servers = data["mcpServers"]
    if not 0 < len(servers) <= SERVERS:
        raise _bad(f"1 to {SERVERS} servers")
    return tuple(_server(name, facts) for name, facts in servers.items())


def _server(name: str, facts: object) -> ServerConfig:
    if not 0 < len(name) <= 63 or not set(name) <= _NAME:
        raise _bad(f"{name[:63]!r}: a server's name has 1 to 63 of a-z, 0-9, '-' and '_'")
    if not isinstance(facts, dict):
        raise _bad(f"{name}: not an object")
    if "url" in facts:
        raise _bad(f"{name}: only servers that are started (command) are supported, not url")
    if unknown := set(facts) - {"command", "args", "env", "type"}:
        raise _bad(f"{name}: unknown key {sorted(unknown)[0]!r}")
    if facts.get("type", "stdio") != "stdio":
        raise _bad(f"{name}: type is stdio")
    command, args, env = facts.get("command"), facts.get("args", []), facts.get("env", {})
    if not isinstance(command, str) or not command or "\0" in command:
        raise _bad(f"{name}: command is a program")
    if not isinstance(args, list) or len(args) > WORDS or not all(_word(word) for word in args):
        raise _bad(f"{name}: args is a list of words")
    if not isinstance(env, dict) or len(env) > WORDS or not all(key and _word(value) for key, value in env.items()):
        raise _bad(f"{name}: env is an object of texts")
    if any("=" in key or "\0" in key for key in env):
        raise _bad(f"{name}: env has a malformed name")
    return ServerConfig(name, command, tuple(args), dict(env))


def _word(value: object) -> bool:
    return isinstance(value, str) and "\0" not in value


def read(path: str, workspace: int) -> bytes:
    """The file's bytes, checked.

    Args:
        path: as the person gave it.
        workspace: a descriptor of the workspace's directory.

    Raises:
        InvalidError: rule ``mcp.config``.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise _bad(f"{path}: {getattr(error, 'strerror', error)}") from None
    try:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > FILE_BYTES:
            raise _bad(f"{path}: not a file of at most {FILE_BYTES} bytes")
        if facts.st_uid not in (0, os.geteuid()) or facts.st_mode & 0o022:
            raise _bad(f"{path}: must be yours, and writable by nobody else")
        if _inside(os.readlink(f"/proc/self/fd/{fd}"), os.fstat(workspace)):
            raise _bad(f"{path}: lies in the workspace, which the agent can write")
        data = os.read(fd, FILE_BYTES + 1)
    finally:
        os.close(fd)
    try:
        parse(json.loads(data))
    except (ValueError, RecursionError):
        raise _bad(f"{path}: not JSON") from None
    return data


def _inside(path: str, workspace: os.stat_result) -> bool:
    while path not in ("/", ""):
        path = os.path.dirname(path)
        try:
            if os.path.samestat(os.stat(path), workspace):
                return True
        except FileNotFoundError:
            continue
    return False


def _bad(problem: str) -> InvalidError:
    return InvalidError(
        f"MCP servers: {problem}", rule="mcp.config", next_step="Correct the file given with --mcp-config."
    )
