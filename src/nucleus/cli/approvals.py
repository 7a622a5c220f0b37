"""`nucleus approvals`: the requests that wait for a person, the answers, and what was allowed more than once.

Numbered steps of `watch`, for each request:
 1. shown whole, as it will run, escaped by the authority and once more here;
 2. what was typed before the question, or too soon after it, is thrown away: no yes to what was not seen;
 3. anything but a typed ``y`` or ``yes`` is a no; there is no option that says yes by itself;
 4. a wider answer (`wider`) is shown by itself and needs a second yes, under 2 again; without it the question is back;
 5. a request that expires or is answered elsewhere is no longer asked; the end of the terminal ends the watch.

Promises: tokens never come here. One who watches counts as present; `list`, `show`, `approve` and `deny` do not.
Relies on: the resident helper (requests of a private one are asked on its own launcher's terminal).
"""

from __future__ import annotations

import os
import select
import sys
import time

from nucleus.cli.launcher import Launcher
from nucleus.cli.main import printable
from nucleus.cli.options import FLAG, ONE, invalid, parse
from nucleus.cli.prompt import READING_S, SWAPPED_S, open_terminal
from nucleus.cli.wider import Wider, choices, chosen, grant_line, offers
from nucleus.pod import runtime
from nucleus.sdk import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from _socket import socket as Channel
    from typing import Any

USAGE = """\
usage: nucleus approvals list [--json]
       nucleus approvals show ID [--json]
       nucleus approvals approve ID [--scope KIND --times N] [--reason TEXT]
       nucleus approvals deny ID [--reason TEXT]
       nucleus approvals watch [--json]
       nucleus approvals notify [--pod POD] --webhook URL [--secret-file FILE]
       nucleus approvals notify [--pod POD] -- PROGRAM [ARG ...]
       nucleus approvals grants [--json]
       nucleus approvals revoke GRANT [--reason TEXT]
       nucleus approvals rotate-key [--reason TEXT]

watch    ask for each request on this terminal, until interrupted; --json: print them and ask nothing.
         While somebody watches, operations that need an approval wait for it (at most 300 s).
approve  once; with --scope and --times: a scope that `show` offers, N times (1 to 100), this one included, for at
         most 1 h. It holds when nobody watches any more, and ends with the pod.
notify   tell somebody elsewhere of each request: JSON by POST (signed as Standard Webhooks has it), or on a
         program's standard input. They count as present; the answer is given by approve or deny.
--root   the requests of root's pods, for a user that root has named (NUCLEUS_APPROVERS=USER,%GROUP when root's helper
         starts, or the group nucleus-approvers). Where a policy has `two_people`, two different users have to approve.
grants   what was allowed more than once and still holds;  revoke ends one
rotate-key  another key for the tokens of approvals, at once (it changes every hour by itself); what was approved in
         the last 30 s is still carried out
"""
_TABLE = {"json": FLAG, "root": FLAG, "help": FLAG, "reason": ONE, "scope": ONE, "times": ONE}
_ANSWER_S = 30.0
_LINE = 16  # characters of an answer
MORE = "one more person has to say yes"


class Approver:
    """A channel to the authority with the approver's role. Events that arrive while an answer is awaited are kept."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._reader = wire.Reader()
        self._number = 0
        self._answers: dict[int, dict[str, Any]] = {}
        self.events: list[dict[str, Any]] = []
        channel.settimeout(_ANSWER_S)

    def fileno(self) -> int:
        """For poll."""
        return self._channel.fileno()

    def call(self, op: str, **fields: Any) -> dict[str, Any]:
        """Ask and wait. Raises NucleusError: what the authority reported; SandboxError when it is gone."""
        from nucleus.pod.packets import checked

        self._number += 1
        try:
            self._channel.sendall(wire.encode({"id": self._number, "op": op, **fields}))
        except OSError as error:
            raise _gone() from error
        while self._number not in self._answers:
            self.receive()
        return checked(self._answers.pop(self._number))

    def receive(self) -> None:
        """Read once. Raises SandboxError at the end of the channel."""
        try:
            data = self._channel.recv(262_144)
            self._reader.feed(data)
            while (frame := self._reader.take()) is not None:
                header = frame[0]
                if type(header.get("id")) is int:
                    self._answers[header["id"]] = header
                else:
                    self.events.append(header)
        except (OSError, ValueError) as error:
            raise _gone() from error
        if not data:
            raise _gone()

    def close(self) -> None:
        """Not present any more."""
        self._channel.close()


def main(argv: list[str]) -> int:
    """Run the verb. Raises NucleusError."""
    if argv[:1] == ["notify"]:
        return _notify(argv[1:])
    options, words = parse(argv, _TABLE)
    positional: list[str] = []
    while words:  # options may follow the words
        positional.append(words[0])
        more, words = parse(words[1:], _TABLE)
        options.update({name: value for name, value in more.items() if value})
    if options["help"]:
        sys.stdout.write(USAGE)
        return 0
    wider = _wider(positional, options)
    match positional:
        case ["list" | "grants" | "rotate-key"] | ["show" | "approve" | "deny" | "revoke", _]:
            channel = _reach(options["root"])
            if channel is None:
                return _no_helper(positional[0], as_json=options["json"])
            launcher = Launcher(channel)
        case ["watch"]:
            _needs_helper("watch")
            channel = _reach(True) if options["root"] else None
            launcher = Launcher.open() if channel is None else Launcher(channel)
        case _:
            raise invalid("approvals list, show ID, approve ID, deny ID, watch, grants, revoke GRANT, or rotate-key")
    with launcher:
        approver = Approver(launcher.attach_approver())
        try:
            return _verb(approver, positional, options, wider)
        finally:
            approver.close()


def _reach(root: bool) -> Channel | None:
    """Our own helper; with `root` root's, by the door that it has for approvers. Raises InvalidError: there is none."""
    if not root:
        return runtime.connect_helper()
    found = runtime.connect_approvers()
    if found is None:
        raise invalid(
            "root's helper does not run, or lets nobody else answer (NUCLEUS_APPROVERS, or a group nucleus-approvers)"
        )
    return found


def _needs_helper(verb: str) -> None:
    if os.environ.get("NUCLEUS_NO_HELPER", "") not in ("", "0"):
        raise invalid(f"a private builder has no requests but its own launcher's: {verb} needs the helper")


def _notify(argv: list[str]) -> int:
    from nucleus.cli import notify  # weight: only who notifies

    values, deliver = notify.options(argv)
    if values["help"]:
        sys.stdout.write(USAGE)
        return 0
    _needs_helper("notify")
    with Launcher.open() as launcher:
        approver = Approver(launcher.attach_approver())
        try:
            return notify.run(approver, deliver, values["pod"])
        finally:
            approver.close()


def _wider(words: list[str], options: dict[str, Any]) -> dict[str, Any]:
    """What `approve` carries besides. Raises InvalidError."""
    kind, times = options["scope"], options["times"]
    if not kind and not times:
        return {}
    if words[:1] != ["approve"] or not kind or not (times.isascii() and times.isdigit()):
        raise invalid("a wider answer is: approve ID --scope KIND --times N")
    return {"scope": kind, "times": int(times[:9])}


def _no_helper(verb: str, *, as_json: bool) -> int:
    if verb in ("list", "grants"):
        nothing = "no request waits" if verb == "list" else "no grant holds"
        sys.stdout.write("[]\n" if as_json else f"{nothing} (no helper runs)\n")
        return 0
    if verb == "rotate-key":
        sys.stdout.write("each start of the helper has a new key (no helper runs)\n")
        return 0
    what = "grant" if verb == "revoke" else "request is waiting"
    sys.stderr.write(f"invalid_request: no such {what} (no helper runs)\n")
    return 2


def _verb(approver: Approver, words: list[str], options: dict[str, Any], wider: dict[str, Any]) -> int:
    match words:
        case ["list"]:
            requests = approver.call("list").get("requests", [])
            if options["json"]:
                _json(requests)
            else:
                _say("".join(map(_summary, requests)) or "no request waits\n")
        case ["show", ident]:
            request = approver.call("show", request=ident).get("request", {})
            _json(request) if options["json"] else _say(text(request))
        case [("approve" | "deny") as verb, ident]:
            said = approver.call(verb, request=ident, reason=options["reason"], **wider)
            grant = said.get("grant")
            more = f"{MORE}\n" if said.get("more") else ""
            _say(f"{verb}: {ident}\n{more}" + (f"grant {grant_line(grant)}\n" if grant else ""))
        case ["grants"]:
            grants = approver.call("grants").get("grants", [])
            if options["json"]:
                _json(grants)
            else:
                _say("".join(f"{grant_line(grant)}\n" for grant in grants) or "no grant holds\n")
        case ["revoke", ident]:
            approver.call("revoke", grant=ident, reason=options["reason"])
            _say(f"revoke: {ident}\n")
        case ["rotate-key"]:
            _say(
                f"approvals are made with the key {approver.call('rotate_key', reason=options['reason']).get('key')}\n"
            )
        case _:
            return Watch(approver, ask=not options["json"]).run()
    return 0


def text(request: dict[str, Any]) -> str:
    """A request, whole, for a person: exactly what will run."""
    decision = request.get("decision")
    decision = decision if isinstance(decision, dict) else {}
    lines = request.get("display")
    return "".join(
        f"{line}\n"
        for line in (
            f"request {request.get('request')} of pod {request.get('pod')}",
            f"  by: {request.get('principal')}",
            f"  why it asks: {decision.get('reason', '')} ({decision.get('rule', '')})",
            *(f"  {one_line(line)}" for line in (lines if isinstance(lines, list) else [])),
            f"  operation hash: {request.get('operation_hash')}",
            *people(request),
            *approvers(request),
            *(f"  wider, --scope {kind}: {shown}" for kind, shown in offers(request)),
            f"  expires in {_seconds(request)} s",
        )
    )


def people(request: dict[str, Any]) -> list[str]:
    """What is said of a request that two people have to answer."""
    if request.get("people") != 2:
        return []
    assents = request.get("assents")
    who = ", ".join(map(one_line, assents)) if isinstance(assents, list) else ""
    return [f"  needs two people: {f'{who} has said yes' if who else 'nobody has said yes yet'}"]


def approvers(request: dict[str, Any]) -> list[str]:
    """What is said of a request whose policy names who may approve it."""
    lists = request.get("approvers")
    if not isinstance(lists, list):
        return []
    texts = [", ".join(map(one_line, names)) or "nobody" for names in lists if isinstance(names, list)]
    return [f"  approvers: {text}" for text in texts]


def one_line(value: object) -> str:
    """Foreign text that stays on its line."""
    return str(value).replace("\n", "\\n")


def _summary(request: dict[str, Any]) -> str:
    lines = request.get("display")
    shown = "  ".join(map(one_line, lines[1:3])) if isinstance(lines, list) else ""
    head = f"{request.get('request')}  {request.get('pod')}  {_seconds(request):>3} s  {request.get('operation')}"
    return f"{head}  {shown[:120]}\n"


def _seconds(request: dict[str, Any]) -> int:
    remaining = request.get("remaining_ms")
    return remaining // 1000 if isinstance(remaining, int) else 0


class Watch:
    """The loop of `watch`. With `ask` it needs a terminal of its own."""

    def __init__(self, approver: Approver, *, ask: bool) -> None:
        self._approver = approver
        self._terminal = open_terminal() if ask else -1
        self._ask = ask
        self._queue: list[dict[str, Any]] = []
        self._asked: dict[str, Any] | None = None
        self._wider: Wider | None = None
        self._typed = ""
        self._since = self._deadline = 0.0
        self._reading = READING_S

    def run(self) -> int:
        """Until the authority, the terminal or the person ends it."""
        if not self._ask:
            return self._loop()
        if self._terminal < 0:
            raise invalid("watch asks on a terminal, and there is none: use --json, or approve ID")
        import termios

        saved = termios.tcgetattr(self._terminal)
        mode = termios.tcgetattr(self._terminal)
        mode[3] &= ~(termios.ICANON | termios.ECHO)  # typed letters are ours to show, beside the countdown
        termios.tcsetattr(self._terminal, termios.TCSAFLUSH, mode)
        try:
            return self._loop()
        finally:
            termios.tcsetattr(self._terminal, termios.TCSAFLUSH, saved)
            os.close(self._terminal)

    def _loop(self) -> int:
        # A request comes as an event, or was waiting before we watched.
        for request in self._approver.call("watch").get("requests", []):
            self._event({"event": "request", "request": request})
        self._tell("watching; Ctrl-C ends it\n")
        poll = select.poll()
        poll.register(self._approver.fileno(), select.POLLIN)
        if self._terminal >= 0:
            poll.register(self._terminal, select.POLLIN)
        while True:
            events, self._approver.events = self._approver.events, []
            for event in events:
                self._event(event)
            if self._asked is None and self._queue and self._ask:
                self._question(self._queue.pop(0))
            ready = dict(poll.poll(1000 if self._asked is not None else None))
            if self._approver.fileno() in ready:
                self._approver.receive()
            if self._terminal in ready and not self._keys():
                return 0
            self._countdown()

    def _event(self, event: dict[str, Any]) -> None:
        request = event.get("request")
        if not self._ask:
            _json(event)
        elif event.get("event") == "request" and isinstance(request, dict):
            self._queue.append(request | {"until": time.monotonic() + _seconds(request)})
        elif event.get("event") == "resolved":
            self._queue = [item for item in self._queue if item.get("request") != request]
            if self._asked is not None and self._asked.get("request") == request:
                self._tell(f"\nno longer asked: {event.get('verdict')} {event.get('approver')}\n")
                self._asked, self._wider, self._reading = None, None, SWAPPED_S
        elif event.get("event") == "assent":
            self._tell(f"\n{event.get('request')}: {event.get('approver')} has said yes, one more is needed\n")
        elif event.get("event") == "granted":
            self._tell(f"\nallowed by grant {grant_line(event.get('grant'))}\n")

    def _question(self, request: dict[str, Any], shown: str = "", wider: Wider | None = None) -> None:
        import termios

        self._deadline = request["until"]
        self._wider = wider
        self._tell(
            "\n" + (shown or text(request)) + ("" if wider else "".join(f"{x}\n" for x in choices(request)))
        )  # 1
        termios.tcflush(self._terminal, termios.TCIFLUSH)  # 2
        self._asked, self._typed, self._since = request, "", time.monotonic()
        self._countdown()

    def _countdown(self) -> None:
        if self._asked is None or self._terminal < 0:
            return
        left = max(0, int(self._deadline - time.monotonic()))
        question = "allow this once? [y/N] " if self._wider is None else self._wider.question()
        self._raw(f"\r\x1b[K{question}({left} s) {printable(self._typed)}")

    def _keys(self) -> bool:
        """Keys of the person; False when the terminal has ended."""
        try:
            data = os.read(self._terminal, 64)
        except OSError:
            data = b""
        if not data or data == b"\x04":
            return False  # 5
        if self._asked is None or time.monotonic() - self._since < self._reading:  # 2
            return True
        self._reading = READING_S
        for char in data.decode("utf-8", "replace"):
            if char in "\r\n":
                self._answered(self._typed.strip().lower() in ("y", "yes"))  # 3
                return True
            if char in "\x7f\b":
                self._typed = self._typed[:-1]
            elif len(self._typed) < _LINE:
                self._typed += char
        return True

    def _answered(self, yes: bool) -> None:
        assert self._asked is not None
        if yes:
            self._decide("approve", self._wider)
        elif self._wider is not None:  # 4
            self._question(self._asked, "not wider\n")
        elif (wider := chosen(self._asked, self._typed)) is not None:
            self._question(self._asked, wider.text() + "\n", wider)
        else:
            self._decide("deny", None)

    def _decide(self, verb: str, wider: Wider | None) -> None:
        from nucleus.errors import InvalidError

        asked, self._asked, self._wider = self._asked, None, None
        assert asked is not None
        more = wider.fields() if wider is not None else {}
        try:
            said = self._approver.call(
                verb, request=asked.get("request"), reason="answered in nucleus approvals watch", **more
            )
        except InvalidError as error:  # expired, or answered elsewhere, in the meantime
            self._tell(f"\n{error.message}\n")
        else:
            times = "once" if wider is None else f"{wider.times} times"
            if said.get("more"):
                times += f"; {MORE}"
            self._tell(f"\napproved, {times}\n" if verb == "approve" else "\ndenied\n")

    def _tell(self, message: str) -> None:
        if self._terminal >= 0:
            self._raw(printable(message))

    def _raw(self, message: str) -> None:
        os.write(self._terminal, message.encode("utf-8", "backslashreplace"))


def _json(value: object) -> None:
    import json

    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def _say(message: str) -> None:
    sys.stdout.write(printable(message))


def _gone() -> Exception:
    from nucleus.errors import SandboxError

    return SandboxError("the authority is gone", rule="authority.gone")
