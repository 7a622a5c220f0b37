"""A workload with PyPI's `spiffe`, unchanged: run by the venv of its own. Prints one JSON object of what it saw."""

from __future__ import annotations

import json
import sys
import time

from cryptography import x509

from spiffe import JwtSource, WorkloadApiClient, X509Source
from spiffe.workloadapi.errors import WorkloadApiError

socket, what = sys.argv[1:3]


def fetched() -> dict[str, object]:
    with WorkloadApiClient(socket) as client:
        svid = client.fetch_x509_svid()
        token = client.fetch_jwt_svid(audience={"service"})
        bundles = client.fetch_x509_bundles()
        keys = client.fetch_jwt_bundles()
        valid = client.validate_jwt_svid(token.token, "service")
        try:
            client.validate_jwt_svid(token.token, "another")
            refused = ""
        except WorkloadApiError as error:
            refused = str(error)
        return {
            "x509": str(svid.spiffe_id),
            "chain": len(svid.cert_chain),
            "jwt": str(token.spiffe_id),
            "valid": str(valid.spiffe_id),
            "refused": refused,
            "bundles": [str(one.trust_domain) for one in bundles.bundles],
            "jwt_bundles": [str(one.trust_domain) for one in keys.bundles],
        }


def rotations(wanted: int) -> dict[str, object]:
    serials: list[int] = []
    trusted = 0
    with X509Source(socket_path=socket) as source:
        until = time.monotonic() + 60
        while len(serials) < wanted and time.monotonic() < until:
            svid = source.get_x509_context().default_svid
            if svid.leaf.serial_number not in serials:
                serials.append(svid.leaf.serial_number)
                roots = source.get_bundle_for_trust_domain(svid.spiffe_id.trust_domain).x509_authorities
                for root in roots:
                    try:
                        svid.leaf.verify_directly_issued_by(root)
                        trusted += 1
                    except (ValueError, TypeError, x509.InvalidVersion):
                        continue
            time.sleep(0.05)
    return {"rotations": len(serials), "trusted": trusted}


def jwt_source() -> dict[str, object]:
    with JwtSource(socket_path=socket) as source:
        token = source.fetch_svid(audience={"service"})
        bundle = source.get_bundle_for_trust_domain(token.spiffe_id.trust_domain)
        return {"jwt": str(token.spiffe_id), "keys": len(bundle.jwt_authorities)}


def denied() -> dict[str, object]:
    try:
        with WorkloadApiClient(socket) as client:
            client.fetch_x509_svid()
    except WorkloadApiError as error:
        return {"denied": str(error)}
    return {"denied": ""}


print(json.dumps({"fetched": fetched, "rotations": lambda: rotations(11), "jwt": jwt_source, "denied": denied}[what]()))
