"""What a stream of secrets has, wants and is sent; the forms that secrets take. No sockets."""

from __future__ import annotations

import asyncio
import base64
import time
from typing import Any

import pytest

from nucleus.errors import DeniedError, InvalidError
from nucleus.identity import der, sds
from nucleus.identity import sds_proto as proto
from nucleus.identity.svid import pem_to_der

ID = "spiffe://nucleus.local/a"


def request(*names: str, nonce: str = "", refused: str = "", **more: Any) -> Any:
    made = proto.DiscoveryRequest(resource_names=names, response_nonce=nonce, **more)
    if refused:
        made.error_detail.code, made.error_detail.message = 13, refused
    return made


def test_the_first_request_is_answered_and_an_acknowledgement_is_not() -> None:
    one = sds.Subscription()
    assert one.take(request(ID))
    nonce = one.sent("v1")
    assert not one.take(request(ID, nonce=nonce, version_info="v1"))
    assert one.names == (ID,)


def test_a_refusal_is_counted_and_not_answered_with_the_same_again() -> None:
    one = sds.Subscription()
    one.take(request(ID))
    nonce = one.sent("v1")
    assert not one.take(request(ID, nonce=nonce, refused="no"))
    assert (one.rejected, one.version) == (1, "v1")


def test_what_is_about_an_older_answer_is_passed_over() -> None:
    one = sds.Subscription()
    one.take(request(ID))
    old, new = one.sent("v1"), one.sent("v2")
    assert old != new
    assert not one.take(request("other", nonce=old))
    assert one.names == (ID,)
    assert one.take(request("other", nonce=new))


def test_other_names_are_answered_also_with_a_refusal() -> None:
    one = sds.Subscription()
    one.take(request(ID))
    assert one.take(request(ID, "ROOTCA", nonce=one.sent("v1")))
    assert one.take(request("ROOTCA", nonce=one.sent("v2"), refused="no"))


@pytest.mark.parametrize(
    "asked",
    [
        request(ID, type_url="type.googleapis.com/envoy.config.cluster.v3.Cluster"),
        request(*[f"{ID}{number}" for number in range(sds.MAX_NAMES + 1)]),
        request("x" * 2_049),
    ],
)
def test_what_is_no_request_for_secrets(asked: Any) -> None:
    with pytest.raises(InvalidError):
        sds.Subscription().take(asked)


def test_certificates_one_behind_the_other() -> None:
    small, large = b"\x30\x03abc", b"\x30\x82\x01\x00" + b"x" * 256
    assert der.split(small + large + small) == [small, large, small]
    assert der.split(b"") == []
    assert pem_to_der(der.pem("CERTIFICATE", large)) == [large]


@pytest.mark.parametrize(
    "data", [b"\x31\x03abc", b"\x30\x04abc", b"\x30\x82\x01", b"\x30", b"\x30\x03abcd", b"\x30\x84", b"\x30\x80ab\0\0"]
)
def test_bytes_that_are_no_certificates(data: bytes) -> None:
    with pytest.raises(InvalidError):
        der.split(data)


class Stream:
    """What grpclib gives a handler."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._stream = self
        self._data = asyncio.StreamReader()
        self.sent: asyncio.Queue[Any] = asyncio.Queue()

    def ask(self, message: Any) -> None:
        data = message.SerializeToString()
        self._data.feed_data(b"\0" + len(data).to_bytes(4) + data)

    def end(self) -> None:
        self._data.feed_eof()

    async def recv_data(self, size: int) -> bytes:
        try:
            return await self._data.readexactly(size)
        except asyncio.IncompleteReadError as error:
            return error.partial

    async def send_message(self, message: Any) -> None:
        self.sent.put_nowait(message)

    async def next(self) -> Any:
        async with asyncio.timeout(10):
            return await self.sent.get()


class Answers:
    """An authority whose SVIDs live as long as it is told."""

    def __init__(self, life_s: float) -> None:
        self.life_s = life_s
        self.asked: list[tuple[str, str]] = []
        self.event = asyncio.Event()
        self.roots = b"\x30\x01r"
        self.federated: dict[str, bytes] = {}
        self.withdrawn = ""
        self.digest = "1"

    def changed(self) -> None:
        self.event.set()
        self.event = asyncio.Event()

    def change(self) -> asyncio.Event:
        return self.event

    async def ask(self, op: str, conn: int, **fields: Any) -> dict[str, Any]:
        self.asked.append((op, fields.get("spiffe_id", "")))
        if op == "bundles":
            own = base64.b64encode(self.roots).decode()
            return {"trust_domain": "nucleus.local", "x509": own, "federated": sorted(self.federated)}
        if op == "federated":
            if fields["trust_domain"] == self.withdrawn:
                raise DeniedError("no entry", rule="identity.federation")
            return {"x509": base64.b64encode(self.federated[fields["trust_domain"]]).decode(), "jwks": "{}"}
        if op == "look":
            return {"digest": self.digest}
        number = len(self.asked)
        made = base64.b64encode(b"\x30\x01" + bytes([number])).decode()
        renew_ns = time.time_ns() + int(self.life_s * 1e9)
        svid = {"spiffe_id": fields.get("spiffe_id") or ID, "chain": made, "key": made, "serial": f"{number:x}"}
        return {"svids": [svid | {"renew_ns": renew_ns, "hint": ""}], "bundle": "", "digest": self.digest}


def of(message: Any) -> dict[str, Any]:
    return {(secret := proto.Secret.FromString(one.value)).name: secret for one in message.resources}


def played(life_s: float, play: Any) -> None:
    async def work() -> None:
        answers, stream = Answers(life_s), Stream(asyncio.get_running_loop())
        path = f"/{sds.SERVICE}/StreamSecrets"
        serving = asyncio.create_task(sds.Secrets(answers, 1, 0).calls()[path][0](stream))
        await play(answers, stream)
        stream.end()
        await serving

    asyncio.run(work())


def test_a_certificate_is_pushed_at_half_life_with_another_version() -> None:
    async def play(answers: Answers, stream: Stream) -> None:
        stream.ask(request(ID))
        seen = [await stream.next() for _ in range(3)]
        assert len({one.version_info for one in seen}) == len({one.nonce for one in seen}) == 3
        assert answers.asked == [("x509", ID)] * 3

    played(0.0, play)  # at once, but for the least that lies between two


def test_acknowledged_and_refused_answers_are_not_sent_again_and_roots_are_no_svid() -> None:
    async def play(answers: Answers, stream: Stream) -> None:
        stream.ask(request("ROOTCA"))
        first = await stream.next()
        assert list(of(first)) == ["ROOTCA"]
        stream.ask(request("ROOTCA", nonce=first.nonce, version_info=first.version_info))
        stream.ask(request("ROOTCA", nonce=first.nonce, refused="no"))
        await asyncio.sleep(0.05)
        answers.changed()  # nothing that concerns the roots
        await asyncio.sleep(0.05)
        assert stream.sent.empty()
        answers.roots += b"\x30\x01s"
        answers.changed()
        second = await stream.next()
        assert of(second)["ROOTCA"].validation_context.trusted_ca.inline_bytes.count(b"BEGIN") == 2
        assert second.version_info != first.version_info
        assert "x509" not in {op for op, _ in answers.asked}

    played(60, play)


def test_other_names_keep_the_certificates_that_there_are() -> None:
    async def play(answers: Answers, stream: Stream) -> None:
        stream.ask(request(ID))
        first = await stream.next()
        stream.ask(request(ID, "default", nonce=first.nonce))
        second = await stream.next()
        assert of(second)[ID] == of(first)[ID]
        assert set(of(second)) == {ID, "default"}
        answers.digest = "2"
        answers.changed()
        third = await stream.next()
        assert of(third)[ID] != of(second)[ID]

    played(60, play)


def test_no_name_is_everything() -> None:
    async def play(answers: Answers, stream: Stream) -> None:
        stream.ask(request())
        assert set(of(await stream.next())) == {ID, "spiffe://nucleus.local"}

    played(60, play)


def test_foreign_roots_are_pushed_alone_and_in_all_each_for_its_own() -> None:
    theirs = "spiffe://foreign.example"

    def domains(message: Any) -> dict[str, int]:
        config = of(message)["ALL"].validation_context.custom_validator_config
        assert config.name == "envoy.tls.cert_validator.spiffe"
        found = proto.SPIFFECertValidatorConfig.FromString(config.typed_config.value).trust_domains
        return {one.name: one.trust_bundle.inline_bytes.count(b"BEGIN") for one in found}

    async def play(answers: Answers, stream: Stream) -> None:
        answers.federated["foreign.example"] = b"\x30\x01f"
        stream.ask(request("ALL", theirs))
        first = await stream.next()
        assert domains(first) == {"foreign.example": 1, "nucleus.local": 1}
        assert of(first)[theirs].validation_context.trusted_ca.inline_bytes.count(b"BEGIN") == 1
        answers.federated["foreign.example"] += b"\x30\x01g"
        answers.changed()
        second = await stream.next()
        assert domains(second) == {"foreign.example": 2, "nucleus.local": 1}
        answers.withdrawn = "foreign.example"  # between two of the authority's answers
        answers.changed()
        third = await stream.next()
        assert (domains(third), set(of(third))) == ({"nucleus.local": 1}, {"ALL"})
        assert not third.resources[0].value.count(b"trusted_ca")

    played(60, play)


def test_a_stream_that_asks_nothing_is_told_nothing() -> None:
    async def play(answers: Answers, stream: Stream) -> None:
        answers.changed()
        stream.ask(request(ID, nonce="of another stream"))
        await asyncio.sleep(0.05)
        answers.changed()
        await asyncio.sleep(0.05)
        assert stream.sent.empty()
        assert answers.asked == []

    played(60, play)
