"""The gate's side of its gateway: a connection out of the pod is an operation like any other.

 1. The gateway asks (`connect`) before anything leaves: the request goes through the whole pipeline, so it is decided,
    asked for, reserved and on record before the gateway hears `go`.
 2. `go` is the execution: its answer, when the connection (or this part of it) is over, says how much moved.
 3. A gateway that is gone without having answered is charged the whole allowance: what left is not known.

Promises: takes a grant and spends it first; what the gateway says is bounded and typed; a client in the pod that hangs
up withdraws what is still being asked for it. Names that the pod looked up in vain are recorded, few of them.
Relies on: the channel being the one to this pod's gateway, which its builder started and which holds no policy.
Does not: decide, or touch a byte of a connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from nucleus.errors import DeniedError, NoEgressError, NucleusError, OperationError, SandboxError
from nucleus.frames import Frame
from nucleus.lattice.network import CLIENT, FORGES, GIT, SEARCHES, NetRule, credentials, service
from nucleus.lattice.policy import Policy
from nucleus.limits import LIMITS
from nucleus.model.grant import Grant
from nucleus.model.operation import Connect, CreatePr, GitPush, WebFetch, WebSearch
from nucleus.model.principal import Principal
from nucleus.model.receipt import Meter, Outcome, Redirect
from nucleus.network.forges import kind_of, parse_remote
from nucleus.server.channel import Channel
from nucleus.server.driver import Driver
from nucleus.server.wire import error_from, error_object, parse_connect

CONNECTIONS = 256  # asked for at a time
FIELDS = ("conn", "host", "port", "protocol", "inner", "method", "path", "part", "upper", "fault")
ENDED = frozenset(("closed", "more", "refused", "unreachable", "cut", "idle", "limit", "failed"))
UNLISTED = 64  # names looked up in vain that one pod's log holds


def gone() -> NucleusError:
    """The error of every connection once the gateway has ended."""
    return NoEgressError("the pod's gateway is gone", rule="network.gateway")


class Egress:
    """The gateway of one pod, as its gate sees it.

    Args:
        channel: the gateway; `serve` has to be called before it asks for anything.
        monotonic_ns: the clock of the meter.
    """

    def __init__(self, channel: Channel, monotonic_ns: Callable[[], int]) -> None:
        self._channel = channel
        self._now = monotonic_ns
        self._policy: Policy | None = None
        self._asked: dict[int, asyncio.Task[None]] = {}
        self._open: dict[int, Connect] = {}  # what has been let go, by the gateway's number
        self._unlisted: set[str] = set()

    async def configure(self, policy: Policy) -> None:
        """Tell the gateway the rules: for names and protocols, not for decisions."""
        self._policy = policy
        frame = await self._channel.call({"op": "configure", "rules": rules_data(policy)})
        if not isinstance(frame.header.get("ok"), dict):
            raise error_from(frame.header.get("error"))

    def serve(self, frame: Frame, driver: Driver, principal: Principal) -> None:
        """One request of the gateway."""
        op, ident = frame.header.get("op"), frame.header.get("id")
        conn = frame.header.get("conn")
        if op == "withdraw" and isinstance(conn, int):
            if (task := self._asked.get(conn)) is not None:
                task.cancel()
        elif op == "connect" and isinstance(ident, int) and isinstance(conn, int):
            before = self._asked.get(conn)
            if (before is not None and not frame.header.get("part")) or len(self._asked) >= CONNECTIONS:
                error = NoEgressError("too many connections at a time", rule="network.connections")
                self._channel.send({"id": ident, "error": error_object(error)})
                return
            task = asyncio.ensure_future(self._connect(ident, frame.header, driver, principal, before))
            self._asked[conn] = task
            task.add_done_callback(lambda done: self._asked.pop(conn) if self._asked.get(conn) is done else None)
        elif op == "unlisted":
            asyncio.ensure_future(self._note(frame.header.get("names"), driver, principal))  # noqa: RUF006

    async def _connect(
        self,
        ident: int,
        header: dict[str, Any],
        driver: Driver,
        principal: Principal,
        before: asyncio.Task[None] | None,
    ) -> None:
        if before is not None:  # the part before this one is still being settled and put on record
            await asyncio.wait((before,))
        raw = {"kind": "connect", **{name: header[name] for name in FIELDS if name in header}}
        try:
            reply = await driver.run(raw, lambda: principal, parse_connect)
        except NucleusError as error:
            answer: dict[str, Any] = {"error": error_object(error)}
        else:
            answer = {"ok": {}}
            if reply.status != "ok":
                text = {"code": reply.status, "message": reply.reason, "rule": reply.rule, "next_step": reply.next_step}
                answer = {"error": text}
        try:
            self._channel.send({"id": ident, **answer})
        except NucleusError:
            return

    async def _note(self, names: object, driver: Driver, principal: Principal) -> None:
        """Put names that no rule covers on record: a person who asks why is told the line to add."""
        for name in names if isinstance(names, list) else ():
            if not isinstance(name, str) or name in self._unlisted or len(self._unlisted) >= UNLISTED:
                continue
            self._unlisted.add(name)
            raw = {"kind": "connect", "conn": 0, "host": name[:253], "port": 443, "protocol": "tls"}
            await driver.run(raw, lambda: principal, parse_connect)

    async def carry(self, grant: Grant, operation: Connect, meter: Meter) -> Outcome:
        """Let one connection, or one part of it, go; returns when it is over.

        Raises:
            OperationError: it came to nothing (``network.refused``, ``network.unreachable``, ...).
            NoEgressError: the gateway is gone.
        """
        grant.spend(operation)
        if operation.conn == 0 or self._policy is None:
            raise OperationError("no such connection", rule="network.conn")
        named = credentials(self._policy.network, operation)
        if len(named) > 1:  # no decision: which of two secrets goes out is not ours to guess
            raise OperationError(f"the policy names several credentials: {', '.join(named)}", rule="network.credential")
        credential = "".join(named)
        started = self._now()
        before = meter.bytes_moved
        self._open[operation.conn] = operation
        # Until the gateway says better, all that it was allowed counts as moved.
        meter.bytes_moved = before + LIMITS.connection_bytes
        meter.extra = operation.upper
        try:
            order = {"op": "go", "conn": operation.conn, "part": operation.part, "credential": credential}
            _, future = self._channel.start(order)
            try:
                frame = await asyncio.shield(future)
            except asyncio.CancelledError:
                self._channel.send({"op": "cut", "conn": operation.conn, "id": 0})
                with suppress(TimeoutError, NucleusError):
                    async with asyncio.timeout(LIMITS.grace_ns / 1e9):
                        self._measured(await asyncio.shield(future), meter, before)
                raise
        finally:
            self._open.pop(operation.conn, None)
            meter.duration_ns += self._now() - started
        ok = self._measured(frame, meter, before)
        ended = ok.get("ended")
        if ended not in ENDED:
            raise SandboxError("the gateway broke the protocol", rule="network.protocol")
        result = {"up": ok["up"], "down": ok["down"], "ended": ended}
        result |= {"credential": credential} if credential not in ("", CLIENT) else {}
        if ended in ("refused", "unreachable", "failed"):
            reason = ok.get("reason")
            raise OperationError(
                str(reason)[:200] if isinstance(reason, str) else "the connection failed", rule=f"network.{ended}"
            )
        return Outcome(result)

    async def fetch(self, grant: Grant, operation: WebFetch, meter: Meter) -> Outcome | Redirect:
        """One HTTP request, carried by the gateway; a redirect comes back, to be decided as the request that it is."""
        grant.spend(operation)
        request = {
            "url": operation.url, "method": operation.method, "limit": operation.limit,
            "timeout_ms": operation.timeout_ms, "raw": operation.raw,
            "headers": {"Content-Type": operation.content_type} if operation.body else {},
        }  # fmt: skip
        frame = await self._fetched({"op": "fetch", "request": request}, operation.body.encode(), operation, meter)
        ok = frame.header.get("ok")
        if not isinstance(ok, dict):
            raise error_from(frame.header.get("error"))
        status, kind, location = ok.get("status"), ok.get("content_type"), ok.get("location")
        if type(status) is not int or not isinstance(kind, str) or not isinstance(location, str):
            raise SandboxError("the gateway broke the protocol", rule="network.protocol")
        if location:
            again = {"method": operation.method, "body": operation.body}
            if status in (301, 302, 303) and operation.method not in ("GET", "HEAD"):
                again = {"method": "GET", "body": ""}  # RFC 9110 §15.4: as every client does
            return Redirect("url", location, again)
        content = frame.body[: operation.limit + operation.limit // 2 if operation.raw else operation.limit]
        return Outcome(
            {
                "status": status, "url": operation.url, "content_type": kind[:200],
                "content": content.decode("utf-8", "replace"), "encoding": str(ok.get("text", "none"))[:8],
                "bytes": ok.get("bytes") if type(ok.get("bytes")) is int else 0,
                "truncated": bool(ok.get("truncated")),
            }
        )  # fmt: skip

    async def _fetched(self, header: dict[str, Any], body: bytes, operation: WebFetch, meter: Meter) -> Frame:
        started = self._now()
        meter.bytes_moved += len(body)
        ident, future = self._channel.start(header, body)
        try:
            async with asyncio.timeout((operation.timeout_ms * 1_000_000 + LIMITS.grace_ns) / 1e9):
                frame = await future
        except TimeoutError:
            self._channel.send({"op": "cancel", "target": ident, "id": 0})
            raise OperationError("the server took too long", rule="network.timeout") from None
        except asyncio.CancelledError:
            self._channel.send({"op": "cancel", "target": ident, "id": 0})
            raise
        finally:
            meter.duration_ns += self._now() - started
        meter.bytes_moved += len(frame.body)
        return frame

    async def search(self, grant: Grant, operation: WebSearch, meter: Meter) -> Outcome:
        """A web search, by the provider that the policy names."""
        grant.spend(operation)
        rule = self._service(SEARCHES)
        order = {
            "op": "search", "provider": rule.service, "base": _base(rule), "query": operation.query,
            "limit": RESULTS, "credential": rule.credential,
        }  # fmt: skip
        ok = await self._asked_of(order, b"", meter)
        found = ok.get("results")
        if not isinstance(found, list) or len(found) > RESULTS:
            raise SandboxError("the gateway broke the protocol", rule="network.protocol")
        meter.matches += len(found)
        return Outcome({"results": [{name: str(one[name]) for name in ("title", "url", "snippet")} for one in found]})

    async def pull(self, grant: Grant, operation: CreatePr, meter: Meter) -> Outcome:
        """A pull request, or GitLab's merge request, in the repository that was decided."""
        grant.spend(operation)
        rule = self._forge(operation.url)
        order = {
            "op": "pull", "kind": rule.service, "base": _base(rule), "remote": operation.url,
            "title": operation.title, "head": operation.head, "target": operation.base, "draft": operation.draft,
            "credential": rule.credential,
        }  # fmt: skip
        ok = await self._asked_of(order, operation.body.encode(), meter)
        if type(ok.get("number")) is not int or not isinstance(ok.get("url"), str):
            raise SandboxError("the gateway broke the protocol", rule="network.protocol")
        return Outcome({"number": ok["number"], "url": ok["url"][:2_048], "repository": operation.url})

    async def opened_push(self, operation: GitPush) -> str:
        """A local endpoint that lets exactly this update through; `ended_push` closes it."""
        where = parse_remote(operation.url)
        rule = self.git_rule(operation.url)
        order = {
            "op": "push", "host": where.host, "port": rule.port, "protocol": rule.protocol,
            "path": f"/{where.path}.git",
            "updates": [[operation.target, operation.old, operation.new]], "credential": rule.credential,
            "host_key": rule.host_key,
        }  # fmt: skip
        ok = (await self._channel.call(order)).header.get("ok")
        if not isinstance(ok, dict) or not isinstance(ok.get("endpoint"), str):
            raise SandboxError("the gateway broke the protocol", rule="network.protocol")
        return str(ok["endpoint"])

    async def ended_push(self, endpoint: str, meter: Meter) -> dict[str, Any]:
        """What went through it: ``{sent, status, reason}``."""
        ok = (await self._channel.call({"op": "push_end", "endpoint": endpoint})).header.get("ok")
        if not isinstance(ok, dict) or not all(type(ok.get(name)) is int for name in ("up", "down", "status")):
            raise SandboxError("the gateway broke the protocol", rule="network.protocol")
        meter.bytes_moved += max(0, ok["up"]) + max(0, ok["down"])
        return ok

    def git_rule(self, url: str) -> NetRule:
        """The policy's rule for pushing to a remote. Raises DeniedError, InvalidError."""
        where = parse_remote(url)
        lists = self._policy.network if self._policy is not None else ()
        rule = service(lists, GIT, where.host, f"/{where.path}", ssh=True) if where.ssh else None
        # A remote by SSH may be pushed to over HTTPS, where that is what the policy has.
        rule = rule or self._service(GIT, where.host, f"/{where.path}")
        if where.port != rule.port and (not where.ssh or rule.host_key):
            raise DeniedError("the remote's port is not the rule's", rule="network.service")
        return rule

    def _forge(self, url: str) -> NetRule:
        """The policy's rule for pull requests in a remote's repository."""
        where = parse_remote(url)
        known = kind_of(where.host)
        rule = self._service(FORGES, "", f"/{where.path}")
        # Whose API it is: the known forges' own, or the same host's.
        if rule.host != where.host and (known is None or rule.host != known[1].split("/")[2]):
            raise DeniedError(
                "the remote is not at the forge that the policy names",
                rule="network.service",
                next_step=f"Add {{service: github, host: {where.host}, credential: NAME}} to `network.allow`.",
            )
        return rule

    def pull_rule(self, url: str) -> NetRule:
        """As `git_rule`, for pull requests."""
        return self._forge(url)

    def _service(self, kinds: tuple[str, ...], host: str = "", path: str = "") -> NetRule:
        found = service(self._policy.network, kinds, host, path) if self._policy is not None else None
        if found is None:
            what = f"{host}{path}" if path else " or ".join(kinds)
            raise DeniedError(
                f"the policy names no service for {what}",
                rule="network.service",
                next_step=f"Add {{service: {kinds[0]}, host: {host or 'HOST'}, credential: NAME"
                + (f', paths: ["{path}"]' if path else "")
                + "} to `network.allow`.",
            )
        return found

    async def _asked_of(self, order: dict[str, Any], body: bytes, meter: Meter) -> dict[str, Any]:
        started = self._now()
        ident, future = self._channel.start(order, body)
        try:
            frame = await future
        except asyncio.CancelledError:
            self._channel.send({"op": "cancel", "target": ident, "id": 0})
            raise
        finally:
            meter.duration_ns += self._now() - started
        ok = frame.header.get("ok")
        if not isinstance(ok, dict):
            raise error_from(frame.header.get("error"))
        moved = ok.get("bytes")
        meter.bytes_moved += moved if type(moved) is int and 0 <= moved < 1 << 40 else 0
        return ok

    def _measured(self, frame: Frame, meter: Meter, before: int) -> dict[str, Any]:
        ok = frame.header.get("ok")
        if not isinstance(ok, dict):
            raise error_from(frame.header.get("error"))
        moved = [ok.get(name) for name in ("up", "down")]
        extra = ok.get("extra", 0)
        if not all(type(count) is int and 0 <= count < 1 << 50 for count in (*moved, extra)):
            raise SandboxError("the gateway broke the protocol", rule="network.protocol")
        meter.bytes_moved = before + ok["up"] + ok["down"]
        meter.extra = extra
        return ok

    async def changed(self, policy: Policy, still: Callable[[Connect], bool]) -> int:
        """Other rules: names and protocols are told anew, and what is open and not allowed any more is cut.

        Returns how many connections were cut.
        """
        await self.configure(policy)
        gone = [conn for conn, operation in self._open.items() if not still(operation)]
        for conn in gone:
            self._channel.send({"op": "cut", "conn": conn, "id": 0})
        return len(gone)

    async def connections(self) -> list[dict[str, Any]]:
        """What is open, as the gateway says."""
        ok = (await self._channel.call({"op": "status"})).header.get("ok")
        found = ok.get("connections") if isinstance(ok, dict) else None
        return [one for one in found if isinstance(one, dict)][:CONNECTIONS] if isinstance(found, list) else []

    def close(self) -> None:
        """Close the channel: the gateway ends, and every connection with it."""
        self._channel.close()


RESULTS = 10  # of a search


def carried(policy: Policy) -> frozenset[str]:
    """The kinds of operations that this policy's gateway carries."""
    kinds = {"web_search": SEARCHES, "git_push": GIT, "create_pr": FORGES}
    found = {kind for kind, names in kinds.items() if service(policy.network, names) is not None}
    found |= {"git_push"} if service(policy.network, GIT, ssh=True) is not None else set()
    return frozenset(("connect", "web_fetch", *found))


def _base(rule: NetRule) -> str:
    """The base URL of a service's API."""
    scheme, usual = ("https", 443) if rule.protocol == "https" else ("http", 80)
    base = f"{scheme}://{rule.host}" + ("" if rule.port == usual else f":{rule.port}")
    if rule.service == "gitlab":
        return f"{base}/api/v4"
    # GitHub's own API is a host by itself; an Enterprise server's is below its web pages.
    return f"{base}/api/v3" if rule.service == "github" and rule.host != "api.github.com" else base


ENDPOINT = "model.internal"  # the local endpoint of a model's API is <api>.model.internal
PLACEHOLDER = "nucleus"  # what a client in the pod has for a key: it is taken away, and the host's put in its place


def outward_facts(policy: Policy) -> dict[str, Any]:
    """What the builder has to know of a policy's ways out.

    Returns:
        ``opens``: hosts whose TLS the gateway opens; ``credentials``: names that it may fetch; ``env``: what programs
        in the pod are told of their model's API.
    """
    every = {rule for rules in policy.network for rule in rules}
    rules = {rule for rule in every if not rule.service}
    named = {rule.credential for rule in every} - {"", CLIENT}
    env: dict[str, str] = {}
    for api in sorted({rule.model for rule in rules} - {""}):
        base = f"http://{api}.{ENDPOINT}"
        env |= {f"{api.upper()}_BASE_URL": base if api == "anthropic" else f"{base}/v1"}
        env |= {f"{api.upper()}_API_KEY": PLACEHOLDER}
    opens = {rule.host for rule in rules if rule.protocol == "https"}
    return {"opens": sorted(opens), "credentials": sorted(named), "env": env}


def rules_data(policy: Policy) -> list[list[dict[str, Any]]]:
    """The network rules as the gateway gets them: each list, sorted."""
    lists = [sorted(rules, key=str) for rules in policy.network]
    return [[_rule_data(rule) for rule in rules if not rule.service] for rules in sorted(lists, key=str)]


def _rule_data(rule: NetRule) -> dict[str, Any]:
    fields = ("host", "port", "protocol", "model", "price")
    return {name: getattr(rule, name) for name in fields}
