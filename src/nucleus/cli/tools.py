"""The launcher's part of external tools: start the tool host, hand its channel on, end it with the pod.

Promises: the configuration goes to the host over a pipe, never by argv or environment; the host and its servers are a
session of their own, which is ended whole.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from types import TracebackType

from nucleus.mcp import config

END_S = 8.0  # for servers to end by themselves, once their input is closed


class ToolHost:
    """A tool host (`nucleus.mcp.host`) as a context manager.

    Args:
        path: the ``--mcp-config`` file.
        workspace: a descriptor of the workspace, in which the file must not lie.

    Raises:
        InvalidError: rule ``mcp.config``; nothing was started.
    """

    def __init__(self, path: str, workspace: int) -> None:
        data = config.read(path, workspace)
        self.gate, ours = socket.socketpair()
        with ours:
            # Descriptor 3 is the channel; the copy keeps it inheritable where it already is 3.
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-m", "nucleus.mcp.host", str(ours.fileno())],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                pass_fds=(ours.fileno(),),
                start_new_session=True,
            )
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(data)
            self._process.stdin.close()
        except OSError:
            pass  # it ended at its start: every call will say that it is gone

    def handed_over(self) -> None:
        """The builder has the gate's end: only the gate's end of the channel keeps the host."""
        self.gate.close()

    def __enter__(self) -> ToolHost:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.gate.close()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
