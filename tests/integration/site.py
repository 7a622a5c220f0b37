"""A Nucleus of its own for a test: state, runtime, home and workspace in a temporary directory, as root or as a user.

Everything is done through the public door: the CLI, or the launcher's channel where a test needs the pod to stay.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nucleus.kernel import syscalls

REPOSITORY = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
USER = 40_322  # an ordinary user that no machine knows


def _mounts() -> int:
    """A mount namespace in which the checkout can be reached although a directory above it is closed; -1: none is.

    One for all of a site's processes: its helper refuses peers from another one.
    """
    closed = next((up for up in reversed(REPOSITORY.parents) if not up.stat().st_mode & 0o001), None)
    if closed is None:
        return -1
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            syscalls.unshare(syscalls.CLONE_NEWNS)
            syscalls.mount("", "/", "", syscalls.MS_REC | syscalls.MS_PRIVATE)
            tree = syscalls.open_tree(
                syscalls.AT_FDCWD, str(REPOSITORY), syscalls.OPEN_TREE_CLONE | syscalls.AT_RECURSIVE
            )
            syscalls.mount("tmpfs", str(closed), "tmpfs", 0, "mode=0755")
            REPOSITORY.mkdir(parents=True)
            syscalls.move_mount(tree, "", syscalls.AT_FDCWD, str(REPOSITORY), syscalls.MOVE_MOUNT_F_EMPTY_PATH)
            os.write(tell, b".")
            signal.pause()
        finally:
            os._exit(1)
    os.close(tell)
    try:
        assert os.read(ready, 1) == b".", "no mount namespace for a closed checkout"
        return os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(ready)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


class Site:
    """See the module. `uid` 0 is root."""

    def __init__(self, uid: int) -> None:
        if os.geteuid() != 0:
            pytest.skip("needs root, to test as root and as an ordinary user")
        self.uid = uid
        self.directory = Path(tempfile.mkdtemp(prefix="nucleus-site-", dir="/tmp"))
        self.directory.chmod(0o711)
        self.home = self.directory / "home"
        self.workspace = self.directory / "work"
        for path in (self.home, self.workspace, self.directory / "run"):
            path.mkdir(0o700)
            os.chown(path, uid, uid)
        os.chown(self.directory, uid, uid)
        self.audit_log = self.directory / "state" / "audit.jsonl"
        self._mounts = _mounts() if uid else -1

    def environment(self, **more: str) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"], "HOME": str(self.home), "LANG": "C.UTF-8",
            "NUCLEUS_STATE": str(self.directory / "state"), "NUCLEUS_RUNTIME": str(self.directory / "run"), **more,
        }  # fmt: skip

    def write(self, name: str, text: str) -> Path:
        path = self.workspace / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        for item in (path, *path.parents):
            if item == self.workspace:
                break
            os.chown(item, self.uid, self.uid)
        return path

    @classmethod
    @contextmanager
    def another(cls, uid: int) -> Iterator[Callable[[], None]]:
        """What makes a child another user of this host, who has no Nucleus: a `preexec_fn`."""
        other = cls.__new__(cls)
        other.uid, other._mounts = uid, _mounts() if uid else -1
        try:
            yield other.become
        finally:
            if other._mounts >= 0:
                os.close(other._mounts)

    def become(self) -> None:
        """In a child: the site's user, with the checkout reachable although a parent of it may be closed."""
        if self.uid == 0:
            return
        if self._mounts >= 0:
            syscalls.setns(self._mounts, syscalls.CLONE_NEWNS)
        os.setgroups([])
        os.setresgid(self.uid, self.uid, self.uid)
        os.setresuid(self.uid, self.uid, self.uid)

    def start(self, argv: list[str], **keywords: Any) -> subprocess.Popen[str]:
        """A process of the site's user, in the workspace, without a controlling terminal."""
        return subprocess.Popen(
            argv, cwd="/", env=self.environment(), preexec_fn=self.become, start_new_session=True,
            **{
                "text": True, "stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE,
                **keywords,
            },
        )  # fmt: skip

    def cli(
        self, *arguments: str, timeout: float = 60, program: str = "nucleus", feed: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run the CLI to its end, `feed` on its standard input."""
        piped = {"stdin": subprocess.PIPE} if feed is not None else {}
        with self.start([str(BIN / program), *arguments], **piped) as child:
            try:
                out, err = child.communicate(feed, timeout=timeout)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                raise
        return subprocess.CompletedProcess(arguments, child.returncode, out, err)

    def exec(
        self, *argv: str, profile: str = "codegen", flags: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        """`nucleus exec` in the workspace."""
        return self.cli("exec", "--profile", profile, "--workdir", str(self.workspace), *flags, "--", *argv)

    def script(self, code: str, *arguments: str, **keywords: Any) -> subprocess.Popen[str]:
        """A Python program of the site's user, for tests that hold a pod open."""
        return self.start([sys.executable, "-I", "-c", code, *arguments], **keywords)

    def records(self) -> list[dict[str, Any]]:
        """What is on record: whole lines, for the authority may be writing the next."""
        text = self.audit_log.read_text() if self.audit_log.exists() else ""
        return [json.loads(line) for line in text.split("\n")[:-1]]

    def verify(self) -> subprocess.CompletedProcess[str]:
        return self.cli("verify", "--consistent", str(self.audit_log), program="nucleus-audit")

    def close(self) -> None:
        self.cli("helper", "stop")
        if self._mounts >= 0:
            os.close(self._mounts)
            self._mounts = -1
        for _ in range(50):
            try:
                shutil.rmtree(self.directory)
            except FileNotFoundError:  # the helper, told to end, is removing its pods' own directories
                time.sleep(0.05)
            else:
                return
