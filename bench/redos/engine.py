"""RE2 as the pod's search worker has it: the worker's own `grep`, in a child with a deadline, on hostile lines."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from nucleus.hands import search
from nucleus.hands.protocol import HandsError
from nucleus.hands.root import Root


@dataclass(frozen=True, slots=True)
class Ran:
    """`outcome`: ok, refused (by RE2 or its size limit), killed (deadline) or died; `seconds`; `kib`: peak memory so far."""

    outcome: str
    seconds: float
    kib: int


class Engine:
    """A child that greps in `directory`; a new one after a kill."""

    def __init__(self, directory: Path, deadline: float) -> None:
        self.directory, self.deadline = directory, deadline
        self.pid = 0
        self.to = self.back = -1

    def run(self, pattern: str, include: str) -> Ran:
        if not self.pid:
            self._start()
        os.write(self.to, json.dumps([pattern, include]).encode() + b"\n")
        started = time.perf_counter()
        ready, _, _ = select.select([self.back], [], [], self.deadline)
        took = time.perf_counter() - started
        data = os.read(self.back, 4096) if ready else b""
        if not data:
            self.close()
            return Ran("died" if ready else "killed", took, 0)
        outcome, seconds, kib = json.loads(data)
        return Ran(outcome, seconds, kib)

    def close(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            os.close(self.to)
            os.close(self.back)
            self.pid = 0

    def _start(self) -> None:
        asks, self.to = os.pipe()
        self.back, answers = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(asks)
            os.close(answers)
            return
        try:
            os.close(self.to)
            os.close(self.back)
            root = Root(str(self.directory))
            with os.fdopen(asks) as lines:
                for line in lines:
                    pattern, include = json.loads(line)
                    started = time.perf_counter()
                    try:
                        search.grep(root, {"op": "grep", "pattern": pattern, "include": include, "limit": 10})
                        outcome = "ok"
                    except HandsError as error:
                        outcome = "refused" if error.code in ("bad_pattern", "protocol") else error.code
                    took = time.perf_counter() - started
                    os.write(
                        answers,
                        json.dumps([outcome, took, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]).encode(),
                    )
        finally:
            os._exit(0)
