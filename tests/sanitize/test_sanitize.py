"""The seed's "Error Handling" table, cell by cell, and what must not slip past it."""

from __future__ import annotations

import pytest

from nucleus.sanitize import redact, sanitize, sanitize_paths


@pytest.mark.parametrize(
    ("internal", "sanitized"),
    [
        ("/var/sandbox/abc123/secrets/token.txt", "[sandbox]/secrets/token.txt"),
        ("/home/user/.config/credentials", "[home]/.config/credentials"),
        ("/etc/passwd", "[path]"),
        ("/workspace/src/a.py", "[sandbox]/src/a.py"),
        ("/workspace", "[sandbox]"),
        ("/workspacex/a", "[path]"),
        ("/root/.ssh/id_rsa", "[home]/.ssh/id_rsa"),
        ("/home/user/../../etc/passwd", "[path]"),
        ("cannot open '/etc/shadow': denied", "cannot open '[path]': denied"),
        ("see file:///etc/passwd.", "see [path]."),
        ("a/b is relative, 1/2 is a fraction", "a/b is relative, 1/2 is a fraction"),
        ("https://example.org/x/y", "https://example.org/x/y"),
        ("(/usr/lib/x.so) and [/opt/y]", "([path]) and [[path]]"),
    ],
)
def test_paths(internal: str, sanitized: str) -> None:
    assert sanitize_paths(internal) == sanitized


@pytest.mark.parametrize(
    "secret",
    [
        "ghp_" + "a" * 36,
        "AKIA" + "A" * 16,
        "sk-" + "b" * 40,
        "-----BEGIN EC PRIVATE KEY-----\nabc\n-----END EC PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\ncut short",
        "https://user:hunter2pass@host/x",
    ],
)
def test_secrets_are_redacted(secret: str) -> None:
    shown = redact(f"it said {secret} here")
    assert "[redacted]" in shown
    assert not any(part in shown for part in ("aaaa", "AAAA", "bbbb", "abc\n", "cut short", "hunter2"))


def test_assignments_keep_the_name_and_lose_the_value() -> None:
    assert redact("password=hunter22 next") == "password=[redacted] next"
    assert redact("API_KEY: abcdef") == "API_KEY: [redacted]"
    assert redact("tokenizer = fast") == "tokenizer = fast"


def test_control_and_bidi_characters_are_escaped_and_length_is_bounded() -> None:
    assert sanitize("a\x1b[2Jb\u202ec") == "a\\u001b[2Jb\\u202ec"
    assert len(sanitize("x" * 10_000)) == 2000


def test_linear_on_hostile_text() -> None:
    import time

    started = time.perf_counter()
    for text in ("/" * 50_000, "/a" * 25_000, "password" * 6_000, "-----BEGIN " * 4_000, "eyJ" + "a" * 50_000):
        sanitize(text)
    assert time.perf_counter() - started < 5
