"""What a compartment sees: its own root, made of read-only pieces of the host and private, empty places.

Promises: nothing of the host is visible but /usr (and the /bin, /lib… that belong to it), a short list of /etc files
that programs need, six device nodes, and declared toolchains, all read-only; /tmp, /home/agent, /dev/shm, /dev/pts and
/proc are the compartment's own; the root itself is read-only; the old root is gone from the mount namespace.
Relies on: `prepare_base`, run once in the zygote's private mount namespace; the new mount API (Linux 5.12).
Does not: hide files from whoever has their uid (that is what the compartment's uid is for); mount sysfs, /run or /var.

Two parts: `prepare_base` builds the parts that every pod shares, once; `Trees` clones them, before a compartment
leaves its privileges, and `build` puts them together inside the compartment's own mount namespace.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass, field

from nucleus.errors import SandboxError
from nucleus.kernel import syscalls
from nucleus.pod import packets

SYSTEM = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")  # links into /usr, or directories of their own
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
# Copied once: what a resolver, a loader, a locale or a shell reads. Links into /usr stay links.
ETC_FILES = (
    "ld.so.cache", "ld.so.conf", "nsswitch.conf", "host.conf", "gai.conf", "localtime", "timezone", "locale.alias",
    "mime.types", "magic", "ca-certificates.conf", "services", "protocols", "networks", "os-release", "debian_version",
    "inputrc", "bash.bashrc", "profile", "shells", "ssl/openssl.cnf",
)  # fmt: skip
# Shown by read-only bind: too large to copy, no secrets in them (ssl/private is beside ssl/certs, and stays out).
ETC_TREES = (
    "ld.so.conf.d", "ssl/certs", "ca-certificates", "alternatives", "python3", "terminfo", "fonts", "perl",
    "pki/tls/certs", "pki/ca-trust",
)  # fmt: skip
ETC_PREFIXES = ("python3.", "java-")
ETC_MADE = {
    "passwd": "root:x:0:0:root:/nonexistent:/usr/sbin/nologin\nagent:x:1000:1000:agent:/home/agent:/bin/sh\n"
    "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "group": "root:x:0:\nagent:x:1000:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost pod\n::1 localhost\n",
    "hostname": "pod\n",
    "resolv.conf": "nameserver 127.0.0.1\noptions timeout:2 attempts:1\n",  # the gateway, where there is one
}
TOOLS_SCRIPT = """#!/usr/bin/python3 -IS
import sys
sys.path.insert(0, "/run/nucleus/lib")
from nucleus.sdk.mcp import main
sys.exit(main())
"""
# runc's lists (libcontainer, "maskedPaths" and "readonlyPaths").
PROC_MASKED_FILES = ("kcore", "keys", "timer_list", "sched_debug", "latency_stats", "timer_stats", "kallsyms", "kmsg")
PROC_MASKED_DIRS = ("acpi", "scsi", "asound", "interrupts")
PROC_READ_ONLY = ("bus", "fs", "irq", "sys", "sysrq-trigger")
RDONLY = syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV
FLAGS = syscalls.MS_NOSUID | syscalls.MS_NODEV
# Where programs look for the authorities that they trust: the system's bundle, and who names one by itself.
BUNDLES = ("etc/ssl/certs/ca-certificates.crt", "etc/pki/tls/certs/ca-bundle.crt")
TRUSTING = (
    "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "CARGO_HTTP_CAINFO", "AWS_CA_BUNDLE",
    "PIP_CERT", "DENO_CERT",
)  # fmt: skip
TRUST = "run/nucleus"
BUNDLE_BYTES = 700_000  # of the system's; it has to fit beside ours
STAGE = "/tmp"  # noqa: S108 -- covered by the new root in a mount namespace of our own
SMALL = 1_048_576  # bytes of a file that is worth copying


def prepare_base(base: str, sdk: str) -> None:
    """Build the shared parts under `base`, in the caller's own mount namespace.

    Args:
        base: an empty directory; a tmpfs is mounted over it.
        sdk: directory of the in-pod SDK's sources, copied.
    """
    syscalls.mount("tmpfs", base, "tmpfs", FLAGS, "mode=0755,size=16m")
    for name in ("etc", "dev", "masks", "nucleus"):
        os.mkdir(f"{base}/{name}", 0o755)
    bind(open_read_only("/usr"), _directory(f"{base}/usr"))
    for name in SYSTEM:
        if os.path.islink(f"/{name}"):
            os.symlink(os.readlink(f"/{name}"), f"{base}/{name}")
        elif os.path.isdir(f"/{name}"):
            bind(open_read_only(f"/{name}"), _directory(f"{base}/{name}"))
    _etc(f"{base}/etc")
    _devices(f"{base}/dev")
    _sdk(f"{base}/nucleus", sdk)
    os.mkdir(f"{base}/masks/directory", 0o000)
    os.close(os.open(f"{base}/masks/file", os.O_CREAT | os.O_EXCL, 0o000))
    syscalls.mount_setattr(syscalls.AT_FDCWD, base, 0, attr_set=RDONLY)  # and so is every clone of it


def open_read_only(path: str) -> int:
    """A detached, recursive, read-only clone of the mounts at `path`, without setuid and devices."""
    tree = syscalls.open_tree(
        syscalls.AT_FDCWD, path, syscalls.OPEN_TREE_CLONE | syscalls.OPEN_TREE_CLOEXEC | syscalls.AT_RECURSIVE
    )
    try:
        syscalls.mount_setattr(tree, "", syscalls.AT_EMPTY_PATH | syscalls.AT_RECURSIVE, attr_set=RDONLY)
    except BaseException:
        os.close(tree)
        raise
    return tree


def bind(tree: int, target: str) -> None:
    """Attach a detached tree at `target` and close its descriptor."""
    try:
        syscalls.move_mount(tree, "", syscalls.AT_FDCWD, target, syscalls.MOVE_MOUNT_F_EMPTY_PATH)
    finally:
        os.close(tree)


@dataclass(slots=True)
class Trees:
    """Detached trees of one compartment, taken while the host is in sight; `close` closes what was not attached."""

    parts: dict[str, int] = field(default_factory=dict)
    links: list[tuple[str, str]] = field(default_factory=list)
    workspace: int = -1
    sockets: list[tuple[str, int]] = field(default_factory=list)
    toolchains: list[tuple[str, int]] = field(default_factory=list)

    def close(self) -> None:
        """Close all of them."""
        packets.close_all([*self.parts.values(), *(fd for _, fd in (*self.toolchains, *self.sockets))])
        packets.close_all(fd for fd in (self.workspace,) if fd >= 0)


def take_parts(base: str, *, agent: bool) -> Trees:
    """Detached clones of the shared parts that a compartment gets, by their path inside it."""
    trees = Trees()
    for name in ("usr", "etc", "dev", "masks", *SYSTEM):
        if os.path.islink(f"{base}/{name}"):
            trees.links.append((name, os.readlink(f"{base}/{name}")))
        elif os.path.isdir(f"{base}/{name}"):
            trees.parts[name] = _clone(f"{base}/{name}")
    if agent:
        trees.parts["run/nucleus/lib"] = _clone(f"{base}/nucleus/lib")
        trees.parts["run/nucleus/bin"] = _clone(f"{base}/nucleus/bin")
    return trees


def build(trees: Trees, *, tmp_bytes: int) -> None:
    """Assemble the compartment's root and make it the working directory; `seal` pivots.

    Runs inside the compartment's mount, pid and user namespaces, as the pod's uid: the new root is put together over
    /tmp, which every machine has and every uid can reach.
    """
    syscalls.mount("", "/", "", syscalls.MS_REC | syscalls.MS_PRIVATE, "")
    syscalls.mount("tmpfs", STAGE, "tmpfs", FLAGS, "mode=0755,size=1m,nr_inodes=2k")
    os.chdir(STAGE)
    for name, target in trees.links:
        os.symlink(target, name)
    for name in ("proc", "tmp", "home/agent", "run/nucleus", "run/guest", "var/tmp", "workspace"):
        os.makedirs(name, 0o755)
    for name, tree in trees.parts.items():
        os.makedirs(name, 0o755, exist_ok=True)
        bind(tree, name)
    trees.parts.clear()
    _private_places(tmp_bytes)
    _proc()
    for path, tree in trees.toolchains:
        os.makedirs(f".{path}", 0o755, exist_ok=True)
        bind(tree, f".{path}")
    trees.toolchains.clear()
    for path, tree in trees.sockets:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        bind(tree, path)
    trees.sockets.clear()
    if trees.workspace >= 0:
        bind(trees.workspace, "workspace")
        trees.workspace = -1


def trust(certificate: str) -> dict[str, str]:
    """Have programs of this compartment, and nobody else, trust one more authority: the pod's own gateway.

    Returns:
        the environment for programs that look for their trust elsewhere than in the system's bundle.
    """
    found = [name for name in BUNDLES if os.path.isfile(name)]
    known = ""
    if found:
        with open(found[0], encoding="utf-8", errors="replace") as file:
            known = file.read(BUNDLE_BYTES)
    _write(f"{TRUST}/certificates.pem", f"{known}\n{certificate}", 0o644)
    _write(f"{TRUST}/gateway.pem", certificate, 0o644)
    for name in found:
        bind(_clone(f"{TRUST}/certificates.pem"), name)
    whole = dict.fromkeys(TRUSTING, f"/{TRUST}/certificates.pem")
    return {**whole, "NODE_EXTRA_CA_CERTS": f"/{TRUST}/gateway.pem"}


def link(path: str, target: str) -> None:
    """A symbolic link inside the new root (a toolchain's other name), where nothing is yet."""
    os.makedirs(os.path.dirname(f".{path}"), 0o755, exist_ok=True)
    with suppress(FileExistsError):
        os.symlink(target, f".{path}")


def seal() -> None:
    """Make the working directory the root, detach the old one, and remount the root read-only."""
    syscalls.umount2("masks", syscalls.MNT_DETACH)
    os.rmdir("masks")
    syscalls.pivot_root(".", ".")
    syscalls.umount2(".", syscalls.MNT_DETACH)
    syscalls.mount_setattr(syscalls.AT_FDCWD, "/", 0, attr_set=RDONLY)
    os.chdir("/")


def _private_places(tmp_bytes: int) -> None:
    size = f"size={tmp_bytes},nr_inodes=64k"
    syscalls.mount("tmpfs", "tmp", "tmpfs", FLAGS, f"mode=1777,{size}")
    syscalls.mount("tmpfs", "home/agent", "tmpfs", FLAGS, f"mode=0700,{size}")
    syscalls.mount("tmpfs", "dev/shm", "tmpfs", FLAGS | syscalls.MS_NOEXEC, f"mode=1777,{size}")
    syscalls.mount(
        "devpts", "dev/pts", "devpts", syscalls.MS_NOSUID | syscalls.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0600"
    )
    os.rmdir("var/tmp")
    os.symlink("/tmp", "var/tmp")  # noqa: S108 -- the pod's own


def _proc() -> None:
    """A proc of the new pid namespace; needs a proc in our view that nothing is mounted over (else EPERM)."""
    flags = FLAGS | syscalls.MS_NOEXEC
    try:
        syscalls.mount("proc", "proc", "proc", flags, "")
    except PermissionError as error:
        raise SandboxError(
            "this machine does not let a user namespace mount its own /proc (a container with a masked /proc?)",
            rule="pod.proc",
            next_step="Run Nucleus outside that container, or give the container an unmasked /proc.",
        ) from error
    for name in PROC_READ_ONLY:
        if os.path.exists(f"proc/{name}"):
            tree = _clone(f"proc/{name}")
            syscalls.mount_setattr(tree, "", syscalls.AT_EMPTY_PATH, attr_set=RDONLY | syscalls.MOUNT_ATTR_NOEXEC)
            bind(tree, f"proc/{name}")
    for name in PROC_MASKED_FILES + PROC_MASKED_DIRS:
        if os.path.isdir(f"proc/{name}"):
            bind(_clone("masks/directory"), f"proc/{name}")
        elif os.path.exists(f"proc/{name}"):
            bind(_clone("dev/null"), f"proc/{name}")


def _clone(path: str) -> int:
    return syscalls.open_tree(
        syscalls.AT_FDCWD, path, syscalls.OPEN_TREE_CLONE | syscalls.OPEN_TREE_CLOEXEC | syscalls.AT_RECURSIVE
    )


def _directory(path: str) -> str:
    os.mkdir(path, 0o755)
    return path


def _etc(target: str) -> None:
    for name, text in ETC_MADE.items():
        _write(f"{target}/{name}", text, 0o644)
    os.symlink("/proc/self/mounts", f"{target}/mtab")
    for name in ETC_FILES:
        with suppress(OSError):
            _copy(f"/etc/{name}", f"{target}/{name}")
    found = [name for name in sorted(os.listdir("/etc")) if name.startswith(ETC_PREFIXES)]
    for name in [*ETC_TREES, *found]:
        if os.path.isdir(f"/etc/{name}") and not os.path.islink(f"/etc/{name}"):
            os.makedirs(f"{target}/{name}", 0o755, exist_ok=True)
            bind(open_read_only(f"/etc/{name}"), f"{target}/{name}")


def _copy(source: str, target: str) -> None:
    os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
    if os.path.islink(source) and "/usr/" in (pointed := os.path.join("/etc", os.readlink(source))):
        os.symlink(os.path.normpath(pointed), target)
    elif os.path.getsize(source) <= SMALL:
        shutil.copyfile(source, target)
        os.chmod(target, 0o644)


def _devices(target: str) -> None:
    for name in DEVICES:
        _write(f"{target}/{name}", "", 0o600)
        tree = _clone(f"/dev/{name}")
        attributes = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NOEXEC
        syscalls.mount_setattr(tree, "", syscalls.AT_EMPTY_PATH, attr_set=attributes)
        bind(tree, f"{target}/{name}")
    for name in ("pts", "shm"):
        os.mkdir(f"{target}/{name}", 0o755)
    for name, pointed in (("ptmx", "pts/ptmx"), ("fd", "/proc/self/fd"), ("core", "/proc/kcore")):
        os.symlink(pointed, f"{target}/{name}")
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        os.symlink(f"/proc/self/fd/{number}", f"{target}/{name}")


def _sdk(target: str, sdk: str) -> None:
    """Copy, not bind: the checkout's own modes and parents must not matter inside the pod."""
    os.makedirs(f"{target}/lib/nucleus/sdk", 0o755)
    os.mkdir(f"{target}/bin", 0o755)
    _write(f"{target}/lib/nucleus/__init__.py", "", 0o644)
    for name in sorted(os.listdir(sdk)):
        if name.endswith(".py"):
            shutil.copyfile(f"{sdk}/{name}", f"{target}/lib/nucleus/sdk/{name}")
            os.chmod(f"{target}/lib/nucleus/sdk/{name}", 0o644)
    _write(f"{target}/bin/nucleus-tools", TOOLS_SCRIPT, 0o755)


def _write(path: str, text: str, mode: int) -> None:
    with open(path, "x", encoding="utf-8") as file:
        file.write(text)
    os.chmod(path, mode)
