"""`nucleus credentials`: secrets that stay on the host and are added to requests by a pod's gateway.

Promises: a value comes from standard input or the terminal without echo, never from an argument or the environment; it
is shown nowhere again. What is set or removed holds for running pods from their next request on.
An argument in a wrong place is not repeated in the error: it may be the value.
Does not: send it anywhere, or try whether it works.
"""

from __future__ import annotations

import sys

from nucleus.cli.options import FLAG, ONE, invalid, parse
from nucleus.pod.runtime import prepare_state, state_dir

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

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
TERMINAL_BYTES = 4_095  # of a line: the kernel (n_tty) drops what is behind them, and says nothing
NOT_HERE = "a value is never an argument: it is read from standard input"
_SPEC = {"kind": ONE, "user": ONE, "header": ONE, "json": FLAG, "help": FLAG}
_TAKES = {"set": ("kind", "user", "header"), "list": ("json",), "rm": ()}


def main(argv: list[str]) -> int:
    """Run the verb. Raises NucleusError."""
    options, words = _split(argv)
    verb, names = (words[0], words[1:]) if words else ("", [])
    if options["help"] or not verb:
        sys.stdout.write(USAGE)
        return 0 if options["help"] else 2
    # What stands in a wrong place may be the value itself: it is not repeated.
    if verb not in _TAKES:
        raise invalid(f"the verbs of credentials are set, list and rm; {NOT_HERE}")
    for name, value in options.items():
        if value and name not in _TAKES[verb]:
            raise invalid(f"credentials {verb} takes no --{name}")
    if len(names) != (0 if verb == "list" else 1):
        raise invalid(f"credentials {verb} takes {'no' if verb == 'list' else 'one'} name; {NOT_HERE}")
    from pathlib import Path

    from nucleus.store.credentials import Credentials

    store = Credentials(Path(state_dir()) / "credentials")
    if verb == "list":
        return _list(store, options["json"])
    if verb == "rm":
        store.remove(names[0])
        sys.stdout.write(f"removed {names[0]}\n")
        return 0
    return _set(store, names[0], options)


def _split(argv: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The options, which stand before, between or behind the words, and the words. Raises InvalidError."""
    options: dict[str, Any] = dict.fromkeys(_SPEC, "")
    words: list[str] = []
    while argv:
        found, argv = _parse(argv)
        for name, value in found.items():
            if value and options[name] and _SPEC[name] == ONE:
                raise invalid(f"--{name} is given twice")
            options[name] = value or options[name]
        words += argv[:1]
        argv = argv[1:]
    return options, words


def _parse(argv: list[str]) -> tuple[dict[str, Any], list[str]]:
    from nucleus.errors import InvalidError

    try:
        return parse(argv, _SPEC)
    except InvalidError as error:
        message = error.message
    if message.startswith("unknown option"):  # a private key begins with dashes, too
        message = f"unknown option: credentials takes --kind, --user, --header and --json; {NOT_HERE}"
    raise invalid(message)


def _set(store: Credentials, name: str, options: dict[str, Any]) -> int:
    from nucleus.store.credentials import LEAST, Credential, check_name

    about = options["kind"] or "bearer", options["user"] or "", options["header"] or ""

    def made(value: str) -> Credential:
        return Credential(about[0], value, *about[1:])

    check_name(name)
    made("x" * LEAST)  # what is wrong with the rest is said before a value is asked for
    credential = made(_value(lines=about[0] == "ssh"))
    prepare_state(state_dir())
    store.set(name, credential)
    sys.stdout.write(f"set {name} ({credential.kind})\n")
    return 0


def _value(*, lines: bool) -> str:
    if sys.stdin is None or sys.stdin.closed:
        raise invalid("the value is read from standard input, which is closed")
    if sys.stdin.isatty():
        return _typed(lines=lines)
    data = sys.stdin.buffer.read(LINE_BYTES + 1)
    if len(data) > LINE_BYTES:
        raise invalid(f"the value is longer than {LINE_BYTES} bytes")
    if not data.isascii():
        raise invalid("the value is not ASCII")
    text = data.decode("ascii").strip()
    if "\n" in text and not lines:
        raise invalid("the value is one line")
    return text


def _typed(*, lines: bool) -> str:
    if lines:  # the first line would be kept, and a shell be given the others
        raise invalid("an SSH key has several lines: read it from its file, `nucleus credentials set ... <FILE`")
    import getpass

    try:
        text = getpass.getpass("value (not shown): ")
    except EOFError:
        raise invalid("no value was typed") from None
    except UnicodeDecodeError:
        raise invalid("the value is not ASCII") from None
    if len(text.encode("utf-8", "surrogateescape")) >= TERMINAL_BYTES:
        raise invalid("a terminal cuts a line of this length: read the value from a file, `... <FILE`")
    return text.strip()


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
