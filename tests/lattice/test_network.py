"""Rules of ``network.allow``: how they are read, what they cover, and what is decided of a connection."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nucleus.errors import InvalidError
from nucleus.lattice import Context, decide, parse_policy
from nucleus.lattice.diff import diff
from nucleus.lattice.emit import emit
from nucleus.lattice.exposure import Exposure
from nucleus.lattice.network import NetRule, admits, covers, credentials, leq_rule, parse_host, parse_target, service
from nucleus.lattice.policy import NOWHERE, Policy
from nucleus.model.decision import Verdict
from nucleus.model.operation import Connect
from nucleus.server.wire import parse_connect, parse_operation
from nucleus.store.policies import bundled

HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5"
BASE = "version: 1\nname: t\ncapabilities: {read_files: always, run_bash: always}\n"


def policy(network: str, more: str = "") -> Policy:
    return parse_policy(f"{BASE}network: {{allow: {network}}}\n{more}", "t")


def connect(host: str, port: int = 443, **more: Any) -> Connect:
    raw = {"kind": "connect", "conn": 1, "host": host, "port": port, "protocol": "tls", **more}
    found = parse_connect(raw)
    assert isinstance(found, Connect)
    return found


def verdict(found: Policy, operation: Connect, **context: Any) -> tuple[str, str]:
    made = decide(found, operation, Context(now_ns=10, started_ns=5, egress=True, **context))
    return made.verdict.value, made.rule


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("pypi.org", ("pypi.org", 443)), ("PyPI.org", ("pypi.org", 443)), ("github.com:22", ("github.com", 22)),
        ("*.example.com", ("*.example.com", 443)), ("10.0.0.0/8:5432", ("10.0.0.0/8", 5432)),
        ("[fd00::/8]:443", ("fd00::/8", 443)), ("xn--bcher-kva.example", ("xn--bcher-kva.example", 443)),
        ("_dmarc.example.com", ("_dmarc.example.com", 443)),
    ],
)  # fmt: skip
def test_short_forms(text: str, target: tuple[str, int]) -> None:
    assert parse_target(text) == target


@pytest.mark.parametrize(
    "text",
    [
        "", "*", "*.com", "a..b", "-a.com", "a.com:0", "a.com:65536", "a.com:x", "10.0.0.1", "0x7f.1",
        "127.1", "2130706433", "10.0.0.1/8:1", "fd00::/8", "bücher.example", "a b.com", "https://a.com",
        "user@a.com", "a.com/x",
        "[::1]:443x", "*.*.a.com", "a.*.com",
    ],
)  # fmt: skip
def test_what_is_no_rule(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_target(text)
    with pytest.raises(InvalidError, match=r"t:4:\d+"):
        policy(f'["{text}"]')


@pytest.mark.parametrize(
    "entry",
    [
        "{port: 443}", "{host: a.com, ports: 1}", "{host: a.com, port: http}", "{host: a.com, protocol: udp}",
        "{host: a.com, methods: []}", "{host: a.com, protocol: tls, methods: [GET]}",
        "{host: a.com, port: 80, methods: [FETCH]}",
        "{host: a.com, port: 80, paths: [v1]}", "{host: a.com, trusted: maybe}", "[a.com]",
        "{host: a.com, protocol: tls, credential: x}", "{host: a.com, port: 80, credential: x}",
        "{host: a.com, credential: A}", "{host: a.com, credential: ''}", "{host: 10.0.0.0/8, credential: x}",
        "{model: gemini, credential: x}", "{model: anthropic}", "{host: a.com, price: {input: 1, output: 2}}",
        "{model: openai, credential: x, price: {input: 1}}",
        "{model: openai, credential: x, price: {input: -1, output: 2}}",
        "{model: openai, credential: x, price: {input: 1.5, output: 2}}",
    ],
)  # fmt: skip
def test_long_forms_are_strict(entry: str) -> None:
    with pytest.raises(InvalidError, match=r"t:4:\d+"):
        policy(f"[{entry}]")


def test_everything_is_no_list() -> None:
    for text in ("everything", "a.com", "{all_of: [everything]}"):
        with pytest.raises(InvalidError, match=r"t:4:\d+"):
            policy(text)


def test_covers() -> None:
    assert covers("*.a.com", "x.y.a.com")
    assert not covers("*.a.com", "a.com")
    assert not covers("*.a.com", "xa.com")
    assert covers("10.0.0.0/8", "10.9.9.9")
    assert not covers("10.0.0.0/8", "11.0.0.1")
    assert not covers("10.0.0.0/8", "ten.example")
    assert not covers("*.0.1", "10.0.0.1")
    assert parse_host("A.b.") == "a.b"


def test_what_is_listed_and_what_is_not() -> None:
    found = policy('[a.com, "b.org:22", {host: c.net, trusted: true}]', "trifecta: session\n")
    assert verdict(found, connect("a.com")) == ("allow", "network.allow")
    for host, port in (("x.a.com", 443), ("a.com", 80), ("evil.test", 443), ("93.184.216.34", 443)):
        assert verdict(found, connect(host, port)) == ("deny", "network.allow")
    assert verdict(found, connect("b.org", 22, protocol="tcp")) == ("allow", "network.allow")
    assert verdict(found, connect("b.org", 22)) == ("deny", "network.request")
    line = decide(found, connect("evil.test", 22), Context(now_ns=10, started_ns=5)).next_step
    assert "evil.test:22" in line
    assert verdict(policy("[]"), connect("a.com")) == ("deny", "network.allow")


@pytest.mark.parametrize("inner", ["evil.test", "-", "ech"])
def test_the_name_inside_is_the_name(inner: str) -> None:
    found = policy("[{host: a.com, trusted: true}]")
    assert verdict(found, connect("a.com", inner=inner)) == ("deny", "network.inner")
    assert verdict(found, connect("a.com", inner="a.com")) == ("allow", "network.allow")


def test_requests() -> None:
    found = policy('[{host: a.com, port: 80, methods: [GET], paths: ["/v1/**"], trusted: true}]')

    def of(method: str, path: str) -> str:
        return verdict(found, connect("a.com", 80, protocol="http", method=method, path=path))[0]

    assert of("GET", "/v1/x?q=1") == "allow"
    for method, path in (("POST", "/v1/x"), ("GET", "/v2/x"), ("GET", "/"), ("GET", "/v1/../v2"),
                         ("GET", "/v1/%2e%2e/v2"), ("GET", "/v1//x"), ("GET", "/v1/%2fx"), ("GET", "/x/v1/y"),
                         ("", "")):  # fmt: skip
        assert of(method, path) == "deny", path
    assert admits(NetRule("a.com", 80, "http"), "http", "PUT", "/")
    assert not admits(NetRule("a.com", 80, "http"), "http", "", "")


def test_the_trifecta_asks_but_for_what_is_vouched_for() -> None:
    both = Exposure(("read x",), ("web y",))
    lists = "[a.com, {host: c.net, trusted: true}]"
    static = policy(lists)
    assert verdict(static, connect("a.com")) == ("ask", "trifecta.static")
    assert verdict(static, connect("c.net")) == ("allow", "network.allow")
    session = policy(lists, "trifecta: session\n")
    assert verdict(session, connect("a.com"), seen=Exposure(("x",))) == ("allow", "network.allow")
    assert verdict(session, connect("a.com"), seen=both) == ("ask", "trifecta.session")
    provenance = policy(lists, "trifecta: provenance\n")
    assert verdict(provenance, connect("a.com"), task="install from a.com") == ("allow", "network.allow")
    assert verdict(provenance, connect("a.com"), task="install it") == ("ask", "trifecta.provenance")
    for found in (static, session, provenance):
        assert verdict(found, connect("c.net"), seen=both) == ("allow", "network.allow")
    assert verdict(policy("[{host: a.com, trusted: true, approve: true}]"), connect("a.com")) == (
        "ask",
        "network.approve",
    )
    assert verdict(policy("[a.com]", "hosts: {deny: [a.com]}\n"), connect("a.com")) == ("deny", "hosts.deny")
    vouched = "[{host: a.com, trusted: true}]"
    assert verdict(policy(vouched, "hosts: {ask: [a.com]}\n"), connect("a.com")) == ("ask", "hosts.ask")


def test_no_door_takes_a_connection() -> None:
    with pytest.raises(InvalidError):
        parse_operation({"kind": "connect", "conn": 1, "host": "a.com", "port": 443, "protocol": "tls"})


def test_extending_only_narrows() -> None:
    with pytest.raises(InvalidError, match=r"c:4:\d+.*network.allow: evil.test"):
        parse_policy("version: 1\nname: c\nextends: codegen\nnetwork: {allow: [evil.test]}\n", "c", bundled())
    wide, narrow = NetRule("*.a.com", 443, "tls", trusted=True), NetRule("x.a.com", 443, "tls")
    assert leq_rule(narrow, wide)
    assert not leq_rule(wide, narrow)
    assert leq_rule(NetRule("10.1.0.0/16", 22, "tcp"), NetRule("10.0.0.0/8", 22, "tcp"))
    assert not leq_rule(NetRule("a.com", 80, "http"), NetRule("a.com", 80, "http", methods=("GET",)))


def test_written_down_it_is_the_same() -> None:
    found = policy('{all_of: [[a.com, "10.0.0.0/8:22"], [{host: a.com, port: 80, methods: [GET], paths: ["/x"]}]]}')
    assert parse_policy(emit(found), "again") == found
    assert policy("[]").network == NOWHERE


def test_diff_shows_a_connection() -> None:
    found = diff(
        policy("[{host: a.com, trusted: true}]"), policy("[{host: a.com, trusted: true}, {host: b.org, trusted: true}]")
    )
    assert found.looser
    assert any(getattr(shown.witness.operation, "host", "") == "b.org" for shown in found.witnesses)
    lost = diff(policy("[a.com]"), policy("[{host: a.com, trusted: true}]"))
    assert any(shown.witness.before.verdict is Verdict.ASK for shown in lost.witnesses)
    assert not diff(policy("[a.com, b.org]"), policy("[a.com]")).looser


def test_a_commands_words_decide_nothing_where_connections_are_decided() -> None:
    from nucleus.model.operation import Run

    run = Run(argv=("curl", "https://evil.test/"))
    context = Context(now_ns=10, started_ns=5)
    allowed = policy("[{host: a.com, trusted: true}]", "commands: {allow: everything}\n")
    assert decide(allowed, run, context).verdict is Verdict.ALLOW
    assert decide(policy("[]", "commands: {allow: everything}\n"), run, context).verdict is not Verdict.ALLOW


def test_what_opens_tls() -> None:
    found = policy(
        '[{host: a.com, methods: [GET], paths: ["/v1/**"], trusted: true}, b.org, {host: b.org, trusted: true}]'
    )
    asked = connect("a.com", protocol="https", method="GET", path="/v1/x")
    assert verdict(found, asked) == ("allow", "network.allow")
    for method, path in (("POST", "/v1/x"), ("GET", "/v2")):
        refused = connect("a.com", protocol="https", method=method, path=path)
        assert verdict(found, refused) == ("deny", "network.request")
    assert verdict(found, connect("a.com")) == ("deny", "network.request")  # opened, or not at all
    # Who may have a TLS of their own may have one that is opened.
    assert verdict(found, connect("b.org", protocol="https", method="GET", path="/"))[0] == "allow"
    assert verdict(found, connect("a.com", fault="http.host: x"))[1] == "network.fault"


def test_a_credential_is_what_every_list_names() -> None:
    def named(network: str, **asked: Any) -> tuple[str, ...]:
        return credentials(
            policy(network).network, connect("a.com", protocol="https", method="GET", path="/x", **asked)
        )

    assert named("[{host: a.com, credential: k}]") == ("k",)
    assert named("[{host: a.com, credential: k}, {host: a.com, credential: client}]") == ("k",)
    assert named("[{host: a.com, credential: k}, {host: a.com, credential: l}]") == ("k", "l")
    assert named("[{host: a.com, credential: k, methods: [POST]}, {host: a.com, protocol: https}]") == ()
    assert named("{all_of: [[{host: a.com, credential: k}], [{host: a.com, credential: k}, b.org]]}") == ("k",)
    assert named("{all_of: [[{host: a.com, credential: k}], [a.com]]}") == ()
    assert named("{all_of: [[{host: a.com, credential: client}], [a.com]]}") == ("client",)
    assert named("[a.com]") == ("client",)


def test_the_order_of_opened_rules() -> None:
    plain, opened = NetRule("a.com", 443, "tls"), NetRule("a.com", 443, "https")
    assert leq_rule(opened, plain)
    assert not leq_rule(plain, opened)
    key, own = NetRule("a.com", 443, "https", credential="k"), NetRule("a.com", 443, "https", credential="client")
    assert leq_rule(opened, key)
    assert not leq_rule(key, opened)
    assert not leq_rule(key, plain)
    assert leq_rule(own, plain)
    model = NetRule("a.com", 443, "https", credential="k", model="openai", price=(1, 2, 1, 1))
    assert leq_rule(model, key)
    assert not leq_rule(key, model)
    assert not leq_rule(NetRule("a.com", 443, "https", credential="k", model="openai", price=(9, 9, 9, 9)), model)
    service = NetRule("a.com", 443, "https", credential="k", service="git")
    assert not leq_rule(service, key)
    assert not leq_rule(key, service)
    ssh = NetRule("a.com", 22, "tcp", credential="k", service="git", host_key=HOST_KEY)
    assert leq_rule(ssh, ssh)
    assert not leq_rule(ssh, replace(ssh, host_key="ssh-ed25519 BBBBBBBBB"))
    assert not leq_rule(ssh, NetRule("a.com", 22, "tcp"))


@pytest.mark.parametrize(
    "rule",
    [
        f'{{service: git, host: g.test, host_key: "{HOST_KEY}"}}',  # no credential
        f'{{service: git, host: g.test, credential: k, protocol: https, host_key: "{HOST_KEY}"}}',
        f'{{service: github, host: g.test, credential: k, host_key: "{HOST_KEY}"}}',
        f'{{host: g.test, credential: k, host_key: "{HOST_KEY}"}}',
        "{service: git, host: g.test, credential: k, host_key: ssh-ed25519}",
        '{service: git, host: g.test, credential: k, host_key: "ssh-ed25519 AAAA BBBB CCCC"}',
        '{service: git, host: g.test, credential: k, host_key: "-oProxyCommand=x AAAAAAAAAA"}',
    ],
)
def test_host_keys_that_are_refused(rule: str) -> None:
    with pytest.raises(InvalidError):
        policy(f"[{rule}]")


def test_a_host_key_is_written_down() -> None:
    found = policy(f'[{{service: git, host: g.test, credential: k, host_key: "{HOST_KEY}", paths: ["/a/*"]}}]')
    assert parse_policy(emit(found), "again") == found
    assert service(found.network, ("git",), "g.test", "/a/x") is None
    rule = service(found.network, ("git",), "g.test", "/a/x", ssh=True)
    assert rule is not None
    assert (rule.port, rule.protocol) == (22, "tcp")
    assert service(found.network, ("git",), "g.test", "/b/x", ssh=True) is None


def test_models_and_services_are_written_down() -> None:
    found = policy(
        "[{model: anthropic, credential: k, price: {input: 3, output: 15}},"
        " {model: openai, host: llm.test, credential: k, trusted: false},"
        ' {service: git, host: g.test, credential: g, paths: ["/acme/*"]},'
        " {service: searxng, host: s.test, port: 8080, protocol: http}]"
    )
    assert parse_policy(emit(found), "again") == found
    rules = {rule.host: rule for rules in found.network for rule in rules}
    assert rules["api.anthropic.com"].price == (3, 15, 3, 3)
    assert rules["api.anthropic.com"].trusted
    assert not rules["llm.test"].trusted
    assert service(found.network, ("git",), "g.test", "/acme/x") is rules["g.test"]
    assert service(found.network, ("git",), "g.test", "/evil/x") is None
    assert service(found.network, ("searxng", "brave")) is rules["s.test"]
    # A service is no way out for the pod's programs.
    assert verdict(found, connect("g.test", protocol="https", method="GET", path="/acme/x")) == (
        "deny",
        "network.allow",
    )
    meant = policy(
        "{all_of: [[{service: git, host: g.test, credential: g}], [{service: git, host: g.test, credential: h}]]}"
    )
    assert service(meant.network, ("git",)) is None
