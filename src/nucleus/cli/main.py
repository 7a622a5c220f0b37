"""`nucleus`: finds the verb, runs it, and is the one place where the program's exit code is made.

Promises: `nucleus --version` and `--help` import nothing but this file; `--version --json`, and a verb, import their
own file and no other's.
Exit codes: 0 ok, the command's or agent's own, 1 failed, 2 invalid, 3 denied, 4 approval needed, 5 budget exhausted,
6 sandbox unavailable, 130 interrupted, 141 our output's reader went away. Errors go to standard error with code,
message, the rule that fired and the next step.
Does not: parse a verb's own options.
"""

from __future__ import annotations

import os
import sys

from nucleus import __version__

TYPE_CHECKING = False  # what mypy reads as true; importing typing costs 4 ms of a 10 ms budget
if TYPE_CHECKING:
    from collections.abc import Sequence

USAGE = """\
usage: nucleus [--no-helper] VERB ...

  exec       run one command in a fresh pod, through the gate
  run        run an agent in a fresh pod; it reaches the workspace only through the gate
  pod        pods that stay, from files: create, list, exec, shell, logs, kill, rm
  learn      run an agent and propose the tightest policy for what it was allowed
  serve      a pod for an orchestrator on this host, over mutual TLS
  approvals  list, show, answer or watch approval requests
  policy     list, show, check, explain, diff or meet policies
  credentials secrets that stay on the host and are added by a pod's gateway
  identity   who is registered for which SPIFFE ID; the SPIFFE Workload API
  net        what running pods may reach and reach; allow or deny while they run
  budget     what pods may spend together; top-ups, charges, history
  ledger     check or back up the ledger
  why        what was refused last, by which rule, and what to do
  audit      verify or read the audit log (also: nucleus-audit)
  doctor     what isolation this machine gives, and what is missing
  selftest   try a hijacked agent's attempts here, against a pod with your policy
  image      what virtual machines boot: build, list, verify, rm
  helper     status or stop of the resident helper
  help       this text; `nucleus VERB --help` for a verb

  --no-helper   use no resident helper (also: NUCLEUS_NO_HELPER=1)
  --version     print the version; with --json after it, the SHA-256 of its own files, compared with the wheel's RECORD

exit codes: 0 or the command's own; 1 failed, 2 invalid, 3 denied, 4 approval needed, 5 budget exhausted,
            6 sandbox unavailable
"""
VERBS = (
    "exec",
    "run",
    "pod",
    "learn",
    "serve",
    "approvals",
    "policy",
    "credentials",
    "identity",
    "net",
    "budget",
    "ledger",
    "why",
    "audit",
    "doctor",
    "selftest",
    "image",
    "helper",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; return the exit code. Without `argv`: the process's own, and the process may end here."""
    if argv is not None:
        return _run_guarded(list(argv))
    code = _run_guarded(sys.argv[1:])
    if "threading" not in sys.modules:
        _leave(code)
    return code


def _leave(code: int) -> None:
    """End the process without the interpreter's teardown (2 ms), which has nothing of ours to do but this flush."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        code = 141
    except OSError:
        return  # a full disk, say: the interpreter's own last flush reports it
    os._exit(code)


def _run_guarded(arguments: list[str]) -> int:
    try:
        return _dispatch(arguments)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        _forget_output()
        return 141
    except Exception as error:  # noqa: BLE001 -- whatever it is, the person gets lines and a code, not a traceback
        return _failed(error)


def _dispatch(arguments: list[str]) -> int:
    no_helper = os.environ.get("NUCLEUS_NO_HELPER", "") not in ("", "0")
    while arguments and arguments[0].startswith("-"):
        flag = arguments.pop(0)
        if flag in ("--version", "-V"):
            if arguments[:1] == ["--json"]:
                from nucleus.cli import own_files

                return own_files.main()
            print(f"nucleus {__version__}")
            return 0
        if flag in ("--help", "-h"):
            arguments = ["help"]
        elif flag == "--no-helper":
            no_helper = True
        else:
            return _usage(f"unknown option {flag[:100]!r}")
    if not arguments:
        return _usage("no verb")
    verb, rest = arguments[0], arguments[1:]
    if verb == "help":
        if rest and rest[0] in VERBS:
            return _run(rest[0], ["--help"], no_helper)
        print(USAGE, end="")
        return 0
    if verb not in VERBS:
        return _usage(f"unknown verb {verb[:100]!r}")
    return _run(verb, rest, no_helper)


def _run(verb: str, rest: list[str], no_helper: bool) -> int:
    # For the verbs of other rooms, and whoever opens a builder further down.
    if no_helper:
        os.environ["NUCLEUS_NO_HELPER"] = "1"
    # Not importlib.import_module: importlib itself would cost a millisecond.
    return int(__import__(f"nucleus.cli.{verb}", fromlist=["main"]).main(rest))


def _usage(problem: str) -> int:
    sys.stderr.write(f"invalid_request: {problem}\n  next: `nucleus help` lists the verbs\n")
    return 2


def _failed(error: Exception) -> int:
    from nucleus.errors import NucleusError

    if isinstance(error, NucleusError):
        sys.stderr.write(printable(error.diagnostics()) + "\n")
        return error.exit_code
    if os.environ.get("NUCLEUS_DEBUG"):
        import traceback

        traceback.print_exception(error)
    next_step = "run it again with NUCLEUS_DEBUG=1 for the traceback"
    sys.stderr.write(printable(f"internal_error: {type(error).__name__}: {error}\n  next: {next_step}") + "\n")
    return 1


def printable(text: str) -> str:
    """Text of foreign origin for a terminal: control and bidirectional characters are escaped, newlines kept."""
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    return "".join(c if c == "\n" or (c.isprintable() and not _tricky(c)) else _escaped(c) for c in text)


def _tricky(char: str) -> bool:
    # Bidirectional controls and zero-width characters; most are not printable to Python already.
    return "\u200b" <= char <= "\u200f" or "\u202a" <= char <= "\u202e" or "\u2060" <= char <= "\u206f"


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def _forget_output() -> None:
    """Point standard output at nothing, so that the interpreter's last flush does not complain."""
    null = os.open("/dev/null", os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


if __name__ == "__main__":
    sys.exit(main())
