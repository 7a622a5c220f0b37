"""A site inside a world of its own: names, public addresses and servers in a network namespace that the test made.

Nothing here reaches a real network: the namespaces hold only `lo`. The builder, its gateways and the person's commands
run inside it, so that "outside the pod" is this world.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from nucleus.kernel import syscalls

from .site import REPOSITORY, Site


class World(Site):
    """See the module; ends with `close`, as a site does."""

    def __init__(self, uid: int = 0) -> None:
        super().__init__(uid)
        if shutil.which("ip") is None:
            pytest.skip("needs iproute2, to give the test's outside its addresses")
        self.outside = Path(tempfile.mkdtemp(prefix="nucleus-world-", dir="/tmp"))
        self.outside.chmod(0o755)
        self._servers = subprocess.Popen(
            [sys.executable, str(REPOSITORY / "tests/integration/world_servers.py"), str(self.outside)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY,
        )  # fmt: skip
        assert self._servers.stdout is not None
        assert self._servers.stdout.readline().strip() == "ready"
        self._namespaces = [
            (os.open(f"/proc/{self._servers.pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC), kind)
            for name, kind in (("net", syscalls.CLONE_NEWNET), ("mnt", syscalls.CLONE_NEWNS))
        ]

    def become(self) -> None:
        self._enter()
        super().become()

    def _enter(self) -> None:
        for descriptor, kind in self._namespaces:
            syscalls.setns(descriptor, kind)

    def seen(self, **wanted: Any) -> list[dict[str, Any]]:
        """What has reached a server of the outside, those with these fields."""
        lines = (self.outside / "requests.jsonl").read_text().splitlines()
        found = [json.loads(line) for line in lines]
        return [one for one in found if all(one.get(name) == value for name, value in wanted.items())]

    def server(self, *argv: str, **env: str) -> subprocess.Popen[bytes]:
        """Another server of the outside; whoever starts it ends it."""
        log = (self.outside / "server.log").open("ab")
        try:
            return subprocess.Popen(
                argv, preexec_fn=self._enter, env={**os.environ, **env}, cwd=self.outside,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        finally:
            log.close()

    def policy(self, text: str, name: str = "policy.yaml") -> str:
        """A policy file outside the workspace; its path."""
        path = self.directory / name
        path.write_text(text)
        path.chmod(0o644)
        return str(path)

    def close(self) -> None:
        super().close()
        assert self._servers.stdin is not None
        assert self._servers.stdout is not None
        self._servers.stdin.close()
        self._servers.wait(10)
        self._servers.stdout.close()
        for descriptor, _ in self._namespaces:
            os.close(descriptor)
        shutil.rmtree(self.outside, ignore_errors=True)
