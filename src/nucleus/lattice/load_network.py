"""What a policy allows of connections out of the pod: the entries of ``network.allow``."""

from __future__ import annotations

from nucleus.lattice.network import (
    CLIENT,
    FORGES,
    METHODS,
    PROTOCOLS,
    NetRule,
    parse_host,
    parse_port,
    parse_target,
    protocol_of,
)
from nucleus.lattice.reader import Reader
from nucleus.lattice.yamltree import Node

_KEYS = (
    "host",
    "port",
    "protocol",
    "methods",
    "paths",
    "trusted",
    "approve",
    "credential",
    "model",
    "price",
    "service",
    "host_key",
)
_PATH_BYTES = 1_024
_PRICES = ("input", "output", "cache_read", "cache_write")
_NAME = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_.-")
# The services that the gateway knows, and where they are unless a rule says so.
SERVICES = {
    "searxng": "",
    "brave": "api.search.brave.com",
    "tavily": "api.tavily.com",
    "github": "api.github.com",
    "gitlab": "gitlab.com",
    "git": "",
}
# What a model's API is, unless its rule says otherwise: where, and what of it an agent needs.
MODELS = {
    "anthropic": ("api.anthropic.com", ("/v1/messages", "/v1/messages/count_tokens", "/v1/models", "/v1/models/*")),
    "openai": (
        "api.openai.com",
        ("/v1/chat/completions", "/v1/responses", "/v1/embeddings", "/v1/models", "/v1/models/*"),
    ),
}


def rule(reader: Reader, node: Node) -> NetRule:
    """One rule, in its short form or its long one."""
    what = "network.allow"
    if node.kind == "scalar":
        try:
            host, port = parse_target(reader.text(node, what))
        except ValueError as error:
            raise reader.bad(node, f"{what}: {error}") from None
        return NetRule(host, port, protocol_of(port))
    keys = reader.map(node, what, _KEYS)
    model = reader.choice(keys["model"], "model", tuple(MODELS)) if "model" in keys else ""
    service = reader.choice(keys["service"], "service", tuple(SERVICES)) if "service" in keys else ""
    if model and service:
        raise reader.bad(node, f"{what}: a model or a service, not both")
    known = MODELS[model][0] if model else SERVICES.get(service, "")
    if "host" not in keys and not known:
        raise reader.bad(node, f"{what}: a rule names its host")
    host = _host(reader, keys["host"]) if "host" in keys else known
    host_key = _host_key(reader, keys["host_key"], service) if "host_key" in keys else ""
    port = _port(reader, keys["port"]) if "port" in keys else 22 if host_key else 443
    protocol = reader.choice(keys["protocol"], "protocol", PROTOCOLS) if "protocol" in keys else protocol_of(port)
    opened = [name for name in ("methods", "paths", "credential", "model", "service") if name in keys]
    if opened and protocol == "tls" and "protocol" not in keys:
        protocol = "https"
    methods = tuple(
        dict.fromkeys(
            reader.choice(item, "methods", METHODS) for item in _items(reader, keys, "methods", "at least one method")
        )
    )
    paths = tuple(dict.fromkeys(_path(reader, item) for item in _items(reader, keys, "paths", "at least one path")))
    credential = _credential(reader, keys["credential"]) if "credential" in keys else ""
    found = NetRule(
        host, port, protocol,
        methods or (("GET", "POST") if model else ()),
        paths or (MODELS[model][1] if model else ()),
        # The model has seen everything that the agent has: it is no further way out.
        trusted=reader.flag(keys["trusted"], "trusted") if "trusted" in keys else bool(model or service),
        approve=reader.flag(keys["approve"], "approve") if "approve" in keys else False,
        credential=credential,
        model=model,
        service=service,
        host_key=host_key,
        price=_price(reader, keys["price"]) if "price" in keys else (),
    )  # fmt: skip
    if host_key and (protocol != "tcp" or not credential):
        raise reader.bad(
            node, f"{what}: a remote by SSH needs a credential of kind ssh, and protocol tcp if it says any"
        )
    if protocol not in ("http", "https") and opened and not host_key:
        raise reader.bad(node, f"{what}: {opened[0]} need protocol http, or https (TLS that the gateway opens)")
    if service and (methods or host.startswith("*.") or credential == CLIENT):
        raise reader.bad(node, f"{what}: a service has one host, no methods, and no credential but the host's")
    if service in ("brave", "tavily", *FORGES) and not credential:
        raise reader.bad(node, f"{what}: {service} needs a credential (`nucleus credentials set`)")
    if (protocol == "https" or model or service) and "/" in host:
        raise reader.bad(node, f"{what}: https, a model and a service need a name, not a range of addresses")
    if credential not in ("", CLIENT) and protocol == "http" and not model:
        raise reader.bad(node, f"{what}: a credential is only added where TLS protects it: protocol https")
    if model and not credential:
        raise reader.bad(node, f"{what}: a model needs a credential (`nucleus credentials set`), or `client`")
    if "price" in keys and not model:
        raise reader.bad(keys["price"], "price: only a model has one")
    return found


def _host(reader: Reader, node: Node) -> str:
    try:
        return parse_host(reader.text(node, "host"))
    except ValueError as error:
        raise reader.bad(node, f"host: {error}") from None


def _credential(reader: Reader, node: Node) -> str:
    text = reader.text(node, "credential")
    if not text or len(text) > 63 or not set(text) <= _NAME or not text[0].isalpha():
        raise reader.bad(node, "credential: a name such as github-token: a-z, 0-9, and -_. inside, at most 63")
    return text


def _host_key(reader: Reader, node: Node, service: str) -> str:
    """As in known_hosts, without the names: ``ssh-ed25519 AAAA…``."""
    words = reader.text(node, "host_key").split(" ")
    plain = len(words) == 2 and all(word.isascii() and word.isprintable() and 8 <= len(word) <= 1_024 for word in words)
    if service != "git" or not plain or not words[0].startswith(("ssh-", "ecdsa-")):
        raise reader.bad(
            node, "host_key: of service git, such as `ssh-ed25519 AAAA…` (`ssh-keyscan HOST`, compared with care)"
        )
    return " ".join(words)


def _price(reader: Reader, node: Node) -> tuple[int, ...]:
    """Micro-dollars for a million tokens; what is left out is the input's."""
    keys = reader.map(node, "price", _PRICES, ("input", "output"))
    found = {}
    for name, value in keys.items():
        text = reader.text(value, f"price.{name}")
        if not text.isascii() or not text.isdigit() or len(text) > 10:
            raise reader.bad(value, f"price.{name}: micro-dollars for a million tokens, such as 3000000")
        found[name] = int(text)
    return tuple(found.get(name, found["input"]) for name in _PRICES)


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
