"""Envoy's Secret Discovery Service, version 3, on the Workload API's socket: the same identities, in Envoy's form.

Promises: what a caller gets here it would get from the Workload API; a name that is not the caller's is refused, on
record; a certificate is pushed anew at half-life and when it is revoked, bundles when they change; what is sent has a
version, and nothing is sent twice because it was acknowledged, or refused.
Relies on: `rpc.Answers`, asked anew for each certificate; `sds_proto`.
Does not: want the Workload API's security header (Envoy sends none, nor does SPIRE ask for it); speak the incremental
protocol (DeltaSecrets).

Names of resources, as SPIRE's agent has them: a SPIFFE ID, a TLS certificate with its key; ``default``, that of the
caller's first identity; a trust domain's ID (``spiffe://domain``), its roots as a validation context, also of a foreign
one that an entry of the caller's names (`federates_with`); ``ROOTCA``, those of the caller's own trust domain; ``ALL``,
each of these for the peers of its own trust domain alone, by Envoy's SPIFFE validator; no name at all, all but ``ALL``
and ``ROOTCA``.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import itertools
import time
from collections.abc import Iterable, Mapping
from typing import Any

from grpclib.const import Cardinality
from grpclib.exceptions import GRPCError

from nucleus.errors import DeniedError, InvalidError
from nucleus.identity import sds_proto as proto
from nucleus.identity.der import pem, split
from nucleus.identity.rpc import Answers, Call, due, receive, receive_next

SERVICE = "envoy.service.secret.v3.SecretDiscoveryService"
TYPE_URL = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
DEFAULT, ROOTS, ALL = "default", "ROOTCA", "ALL"
_VALIDATOR = "envoy.tls.cert_validator.spiffe"
_VALIDATOR_TYPE = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig"
MAX_REQUEST_BYTES = 131_072  # Envoy says in the first one which extensions it has: some 50 KB
MAX_NAMES = 16
_MAX_NAME = 2_048


class Subscription:
    """What one stream wants and has. Pure.

    Attributes:
        names: of the resources; empty: all.
        rejected: how often the caller refused what it was sent.
    """

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self.rejected = 0
        self.version = ""
        self.nonce = ""
        self._nonces = itertools.count(1)

    def take(self, request: Any) -> bool:
        """Whether this request is to be answered. Raises InvalidError."""
        if request.response_nonce and request.response_nonce != self.nonce:
            return False  # about an answer that another has replaced
        names = read_names(request)
        changed, self.names = names != self.names, names
        if not request.response_nonce:
            return True
        if request.HasField("error_detail"):
            # Refused: the caller keeps what it had. The same again would be refused again; the next version is sent.
            self.rejected += 1
        return changed

    def sent(self, version: str) -> str:
        """The nonce of an answer with this version."""
        self.version, self.nonce = version, str(next(self._nonces))
        return self.nonce


def read_names(request: Any) -> tuple[str, ...]:
    """The names that are asked for, each once. Raises InvalidError: another type, too many, too long."""
    if request.type_url not in ("", TYPE_URL):
        raise InvalidError("this service has secrets alone", rule="sds.type")
    names = tuple(dict.fromkeys(request.resource_names))
    if len(names) > MAX_NAMES or any(len(name) > _MAX_NAME for name in names):
        raise InvalidError(f"over {MAX_NAMES} names, or one over {_MAX_NAME} characters", rule="sds.names")
    return names


class _Held:
    """The X.509-SVIDs that a stream has, by the ID that was asked for ("": any)."""

    def __init__(self, answers: Answers, conn: int, refresh_s: int) -> None:
        self._answers = answers
        self._conn = conn
        self._refresh_s = refresh_s
        self._by_id: dict[str, tuple[dict[str, Any], float]] = {}

    async def fetch(self, wanted: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Those wanted: what there is, and is not due; else anew. Others are let go of."""
        kept, now = {}, time.monotonic()
        for one in wanted:
            held = self._by_id.get(one)
            if held is None or held[1] <= now:
                answer = await self._answers.ask("x509", self._conn, **_only(one))
                held = answer, due(answer, self._refresh_s)
            kept[one] = held
        self._by_id = kept
        return {one: answer for one, (answer, _) in kept.items()}

    async def look(self) -> None:
        """Let go of what would be answered otherwise now. Raises NucleusError: an identity is no more the caller's."""
        for one, (answer, _) in tuple(self._by_id.items()):
            serials = [svid["serial"] for svid in answer["svids"]]
            found = await self._answers.ask("look", self._conn, serials=serials, **_only(one))
            if found.get("digest") != answer.get("digest"):
                del self._by_id[one]

    def due_in(self) -> float | None:
        """Seconds until the first is due; None: there is none."""
        first = min((at for _, at in self._by_id.values()), default=None)
        return None if first is None else max(0.0, first - time.monotonic())


class Secrets:
    """The service for one connection.

    Args:
        answers: asked for each answer.
        conn: this connection's number.
        refresh_s: push at the latest after so many seconds; 0: at half-life.
    """

    def __init__(self, answers: Answers, conn: int, refresh_s: int) -> None:
        self._answers = answers
        self._conn = conn
        self._refresh_s = refresh_s

    def calls(self) -> dict[str, tuple[Call, Cardinality]]:
        """The calls by their paths; each takes a `proto.DiscoveryRequest` or several."""
        return {
            f"/{SERVICE}/StreamSecrets": (self._stream, Cardinality.STREAM_STREAM),
            f"/{SERVICE}/FetchSecrets": (self._fetch, Cardinality.UNARY_UNARY),
        }

    async def _fetch(self, stream: Any) -> None:
        request = await receive(stream, proto.DiscoveryRequest, MAX_REQUEST_BYTES)
        names = read_names(request)
        version, resources = await self._resources(names, _Held(self._answers, self._conn, self._refresh_s))
        await stream.send_message(_response(version, "", resources))

    async def _stream(self, stream: Any) -> None:
        requests: asyncio.Queue[Any] = asyncio.Queue(1)
        reading = asyncio.create_task(_read(stream, requests))
        try:
            await self._push(stream, requests)
        finally:
            reading.cancel()

    async def _push(self, stream: Any, requests: asyncio.Queue[Any]) -> None:
        subscription, held = Subscription(), _Held(self._answers, self._conn, self._refresh_s)
        change, wanted = self._answers.change(), False
        while True:
            request = await _next(requests, change, held.due_in())
            if isinstance(request, GRPCError):
                raise request
            if request is _ENDED:
                return
            asked = request is not None and subscription.take(request)
            wanted = wanted or asked
            if change.is_set():
                change = self._answers.change()
                await held.look()
            elif request is not None and not asked:
                continue  # acknowledged, or refused
            if not wanted:
                continue
            version, resources = await self._resources(subscription.names, held)
            if asked or version != subscription.version:
                await stream.send_message(_response(version, subscription.sent(version), resources))

    async def _resources(self, names: tuple[str, ...], held: _Held) -> tuple[str, list[Any]]:
        """What these names are now, and its version. Raises NucleusError: one of them is not the caller's."""
        contexts = [name for name in names if _is_context(name)]
        identities = [name for name in names if name not in contexts]
        found = await held.fetch(["" if name == DEFAULT else name for name in identities] if names else [""])
        version = hashlib.sha256()
        resources = []
        for name in identities if names else [""]:
            svids = found["" if name == DEFAULT else name]["svids"]
            for svid in svids[: 1 if name else None]:
                version.update(f"{name or svid['spiffe_id']} {svid['serial']}\n".encode())
                resources.append(_certificate(name or svid["spiffe_id"], svid))
        if contexts or not names:
            bundles = await self._answers.ask("bundles", self._conn)
            own = f"spiffe://{bundles['trust_domain']}"
            federated = {f"spiffe://{name}": str(name) for name in bundles["federated"]}
            known = {own: str(bundles["x509"])}
            for name in contexts or [own, *federated]:
                if name not in (own, ROOTS, ALL) and name not in federated:
                    raise DeniedError("no bundle of that trust domain is here", rule="sds.bundle")
                for foreign in federated if name == ALL else (name,):
                    if foreign in federated and foreign not in known:
                        known[foreign] = await self._foreign(federated[foreign])
                taken = known if name == ALL else {name: known[own if name == ROOTS else name]}
                taken = {one: roots for one, roots in taken.items() if roots}
                if not taken:
                    continue  # it was taken away just now: a change is on its way
                version.update(f"{name} {sorted(taken.items())}\n".encode())
                resources.append(_all(taken) if name == ALL else _context(name, base64.b64decode(taken[name])))
        return version.hexdigest()[:16], resources

    async def _foreign(self, name: str) -> str:
        """The roots of a trust domain that an entry of the caller's names, DER in base64; "": none does any more."""
        try:
            return str((await self._answers.ask("federated", self._conn, trust_domain=name))["x509"])
        except DeniedError as error:
            if error.rule != "identity.federation":
                raise
            return ""


_ENDED = object()


async def _read(stream: Any, requests: asyncio.Queue[Any]) -> None:
    """Requests in their order, then how they ended. One waits at a time: the rest is HTTP/2's to hold back."""
    while True:
        try:
            request = await receive_next(stream, proto.DiscoveryRequest, MAX_REQUEST_BYTES)
        except GRPCError as error:
            await requests.put(error)
            return
        await requests.put(_ENDED if request is None else request)
        if request is None:
            return


async def _next(requests: asyncio.Queue[Any], change: asyncio.Event, seconds: float | None) -> Any:
    """The next request; None: something has changed or is due."""
    tasks: tuple[asyncio.Task[Any], ...] = (
        asyncio.create_task(requests.get()),
        asyncio.create_task(change.wait()),
    )
    try:
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        return tasks[0].result() if tasks[0].done() else None
    finally:
        for task in tasks:
            task.cancel()


def _only(spiffe_id: str) -> dict[str, str]:
    return {"spiffe_id": spiffe_id} if spiffe_id else {}


def _is_context(name: str) -> bool:
    return name in (ROOTS, ALL) or (name.startswith("spiffe://") and "/" not in name.removeprefix("spiffe://"))


def _certificate(name: str, svid: dict[str, Any]) -> Any:
    chain = "".join(pem("CERTIFICATE", one) for one in split(base64.b64decode(svid["chain"])))
    key = pem("PRIVATE KEY", base64.b64decode(svid["key"]))
    return proto.Secret(
        name=name,
        tls_certificate=proto.TlsCertificate(
            certificate_chain=proto.DataSource(inline_bytes=chain.encode()),
            private_key=proto.DataSource(inline_bytes=key.encode()),
        ),
    )


def _context(name: str, roots: bytes) -> Any:
    return proto.Secret(name=name, validation_context=proto.CertificateValidationContext(trusted_ca=_source(roots)))


def _all(roots: Mapping[str, str]) -> Any:
    """``ALL``: never one store, in which a foreign root could speak for our names."""
    domains = [
        proto.TrustDomain(name=name.removeprefix("spiffe://"), trust_bundle=_source(base64.b64decode(roots[name])))
        for name in sorted(roots)
    ]
    config = proto.SPIFFECertValidatorConfig(trust_domains=domains).SerializeToString(deterministic=True)
    validator = proto.TypedExtensionConfig(
        name=_VALIDATOR, typed_config=proto.Any(type_url=_VALIDATOR_TYPE, value=config)
    )
    context = proto.CertificateValidationContext(custom_validator_config=validator)
    return proto.Secret(name=ALL, validation_context=context)


def _source(roots: bytes) -> Any:
    trusted = "".join(pem("CERTIFICATE", one) for one in split(roots))
    return proto.DataSource(inline_bytes=trusted.encode())


def _response(version: str, nonce: str, resources: Iterable[Any]) -> Any:
    packed = [proto.Any(type_url=TYPE_URL, value=one.SerializeToString(deterministic=True)) for one in resources]
    return proto.DiscoveryResponse(version_info=version, resources=packed, type_url=TYPE_URL, nonce=nonce)
