"""The memory of one session: what it has seen, and which destinations it knows. One per gate, fed by the pipeline.

 1. `facts` goes into every `Context`: the decision sees what was shown so far.
 2. `before` is called once the intent is on record and before the operation runs: exposure first, then the effect.
 3. `after` learns destinations from what came back, only where that is trusted:
    a tool without an untrusted leg, while nothing outside was changed after untrusted content was read; or the
    workspace, where the user vouches for it and the agent has not written to it. The agent's own words, handed back in
    an answer, are not learnt.

Promises: only grows; a session that was restored learns nothing from a workspace.
Does not: decide, or persist (the record of the intent does: `Exposure.to_data`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nucleus.lattice import capability as cap
from nucleus.lattice.exposure import NOTHING, Exposure, exposes, legs_of, source_of, writes_workspace
from nucleus.lattice.policy import Policy
from nucleus.lattice.provenance import Knowledge, values, words

if TYPE_CHECKING:  # pydantic's weight, for a name
    from nucleus.model.operation import Base


class Session:
    """See the module.

    Args:
        policy: the pod's.
        task: the user's own task text.
        trusted_workspace, egress: as in `Context`.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        task: str = "",
        trusted_workspace: bool = False,
        egress: bool = False,
    ) -> None:
        self._policy = policy
        self._trusted = trusted_workspace
        self._egress = egress
        self._seen = NOTHING
        self._written = False
        self._knowledge = Knowledge(task)

    @property
    def policy(self) -> Policy:
        """The pod's."""
        return self._policy

    @property
    def seen(self) -> Exposure:
        """What the session has seen."""
        return self._seen

    @property
    def knowledge(self) -> Knowledge:
        """Which destinations it knows."""
        return self._knowledge

    def restore(self, seen: Exposure) -> None:
        """What earlier pods of this session, or a parent, have seen; before the first operation."""
        self._seen = self._seen.join(seen)
        self._written = self._written or seen != NOTHING

    def ahead(self, operation: Base) -> Exposure:
        """What `operation` adds to what has been seen; nothing when it adds nothing new."""
        adds = exposes(self._policy, operation, self._seen, trusted_workspace=self._trusted, egress=self._egress)
        return NOTHING if self._seen.join(adds) == self._seen else adds

    def before(self, operation: Base) -> None:
        """Step 2: `operation` is about to run."""
        self._seen = self._seen.join(self.ahead(operation))
        self._written = self._written or writes_workspace(operation)

    def after(self, operation: Base, answer: object) -> None:
        """Step 3: `operation` answered `answer`: text, or plain data whose leaves are the text."""
        if self._policy.trifecta in ("static", "session") or not self._trusts(operation):
            return
        mine: frozenset[str] = frozenset()
        if self._seen.untrusted:
            mine = frozenset(
                word for value in self._words_of(operation) if self._knowledge.origin(value) is None
                for word in words(value)
            )  # fmt: skip
        text = answer if isinstance(answer, str) else "\n".join(values(answer))
        self._knowledge.learn(source_of(operation), text, mine)

    def _trusts(self, operation: Any) -> bool:
        if operation.kind == "tool":
            legs = legs_of(self._policy, operation, trusted_workspace=self._trusted)
            return not legs & cap.UNTRUSTED and not self._seen.steered
        looks = operation.kind in ("read", "glob", "grep")
        return looks and self._trusted and not self._written

    @staticmethod
    def _words_of(operation: Base) -> list[str]:
        return values(operation.model_dump(mode="json"))
