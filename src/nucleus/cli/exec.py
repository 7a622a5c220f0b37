"""`nucleus exec`: one command in a fresh pod, through the gate like everything else.

Promises: the command's output bytes are written exactly, and its exit code (128 + signal) is ours; a refusal is an
error with its rule and next step. Where there is a terminal, a request for approval is asked there: the command has no
access to it. Latency matters: everything that is imported here is on the path of every command.
Does not: decide, or read the policy.
"""

from __future__ import annotations

import os
import select
import sys

from nucleus.cli.launcher import Launcher, Pod, failed, open_workspace, policy_text
from nucleus.cli.options import FLAG, MANY, ONE, invalid, parse
from nucleus.sdk import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nucleus.cli.prompt import Prompt

USAGE = """\
usage: nucleus exec [options] -- COMMAND [ARGUMENT...]

  --profile NAME       a bundled policy (default: restrictive)
  --policy FILE        a policy file
  --workdir DIR        the workspace (default: the current directory)
  --trust-workspace    the workspace's content is not untrusted input
  --isolation RUNG     at least this rung: namespaces, gvisor, qemu, firecracker (default: the policy's floor)
  --toolchain DIR      show DIR read-only in the pod (repeatable)
  --timeout SECONDS    deadline of the command (default: the gate's, 120): SIGTERM, and SIGKILL a second later
  --stdin              send our standard input (UTF-8, at most 1 MiB) to the command
  --approvals WHERE    auto: ask on this terminal, if there is one; none: do not
  --namespace NAME     the pod's namespace (default: default)
  --session NAME       what pods of this name have seen counts in the next one
  --budget-account A   charge A and the accounts above it, too (`nucleus budget`)
  --json               print the gate's reply as JSON
"""
OPTIONS = {
    "profile": ONE,
    "policy": ONE,
    "workdir": ONE,
    "trust-workspace": FLAG,
    "isolation": ONE,
    "toolchain": MANY,
    "timeout": ONE,
    "stdin": FLAG,
    "approvals": ONE,
    "namespace": ONE,
    "session": ONE,
    "budget-account": ONE,
    "json": FLAG,
    "help": FLAG,
}
STDIN_BYTES = 1_048_576  # nucleus.limits.LIMITS.stdin_bytes


def main(argv: list[str]) -> int:
    """Run the verb; return the command's exit code. Raises NucleusError."""
    options, command = parse(argv, OPTIONS)
    if options["help"]:
        sys.stdout.write(USAGE)
        return 0
    asked = operation(options, command)
    spec = pod_spec(options)
    workspace, spec["workdir"] = open_workspace(options["workdir"])
    with Launcher.open() as launcher:
        prompt = _prompt(launcher, options)
        try:
            pod = launcher.create_pod(spec, (workspace,))
            try:
                live = None if options["json"] else Live()
                return report(_ask_gate(launcher, pod, asked, prompt, live), options["json"], live)
            finally:
                pod.close()
        finally:
            os.close(workspace)
            if prompt is not None:
                prompt.close()


def pod_spec(options: dict[str, Any]) -> dict[str, Any]:
    """The parts of a `PodSpec` that `exec` and `run` share. Raises InvalidError."""
    text, source = policy_text(options)
    return {
        "policy_text": text,
        "policy_source": source,
        "namespace": options["namespace"] or "default",
        "session": options["session"],
        "account": options["budget-account"] or os.environ.get("NUCLEUS_BUDGET_ACCOUNT", ""),
        "trust_workspace": options["trust-workspace"],
        "isolation": options["isolation"],
        # Absolute and normalized is what the builder wants; it resolves links itself.
        "toolchains": [os.path.abspath(path) for path in options["toolchain"]],
    }


def approvals(options: dict[str, Any]) -> bool:
    """Whether to ask the person at this terminal. Raises InvalidError."""
    if options["approvals"] not in ("", "auto", "none"):
        raise invalid("--approvals is auto or none")
    return bool(options["approvals"] != "none")


def operation(options: dict[str, Any], command: list[str]) -> dict[str, Any]:
    """The operation that a command line asks for (--timeout, --stdin). Raises InvalidError."""
    if not command:
        raise invalid("no command")
    for word in command:
        if not is_utf8(word):
            raise invalid("an argument is not UTF-8")
    operation: dict[str, Any] = {"kind": "run", "argv": command, "cwd": "."}
    if options["timeout"]:
        operation["timeout_ms"] = _milliseconds(options["timeout"])
    if options["stdin"]:
        data = sys.stdin.buffer.read(STDIN_BYTES + 1)
        if len(data) > STDIN_BYTES:
            raise invalid(f"standard input: too long: limit {STDIN_BYTES} bytes, got at least {len(data)}")
        try:
            operation["stdin"] = data.decode("utf-8")
        except UnicodeDecodeError:
            raise invalid("standard input is not UTF-8") from None
    return operation


def is_utf8(text: str) -> bool:
    """Whether a command-line word was UTF-8 (others carry surrogates)."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _milliseconds(text: str) -> int:
    try:
        milliseconds = round(float(text) * 1000)
    except (ValueError, OverflowError):
        milliseconds = 0
    if milliseconds < 1:
        raise invalid("--timeout is a positive number of seconds")
    return milliseconds


def _prompt(launcher: Launcher, options: dict[str, Any]) -> Prompt | None:
    """A prompt on our controlling terminal, which the command cannot reach; its output comes after the last answer."""
    if not approvals(options) or not os.isatty(2):
        return None
    from nucleus.cli.prompt import Prompt, open_terminal  # only where somebody sits

    terminal = open_terminal()
    return None if terminal < 0 else Prompt(launcher.attach_approver(), terminal)


class Live:
    """What the command has written so far, written on: exact bytes for a pipe or file; a terminal obeys none of it."""

    def __init__(self) -> None:
        self._written = {"stdout": 0, "stderr": 0}
        self._plain: dict[int, Any] = {}

    def write(self, name: str, data: bytes) -> None:
        """Some more of a stream."""
        if name in self._written:
            self._written[name] += len(data)
            self._put(1 if name == "stdout" else 2, data)

    def rest(self, name: str, whole: bytes) -> None:
        """What of the whole has not been written yet; a stream ends with it."""
        descriptor = 1 if name == "stdout" else 2
        self._put(descriptor, whole[self._written[name] :])
        if descriptor in self._plain:
            write_all(descriptor, self._plain[descriptor](b""))

    def _put(self, descriptor: int, data: bytes) -> None:
        if not data:
            return
        if descriptor not in self._plain and os.isatty(descriptor):
            from nucleus.cli.terminal import Plain

            self._plain[descriptor] = Plain()
        write_all(descriptor, self._plain[descriptor](data) if descriptor in self._plain else data)


def _ask_gate(
    launcher: Launcher, pod: Pod, operation: dict[str, Any], prompt: Prompt | None, live: Live | None
) -> dict[str, Any]:
    """Send the operation, serve the prompt while it runs, return the reply object."""
    if prompt is not None:
        prompt.pod = pod.name
    pod.gate.sendall(wire.encode({"id": 1, "operation": operation, "stream": live is not None}))
    reader = wire.Reader()
    while True:
        poll = select.poll()
        for fd in (pod.gate.fileno(), launcher.fileno(), *(prompt.fds() if prompt is not None else ())):
            poll.register(fd, select.POLLIN)
        ready = {fd for fd, _ in poll.poll()}
        if pod.gate.fileno() in ready:
            reply = _reply(pod, reader, live)
            if reply is not None:
                return reply
        elif launcher.fileno() in ready:
            for event in launcher.events(wait=True):
                if event.get("event") == "pod_failed":
                    raise failed(event)
        if prompt is not None:
            prompt.serve(ready)


def _reply(pod: Pod, reader: wire.Reader, live: Live | None) -> dict[str, Any] | None:
    from nucleus.pod.packets import checked

    try:
        data = pod.gate.recv(262_144)
        reader.feed(data)
        while (frame := reader.take()) is not None and live is not None and "stream" in frame[0]:
            live.write(str(frame[0]["stream"]), frame[1])
    except (OSError, ValueError) as error:
        raise _lost(f": {error}") from error
    if frame is None:
        if not data:
            raise _lost("")
        return None
    reply = frame[0].get("reply")
    if isinstance(reply, dict):
        return reply
    checked(frame[0])  # raises what the gate reported
    raise _lost(": its answer is no reply")


def _lost(more: str) -> Exception:
    from nucleus.errors import SandboxError

    return SandboxError(
        f"the gate closed before it answered{more}",
        rule="gate.gone",
        next_step="`nucleus audit` shows whether the command ran.",
    )


def report(reply: dict[str, Any], as_json: bool, live: Live | None) -> int:
    """Write the reply, but for what was written as it came; return the exit code."""
    if as_json:
        import json

        sys.stdout.write(json.dumps(reply, sort_keys=True) + "\n")
        sys.stdout.flush()
    result = reply.get("result") or {}  # of a refusal: what there was when the budget ended it
    if live is not None:
        for name in ("stdout", "stderr"):
            live.rest(name, _bytes(result, name))
        for name in ("stdout", "stderr"):
            if result.get(f"{name}_truncated"):
                sys.stderr.write(f"nucleus: {name} was truncated\n")
        if result.get("timed_out"):
            sys.stderr.write("nucleus: the command ran into its deadline and was ended\n")
    if reply.get("status") != "ok":
        return _refused(reply, as_json)
    code, number = result.get("exit_code"), result.get("signal")
    if isinstance(number, int) and number:
        return 128 + number
    if result.get("timed_out"):
        return 124  # as timeout(1): it ended by itself when it was told to
    return code if isinstance(code, int) else 1


def _refused(reply: dict[str, Any], as_json: bool) -> int:
    from nucleus.errors import by_code

    family = by_code(str(reply.get("kind", "")))
    if as_json:
        return family.exit_code
    detail, rule = str(reply.get("detail") or ""), str(reply.get("rule") or "")
    raise family(
        str(reply.get("error") or "refused"),
        rule=f"{rule} ({detail})" if detail else rule,
        next_step=str(reply.get("next_step") or ""),
    )


def _bytes(result: dict[str, Any], name: str) -> bytes:
    text = str(result.get(name) or "")
    if result.get("encoding") == "base64":
        import binascii

        return binascii.a2b_base64(text)
    return text.encode("utf-8", "surrogatepass")


def write_all(fd: int, data: bytes) -> None:
    """Write every byte to a descriptor."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
