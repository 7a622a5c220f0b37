"""What a policy's glob is anchored to: one answer for the lattice, for hands and for the walk over a workspace.

Relies on nothing (hands runs it inside the pod). Does not: match; each place has the matcher that suits it.
"""

from __future__ import annotations


def folded(text: str) -> str:
    """One spelling of names that a person takes for the same: case and compatible forms of Unicode (NFKC) go.

    A file system that ignores case or normal form opens one for the other; on one that does not, a block list that
    names ``café`` is meant for both its spellings.
    """
    if text.isascii():
        return text.lower()
    from unicodedata import normalize  # weight: a megabyte, for names that need it

    return normalize("NFKC", normalize("NFKC", text).casefold())


def folded_glob(glob: str) -> str:
    """`folded` of what a glob spells out; what is in ``[...]`` stays: ``[I-s]`` is no range of small letters.

    Whoever matches it asks for both cases of each of the path's characters.
    """
    parts, at = [], 0
    while (start := glob.find("[", at)) >= 0:
        body = start + 2 if glob[start + 1 : start + 2] in ("!", "^") else start + 1
        end = glob.find("]", body + 1)
        if end < 0:
            break
        parts += [folded(glob[at:start]), glob[start : end + 1]]
        at = end + 1
    return "".join(parts) + folded(glob[at:])


def anchored(glob: str) -> str:
    """One spelling of globs that cover the same: ``/pattern`` starts at the root, anything else is a name at any depth.

    Without a slash (a trailing one aside) a glob means a name at any depth; with one it starts at the root of the
    workspace. A glob that matches a directory covers everything below it, so ``src/**`` is ``/src``; and a name behind
    ``**/`` is that name. A name with ``**`` in it crosses directories from wherever it begins (``/**/a**b``).
    """
    at_root = "/" in glob.rstrip("/")
    text = glob.removeprefix("./")
    while text.endswith(("/", "/**")):
        text = text.removesuffix("/**").rstrip("/")
    text = text.lstrip("/")
    if text in ("", "."):
        return "/**"
    rest = text
    while rest.startswith("**/"):
        rest = rest[3:]
    if at_root and rest == text:
        return f"/{text}"
    if "/" not in rest and "**" not in rest:
        return rest
    return f"/**/{rest}" if rest.strip("*") else "/**"
