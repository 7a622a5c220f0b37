"""Every size and time bound in one frozen place (the seed's "Length Limits" table, and ours).

Relies on nothing: `dataclasses` alone would be a tenth of the start-up of `nucleus exec`. A bound is checked before any
work is done on the value; lengths are bytes of UTF-8.
"""

from __future__ import annotations


class Limits:
    """Bounds in force at every door."""

    __slots__ = ()

    # The seed's table.
    pattern_bytes: int = 1_024  # glob and regex patterns
    query_bytes: int = 512  # search queries
    path_bytes: int = 4_096  # file paths
    argv_bytes: int = 16_384  # command arguments together, one NUL each counted
    stdin_bytes: int = 1_048_576  # stdin content
    url_bytes: int = 2_048  # URLs
    # Ours.
    argv_count: int = 1_024  # command arguments, and paths of one commit
    content_bytes: int = 8_388_608  # one write or edit
    read_bytes: int = 8_388_608  # what one read returns
    output_bytes: int = 1_048_576  # stdout of one command, and stderr
    connection_bytes: int = 16_777_216  # of a connection, both ways, before its gate is asked for more
    message_bytes: int = 16_384  # commit messages, pull-request bodies
    result_count: int = 1_000  # results of one glob or grep
    line_bytes: int = 4_096  # one line of a grep as returned
    request_bytes: int = 16_777_216  # one HTTP body
    json_depth: int = 16  # JSON, arrays and objects in each other
    policy_bytes: int = 65_536  # a policy file
    reason_bytes: int = 1_024  # a reason that an approver gives
    run_timeout_ms: int = 120_000  # deadline of a command that names none
    run_timeout_max_ms: int = 3_600_000  # deadline that a command may ask for
    search_timeout_ms: int = 10_000  # deadline of a glob or grep
    approval_ttl_ns: int = 300_000_000_000  # a request waits for a person
    grace_ns: int = 2_000_000_000  # slack of our own deadlines, before a process that is told to end is killed

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("limits are frozen")


LIMITS = Limits()
