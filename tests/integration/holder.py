"""Runs as the site's user: makes one pod over the launcher's channel, says what there is, and does what stdin tells it.

One JSON object a line, both ways: {"operation": {...}} → the reply; {"status": true} → the builder's status;
{"answer": "approve"|"deny"} → answers every request that comes from now on. Ends with stdin.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import Any

from nucleus.cli.launcher import Launcher
from nucleus.sdk import wire
from nucleus.store.policies import load_policy_text


def say(value: Any) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def answer_all(launcher: Launcher, verb: str) -> None:
    channel = launcher.attach_approver()
    channel.sendall(wire.encode({"id": 1, "op": "watch"}))

    def loop() -> None:
        reader, number = wire.Reader(), 1
        while (frame := wire.receive(channel, reader)) is not None:
            event = frame[0]
            if event.get("event") == "request":
                number += 1
                request = event["request"]["request"]
                channel.sendall(wire.encode({"id": number, "op": verb, "request": request, "reason": "test"}))

    threading.Thread(target=loop, daemon=True).start()


def main() -> None:
    order = json.loads(sys.argv[1])
    text, source = load_policy_text(order.get("profile"), order.get("policy"))
    spec = {"policy_text": text, "policy_source": source, "workdir": order["workdir"], **order.get("spec", {})}
    workspace = os.open(order["workdir"], os.O_PATH | os.O_DIRECTORY)
    fds = [workspace]
    if spec.get("agent"):
        null = os.open("/dev/null", os.O_RDWR)
        fds += [null, null, null]
    with Launcher.open() as launcher:
        if order.get("answer"):
            answer_all(launcher, order["answer"])
        pod = launcher.create_pod(spec, tuple(fds))
        say({"pod": pod.name, "isolation": pod.isolation})
        reader, number = wire.Reader(), 0
        for line in sys.stdin:
            request = json.loads(line)
            if "status" in request:
                say(launcher.call("status").body)
                continue
            number += 1
            try:
                pod.gate.sendall(wire.encode({"id": number, "operation": request["operation"]}))
                frame = wire.receive(pod.gate, reader)
            except OSError:
                frame = None
            say(frame[0]["reply"] if frame else {"kind": "gate_gone"})
        pod.close()


if __name__ == "__main__":
    main()
