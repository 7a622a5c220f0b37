"""A trust domain of one's own name: chosen before the first identity, and two installations that know each other."""

from __future__ import annotations

import json
from pathlib import Path

from .site import Site


def test_it_is_chosen_before_the_first_identity_and_not_after(site: Site) -> None:
    assert site.cli("identity", "trust-domain").stdout == "nucleus.local\n"
    for bad in ("Example.org", "a b", "", "x" * 256, "spiffe://example.org/x", "exa/mple"):
        assert site.cli("identity", "trust-domain", bad).returncode == 2
    assert site.cli("identity", "trust-domain", "one.example.org").stdout == "one.example.org\n"
    assert site.cli("identity", "trust-domain").stdout == "one.example.org\n"
    assert site.exec("true").returncode == 0
    assert site.exec("true").returncode == 0
    names = {record["principal"] for record in site.records() if record["event"] == "intent"}
    assert all(name.startswith("spiffe://one.example.org/ns/default/sa/orchestrator-") for name in names)
    shown = json.loads(site.cli("identity", "show", "--json").stdout)
    assert shown["trust_domain"] == "one.example.org"
    said = site.cli("identity", "trust-domain", "two.example.org")
    assert said.returncode == 2
    assert "helper stop" in said.stderr
    site.cli("helper", "stop")
    said = site.cli("identity", "trust-domain", "two.example.org")
    assert said.returncode == 2
    assert "have been issued" in said.stderr
    assert site.exec("true").returncode == 0
    (site.directory / "state" / "trust-domain").write_text("two.example.org\n")  # by hand: what is there is another's
    site.cli("helper", "stop")
    assert "another trust domain" in site.cli("identity", "show").stderr


def test_two_installations_verify_each_others_and_neither_speaks_for_the_other(root_site: Site) -> None:
    other = Site(0)
    try:
        for one, name in ((root_site, "one.example.org"), (other, "two.example.org")):
            assert one.cli("identity", "trust-domain", name).returncode == 0
        bundles: dict[str, Path] = {}
        for one, name in ((root_site, "one"), (other, "two")):
            path = one.directory / f"{name}.json"
            path.write_text(one.cli("identity", "bundle", "--format", "spiffe").stdout)
            bundles[name] = path
            out = one.directory / "svid"
            made = one.cli("identity", "issue", f"spiffe://{name}.example.org/app", "--out", str(out))
            assert made.returncode == 0, made.stderr
        svid = str(root_site.directory / "svid" / "svid.pem")
        assert other.cli("identity", "verify", svid).returncode != 0
        checked = other.cli("identity", "verify", svid, "--bundle", str(root_site.directory / "svid" / "bundle.pem"))
        assert checked.returncode == 0, checked.stderr
        assert "spiffe://one.example.org/app" in checked.stdout
        assert root_site.cli("identity", "issue", "spiffe://two.example.org/app", "--out", svid + ".d").returncode == 2
    finally:
        other.close()
