"""The names of accounts: a tree of DNS labels, and beneath any of them the accounts of named sessions.

    acme                     an organization
    acme/research            a team of it: what it spends, acme spends too
    acme/research@nightly    the session `nightly` of pods that are charged to acme/research

Promises: a name has one spelling; `above` is where its charges go as well. Pure.
"""

from __future__ import annotations

import re

from nucleus.errors import InvalidError

LEVELS = 8  # of one name
BYTES = 255
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_NAME = re.compile(rf"{_LABEL}(?:/{_LABEL})*(?:@{_LABEL})?")


def check(name: object) -> str:
    """`name` when it is one of an account. Raises InvalidError: rule ``budget.name``."""
    if not isinstance(name, str) or len(name) > BYTES or not _NAME.fullmatch(name) or len(levels(name)) > LEVELS:
        raise InvalidError(
            "not the name of an account",
            rule="budget.name",
            next_step=f"DNS labels with slashes between, such as acme/research; at most {LEVELS}.",
        )
    return name


def levels(name: str) -> list[str]:
    """The account and those above it, itself first."""
    found = [name]
    while (name := above(name)) != "":
        found.append(name)
    return found


def above(name: str) -> str:
    """The account directly above; "" for the first."""
    base, at, _ = name.partition("@")
    return base if at else name.rpartition("/")[0]


def of_session(account: str, session: str) -> str:
    """The account of a named session."""
    return f"{account}@{session}"
