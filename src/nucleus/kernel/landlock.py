"""Landlock: which files and scopes this process and its children may reach (kernel docs, userspace-api/landlock).

Promises: `restrict` either confines or raises; rights that this kernel does not know are left out and named in the
returned facts, so that doctor and audit can say so. Relies on no_new_privs (set before).
Does not: decide on names inside a hierarchy (that is the gate's) or restrict TCP ports (the netns has no way out).
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Sequence
from typing import NamedTuple

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on x86_64 and aarch64
_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1

EXECUTE = 1 << 0
WRITE_FILE = 1 << 1
READ_FILE = 1 << 2
READ_DIR = 1 << 3
REMOVE_DIR = 1 << 4
REMOVE_FILE = 1 << 5
MAKE_CHAR = 1 << 6
MAKE_DIR = 1 << 7
MAKE_REG = 1 << 8
MAKE_SOCK = 1 << 9
MAKE_FIFO = 1 << 10
MAKE_BLOCK = 1 << 11
MAKE_SYM = 1 << 12
REFER = 1 << 13  # ABI 2: link or rename between directories
TRUNCATE = 1 << 14  # ABI 3
IOCTL_DEV = 1 << 15  # ABI 5
_FILE_RIGHTS = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
_FIRST_ABI_OF = {REFER: 2, TRUNCATE: 3, IOCTL_DEV: 5}
_ALL = (1 << 16) - 1
SCOPE_ABSTRACT_UNIX_SOCKET = 1 << 0  # ABI 6
SCOPE_SIGNAL = 1 << 1  # ABI 6

READ = EXECUTE | READ_FILE | READ_DIR
READ_WRITE = _ALL & ~(MAKE_CHAR | MAKE_BLOCK)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class Facts(NamedTuple):
    """What was enforced: the kernel's ABI, the handled file rights, whether signals and abstract sockets are scoped."""

    abi: int
    handled: int
    scoped: bool


def _call(name: str, number: int, *arguments: object) -> int:
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result: int = _libc.syscall(ctypes.c_long(number), *wide)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


def abi() -> int:
    """The kernel's Landlock ABI; 0 when it has none or it is switched off."""
    try:
        return _call("landlock_create_ruleset", _CREATE_RULESET, None, 0, _CREATE_RULESET_VERSION)
    except OSError:
        return 0


def restrict(rules: Sequence[tuple[int | str, int]], *, scope: bool) -> Facts:
    """Confine this thread and what it starts, for good.

    Args:
        rules: (directory or file, as descriptor or path) and the rights beneath it (`READ`, `READ_WRITE`, or bits).
        scope: also forbid signals to, and abstract unix sockets of, processes outside this domain (ABI 6).

    Raises:
        OSError: there is no Landlock (ENOSYS, EOPNOTSUPP), or a rule's object cannot be opened.
    """
    version = abi()
    if version == 0:
        raise OSError(38, "landlock: not in this kernel")
    handled = _ALL
    for right, first in _FIRST_ABI_OF.items():
        if version < first:
            handled &= ~right
    scoped = SCOPE_ABSTRACT_UNIX_SOCKET | SCOPE_SIGNAL if scope and version >= 6 else 0
    # struct landlock_ruleset_attr {u64 handled_access_fs, handled_access_net, scoped}; older kernels take a prefix.
    attribute = struct.pack("=QQQ", handled, 0, scoped)[: 24 if version >= 6 else 16 if version >= 4 else 8]
    ruleset = _call("landlock_create_ruleset", _CREATE_RULESET, attribute, len(attribute), 0)
    try:
        for target, rights in rules:
            _add(ruleset, target, rights & handled)
        _call("landlock_restrict_self", _RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
    return Facts(version, handled, bool(scoped))


def _add(ruleset: int, target: int | str, rights: int) -> None:
    descriptor = os.open(target, os.O_PATH | os.O_CLOEXEC) if isinstance(target, str) else target
    try:
        if not _is_directory(descriptor):
            rights &= _FILE_RIGHTS  # directory rights on a file are EINVAL
        if rights == 0:
            return  # a rule that grants nothing is ENOMSG to the kernel, and the same as none
        _call("landlock_add_rule", _ADD_RULE, ruleset, _RULE_PATH_BENEATH, struct.pack("=Qi", rights, descriptor), 0)
    finally:
        if isinstance(target, str):
            os.close(descriptor)


def _is_directory(descriptor: int) -> bool:
    return os.fstat(descriptor).st_mode & 0o170000 == 0o040000
