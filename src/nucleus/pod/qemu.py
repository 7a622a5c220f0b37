"""The `qemu` rung: commands run in a virtual machine, on a Linux of their own.

QEMU is started in the compartment, like gVisor (`nucleus.pod.guests`): under the pod's uid, in its namespaces, cgroup
and network, without capabilities, under the seccomp profile ``guest`` and QEMU's own filter. What the guest sees of
files is the compartment's view, by virtiofs: a virtiofsd beside QEMU serves it, with every hidden and read-only name.
The guest's network is QEMU's user-mode stack, whose sockets are the pod's network namespace's: rules and gateway see
what they see of any pod. Machine: microvm with ACPI, software emulation; no default devices, two serial ports (the
gate's channel, and one that says ``ready``), the file system, the network card.

 1. parts     (builder) kernel and initial file system as sealed memory, checked against the image's name; hands' code
 2. private   a tmpfs at /run/guest for the code, the settings and the socket between QEMU and virtiofsd
 3. start     virtiofsd, then QEMU, as children
 4. ready     the guest says so (`nucleus.hands.vm`); else the end of its console is the error
 5. wait      we drop every capability; the machine's end is the compartment's

Relies on: Debian's qemu-system-x86 and its virtiofsd, an image (`nucleus image build`).
Does not: run agents yet (`parts` refuses, so no pod with one is made); use KVM.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import select
import signal
import socket
import sys
import tarfile
import time
from typing import TYPE_CHECKING, Any

from nucleus.errors import SandboxError
from nucleus.kernel import seccomp, syscalls
from nucleus.pod import gvisor, packets, view

if TYPE_CHECKING:
    from nucleus.pod.compartment import Order, Zygote

PROGRAM = "/usr/bin/qemu-system-x86_64"
VIRTIOFSD = ("/usr/lib/qemu/virtiofsd",)
MEMORY_MIB = 1_024
START_SECONDS = 60.0
CONSOLE_BYTES = 4_096
OWN_TASKS = 64  # QEMU's and virtiofsd's threads
INSIDE = gvisor.INSIDE
PLACE = gvisor.PLACE
HOST_INSIDE = "10.0.2.2"  # what QEMU's network makes the pod's own loopback of


class Qemu:
    """See the module, and `nucleus.pod.guests.Guest`."""

    name = "qemu"
    seconds = START_SECONDS + 10.0

    def __init__(self) -> None:
        self._store = ""  # of images; "" for the one that this process's environment says
        self._files: dict[str, int] = {}
        self._image = ""
        self._archive = -1

    def lacking(self) -> str:
        """See `Guest.lacking`. Without an image it is asked again: one can be built meanwhile."""
        from nucleus.pod import guest_image, runtime

        if os.uname().machine != "x86_64":
            return "virtual machines are made on x86_64 alone"
        for path in (PROGRAM, *VIRTIOFSD):
            if not os.path.isfile(path):
                return f"there is no {path}. Install Debian's qemu-system-x86 and qemu-system-common."
        if os.path.realpath(sys.base_prefix) != "/usr":
            return f"Nucleus runs on the Python of {sys.base_prefix}, and a guest has the one of /usr"
        found = guest_image.images(self._store or runtime.images_dir())
        if not found:
            return "there is no image. Run `nucleus image build`."
        if found[0].sha256 != self._image:
            try:
                self._files, old = guest_image.load(found[0]), self._files
            except SandboxError as error:
                return error.message
            self._image = found[0].sha256
            packets.close_all(old.values())
        return ""

    def keep_images(self, store: str) -> None:
        """Where images are, for a process whose environment does not say."""
        self._store = store

    def missing(self) -> list[str]:
        """See `Guest.missing`."""
        return ["KVM (software emulation)"]

    def settings(self) -> dict[str, str]:
        """See `Guest.settings`."""
        return {"image": self._image}

    def tasks(self, pids: int) -> int:
        """See `Guest.tasks`: the guest's are its own."""
        return max(pids, OWN_TASKS)

    def parts(self, kind: str) -> dict[str, int]:
        """See `Guest.parts`."""
        if kind != "work":
            raise SandboxError(
                "an agent cannot be put into a virtual machine in this version, its commands can",
                rule="isolation.agent",
                next_step="Use `--isolation gvisor`; `nucleus exec` and `nucleus serve` have no agent inside.",
            )
        if self._archive < 0:
            self._archive = gvisor.code()
        every = {**self._files, "code": self._archive}
        return {name: os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC) for name, fd in every.items()}

    def enter(self, order: Order, zygote: Zygote, ready: dict[str, Any]) -> int:
        """See `Guest.enter`."""
        listener = _private(order, zygote)
        assert order.channel is not None
        control, theirs = socket.socketpair()
        console, write = os.pipe2(os.O_CLOEXEC)
        files = _child(zygote, _virtiofsd(listener.fileno()), (listener.fileno(),), write)
        parts = order.parts
        given = (parts["vmlinux"], parts["initrd"], order.channel, theirs.fileno())
        machine = _child(zygote, _machine(*given), given, write)
        for fd in (*parts.values(), order.channel, write):
            os.close(fd)
        listener.close()
        theirs.close()
        syscalls.set_no_new_privs()
        syscalls.drop_bounding_set()
        syscalls.drop_all_capabilities()
        syscalls.set_dumpable(False)
        said = _Console(console)
        said.await_ready(control, machine)
        packets.send_packet(order.status, ready)
        while True:
            said.drain()
            ended, status = os.waitpid(-1, 0 if said.closed else os.WNOHANG)
            if ended == machine:
                os.kill(files, signal.SIGKILL)
                return max(os.waitstatus_to_exitcode(status), 0)


class _Console:
    """What QEMU, virtiofsd and the guest's kernel say; the end of it is kept."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._text = b""
        self.closed = False

    def drain(self, seconds: float | None = None) -> None:
        """Wait until something is said, and take it."""
        if not self.closed and select.select([self._fd], [], [], seconds)[0]:
            data = os.read(self._fd, 65_536)
            self.closed = data == b""
            self._text = (self._text + data)[-CONSOLE_BYTES:]

    def await_ready(self, control: socket.socket, machine: int) -> None:
        """Step 4. Raises SandboxError."""
        end = time.monotonic() + START_SECONDS
        while not select.select([control], [], [], 0)[0]:
            if self.closed or time.monotonic() > end or os.waitpid(machine, os.WNOHANG)[0]:
                lines = self._text.decode("utf-8", "replace").strip().splitlines()
                raise SandboxError(f"the machine did not start: {' | '.join(lines[-3:])[:500]}", rule="pod.qemu")
            self.drain(0.01)
        if control.recv(64) != b"ready\n":
            raise SandboxError("the machine ended before it was ready", rule="pod.qemu")


def _private(order: Order, zygote: Zygote) -> socket.socket:
    """Step 2; the listening socket that virtiofsd takes QEMU on."""
    from nucleus.pod import compartment

    syscalls.mount("tmpfs", PLACE, "tmpfs", view.FLAGS, "mode=0755,size=64m")
    with (
        os.fdopen(order.parts["code"], "rb", closefd=False) as data,
        tarfile.open(fileobj=io.BytesIO(data.read())) as all_,
    ):
        for member in all_:
            content = all_.extractfile(member)
            assert content is not None
            gvisor.put(f"{INSIDE}/{member.name}", content.read())
    for name in ("hands", "commands"):
        gvisor.put(f"{INSIDE}/{name}.bpf", zygote.filters[name])
    env = compartment.environment(order)
    settings = {
        # The gateway's doors are on the pod's loopback, which has another name from inside.
        "env": {name: value.replace("//127.0.0.1:", f"//{HOST_INSIDE}:") for name, value in env.items()},
        "limits": {"NPROC": order.pids, "NOFILE": compartment.NOFILE, "FSIZE": compartment.FILE_BYTES, "CORE": 0},
    }
    gvisor.put(f"{INSIDE}/settings.json", json.dumps(settings).encode())
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    listener.bind(f"{PLACE}/files.sock")
    listener.listen(1)
    return listener


def _virtiofsd(listener: int) -> list[str]:
    return [
        VIRTIOFSD[0], f"--fd={listener}", "--thread-pool-size=4", "-o", "source=/", "-o", "announce_submounts",
        "-o", "sandbox=chroot", "-o", "cache=auto", "-o", "log_level=err",
    ]  # fmt: skip


def _machine(kernel: int, initrd: int, channel: int, control: int) -> list[str]:
    """QEMU's command line: no secret is in it, as in none of a pod's."""
    line = f"console=ttyS0 quiet reboot=t panic=-1 tsc_early_khz=2600000 nucleus.time={int(time.time()) + 1}"
    return [
        PROGRAM, "-M", "microvm,acpi=on,pit=on,pic=on,rtc=on,memory-backend=memory", "-accel", "tcg,thread=multi",
        "-cpu", "qemu64", "-m", str(MEMORY_MIB), "-smp", "2",
        "-object", f"memory-backend-memfd,id=memory,size={MEMORY_MIB}M,share=on",
        "-nodefaults", "-no-user-config", "-nographic", "-no-reboot", "-serial", "stdio", "-monitor", "none",
        "-kernel", f"/proc/self/fd/{kernel}", "-initrd", f"/proc/self/fd/{initrd}", "-append", line,
        "-global", "virtio-mmio.force-legacy=false",
        "-chardev", f"socket,id=files,path={PLACE}/files.sock",
        "-device", "vhost-user-fs-device,chardev=files,tag=root",
        "-device", "virtio-serial-device",
        "-chardev", f"socket,id=channel,fd={channel}", "-device", "virtserialport,chardev=channel,name=channel",
        "-chardev", f"socket,id=control,fd={control}", "-device", "virtserialport,chardev=control,name=control",
        "-netdev", "user,id=network,ipv6=off", "-device", "virtio-net-device,netdev=network",
        "-device", "virtio-rng-device",
        "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    ]  # fmt: skip


def _child(zygote: Zygote, words: list[str], fds: tuple[int, ...], console: int) -> int:
    """Step 3, one of the two; its pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        for number, fd in enumerate((null, console, console)):
            os.dup2(fd, number)
        for fd in range(3, 256):
            if fd in fds:
                os.set_inheritable(fd, True)
            else:
                fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.FD_CLOEXEC) if _open(fd) else None
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        if words[0] == PROGRAM:
            syscalls.drop_bounding_set()
            syscalls.drop_all_capabilities()
        else:
            syscalls.keep_capabilities_over_exec()
        syscalls.set_no_new_privs()
        seccomp.install(zygote.filters["guest"])
        os.execve(words[0], words, {"PATH": "/usr/bin:/bin"})  # noqa: S606
    finally:
        os._exit(127)


def _open(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_GETFD)
    except OSError:
        return False
    return True
