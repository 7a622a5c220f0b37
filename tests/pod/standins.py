"""Small stand-ins for the processes of other rooms, so that a pod can be tested by itself.

`python -I standins.py ROLE …`: `authority` says yes to everything; `template` forks a "gate" that relays frames from the launcher
to hands and back, and reads a JSON policy {block, protect, floor}; `builder` is the real builder with these commands.
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys

from nucleus import frames
from nucleus.pod.packets import recv_packet, send_packet


def authority() -> int:
    control = socket.socket(fileno=3)
    held = []
    log = None
    while (packet := recv_packet(control)) is not None:
        held += packet.fds
        if packet.body["op"] == "configure":
            log = open(os.path.join(packet.body["state_dir"], "requests.jsonl"), "a", buffering=1)
        if log is not None:
            log.write(json.dumps(packet.body) + "\n")
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
        "policy_digest": "0" * 64,
        "policy_name": "test",
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
        try:
            from nucleus.pod import cgroups
        except ImportError:
            import types
            from dataclasses import dataclass

            import nucleus.pod

            @dataclass
            class Limits:
                pids: int = 256

            fake = types.ModuleType("nucleus.pod.cgroups")
            fake.Limits = Limits
            fake.Group = object
            fake.missing = lambda: ["cgroup"]
            sys.modules["nucleus.pod.cgroups"] = fake
            nucleus.pod.cgroups = fake
        from nucleus.pod import builder, children

        commands = dict(children.COMMANDS)
        for name in ("authority", "template"):
            commands[name] = (sys.executable, "-I", os.path.abspath(__file__), name)
        import importlib.util

        if importlib.util.find_spec("nucleus.hands.main") is None:
            commands["zygote"] = (sys.executable, "-I", os.path.abspath(__file__), "zygote")
        return builder.main(sys.argv[2:], commands)
    if role == "zygote":
        return zygote()
    raise SystemExit(f"unknown role {role}")


def zygote() -> int:
    import types

    try:
        import nucleus.kernel.seccomp
    except ImportError:
        fake = types.ModuleType("nucleus.kernel.seccomp")
        fake.compile_profile = lambda name: b""
        fake.install = lambda program: None
        sys.modules["nucleus.kernel.seccomp"] = fake
        import nucleus.kernel

        nucleus.kernel.seccomp = fake
    try:
        import nucleus.hands.main
    except ImportError:
        import nucleus

        hands = types.ModuleType("nucleus.hands")
        inner = types.ModuleType("nucleus.hands.main")
        inner.serve = serve
        hands.main = inner
        nucleus.hands = hands
        sys.modules["nucleus.hands"] = hands
        sys.modules["nucleus.hands.main"] = inner
    from nucleus.pod import zygote

    return zygote.main()


def serve(channel, root, env, command_filter, reaper=True):
    decoder = frames.Decoder()
    while data := channel.recv(65536):
        for frame in decoder.feed(data):
            h = frame.header
            done = subprocess.run(h["argv"], cwd=root, env=env, input=frame.body, capture_output=True)
            body = done.stdout + done.stderr
            ok = {"exit_code": done.returncode, "stdout_bytes": len(done.stdout)}
            channel.sendall(frames.encode({"id": h["id"], "ok": ok}, body))
    return 0


if __name__ == "__main__":
    sys.exit(main())
