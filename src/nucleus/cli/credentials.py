"""`nucleus credentials`: secrets that stay on the host and are added to requests by a pod's gateway.

Promises: a value comes from standard input or the terminal without echo, never from an argument or the environment; it
is shown nowhere again. What is set or removed holds for running pods from their next request on.
Does not: send it anywhere, or try whether it works.
"""

from __future__ import annotations

import sys

from nucleus.cli.options import FLAG, ONE, invalid, parse
from nucleus.pod.runtime import prepare_state, state_dir

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nucleus.store.credentials import Credentials

USAGE = """\
usage: nucleus credentials set NAME [--kind bearer|basic|header|key|ssh] [--user USER] [--header HEADER]
       nucleus credentials list [--json]
       nucleus credentials rm NAME

  set    read the value from standard input (one line), or ask for it on the terminal without echo
           bearer   Authorization: Bearer VALUE (the default)
           basic    Authorization: Basic USER:VALUE, as git servers want it
           header   HEADER: VALUE
           ssh      a private key (all of the file), for git_push to a remote by SSH
           key      for a model's API or a search provider, which know their header
  list   names and kinds; a value is never shown again
  rm     forget one: the next request that needs it is refused

A policy uses it by name: network: {allow: [{host: api.github.com, credential: NAME}]}
"""
LINE_BYTES = 16_384


def main(argv: list[str]) -> int:
    """Run the verb. Raises NucleusError."""
    spec = {"kind": ONE, "user": ONE, "header": ONE, "json": FLAG, "help": FLAG}
    options, rest = parse(argv, spec)
    verb, names = (rest[0], rest[1:]) if rest else ("", [])
    found, names = parse(names, spec)  # options stand before the name or behind it
    late, more = parse(names[1:], spec)
    names = names[:1] + more
    options = {key: options[key] or found[key] or late[key] for key in spec}
    if options["help"] or not verb:
        sys.stdout.write(USAGE)
        return 0 if options["help"] else 2
    from pathlib import Path

    from nucleus.store.credentials import Credentials

    store = Credentials(Path(state_dir()) / "credentials")
    if verb == "list" and not names:
        return _list(store, options["json"])
    if verb not in ("set", "rm"):
        raise invalid(f"unknown verb {verb[:100]!r}" if verb != "list" else "list takes no name")
    if len(names) != 1:
        # What stands there may be the value itself: it is not repeated.
        raise invalid(
            f"credentials {verb} takes one name; a value is never an argument: it is read from standard input"
        )
    if verb == "rm":
        store.remove(names[0])
        sys.stdout.write(f"removed {names[0]}\n")
        return 0
    return _set(store, names[0], options)


def _set(store: Credentials, name: str, options: dict[str, str]) -> int:
    from nucleus.store.credentials import Credential, check_name

    check_name(name)
    made = Credential(
        options["kind"] or "bearer",
        _value(lines=options["kind"] == "ssh"),
        options["user"] or "",
        options["header"] or "",
    )
    prepare_state(state_dir())
    store.set(name, made)
    sys.stdout.write(f"set {name} ({made.kind})\n")
    return 0


def _value(*, lines: bool) -> str:
    if sys.stdin is None or sys.stdin.closed:
        raise invalid("the value is read from standard input, which is closed")
    if sys.stdin.isatty():
        import getpass

        return getpass.getpass("value (not shown): ").strip()
    data = sys.stdin.buffer.read(LINE_BYTES + 1)
    try:
        text = data.decode("ascii").strip()
    except UnicodeDecodeError:
        raise invalid("the value is not ASCII") from None
    if len(data) > LINE_BYTES or ("\n" in text and not lines):
        raise invalid("the value is one line")
    return text


def _list(store: Credentials, as_json: bool) -> int:
    found = store.names()
    if as_json:
        import json
        from dataclasses import asdict

        sys.stdout.write(json.dumps({"credentials": [asdict(one) for one in found]}) + "\n")
        return 0
    for one in found:
        extra = f" user {one.user}" if one.user else f" {one.header}" if one.header else ""
        sys.stdout.write(f"{one.name}  {one.kind}{extra}\n")
    if not found:
        sys.stdout.write("no credentials: `nucleus credentials set NAME`\n")
    return 0
