"""Where the selftest happens: a private builder, scratch workspaces, planted things on the host, a person who answers.

Promises: nothing of the person's is written, and no content of their workspace is read; all is below one new directory
of /tmp, which `close` removes; every wait has an end. Relies on: the conformance suite's bed.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

from nucleus.cli.approvals import Approver
from nucleus.errors import NucleusError
from nucleus.testing.conformance.bed import Bed, FailedError, LivePod, NotHereError

ANSWER_SECONDS = 40.0
AGENT_SECONDS = 40.0
DRAIN_SECONDS = 0.2  # for what was written before the end
OUTPUT_BYTES = 1 << 20
Answer = Callable[[dict[str, Any]], str]


class Ground(Bed):
    """See the module."""

    def __init__(self) -> None:
        super().__init__("namespaces")

    def scratch(self, name: str) -> str:
        """A new directory for a workspace; its path."""
        path = f"{self.directory}/{name}"
        os.mkdir(path, 0o700)
        return path

    def open(self, text: str, source: str, workspace: str, **more: Any) -> LivePod:
        """A pod with this policy. Raises NucleusError."""
        fds = more.pop("fds", ())
        directory = os.open(workspace, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        spec = {"policy_text": text, "policy_source": source, "workdir": workspace, **more}
        try:
            opened = self.launcher.create_pod(spec, (directory, *fds))
        finally:
            os.close(directory)
        made = LivePod(opened)
        opened.gate.settimeout(ANSWER_SECONDS)
        self._pods.append(made)
        return made

    def agent(self, text: str, source: str, workspace: str, script: str, argument: str) -> tuple[bytes, dict[str, Any]]:
        """Run a Python script as the agent of a fresh pod, which no policy mediates; its output, the pod's isolation.

        Raises:
            NotHereError: it did not come to its end. NucleusError: there is no pod.
        """
        theirs = []
        with ExitStack() as stack:
            ours = []
            for end in (0, 1, 1):  # which end of the pipe is the agent's: standard input, output, error
                pair = os.pipe2(os.O_CLOEXEC)
                ours.append(stack.enter_context(open(pair[1 - end], "rb" if end else "wb", buffering=0)))
                theirs.append(stack.enter_context(open(pair[end], "wb" if end else "rb", buffering=0)))
            agent = {"argv": ["/usr/bin/python3", "-I", "-", argument], "env": {}, "stdio": "pipes"}
            pod = self.open(text, source, workspace, agent=agent, fds=tuple(each.fileno() for each in theirs))
            stack.callback(self.finish, pod)
            for each in theirs:
                each.close()
            out, err = self._talk(pod.name, ours, script.encode())
            if not out:
                raise NotHereError(f"the probes did not answer: {err[-200:]!r}")
            return out, pod.isolation

    def _talk(self, pod: str, pipes: list[Any], data: bytes) -> tuple[bytes, bytes]:
        """Feed the agent and read what it says, until it has ended or its time is up."""
        feed, out, err = pipes
        os.set_blocking(feed.fileno(), False)
        found: dict[Any, bytearray] = {out: bytearray(), err: bytearray()}
        view, until, ended = memoryview(data), time.monotonic() + AGENT_SECONDS, False
        while time.monotonic() < until:
            writing = [] if feed.closed else [feed]
            waiting = [out, err, *([] if ended else [self.launcher])]
            ready, writable, _ = select.select(waiting, writing, [], DRAIN_SECONDS if ended else AGENT_SECONDS)
            if writable:
                try:
                    view = view[feed.write(view) or 0 :]
                except BrokenPipeError:
                    view = view[:0]
                if not view:
                    feed.close()
            if self.launcher in ready:
                events = self.launcher.events(wait=True)
                ended = any(e.get("pod") == pod and e.get("event") in ("agent_exit", "pod_failed") for e in events)
            pieces = {each: each.read(65_536) for each in (out, err) if each in ready}
            for each, piece in pieces.items():
                found[each] += piece[: OUTPUT_BYTES - len(found[each])]
            if ended and not any(pieces.values()):
                break
        return bytes(found[out]), bytes(found[err])

    def finish(self, pod: LivePod) -> None:
        """End a pod, however it is."""
        with suppress(NucleusError, FailedError, ValueError):
            self.end(pod)

    def stop(self) -> None:
        """End the builder: after it the log is complete."""
        for pod in list(self._pods):
            self.finish(pod)
        if self._launcher is not None:
            if self._stopped():
                self._launcher.wait_gone()
            self._launcher.close()
            self._launcher = None


class Person:
    """Somebody who answers one pod's requests as `answer` says: ``approve``, ``deny``, or "" for no word. A context.

    `requests` has what was asked, `errors` what the authority said to an answer that it did not take.
    """

    def __init__(self, ground: Ground, pod: LivePod, answer: Answer) -> None:
        self.answer, self.requests = answer, list[dict[str, Any]]()
        self._approver = Approver(ground.launcher.attach_approver())
        self._wake, self._stop = os.pipe2(os.O_CLOEXEC)
        self._approver.call("watch", pod=pod.name)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with suppress(NucleusError, OSError):
            while True:
                while self._approver.events:
                    self._one(self._approver.events.pop(0))
                ready, _, _ = select.select([self._approver.fileno(), self._wake], [], [])
                if self._wake in ready:
                    return
                self._approver.receive()

    def _one(self, event: dict[str, Any]) -> None:
        request = event.get("request")
        if event.get("event") != "request" or not isinstance(request, dict):
            return
        self.requests.append(request)
        word = self.answer(request)
        if word:
            with suppress(NucleusError):  # it waits no longer
                self._approver.call(word, request=request["request"], reason="nucleus selftest")

    def __enter__(self) -> Person:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._stop)
        self._thread.join(ANSWER_SECONDS)
        self._approver.close()
        os.close(self._wake)
