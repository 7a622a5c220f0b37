"""The targets, and what has to hold for each.

An error is one of ours with a rule (`NucleusError`), or what the reader's documentation names. Everything else that
escapes is a finding, as is an assertion.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from nucleus.audit.chain import Head, extend
from nucleus.audit.checkpoint import Reader as Checkpoints
from nucleus.audit.note import encode as encode_note
from nucleus.audit.note import parse as parse_note
from nucleus.audit.proof import parse_proof
from nucleus.audit.record import Record
from nucleus.audit.verify import Verifier
from nucleus.errors import InvalidError, NucleusError
from nucleus.frames import Decoder
from nucleus.frames import encode as encode_frame
from nucleus.globs import folded as folded_text
from nucleus.lattice.commands import analyse
from nucleus.lattice.decision import Context, decide
from nucleus.lattice.emit import emit
from nucleus.lattice.load import parse_policy
from nucleus.lattice.paths import PathSet, is_protected, is_sensitive
from nucleus.model.decision import Verdict
from nucleus.model.operation import Run
from nucleus.network import dns, hello, httphead, receive_pack
from nucleus.network.addresses import is_public, literal
from nucleus.sanitize import LIMIT, redact, sanitize
from nucleus.sdk import jsontext
from nucleus.sdk import wire as sdk_wire
from nucleus.server import wire
from nucleus.validate import validate_operation
from nucleus.validate.paths import validate_glob, validate_path
from nucleus.validate.patterns import validate_pattern
from nucleus.validate.shell import canonical
from nucleus.validate.urls import split_url

RANK = {Verdict.ALLOW: 0, Verdict.ASK: 1, Verdict.DENY: 2}
SECRET = "ghp_" + "a1B2c3D4e5" * 3 + "f6G7h8"  # the shape of a token, and none


def text(data: bytes) -> str:
    """Any text, lone surrogates included: the first byte says how the rest is read."""
    kind, rest = data[:1], data[1:]
    if kind < b"\x40":
        return rest.decode("utf-8", "surrogateescape")
    if kind < b"\x80":
        return rest.decode("utf-8", "replace")
    return rest.decode("utf-16-le" if kind < b"\xc0" else "latin-1", "surrogatepass" if kind < b"\xc0" else "strict")


def texts(data: bytes) -> str | None:
    """`text`, where the bytes are one."""
    try:
        return text(data)
    except UnicodeDecodeError:
        return None


@cache
def policy() -> Any:
    """What commands are decided by."""
    levels = "{read_files: always, write_files: always, run_bash: always, glob_search: always, grep_search: always}"
    listed = "[{set: ordinary}, {set: interpreters}, {set: shells}, {set: shell_strings}, {program: make}]"
    return parse_policy(f"version: 1\nname: f\ncapabilities: {levels}\ncommands: {{allow: {listed}}}\n", "fuzz")


CONTEXT = Context(now_ns=10**9, started_ns=1, isolation="firecracker", trusted_workspace=True)


def commands(data: bytes) -> None:
    """A command is validated once and for all; its analysis does not crash; a wrapper never makes it freer."""
    whole = texts(data)
    if whole is None:
        return
    argv = tuple(whole.split("\n", 40))
    try:
        found = validate_operation(Run(argv=argv))
    except (InvalidError, ValueError):  # pydantic's ValidationError is a ValueError: what is no text at all
        return
    assert isinstance(found, Run)
    assert validate_operation(found).argv == found.argv, "not a fixed point"  # type: ignore[attr-defined]
    again = canonical(found.argv)
    assert again is None or canonical(again) == again
    command = analyse(found.argv)
    assert all(not path.startswith(("/", "../")) and path != ".." for path in command.paths), command.paths
    first = found.argv[0]
    if "=" in first or first.startswith("-") or not first.strip():
        return
    plain = decide(policy(), found, CONTEXT).verdict
    for wrapper in (("env",), ("nice",), ("timeout", "5"), ("nohup",), ("xargs",)):
        try:
            wrapped = validate_operation(Run(argv=(*wrapper, *found.argv)))
        except (InvalidError, ValueError):
            continue
        verdict = decide(policy(), wrapped, CONTEXT).verdict
        assert RANK[verdict] >= RANK[plain], (wrapper, found.argv, plain, verdict)


def paths(data: bytes) -> None:
    """A path stays inside, is normalized once and for all, and no other spelling of it escapes a block list."""
    path = texts(data)
    if path is None:
        return
    try:
        found = validate_path("path", path)
    except InvalidError:
        return
    assert validate_path("path", found) == found
    assert not found.startswith("/")
    assert ".." not in found.split("/")
    assert "\0" not in found
    sensitive, protected = is_sensitive(found), is_protected(found)
    for other in (found.upper(), found.lower(), unicodedata.normalize("NFC", found)):
        if other.casefold() == found.casefold() and other.isascii():
            assert (is_sensitive(other) is None) == (sensitive is None), (found, other)
            assert (is_protected(other) is None) == (protected is None), (found, other)
    if sensitive is not None:
        assert is_sensitive(f"sub/{found}") is not None or "/" in found.strip("/") or found == "."


def globs(data: bytes) -> None:
    """A glob is refused or matched, in bounded time; one without wildcards covers what is under it."""
    whole = texts(data)
    if whole is None:
        return
    pattern, _, path = whole.partition("\n")
    try:
        found = validate_glob("glob", pattern)
        path = validate_path("path", path or "a/b.c")
    except InvalidError:
        return
    assert validate_glob("glob", found) == found
    matched = PathSet((found,), False).find(path)
    folded = PathSet((found,), True).find(path)
    # A set of all but some holds less when cases are one; and a letter may be two when they are (ß, ﬁ).
    if "[!" not in found and "[^" not in found and len(folded_text(path)) == len(path):
        assert matched is None or folded is not None, "ignoring case matches less"
    if not set(found) & set("*?[]!{}\\") and found == path:
        assert matched is not None
        assert PathSet((found,), False).find(f"{path}/below") is not None


def patterns(data: bytes) -> None:
    """A pattern is refused with a position, or compiles in RE2 within its memory."""
    pattern = texts(data)
    if pattern is None:
        return
    try:
        validate_pattern("pattern", pattern)
    except InvalidError:
        return
    import re2  # late: its import is a tenth of a second

    options = re2.Options()
    options.log_errors = False
    try:
        re2.compile(pattern, options=options).search("aaaa bbbb 1234")
    except re2.error:
        return


def policies(data: bytes) -> None:
    """A policy is refused at its line and column, or is the same when it is written down and read again."""
    whole = texts(data)
    if whole is None:
        return
    try:
        found = parse_policy(whole, "fuzz")
    except InvalidError as error:
        refused = error
    else:
        refused = None
    if refused is not None:
        assert "fuzz" in refused.message or refused.rule.startswith("limits."), refused
        return
    assert found is not None
    assert parse_policy(emit(found), "again") == found


def frames(data: bytes) -> None:
    """Both readers of frames agree, however the bytes are cut, and what was read can be written again."""
    cut = data[0] if data else 0
    stream = data[1:]
    mine = list(_frames(stream, 1 << 30))
    assert mine == list(_frames(stream, cut + 1)), "the cut matters"
    theirs = []
    reader = sdk_wire.Reader()
    reader.feed(stream)
    try:
        while (frame := reader.take()) is not None:
            theirs.append(frame)
    except ValueError:
        pass
    for (header, body), (other, same) in zip(mine, theirs, strict=False):
        assert body == same
        if "NaN" not in json.dumps(header) and "Infinity" not in json.dumps(header):
            assert header == other
            (back,) = Decoder().feed(encode_frame(header, body))
            assert (back.header, back.body) == (header, body)


def _frames(stream: bytes, size: int) -> Iterator[tuple[dict[str, Any], bytes]]:
    decoder = Decoder()
    try:
        for at in range(0, len(stream), size):
            for frame in decoder.feed(stream[at : at + size]):
                yield frame.header, frame.body
    except InvalidError:
        return


def requests(data: bytes) -> None:
    """A body is refused with a rule, or is an operation that stays the same through the wire."""
    try:
        found = wire.parse_operation(wire.parse_object(data))
    except InvalidError:
        return
    again = wire.parse_operation(
        wire.parse_object(json.dumps(found.model_dump(mode="json", exclude=set(found.resolved))).encode())
    )
    assert again == found


def json_text(data: bytes) -> None:
    """The pod's own JSON reads no more than the library's, and the same."""
    try:
        mine = jsontext.loads(data)
    except (ValueError, RecursionError):
        return
    theirs = json.loads(data.decode("utf-8"))
    assert repr(mine) == repr(theirs), (mine, theirs)
    try:
        written = jsontext.dumps(mine)
    except (ValueError, TypeError, RecursionError):
        return
    assert repr(json.loads(written)) == repr(theirs)


def sanitizer(data: bytes) -> None:
    """Bounded, idempotent; a planted path or token is never in what comes out."""
    whole = texts(data)
    if whole is None:
        return
    once = sanitize(whole)
    assert len(once) <= LIMIT
    assert sanitize(once) == once, "not idempotent"
    assert redact(redact(whole)) == redact(whole)
    name = "".join(c for c in whole[:12] if c.isascii() and c.isalnum()) or "x"
    planted = f"/etc/planted{name}/deep"
    if f"planted{name}/deep" in whole:
        return  # the input has it already, as a relative path perhaps: that is shown
    for before, after in ((whole[:200] + " ", " " + whole[200:]), (whole[:200] + "\n", "\n"), ('"', '" ' + whole)):
        shown = sanitize(f"{before}{planted}{after}")
        assert f"planted{name}/deep" not in shown, shown
        assert SECRET not in sanitize(f"{before}{SECRET}{after}")


def audit(data: bytes) -> None:
    """Readers of the log's files say what is wrong; a log with a change in it is never the same good log."""
    for read in (lambda: encode_note(parse_note(data)) == data, lambda: parse_proof(data) is not None):
        try:
            assert read()
        except InvalidError:
            pass
    try:
        for _ in Checkpoints().feed(data):
            pass
    except InvalidError:
        pass
    seen: list[Any] = []
    verifier = Verifier(on_record=seen.append)
    verifier.feed(data)
    verifier.finish()
    lines, head = _log()
    if len(data) > 3:
        at, mask = int.from_bytes(data[:2], "big") % len(lines), data[2] or 1
        changed = bytearray(lines)
        changed[at] ^= mask
        verifier = Verifier()
        verifier.feed(bytes(changed))
        report = verifier.finish()
        assert not report.ok or report.head != head, "a changed byte is not seen"


@cache
def _log() -> tuple[bytes, Head]:
    head, lines = Head(), b""
    for number in range(6):
        head, line = extend(head, Record("intent", number, number, pod="p", context={"reservation": "0" * 32}))
        lines += line
    return lines, head


def network(data: bytes) -> None:
    """DNS, ClientHello, pushes, authorities and URLs: the answer does not depend on how the bytes came."""
    query = dns.parse(data)
    if isinstance(query, dns.Query):
        assert len(dns.reply(query, 0, b"\x7f\0\0\1")) <= 4_096
    assert _fed(hello.Reader(), data, 1 << 20) == _fed(hello.Reader(), data, 3)
    assert _fed(receive_pack.Commands(), data, 1 << 20) == _fed(receive_pack.Commands(), data, 5)
    try:
        httphead.check_block(data + b"\r\n\r\n")
    except httphead.HeadError:
        pass
    whole = texts(data)
    if whole is None:
        return
    if (found := httphead.parse_authority(whole, 80)) is not None:
        host, port = found
        assert 0 < port < 65_536
        assert host == host.lower()
        shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        assert httphead.parse_authority(shown, 80) == found
    if (address := literal(whole)) is not None:
        is_public(address)
    try:
        url = split_url("url", whole)
    except InvalidError:
        return
    assert url.scheme in ("http", "https")
    assert 0 < url.port < 65_536


def _fed(reader: Any, data: bytes, size: int) -> Any:
    """What a reader says of a stream in pieces: its first answer, or its refusal."""
    for at in range(0, len(data), size):
        try:
            found = reader.feed(data[at : at + size])
        except NucleusError as error:
            return error.rule
        if found is not None:
            return found
    return None


TARGETS: dict[str, Callable[[bytes], None]] = {
    one.__name__: one
    for one in (
        commands, paths, globs, patterns, policies, frames, requests, json_text, sanitizer, audit, network,
    )
}  # fmt: skip
