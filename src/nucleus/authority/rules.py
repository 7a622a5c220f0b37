"""Network rules of a running pod, changed by a person: on record first, then told to the pod's gate.

 1. Who asks holds an approver's channel: a local user, stamped by the builder. An agent's channels are none.
 2. The change is one short rule (``host``, ``host:port``), read strictly here; a gate reads it once more.
 3. `network.changed` is durable before the gate hears of it; a change that cannot be recorded does not happen.

Promises: a pod without a gate, or one whose gate does not answer, gets an error and not silence.
Does not: keep rules; they are the gate's, and end with the pod.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nucleus.authority import fields
from nucleus.errors import InvalidError, NucleusError

if TYPE_CHECKING:
    from nucleus.authority.batch import Batch
    from nucleus.authority.peers import Channel

VERBS = ("allow", "deny")
RULE_BYTES = 300
ASKED = 64  # states that are waited for at a time
OPS = frozenset(("net_change", "net_state"))


class Rules:
    """The gates by their pods, and who waits for what they say."""

    def __init__(self) -> None:
        self.gates: dict[str, Channel] = {}
        self._waiting: dict[int, tuple[Channel, int, str]] = {}
        self._next = 0

    def approver(self, channel: Channel, ident: int, header: dict[str, Any], batch: Batch) -> None:
        """Steps 1 to 3. Raises InvalidError."""
        if header["op"] == "net_state":
            self._show(channel, ident, header, batch)
            return
        pod, gate = self._gate(header)
        verb, rule = header.get("verb"), fields.text(header, "rule", RULE_BYTES)
        if verb not in VERBS:
            raise InvalidError("a change is allow or deny", rule="network.change")
        host, port = _target(rule)
        trusted = header.get("trusted", False)
        if not isinstance(trusted, bool):
            raise InvalidError("trusted is not true or false", rule="frames.field")
        context = {"change": verb, "host": host, "port": port, "trusted": trusted}
        batch.record("network.changed", pod=pod, principal=f"uid:{channel.uid}", context=context)

        def then(error: NucleusError | None) -> None:
            if error is None and self._wait(channel, ident, pod) is not None:
                gate.send({"id": self._next, "op": "net_change", **context})
            elif error is not None:
                channel.fail(ident, error)

        batch.answer(None, 0, None, recorded=True, then=then)

    def _show(self, channel: Channel, ident: int, header: dict[str, Any], batch: Batch) -> None:
        if "pod" not in header:
            batch.answer(channel, ident, {"pods": sorted(self.gates)})
            return
        pod, gate = self._gate(header)
        if self._wait(channel, ident, pod) is not None:
            gate.send({"id": self._next, "op": "net_state"})

    def _wait(self, channel: Channel, ident: int, pod: str) -> int | None:
        if len(self._waiting) >= ASKED:
            channel.fail(ident, InvalidError("too many questions at a time", rule="network.busy"))
            return None
        self._next += 1
        self._waiting[self._next] = (channel, ident, pod)
        return self._next

    def _gate(self, header: dict[str, Any]) -> tuple[str, Channel]:
        pod = fields.pod(header)
        gate = self.gates.get(pod)
        if gate is None:
            raise InvalidError("no such pod is running", rule="pod.name", next_step="`nucleus net show` lists them.")
        return pod, gate

    def said(self, gate: Channel, ident: int, header: dict[str, Any], batch: Batch) -> None:
        """A gate's answer: ``{number, state}`` or ``{number, error}``."""
        number = header.get("number")
        asked = self._waiting.get(number) if isinstance(number, int) else None
        if not isinstance(number, int) or asked is None or asked[2] != gate.pod:
            raise InvalidError("nobody has asked that", rule="frames.field")
        del self._waiting[number]
        channel, waiting, _ = asked
        if "error" in header:
            channel.fail(waiting, InvalidError(fields.text(header, "error", 2_000), rule="network.change"))
        else:
            batch.answer(channel, waiting, fields.facts(header, "state", 262_144))
        batch.answer(gate, ident, {})

    def lost(self, channel: Channel) -> None:
        """A channel is gone: a gate's askers are told."""
        if self.gates.get(channel.pod) is channel:
            del self.gates[channel.pod]
            for number, (asker, ident, pod) in tuple(self._waiting.items()):
                if pod == channel.pod:
                    del self._waiting[number]
                    asker.fail(ident, InvalidError("the pod has ended", rule="pod.name"))
        for number, (asker, _, _) in tuple(self._waiting.items()):
            if asker is channel:
                del self._waiting[number]


def _target(rule: str) -> tuple[str, int]:
    from nucleus.lattice.network import parse_target  # weight: the lattice, for changes alone

    try:
        return parse_target(rule)
    except ValueError as error:
        raise InvalidError(f"{rule[:100]!r}: {error}", rule="network.change") from None
