"""``s3://BUCKET[/PREFIX]?region=REGION[&endpoint=https://HOST[:PORT]]``: an object for each batch of records.

Objects: ``PREFIX/<first>-<last>.jsonl`` (the lines as stored: put one after the other they are the log, and verify) and
``PREFIX/checkpoints/<size>``. Without an endpoint: Amazon's, the bucket in the host's name; with one: in the path.
The file of --secret has the access key's id, the key, and perhaps a session token, a line each.

Promises: every byte is signed (AWS Signature Version 4) and checked by the store against its SHA-256; nothing is
overwritten (``If-None-Match: *``): an object that is there must be the same, or it is refused. Object lock and
retention are the bucket's.
Relies on: botocore for the signature. Answers, which are XML, are not parsed: the status says enough.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from typing import Any
from urllib.parse import SplitResult, quote, unquote, urlsplit

from nucleus.errors import InvalidError
from nucleus.sinks.base import (
    Entry,
    Later,
    Options,
    Rejected,
    bad_address,
    check_plaintext,
    query,
    secret_lines,
)
from nucleus.sinks.connection import Answer, Http, tls_context

_META = "x-amz-meta-sha256"
_CONFLICT = 409  # another request for the same key is under way


class Bucket:
    """See the module. Raises InvalidError."""

    batch = 10_000

    def __init__(self, parts: SplitResult, options: Options) -> None:
        found = query(parts, ("region", "endpoint"))
        bucket, self._region = parts.netloc, found.get("region", "")
        if not _is_bucket(bucket) or not _is_word(self._region):
            raise bad_address("s3://BUCKET[/PREFIX]?region=REGION")
        prefix = unquote(parts.path).strip("/")
        self._prefix = f"{prefix}/" if prefix else ""
        endpoint = urlsplit(found.get("endpoint", f"https://{bucket}.s3.{self._region}.amazonaws.com"))
        if endpoint.scheme not in ("https", "http") or not endpoint.hostname or endpoint.path.strip("/"):
            raise bad_address("endpoint=https://HOST[:PORT]")
        if endpoint.scheme == "http":
            check_plaintext(endpoint.hostname, options)
        self._base = f"/{bucket}/" if "endpoint" in found else "/"
        self._origin = f"{endpoint.scheme}://{endpoint.netloc}"
        context = tls_context(options.roots) if endpoint.scheme == "https" else None
        self._http = Http(endpoint.hostname, endpoint.port or (443 if context is not None else 80), context)
        secret = secret_lines(options.secret)
        if len(secret) not in (2, 3):
            raise InvalidError("--secret names a file: the access key's id, the key, a line each", rule="ship.secret")
        self._signer = _signer(secret, self._region)

    def deliver(self, origin: str, entries: Sequence[Entry]) -> None:
        """See `Sink`."""
        name = f"{entries[0].seq:012d}-{entries[-1].seq:012d}.jsonl"
        self._put(name, b"".join(entry.line for entry in entries), "application/jsonl")

    def pin(self, origin: str, size: int, note: str) -> None:
        """See `Sink`."""
        self._put(f"checkpoints/{size:012d}", note.encode(), "text/plain; charset=utf-8")

    def close(self) -> None:
        """See `Sink`."""
        self._http.close()

    def _put(self, name: str, body: bytes, kind: str) -> None:
        digest = hashlib.sha256(body)
        headers = {
            "Content-Type": kind,
            "If-None-Match": "*",
            "x-amz-checksum-sha256": base64.b64encode(digest.digest()).decode("ascii"),
            _META: digest.hexdigest(),
        }
        answer = self._ask("PUT", name, headers, body)
        if answer.status == 412 and self._ask("HEAD", name, {}, b"").headers.get(_META) == digest.hexdigest():
            return  # it came here before
        if answer.status == 412:
            raise Rejected(f"{self._prefix}{name} is there already, with other contents")
        if answer.temporary() or answer.status == _CONFLICT:
            raise Later(f"the store answers {answer.status}", answer.wait_s())
        if answer.status not in (200, 201, 204):
            raise Rejected(f"the store answers {answer.status}")

    def _ask(self, method: str, name: str, headers: dict[str, str], body: bytes) -> Answer:
        target = self._base + quote(self._prefix + name, safe="/-_.~")
        return self._http.request(method, target, self._signer(method, self._origin + target, headers, body), body)


def _signer(secret: list[str], region: str) -> Any:
    """What signs a request: ``(method, url, headers, body)`` to the headers to send."""
    try:
        from botocore.auth import S3SigV4Auth
        from botocore.awsrequest import AWSRequest
        from botocore.credentials import Credentials
    except ImportError:
        raise InvalidError(
            "botocore is not installed", rule="ship.library", next_step="`pip install 'nucleus[s3]'`."
        ) from None
    auth = S3SigV4Auth(Credentials(*secret), "s3", region)

    def signed(method: str, url: str, headers: dict[str, str], body: bytes) -> dict[str, str]:
        request = AWSRequest(method=method, url=url, data=body, headers=headers)
        request.context["payload_signing_enabled"] = True  # over TLS, too
        auth.add_auth(request)
        return {name: value for name, value in request.headers.items() if name.lower() != "host"}

    return signed


def _is_bucket(name: str) -> bool:
    return 3 <= len(name) <= 63 and all(c.islower() or c.isdigit() or c in "-." for c in name) and name.isascii()


def _is_word(text: str) -> bool:
    return 0 < len(text) <= 40 and text.isascii() and text.replace("-", "").isalnum()
