"""From a name that was allowed to a connected socket: looked up once, every answer checked, exactly these connected to.

 1. A name is plain ASCII labels, or it is not looked up: no IDNA, and none of the spellings of an IPv4 address
    (`0x7f.1`, `2130706433`) that the C library would take for one.
 2. Every answer must be public, or in a range that a rule names. One that is not refuses them all: a name that
    answers with both is rebinding, or about to.
 3. The socket's peer is compared with what was checked. There is no second look-up.

Promises: bounded time and answers; every failure is an `UpstreamError` with a reason of `REASONS`; no socket is left
open behind an error or a cancellation. Relies on: the host's own resolver configuration (its hosts file and search list
are its person's). Does not: decide whether a name may be reached, speak TLS, or use IPv6 scopes.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
from collections.abc import Iterable, Sequence

from nucleus.errors import NoEgressError
from nucleus.network import addresses as _addresses

RESOLVE_S = 5.0
CONNECT_S = 10.0
STAGGER_S = 0.25  # RFC 8305 §5, "Connection Attempt Delay"
ANSWERS = 16  # that are used of one look-up
NAME_BYTES = 253
KEEPALIVE_S = 60
REASONS = ("refused", "unreachable", "timeout", "name_not_found", "not_public")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class UpstreamError(NoEgressError):
    """No connection came of it. `reason` is one of `REASONS`; the rule is ``network.<reason>``."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message, rule=f"network.{reason}")
        self.reason = reason


async def resolve(name: str, port: int, *, timeout: float = RESOLVE_S) -> list[Address]:  # noqa: ASYNC109
    """The addresses of `name`, in the host's order (RFC 6724), without duplicates, at most `ANSWERS`.

    Args:
        name: a host name in ASCII; an IP literal in its usual spelling is its own answer.
        port: for the look-up's hints alone.
        timeout: seconds.

    Raises:
        UpstreamError: ``name_not_found``, ``timeout``, or ``unreachable`` where the resolver itself is.
    """
    if ":" in name or name.replace(".", "").isdigit():
        return [_parsed(name, name)]
    _check_name(name)  # 1
    loop = asyncio.get_running_loop()
    # A look-up runs in a thread that cannot be stopped: it is left to the C library's own time-out.
    looking = asyncio.ensure_future(
        loop.getaddrinfo(name.encode("ascii"), port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    )
    try:
        async with asyncio.timeout(timeout):
            answers = await looking
    except TimeoutError:
        raise UpstreamError("timeout", f"no answer for the name {name} in {timeout:g} s") from None
    except socket.gaierror as error:
        if error.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)):
            raise UpstreamError("name_not_found", f"there is no host named {name}") from None
        raise UpstreamError("unreachable", f"{name} cannot be looked up: {error.strerror}") from None
    except (OSError, UnicodeError) as error:
        raise UpstreamError("unreachable", f"{name} cannot be looked up: {error}") from None
    found = dict.fromkeys(_parsed(answer[4][0], name) for answer in answers)
    return list(found)[:ANSWERS]


def check(found: Sequence[Address | str], allowed_ranges: Iterable[str] = ()) -> None:
    """Step 2.

    Args:
        found: the answers.
        allowed_ranges: CIDR ranges (``10.0.0.0/8``) or single addresses that a rule for this very port names.

    Raises:
        UpstreamError: ``not_public`` if one of them is neither public nor in a range; ``name_not_found`` without any.
    """
    if not found:
        raise UpstreamError("name_not_found", "the name has no address")
    ranges = [ipaddress.ip_network(text, strict=False) for text in allowed_ranges]
    for item in found:
        address = ipaddress.ip_address(item) if isinstance(item, str) else item
        if any(address.version == listed.version and address in listed for listed in ranges):
            continue
        reason = _addresses.is_public(str(address))
        if reason is not None:
            raise UpstreamError("not_public", f"its address {address} is not public: {reason}")


async def connect(
    found: Sequence[Address | str],
    port: int,
    timeout: float = CONNECT_S,  # noqa: ASYNC109 (its own error, not TimeoutError)
) -> socket.socket:
    """A connected, non-blocking socket to one of `found` (RFC 8305: families in turn, an attempt each `STAGGER_S`).

    Args:
        found: addresses that `check` has let through.
        port: TCP port.
        timeout: seconds for all attempts together.

    Raises:
        UpstreamError: ``refused``, ``timeout`` or ``unreachable``: the first of these that an attempt met.
    """
    if not found:
        raise UpstreamError("name_not_found", "the name has no address")
    order = _in_turn([ipaddress.ip_address(item) if isinstance(item, str) else item for item in found])
    tasks: list[asyncio.Task[socket.socket]] = []
    winner: socket.socket | None = None
    try:
        async with asyncio.timeout(timeout):
            winner = await _race(order, port, tasks)
    except TimeoutError:
        pass
    finally:
        for task in tasks:
            task.cancel()
            task.add_done_callback(lambda done: _close_unless(done, winner))
    if winner is None:
        await asyncio.wait(tasks)
        raise _failure(tasks, order, port)
    return winner


def _close_unless(task: asyncio.Task[socket.socket], winner: socket.socket | None) -> None:
    """An attempt that came second, or that nobody waits for any more."""
    if not task.cancelled() and task.exception() is None and task.result() is not winner:
        task.result().close()


async def _race(order: list[Address], port: int, tasks: list[asyncio.Task[socket.socket]]) -> socket.socket | None:
    """The first attempt that connects; None once all have failed. `tasks` collects them, for who cleans up."""
    waiting: set[asyncio.Task[socket.socket]] = set()
    rest = list(order)
    while rest or waiting:
        if rest:
            task = asyncio.ensure_future(_attempt(rest.pop(0), port))
            tasks.append(task)
            waiting.add(task)
        pause = STAGGER_S if rest else None
        done, waiting = await asyncio.wait(waiting, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if task.exception() is None:
                return task.result()
    return None


async def _attempt(address: Address, port: int) -> socket.socket:
    sock = socket.socket(
        socket.AF_INET if address.version == 4 else socket.AF_INET6,
        socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
    )
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_S)
        await asyncio.get_running_loop().sock_connect(sock, (str(address), port))
        if ipaddress.ip_address(sock.getpeername()[0]) != address or sock.getpeername() == sock.getsockname():
            # The second is TCP's simultaneous open with oneself, on a free ephemeral port of this host.
            raise OSError(errno.ECONNREFUSED, "connected elsewhere")
    except BaseException:
        sock.close()
        raise
    return sock


def _failure(tasks: list[asyncio.Task[socket.socket]], order: list[Address], port: int) -> UpstreamError:
    where = f"{order[0]} port {port}" if len(order) == 1 else f"any of {len(order)} addresses, port {port}"
    errors = [task.exception() for task in tasks if not task.cancelled()]
    codes = {error.errno for error in errors if isinstance(error, OSError)}
    if codes & {errno.ECONNREFUSED, errno.ECONNRESET}:
        return UpstreamError("refused", f"connection refused by {where}")
    if errno.ETIMEDOUT in codes or any(task.cancelled() for task in tasks):
        return UpstreamError("timeout", f"no answer from {where}")
    return UpstreamError("unreachable", f"no way to {where}")


def _in_turn(found: list[Address]) -> list[Address]:
    """The two families in turn, each in its own order, the first answer's first."""
    first = [address for address in found if address.version == found[0].version]
    second = [address for address in found if address.version != found[0].version]
    order: list[Address] = []
    while first or second:
        order += first[:1] + second[:1]
        first, second = first[1:], second[1:]
    return order[:ANSWERS]


def _check_name(name: str) -> None:
    """Step 1."""
    labels = name.split(".")
    plain = all(
        0 < len(label) <= 63 and label.isascii() and label.replace("-", "").replace("_", "").isalnum()
        for label in labels
    )
    last = labels[-1].lower()
    if not plain or len(name) > NAME_BYTES or last.isdigit() or last.startswith("0x"):
        raise UpstreamError("name_not_found", "that is not the name of a host")


def _parsed(text: object, name: str) -> Address:
    try:
        address = ipaddress.ip_address(str(text))
    except ValueError:
        raise UpstreamError("name_not_found", f"{name!r} is not an address") from None
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None:
        raise UpstreamError("not_public", f"its address {address} is not public: scoped to one link")
    return address
