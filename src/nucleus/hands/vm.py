"""The first process of a virtual machine: it gives hands a socket, and everything else away.

    python3 -ISc '...; from nucleus.hands.vm import main; main()'      (as the guest's root)

 1. limits, host name; descriptors 3 and 4 are the virtio-serial ports, the gate's channel and one to be heard on
 2. a child becomes uid 1000, without a capability or a way to one, under hands' seccomp filter, and serves a socket
    pair; its real uid is another, so that a command can neither kill nor trace it
 3. ``ready`` is said; then bytes go both ways between the port and the pair, at most `HELD` of them in here
 4. the machine is switched off when the child or the channel has ended

Relies on: `nucleus.pod.qemu`, which wrote settings.json and the filters beside the code. Does not: read what it
passes on.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import socket
import sys
from typing import Any

UID = 1000
CHANNEL, CONTROL = 3, 4
HELD = 1 << 20
_READ = 1 << 16


def main() -> None:
    """See the module. Does not return."""
    from nucleus.kernel import syscalls

    directory = sys.path[0]
    try:
        with open(os.path.join(directory, "settings.json"), encoding="utf-8") as file:
            settings = json.load(file)
        socket.sethostname("pod")
        os.umask(0o022)
        channel, control = CHANNEL, CONTROL
        os.set_blocking(channel, False)
        ours, theirs = socket.socketpair()
        child = os.fork()
        if child == 0:
            ours.close()
            os.close(channel)
            os.close(control)
            _serve(directory, settings, theirs)
        theirs.close()
        os.write(control, b"ready\n")
        relay(channel, ours)
    except BaseException as error:  # noqa: BLE001 -- the console is all there is
        os.write(2, f"nucleus: {type(error).__name__}: {error}\n".encode())
    finally:
        syscalls.power_off()
        os._exit(1)


def _serve(directory: str, settings: dict[str, Any], channel: socket.socket) -> None:
    """Step 2; never returns."""
    code = 1
    try:
        from nucleus.hands import main as hands
        from nucleus.hands.guest import program
        from nucleus.kernel import seccomp, syscalls

        for name, bound in settings["limits"].items():
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (bound, bound))
        os.setsid()
        null = os.open("/dev/null", os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        os.close(null)
        syscalls.set_child_subreaper()
        syscalls.drop_bounding_set()
        os.setgroups([])
        os.setresgid(UID, UID, UID)
        os.setresuid(UID + 1, UID, UID + 1)
        syscalls.drop_all_capabilities()
        syscalls.set_no_new_privs()
        seccomp.install(program(directory, "hands"))
        os.chdir("/workspace")
        filters = program(directory, "commands")
        code = hands.serve(channel, os.getcwd(), settings["env"], filters, reaper=True)
    finally:
        os._exit(code)


def relay(port: int, pair: socket.socket) -> None:
    """Step 3: until either side ends. The port is a character device: its other end is gone when it hangs up."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pair.setblocking(False)
    inward, outward = bytearray(), bytearray()  # to hands, to the gate
    poll = select.poll()
    while True:
        poll.register(port, (select.POLLIN if len(inward) < HELD else 0) | (select.POLLOUT if outward else 0))
        poll.register(pair, (select.POLLIN if len(outward) < HELD else 0) | (select.POLLOUT if inward else 0))
        events = dict(poll.poll())
        seen = events.get(port, 0)
        if seen & select.POLLIN:
            data = _some(port)
            if data == b"":
                return
            inward += data or b""
        elif seen & (select.POLLHUP | select.POLLERR | select.POLLNVAL):
            return
        seen = events.get(pair.fileno(), 0)
        if seen & select.POLLIN:
            data = _some(pair.fileno())
            if data == b"":
                return
            outward += data or b""
        elif seen & (select.POLLHUP | select.POLLERR):
            return
        for held, fd in ((inward, pair.fileno()), (outward, port)):
            if held:
                try:
                    del held[: os.write(fd, held)]
                except BlockingIOError:
                    continue


def _some(fd: int) -> bytes | None:
    """What is there; b"" at the end, None for nothing yet."""
    try:
        return os.read(fd, _READ)
    except BlockingIOError:
        return None
