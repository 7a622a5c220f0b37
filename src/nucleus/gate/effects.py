"""The effects that the pipeline yields, in the order of DESIGN section 3. `server.driver` is their only interpreter.

Each class names what the driver must send back. An effect that fails is reported by throwing one of the errors of
`nucleus.errors` (or `ClientGone`) into the generator.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from nucleus.approval.scope import Scope
from nucleus.model.decision import Decision
from nucleus.model.grant import Grant
from nucleus.model.operation import Base
from nucleus.model.principal import Principal
from nucleus.model.receipt import Meter
from nucleus.model.receipt import Reply as ReplyBody


class ClientGone(Exception):
    """The caller hung up or the gate is stopping; thrown into the pipeline in place of a result."""


@dataclass(frozen=True, slots=True)
class Authenticate:
    """Sends back the `Principal` behind the request, or throws UnauthenticatedError."""


@dataclass(frozen=True, slots=True)
class Validate:
    """Sends back the parsed and validated operation, or throws InvalidError."""

    raw: dict[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Resolve:
    """Sends back the operation with what its names stand for (`Base.resolved`), or throws."""

    operation: Base


@dataclass(frozen=True, slots=True)
class Decide:
    """Sends back the `Decision` of the one decision function. `principal`: as `Authenticate` sent it back."""

    operation: Base
    principal: Principal


@dataclass(frozen=True, slots=True)
class Ask:
    """Sends back an `Approval`. `scopes`: the wider answers on offer; a grant of one may answer at once."""

    operation: Base
    principal: Principal
    decision: Decision
    display: tuple[str, ...]
    scopes: tuple[Scope, ...] = ()


@dataclass(frozen=True, slots=True)
class Reserve:
    """Sends back None once `amount` micro-dollars are held (and the token's nonce is burnt), or throws.

    With `least` (more than 0): what is held, as much of `amount` as there is, but no less than that.
    """

    reservation: str
    amount: int
    operation_hash: str
    principal: Principal
    token: str = field(default="", repr=False)
    least: int = 0


@dataclass(frozen=True, slots=True)
class Append:
    """Sends back the record's sequence number once it is durable, or throws AuditError.

    `step` names the place in the pipeline: ``intent``, ``outcome``, or a refusal's event.
    """

    step: str
    record: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Execute:
    """Sends back an `Outcome` or a `Redirect`. The driver spends the grant first and always fills the meter.

    `short`: micro-dollars that it may cost beyond what is held, `held`; the meter says how long that pays for it.
    """

    grant: Grant
    operation: Base
    meter: Meter
    held: int = 0
    short: int = 0


@dataclass(frozen=True, slots=True)
class Settle:
    """Sends back None once the reservation is resolved for `actual` micro-dollars."""

    reservation: str
    actual: int


@dataclass(frozen=True, slots=True)
class Release:
    """Sends back None once the reservation is given back whole: nothing was tried."""

    reservation: str


@dataclass(frozen=True, slots=True)
class Reply:
    """The last effect: hand the body to the caller. Its text has been through `sanitize`."""

    body: ReplyBody


Effect = Authenticate | Validate | Resolve | Decide | Ask | Reserve | Append | Execute | Settle | Release | Reply
