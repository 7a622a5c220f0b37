"""The kernel and the initial file system of virtual machines, made from Debian's packages.

Promises: the same packages give the same bytes (sorted, times and inode numbers fixed); each image is named by the
SHA-256 of its manifest, which has those of its two files; `load` checks all of them and hands out sealed memory.
The initial file system is BusyBox, the virtio modules and a script: it mounts what the pod shows (nucleus.pod.view) by
virtiofs and starts Python there, so that a pod needs no image of a distribution, and nothing secret is in it.
Relies on: apt-get, dpkg-deb and lz4 of Debian, for `build` alone. Does not: run as the builder (`nucleus image` does).
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import itertools
import json
import os
import struct
import subprocess
import tempfile
from dataclasses import dataclass

from nucleus.errors import SandboxError

KERNEL, INITRD, MANIFEST = "vmlinux", "initrd", "manifest.json"
PACKAGE = "linux-image-cloud-amd64"
BUSYBOX = ("/usr/bin/busybox", "/bin/busybox")
FILE_BYTES = 256 << 20
# In the order in which they are loaded.
MODULES = (
    "drivers/virtio/virtio_ring.ko", "drivers/virtio/virtio.ko", "drivers/virtio/virtio_mmio.ko",
    "drivers/char/virtio_console.ko", "fs/fuse/fuse.ko", "fs/fuse/virtiofs.ko", "net/core/failover.ko",
    "drivers/net/net_failover.ko", "drivers/net/virtio_net.ko", "drivers/char/hw_random/virtio-rng.ko",
)  # fmt: skip
LZ4_LEGACY = b"\x02\x21\x4c\x18"
NEEDS = "Debian's packages busybox-static and lz4, and apt-get"
SCRIPT = """#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
for m in MODULES; do $b insmod /lib/$m || echo "nucleus: no module $m"; done
for word in $($b cat /proc/cmdline); do
  case $word in nucleus.time=*) $b date -u -s @$((${word#*=})) >/dev/null;; esac
done
$b mount -t virtiofs -o nosuid,nodev root /mnt || echo "nucleus: no file system"
for port in /sys/class/virtio-ports/*; do
  case $($b cat $port/name) in channel) channel=${port##*/};; control) control=${port##*/};; esac
done
$b ip link set lo up
$b ip link set eth0 up
$b ip addr add 10.0.2.15/24 dev eth0
$b ip route add default via 10.0.2.2
$b mount -t proc -o nosuid,nodev,noexec proc /mnt/proc
$b mount -t tmpfs -o nosuid,noexec,mode=0755,size=64k,nr_inodes=64 dev /mnt/dev
$b mkdir /mnt/dev/pts /mnt/dev/shm
for n in null:3 zero:5 full:7 random:8 urandom:9; do $b mknod -m 0666 /mnt/dev/${n%:*} c 1 ${n#*:}; done
$b mknod -m 0666 /mnt/dev/tty c 5 0
$b ln -s pts/ptmx /mnt/dev/ptmx
$b mount -t devpts -o nosuid,noexec,newinstance,ptmxmode=0666,mode=0600 devpts /mnt/dev/pts
$b mount -t tmpfs -o nosuid,nodev,noexec,mode=1777,size=25% shm /mnt/dev/shm
$b ln -s /proc/self/fd /mnt/dev/fd
for n in 0:stdin 1:stdout 2:stderr; do $b ln -s /proc/self/fd/${n%:*} /mnt/dev/${n#*:}; done
echo "nameserver 10.0.2.3" > /run/resolv.conf
$b chmod 0644 /run/resolv.conf
$b mount --bind /run/resolv.conf /mnt/etc/resolv.conf
exec 3<>/dev/$channel 4<>/dev/$control
exec $b chroot /mnt /usr/bin/python3 -ISc 'import sys; sys.path.insert(0, "/run/guest/code"); from nucleus.hands.vm import main; main()'
"""  # noqa: E501


@dataclass(frozen=True, slots=True)
class Image:
    """One image. `sha256`: of its manifest; `source`: the kernel's package and version."""

    sha256: str
    directory: str
    source: str


def build(store: str) -> Image:
    """Make the image of the newest kernel package that apt has, or find that it is there.

    Args:
        store: an existing directory of ours.

    Raises:
        SandboxError: what is missing, or failed.
    """
    busybox = next((path for path in BUSYBOX if os.path.isfile(path)), "")
    if not busybox:
        raise _failed(f"no BusyBox: an image needs {NEEDS}")
    with tempfile.TemporaryDirectory(prefix="nucleus-image-") as work:
        depends = _run(["apt-cache", "depends", PACKAGE], work).decode()
        names = [line.split()[-1] for line in depends.splitlines() if "Depends: linux-image-" in line]
        if not names:
            raise _failed(f"apt knows no {PACKAGE}: run `apt-get update`")
        _run(["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", names[0]], work)
        (package,) = glob.glob(f"{work}/{names[0]}_*.deb")
        _run(["dpkg-deb", "-x", package, f"{work}/x"], work)
        (compressed,) = glob.glob(f"{work}/x/boot/vmlinuz-*")
        with open(compressed, "rb") as file:
            data = file.read(FILE_BYTES)
        kernel = _run(["lz4", "-dc"], work, payload(data))
        (modules,) = glob.glob(f"{work}/x/lib/modules/*/kernel")
        with open(busybox, "rb") as file:
            initrd = archive(file.read(FILE_BYTES), modules)
        return _stored(store, kernel, initrd, os.path.basename(package).removesuffix(".deb"))


def payload(kernel: bytes) -> bytes:
    """The packed vmlinux of a bzImage, without the size at its end (Documentation/arch/x86/boot.rst, 2.08).

    Raises:
        SandboxError: it is none, or packed otherwise than by LZ4.
    """
    start, length = struct.unpack_from("<II", kernel, 0x248) if len(kernel) > 0x250 else (0, 0)
    begin = (kernel[0x1F1] + 1) * 512 + start if length else 0
    packed = kernel[begin : begin + length - 4]
    if kernel[0x202:0x206] != b"HdrS" or not packed.startswith(LZ4_LEGACY):
        raise _failed("the kernel is not packed by LZ4")
    return packed


def archive(busybox: bytes, modules: str) -> bytes:
    """The initial file system, as newc cpio (Documentation/driver-api/early-userspace/buffer-format.rst)."""
    out, inodes = bytearray(), itertools.count(1)

    def entry(name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        raw = name.encode() + b"\0"
        head = (next(inodes), mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(raw), 0)
        out.extend(b"070701" + b"".join(b"%08x" % value for value in head) + raw)
        out.extend(bytes(-len(out) % 4) + data)
        out.extend(bytes(-len(out) % 4))

    for name in ("bin", "dev", "lib", "mnt", "proc", "run", "sys"):
        entry(name, 0o40755)
    entry("dev/console", 0o20600, device=(5, 1))
    entry("dev/null", 0o20666, device=(1, 3))
    entry("bin/busybox", 0o100755, busybox)
    for path in MODULES:
        with open(f"{modules}/{path}", "rb") as file:
            entry(f"lib/{os.path.basename(path)}", 0o100644, file.read(FILE_BYTES))
    script = SCRIPT.replace("MODULES", " ".join(os.path.basename(path) for path in MODULES))
    entry("init", 0o100755, script.encode())
    entry("TRAILER!!!", 0)
    return bytes(out)


def _stored(store: str, kernel: bytes, initrd: bytes, source: str) -> Image:
    files = {KERNEL: kernel, INITRD: initrd}
    manifest = {"source": source, **{name: hashlib.sha256(data).hexdigest() for name, data in files.items()}}
    text = json.dumps(manifest, sort_keys=True).encode()
    name = hashlib.sha256(text).hexdigest()
    target = f"{store}/{name}"
    if not os.path.isdir(target):
        with tempfile.TemporaryDirectory(prefix=".new-", dir=store) as made:
            for path, data in (*files.items(), (MANIFEST, text)):
                with open(f"{made}/{path}", "xb") as file:
                    file.write(data)
                    os.fsync(file.fileno())
            os.mkdir(f"{made}/whole", 0o700)
            for path in (*files, MANIFEST):
                os.rename(f"{made}/{path}", f"{made}/whole/{path}")
            os.rename(f"{made}/whole", target)
    return Image(name, target, source)


def images(store: str) -> list[Image]:
    """Those that are there, the newest first; unchecked. None where the directory is somebody else's."""
    found = []
    ours = os.path.isdir(store) and os.stat(store).st_uid == os.geteuid()
    for name in os.listdir(store) if ours else []:
        try:
            with open(f"{store}/{name}/{MANIFEST}", "rb") as file:
                source = str(json.loads(file.read(65_536))["source"])
            found.append((os.stat(f"{store}/{name}").st_mtime_ns, Image(name, f"{store}/{name}", source)))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return [image for _, image in sorted(found, key=lambda item: item[0], reverse=True)]


def load(image: Image) -> dict[str, int]:
    """Its files as sealed memory, by name, checked. Raises SandboxError: they are not what the manifest says."""
    loaded: dict[str, int] = {}
    try:
        with open(f"{image.directory}/{MANIFEST}", "rb") as file:
            text = file.read(65_536)
        if hashlib.sha256(text).hexdigest() != image.sha256:
            raise _failed(f"image {image.sha256[:12]}: its manifest is not the one that it is named by")
        manifest = json.loads(text)
        for name in (KERNEL, INITRD):
            with open(f"{image.directory}/{name}", "rb") as file:
                data = file.read(FILE_BYTES)
            if hashlib.sha256(data).hexdigest() != manifest[name]:
                raise _failed(f"image {image.sha256[:12]}: {name} was changed")
            fd = os.memfd_create(f"nucleus-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            loaded[name] = fd
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    except OSError as error:
        for fd in loaded.values():
            os.close(fd)
        raise _failed(f"image {image.sha256[:12]}: {error.strerror}") from error
    return loaded


def _run(words: list[str], cwd: str, data: bytes | None = None) -> bytes:
    try:
        done = subprocess.run(words, cwd=cwd, input=data, capture_output=True, timeout=300, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _failed(f"{words[0]}: {error}; an image needs {NEEDS}") from error
    if done.returncode:
        raise _failed(f"{words[0]}: {done.stderr.decode('utf-8', 'replace').strip()[-300:]}")
    return done.stdout


def _failed(message: str) -> SandboxError:
    return SandboxError(message, rule="image", next_step="`nucleus image build` makes one.")
