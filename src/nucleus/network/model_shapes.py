"""The shapes of a model request that pass, as tables: an object's fields, and the types of an object that has one.

Promises: what is not in a table is refused, with the place and a rule; null stands for an absent field.
Relies on: a depth that `models.parse` has bounded. Does not: bound anything itself; know what is required.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Never

from nucleus.errors import InvalidError

MESSAGES, COUNT = "/v1/messages", "/v1/messages/count_tokens"
CHAT, RESPONSES, EMBEDDINGS = "/v1/chat/completions", "/v1/responses", "/v1/embeddings"
COMPACT = "/v1/responses/compact"
OUTPUT_MOST = 10_000_000
CHOICES_MOST = 128

# A check is called with what was seen, where it is, and a value that is not null; it raises or returns.


@dataclass(slots=True)
class Seen:
    """What was met on the way: media, which cost more tokens than bytes, and caches with another price."""

    api: str
    images: int = 0
    documents: int = 0
    long_cache: bool = False


Check = Callable[[Seen, str, Any], None]
Table = Mapping[str, Check]

_OWN_TOOL = re.compile(r"custom|(?:bash|text_editor|computer|computer_toolset|memory)_[0-9]{8}")
_EDIT = re.compile(r"clear_[a-z_]{1,40}_[0-9]{8}")
_SERVER_BLOCK = re.compile(r"server_.*|mcp_.*|.+_tool_result|container_.*|(?:web|file|code|image).*_call|program.*")


def plain(text: str) -> str:
    """A hostile string, fit for a message."""
    return ascii(text[:80])[1:-1]


def _refuse(where: str, why: str, rule: str) -> Never:
    raise InvalidError(f"{where.lstrip('.')}: {why}", rule=rule)


def _fields(seen: Seen, where: str, value: Any, table: Table) -> None:
    if not isinstance(value, dict):
        _refuse(where, "must be an object", "model.shape")
    for key, item in value.items():
        at = f"{where}.{plain(key)}"
        check_it = table.get(key)
        if check_it is None:
            _refuse(at, "is not a field that is let through", "model.field")
        if item is not None:
            check_it(seen, at, item)


def _any(seen: Seen, where: str, value: Any) -> None:
    """Not looked into: nothing in it makes the provider act."""


def _text(seen: Seen, where: str, value: Any) -> None:
    if not isinstance(value, str):
        _refuse(where, "must be text", "model.shape")


def _flag(seen: Seen, where: str, value: Any) -> None:
    if not isinstance(value, bool):
        _refuse(where, "must be true or false", "model.shape")


def _encoded(seen: Seen, where: str, value: Any) -> None:
    """Base64, or a data: URL. There is no colon in base64, and no other URL without one."""
    _text(seen, where, value)
    if ":" in value and not value.startswith("data:"):
        _refuse(where, "is not in the request", "model.remote")


def _data_url(seen: Seen, where: str, value: Any) -> None:
    _text(seen, where, value)
    if not value.startswith("data:"):
        _refuse(where, "is not in the request: only a data: URL is", "model.remote")
    seen.images += 1


def _cache(seen: Seen, where: str, value: Any) -> None:
    if not isinstance(value, dict):
        _refuse(where, "must be an object", "model.shape")
    if value.get("ttl") not in (None, "5m", "30m"):
        if seen.api != "anthropic" or value["ttl"] != "1h":
            _refuse(where, "a cache of that life has a price of its own", "model.price")
        seen.long_cache = True


def _count(most: int, least: int = 0) -> Check:
    def check_it(seen: Seen, where: str, value: Any) -> None:
        if type(value) is not int or not least <= value <= most:
            _refuse(where, f"must be a whole number from {least} to {most}", "model.limit")

    return check_it


def _no(rule: str) -> Check:
    why = {"model.server_tools": "the provider would act", "model.remote": "is not in the request"}
    return lambda seen, where, value: _refuse(where, why.get(rule, "is not let through"), rule)


def _one_of(rule: str, *values: object) -> Check:
    def check_it(seen: Seen, where: str, value: Any) -> None:
        if not any(type(value) is type(allowed) and value == allowed for allowed in values):
            _refuse(where, f"only {', '.join(map(repr, values))}", rule)

    return check_it


def _table(table: Table) -> Check:
    return lambda seen, where, value: _fields(seen, where, value, table)


def _list(check_it: Check, or_text: bool = False) -> Check:
    def check_list(seen: Seen, where: str, value: Any) -> None:
        if or_text and isinstance(value, str):
            return
        if not isinstance(value, list):
            _refuse(where, "must be a list", "model.shape")
        for index, item in enumerate(value):
            check_it(seen, f"{where}[{index}]", item)

    return check_list


def _document(seen: Seen, where: str, value: Any) -> None:
    _encoded(seen, where, value)
    seen.documents += 1


def _is_encoded(document: dict[str, Any]) -> bool:
    source = document.get("source")
    return isinstance(source, dict) and source.get("type") == "base64"


def _edit(seen: Seen, where: str, value: Any) -> None:
    """Of the context: what is taken out of it. A summary of it would be made by the provider, and billed apart."""
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(kind, str) or not _EDIT.fullmatch(kind):
        _refuse(where, "only edits that clear are let through", "model.price")


@dataclass(slots=True)
class _Typed:
    """An object whose `type` says which fields it may have."""

    tables: dict[str, Table] = field(default_factory=dict)
    other: str = "model.field"  # the rule for a type that is not in `tables`
    default: str | None = None  # the type of an object that names none

    def __call__(self, seen: Seen, where: str, value: Any) -> None:
        if not isinstance(value, dict):
            _refuse(where, "must be an object", "model.shape")
        kind = value.get("type")
        kind = self.default if kind is None else kind
        if not isinstance(kind, str):
            _refuse(where, "has no type", "model.shape")
        if kind not in self.tables:
            rule = "model.server_tools" if _SERVER_BLOCK.fullmatch(kind) else self.other
            _refuse(f"{where}.type", f"{plain(kind)} is not let through", rule)
        # An image, and a page of a PDF (which may hold thousands), can be many tokens of few bytes.
        seen.images += kind == "image"
        seen.documents += kind == "document" and _is_encoded(value)
        _fields(seen, where, value, {"type": _text, **self.tables[kind]})


# Anthropic.

_CACHED: Table = {"cache_control": _cache}
_CALLER = _Typed({"direct": {}}, other="model.server_tools")
_CITED: Table = {**_CACHED, "citations": _any}
_TEXT: Table = {**_CITED, "text": _text}
_SOURCES: dict[str, Table] = {"base64": {"media_type": _text, "data": _encoded}}
_IMAGE: Table = {**_CACHED, "source": _Typed(_SOURCES, other="model.remote"), "transformations": _any}
_DOCUMENT: Table = {
    **_CITED,
    "source": _Typed(
        {
            **_SOURCES,
            "text": {"media_type": _text, "data": _text},
            "content": {"content": _list(_Typed({"text": _TEXT, "image": _IMAGE}), or_text=True)},
        },
        other="model.remote",
    ),
    "context": _text,
    "title": _text,
}
_RESULT_BLOCKS: dict[str, Table] = {
    "text": _TEXT,
    "image": _IMAGE,
    "document": _DOCUMENT,
    "search_result": {**_CITED, "content": _list(_Typed({"text": _TEXT})), "source": _text, "title": _text},
    "tool_reference": {**_CACHED, "tool_name": _text},
}
_BLOCK = _Typed(
    {
        **_RESULT_BLOCKS,
        "thinking": {**_CACHED, "thinking": _text, "signature": _text},
        "redacted_thinking": {**_CACHED, "data": _text},
        "tool_use": {**_CACHED, "id": _text, "name": _text, "input": _any, "caller": _CALLER, "toolset_name": _text},
        "tool_result": {
            **_CACHED,
            "tool_use_id": _text,
            "content": _list(_Typed(_RESULT_BLOCKS), or_text=True),
            "is_error": _flag,
            "toolset_name": _text,
        },
    }
)
_ANTHROPIC_TOOL: Table = {
    **_CACHED,
    **dict.fromkeys(("type", "name", "description"), _text),
    **dict.fromkeys(("input_schema", "input_examples", "configs", "max_characters"), _any),
    **dict.fromkeys(("display_width_px", "display_height_px", "display_number"), _any),
    **dict.fromkeys(("strict", "defer_loading", "eager_input_streaming", "enable_zoom"), _flag),
    "allowed_callers": _list(_one_of("model.server_tools", "direct")),
}


def _anthropic_tool(seen: Seen, where: str, value: Any) -> None:
    kind = value.get("type", "custom") if isinstance(value, dict) else None
    if kind is not None and not (isinstance(kind, str) and _OWN_TOOL.fullmatch(kind)):
        _refuse(
            where, f"{plain(kind) if isinstance(kind, str) else 'this'} is run by the provider", "model.server_tools"
        )
    _fields(seen, where, value, _ANTHROPIC_TOOL)


_PARALLEL: Table = {"disable_parallel_tool_use": _flag}
_COUNTED: Table = {
    "model": _text,
    "messages": _list(_table({"role": _text, "content": _list(_BLOCK, or_text=True), "clear_at": _text})),
    "system": _list(_Typed({"text": _TEXT}), or_text=True),
    "tools": _list(_anthropic_tool),
    "tool_choice": _Typed(
        {
            "auto": _PARALLEL,
            "any": _PARALLEL,
            "none": _PARALLEL,
            "tool": {**_PARALLEL, "name": _text},
        }
    ),
    "thinking": _any,
    "output_config": _any,
    "output_format": _any,
    "context_management": _table({"edits": _list(_edit)}),
    "speed": _one_of("model.price", "standard"),
    **_CACHED,
    **dict.fromkeys(("mcp_servers", "container"), _no("model.server_tools")),
    "thread": _no("model.remote"),
}
_MESSAGE_REQUEST: Table = {
    **_COUNTED,
    "max_tokens": _count(OUTPUT_MOST),
    "stream": _flag,
    **dict.fromkeys(("temperature", "top_p", "top_k", "stop_sequences", "metadata", "diagnostics"), _any),
    "service_tier": _one_of("model.price", "auto", "standard_only"),
    "inference_geo": _one_of("model.price", "global"),
    **dict.fromkeys(("fallbacks", "fallback_credit_token", "billing_policy", "compaction"), _no("model.price")),
}

# OpenAI.

_BREAK: Table = {"prompt_cache_breakpoint": _cache}
_CHAT_PART = _Typed(
    {
        "text": {**_BREAK, "text": _text},
        "refusal": {"refusal": _text},
        "image_url": {**_BREAK, "image_url": _table({"url": _data_url, "detail": _text})},
        "input_audio": {**_BREAK, "input_audio": _table({"data": _encoded, "format": _text})},
        "file": {**_BREAK, "file": _table({"file_data": _document, "filename": _text, "file_id": _no("model.remote")})},
    }
)
_PARTS = _list(_CHAT_PART, or_text=True)
_CALL: Table = {"id": _text, "index": _any, "function": _any, "custom": _any}
_CHAT_MESSAGE: Table = {
    **dict.fromkeys(("role", "name", "refusal", "tool_call_id"), _text),
    "content": _PARTS,
    "tool_calls": _list(_Typed({"function": _CALL, "custom": _CALL}, default="function")),
    "function_call": _any,
    "annotations": _any,
    "audio": _no("model.remote"),
}
_TIER = _one_of("model.price", "auto", "default", "flex")
_OPENAI: Table = {
    "model": _text,
    "stream": _flag,
    "stream_options": _table({"include_usage": _flag, "include_obfuscation": _flag}),
    "parallel_tool_calls": _flag,
    "store": _flag,
    "service_tier": _TIER,
    "prompt_cache_options": _table({"mode": _text, "ttl": _one_of("model.price", "30m")}),
    **dict.fromkeys(("prompt_cache_key", "prompt_cache_retention", "safety_identifier", "user"), _text),
    **dict.fromkeys(("temperature", "top_p", "top_logprobs", "metadata"), _any),
}
_CHAT_REQUEST: Table = {
    **_OPENAI,
    "messages": _list(_table(_CHAT_MESSAGE)),
    "store": _one_of("model.field", False),
    "n": _count(CHOICES_MOST, 1),
    "max_tokens": _count(OUTPUT_MOST),
    "max_completion_tokens": _count(OUTPUT_MOST),
    "modalities": _list(_one_of("model.field", "text")),
    "prediction": _Typed({"content": {"content": _PARTS}}),
    "tools": _list(_Typed({"function": {"function": _any}, "custom": {"custom": _any}}, other="model.server_tools")),
    "functions": _list(_table({"name": _text, "description": _text, "parameters": _any})),
    **dict.fromkeys(("frequency_penalty", "presence_penalty", "logit_bias", "logprobs", "seed", "stop"), _any),
    **dict.fromkeys(("function_call", "response_format", "tool_choice", "reasoning_effort", "verbosity"), _any),
    "audio": _no("model.field"),
    "web_search_options": _no("model.server_tools"),
}
_INPUT_PART = _Typed(
    {
        "input_text": {**_BREAK, "text": _text},
        "output_text": {"text": _text, "annotations": _any, "logprobs": _any},
        "refusal": {"refusal": _text},
        "input_image": {**_BREAK, "image_url": _data_url, "detail": _text, "file_id": _no("model.remote")},
        "input_file": {
            **_BREAK,
            "file_data": _document,
            "filename": _text,
            "detail": _text,
            **dict.fromkeys(("file_id", "file_url"), _no("model.remote")),
        },
    }
)
_INPUTS = _list(_INPUT_PART, or_text=True)
_FUNCTION: Table = {
    **dict.fromkeys(("name", "description"), _text),
    **dict.fromkeys(("parameters", "output_schema", "format"), _any),
    **dict.fromkeys(("strict", "defer_loading", "async"), _flag),
    "allowed_callers": _list(_one_of("model.server_tools", "direct")),
}
_FUNCTIONS: dict[str, Table] = {"function": _FUNCTION, "custom": _FUNCTION}
_CLIENT = _one_of("model.server_tools", "client")


def _openai_tool(seen: Seen, where: str, value: Any) -> None:
    _TOOL(seen, where, value)
    if value.get("type") == "tool_search" and value.get("execution") != "client":
        _refuse(where, "tool_search is run by the provider unless its execution is client", "model.server_tools")


_TOOL = _Typed(
    {
        **_FUNCTIONS,
        "local_shell": {},
        "namespace": {
            "name": _text,
            "description": _text,
            "tools": _list(_Typed(_FUNCTIONS, other="model.server_tools")),
        },
        "tool_search": {"execution": _CLIENT, "description": _text, "parameters": _any},
    },
    other="model.server_tools",
)
_ITEM: Table = {**dict.fromkeys(("id", "call_id", "status", "name", "namespace"), _text), "caller": _CALLER}
_OUTPUT: Table = {**_ITEM, "output": _INPUTS}
_INPUT_ITEM = _Typed(
    {
        "message": {"id": _text, "role": _text, "status": _text, "phase": _text, "content": _INPUTS},
        "function_call": {**_ITEM, "arguments": _text},
        "function_call_output": _OUTPUT,
        "custom_tool_call": {**_ITEM, "input": _text},
        "custom_tool_call_output": _OUTPUT,
        "local_shell_call": {**_ITEM, "action": _any},
        "local_shell_call_output": _OUTPUT,
        "tool_search_call": {**_ITEM, "arguments": _any, "execution": _CLIENT},
        "tool_search_output": {**_ITEM, "tools": _list(_openai_tool), "execution": _CLIENT},
        "reasoning": {"id": _text, "status": _text, "summary": _any, "content": _any, "encrypted_content": _text},
        "compaction": {"id": _text, "encrypted_content": _text},
    },
    default="message",
)


def _input_item(seen: Seen, where: str, value: Any) -> None:
    """An item that names no type is a message if it says who speaks, else a reference to what the provider keeps."""
    kind = value.get("type") if isinstance(value, dict) else ""
    if kind == "item_reference" or (kind is None and value.get("role") is None):
        _refuse(where, "is not in the request", "model.remote")
    if kind in (None, "message") and value.get("content") is None:
        _refuse(where, "has no content", "model.shape")
    _INPUT_ITEM(seen, where, value)


_NAMED: dict[str, Table] = {"function": {"name": _text}, "custom": {"name": _text}}
_CHOICE = _Typed(
    {
        **_NAMED,
        "allowed_tools": {"mode": _text, "tools": _list(_Typed(_NAMED, other="model.server_tools"))},
    },
    other="model.server_tools",
)
_RESPONSE_REQUEST: Table = {
    **_OPENAI,
    "input": _list(_input_item, or_text=True),
    "instructions": _text,
    "max_output_tokens": _count(OUTPUT_MOST),
    "max_tool_calls": _count(OUTPUT_MOST),
    "tools": _list(_openai_tool),
    "tool_choice": lambda seen, where, value: None if isinstance(value, str) else _CHOICE(seen, where, value),
    "include": _list(
        _one_of(
            "model.server_tools",
            "reasoning.encrypted_content",
            "message.output_text.logprobs",
            "message.input_image.image_url",
        )
    ),
    **dict.fromkeys(("reasoning", "text", "truncation", "client_metadata"), _any),
    "background": _one_of("model.field", False),
    **dict.fromkeys(("previous_response_id", "conversation", "prompt"), _no("model.remote")),
}
_EMBEDDING_REQUEST: Table = {
    **dict.fromkeys(("model", "encoding_format", "user"), _text),
    **dict.fromkeys(("input", "dimensions"), _any),
}

_TOP: dict[str, Table] = {
    MESSAGES: _MESSAGE_REQUEST,
    COUNT: _COUNTED,
    CHAT: _CHAT_REQUEST,
    RESPONSES: _RESPONSE_REQUEST,
    COMPACT: _RESPONSE_REQUEST,
    EMBEDDINGS: _EMBEDDING_REQUEST,
}


def walk(api: str, path: str, value: dict[str, Any]) -> Seen:
    """Compare a request with the tables. `path`: of a POST, as above. Raises InvalidError (`model.*`)."""
    seen = Seen(api)
    _fields(seen, "", value, _TOP[path])
    return seen
