"""What an answer of a model's API says it has used, read as it passes, and what that costs.

Promises: bounded memory whatever comes (a JSON body up to `JSON_BYTES`, one server-sent event up to `EVENT_BYTES`); no
exception; the same result however the stream is cut; integers only, rounded up.
Relies on: the provider's figures, and an answer that is not encoded. Does not: change or hold back a byte.

Where usage is: anthropic `usage` (JSON), message_start and message_delta, cumulative (stream); openai `usage` (JSON),
the chunk with `usage` (chat stream, only if asked for: `needs_usage`), response.completed, .incomplete and .failed.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from nucleus.network.model_shapes import CHAT, COUNT, EMBEDDINGS
from nucleus.network.models import MODELS, Request, parse

JSON_BYTES = 8_388_608
EVENT_BYTES = 4_194_304  # response.completed repeats the whole answer, the instructions and the tools
COUNT_MOST = 1_000_000_000_000
BYTES_A_TOKEN = 2  # of what is streamed, where no figure is known yet: more tokens than any text is likely to have
MILLION = 1_000_000

_LINE_END = re.compile(rb"\r\n|\r|\n")


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens used. `input` + `cache_read` + `cache_write` is the whole input.

    Args:
        long_write: how many of `cache_write` went to a cache that lives for an hour.
    """

    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_write: int = 0
    long_write: int = 0


@dataclass(frozen=True, slots=True)
class Price:
    """Micro-dollars per million tokens, of each kind."""

    input: int
    output: int
    cache_read: int
    cache_write: int

    def __post_init__(self) -> None:
        for amount in (self.input, self.output, self.cache_read, self.cache_write):
            if type(amount) is not int or amount < 0:
                raise ValueError("a price is a whole number of micro-dollars per million tokens, not below zero")

    @property
    def long_write(self) -> int:
        """Writing a cache that lives for an hour: twice the input (Anthropic's list), and not below the other."""
        return max(2 * self.input, self.cache_write)


# Of a rule that names none: above the list prices of the general models, not of the -pro ones.
DEFAULT_PRICE = Price(15_000_000, 75_000_000, 15_000_000, 18_750_000)


def cost(tokens: Tokens, price: Price) -> int:
    """What `tokens` cost: micro-dollars, rounded up."""
    long = min(tokens.long_write, tokens.cache_write)
    total = tokens.input * price.input + tokens.output * price.output + tokens.cache_read * price.cache_read
    total += (tokens.cache_write - long) * price.cache_write + long * price.long_write
    return -(-total // MILLION)


def bound(request: Request, price: Price) -> int:
    """What `request` can cost at most: micro-dollars, rounded up."""
    dearest = max(price.input, price.cache_read, price.long_write if request.long_cache else price.cache_write)
    return -(-(request.input_bound * dearest + request.max_tokens * price.output) // MILLION)


def needs_usage(api: str, path: str, body: bytes) -> bytes:
    """The body to send: of an OpenAI chat stream that does not ask for its usage, one that does; else `body`.

    Raises:
        InvalidError: of `parse`, where `check` was not asked before.
    """
    if api != "openai" or path.partition("?")[0] != CHAT:
        return body
    value = parse(body)
    options = value.get("stream_options") or {}
    if value.get("stream") is not True or not isinstance(options, dict) or options.get("include_usage") is True:
        return body
    value["stream_options"] = {**options, "include_usage": True}
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


class UsageReader:
    """One answer.

    Args:
        api: a key of `APIS`.
        path: the request's path.
        content_type: the answer's, as it came.
    """

    def __init__(self, api: str, path: str, content_type: str) -> None:
        path = path.partition("?")[0]
        kind = content_type.partition(";")[0].strip().lower()
        self._anthropic = api == "anthropic"
        self._stream = kind == "text/event-stream"
        self._json = kind == "application/json"
        self._free = path == COUNT or path.startswith(MODELS)
        self._silent = self._free or path == EMBEDDINGS  # no output that is paid for
        self._tokens = Tokens()
        self._said = self._free
        self._lost = not (self._stream or self._json)
        self._streamed = 0  # bytes of what the model has written
        self._body = bytearray()  # JSON: all of it; a stream: the line that is not at its end
        self._tried = 0  # bytes of JSON when it was last looked at
        self._event: list[bytes] = []  # the data lines of the event
        self._event_bytes = 0
        self._skip = False  # the rest of this event: it was too large
        self._cr = False  # the last byte was a carriage return

    def feed(self, data: bytes) -> None:
        """The next piece of the body."""
        if self._free or not data:
            return
        if self._stream:
            self._feed_stream(data)
            return
        self._streamed += len(data)
        if self._lost or len(self._body) + len(data) > JSON_BYTES:
            self._lost = True
            self._body = bytearray()
        else:
            self._body += data

    def tokens(self) -> Tokens:
        """The best figures so far; zero where the provider has said nothing yet."""
        self._read_json()
        return self._tokens

    @property
    def final(self) -> bool:
        """The provider has said what the whole answer has used."""
        self._read_json()
        return self._said

    @property
    def unknown(self) -> bool:
        """A part was not read (too large, or of no known kind), so that the figures may have been in it."""
        return self._lost and not self.final

    @property
    def estimated_output(self) -> int:
        """Output tokens: the provider's figure if final; else the larger of its last one and an estimate."""
        if self.final or self._silent:
            return self._tokens.output
        return max(self._tokens.output, -(-self._streamed // BYTES_A_TOKEN))

    @property
    def most_output(self) -> int:
        """Output tokens of a stream that broke off, at most: a token of what came is at least a byte."""
        return self._tokens.output if self.final or self._silent else max(self._tokens.output, self._streamed)

    def _read_json(self) -> None:
        """Parse the body once it may be whole: it ends as an object does, and has grown since the last time."""
        if not self._json or self._said or self._lost or len(self._body) == self._tried:
            return
        self._tried = len(self._body)
        if not self._body.rstrip(b" \t\r\n").endswith(b"}"):
            return
        value = _loads(bytes(self._body))
        if value is None:
            return
        if isinstance(value.get("usage"), dict):
            self._take(value["usage"])
            self._body = bytearray()
            self._said = True

    # Server-sent events: lines that end with CR, LF or both; an empty line ends an event.

    def _feed_stream(self, data: bytes) -> None:
        if self._cr and data.startswith(b"\n"):
            data = data[1:]
            self._cr = False
            if not data:
                return
        self._cr = data.endswith(b"\r")
        first, *more = _LINE_END.split(data)
        self._add(first)
        for piece in more:
            self._line(bytes(self._body))
            self._body = bytearray()
            self._add(piece)

    def _add(self, piece: bytes) -> None:
        if len(self._body) + len(piece) + self._event_bytes > EVENT_BYTES:
            self._skip = self._lost = True
            self._event, self._event_bytes = [], 0
            self._body = bytearray(b"-")  # a line that is not empty, and is no data
        elif not self._skip:
            self._body += piece
        elif piece and not self._body:
            self._body = bytearray(b"-")

    def _line(self, line: bytes) -> None:
        if line:
            name, _, text = line.partition(b":")
            if name == b"data" and not self._skip:
                self._event.append(text[1:] if text.startswith(b" ") else text)
                self._event_bytes += len(text) + 1
            return
        data = b"\n".join(self._event)
        self._event, self._event_bytes, self._skip = [], 0, False
        value = _loads(data) if data else None
        if value is not None:
            (self._anthropic_event if self._anthropic else self._openai_event)(value)

    def _anthropic_event(self, value: dict[str, Any]) -> None:
        kind = value.get("type")
        if kind == "message_start":
            self._take(_object(_object(value, "message"), "usage"))
        elif kind == "content_block_start":
            self._streamed += _text_bytes(_object(value, "content_block"))
        elif kind == "content_block_delta":
            self._streamed += _text_bytes(_object(value, "delta"))
        elif kind == "message_delta":
            usage = _object(value, "usage")
            self._take(usage)
            self._said = self._said or ("output_tokens" in usage and bool(_object(value, "delta").get("stop_reason")))

    def _openai_event(self, value: dict[str, Any]) -> None:
        kind = value.get("type")
        if not isinstance(kind, str):  # a chunk of chat
            choices = value.get("choices")
            for choice in choices if isinstance(choices, list) else ():
                if isinstance(choice, dict):
                    self._streamed += _text_bytes(_object(choice, "delta"))
            usage = _object(value, "usage")
        else:
            usage = _object(_object(value, "response"), "usage")
            if kind.endswith(".delta"):
                self._streamed += _text_bytes({"delta": value.get("delta")})
            elif kind == "response.output_item.done":  # reasoning that was not streamed
                self._streamed += _text_bytes({"text": _object(value, "item").get("encrypted_content")})
        if usage:
            self._take(usage)
            self._said = True

    def _take(self, usage: dict[str, Any]) -> None:
        """The figures of one usage object; a figure that it does not name, or lowers, stays (they are cumulative)."""
        new = _anthropic_tokens(usage) if self._anthropic else _openai_tokens(usage)
        old = self._tokens
        if self._anthropic:
            new = Tokens(
                max(old.input, new.input),
                max(old.output, new.output),
                max(old.cache_read, new.cache_read),
                max(old.cache_write, new.cache_write),
                max(old.long_write, new.long_write),
            )
        self._tokens = new


def _anthropic_tokens(usage: dict[str, Any]) -> Tokens:
    write = _count(usage, "cache_creation_input_tokens")
    long = _count(_object(usage, "cache_creation"), "ephemeral_1h_input_tokens")
    return Tokens(
        input=_count(usage, "input_tokens"),
        output=_count(usage, "output_tokens"),
        cache_read=_count(usage, "cache_read_input_tokens"),
        cache_write=max(write, long),
        long_write=long,
    )


def _openai_tokens(usage: dict[str, Any]) -> Tokens:
    """`prompt_tokens` (chat, embeddings) or `input_tokens` (responses) hold the cached ones, too."""
    total = max(_count(usage, "prompt_tokens"), _count(usage, "input_tokens"))
    details = _object(usage, "prompt_tokens_details") or _object(usage, "input_tokens_details")
    read = min(_count(details, "cached_tokens"), total)
    write = min(_count(details, "cache_write_tokens"), total - read)
    output = max(_count(usage, "completion_tokens"), _count(usage, "output_tokens"))
    return Tokens(total - read - write, output, read, write)


def _loads(data: bytes) -> dict[str, Any] | None:
    """The object that `data` is, or None. Lenient: these are the provider's bytes, and only figures are taken."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _object(value: dict[str, Any], key: str) -> dict[str, Any]:
    inner = value.get(key)
    return inner if isinstance(inner, dict) else {}


def _count(value: dict[str, Any], key: str) -> int:
    number = value.get(key)
    return min(number, COUNT_MOST) if type(number) is int and number > 0 else 0


def _text_bytes(value: dict[str, Any]) -> int:
    """Bytes of the texts in `value`, at any depth, but for those that are no output: the type, the role, an id."""
    total, left = 0, [value]
    while left:
        for key, item in left.pop().items():
            if isinstance(item, str) and key not in ("type", "role", "id"):
                total += len(item.encode("utf-8", "surrogatepass"))
            elif isinstance(item, dict):
                left.append(item)
            elif isinstance(item, list):
                left += [one for one in item if isinstance(one, dict)]
    return total
