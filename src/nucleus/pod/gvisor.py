"""The `gvisor` rung: the compartment's programs run on gVisor's own kernel (runsc), not on the host's.

runsc is started in the compartment, as a container whose root is the compartment's view: its gofer serves that view,
with every hidden and read-only name, and nothing else; its sentry answers the programs' system calls. Both have the
pod's uid, namespaces, cgroup and network, no capability that reaches beyond them, and gVisor's own seccomp filters. The
programs inside are uid 0 without capabilities, which is the pod's uid outside: runsc needs a root to map.

 1. parts     (builder) hands' code and RE2 as an archive; runsc's name and platform, found by starting it
 2. private   a tmpfs at /run/guest for the bundle, the code and runsc's state; /proc without masks, since runsc mounts
              one for itself (the programs have the sentry's)
 3. start     runsc in a child, with this user namespace's capabilities, under the seccomp profile ``guest``; its 0, 1
              and 2 are hands' channel or the agent's own
 4. ready     the guest's first process says so; else what runsc said is the error
 5. wait      we drop every capability and wait; the container's end is the compartment's

Relies on: a runsc of 2024 or newer (older ones lack statx flags that `ls` uses), /usr/bin/python3.
Does not: use gVisor's network stack. The sentry's sockets are the pod's network namespace's, so that rules and gateway
see what they see of any pod; `missing` says so.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import signal
import stat
import struct
import sys
import tarfile
import termios
import time
from typing import TYPE_CHECKING, Any

from nucleus.errors import SandboxError
from nucleus.kernel import seccomp, syscalls
from nucleus.pod import packets, view

if TYPE_CHECKING:
    from nucleus.pod.compartment import Order, Zygote

PLACE = "/run/guest"
INSIDE = f"{PLACE}/code"
PYTHON = "/usr/bin/python3"
START = "import sys; sys.path.insert(0, %r); from nucleus.hands.guest import main; main()"
PROGRAMS = ("/usr/local/bin/runsc", "/usr/bin/runsc")
PLATFORMS = ("systrap", "ptrace")
START_SECONDS = 30.0
_U32 = 0xFFFFFFFF
TRIAL_SECONDS = 10.0
SAID_BYTES = 2_000
OWN_THREADS = 96  # of runsc, its gofer and sentry
THREADS = 200  # of one guest: systrap ends the sentry at 256 (its memory for contexts is used up)
ARCHIVE_BYTES = 64 << 20
PACKAGES = ("hands", "kernel")
MODULES = ("__init__.py", "errors.py", "frames.py", "limits.py", "globs.py")
GET_IT = "Install gVisor's runsc (https://gvisor.dev/docs/user_guide/install), of 2024 or newer, to /usr/local/bin."


class Gvisor:
    """See the module, and `nucleus.pod.guests.Guest`."""

    name = "gvisor"
    seconds = START_SECONDS + 10.0

    def __init__(self) -> None:
        self._lacking: str | None = None
        self._program = ""
        self._platform = ""
        self._archive = -1

    def lacking(self) -> str:
        """See `Guest.lacking`."""
        if self._lacking is None:
            self._lacking = self._tried()
        return self._lacking

    def missing(self) -> list[str]:
        """See `Guest.missing`."""
        return ["gVisor's own network stack (its sockets are the pod's network namespace's)"]

    def settings(self) -> dict[str, str]:
        """What `enter` needs to know, which only the builder could find out."""
        return {"program": self._program, "platform": self._platform}

    def tasks(self, pids: int) -> int:
        """See `Guest.tasks`: a thread of the guest is one or two of the host."""
        return 2 * pids + OWN_THREADS

    def parts(self, kind: str) -> dict[str, int]:
        """See `Guest.parts`: the archive of the code that hands is, and of what it imports."""
        if self._archive < 0:
            self._archive = code()
        # A descriptor of its own: the receiver's place in the file is not ours.
        return {"code": os.open(f"/proc/self/fd/{self._archive}", os.O_RDONLY | os.O_CLOEXEC)}

    def _tried(self) -> str:
        program = next((path for path in PROGRAMS if os.path.isfile(path)), "")
        if not program:
            return f"there is no runsc. {GET_IT}"
        for name in (program, os.path.dirname(program)):
            found = os.stat(name)
            if found.st_uid != 0 or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                return f"{name} can be changed by others than root"
        if os.path.realpath(sys.base_prefix) != "/usr":
            return f"Nucleus runs on the Python of {sys.base_prefix}, and a guest has the one of /usr"
        said = ""
        for platform in PLATFORMS:
            said = _trial(program, platform)
            if not said:
                self._program, self._platform = program, platform
                return ""
        return f"{program} does not run `ls` here: {said}. {GET_IT}"

    def enter(self, order: Order, zygote: Zygote, ready: dict[str, Any]) -> int:
        """See `Guest.enter`."""
        master = -1
        stdio: tuple[int, ...] = order.stdio
        if order.kind == "work":
            assert order.channel is not None
            null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
            stdio = (order.channel, null, null)
        elif not stdio:
            master, slave = os.openpty()
            fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", order.rows, order.cols, 0, 0))
            stdio = (slave, slave, slave)
        _private(order, zygote)
        pid = _started(order, zygote, stdio, terminal=master >= 0)
        for fd in {*stdio, *order.parts.values()}:
            os.close(fd)
        syscalls.set_no_new_privs()
        syscalls.drop_bounding_set()
        syscalls.drop_all_capabilities()
        syscalls.set_dumpable(False)
        _await_ready(pid)
        if master >= 0:
            packets.send_packet(order.status, {**ready, "pty": True}, [master])
            os.close(master)
        else:
            packets.send_packet(order.status, ready)
        code = _reaped(pid)
        if order.kind == "agent":
            packets.send_packet(order.status, {"exit": {"code": code, "signal": 0}})
        return code


def _trial(program: str, platform: str) -> str:
    """Run `ls` in a container of its own; "" or why not."""
    import subprocess

    words = [
        program, "--rootless", f"--platform={platform}", "--network=host", "--ignore-cgroups", "do", "/bin/ls", "-l",
        "/usr/bin/python3",
    ]  # fmt: skip
    try:
        done = subprocess.run(
            words,
            capture_output=True,
            timeout=TRIAL_SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
            env={"PATH": "/usr/bin:/bin"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)[:SAID_BYTES]
    return "" if done.returncode == 0 else done.stderr.decode("utf-8", "replace").strip()[-300:] or "no reason given"


def code() -> int:
    """A memory file with the code, as tar; what is imported inside is this version, whatever else /usr has."""
    from importlib.util import cache_from_source

    import re2

    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    where = os.path.dirname(os.path.abspath(str(re2.__file__)))
    sources = [(f"{package}/{name}", f"nucleus/{name}") for name in MODULES]
    for room in PACKAGES:
        sources += [
            (f"{package}/{room}/{name}", f"nucleus/{room}/{name}") for name in sorted(os.listdir(f"{package}/{room}"))
        ]
    sources += [(f"{where}/{name}", f"re2/{name}") for name in sorted(os.listdir(where))]
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for path, name in sources:
            if not name.endswith((".py", ".so")):
                continue
            with open(path, "rb") as file:
                data = file.read()
            parts = [(name, data)]
            if name.endswith(".py"):  # which a guest would compile at each start, slowly
                parts.append((cache_from_source(name), _compiled(path, data)))
            for place, content in parts:
                member = tarfile.TarInfo(place)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    data = made.getvalue()
    fd = os.memfd_create("nucleus-guest-code", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, data)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    return fd


def _compiled(path: str, source: bytes) -> bytes:
    """A module's byte code that is taken without a look at the source's time (PEP 552, unchecked).

    That of the import system's cache, by its own rules, or made here.
    """
    import importlib.util
    import py_compile
    import tempfile

    try:
        with open(importlib.util.cache_from_source(path), "rb") as file:
            kept = file.read()
        found = os.stat(path)
        same = struct.pack("<4sIII", importlib.util.MAGIC_NUMBER, 0, int(found.st_mtime) & _U32, found.st_size & _U32)
        if kept[:16] == same:
            return struct.pack("<4sI", kept[:4], 1) + importlib.util.source_hash(source) + kept[16:]
    except OSError:
        pass  # there is none
    with tempfile.NamedTemporaryFile(suffix=".pyc") as made:
        mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
        py_compile.compile(path, cfile=made.name, doraise=True, invalidation_mode=mode)
        with open(made.name, "rb") as file:  # it is another file by now, of this name
            return file.read()


def _private(order: Order, zygote: Zygote) -> None:
    """Step 2."""
    from nucleus.pod import compartment

    for name in (*view.PROC_MASKED_FILES, *view.PROC_MASKED_DIRS, *view.PROC_READ_ONLY):
        if os.path.ismount(f"/proc/{name}") or name in view.PROC_READ_ONLY:
            try:
                syscalls.umount2(f"/proc/{name}")
            except OSError:
                continue  # nothing is mounted there
    syscalls.mount("tmpfs", PLACE, "tmpfs", view.FLAGS, "mode=0755,size=64m")
    for name in ("bundle", "state", "bin", "code"):
        os.mkdir(f"{PLACE}/{name}", 0o755)
    with os.fdopen(order.parts["code"], "rb", closefd=False) as data, tarfile.open(fileobj=data) as archive:
        for member in archive:  # ours, from the builder's memory: files, and no name leads out
            content = archive.extractfile(member)
            assert content is not None
            put(f"{INSIDE}/{member.name}", content.read())
    for name in ("hands", "commands") if order.kind == "work" else ("agent",):
        put(f"{INSIDE}/{name}.bpf", zygote.filters[name])
    for kind in ("uid", "gid"):  # runsc asks these programs to write its child's map; one line, one id
        script = f'#!/bin/sh\nexec printf "%s\\n" "$2 $3 $4" > "/proc/$1/{kind}_map"\n'
        put(f"{PLACE}/bin/new{kind}map", script.encode(), 0o755)
    put(f"{PLACE}/bundle/config.json", json.dumps(bundle(order, compartment.environment(order))).encode())


def put(path: str, data: bytes, mode: int = 0o644) -> None:
    os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
    with open(path, "xb") as file:
        file.write(data)
    os.chmod(path, mode)


def bundle(order: Order, env: dict[str, str]) -> dict[str, Any]:
    """The container, as OCI's runtime specification 1.0 has it."""
    from nucleus.pod import compartment

    words = ["hands"] if order.kind == "work" else ["agent", *order.argv]
    cwd = "/workspace" if order.kind == "work" or order.read_only else "/home/agent"
    # hands takes a uid that commands cannot signal, and then has none (nucleus.hands.guest); an agent has none.
    capabilities = ["CAP_SETUID"] if order.kind == "work" else []
    own = {"containerID": 0, "hostID": os.getuid(), "size": 1}
    binds = ["/tmp", "/home/agent", INSIDE]  # noqa: S108 -- the pod's own
    if order.kind == "work" or order.read_only:
        binds.append("/workspace")
    return {
        "ociVersion": "1.0.0",
        "process": {
            "terminal": order.kind == "agent" and not order.stdio,
            "user": {"uid": 0, "gid": 0},
            "args": [PYTHON, "-ISc", START % INSIDE, *words],
            "env": [f"{name}={value}" for name, value in env.items()],
            "cwd": cwd,
            "capabilities": {"bounding": [], "inheritable": [], "effective": capabilities, "permitted": capabilities},
            "noNewPrivileges": True,
            "rlimits": [
                {"type": f"RLIMIT_{name}", "soft": bound, "hard": bound}
                for name, bound in (
                    ("NPROC", min(order.pids, THREADS)),
                    ("NOFILE", compartment.NOFILE),
                    ("FSIZE", compartment.FILE_BYTES),
                    ("CORE", 0),
                )
            ],
        },
        "root": {"path": "/", "readonly": False},  # its mounts are read-only already, and cannot be remounted
        "hostname": "pod",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            # Theirs is in the sentry's memory: without a size it would fill up, and the pod would end.
            {"destination": "/dev/shm", "type": "tmpfs", "source": "tmpfs", "options": [f"size={order.tmp_bytes}"]},  # noqa: S108
            {"destination": PLACE, "type": "tmpfs", "source": "tmpfs", "options": ["size=65536"]},  # ours is not theirs
            *({"destination": path, "type": "bind", "source": path, "options": ["rbind", "rw"]} for path in binds),
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "user")],
            "uidMappings": [own],
            "gidMappings": [own],
        },
    }


def _started(order: Order, zygote: Zygote, stdio: tuple[int, ...], *, terminal: bool) -> int:
    """Step 3; runsc's pid."""
    settings = order.settings
    words = [
        settings["program"], f"--root={PLACE}/state", "--rootless", f"--platform={settings['platform']}",
        "--network=host", "--ignore-cgroups", "--overlay2=none", "--directfs=false", "--host-uds=open",
        "--file-access-mounts=shared", f"--log={PLACE}/log", "--log-format=text",
        "run", f"--bundle={PLACE}/bundle", "pod",
    ]  # fmt: skip
    pid = os.fork()
    if pid:
        return pid
    try:
        if terminal:
            os.setsid()
            fcntl.ioctl(stdio[0], termios.TIOCSCTTY, 0)
        moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in stdio]
        for number, fd in enumerate(moved):
            os.dup2(fd, number)
        os.closerange(3, 65_536)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        syscalls.set_pdeathsig(signal.SIGKILL)
        syscalls.keep_capabilities_over_exec()  # ambient ones pass no_new_privs
        syscalls.set_no_new_privs()
        seccomp.install(zygote.filters["guest"])  # what it leaves in the workspace is on the host's disk
        os.execve(words[0], words, {"PATH": f"{PLACE}/bin:/usr/bin:/bin"})  # noqa: S606
    finally:
        os._exit(127)


def _await_ready(pid: int) -> None:
    """Step 4. Raises SandboxError: it ended before, or takes too long."""
    end = time.monotonic() + START_SECONDS
    while not os.path.exists(f"{INSIDE}/ready"):
        ended = os.waitpid(pid, os.WNOHANG)[0]
        if ended or time.monotonic() > end:
            raise SandboxError(f"gVisor did not start: {_said()}", rule="pod.gvisor", next_step=GET_IT)
        time.sleep(0.002)


def _said() -> str:
    """The end of runsc's log: its reason is the last line."""
    try:
        with open(f"{PLACE}/log", "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - SAID_BYTES))
            lines = file.read(SAID_BYTES).decode("utf-8", "replace").strip().splitlines()
    except OSError:
        return "no reason given"
    return next((line[:500] for line in reversed(lines) if line.strip()), "no reason given")


def _reaped(pid: int) -> int:
    """Step 5: as pid 1 we also get whom runsc leaves."""
    while True:
        ended, status = os.wait()
        if ended == pid:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
