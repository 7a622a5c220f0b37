"""git status, diff and commit, with a git that runs nothing of the repository's.

Promises, for each git process:
 1. /usr/bin/git, never found on a PATH; system and user configuration off; `GIT_DIR` and `GIT_WORK_TREE` fixed, so
    that no repository above the workspace, bare repository below it or `core.worktree` is used.
 2. no hook, pager, editor, signer, askpass, credential helper, transport, fsmonitor, external diff or textconv: fixed
    `-c` options, which win over the repository's own.
 3. keys of the repository that name a program under a name of its choice (`filter.*`, `diff.*`, `merge.*`) are listed
    first and overridden one by one. (The pod shows git a sanitized copy of the config anyway; this does not rely on
    it.)
 4. submodules are not entered.
 5. what `exclude` covers, or an `allow` list does not, is neither shown nor committed: the changed names are listed,
    filtered by the same matcher as searches, and given back as literal pathspecs.
Relies on: the caller running each `Call` one after the other. Each operation is a generator of calls, without I/O.
Does not: keep a program in the pod from changing the repository meanwhile. A commit during a merge is refused by git.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping
from typing import Any, NamedTuple

from nucleus.hands.commands import Result
from nucleus.hands.globs import admits, allowed, covers, excluded
from nucleus.hands.protocol import HandsError, allows, excludes, flag, path, text, texts
from nucleus.hands.search import shown
from nucleus.limits import LIMITS

PROGRAM = "/usr/bin/git"
AUTHOR = ("Nucleus agent", "agent@nucleus.invalid")
NAMES_BYTES = 4 << 20  # a list of changed names
_ARGV_BYTES = 1 << 20  # names given to one git process (the kernel takes 2 MiB, a quarter of the stack limit)
_FIXED = (
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.sshCommand=false",
    "core.askPass=false",
    "core.editor=false",
    "core.pager=cat",
    "core.attributesFile=/dev/null",
    "core.excludesFile=/dev/null",
    "core.alternateRefsCommand=true",
    "core.gitProxy=false",
    "core.quotePath=false",
    "protocol.allow=never",
    "safe.directory=*",
    "safe.bareRepository=explicit",
    "credential.helper=",
    "diff.external=",
    "diff.noprefix=false",
    "diff.submodule=short",
    "diff.ignoreSubmodules=dirty",
    "status.submoduleSummary=false",
    "submodule.recurse=false",
    "commit.gpgSign=false",
    "commit.template=/dev/null",
    "gpg.program=false",
    "log.showSignature=false",
    "color.ui=false",
    "gc.auto=0",
    "maintenance.auto=false",
)
# A key of the repository's with one of these ends names a program to run.
_PROGRAM_KEYS = (".clean", ".smudge", ".process", ".textconv", ".command", ".driver", ".required")
_PROGRAM_SECTIONS = ("filter.", "diff.", "merge.")

COMMITS = 10_000  # that a push may add before it counts as one that loses history

Answer = tuple[dict[str, Any], bytes]


class Call(NamedTuple):
    """One git process: arguments after ``git`` and its options, stdin, how much output to keep."""

    arguments: tuple[str, ...]
    stdin: bytes = b""
    output_bytes: int = NAMES_BYTES
    overrides: tuple[str, ...] = ()


Operation = Generator[Call, Result, Answer]


def environment(env: Mapping[str, str]) -> dict[str, str]:
    """The environment of every git process: three names of ours, and git's own switches."""
    kept = {name: env[name] for name in ("PATH", "HOME", "LANG") if name in env}
    name, mail = AUTHOR
    return kept | {
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_LITERAL_PATHSPECS": "1",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_PAGER": "cat",
        "GIT_EDITOR": "false",
        "GIT_DIR": ".git",
        "GIT_WORK_TREE": ".",
        "GIT_AUTHOR_NAME": name,
        "GIT_AUTHOR_EMAIL": mail,
        "GIT_COMMITTER_NAME": name,
        "GIT_COMMITTER_EMAIL": mail,
    }


def argv(call: Call) -> list[str]:
    """The whole command line of a call."""
    options = [part for item in (*_FIXED, *call.overrides) for part in ("-c", item)]
    return [PROGRAM, "--no-pager", *options, *call.arguments]


def status(header: dict[str, Any]) -> Operation:
    """Porcelain v1: ``XY name`` per line, renames not paired, names unquoted (control characters as ``\\xNN``).

    What `exclude` covers is left out: a name that is hidden from the pod would look changed, and is not.
    """
    hidden = _hidden(header)
    overrides = yield from _overrides()
    call = ("status", "--porcelain=v1", "-z", "--no-renames", "--untracked-files=normal", "--ignore-submodules=dirty")
    result = yield Call(call, overrides=overrides, output_bytes=LIMITS.output_bytes)
    _check(result)
    rows = [row for row in _fields(result) if not hidden(shown(row[3:]).rstrip("/"))]
    lines = "".join(f"{row[:2].decode('ascii', 'replace')} {_printable(row[3:])}\n" for row in rows)
    cut = lines.encode("utf-8")[: LIMITS.output_bytes]
    return {"truncated": result.stdout_truncated or len(cut) < len(lines)}, cut


def diff(header: dict[str, Any]) -> Operation:
    """The patch of the working tree against the index, or of the index against HEAD (`staged`)."""
    staged = ("--cached",) if flag(header, "staged") else ()
    hidden = _hidden(header)
    overrides = yield from _overrides()
    common = ("diff", *staged, "--no-renames", "--no-ext-diff", "--no-textconv", "--ignore-submodules=dirty")
    listed = yield Call((*common, "--name-only", "-z"), overrides=overrides)
    _check(listed)
    names, cut = _allowed(_fields(listed), hidden)
    cut = cut or listed.stdout_truncated
    if not names:
        return {"truncated": cut}, b""
    patch = yield Call((*common, "--", *names), output_bytes=LIMITS.output_bytes, overrides=overrides)
    _check(patch)
    return {"truncated": cut or patch.stdout_truncated}, patch.stdout


def commit(header: dict[str, Any]) -> Operation:
    """Commit `paths` (new files too), or every change of tracked files; returns the commit's id.

    Only these are committed: what else a command staged before stays staged.
    """
    message = text(header, "message", LIMITS.message_bytes)
    wanted = tuple(
        path({"paths": item}, "paths") for item in texts(header, "paths", LIMITS.result_count, LIMITS.path_bytes)
    )
    hidden = _hidden(header)
    overrides = yield from _overrides()
    untracked = "--untracked-files=all" if wanted else "--untracked-files=no"
    listing = ("status", "--porcelain=v1", "-z", "--no-renames", untracked, "--ignore-submodules=all", "--", *wanted)
    listed = yield Call(listing, overrides=overrides)
    _check(listed)
    names, cut = _allowed([row[3:] for row in _fields(listed)], hidden)
    if cut or listed.stdout_truncated:
        raise HandsError("too_large", "too many changed files for one commit")
    if not names:
        raise HandsError("no_match", "nothing to commit")
    added = yield Call(
        ("add", "-A", "--pathspec-from-file=-", "--pathspec-file-nul"),
        b"".join(os.fsencode(name) + b"\0" for name in names),
        overrides=overrides,
    )
    _check(added)
    options = ("commit", "--quiet", "--no-verify", "--no-gpg-sign", "--only", "--file=-", "--cleanup=whitespace")
    made = yield Call((*options, "--", *names), message.encode("utf-8"), overrides=overrides)
    _check(made)
    head = yield Call(("rev-parse", "--verify", "HEAD"), output_bytes=256, overrides=overrides)
    _check(head)
    return {"commit": head.stdout.decode("ascii", "replace").strip(), "text": f"{len(names)} files\n"}, b""


def plan(header: dict[str, Any]) -> Operation:
    """What pushing would do, without touching the network: ``{url, target, old, new, forced}``.

    `old` is where the remote's ref was when it was last fetched: the gateway lets nothing through where that differs.
    """
    remote, ref = text(header, "remote", 255), text(header, "ref", 511)
    overrides = yield from _overrides()
    found = yield Call(("config", "--get-all", "-z", f"remote.{remote}.pushurl"), overrides=overrides)
    if found.exit_code != 0:
        found = yield Call(("config", "--get-all", "-z", f"remote.{remote}.url"), overrides=overrides)
    urls = _fields(found)
    if len(urls) != 1:
        raise HandsError("not_found", "the remote has no URL, or several")
    source, mark, target = ref.partition(":")
    if source == "HEAD" and not mark:
        head = yield Call(("symbolic-ref", "--quiet", "--short", "HEAD"), output_bytes=1024, overrides=overrides)
        _check(head)
        source = target = head.stdout.decode("utf-8", "replace").strip()
    target = target or source
    target = target if target.startswith("refs/") else f"refs/heads/{target}"
    branch = target.removeprefix("refs/heads/")
    at = yield Call(
        ("rev-parse", "--verify", "--quiet", "--end-of-options", f"refs/remotes/{remote}/{branch}"),
        output_bytes=256,
        overrides=overrides,
    )
    old = at.stdout.decode("ascii", "replace").strip() if at.exit_code == 0 else ""
    new = ""
    if not flag(header, "delete"):
        name = f"refs/heads/{source}" if not source.startswith("refs/") and source != "HEAD" else source
        made = yield Call(
            ("rev-parse", "--verify", "--quiet", "--end-of-options", name), output_bytes=256, overrides=overrides
        )
        _check(made)
        new = made.stdout.decode("ascii", "replace").strip()
    zero = "0" * len(old or new or "0" * 40)
    forced = False
    if old and new:
        forced = not (yield from _descends(new, old, overrides))
    answer = {"url": os.fsdecode(urls[0]), "target": target, "old": old or zero, "new": new or zero, "forced": forced}
    return answer, b""


def _descends(new: str, old: str, overrides: tuple[str, ...]) -> Generator[Call, Result, bool]:
    """Is `old` an ancestor of `new`? By commits whose ids were computed again: what a hijacked command wrote into the
    object store under another commit's name, into grafts or a commit graph, proves nothing.
    """
    if old == new:
        return True
    plain = (*overrides, "core.commitGraph=false")
    listed = yield Call(("rev-list", f"--max-count={COMMITS}", new, f"^{old}"), overrides=plain)
    _check(listed)
    ids = listed.stdout.split()
    read = yield Call(("cat-file", "--batch"), b"".join(item + b"\n" for item in ids), 32 << 20, plain)
    _check(read)
    parents = commit_parents(read.stdout, "sha256" if len(new) == 64 else "sha1")
    reached, todo = set(), [new]
    while todo:
        at = todo.pop()
        for parent in parents.get(at, ()):
            if parent == old:
                return True
            if parent not in reached:
                reached.add(parent)
                todo.append(parent)
    return False


def commit_parents(batch: bytes, algorithm: str) -> dict[str, tuple[str, ...]]:
    """The parents of each commit of a ``cat-file --batch`` output whose content has the id that it goes by."""
    import hashlib  # rare

    found: dict[str, tuple[str, ...]] = {}
    at = 0
    while (end := batch.find(b"\n", at)) >= 0:
        words = batch[at:end].split(b" ")
        if len(words) != 3 or words[1] != b"commit" or not words[2].isdigit():
            break
        content = batch[end + 1 : end + 1 + int(words[2])]
        at = end + 2 + int(words[2])
        digest = hashlib.new(algorithm, b"commit %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        if digest.encode() == words[0]:
            lines = content.partition(b"\n\n")[0].split(b"\n")
            found[digest] = tuple(line[7:].decode("ascii", "replace") for line in lines if line.startswith(b"parent "))
    return found


def push(header: dict[str, Any]) -> Operation:
    """Push one object to an endpoint of the pod's gateway, which lets exactly that update through; what git says."""
    endpoint, target = text(header, "endpoint", 255), text(header, "target", 255)
    new = text(header, "new", 64)
    if not endpoint.startswith("http://"):
        raise HandsError("protocol", "no endpoint")
    overrides = yield from _overrides()
    opened = (
        *overrides,
        "protocol.http.allow=always",
        "http.proxy=",
        "http.followRedirects=false",
        "http.extraHeader=",
        "push.gpgSign=false",
        "push.recurseSubmodules=no",
        "push.followTags=false",
        "push.pushOption=",
    )
    source = "" if set(new) == {"0"} else new
    mark = "+" if flag(header, "forced") else ""
    options = ("push", "--porcelain", "--no-verify", "--no-signed", "--no-follow-tags", "--no-progress")
    done = yield Call((*options, "--", endpoint, f"{mark}{source}:{target}"), overrides=opened, output_bytes=65_536)
    if done.timed_out:
        raise HandsError("timeout", "git took too long")
    return {"exit_code": done.exit_code}, done.stdout + done.stderr


def _overrides() -> Generator[Call, Result, tuple[str, ...]]:
    """Step 3: an empty value for each key of the repository's that names a program."""
    listed = yield Call(("config", "--list", "--name-only", "-z", "--includes"))
    if listed.exit_code != 0:
        raise HandsError("not_found", "no git repository, or its configuration cannot be read")
    if listed.stdout_truncated:
        raise HandsError("too_large", "the repository's configuration")
    out: dict[str, None] = {}
    for raw in _fields(listed):
        key = os.fsdecode(raw)
        lower = key.lower()
        if lower.startswith(_PROGRAM_SECTIONS) and lower.endswith(_PROGRAM_KEYS) and lower.count(".") > 1:
            if "=" in key or "\n" in key:  # `-c` could not name it: we would override another key
                raise HandsError(
                    "io", "the repository's configuration names a program in a way that cannot be overridden"
                )
            out[f"{key}={'false' if lower.endswith('.required') else ''}"] = None
    return tuple(out)


def _check(result: Result) -> None:
    if result.timed_out:
        raise HandsError("timeout", "git took too long")
    if result.exit_code == 0:
        return
    said = result.stderr[:4096].decode("utf-8", "replace")
    if "ot a git repository" in said:
        raise HandsError("not_found", "no git repository")
    if "ermission denied" in said or "Read-only file system" in said:
        raise HandsError("permission", "git may not write there")
    if "did not match any file" in said:
        raise HandsError("not_found", "a path is not known to git")
    raise HandsError("io", "git failed")


def _fields(result: Result) -> list[bytes]:
    """The NUL-ended fields of an output; one that was cut is left out."""
    return result.stdout.split(b"\0")[:-1]


def _hidden(header: dict[str, Any]) -> Callable[[str], bool]:
    """Step 5, for one name."""
    skip, only = excluded(excludes(header)), allowed(allows(header))
    return lambda name: covers(skip, name) or not admits(only, name)


def _allowed(rows: list[bytes], hidden: Callable[[str], bool]) -> tuple[list[str], bool]:
    """The names that are not `hidden`, for argv; and whether there were more than fit."""
    names: list[str] = []
    used = 0
    for raw in rows:
        if hidden(shown(raw).rstrip("/")):
            continue
        used += len(raw) + 9
        if used > _ARGV_BYTES:
            return names, True
        names.append(os.fsdecode(raw))
    return names, False


def _printable(raw: bytes) -> str:
    return "".join(c if c >= " " and c != "\x7f" else f"\\x{ord(c):02x}" for c in shown(raw))


OPERATIONS: dict[str, Callable[[dict[str, Any]], Operation]] = {
    "git_status": status,
    "git_diff": diff,
    "git_commit": commit,
    "git_plan": plan,
    "git_push": push,
}
