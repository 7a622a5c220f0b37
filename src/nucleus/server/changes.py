"""Network rules of this pod that a person changes while it runs, as the authority tells them.

Promises: a change is one rule of ``network.allow`` (in every list of it) or one host of ``hosts.deny``; nothing else of
the policy changes, nothing of it is kept, and what is open is decided again at once by the same function.
Relies on: the authority, which has put the change on record before. Does not: ask anybody: the person has said it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from nucleus.errors import InvalidError, NucleusError
from nucleus.frames import Frame
from nucleus.lattice.network import NetRule, covers, parse_host, parse_port, protocol_of
from nucleus.lattice.policy import Policy
from nucleus.lattice.session import Session
from nucleus.model.decision import Decision, Verdict
from nucleus.model.operation import Base
from nucleus.server.channel import Channel
from nucleus.server.egress import Egress


class Changes:
    """See the module.

    Args:
        authority: where orders come from, and answers go.
        session: holds the policy that is decided by.
        egress: the pod's gateway, None without one.
        decided: the one decision function.
    """

    def __init__(
        self, authority: Channel, session: Session, egress: Egress | None, decided: Callable[[Base], Decision]
    ) -> None:
        self._authority = authority
        self._session = session
        self._egress = egress
        self._decided = decided
        self._tasks: set[asyncio.Task[None]] = set()
        self._one = asyncio.Lock()

    def received(self, frame: Frame) -> None:
        """One order of the authority."""
        task = asyncio.ensure_future(self._answer(frame.header))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, header: dict[str, Any]) -> None:
        said: dict[str, Any]
        try:
            if self._egress is None:
                raise InvalidError("this pod has no gateway: its policy named no way out when it was made")
            async with self._one:
                if header.get("op") == "net_change":
                    said = {"state": await self._change(self._egress, header)}
                else:
                    said = {"state": await self._state(self._egress)}
        except NucleusError as error:
            said = {"error": error.message}
        try:
            self._authority.send({"id": 0, "op": "net_said", "number": header.get("id"), **said})
        except NucleusError:
            return

    async def _change(self, egress: Egress, header: dict[str, Any]) -> dict[str, Any]:
        try:
            host, port = parse_host(str(header.get("host"))), parse_port(int(header.get("port", 0)))
        except ValueError as error:
            raise InvalidError(str(error)) from None
        policy = self._session.policy
        if header.get("change") == "allow":
            changed = widened(policy, host, port, trusted=header.get("trusted") is True)
        else:
            changed = tightened(policy, host, port)
        self._session.change(changed)
        cut = await egress.changed(changed, lambda one: self._decided(one).verdict is not Verdict.DENY)
        return {"changed": changed is not policy, "cut": cut}

    async def _state(self, egress: Egress) -> dict[str, Any]:
        policy = self._session.policy
        lists = [sorted(map(str, rules)) for rules in policy.network]
        return {
            "allow": sorted(lists),
            "deny": sorted(policy.hosts_deny),
            "connections": await egress.connections(),
        }


def widened(policy: Policy, host: str, port: int, *, trusted: bool) -> Policy:
    """The policy with a rule for `host` and `port` in every list, and the host no longer denied by that very name."""
    rule = NetRule(host, port, protocol_of(port), trusted=trusted)
    lists = frozenset(rules | {rule} for rules in policy.network)
    return replace(policy, network=lists, hosts_deny=policy.hosts_deny - {host})


def tightened(policy: Policy, host: str, port: int) -> Policy:
    """The policy without the rules for `host` and `port`; a host that a wider rule covers is denied as a whole."""
    lists = frozenset(
        frozenset(rule for rule in rules if (rule.host, rule.port) != (host, port)) for rules in policy.network
    )
    left = [rule for rules in lists for rule in rules if rule.port == port and covers(rule.host, host)]
    return replace(policy, network=lists, hosts_deny=policy.hosts_deny | {host} if left else policy.hosts_deny)
