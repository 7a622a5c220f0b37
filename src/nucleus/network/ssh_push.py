"""An approved push to a remote that is reached by SSH: the gateway speaks SSH, the pod never sees a key or an agent.

 1. The server proves itself by the host key that the policy's rule names: no other is asked about, remembered, or
    looked up in anybody's known_hosts.
 2. The client key is the host's credential; it signs this one session's authentication and nothing else is forwarded.
 3. One command is run: ``git-receive-pack`` for the repository that was decided.

Promises: bounded in time and in bytes. Relies on: asyncssh for the protocol; `pushes` for what may be sent.
Does not: fetch: a program that wants to clone by SSH needs a rule for the port, and a key of its own.
"""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING, Any

from nucleus.errors import InvalidError, OperationError

if TYPE_CHECKING:
    from asyncssh import SSHClientProcess

SECONDS = 60.0
ADVERTISED_BYTES = 4_194_304
ANSWER_BYTES = 1_048_576


async def receive_pack(
    sock: socket.socket, host_key: str, key: str, repository: str, request: bytes | None
) -> tuple[bytes, bytes]:
    """One session.

    Args:
        sock: connected; taken over.
        host_key: ``ssh-ed25519 AAAA…``, of the rule.
        key: the private key, PEM or OpenSSH's format.
        repository: its path at the server.
        request: commands and pack; None to hear what there is.

    Returns:
        The advertisement with its flush, and the server's answer to `request`.

    Raises:
        OperationError: it came to nothing. InvalidError: a key that is none.
    """
    import asyncssh  # weight: only who pushes by SSH

    # asyncssh asks for the local user and home; a gateway's uid has no name, and nothing is to be read at home.
    os.environ.update(LOGNAME="git", HOME="/nonexistent")

    try:
        trusted, client = asyncssh.import_public_key(host_key), asyncssh.import_private_key(key)
    except (asyncssh.KeyImportError, ValueError):
        sock.close()
        raise InvalidError("the host key or the credential is no SSH key", rule="credentials.value") from None
    try:
        async with (
            asyncio.timeout(SECONDS),
            asyncssh.connect(
                sock=sock,
                known_hosts=([trusted], [], []),  # 1
                username="git",
                client_keys=[client],  # 2
                preferred_auth="publickey",
                agent_path=None,
                config=None,
                host_based_auth=False,
                gss_kex=False,
                gss_auth=False,
            ) as connection,
            connection.create_process(f"git-receive-pack '{repository}'", encoding=None, env={}) as process,  # 3
        ):
            return await _exchange(process, request)
    except TimeoutError:
        raise OperationError("the server took too long (SSH)", rule="network.timeout") from None
    except asyncssh.HostKeyNotVerifiable:
        raise OperationError("the server's host key is not the one of the rule", rule="network.host_key") from None
    except asyncssh.PermissionDenied:
        raise OperationError("the remote does not accept the credential", rule="network.credential") from None
    except (asyncssh.Error, OSError, ValueError, asyncio.IncompleteReadError):
        raise OperationError("the remote ended the session (no such repository?)", rule="network.ssh") from None


async def _exchange(process: SSHClientProcess[bytes], request: bytes | None) -> tuple[bytes, bytes]:
    advertised = await _until_flush(process.stdout)
    if request is None:
        process.stdin.write(b"0000")
        process.stdin.write_eof()
        return advertised, b""
    process.stdin.write(request)
    await process.stdin.drain()
    process.stdin.write_eof()
    answer = bytearray()
    while data := await process.stdout.read(65_536):
        answer += data
        if len(answer) > ANSWER_BYTES:
            raise OperationError("the remote's answer is too long", rule="network.limit")
    return advertised, bytes(answer)


async def _until_flush(stream: Any) -> bytes:
    """pkt-lines up to and with the first flush."""
    found = bytearray()
    while len(found) <= ADVERTISED_BYTES:
        length = await stream.readexactly(4)
        found += length
        try:
            size = int(length, 16)
        except ValueError:
            break
        if size == 0:
            return bytes(found)
        if size < 4:
            break
        found += await stream.readexactly(size - 4)
    raise OperationError("the remote does not speak git's protocol", rule="network.ssh")
