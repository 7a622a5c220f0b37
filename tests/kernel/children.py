"""Runs a function in a forked child, so that what it does to itself for good is not done to the tests."""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import traceback
from collections.abc import Callable
from typing import Any

SECONDS = 20.0
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class KilledError(Exception):
    """The child was ended by a signal, `signum`."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


def in_child(work: Callable[[], Any], *, uid: int | None = None) -> Any:
    """What `work` returns (JSON) in a forked child, as `uid` when given; its exception's text fails the test."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            if uid is not None:
                os.setgroups([])
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
            answer = {"ok": work()}
        except BaseException:
            answer = {"error": traceback.format_exc()}
        try:
            os.write(writer, json.dumps(answer).encode())
        finally:
            os._exit(0)
    os.close(writer)
    try:
        data = b""
        while select.select([reader], [], [], SECONDS)[0]:
            if not (more := os.read(reader, 65_536)):
                break
            data += more
        else:
            os.kill(pid, signal.SIGKILL)
            raise AssertionError("the child hangs")
    finally:
        os.close(reader)
        _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        raise KilledError(os.WTERMSIG(status))
    answer = json.loads(data)
    assert "ok" in answer, answer["error"]
    return answer["ok"]


def raw(number: int, *arguments: Any) -> int:
    """A raw system call: its errno, or 0 when it succeeded (a descriptor that it made stays open in the child)."""
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    ctypes.set_errno(0)
    return 0 if _libc.syscall(ctypes.c_long(number), *wide) >= 0 else ctypes.get_errno()


def code(call: Callable[[], Any]) -> int:
    """The errno of a Python call, or 0."""
    try:
        call()
    except OSError as error:
        return error.errno or -1
    return 0
