"""What a policy allows of connections out of the pod: the entries of ``network.allow``."""

from __future__ import annotations

from nucleus.lattice.network import METHODS, PROTOCOLS, NetRule, parse_host, parse_port, parse_target, protocol_of
from nucleus.lattice.reader import Reader
from nucleus.lattice.yamltree import Node

_KEYS = ("host", "port", "protocol", "methods", "paths", "trusted", "approve")
_PATH_BYTES = 1_024


def rule(reader: Reader, node: Node) -> NetRule:
    """One rule, in its short form or its long one."""
    what = "network.allow"
    if node.kind == "scalar":
        try:
            host, port = parse_target(reader.text(node, what))
        except ValueError as error:
            raise reader.bad(node, f"{what}: {error}") from None
        return NetRule(host, port, protocol_of(port))
    keys = reader.map(node, what, _KEYS, ("host",))
    try:
        host = parse_host(reader.text(keys["host"], "host"))
    except ValueError as error:
        raise reader.bad(keys["host"], f"host: {error}") from None
    port = _port(reader, keys["port"]) if "port" in keys else 443
    protocol = reader.choice(keys["protocol"], "protocol", PROTOCOLS) if "protocol" in keys else protocol_of(port)
    methods = tuple(
        dict.fromkeys(
            reader.choice(item, "methods", METHODS) for item in _items(reader, keys, "methods", "at least one method")
        )
    )
    paths = tuple(dict.fromkeys(_path(reader, item) for item in _items(reader, keys, "paths", "at least one path")))
    found = NetRule(
        host, port, protocol, methods, paths,
        trusted=reader.flag(keys["trusted"], "trusted") if "trusted" in keys else False,
        approve=reader.flag(keys["approve"], "approve") if "approve" in keys else False,
    )  # fmt: skip
    if protocol != "http" and (methods or paths):
        raise reader.bad(node, f"{what}: methods and paths need protocol http: TLS is not opened in this version")
    return found


def _items(reader: Reader, keys: dict[str, Node], key: str, least: str) -> list[Node]:
    if key not in keys:
        return []
    items = reader.items(keys[key], key)
    if not items:
        raise reader.bad(keys[key], f"{key}: {least}, or leave the key out for all")
    return items


def _port(reader: Reader, node: Node) -> int:
    text = reader.text(node, "port")
    try:
        if not text.isascii() or not text.isdigit() or len(text) > 5:
            raise ValueError
        return parse_port(int(text))
    except ValueError:
        raise reader.bad(node, "port: a number from 1 to 65535") from None


def _path(reader: Reader, node: Node) -> str:
    text = reader.text(node, "paths")
    if not text.startswith("/") or len(text.encode()) > _PATH_BYTES or not text.isprintable() or "//" in text:
        raise reader.bad(node, 'paths: globs that begin with a slash, such as "/v1/**"')
    return text
