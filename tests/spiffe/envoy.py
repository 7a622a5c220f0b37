"""An Envoy whose certificates come by SDS: one process with a server and a client, mutual TLS between them.

Run as a program it is a pod's agent, which is both: ``envoy.py ENVOY REQUESTS`` prints what it saw as JSON.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from typing import Any

TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3."
MANAGER = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
HTTP = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def sds(name: str) -> dict[str, Any]:
    service = {"envoy_grpc": {"cluster_name": "workload_api"}}
    api = {"api_type": "GRPC", "transport_api_version": "V3", "grpc_services": [service]}
    return {"name": name, "sds_config": {"resource_api_version": "V3", "api_config_source": api}}


def context(own: str, peer: str, roots: str) -> dict[str, Any]:
    """A TLS context: own certificate, the roots, and who the peer has to be."""
    san = {"san_type": "URI", "matcher": {"exact": peer}}
    return {
        "tls_certificate_sds_secret_configs": [sds(own)],
        "combined_validation_context": {
            "default_validation_context": {"match_typed_subject_alt_names": [san]},
            "validation_context_sds_secret_config": sds(roots),
        },
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
    }


def listener(name: str, port: int, route: dict[str, Any], tls: dict[str, Any] | None = None) -> dict[str, Any]:
    manager = {
        "@type": MANAGER,
        "stat_prefix": name,
        "forward_client_cert_details": "SANITIZE_SET",
        "route_config": {"virtual_hosts": [{"name": name, "domains": ["*"], "routes": [route]}]},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {"@type": ROUTER}}],
    }
    chain: dict[str, Any] = {"filters": [{"name": "http", "typed_config": manager}]}
    if tls is not None:
        chain["transport_socket"] = {"name": "tls", "typed_config": tls}
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    return {"name": name, "address": address, "filter_chains": [chain]}


def endpoint(name: str, address: dict[str, Any], http: dict[str, Any], **more: Any) -> dict[str, Any]:
    options = {HTTP.rpartition("/")[2]: {"@type": HTTP, **http}}
    points = [{"lb_endpoints": [{"endpoint": {"address": address}}]}]
    return {
        "name": name, "type": "STATIC", "connect_timeout": "5s", "typed_extension_protocol_options": options,
        "load_assignment": {"cluster_name": name, "endpoints": points}, **more,
    }  # fmt: skip


def config(api: str, server: str, client: str, ports: tuple[int, int, int], roots: str = "ROOTCA") -> dict[str, Any]:
    plain, mutual, admin = ports
    said = [
        {"header": {"key": "x-client", "value": "%DOWNSTREAM_PEER_URI_SAN%"}},
        {"header": {"key": "x-client-serial", "value": "%DOWNSTREAM_PEER_SERIAL%"}},
    ]
    answer = {
        "match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": "served"}},
        "response_headers_to_add": said,
    }  # fmt: skip
    passed = {"match": {"prefix": "/"}, "route": {"cluster": "mutual", "timeout": "10s"}}
    down = {
        "@type": TLS + "DownstreamTlsContext", "require_client_certificate": True,
        "common_tls_context": context(server, client, roots),
    }  # fmt: skip
    http2 = {"explicit_http_config": {"http2_protocol_options": {}}}
    domain = "/".join(client.split("/")[:3])
    up = {
        "@type": TLS + "UpstreamTlsContext",
        "common_tls_context": context(client, server, domain if roots == "ROOTCA" else roots),
    }
    # A connection for each request, so that each has the certificates of its moment.
    once = {"explicit_http_config": {"http_protocol_options": {}},
            "common_http_protocol_options": {"max_requests_per_connection": 1}}  # fmt: skip
    here = {"socket_address": {"address": "127.0.0.1", "port_value": mutual}}
    return {
        "node": {"id": "test", "cluster": "test"},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": admin}}},
        "static_resources": {
            "listeners": [listener("plain", plain, passed), listener("mutual", mutual, answer, down)],
            "clusters": [
                endpoint("workload_api", {"pipe": {"path": api}}, http2),
                endpoint("mutual", here, once, transport_socket={"name": "tls", "typed_config": up}),
            ],
        },
    }  # fmt: skip


class Envoy:
    """A running one.

    Args:
        binary: of Envoy.
        api: path of the socket.
        server, client: SPIFFE IDs that this process may have.
        roots: the name of both ends' validation context; ROOTCA: that of the trust domain at the client's end.
    """

    def __init__(self, binary: str, api: str, server: str, client: str, roots: str = "ROOTCA") -> None:
        self.ports = (free_port(), free_port(), free_port())
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 -- until `close`
        made = json.dumps(config(api, server, client, self.ports, roots))
        self.process = subprocess.Popen(
            [binary, "--disable-hot-restart", "--concurrency", "1", "-l", "warning", "--config-yaml", made],
            stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, env={},
        )  # fmt: skip
        until = time.monotonic() + 30
        while True:
            try:
                status, _ = self.get("/", self.ports[0])
            except OSError:
                status = 0
            if status == 200:
                return
            if time.monotonic() > until or self.process.poll() is not None:
                log = self.log()
                self.close()
                raise AssertionError(f"Envoy is not ready: {log}")
            time.sleep(0.1)

    def log(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")[-4_000:]

    def get(self, path: str, port: int) -> tuple[int, Any]:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"http://127.0.0.1:{port}{path}", timeout=15) as answer:
                return answer.status, (answer.headers, answer.read())
        except urllib.error.HTTPError as error:
            error.close()
            return error.code, None

    def request(self) -> tuple[int, str, str]:
        """One, through both: its status, the client's ID as the server saw it, the serial of its certificate."""
        status, answer = self.get("/", self.ports[0])
        return (status, answer[0]["x-client"], answer[0]["x-client-serial"]) if answer else (status, "", "")

    def updates(self) -> dict[str, int]:
        """How often each of its contexts has been given new secrets."""
        _, (_, body) = self.get("/stats?filter=ssl_context_update_by_sds&format=json", self.ports[2])
        return {one["name"].split(".")[0]: one["value"] for one in json.loads(body)["stats"]}

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._log.close()


def main(binary: str, requests: int) -> dict[str, Any]:
    from nucleus.sdk import identity  # the pod's own, of which nothing but the name is used

    own = identity.fetch().spiffe_id
    envoy = Envoy(binary, os.environ["SPIFFE_ENDPOINT_SOCKET"].removeprefix("unix://"), own, own)
    try:
        seen = [envoy.request() for _ in range(requests)]
        return {"statuses": sorted({one[0] for one in seen}), "clients": sorted({one[1] for one in seen})}
    finally:
        envoy.close()


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]))))
