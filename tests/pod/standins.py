"""Small stand-ins for the processes of other rooms, so that a pod can be tested by itself.

`python -I standins.py ROLE …`: `authority` says yes to everything; `template` forks a "gate" that relays frames from
the launcher to hands and back, and reads a JSON policy {block, protect, floor}; `builder` is the real builder.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys

from nucleus.pod.packets import recv_packet, send_packet


def authority() -> int:
    control = socket.socket(fileno=3)
    held = []
    log = -1
    while (packet := recv_packet(control)) is not None:
        held += packet.fds
        if packet.body["op"] == "configure":
            log = os.open(f"{packet.body['state_dir']}/requests.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.write(log, json.dumps(packet.body).encode() + b"\n")
        send_packet(control, {"id": packet.body["id"], "ok": {}})
    return 0


def template() -> int:
    control = socket.socket(fileno=3)
    while (packet := recv_packet(control)) is not None:
        config = packet.body["config"]
        number = packet.body["id"]
        pid = os.fork()
        if pid == 0:
            if os.fork() == 0:
                gate(control, number, config, packet.fds)
            os._exit(0)
        os.waitpid(pid, 0)
        for fd in packet.fds:
            os.close(fd)
    return 0


def gate(control: socket.socket, number: int, config: dict, fds: list[int]) -> None:
    try:
        policy = json.loads(config["policy_text"])
    except ValueError:
        send_packet(
            control, {"id": number, "error": {"code": "invalid_request", "message": "bad policy", "rule": "policy"}}
        )
        os._exit(2)
    facts = {
        "block": [],
        "protect": [],
        "floor": "",
        "gateway": False,
        "opens": [],
        "credentials": [],
        "env": {},
        "policy_digest": "0" * 64,
        "policy_name": "test",
        "pods": [],
        "budget_limit": 1,
    }
    facts |= policy
    send_packet(control, {"id": number, "ok": {"pid": os.getpid(), **facts}})
    control.close()
    hands, launcher = fds[1], fds[2]
    while True:
        for source, sink in ((hands, launcher), (launcher, hands)):
            if select.select([source], [], [], 0.005)[0]:
                data = os.read(source, 65536)
                if not data:
                    os._exit(0)
                try:
                    while data:
                        data = data[os.write(sink, data) :]
                except BrokenPipeError:
                    os._exit(0)


def main() -> int:
    role = sys.argv[1]
    if role == "authority":
        return authority()
    if role == "template":
        return template()
    if role == "builder":
        from nucleus.pod import boot

        commands = dict(boot.COMMANDS)
        for name in ("authority", "template"):
            commands[name] = (sys.executable, "-I", os.path.abspath(__file__), name)
        return boot.main(sys.argv[2:], commands)
    raise SystemExit(f"unknown role {role}")


if __name__ == "__main__":
    sys.exit(main())
