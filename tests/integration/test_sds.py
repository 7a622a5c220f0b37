"""Envoy's secret discovery service through the public door, `nucleus identity serve`. Envoy itself: tests/spiffe."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from grpclib.client import StreamStreamMethod, UnaryUnaryMethod
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from integration.test_identity_api import NAME, OTHER, Served, run
from integration.workload_client import connected
from nucleus.identity import sds
from nucleus.identity import sds_proto as proto
from nucleus.identity.svid import pem_to_der
from nucleus.identity.verify import verify_svid

TRUST_DOMAIN = "spiffe://nucleus.local"


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    made = Served(0)
    made.add("first", "unix:uid:0")
    made.add("second", "unix:uid:0")
    made.add("others", f"unix:uid:{OTHER}")
    yield made
    made.close()


async def fetched(path: str, *names: str, **more: Any) -> Any:
    async with connected(path) as client:
        method = UnaryUnaryMethod(
            client.channel, f"/{sds.SERVICE}/FetchSecrets", proto.DiscoveryRequest, proto.DiscoveryResponse
        )
        return await method(proto.DiscoveryRequest(resource_names=names, **more), timeout=20)


def secrets(answer: Any) -> dict[str, Any]:
    assert {one.type_url for one in answer.resources} <= {sds.TYPE_URL}
    return {(secret := proto.Secret.FromString(one.value)).name: secret for one in answer.resources}


def refused(served: Served, *names: str, **more: Any) -> Status:
    with pytest.raises(GRPCError) as caught:
        run(fetched(served.socket, *names, **more))
    return caught.value.status


def test_a_certificate_its_key_and_the_roots_fit_together(served: Served) -> None:
    found = secrets(run(fetched(served.socket, NAME + "second", "ROOTCA", TRUST_DOMAIN)))
    assert list(found) == [NAME + "second", "ROOTCA", TRUST_DOMAIN]
    made = found[NAME + "second"].tls_certificate
    leaf = x509.load_pem_x509_certificate(made.certificate_chain.inline_bytes)
    assert load_pem_private_key(made.private_key.inline_bytes, None).public_key() == leaf.public_key()
    bundle = pem_to_der(served.cli("identity", "bundle").stdout)
    for name in ("ROOTCA", TRUST_DOMAIN):
        assert pem_to_der(found[name].validation_context.trusted_ca.inline_bytes.decode()) == bundle
    chain = pem_to_der(made.certificate_chain.inline_bytes.decode())
    assert str(verify_svid(chain, {"nucleus.local": bundle}, time.time_ns(), role="server")) == NAME + "second"
    issued = served.found("identity.issued", serial=f"{leaf.serial_number:x}")
    assert [one["principal"] for one in issued] == [NAME + "second"]


def test_the_default_is_the_first_and_no_name_is_all(served: Served) -> None:
    (default,) = secrets(run(fetched(served.socket, "default"))).values()
    leaf = x509.load_pem_x509_certificate(default.tls_certificate.certificate_chain.inline_bytes)
    assert NAME + "first" in str(leaf.extensions)
    assert set(secrets(run(fetched(served.socket)))) == {NAME + "first", NAME + "second", TRUST_DOMAIN}


@pytest.mark.parametrize("name", [NAME + "others", NAME + "nobody", "spiffe://elsewhere", "ROOTCAS", "spiffe://"])
def test_what_is_not_the_callers_is_refused(served: Served, name: str) -> None:
    assert refused(served, name) is Status.PERMISSION_DENIED
    assert refused(served, NAME + "first", name) is Status.PERMISSION_DENIED


def test_another_identity_that_is_asked_for_is_on_record(served: Served) -> None:
    refused(served, NAME + "others")
    assert served.found("identity.refused", reason="the ID asked for is not this caller's")


def test_what_is_no_request_for_secrets(served: Served) -> None:
    assert refused(served, "default", type_url="type.googleapis.com/x.Y") is Status.INVALID_ARGUMENT
    assert refused(served, *[f"{NAME}{n}" for n in range(17)]) is Status.INVALID_ARGUMENT
    assert refused(served, "default", version_info="x" * sds.MAX_REQUEST_BYTES) is Status.RESOURCE_EXHAUSTED
    # What Envoy says of itself in its first request is long.
    assert run(fetched(served.socket, "default", version_info="x" * 100_000)).resources


def test_a_stream_is_pushed_what_concerns_it_and_ends_with_the_entry(served: Served) -> None:
    async def work() -> None:
        async with connected(served.socket) as client:
            method = StreamStreamMethod(
                client.channel, f"/{sds.SERVICE}/StreamSecrets", proto.DiscoveryRequest, proto.DiscoveryResponse
            )
            async with method.open() as stream:
                await stream.send_message(proto.DiscoveryRequest(resource_names=[NAME + "third"]))
                first = await stream.recv_message()
                assert first is not None
                ack = {"version_info": first.version_info, "response_nonce": first.nonce}
                await stream.send_message(proto.DiscoveryRequest(resource_names=[NAME + "third"], **ack))
                chain = secrets(first)[NAME + "third"].tls_certificate.certificate_chain.inline_bytes
                serial = x509.load_pem_x509_certificate(chain).serial_number
                words = ("identity", "revoke", f"{serial:x}", "--reason", "test")
                assert (await asyncio.to_thread(served.cli, *words)).returncode == 0
                second = await asyncio.wait_for(stream.recv_message(), 10)
                assert second is not None
                assert second.version_info != first.version_info
                assert second.nonce != first.nonce
                await asyncio.to_thread(served.remove, entry)
                assert await asyncio.wait_for(stream.recv_message(), 10) is None
                await stream.end()  # grpclib asks for it where the trailers came without the reset that follows them

    entry = served.add("third", "unix:uid:0")
    with pytest.raises(GRPCError) as caught:
        run(work())
    assert caught.value.status is Status.PERMISSION_DENIED
