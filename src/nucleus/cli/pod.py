"""`nucleus pod`: pods that stay, from files; commands in them, their logs, their end.

Each pod has a keeper, a process of this user that ends with it (`pod_keeper`); nothing listens on a network.
Promises: `create` returns when the pod runs, or says why it does not, and then nothing of it is left; every command is
an operation at the pod's gate as with `nucleus exec`, with its exit codes.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import suppress

from nucleus.cli import pod_records
from nucleus.cli.main import printable
from nucleus.cli.options import FLAG, ONE, invalid, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from socket import socket
    from typing import Any

    from nucleus.cli.pod_file import PodFile
    from nucleus.pod.copies import Copy

USAGE = """\
usage: nucleus pod create FILE [--json]
       nucleus pod list [--json]
       nucleus pod show NAME
       nucleus pod exec NAME [--timeout SECONDS] [--stdin] [--json] -- COMMAND [ARGUMENT...]
       nucleus pod shell NAME
       nucleus pod logs NAME [--follow]
       nucleus pod kill NAME
       nucleus pod rm NAME [--force] [--discard]
       nucleus pod diff NAME [--json]
       nucleus pod apply NAME [PATH...] [--expect DIGEST] [--overwrite]
       nucleus pod checkpoint NAME [LABEL]
       nucleus pod rollback NAME [LABEL]

create   a pod as FILE says (docs/pods.md: apiVersion nucleus/v1); it stays until its agent ends, its timeout, or kill
list     this user's pods and how they are
show     all that is known of one, as JSON
exec     a command in it, through its gate; exit codes as of `nucleus exec`
shell    commands line by line, each through the gate; no shell is started: words, and quotes around them
logs     what its agent wrote; --follow: and writes, until it ends
kill     end it now; what is known of it and its log stay
rm       forget it; --force: kill it first; --discard: with changes in its copy that were not taken over

Of a pod whose file says `workspace: copy`:
diff     what it has changed, as text and with a digest of all of it
apply    take all of it, or what is below PATH..., over into the workspace, all or nothing; what has changed there too
         is named and stops it (--overwrite: takes the pod's). --expect: only if the changes are those that diff showed
checkpoint  keep the copy as it is under a label (without one: which there are)
rollback    put it back to one, or to what was copied; no command of the pod may run meanwhile

Requests for approval are answered by `nucleus approvals watch`.
"""
_TABLE = {"json": FLAG, "help": FLAG, "timeout": ONE, "stdin": FLAG, "follow": FLAG, "force": FLAG,
          "discard": FLAG, "overwrite": FLAG, "expect": ONE}  # fmt: skip
_ALLOWED = {
    "create": {"json"}, "list": {"json"}, "show": set[str](), "exec": {"timeout", "stdin", "json"},
    "shell": set[str](), "logs": {"follow"}, "kill": set[str](), "rm": {"force", "discard"},
    "diff": {"json"}, "apply": {"overwrite", "expect"}, "checkpoint": set[str](), "rollback": set[str](),
}  # fmt: skip
_POLL_S = 0.1
_CHUNK = 65_536
_END_S = 30.0


def main(argv: list[str]) -> int:
    """Run the verb. Raises NucleusError."""
    verb, rest = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else ("", argv)
    options, words = parse(rest, _TABLE)
    if words and verb != "":  # NAME or FILE, then options
        more, words = [words[0]], words[1:]
        given, words = parse(words, _TABLE)
        options.update({name: value for name, value in given.items() if value})
        while verb == "apply" and words:  # options may stand behind its paths, too
            more.append(words[0])
            given, words = parse(words[1:], _TABLE)
            options.update({name: value for name, value in given.items() if value})
        words = more + words
    if options["help"]:
        sys.stdout.write(USAGE)
        return 0
    if verb not in _ALLOWED:
        raise invalid(
            "nucleus pod create, list, show, exec, shell, logs, kill, rm, diff, apply, checkpoint or rollback"
        )
    for name, value in options.items():
        if value and name not in _ALLOWED[verb]:
            raise invalid(f"nucleus pod {verb} has no --{name}")
    if verb == "list":
        if words:
            raise invalid("nucleus pod list takes no name")
        return _list(as_json=options["json"])
    most = {"exec": len(words), "apply": len(words), "checkpoint": 2, "rollback": 2}.get(verb, 1)
    if not words or len(words) > most:
        raise invalid(f"nucleus pod {verb} {'FILE' if verb == 'create' else 'NAME'}")
    match verb:
        case "create":
            return _create(words[0], as_json=options["json"])
        case "show":
            sys.stdout.write(json.dumps(pod_records.must(words[0]), indent=1) + "\n")
            return 0
        case "exec":
            return _exec(words[0], options, words[1:])
        case "shell":
            return _shell(words[0])
        case "logs":
            return _logs(words[0], follow=options["follow"])
        case "kill":
            _kill(words[0])
            return 0
        case "rm":
            return _remove(words[0], force=options["force"], unapplied=options["discard"])
    from nucleus.cli import pod_changes

    if verb == "diff":
        return pod_changes.diff(words[0], as_json=options["json"])
    if verb == "apply":
        overwrite, expected = options["overwrite"], options["expect"]
        return pod_changes.apply(words[0], words[1:], overwrite=overwrite, expected=expected)
    label = words[1] if len(words) > 1 else ""
    return (pod_changes.checkpoint if verb == "checkpoint" else pod_changes.rollback)(words[0], label)


def _create(path: str, *, as_json: bool) -> int:
    from nucleus.cli.pod_file import read
    from nucleus.cli.pod_keeper import launch

    file = read(path)
    directory = pod_records.claim(file.name)
    copy = None
    try:
        if file.copy:
            file, copy = _copied(file)
        record = launch(file, directory)
    except BaseException:
        pod_records.remove(file.name)
        if copy is not None:
            from nucleus.pod.copies import discard

            discard(copy)
        raise
    if as_json:
        sys.stdout.write(json.dumps(record) + "\n")
    else:
        sys.stdout.write(f"{file.name}: {record['pod']}, {record['isolation'].get('backend', '?')}\n")
        for lack in record["isolation"].get("missing", []):
            sys.stderr.write(printable(f"  missing here: {lack}") + "\n")
    return 0


def _copied(file: PodFile) -> tuple[PodFile, Copy]:
    """The file with a copy of its workspace in the workspace's place. Raises NucleusError."""
    from dataclasses import replace

    from nucleus.cli.launcher import open_workspace
    from nucleus.pod import copies

    fd, original = open_workspace(file.work_dir)
    os.close(fd)
    copy, left_out = copies.create(file.name, original)
    for path in left_out:
        sys.stderr.write(printable(f"  not copied, no file or not readable: {path}") + "\n")
    return replace(file, work_dir=copy.tree), copy


def _list(*, as_json: bool) -> int:
    found = [record for name in pod_records.names() if (record := pod_records.read(name)) is not None]
    if as_json:
        sys.stdout.write(json.dumps(found) + "\n")
        return 0
    rows = [("NAME", "STATE", "POD", "POLICY", "AGE", "AGENT")]
    now = time.time_ns()
    for record in found:
        age = (now - record.get("created_ns", now)) // 1_000_000_000
        agent = " ".join(record.get("agent", [])) or "-"
        rows.append((
            record["name"], _state(record), record.get("pod", "-"), record.get("policy", "-"), f"{age} s", agent[:60],
        ))  # fmt: skip
    widths = [max(len(row[at]) for row in rows) for at in range(5)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        sys.stdout.write(printable("  ".join([*cells, row[5]]).rstrip()) + "\n")
    return 0


def _state(record: dict[str, Any]) -> str:
    state = str(record["state"])
    if state == "exited":
        return f"exited ({(record['signal'] and 128 + record['signal']) or record['code']})"
    return f"{state}: {record['why']}"[:60] if record.get("why") else state


def connect(name: str) -> socket:
    """The keeper of a pod that runs. Raises InvalidError, SandboxError."""
    import socket as sockets

    from nucleus.errors import SandboxError

    record = pod_records.must(name)
    channel = sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM)
    try:
        at = os.open(pod_records.directory(name), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            channel.connect(f"/proc/self/fd/{at}/{pod_records.SOCKET}")
        finally:
            os.close(at)
    except OSError:
        channel.close()
        raise SandboxError(
            f"the pod {name!r} does not run: {_state(record)}", rule="pod.ended", next_step="`nucleus pod list`."
        ) from None
    return channel


def _exec(name: str, options: dict[str, Any], command: list[str]) -> int:
    from nucleus.cli.exec import Live, operation, report

    asked = operation(options, command)
    live = None if options["json"] else Live()
    with connect(name) as channel:
        return report(_ask(channel, asked, live), options["json"], live)


def _ask(channel: socket, operation: dict[str, Any], live: Any) -> dict[str, Any]:
    """Send an operation; its output as it comes, and the reply. Raises NucleusError."""
    from nucleus.errors import SandboxError
    from nucleus.pod.packets import checked
    from nucleus.sdk import wire

    reader = wire.Reader()
    try:
        channel.sendall(wire.encode({"op": "run", "operation": operation, "stream": live is not None}))
        while (frame := wire.receive(channel, reader)) is not None:
            if live is not None and "stream" in frame[0]:
                live.write(str(frame[0]["stream"]), frame[1])
            elif isinstance(reply := frame[0].get("reply"), dict):
                return reply
            else:
                checked(frame[0])
    except (OSError, ValueError) as error:
        raise SandboxError(f"the pod's keeper: {error}", rule="pod.keeper") from error
    step = "`nucleus audit` shows whether the command ran."
    raise SandboxError("the pod ended before it answered", rule="pod.ended", next_step=step)


def _shell(name: str) -> int:
    import shlex

    from nucleus.cli.exec import Live, report
    from nucleus.errors import NucleusError

    code = 0
    connect(name).close()
    while True:
        try:
            line = input(f"{name}> " if sys.stdin.isatty() else "")
            command = shlex.split(line)
        except EOFError:
            return code
        except ValueError as error:
            sys.stderr.write(f"{error}\n")
            continue
        if not command:
            continue
        live = Live()
        try:
            with connect(name) as channel:
                code = report(_ask(channel, {"kind": "run", "argv": command, "cwd": "."}, live), False, live)
        except NucleusError as error:
            if error.rule == "pod.ended":
                raise
            sys.stderr.write(printable(error.diagnostics()) + "\n")
            code = error.exit_code


def _logs(name: str, *, follow: bool) -> int:
    from nucleus.cli.exec import write_all
    from nucleus.cli.terminal import Plain

    pod_records.must(name)
    path = os.path.join(pod_records.directory(name), pod_records.LOG)
    shown = Plain() if os.isatty(1) else (lambda data: data)
    with suppress(FileNotFoundError), open(f"{path}.1", "rb") as old:
        while data := old.read(_CHUNK):
            write_all(1, shown(data))
    file = open(path, "rb")  # noqa: SIM115 -- another one takes its place when the log is begun anew
    try:
        while True:
            running = follow and pod_records.must(name)["state"] == pod_records.RUNNING
            while data := file.read(_CHUNK):
                write_all(1, shown(data))
            if not running:
                return 0
            if os.fstat(file.fileno()).st_ino != os.stat(path).st_ino:
                file.close()
                file = open(path, "rb")  # noqa: SIM115
                continue
            time.sleep(_POLL_S)
    except KeyboardInterrupt:
        return 0
    finally:
        file.close()


def _kill(name: str) -> None:
    """Returns when the pod is gone. Raises InvalidError, SandboxError."""
    from nucleus.errors import SandboxError
    from nucleus.sdk import wire

    with connect(name) as channel:
        channel.settimeout(_END_S)
        try:
            channel.sendall(wire.encode({"op": "end", "state": "killed"}))
            wire.receive(channel, wire.Reader())
        except (OSError, ValueError) as error:
            raise SandboxError(f"the pod's keeper: {error}", rule="pod.keeper") from error


def _remove(name: str, *, force: bool, unapplied: bool) -> int:
    from nucleus.errors import InvalidError, SandboxError
    from nucleus.pod import copies

    copy = copies.find(name) if pod_records.read(name) is None else None
    if copy is not None:  # of a pod before the machine was started anew
        return _discard(name, unapplied=unapplied)
    if pod_records.must(name)["state"] in (pod_records.RUNNING, pod_records.STARTING):
        if not force:
            raise InvalidError(
                f"the pod {name!r} runs", rule="pod.running", next_step="`nucleus pod kill`, or --force."
            )
        with suppress(SandboxError):  # it ended by itself meanwhile
            _kill(name)
    deadline = time.monotonic() + _END_S
    while pod_records.must(name)["state"] == pod_records.RUNNING and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    _discard(name, unapplied=unapplied)
    pod_records.remove(name)
    return 0


def _discard(name: str, *, unapplied: bool) -> int:
    """A pod's copy, if it has one. Raises InvalidError: it has changes, and nobody said that they may go."""
    from nucleus.cli.pod_changes import kept_back
    from nucleus.errors import InvalidError
    from nucleus.pod import copies

    copy = copies.find(name)
    if copy is None:
        return 0
    if not unapplied and (count := kept_back(name)):
        raise InvalidError(
            f"the copy of {name!r} has {count} changes that were not taken over",
            rule="pod.unapplied",
            next_step=f"`nucleus pod diff {name}`, `nucleus pod apply {name}`, or rm --discard.",
        )
    copies.discard(copy)
    return 0
