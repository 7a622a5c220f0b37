# ruff: noqa: E501 - tables
"""The table's generalization, the rule set, and the properties: idempotent, bounded, linear, nothing planted leaks."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nucleus.sanitize import LIMIT, characters, hosts, paths, redact, rules, sanitize, sanitize_paths, secrets, traces
from nucleus.sanitize.patterns import Pattern
from nucleus.validate.patterns import scan

PATHS = [
    ("~user/x", "[home]/x"),
    ("~/notes", "[home]/notes"),
    ("HEAD~3/x and ~5/10", "HEAD~3/x and ~5/10"),
    ("/proc/self/fd/3", "[path]"),
    ("/proc/1234/root/home/x", "[path]"),
    ("//double//slashes", "[path]"),
    ("//workspace//a", "[sandbox]/a"),
    ("/workspace/./a", "[sandbox]/a"),
    ("'/home/a b/c'", "'[home]/c'"),
    ('"/etc/my file" is', '"[path]" is'),
    ("'/home/o\\'brien/x y'", "'[home]/x y'"),
    ("b'/x'", "b'[path]'"),
    ("PosixPath('/x')", "PosixPath('[path]')"),
    ('{"a":"/etc/x","b":"/workspace/q"}', '{"a":"[path]","b":"[sandbox]/q"}'),
    ('{\\"a\\": \\"/etc/x y\\"}', '{\\"a\\": \\"[path]\\"}'),
    ("key=/path", "key=[path]"),
    ("-I/path -isystem/usr/include", "-I[path] -isystem[path]"),
    ("PATH=/a:/b", "PATH=[path]:[path]"),
    ("PATH=/workspace/bin:/usr/bin:/home/u/bin", "PATH=[sandbox]/bin:[path]:[home]/bin"),
    ("cp:/a", "cp:[path]"),
    ("host:/srv/x", "host:[path]"),
    ("%2Fetc%2Fpasswd", "[path]"),
    ("%2Fworkspace%2Fa.py", "[sandbox]/a.py"),
    ("%252Fhome%252Fu%252Fx", "[home]/x"),
    ("\\/etc\\/passwd", "[path]"),
    ("\\u002fetc\\x2fpasswd", "[path]"),
    ("&#47;etc&#x2F;passwd", "[path]"),
    ("/workspace/%2e%2e/etc", "[path]"),
    ("/workspace/../etc/passwd", "[path]"),
    ("/etc/пароль/секрет", "[path]"),
    ("/home/użytkownik/zażółć", "[home]/zażółć"),
    ("打开/etc/passwd失败", "打开[path]"),
    ("first\\n/etc/passwd", "first\\n[path]"),
    ("/workspace/a\\n/etc/shadow", "[sandbox]/a\\n[path]"),
    ("\x1b[31m/etc/passwd\x1b[0m", "\x1b[31m[path]"),
    ("/etc/\x1b[1mpass\x1b[0mwd x", "[path] x"),
    ("\\u001b[1m/etc/passwd", "\\u001b[1m[path]"),
    ("/var/sand\nbox/abc/x", "[sandbox]/x"),
    ("/home/user/.con\nfig/cred", "[home]/.config/cred"),
    ("/etc/\npasswd", "[path]"),
    ("in /workspace/a\nsrc/b: error", "in [sandbox]/a\nsrc/b: error"),
    ("/usr/include/x.h:12:3: error", "[path]:12:3: error"),
    ("/workspace/src/a.py:12: error", "[sandbox]/src/a.py:12: error"),
    ("file:/etc/passwd", "file:[path]"),
    ("FILE://host/etc/x", "[path]"),
    ("https://h.example/p?file=/etc/passwd", "https://h.example/p?file=[path]"),
    ("https://h.example/p?file=%2Fetc%2Fpasswd", "https://h.example/p?file=[path]"),
    ("https://h.example:8080/x/~u/y", "https://h.example:8080/x/~u/y"),
    ("https://h.example/a,/etc/x", "https://h.example/a,[path]"),
    ("https://a.example/web/https://b.example/y", "https://a.example/web/https://b.example/y"),
    ("https:\\/\\/example.org\\/x", "https:\\/\\/example.org\\/x"),
    ("src/a.c:/etc/x", "src/a.c:[path]"),
    ("/app/(group)/[slug]/page.tsx", "[path]"),
    ("(/usr/lib/x.so)/etc/b", "([path])[path]"),
    (
        "</div> <br/> +/- // c /* d */ and/or 1/2 ./a ../b './c'",
        "</div> <br/> +/- // c /* d */ and/or 1/2 ./a ../b './c'",
    ),
    ("src/**/*.py c++/x #/properties/a", "src/**/*.py c++/x #/properties/a"),
    ("**/etc/passwd**", "**[path]**"),
    ("done./etc/x", "done.[path]"),
    ("cd / ", "cd / "),
    ("/home", "[path]"),
    ("/home/", "[path]"),
    ("/home/user", "[home]"),
    ("/Users/bob/x /var/home/bob/y", "[home]/x [home]/y"),
    ("/var/sandbox/abc123", "[sandbox]"),
    ("[sandbox]/a [home]/b [path]:12", "[sandbox]/a [home]/b [path]:12"),
    ("[home]/a:/etc/passwd", "[home]/a:[path]"),
    ("'/var/sandbox/{ /etc/x'", "'[path]'"),  # found by fuzzing: a name that is none
    ("'/home/u /etc/x'", "'[path]'"),
    ("'/home/u x=/etc/x'", "'[path]'"),
]


@pytest.mark.parametrize(("internal", "sanitized"), PATHS)
def test_paths_in_every_dress(internal: str, sanitized: str) -> None:
    assert sanitize_paths(internal) == sanitized


def test_the_sandbox_is_where_the_caller_says_and_the_innermost_wins() -> None:
    assert sanitize_paths("/srv/w/a /workspace/b", ("/srv/w/",)) == "[sandbox]/a [path]"
    assert sanitize_paths("/w/in/a /w/b", ("/w", "/w/in")) == "[sandbox]/a [sandbox]/b"
    assert sanitize_paths("/etc/x", ("/", "")) == "[path]"


# One made-up secret of each shape, put together here so that no scanner takes this file for a leak.
A, H, D = "aB3" * 30, "0f1e2d3c4b5a6978" * 8, "7" * 12
SHAPES = {
    "GitHub": "ghp" + "_" + A[:36],
    "GitHub server": "ghs" + "_" + A[:36],
    "GitHub fine-grained": "github" + "_pat_" + A[:22] + "_" + A[:59],
    "GitLab": "glpat" + "-" + A[:20],
    "GitLab routable": "glpat" + "-" + A[:27] + ".01." + "1a2b3c4d5",
    "GitLab deploy": "gldt" + "-" + A[:20],
    "Slack": "xoxb" + f"-{D}-{D}-" + A[:24],
    "Slack app": "xapp" + "-1-A" + D + "-" + D + "-" + H[:64],
    "Slack webhook": "hooks.slack.com/services/" + "T" + D + "/B" + D + "/" + A[:24],
    "Stripe": "sk" + "_live_" + A[:24],
    "Stripe restricted": "rk" + "_test_" + A[:24],
    "Stripe webhook": "whsec" + "_" + A[:32],
    "AWS": "AKIA" + "Q3EGRTX7" * 2,
    "AWS session": "ASIA" + "Q3EGRTX7" * 2,
    "Google": "AIza" + A[:35],
    "Google access": "ya29" + "." + A[:60],
    "Google client": "GOCSPX" + "-" + A[:28],
    "npm": "npm" + "_" + A[:36],
    "PyPI": "pypi" + "-AgEIcHlwaS5vcmc" + A[:70],
    "Anthropic": "sk" + "-ant-api03-" + A[:80] + "AA",
    "OpenAI": "sk" + "-proj-" + A[:40] + "T3Blbk" + "FJ" + A[:40],
    "OpenAI old": "sk" + "-" + A[:48],
    "Hugging Face": "hf" + "_" + A[:34],
    "SendGrid": "SG" + "." + A[:22] + "." + A[:43],
    "Twilio": "SK" + H[:32],
    "Azure SAS": "sig" + "=" + A[:43] + "%3D",
    "Azure storage": "AccountKey" + "=" + A[:86] + "==",
    "Entra": A[:3] + "8Q~" + A[:34],
    "JWT": "ey" + "JhbGciOiJIUzI1NiJ9." + "ey" + "JzdWIiOiIxIn0." + A[:43],
    "PEM": "-----BEGIN " + "RSA PRIVATE KEY-----\n" + A[:64] + "\n" + A[:64] + "\n-----END RSA PRIVATE KEY-----",
    "PEM in JSON": "-----BEGIN " + "PRIVATE KEY-----\\n" + A[:64] + "\\n-----END PRIVATE KEY-----\\n",
    "OpenSSH": "-----BEGIN " + "OPENSSH PRIVATE KEY-----\n" + A[:70] + "\n-----END OPENSSH PRIVATE KEY-----",
    "PEM's end": A[:64] + "\n" + A[:20] + "==\n-----END " + "EC PRIVATE KEY-----",
    "OpenSSH's body": "b3Blbn" + "NzaC1rZXktdj" + A[:60],
    "RSA's body": "MII" + "EvQIBADAN" + A[:64],
    "age": "AGE-" + "SECRET-KEY-1" + "QPZRY9X8" * 7,
    "Authorization": "Authorization: Bearer " + A[:40],
    "Authorization, two words": "authorization: Token " + A[:40],
    "Bearer": "Bearer " + A[:40],
    "basic": "basic " + A[:24] + "==",
    "Cookie": "Cookie: a=b; sid=" + A[:40],
    "Set-Cookie": "Set-Cookie: sid=" + A[:40] + "; HttpOnly",
    "header": "X-Api-Key: " + A[:40],
    "URL": "https://bob:" + A[:20] + "@h.example/x",
    "URL, no password": "https://" + A[:40] + "@h.example/x",
    "connection string": "postgres://app:p@" + A[:20] + "/w@db.example:5432/x",
    "redis": "redis://:" + A[:20] + "@h.example:6379/0",
    "ODBC": "Server=x;Uid=sa;Pwd=" + A[:20] + ";Database=y",
    "Go DSN": "app:" + A[:20] + "@tcp(db:3306)/x",
    "assignment": "DB_PASSWORD=" + A[:20],
    "yaml": "client_secret: " + A[:20],
    "JSON": '{"api_key": "' + A[:20] + '"}',
    "escaped JSON": '{\\"token\\":\\"' + A[:20] + '\\"}',
    "option": "--password " + A[:20],
    "curl": "curl -u bob:" + A[:20] + " https://h.example",
    "netrc": "machine h.example login bob password " + A[:20],
    "AWS secret": "aws_secret_access_key = " + A[:40],
    "npmrc": "//registry.example/:_authToken=" + A[:36],
    "Vault": "hvs" + "." + A[:60],
    "Telegram": D[:10] + ":AA" + A[:33],
    "Docker": "dckr" + "_pat_" + A[:27],
    "Discord": "https://discord.com/api/webhooks/" + D + D[:6] + "/" + A[:68],
    "approval token": H + "." + H[:64],
}


@pytest.mark.parametrize("name", SHAPES)
def test_each_shape_is_redacted(name: str) -> None:
    for text in (
        SHAPES[name],
        f"it said {SHAPES[name]}",
        f"({SHAPES[name]})",
        f"x={SHAPES[name]}\n",
        f"«{SHAPES[name]}»",
    ):
        assert "[redacted]" in redact(text)
        for shown in (redact(text), sanitize(text)):
            assert all(part not in shown for part in (A[:12], H[:12], "Q3EGRTX7", "QPZRY9X8")), shown


def test_what_is_no_secret_stays() -> None:
    text = (
        "max_tokens: 4096, token: expired, credential: github, unexpected token: foo, KeyError: 'x', tokenizer = fast, secretary: Ann, "
        "keyboard=us, a sk-learn-like-name-of-a-package, commit 0f1e2d3c4b5a69780f1e2d3c4b5a69780f1e2d3c, "
        "cat: a/secrets/token: No such file, ssh://git@github.com/o/r.git"
    )
    assert redact(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("db.corp.internal", "[host]"),
        ("https://api.svc.ns.svc.cluster.local:8443/x", "https://[host]:8443/x"),
        ("bob@mail.corp 10.1.2.3, 192.168.0.1:80 172.16.9.9", "bob@[host] [host], [host]:80 [host]"),
        ("169.254.169.254 [fe80::1%eth0] fd00:ec2::254", "[host] [[host]] [host]"),
        ("ip-10-0-0-1.ec2.internal ip-10-0-0-1", "[host] [host]"),
        ("localhost 127.0.0.1 ::1 0.0.0.0 8.8.8.8 example.org", "localhost 127.0.0.1 ::1 0.0.0.0 8.8.8.8 example.org"),
        (
            "threading.local() .env.local settings.local.json 172.32.0.1",
            "threading.local() .env.local settings.local.json 172.32.0.1",
        ),
    ],
)
def test_hosts(text: str, shown: str) -> None:
    assert sanitize(text) == shown


def test_own_names_stay() -> None:
    assert (
        sanitize("nucleus.internal and db.internal", own_hosts=("nucleus.internal",)) == "nucleus.internal and [host]"
    )


TRACES = {
    "python": (
        "run: Traceback (most recent call last):\n  File \"/home/x/a.py\", line 3, in f\n    g()\nKeyError: '/etc/x'\n\n"
        "During handling of the above exception, another exception occurred:\n\nTraceback (most recent call last):\n"
        '  File "/home/x/b.py", line 3, in f\nValueError: cannot open /home/u/x\nafter',
        "run: [stack trace]\nValueError: cannot open [home]/x\nafter",
    ),
    "python escaped": (
        'Traceback (most recent call last):\\n  File \\"/x\\", line 1\\n    f()\\nValueError: q',
        "[stack trace]\\nValueError: q",
    ),
    "python group": (
        '  + Exception Group Traceback (most recent call last):\n  |   File "/x.py", line 1, in <module>\n'
        "  | ExceptionGroup: eg (1 sub-exception)\n  +-+---------------- 1 ----------------\n    | TypeError: /etc/2\n"
        "    +------------------------------------\n",
        "[stack trace]\nTypeError: [path]\n",
    ),
    "java": (
        'Exception in thread "main" java.lang.RuntimeException: a /etc/x\n\tat a.B.c(B.java:3)\n\tat a.B.main(B.java:9)\n'
        "Caused by: java.io.IOException: /home/u/y\n\tat a.B.d(B.java:30)\n\t... 1 more\nend",
        "[stack trace]\nCaused by: java.io.IOException: [home]/y\nend",
    ),
    "node": (
        "TypeError: x /etc/y\n    at foo (/a/b.js:1:2)\n    at async /a/c.js:3:4\n    at <anonymous>\n",
        "[stack trace]\nTypeError: x [path]\n",
    ),
    "go": (
        "panic: boom\n\ngoroutine 1 [running]:\nmain.f(0x1)\n\t/home/x/main.go:12 +0x1d\nexit status 2",
        "[stack trace]\npanic: boom\nexit status 2",
    ),
    "rust": (
        "thread 'main' panicked at src/main.rs:2:5:\nboom\nstack backtrace:\n   0: std::panicking::begin\n"
        "             at /rustc/abc/library/std/src/x.rs:5:5\nnote: more",
        "thread 'main' panicked at src/main.rs:2:5:\n[stack trace]\nboom\nnote: more",
    ),
    "native": (
        "ERROR: heap-use-after-free\n    #0 0x55d in f /src/x.c:3\n    #1 0x55e in main /src/x.c:9\n",
        "[stack trace]\nERROR: heap-use-after-free\n",
    ),
}


@pytest.mark.parametrize("name", TRACES)
def test_a_stack_trace_is_one_line_and_the_message(name: str) -> None:
    text, shown = TRACES[name]
    assert sanitize(text) == shown


def test_unseen_characters_are_written_out() -> None:
    assert sanitize("a\u200bb\ufeffc\U000e0041d\x9be\ud800f\ufe0fg\u3164") == (
        "a\\u200bb\\ufeffc\\U000e0041d\\u009be\\ud800f\\ufe0fg\\u3164"
    )
    assert sanitize("zażółć 打开 é\t\n") == "zażółć 打开 é\t\n"


# --- properties ---

PIECES = st.sampled_from(
    [*SHAPES.values(), *(a for a, _ in PATHS), *(t for t, _ in TRACES.values()), "[redacted]", "[path]", "[home]", "…", "password=",
     "token: ", "://", "@", "'", '"', "\\", "/", "%2F", "\n", " ", ":", "=", "~", "10.0.0.1", "a.internal", "fe80::", "\u202e", "\x1b[0m", "ghp_", "eyJ", "-----BEGIN "]
)  # fmt: skip
TEXTS = st.lists(PIECES | st.text(max_size=12), max_size=12).map("".join)


@settings(max_examples=400, deadline=None)
@given(TEXTS)
@example("password=" * 300)
@example("/workspace/" + "a" * 1985 + " password=[redacted]")
def test_idempotent_and_bounded(text: str) -> None:
    for act in (sanitize, redact, sanitize_paths):
        shown = act(text)
        assert act(shown) == shown
        assert len(shown) <= 10 * len(text)
    assert len(sanitize(text)) <= LIMIT


@pytest.mark.parametrize("length", range(1960, 2010))
def test_idempotent_at_the_cut(length: int) -> None:
    for end in (
        "password=hunter22 x",
        "/home/u/x /etc/passwd",
        "-----BEGIN " + "PRIVATE KEY-----",
        "https://[redacted]@h/x",
        "a" + "\u202e" * 9,
    ):
        shown = sanitize("x" * length + " " + end + " y" * 30)
        assert sanitize(shown) == shown != "[withheld]"
        assert len(shown) <= LIMIT


AROUND = st.sampled_from(["", "打", " ", "\n", "\t", "'", '"', "`", "(", ")", "[", "]", "{", "}", "<", ">", "=", ":", ",", ";", "|", "&", "!", "?", "«", "»", "→", "…", "\u200b", "\x1b[1m"])  # fmt: skip
PROSE = st.text(alphabet="abcdefgh XYZ.,:;'\"()[]{}<>=-_%\\\n\té打~@#*", max_size=40)


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(sorted(SHAPES)), PROSE, AROUND, AROUND, PROSE)
def test_no_planted_secret_leaks(name: str, before: str, left: str, right: str, after: str) -> None:
    shown = sanitize(f"{before} {left}{SHAPES[name]}{right} {after}")
    assert all(part not in shown for part in (A[:12], H[:12], "Q3EGRTX7", "QPZRY9X8"))


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(["/etc/ssl/planted.key", "/opt/planted/b", "//srv/planted", "/proc/1/root/planted", "%2Fetc%2Fplanted", "\\/etc\\/planted", "file:///etc/planted", "/etc/a,planted", "/etc/x=planted", "/workspace/../planted", "/planted/x", "/usr/lib/(x)/planted"]), PROSE, AROUND, AROUND, PROSE)  # fmt: skip
def test_no_planted_path_leaks(path: str, before: str, left: str, right: str, after: str) -> None:
    shown = sanitize(f"{before} {left}{path}{right}{after}")
    assert "planted" not in shown


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["alice", "bob.smith"]), st.sampled_from(["/home/{}/w/x", "/var/sandbox/{}/w/x", "~{}/w/x", "'/home/{} jones/w/x'"]), PROSE, AROUND)  # fmt: skip
def test_no_users_name_leaks(user: str, path: str, before: str, left: str) -> None:
    shown = sanitize(f"{before} {left}{path.format(user)}")
    assert user not in shown


# --- linear ---

PATTERNS = {
    **{f"plain {n}": pattern.pattern for n, pattern in enumerate(paths._plain_paths(("/workspace", "/srv/w")))},
    **{f"rules {pattern.pattern}": pattern.pattern for _, _, pattern in rules.DIRECT},
    **{
        f"{module.__name__.rpartition('.')[2]} {name} {n}": pattern.pattern
        for module in (paths, characters, hosts, secrets, traces)
        for name, value in vars(module).items()
        for n, pattern in enumerate(
            [value]
            if isinstance(value, Pattern)
            else list(value.values())
            if name in ("QUOTED", "ESCAPED") and isinstance(value, dict)
            else [p for _, p in value]
            if name == "V4"
            else []
        )
    },
}


@pytest.mark.parametrize("name", PATTERNS)
def test_no_pattern_can_blow_up(name: str) -> None:
    # A look around is of fixed width or anchored at one place; the scan, which speaks RE2's syntax, judges the rest.
    assert scan(_without_looks(PATTERNS[name])) is None


def _without_looks(pattern: str) -> str:
    """`pattern` with each `(?=`, `(?!`, `(?<=` and `(?<!` group as a plain optional one."""
    return re.sub(r"\(\?<?[=!]", "(?:", pattern)


HOSTILE = [
    "/", "/a", "/a:", "/a ", "//", "'/a", "\"/a\\\"", "/a(", "/(a", "[home]", "[home]/a:", "%2F", "\\/", "\\\\", "~a", "~a/", "://", "://a:",
    "://a:b", "a@", "@", "password", "password=", "password:[redacted] ", "cookie: ", "cookie:[redacted] ", "token='", "token=\\\"", "--password ",
    "-----BEGIN ", "-----BEGIN " + "PRIVATE KEY-----", "-----END " + "PRIVATE KEY-----", "eyJ", "eyJ" + "a" * 20 + ".", "ghp_", "SG." + "a" * 20, "sk-",
    "Q~", ":AA", "1.", "10.", "10.1.", "172.16.", "::", "fe80:", "a.internal", ".internal", "a.internal.", "Traceback (most recent call last):\n",
    "Traceback (most recent call last):\n  x\n", "Traceback (most recent call last):\n  x\nE: y\n\n" + traces.CHAIN[0] + "\n\n", "\tat a.b(c:1)\n",
    "x\n\tat a.b(c:1)\n", "Caused by: x\n\tat a.b(c:1)\n", "goroutine 1 [x]:\n", "\n", "/a/\nb", "/a\nb/c\n", "\u202e", "\x1b[0m", "\x1b[", "a", "A", "é",
    "&#47;", "bearer ", "login a password ", "-u a:", "0f" * 32, "0f" * 32 + ".", "MII" + "aaaIBAD", "file://", "\\n/", "*", "x/", "x=/", "a:b@tcp(", "aaa@tcp(", "/\\x1b[0m", "-u a", "\\\\n", "打sk-",
]  # fmt: skip


def _took(text: str) -> float:
    best = 1e9
    for _ in range(3):
        started = time.perf_counter()
        sanitize(text)
        redact(text)
        sanitize_paths(text)
        best = min(best, time.perf_counter() - started)
    return best


@pytest.mark.parametrize("unit", HOSTILE)
def test_time_grows_with_the_size(unit: str) -> None:
    """Eight times the text in at most twenty times the time (quadratic would be sixty-four): a ratio, not a clock."""
    small, large = (unit * (size // len(unit)) for size in (4_000, 32_000))
    for _ in range(3):
        if _took(large) <= 20 * max(_took(small), 1e-4):
            return
    pytest.fail(f"{_took(large) / _took(small):.0f} times as long for 8 times the text")
