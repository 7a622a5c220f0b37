"""The rungs against the bare program that each stands on: a command in a new pod, and one more in a pod that is there.

    python -m bench.backends [--rounds N]

Whole processes, interleaved, in one run; medians and ratios. Cold: ``nucleus exec --isolation R -- true`` beside
``bwrap … true``, ``runsc do true``, and QEMU with the image's own kernel and an initial file system that prints one line
and powers off (to that line: the first result). Warm: ``nucleus pod exec`` in a pod that stays.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from nucleus.pod import guest_image, qemu

NUCLEUS = str(Path(sys.executable).parent / "nucleus")
POD = """\
apiVersion: nucleus/v1
kind: Pod
metadata: {{name: {name}}}
spec: {{work_dir: {work}, policy: {{type: profile, name: codegen}}, isolation: {rung}}}
"""
INIT = "#!/bin/sh\necho first-result\npoweroff -f\n"


class Place:
    """A state, a runtime directory and a workspace of this run's."""

    def __init__(self) -> None:
        self.directory = tempfile.mkdtemp(prefix="nucleus-bench-backends-")
        os.chmod(self.directory, 0o711)  # the authority is another user
        self.work = os.path.join(self.directory, "work")
        os.mkdir(self.work)
        self.env = {
            **os.environ,
            "NUCLEUS_STATE": os.path.join(self.directory, "state"),
            "NUCLEUS_RUNTIME": os.path.join(self.directory, "run"),
        }

    def nucleus(self, *words: str) -> None:
        done = subprocess.run([NUCLEUS, *words], env=self.env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"nucleus {' '.join(words)}: {done.stderr.strip()[-500:]}")

    def close(self) -> None:
        self.nucleus("helper", "stop")
        shutil.rmtree(self.directory, ignore_errors=True)


def timed(work: Callable[[], None]) -> float:
    """Milliseconds."""
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1_000


def run(*words: str) -> Callable[[], None]:
    def work() -> None:
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    return work


def bare_qemu(place: Place) -> Callable[[], None]:
    """To the first line of a Linux with nothing but BusyBox; the machine is ended there."""
    (image,) = guest_image.images(os.path.join(place.directory, "state-images"))
    kernel = os.path.join(place.directory, "vmlinux")
    shutil.copy(os.path.join(image.directory, "vmlinux"), kernel)
    root = Path(place.directory, "initrd.d")
    (root / "bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    for name in ("sh", "poweroff", "echo"):
        (root / "bin" / name).symlink_to("busybox")
    (root / "init").write_text(INIT)
    (root / "init").chmod(0o755)
    (root / "dev").mkdir()
    os.mknod(root / "dev/console", 0o600 | 0o020000, os.makedev(5, 1))
    names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    packed = subprocess.run(
        [str(root / "bin/busybox"), "cpio", "-o", "-H", "newc"],
        cwd=root,
        input=names.encode(),
        capture_output=True,
        check=True,
    ).stdout
    initrd = os.path.join(place.directory, "bare.cpio")
    Path(initrd).write_bytes(packed)
    words = [
        qemu.PROGRAM, "-M", "microvm,acpi=on,pit=on,pic=on,rtc=on", "-accel", "tcg,thread=multi", "-cpu", "qemu64",
        "-m", str(qemu.MEMORY_MIB), "-smp", "2", "-nodefaults", "-no-user-config", "-nographic", "-no-reboot",
        "-serial", "stdio", "-monitor", "none", "-kernel", kernel, "-initrd", initrd,
        "-append", "console=ttyS0 quiet reboot=t panic=-1 tsc_early_khz=2600000",
    ]  # fmt: skip

    def work() -> None:
        with subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as child:
            assert child.stdout is not None
            found = any(b"first-result" in line for line in child.stdout)
            child.kill()
        if not found:
            raise RuntimeError("bare QEMU printed no result")

    return work


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    place = Place()
    try:
        ways: dict[str, Callable[[], None]] = {}
        bares: dict[str, str] = {}
        place.nucleus("exec", "--profile", "codegen", "--workdir", place.work, "--", "true")
        rungs = ["namespaces"]
        if shutil.which("bwrap"):
            ways["bwrap"] = run("bwrap", "--unshare-all", "--ro-bind", "/", "/", "true")
            bares["namespaces"] = "bwrap"
        if shutil.which("runsc"):
            rungs.append("gvisor")
            ways["runsc do"] = run("runsc", "--network=none", "do", "true")
            bares["gvisor"] = "runsc do"
        if os.path.exists(qemu.PROGRAM):
            place.nucleus("image", "build")
            rungs.append("qemu")
            ways["bare qemu"] = bare_qemu(place)
            bares["qemu"] = "bare qemu"
        for rung in rungs:
            file = Path(place.directory, f"{rung}.yaml")
            file.write_text(POD.format(name=rung, work=place.work, rung=rung))
            words = ("exec", "--profile", "codegen", "--workdir", place.work, "--isolation", rung, "--", "true")
            ways[f"{rung}, cold"] = lambda words=words: place.nucleus(*words)  # type: ignore[misc]
            place.nucleus("pod", "create", str(file))
            ways[f"{rung}, warm"] = lambda rung=rung: place.nucleus("pod", "exec", rung, "--", "true")  # type: ignore[misc]
        values: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(rounds + 1):
            order = list(ways)[number % len(ways) :] + list(ways)[: number % len(ways)]
            for name in order:
                taken = timed(ways[name])
                if number:
                    values[name].append(taken)
        for name, all_ in values.items():
            print(f"{name:20} {statistics.median(all_):9.1f} ms   ({min(all_):.1f}-{max(all_):.1f})")
        for rung, bare in bares.items():
            ratio = statistics.median(values[f"{rung}, cold"]) / statistics.median(values[bare])
            print(f"{rung}: a command in a new pod, {ratio:.2f} x {bare}")
        for rung in rungs:
            place.nucleus("pod", "rm", rung, "--force")
    finally:
        place.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
