"""A sandbox that is a Python library, in the peers' environment: `library.py NAME once`, or asked by lines for milliseconds.

Each runs `true` with the system readable, /tmp writable and no network.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

READABLE = ["/usr", "/lib", "/lib64", "/bin", "/etc", "/proc", "/dev"]
TRUE = "/usr/bin/true"


def sandlock() -> Callable[[], None]:
    from sandlock import Sandbox

    box = Sandbox(fs_readable=READABLE, fs_writable=["/tmp"])

    def call() -> None:
        done = box.run([TRUE], timeout=10)
        if not done.success:
            raise RuntimeError(f"exit {done.exit_code}: {done.stderr!r}")

    return call


def nono() -> Callable[[], None]:
    from nono_py import AccessMode, CapabilitySet, sandboxed_exec

    allowed = CapabilitySet()
    for path in READABLE:
        allowed.allow_path(path, AccessMode.READ)
    allowed.allow_path("/tmp", AccessMode.READ_WRITE)
    allowed.block_network()

    def call() -> None:
        done = sandboxed_exec(allowed, [TRUE], timeout_secs=10.0)
        if done.exit_code != 0:
            raise RuntimeError(f"exit {done.exit_code}: {done.stderr!r}")

    return call


def main() -> None:
    call = {"sandlock": sandlock, "nono-py": nono}[sys.argv[1]]()
    if sys.argv[2:] == ["once"]:
        call()
        return
    print("true", flush=True)
    for _ in sys.stdin:
        try:
            started = time.perf_counter()
            call()
            said: object = (time.perf_counter() - started) * 1e3
        except Exception as error:
            said = {"failed": f"{type(error).__name__}: {error}"[:400]}
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
