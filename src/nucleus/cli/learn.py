"""`nucleus learn`: run an agent as `nucleus run` does, then propose the tightest policy for what it was allowed.

Numbered steps:
 1. The file for the proposal is made first, empty, where no agent can reach it: never in the workspace, never in
    another file's place.
 2. The agent runs as `nucleus run` runs it: the same pod, the same gate, the same questions, under the base policy.
 3. The evidence is the audit log's, verified (`learn_log`), and the base is the very text that the pod had.
 4. The proposal is checked by the decision function against all that was accepted and refused, and has to parse.
Promises: the proposal takes effect nowhere until a person names it with --policy.
Does not: decide, or answer for the person.
"""

from __future__ import annotations

import os
import sys

from nucleus.cli import report, run
from nucleus.cli.launcher import open_workspace, policy_text
from nucleus.cli.main import printable
from nucleus.cli.options import ONE, parse
from nucleus.errors import AuditError, InvalidError
from nucleus.pod.runtime import state_dir

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nucleus.lattice.learn import Proposal

PROFILE = "learn"
OUT = "learned.yaml"
USAGE = """\
usage: nucleus learn [--profile NAME | --policy FILE] [--out FILE] [run's options] -- AGENT [ARGUMENT...]

Runs the agent as `nucleus run` does; what the base policy does not allow is asked of you, here or in a second terminal
(`nucleus approvals watch`). Then writes the tightest policy that would have allowed without you what was accepted.

  --profile NAME       a bundled policy as the base (default: learn: reads run, everything else asks)
  --policy FILE        a policy file as the base
  --out FILE           the proposal (default: learned.yaml; not in the workspace, and no file that exists)

The other options are those of `nucleus run`, without --session: what earlier pods have seen is no part of a policy.
Read the proposal before you use it: nucleus run --policy FILE ...
"""


def main(argv: list[str]) -> int:
    """Run the verb; return the agent's exit code. Raises NucleusError."""
    table = {name: kind for name, kind in run.OPTIONS.items() if name != "session"} | {"out": ONE}
    options, agent = parse(argv, table)
    if options["help"]:
        sys.stdout.write(USAGE)
        return 0
    options["session"] = ""
    if not options["profile"] and not options["policy"]:
        options["profile"] = PROFILE
    text, source = policy_text(options)
    out = _Out(options["out"] or OUT, options["workdir"])  # 1
    try:
        offset = report.position(state_dir())
        summary = run.carry_out(options, agent)  # 2
        proposal, proposed = _learn(summary, offset, text, source, options)
        out.write(proposed)
    except BaseException:
        out.abandon()
        raise
    finally:
        out.close()
    _print(summary, proposal, out.path, as_json=options["json"])
    return summary.exit_code


def _learn(
    summary: report.Summary, offset: int, text: str, source: str, options: dict[str, Any]
) -> tuple[Proposal, str]:
    """Steps 3 and 4: the proposal, and its text."""
    from nucleus.cli.learn_log import evidence, records_of
    from nucleus.lattice.learn import learn
    from nucleus.lattice.learn_text import text_of
    from nucleus.lattice.load import load_policy
    from nucleus.store.policies import bundled

    loaded = load_policy(text, source, bundled())
    records = records_of(summary.log, offset, summary.pod)
    events, facts = evidence(records, source, options["task"], shared=options["share-workspace"])
    if facts.digest != loaded.digest:
        raise AuditError(
            "nothing was learnt: the policy changed while the pod was started",
            rule="learn.base",
            next_step="Start again.",
        )
    proposal = learn(loaded.policy, events, facts)
    return proposal, text_of(proposal, facts)


def _print(summary: report.Summary, proposal: Proposal, path: str, *, as_json: bool) -> None:
    counts = {
        "allowed": len(proposal.allowed),
        "still_asks": len(proposal.still),
        "uncovered": len(proposal.uncovered),
        "refused": len(proposal.refused),
    }
    if as_json:
        import json

        sys.stderr.write(json.dumps({**summary.as_dict(), "learned": {"file": path, **counts}}) + "\n")
        return
    lines = [
        f"learnt from {sum(counts.values())} operations: {counts['allowed']} need nobody under the proposal, "
        f"{counts['still_asks'] + counts['uncovered']} still do, {counts['refused']} stay refused",
        f"proposal: {path}; read it, then: nucleus run --policy {path} ...",
    ]
    if proposal.searched:
        lines.append("searches show only what the proposal lists; the file says how to widen it")
    sys.stderr.write(printable(summary.lines() + "".join(f"nucleus: {line}\n" for line in lines)))


class _Out:
    """Step 1: the proposal's file, empty until `write`.

    Raises:
        InvalidError: rule ``cli.out``.
    """

    def __init__(self, path: str, workdir: str) -> None:
        self.path = os.path.abspath(path)
        directory, self._name = os.path.split(self.path)
        workspace, _ = open_workspace(workdir)
        try:
            if self._name in ("", ".", ".."):
                raise _unfit(path, "it names no file", "")
            self._directory = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                if self._inside(os.fstat(workspace)):
                    raise _unfit(
                        path, "it is in the workspace, where the agent could write its own policy", "Name a file"
                    )
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                self._fd = os.open(self._name, flags, 0o644, dir_fd=self._directory)
            except BaseException:
                os.close(self._directory)
                raise
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise _unfit(path, str(why), "Name another file") from None
        finally:
            os.close(workspace)

    def _inside(self, workspace: os.stat_result) -> bool:
        """Is the directory the workspace, or below it? By inode, so no spelling gets around it."""
        at = os.readlink(f"/proc/self/fd/{self._directory}")
        while True:
            if os.path.samestat(os.stat(at), workspace):
                return True
            if at == "/":
                return False
            at = os.path.dirname(at)

    def write(self, text: str) -> None:
        """The whole text. Raises OSError."""
        view = memoryview(text.encode("utf-8"))
        while view:
            view = view[os.write(self._fd, view) :]

    def abandon(self) -> None:
        """Take the file away again."""
        try:
            os.unlink(self._name, dir_fd=self._directory)
        except OSError:
            return

    def close(self) -> None:
        os.close(self._fd)
        os.close(self._directory)


def _unfit(path: str, why: str, next_step: str) -> InvalidError:
    step = f"{next_step} with --out." if next_step else "Name a file with --out."
    return InvalidError(f"{path} cannot be the proposal: {why}", rule="cli.out", next_step=step)
