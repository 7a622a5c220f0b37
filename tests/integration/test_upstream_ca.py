"""An installation whose CA is below an offline root: an agent, its gate and a third party know that root alone."""

from __future__ import annotations

import json
import time
from pathlib import Path

from cryptography.hazmat.primitives import serialization

from identity.test_upstream import Above
from nucleus.identity.svid import pem_to_der

from .site import Site

AGENT = "from nucleus.sdk.client import Gate; print(Gate().read('note.txt'))"


def test_pods_work_below_an_offline_root(site: Site) -> None:
    site.write("note.txt", "through the gate")
    above = Above(start=time.time_ns())
    request = site.cli("identity", "ca", "request").stdout
    chain = site.directory / "chain.pem"
    chain.write_bytes(above.answer(request, start=time.time_ns()))
    chain.chmod(0o644)
    assert site.cli("identity", "ca", "install", "/etc/hostname").returncode == 2
    done = site.cli("identity", "ca", "install", str(chain), "--at-once", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["signs_ns"] <= time.time_ns()
    ran = site.cli(
        "run",
        "--profile",
        "codegen",
        "--trust-workspace",
        "--workdir",
        str(site.workspace),
        "--",
        "python3",
        "-c",
        AGENT,
    )
    assert ran.stdout == "through the gate\n", [r for r in site.records() if r["event"] == "unauthenticated"]
    out = site.home / "svid"
    assert site.cli("identity", "issue", "spiffe://nucleus.local/app", "--out", str(out)).returncode == 0
    assert len(pem_to_der((out / "svid.pem").read_text())) == 2
    root = Path(site.home / "root.pem")
    root.write_bytes(above.root.public_bytes(serialization.Encoding.PEM))
    root.chmod(0o644)
    checked = site.cli("identity", "verify", str(out / "svid.pem"), "--bundle", str(root))
    assert checked.returncode == 0, checked.stderr
    shown = json.loads(site.cli("identity", "show", "--json").stdout)
    assert [one["upstream"] for one in shown["roots"] if one["key"]] == [True]
    assert [r["operation"] for r in site.records() if r["operation"] == "ca_install"] == ["ca_install"]
    assert site.verify().returncode == 0
