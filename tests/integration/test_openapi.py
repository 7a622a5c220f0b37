"""The document of the HTTP API is the API: what is served, what is in docs/, and what the code can answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nucleus.errors import FAMILIES
from nucleus.model.operation import OPERATIONS
from nucleus.server.openapi import document

from .site import Site
from .test_serve import Served

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT: dict[str, Any] = json.loads((ROOT / "docs/openapi.json").read_text())

CLIENT = """
import http.client, json, os
from nucleus.sdk.identity import Source, check_peer
source = Source(os.environ["NUCLEUS_WORKLOAD_SOCKET"])
host, port = os.environ["NUCLEUS_GATE"].removeprefix("https://").rsplit(":", 1)
connection = http.client.HTTPSConnection(host, int(port), context=source.current()[1], timeout=20)
connection.connect()
check_peer(connection.sock, os.environ["NUCLEUS_GATE_ID"])
out = []
for method, path in (("GET", "openapi.json"), ("POST", "health"), ("DELETE", "read"), ("POST", "none"), ("GET", "run")):
    connection.request(method, "/v1/" + path)
    answer = connection.getresponse()
    out.append([answer.status, answer.getheader("Allow"), json.loads(answer.read())])
print(json.dumps(out))
"""


def test_the_document_in_docs_is_what_the_code_makes() -> None:
    assert document() == DOCUMENT, "run `make docs`"


def test_each_operation_and_no_other_has_a_path() -> None:
    kinds = {str(model.model_fields["kind"].default) for model in OPERATIONS}
    posts = {path.removeprefix("/v1/") for path, item in DOCUMENT["paths"].items() if "post" in item}
    assert posts == kinds | {"charge"}
    gets = {path.removeprefix("/v1/") for path, item in DOCUMENT["paths"].items() if "get" in item}
    assert gets == {"health", "tools", "openapi.json"}


def test_each_error_is_in_the_document_with_its_status() -> None:
    told = json.dumps(DOCUMENT)
    for family in FAMILIES:
        assert f'"{family.code}"' in told
        for path, item in DOCUMENT["paths"].items():
            assert "post" not in item or str(family.http_status) in item["post"]["responses"], (family.code, path)


def test_it_is_served_and_a_method_that_a_path_does_not_have_is_told(root_site: Site) -> None:
    served = Served(root_site)
    names = {"NUCLEUS_GATE": "gate", "NUCLEUS_GATE_ID": "gate_id", "NUCLEUS_WORKLOAD_SOCKET": "workload"}
    variables = {name: served.door[key] for name, key in names.items()}
    with root_site.script(f"import os; os.environ.update({variables!r})\n" + CLIENT) as child:
        out, err = child.communicate(timeout=60)
    assert served.stop() == 0
    assert out, err
    shown, health, read, none, run = json.loads(out)
    assert (shown[0], shown[2]) == (200, DOCUMENT)
    assert health[:2] == [405, "GET, HEAD"]
    assert read[:2] == run[:2] == [405, "POST"]
    assert (none[0], none[2]["kind"]) == (404, "not_found")
