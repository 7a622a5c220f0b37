"""A pod held open by `holder.py`, as the test sees it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from .site import Site

HOLDER = Path(__file__).with_name("holder.py")


class Held:
    """Context manager. Keywords go into the order: profile, policy, answer, spec."""

    def __init__(self, site: Site, **order: Any) -> None:
        order = {"profile": None if "policy" in order else "codegen", "workdir": str(site.workspace), **order}
        import subprocess

        self.child = site.start([sys.executable, "-I", str(HOLDER), json.dumps(order)], stdin=subprocess.PIPE)
        self.start: dict[str, Any] = self._line()

    def _line(self) -> dict[str, Any]:
        assert self.child.stdout is not None
        line = self.child.stdout.readline()
        if not line:
            assert self.child.stderr is not None
            raise AssertionError("the holder ended: " + self.child.stderr.read())
        value: dict[str, Any] = json.loads(line)
        return value

    def _send(self, value: dict[str, Any]) -> dict[str, Any]:
        assert self.child.stdin is not None
        self.child.stdin.write(json.dumps(value) + "\n")
        self.child.stdin.flush()
        return self._line()

    def operate(self, **operation: Any) -> dict[str, Any]:
        """One operation through the gate; the reply."""
        return self._send({"operation": operation})

    def status(self) -> dict[str, Any]:
        """The builder's status."""
        return self._send({"status": True})

    def __enter__(self) -> Held:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.child.communicate(timeout=30)
