"""What a pod may ask of a model's API: the paths, and the shapes of a request's JSON.

A provider runs things itself: searches, fetches, connectors, code, files, kept conversations. Each is a way round the
gateway (the provider, not the pod, then fetches https://evil/?q=SECRET) or text that nobody here has seen. So what
passes is an allowlist of shapes, made from what Claude Code, Codex CLI and the official SDKs send:

  anthropic messages   blocks text image document tool_use tool_result thinking redacted_thinking search_result
                       tool_reference; sources base64 text content; tools of one's own, bash_* text_editor_* computer_*
                       memory_*; context edits clear_*
  openai chat          parts text image_url(data:) input_audio file(file_data) refusal; tools function custom
  openai responses     items message function_call custom_tool_call local_shell_call tool_search_call (and their
                       outputs) reasoning compaction; parts input_text output_text refusal input_image(data:)
                       input_file(file_data); tools function custom local_shell namespace, tool_search run by the client
  refused although a client may send it   Codex's web_search (set `web_search = "disabled"`), previous_response_id,
                       Anthropic's server-side compaction and fallbacks, fast and priority tiers (dearer than the price)

Promises: `check` raises nothing but InvalidError, with one of the rules `model.path`, `.size`, `.json`, `.shape` (a
field is not what it must be), `.field` (not on the list), `.server_tools` (the provider would act), `.remote` (content
that is not in the request), `.price` (the price does not hold), `.limit`. What passes is sent as it came: a duplicate
key, which two parsers could read differently, is refused at any depth.
Does not: look into a tool's schema or input, or into text; see headers (which betas, whose organisation): the caller's.
Sources: the types of the SDKs anthropic 2.12 and openai 3.54.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Never

from nucleus.errors import InvalidError
from nucleus.network.model_shapes import CHAT, COMPACT, COUNT, EMBEDDINGS, MESSAGES, RESPONSES, plain, walk

BODY_BYTES = 33_554_432
DEPTH = 64
VALUES = 1_000_000  # commas and brackets of a body: each may cost a hundred bytes once parsed
DEFAULT_OUTPUT = 128_000  # tokens, where an OpenAI request names no bound: what their largest models write at most
SMALL_OUTPUT = 32_768  # the same of those that do not reason
INPUT_MOST = 1_100_000  # tokens: the widest context window
UNSEEN_INPUT = 4_096  # tokens that a provider adds: the prompts for tools
IMAGE_INPUT = {"anthropic": 8_192, "openai": 49_152}  # tokens an image costs at most, of however few bytes
PLACEHOLDER = "nucleus"  # what the pod has for a key
MODELS = "/v1/models"

_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,199}")
_UNTHINKING = re.compile(r"(?:ft:)?(?:chatgpt-4|gpt-3\.5|gpt-4)")
_LISTING = re.compile(r"(?:(?:limit|after_id|before_id|client_version|beta)=[A-Za-z0-9._:@-]{0,200}&?){0,4}")


@dataclass(frozen=True, slots=True)
class Api:
    """One provider's API.

    Args:
        host: where it is, unless a rule says otherwise.
        posts: paths of POST; GET is `/v1/models` and one model of it for each.
        key_header: the header that carries the key, `key_prefix` before it.
        queries: what may follow the `?` of a POST.
        base_env, base_suffix, key_env: the environment that points a client at the gateway.
    """

    host: str
    posts: tuple[str, ...]
    key_header: bytes
    key_prefix: bytes
    queries: tuple[str, ...]
    base_env: str
    base_suffix: str
    key_env: str

    def header(self, key: bytes) -> tuple[tuple[bytes, bytes], ...]:
        """The header lines that carry `key`."""
        return ((self.key_header, self.key_prefix + key),)

    def environment(self, base: str) -> dict[str, str]:
        """What a pod gets. `base`: the gateway's URL, no slash at its end."""
        return {self.base_env: base + self.base_suffix, self.key_env: PLACEHOLDER}


APIS: dict[str, Api] = {
    "anthropic": Api(
        host="api.anthropic.com",
        posts=(MESSAGES, COUNT),
        key_header=b"x-api-key",
        key_prefix=b"",
        queries=("", "beta=true"),
        base_env="ANTHROPIC_BASE_URL",
        base_suffix="",
        key_env="ANTHROPIC_API_KEY",
    ),
    "openai": Api(
        host="api.openai.com",
        posts=(CHAT, RESPONSES, COMPACT, EMBEDDINGS),
        key_header=b"authorization",
        key_prefix=b"Bearer ",
        queries=("",),
        base_env="OPENAI_BASE_URL",
        base_suffix="/v1",
        key_env="OPENAI_API_KEY",
    ),
}


@dataclass(frozen=True, slots=True)
class Request:
    """What a decision, and a reservation, need of a request.

    Args:
        max_tokens: output tokens at most, of all `choices`.
        input_bound: input tokens at most: a token is at least a byte, plus what media cost that few bytes can make.
        thinking: there may be reasoning, which costs output and may not be seen in the answer.
        long_cache: it writes a cache that lives for an hour, which costs twice the input.
    """

    model: str
    stream: bool
    max_tokens: int
    input_bound: int
    thinking: bool
    choices: int
    long_cache: bool = False


def route(api: str, method: str, target: str) -> str:
    """The path of a request's target, its query taken off.

    Raises:
        InvalidError: `model.path`.
    """
    path, _, query = target.partition("?")
    spec = APIS.get(api)
    if spec is not None:
        if method == "POST" and path in spec.posts and query in spec.queries:
            return path
        one = path == MODELS or (path.startswith(MODELS + "/") and _MODEL.fullmatch(path[len(MODELS) + 1 :]))
        if method == "GET" and one and _LISTING.fullmatch(query):
            return path
    raise InvalidError(f"{plain(method)} {plain(target)} is no path of {plain(api)} that is offered", rule="model.path")


def check(api: str, path: str, body: bytes) -> Request:
    """A POST's body, read: its shape is on the list, and these are its model and its bounds.

    Args:
        api: a key of `APIS`.
        path: the request's target.
        body: not encoded, at most `BODY_BYTES`.

    Raises:
        InvalidError: see the module.
    """
    path = route(api, "POST", path)
    value = parse(body)
    seen = walk(api, path, value)
    model = value.get("model")
    if not isinstance(model, str) or not _MODEL.fullmatch(model):
        raise InvalidError("model: is missing, or no name of a model", rule="model.shape")
    if api == "openai" and ("-search" in model.lower() or "deep-research" in model.lower()):
        raise InvalidError(f"model {model} searches the web by itself", rule="model.server_tools")
    if value.get("messages" if path in (MESSAGES, COUNT, CHAT) else "input") is None:
        raise InvalidError("neither messages nor input", rule="model.shape")
    choices = value.get("n") or 1
    unseen = INPUT_MOST if seen.documents else UNSEEN_INPUT + seen.images * IMAGE_INPUT[api]
    return Request(
        model=model,
        stream=value.get("stream") is True,
        max_tokens=_most_output(path, value) * choices,
        input_bound=min(len(body) + unseen, INPUT_MOST),
        thinking=path not in (COUNT, EMBEDDINGS) and _thinks(api, value),
        choices=choices,
        long_cache=seen.long_cache,
    )


def parse(body: bytes) -> dict[str, Any]:
    """One JSON object, strictly. Raises InvalidError (`model.size`, `model.json`)."""
    if len(body) > BODY_BYTES or body.count(b",") + body.count(b"[") + body.count(b"{") > VALUES:
        raise InvalidError(f"a body of {len(body)} bytes is too large", rule="model.size")
    try:
        value = json.loads(
            body.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite
        )
    except RecursionError:
        raise InvalidError(f"JSON deeper than {DEPTH}", rule="model.json") from None
    except ValueError as error:  # UnicodeDecodeError is one
        raise InvalidError(f"the body is not JSON: {plain(str(error))}", rule="model.json") from None
    if not isinstance(value, dict):
        raise InvalidError("the body is not a JSON object", rule="model.json")
    level: list[Any] = [value]
    for _ in range(DEPTH):
        level = [
            child
            for item in level
            for child in (item.values() if isinstance(item, dict) else item)
            if isinstance(child, dict | list)
        ]
    if level:
        raise InvalidError(f"JSON deeper than {DEPTH}", rule="model.json")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise InvalidError("a key stands twice in one JSON object", rule="model.json")
    return result


def _no_constant(name: str) -> Never:
    raise InvalidError(f"{name} is not a JSON number", rule="model.json")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise InvalidError("a number is too large", rule="model.json")
    return number


def _most_output(path: str, value: Mapping[str, Any]) -> int:
    if path in (COUNT, EMBEDDINGS):
        return 0
    names = ("max_tokens", "max_completion_tokens", "max_output_tokens")
    given = [value[name] for name in names if value.get(name) is not None]
    if path == MESSAGES and not given:
        raise InvalidError("max_tokens: is missing", rule="model.shape")
    # Of a prediction, what the model rejects is billed as output.
    predicted = len(json.dumps(value["prediction"])) if value.get("prediction") is not None else 0
    small = SMALL_OUTPUT if _UNTHINKING.match(str(value["model"])) else DEFAULT_OUTPUT
    return int(max(given)) + predicted if given else small + predicted


def _thinks(api: str, value: Mapping[str, Any]) -> bool:
    """Anthropic's models think if asked to. OpenAI's do unless told not to, but for those that cannot."""
    if api == "anthropic":
        thinking = value.get("thinking")
        return thinking is not None and not (isinstance(thinking, dict) and thinking.get("type") == "disabled")
    reasoning = value.get("reasoning")
    effort = reasoning.get("effort") if isinstance(reasoning, dict) else value.get("reasoning_effort")
    return effort != "none" and not _UNTHINKING.match(str(value["model"]))
