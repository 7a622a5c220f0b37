"""Where a pod's connections may go: the rules of ``network.allow``.

rule                                             | covers
-------------------------------------------------|-----------------------------------------------------------------
``pypi.org``                                     | TLS to that name at port 443
``"*.pythonhosted.org"``                         | the same for every name below it, at any depth, not itself
``github.com:22``                                | that port; read as TLS at 443 and 8443, HTTP at 80 and 8080, else
                                                 | not looked into
``10.0.0.0/8:5432``, ``"[fd00::/8]:443"``        | addresses: the only way to one that is not public
``{host:, port:, methods:, paths:, credential:,  | and only these requests: of HTTP, or of HTTP in a TLS that the
trusted:, approve:}``                            | gateway opens (``https``)
``{service: github, host:, credential:, paths:}``| nothing of the pod's: what the gateway itself asks for a search, a
                                                 | push (``git``) or a pull request, of these repositories
``{model: anthropic, credential:, price:}``      | a model's API: its listed requests, at a local endpoint, metered

Within one list any rule that covers a connection admits it, and the most permissive one counts; every list of the
conjunction has to admit it. So more rules are looser, and more lists tighter. A credential is added to a request only
where every list names the same one; ``client`` lets the client's own pass, which an opened request otherwise loses.
Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from nucleus.lattice.paths import path_set

if TYPE_CHECKING:  # weight: only policies with ranges, and connections to addresses
    import ipaddress

Protocol = Literal["tls", "http", "https", "tcp"]
PROTOCOLS: tuple[Protocol, ...] = ("tls", "http", "https", "tcp")
CLIENT = "client"  # the credential that is the client's own
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_BY_PORT = {443: "tls", 8443: "tls", 80: "http", 8080: "http"}
_LABEL = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_")


@dataclass(frozen=True, slots=True)
class NetRule:
    """One rule.

    Args:
        host: a name in lower case, ``*.parent``, or a range of addresses in CIDR notation.
        port: 1 to 65535.
        protocol: how the connection is read: one of `PROTOCOLS`.
        methods, paths: what of HTTP; empty for all.
        credential: what the gateway adds, by the name that the host knows it by; `CLIENT`: the client's own passes.
        model: the kind of model API that this is, "" for none.
        service: what the gateway uses it for in an operation of its own, "" for a rule about connections.
        price: of a model, micro-dollars for a million tokens: input, output, cache read, cache write; () for dear.
        trusted: the user vouches for the destination: the trifecta does not ask for it.
        approve: a person each time.
    """

    host: str
    port: int
    protocol: str
    methods: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    trusted: bool = False
    approve: bool = False
    credential: str = ""
    model: str = ""
    price: tuple[int, ...] = ()
    service: str = ""
    host_key: str = ""  # of an SSH server: the service `git` reaches it by SSH then

    @property
    def requests(self) -> bool:
        """Must each request be seen?"""
        return bool(self.methods or self.paths) or self.protocol in ("http", "https")

    @property
    def grants(self) -> str:
        """The credential that it lets a request carry: in a TLS that nobody opens, the client's own."""
        return CLIENT if self.protocol in ("tls", "tcp") else self.credential

    def __str__(self) -> str:
        text = f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"
        extra = [self.protocol] if self.protocol != protocol_of(self.port) else []
        extra += [f"methods {'|'.join(self.methods)}"] if self.methods else []
        extra += [f"paths {' '.join(self.paths)}"] if self.paths else []
        extra += [f"credential {self.credential}"] if self.credential else []
        extra += [f"model {self.model}"] if self.model else []
        extra += [f"service {self.service}"] if self.service else []
        extra += [f"host key {self.host_key}"] if self.host_key else []
        extra += [f"price {' '.join(map(str, self.price))}"] if self.price else []
        extra += [name for name in ("trusted", "approve") if getattr(self, name)]
        return f"{text} ({', '.join(extra)})" if extra else text


def protocol_of(port: int) -> str:
    """How a port is read unless a rule says otherwise."""
    return _BY_PORT.get(port, "tcp")


def parse_target(text: str) -> tuple[str, int]:
    """Host and port of a rule's short form.

    Raises:
        ValueError: with the problem.
    """
    if text.startswith("["):
        host, closed, rest = text[1:].partition("]")
        if not closed or (rest and not rest.startswith(":")):
            raise ValueError("an address range such as [fd00::/8]:443")
        port = rest[1:]
    else:
        host, _, port = text.partition(":")
    if port and (not port.isascii() or not port.isdigit() or len(port) > 5):
        raise ValueError("a port is a number from 1 to 65535")
    return parse_host(host), parse_port(int(port)) if port else 443


def parse_port(port: int) -> int:
    """Raises ValueError."""
    if not 0 < port < 65_536:
        raise ValueError("a port is a number from 1 to 65535")
    return port


def parse_host(text: str) -> str:
    """A name in lower case, ``*.parent`` of at least two labels, or a range; raises ValueError with the problem."""
    if "/" in text or ":" in text:
        import ipaddress

        try:
            return str(ipaddress.ip_network(text))
        except ValueError as error:
            raise ValueError(f"not a range of addresses: {error}") from None
    name = text.lower().removesuffix(".")
    plain = name.removeprefix("*.")
    labels = plain.split(".")
    if len(name) > 253 or not all(is_label(label) for label in labels):
        raise ValueError("a host such as example.com or *.example.com (other alphabets as xn--…)")
    if labels[-1].isdigit() or labels[-1].startswith("0x"):
        raise ValueError("an address is written as a range: 192.0.2.1/32")
    if name != plain and len(labels) < 2:
        raise ValueError("a star needs at least two labels behind it")
    return name


def is_label(label: str) -> bool:
    """One label of a host name (underscores as they occur in practice)."""
    return 0 < len(label) <= 63 and set(label) <= _LABEL and label[0] != "-" and label[-1] != "-"


def covers(pattern: str, host: str) -> bool:
    """Does a rule's host cover `host`: a name in lower case, or an address as `ipaddress` writes it?"""
    if pattern.startswith("*."):
        return len(host) > len(pattern) - 1 and host.endswith(pattern[1:]) and _address(host) is None
    if "/" not in pattern:
        return pattern == host
    address = _address(host)
    if address is None:
        return False
    import ipaddress

    network = ipaddress.ip_network(pattern)
    return address.version == network.version and address in network


@lru_cache(maxsize=1024)
def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    if not (text[-1:].isdigit() or ":" in text):
        return None
    import ipaddress

    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def is_address(host: str) -> bool:
    """Is `host` an address and no name?"""
    return _address(host) is not None


def rules_for(table: Iterable[NetRule], host: str, port: int) -> tuple[NetRule, ...]:
    """The rules of one list that cover a destination, whatever is asked of it."""
    return tuple(rule for rule in table if rule.port == port and not rule.service and covers(rule.host, host))


def admits(rule: NetRule, protocol: str, method: str, path: str) -> bool:
    """Does a rule that covers the destination admit this request of it ("" where none was seen)?"""
    # Who may have a TLS of their own may have one that is opened: it shows more and carries less.
    if (rule.protocol != protocol and (rule.protocol, protocol) != ("tls", "https")) or (rule.requests and not method):
        return False
    if rule.methods and method not in rule.methods:
        return False
    return not rule.paths or _path_admitted(rule.paths, path)


def credentials(lists: Iterable[Iterable[NetRule]], operation: Any) -> tuple[str, ...]:
    """The credentials that every list lets this request carry: `CLIENT` alone, or names; two are an unclear policy."""
    common: set[str] | None = None
    for rules in lists:
        granted = {rule.grants for rule in _admitting(rules, operation)} - {""}
        common = granted if common is None else common & granted
    named = sorted((common or set()) - {CLIENT})
    return tuple(named) if named or CLIENT not in (common or ()) else (CLIENT,)


def _admitting(rules: Iterable[NetRule], operation: Any) -> list[NetRule]:
    asked = operation.protocol, operation.method, operation.path
    return [rule for rule in rules_for(rules, operation.host, operation.port) if admits(rule, *asked)]


def vouched(lists: Iterable[Iterable[NetRule]], operation: Any) -> bool:
    """Does every list have a trusted rule that admits this connection?"""
    return all(any(rule.trusted for rule in _admitting(rules, operation)) for rules in lists)


SEARCHES = ("searxng", "brave", "tavily")
FORGES = ("github", "gitlab")
GIT = ("git",)


def service(
    lists: Iterable[Iterable[NetRule]], kinds: tuple[str, ...], host: str = "", path: str = "", *, ssh: bool = False
) -> NetRule | None:
    """The service of these `kinds` that every list names alike, the first by name; None when there is none.

    Args:
        host: of a remote: the rule has to be for it ("" for any).
        path: of a repository, with a slash before it: the rule's paths have to cover it.
        ssh: the rule has to be one with a host key, or to have none.
    """
    common: dict[tuple[object, ...], NetRule] | None = None
    for rules in lists:
        found: dict[tuple[object, ...], NetRule] = {
            (rule.service, rule.host, rule.port, rule.protocol, rule.credential, rule.host_key): rule
            for rule in rules
            if rule.service in kinds
            and bool(rule.host_key) is ssh
            and (not host or covers(rule.host, host))
            and (not path or not rule.paths or _path_admitted(rule.paths, path))
        }
        common = found if common is None else {key: rule for key, rule in common.items() if key in found}
    return common[min(common, key=str)] if common else None


def _path_admitted(globs: tuple[str, ...], path: str) -> bool:
    plain = path.partition("?")[0]
    names = plain.lstrip("/").split("/")
    # What a server might read in another way is on no list.
    if not plain.startswith("/") or "\\" in plain or "//" in plain or {".", ".."} & set(names) or _hidden(plain):
        return False
    return path_set(frozenset(f"/{glob.lstrip('/')}" for glob in globs), False).find(plain[1:] or ".") is not None


def _hidden(path: str) -> bool:
    """Is there a percent-encoding that a server might read as structure: a slash, a dot, a control character?"""
    for part in path.split("%")[1:]:
        try:
            value = int(part[:2], 16)
        except ValueError:
            return True
        if len(part) < 2 or value < 0x20 or value in (0x25, 0x2E, 0x2F, 0x5C, 0x7F):
            return True
    return False


def leq_rule(a: NetRule, b: NetRule) -> bool:
    """Whatever `a` admits, `b` admits, as permissively. Sound, not complete."""
    host = a.host == b.host or (b.host.startswith("*.") and "/" not in a.host and a.host.endswith(b.host[1:]))
    if not host and "/" in a.host and "/" in b.host:
        import ipaddress

        inner, outer = ipaddress.ip_network(a.host), ipaddress.ip_network(b.host)
        host = inner.version == outer.version and inner.subnet_of(outer)  # type: ignore[arg-type]
    return (
        host
        and a.port == b.port
        and (a.protocol == b.protocol or (a.protocol, b.protocol) == ("https", "tls"))
        and a.grants in ("", b.grants)
        and (a.service, a.host_key) == (b.service, b.host_key)
        and (not b.model or (a.model, a.price) == (b.model, b.price))
        and (not b.methods or (bool(a.methods) and set(a.methods) <= set(b.methods)))
        and (not b.paths or (bool(a.paths) and set(a.paths) <= set(b.paths)))
        and (a.requests or not b.requests)
        and (b.trusted or not a.trusted)
        and (a.approve or not b.approve)
    )


def leq_rules(a: Iterable[NetRule], b: Iterable[NetRule]) -> bool:
    """One list at most as permissive as another: each rule is covered by one of the other's."""
    other = tuple(b)
    return all(any(leq_rule(mine, theirs) for theirs in other) for mine in a)
