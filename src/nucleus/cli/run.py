"""`nucleus run`: an agent in a fresh pod. It reaches the workspace through the gate alone, and us by its stdio.

Numbered steps that keep the agent from the person's terminal (DESIGN section 2):
 1. With a terminal on both sides the agent gets a fresh pty made in the pod, and owns the screen; approvals are then
    asked elsewhere, and the start says where.
 2. Otherwise it gets three fresh pipes, never our own descriptors: a shared terminal, or a log file that can be opened
    again for writing through /proc, would be a way out.
 3. With pipes, questions are asked on our controlling terminal; what the agent prints there is free of control
    sequences, and is held back while a question is open.
The terminal is restored on every exit. Does not: decide, or answer for the person.
"""

from __future__ import annotations

import math
import os
import select
import sys
import time
from contextlib import ExitStack

from nucleus.cli import report
from nucleus.cli.exec import approvals, is_utf8, pod_spec
from nucleus.cli.launcher import Launcher, Pod, failed, open_workspace
from nucleus.cli.main import printable
from nucleus.cli.options import FLAG, MANY, ONE, invalid, parse
from nucleus.cli.terminal import Ended, Plain, Pump, Raw, Screen, size
from nucleus.errors import NucleusError
from nucleus.pod.runtime import state_dir

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nucleus.cli.prompt import Prompt
    from nucleus.cli.tools import ToolHost

USAGE = """\
usage: nucleus run [options] -- AGENT [ARGUMENT...]

  --profile NAME       a bundled policy (default: restrictive)
  --policy FILE        a policy file
  --workdir DIR        the workspace (default: the current directory)
  --share-workspace    show the agent a filtered view of the workspace (reads then are not mediated)
  --trust-workspace    the workspace's content is not untrusted input
  --isolation RUNG     at least this rung: namespaces, gvisor, qemu, firecracker (default: the policy's floor)
  --toolchain DIR      show DIR read-only in the pod (repeatable)
  --task TEXT          the person's own words for the task
  --approvals WHERE    auto: ask on this terminal where the agent cannot reach it; none: do not
  --namespace NAME     the pod's namespace (default: default)
  --session NAME       what pods of this name have seen counts in the next one
  --budget-account A   charge A and the accounts above it, too (`nucleus budget`)
  --mcp-config FILE    give the agent the tools of these MCP servers, through the gate
  --json               print the closing summary as JSON (on standard error)
"""
OPTIONS = {
    "profile": ONE,
    "policy": ONE,
    "workdir": ONE,
    "share-workspace": FLAG,
    "trust-workspace": FLAG,
    "isolation": ONE,
    "toolchain": MANY,
    "task": ONE,
    "approvals": ONE,
    "namespace": ONE,
    "session": ONE,
    "budget-account": ONE,
    "mcp-config": ONE,
    "json": FLAG,
    "help": FLAG,
}
HINT = "nucleus: the agent owns this terminal; answer approvals in another one: nucleus approvals watch\n"
DRAIN_S = 2.0  # how long output may still come after the agent's end


def main(argv: list[str]) -> int:
    """Run the verb; return the agent's exit code. Raises NucleusError."""
    options, agent = parse(argv, OPTIONS)
    if options["help"]:
        sys.stdout.write(USAGE)
        return 0
    summary = carry_out(options, agent)
    _print(summary, options["json"])
    return summary.exit_code


def carry_out(options: dict[str, Any], agent: list[str]) -> report.Summary:
    """Run `agent` in a fresh pod as `options` say, to its end; what the log says of it. Raises NucleusError."""
    if not agent:
        raise invalid("no agent")
    if not all(map(is_utf8, (*agent, options["task"]))):
        raise invalid("an argument is not UTF-8")
    ask = approvals(options)
    spec = pod_spec(options) | {"task": options["task"], "share_workspace": options["share-workspace"]}
    workspace, spec["workdir"] = open_workspace(options["workdir"])
    pty = os.isatty(0) and os.isatty(1)
    rows, columns = size(0)
    stdio = "pty" if pty else "pipes"
    spec["agent"] = {"argv": agent, "env": {}, "stdio": stdio, "rows": rows, "cols": columns}
    offset = report.position(state_dir())
    with ExitStack() as stack:
        stack.callback(os.close, workspace)
        host = _tool_host(options["mcp-config"], workspace)
        if host is not None:
            spec["tools"] = True
            stack.enter_context(host)
        launcher = stack.enter_context(Launcher.open())
        code, pod = (_with_pty if pty else _with_pipes)(launcher, spec, workspace, ask, host)
    summary = report.summarize(state_dir(), offset, pod.name)
    summary.isolation, summary.exit_code, summary.budget = pod.isolation, code, pod.budget_limit
    summary.set_aside = pod.set_aside
    summary.unmediated = options["share-workspace"]
    return summary


def _tool_host(path: str, workspace: int) -> ToolHost | None:
    if not path:
        return None
    from nucleus.cli.tools import ToolHost  # weight: subprocess, for those who attach tools

    return ToolHost(path, workspace)


def _create(launcher: Launcher, spec: dict[str, Any], fds: tuple[int, ...], host: ToolHost | None) -> Pod:
    """The pod; the gate's end of the tool host's channel goes last."""
    if host is None:
        return launcher.create_pod(spec, fds)
    pod = launcher.create_pod(spec, (*fds, host.gate.fileno()))
    host.handed_over()
    return pod


def _print(summary: report.Summary, as_json: bool) -> None:
    if as_json:
        import json

        sys.stderr.write(json.dumps(summary.as_dict()) + "\n")
    else:
        sys.stderr.write(printable(summary.lines()))


def _close(launcher: Launcher, pod: Pod) -> None:
    """End the pod, and wait: its last record has to be in the log before we count."""
    try:
        pod.set_aside = [str(line) for line in launcher.call("close_pod", pod=pod.name).body.get("set_aside", [])]
    except NucleusError:
        pass  # it is gone already; the log says how
    pod.close()


def _with_pty(
    launcher: Launcher, spec: dict[str, Any], workspace: int, ask: bool, host: ToolHost | None
) -> tuple[int, Pod]:
    """Step 1."""
    pod = _create(launcher, spec, (workspace,), host)
    screen = Screen()
    try:
        if ask:
            sys.stderr.write(HINT)
        os.set_blocking(pod.pty, False)
        pumps = [Pump(0, pod.pty), Pump(pod.pty, 1, screen)]
        with Raw(0, pod.pty):
            try:
                return _Session(launcher, pod, pumps, pumps[1:], None).run(), pod
            finally:
                _write_quietly(1, screen.reset())
    except Ended as ended:
        return 128 + ended.number, pod
    finally:
        _close(launcher, pod)


def _with_pipes(
    launcher: Launcher, spec: dict[str, Any], workspace: int, ask: bool, host: ToolHost | None
) -> tuple[int, Pod]:
    """Steps 2 and 3."""
    agent_in, our_in = os.pipe2(os.O_CLOEXEC)
    our_out, agent_out = os.pipe2(os.O_CLOEXEC)
    our_err, agent_err = os.pipe2(os.O_CLOEXEC)
    pumps = [
        Pump(0, our_in, close_sink=True),
        Pump(our_out, 1, Plain() if os.isatty(1) else None, close_source=True),
        Pump(our_err, 2, Plain() if os.isatty(2) else None, close_source=True),
    ]
    prompt: Prompt | None = None
    try:
        os.set_blocking(our_in, False)
        try:
            prompt = _prompt(launcher) if ask else None
            pod = _create(launcher, spec, (workspace, agent_in, agent_out, agent_err), host)
        finally:
            for fd in (agent_in, agent_out, agent_err):
                os.close(fd)
        if prompt is not None:
            prompt.pod = pod.name
        try:
            return _Session(launcher, pod, pumps, pumps[1:], prompt).run(), pod
        finally:
            _close(launcher, pod)
    finally:
        for pump in pumps:
            pump.close()
        if prompt is not None:
            prompt.close()


def _prompt(launcher: Launcher) -> Prompt | None:
    """A prompt on our controlling terminal, when there is one and the agent's input does not come from it."""
    if os.isatty(0):
        return None
    from nucleus.cli.prompt import Prompt, open_terminal

    terminal = open_terminal()
    return None if terminal < 0 else Prompt(launcher.attach_approver(), terminal)


def _write_quietly(fd: int, data: bytes) -> None:
    try:
        os.write(fd, data)
    except OSError:
        return


class _Session:
    """The loop of a running agent: bytes both ways, events, questions.

    Args:
        outputs: the pumps that are drained after the agent's end.
    """

    def __init__(
        self, launcher: Launcher, pod: Pod, pumps: list[Pump], outputs: list[Pump], prompt: Prompt | None
    ) -> None:
        self._launcher = launcher
        self._pod = pod
        self._pumps = pumps
        self._outputs = outputs
        self._prompt = prompt
        self._exit: int | None = None
        self._deadline = 0.0

    def run(self) -> int:
        """Until the agent has ended and its output is written; the exit code. Raises NucleusError."""
        self._events(self._launcher.events())
        while (timeout := self._timeout()) is None or timeout >= 0:
            ready = self._poll(timeout)
            if timeout == 0 and not any(pump.interests()[0] in ready for pump in self._active()):
                break  # the agent has ended and no byte of it is left; others may still hold its pipes open
            if self._launcher.fileno() in ready:
                self._events(self._launcher.events(wait=True))
            for pump in self._active():
                pump.serve(ready)
            if self._prompt is not None:
                self._prompt.serve(set(ready))
        return self._exit if self._exit is not None else 1

    def _timeout(self) -> float | None:
        """Seconds to wait: for ever while the agent lives, then as long as its output is taken; negative to stop."""
        if self._exit is None:
            return None
        live = [pump for pump in self._outputs if not pump.done]
        left = self._deadline - time.monotonic()
        if not live or left <= 0:
            return -1
        return left if any(pump.holding for pump in live) else 0

    def _active(self) -> list[Pump]:
        """The pumps that may move now: step 3 holds the agent's output while a question is open."""
        if self._exit is not None:
            return [pump for pump in self._outputs if not pump.done]  # what is still asked is moot
        held = self._outputs if self._prompt is not None and self._prompt.busy else []
        return [pump for pump in self._pumps if not pump.done and pump not in held]

    def _poll(self, timeout: float | None) -> dict[int, int]:
        masks = {self._launcher.fileno(): select.POLLIN}
        for fd, mask in (pump.interests() for pump in self._active()):
            masks[fd] = masks.get(fd, 0) | mask
        for fd in self._prompt.fds() if self._prompt is not None else ():
            masks[fd] = select.POLLIN
        poll = select.poll()
        for fd, mask in masks.items():
            poll.register(fd, mask)
        return dict(poll.poll(None if timeout is None else math.ceil(timeout * 1000)))

    def _events(self, events: list[dict[str, Any]]) -> None:
        for event in events:
            if event.get("pod") != self._pod.name:
                continue
            if event.get("event") == "pod_failed":
                raise failed(event)
            if event.get("event") == "agent_exit":
                code, number = event.get("code"), event.get("signal")
                if isinstance(number, int) and number:
                    self._exit = 128 + number
                else:
                    self._exit = code if isinstance(code, int) else 1
                self._deadline = time.monotonic() + DRAIN_S
