"""What of a model's API passes, what does not, and what an answer has used, however its stream is cut."""

from __future__ import annotations

import contextlib
import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nucleus.errors import InvalidError
from nucleus.network.model_usage import (
    DEFAULT_PRICE,
    EVENT_BYTES,
    JSON_BYTES,
    Price,
    Tokens,
    UsageReader,
    bound,
    cost,
    needs_usage,
)
from nucleus.network.models import (
    APIS,
    BODY_BYTES,
    DEFAULT_OUTPUT,
    DEPTH,
    INPUT_MOST,
    VALUES,
    Request,
    check,
    parse,
    route,
)

MESSAGES, COUNT = "/v1/messages", "/v1/messages/count_tokens"
CHAT, RESPONSES, EMBEDDINGS = "/v1/chat/completions", "/v1/responses", "/v1/embeddings"
EVIL = "https://evil.example/?q=SECRET"
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
EPHEMERAL = {"type": "ephemeral"}

CLAUDE_CODE: dict[str, Any] = {
    "model": "claude-opus-4-5-20251101",
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "<system-reminder>today</system-reminder>"},
                {"type": "text", "text": "fix the bug", "cache_control": EPHEMERAL},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "look first", "signature": "EqQB"},
                {"type": "redacted_thinking", "data": "Eo4B"},
                {"type": "text", "text": "I'll look."},
                {
                    "type": "tool_use",
                    "id": "toolu_01",
                    "name": "Bash",
                    "input": {"command": "ls", "url": EVIL, "type": "mcp_tool_use"},
                    "caller": {"type": "direct"},
                },
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "tool_use_id": "toolu_01",
                    "type": "tool_result",
                    "is_error": False,
                    "content": [
                        {"type": "text", "text": "a.py"},
                        {"type": "tool_reference", "tool_name": "WebFetch"},
                        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
                    ],
                    "cache_control": {"type": "ephemeral", "ttl": "5m", "scope": "global"},
                }
            ],
        },
    ],
    "system": [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1"},
        {"type": "text", "text": "You are Claude Code.", "cache_control": EPHEMERAL},
    ],
    "tools": [
        {
            "name": "WebFetch",
            "description": "run by the client",
            "input_schema": {
                "$schema": "https://json-schema.org/draft/2020-12/schema",
                "type": "object",
                "properties": {"url": {"type": "string", "format": "uri"}},
                "required": ["url"],
            },
            "eager_input_streaming": True,
            "defer_loading": True,
        },
        {"type": "bash_20250124", "name": "bash"},
        {"type": "text_editor_20250728", "name": "str_replace_based_edit_tool", "max_characters": 10000},
        {"type": "computer_20251124", "name": "computer", "display_width_px": 1, "display_height_px": 1},
        {"type": "memory_20250818", "name": "memory"},
        {"type": "custom", "name": "x", "input_schema": {"type": "object"}},
    ],
    "tool_choice": {"type": "auto"},
    "metadata": {"user_id": "user_1_account__session_2"},
    "max_tokens": 32000,
    "thinking": {"type": "adaptive"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "output_config": {"effort": "high"},
    "temperature": 1,
    "stream": True,
}

CODEX: dict[str, Any] = {
    "model": "gpt-5.3-codex",
    "instructions": "You are Codex.",
    "input": [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "<permissions>"}]},
        {
            "type": "message",
            "role": "user",
            "content": [
                {"type": "input_text", "text": "fix it"},
                {"type": "input_image", "image_url": "data:image/png;base64," + PNG},
            ],
        },
        {
            "type": "reasoning",
            "summary": [{"type": "summary_text", "text": "s"}],
            "content": None,
            "encrypted_content": "gAAA",
        },
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "ok"}],
            "phase": "commentary",
        },
        {"type": "function_call", "name": "exec_command", "arguments": '{"cmd":"ls"}', "call_id": "call_1"},
        {"type": "function_call_output", "call_id": "call_1", "output": "a.py"},
        {
            "type": "custom_tool_call",
            "status": "completed",
            "call_id": "c2",
            "name": "apply_patch",
            "input": "*** Begin",
        },
        {"type": "custom_tool_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "Success"}]},
        {
            "type": "local_shell_call",
            "call_id": "c3",
            "status": "completed",
            "action": {"type": "exec", "command": ["ls"], "env": None},
        },
        {"type": "local_shell_call_output", "id": "c3", "output": "a.py"},
        {"type": "compaction", "encrypted_content": "gAAA"},
    ],
    "tools": [
        {
            "type": "function",
            "name": "exec_command",
            "description": "d",
            "strict": False,
            "parameters": {"type": "object"},
        },
        {"type": "custom", "name": "apply_patch", "description": "d", "format": {"type": "grammar", "syntax": "lark"}},
        {"type": "namespace", "name": "mcp__x", "description": "", "tools": [{"type": "function", "name": "y"}]},
        {"type": "tool_search", "execution": "client", "description": "d", "parameters": {}},
        {"type": "local_shell"},
    ],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "reasoning": {"effort": "medium", "summary": "auto"},
    "store": False,
    "stream": True,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "0198-uuid",
    "text": {"verbosity": "low"},
    "client_metadata": {"x-codex-installation-id": "1"},
}

CHAT_SDK: dict[str, Any] = {
    "model": "gpt-5.2",
    "messages": [
        {"role": "system", "content": "be brief"},
        {
            "role": "user",
            "name": "me",
            "content": [
                {"type": "text", "text": "see"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64," + PNG, "detail": "low"}},
                {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
            ],
        },
        {
            "role": "assistant",
            "content": None,
            "refusal": None,
            "annotations": [],
            "audio": None,
            "function_call": None,
            "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "42"},
    ],
    "tools": [
        {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}},
        {"type": "custom", "custom": {"name": "g"}},
    ],
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "max_completion_tokens": 100,
    "n": 3,
    "stream": True,
    "store": False,
    "reasoning_effort": "low",
    "response_format": {"type": "json_object"},
}

MINIMAL: dict[str, dict[str, Any]] = {
    MESSAGES: {"model": "claude-x", "max_tokens": 10, "messages": [{"role": "user", "content": "hi"}]},
    COUNT: {"model": "claude-x", "messages": [{"role": "user", "content": "hi"}]},
    CHAT: {"model": "gpt-x", "messages": [{"role": "user", "content": "hi"}]},
    RESPONSES: {"model": "gpt-x", "input": "hi"},
    RESPONSES + "/compact": {"model": "gpt-x", "input": [{"role": "user", "content": "hi"}]},
    EMBEDDINGS: {"model": "text-embedding-3-small", "input": ["hi"], "encoding_format": "base64"},
}


def api_of(path: str) -> str:
    return "anthropic" if path in (MESSAGES, COUNT) else "openai"


def checked(path: str, body: dict[str, Any]) -> Request:
    return check(api_of(path), path, json.dumps(body).encode())


def rule(path: str, body: dict[str, Any] | bytes) -> str:
    with pytest.raises(InvalidError) as caught:
        check(api_of(path), path, body if isinstance(body, bytes) else json.dumps(body).encode())
    assert len(caught.value.message) < 400
    return caught.value.rule


# The table of APIs.


def test_the_environment_and_the_key() -> None:
    assert APIS["anthropic"].header(b"k") == ((b"x-api-key", b"k"),)
    assert APIS["openai"].header(b"k") == ((b"authorization", b"Bearer k"),)
    assert APIS["anthropic"].environment("http://10.0.0.1:80") == {
        "ANTHROPIC_BASE_URL": "http://10.0.0.1:80",
        "ANTHROPIC_API_KEY": "nucleus",
    }
    assert APIS["openai"].environment("http://h") == {"OPENAI_BASE_URL": "http://h/v1", "OPENAI_API_KEY": "nucleus"}
    assert (APIS["anthropic"].host, APIS["openai"].host) == ("api.anthropic.com", "api.openai.com")


@pytest.mark.parametrize(
    ("api", "method", "target", "path"),
    [
        ("anthropic", "POST", "/v1/messages?beta=true", MESSAGES),
        ("anthropic", "GET", "/v1/models?limit=1000&after_id=x", "/v1/models"),
        ("openai", "GET", "/v1/models/ft:gpt-4o:org::id", "/v1/models/ft:gpt-4o:org::id"),
        ("openai", "GET", "/v1/models?client_version=0.99.0", "/v1/models"),
        ("openai", "POST", "/v1/responses", RESPONSES),
    ],
)
def test_paths(api: str, method: str, target: str, path: str) -> None:
    assert route(api, method, target) == path


@pytest.mark.parametrize(
    ("api", "method", "target"),
    [
        ("anthropic", "POST", CHAT),
        ("openai", "POST", MESSAGES),
        ("anthropic", "POST", "/v1/messages/batches"),
        ("anthropic", "POST", "/v1/messages/"),
        ("anthropic", "POST", "/v1//messages"),
        ("anthropic", "POST", "/v1/messages?x=" + EVIL),
        ("anthropic", "POST", "/v1/files"),
        ("anthropic", "GET", MESSAGES),
        ("anthropic", "DELETE", "/v1/models/x"),
        ("anthropic", "GET", "/v1/models/../files"),
        ("anthropic", "GET", "/v1/models/x/y"),
        ("anthropic", "GET", "/v1/models/%2e%2e"),
        ("anthropic", "GET", "/v1/models/"),
        ("anthropic", "GET", "/v1/models?evil=1"),
        ("openai", "GET", "/v1/responses/resp_1"),
        ("openai", "GET", RESPONSES),
        ("openai", "POST", "/v1/files"),
        ("openai", "POST", "/v1/images/generations"),
        ("other", "POST", MESSAGES),
    ],
)
def test_paths_that_are_not_offered(api: str, method: str, target: str) -> None:
    with pytest.raises(InvalidError) as caught:
        route(api, method, target)
    assert caught.value.rule == "model.path"


# What passes.


def test_claude_code() -> None:
    request = checked(MESSAGES, CLAUDE_CODE)
    assert request.model == "claude-opus-4-5-20251101"
    assert (request.stream, request.thinking, request.choices, request.long_cache) == (True, True, 1, False)
    assert request.max_tokens == 32_000
    size = len(json.dumps(CLAUDE_CODE).encode())
    assert request.input_bound == size + 4_096 + 2 * 8_192
    counted = {key: value for key, value in CLAUDE_CODE.items() if key in ("model", "messages", "system", "tools")}
    assert checked(COUNT, counted).max_tokens == 0


def test_codex() -> None:
    request = checked(RESPONSES, CODEX)
    assert (request.model, request.stream, request.thinking) == ("gpt-5.3-codex", True, True)
    assert request.max_tokens == DEFAULT_OUTPUT
    searched = copy.deepcopy(CODEX)
    call = {"type": "tool_search_call", "call_id": "c", "execution": "client", "arguments": {}, "status": "completed"}
    found = {"type": "tool_search_output", "call_id": "c", "execution": "client", "tools": [CODEX["tools"][0]]}
    searched["input"] += [call, found]
    checked(RESPONSES, searched)


def test_chat() -> None:
    request = checked(CHAT, CHAT_SDK)
    assert (request.max_tokens, request.choices, request.thinking) == (300, 3, True)
    assert checked(CHAT, {**MINIMAL[CHAT], "max_tokens": 5, "max_completion_tokens": 7}).max_tokens == 7
    assert checked(CHAT, {**MINIMAL[CHAT], "n": 2}).max_tokens == 2 * DEFAULT_OUTPUT
    assert checked(CHAT, {**MINIMAL[CHAT], "reasoning_effort": "none"}).thinking is False


@pytest.mark.parametrize("path", MINIMAL)
def test_the_least_that_passes(path: str) -> None:
    request = checked(path, MINIMAL[path])
    assert request.max_tokens == {MESSAGES: 10, COUNT: 0, EMBEDDINGS: 0}.get(path, DEFAULT_OUTPUT)
    assert request.stream is False
    assert len(json.dumps(MINIMAL[path])) < request.input_bound < 5_000
    checked(path, MINIMAL[path] | dict.fromkeys(set(MINIMAL[path]) - {"model", "messages", "input", "max_tokens"}))


@pytest.mark.parametrize(
    ("path", "fields", "thinks"),
    [
        (MESSAGES, {}, False),
        (MESSAGES, {"thinking": {"type": "disabled"}}, False),
        (MESSAGES, {"thinking": {"type": "enabled", "budget_tokens": 1024}}, True),
        (MESSAGES, {"thinking": "on"}, True),
        (COUNT, {"thinking": {"type": "adaptive"}}, False),
        (CHAT, {"model": "gpt-5.2"}, True),
        (CHAT, {"model": "gpt-5.2", "reasoning_effort": "none"}, False),
        (CHAT, {"model": "ft:gpt-4o-mini:org::1"}, False),
        (RESPONSES, {"model": "gpt-4.1"}, False),
        (RESPONSES, {"reasoning": {"effort": None, "summary": "auto"}}, True),
        (RESPONSES, {"reasoning": {"effort": "none"}}, False),
        (EMBEDDINGS, {}, False),
    ],
)
def test_reasoning_that_may_not_be_seen(path: str, fields: dict[str, Any], thinks: bool) -> None:
    assert checked(path, {**MINIMAL[path], **fields}).thinking is thinks


def test_media_that_cost_more_than_their_bytes() -> None:
    pdf = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERg=="}}
    text = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": EVIL}, "title": "t"}
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
    nested = {"type": "document", "source": {"type": "content", "content": [image, {"type": "text", "text": "x"}]}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": [pdf]}

    def of(block: dict[str, Any]) -> int:
        return checked(MESSAGES, {**MINIMAL[MESSAGES], "messages": [{"role": "user", "content": [block]}]}).input_bound

    assert of(pdf) == of(result) == INPUT_MOST
    assert of(text) < 5_000
    assert 8_192 < of(nested) < 16_384
    file = {"type": "input_file", "filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERg=="}
    assert checked(RESPONSES, {"model": "m", "input": [{"role": "user", "content": [file]}]}).input_bound == INPUT_MOST


def test_a_cache_of_an_hour_is_seen() -> None:
    body = {**MINIMAL[MESSAGES], "system": [{"type": "text", "text": "s", "cache_control": {**EPHEMERAL, "ttl": "1h"}}]}
    request = checked(MESSAGES, body)
    assert request.long_cache
    assert bound(request, DEFAULT_PRICE) > bound(checked(MESSAGES, MINIMAL[MESSAGES]), DEFAULT_PRICE)


# What does not.

BLOCKS: list[tuple[dict[str, Any], str]] = [
    ({"type": "image", "source": {"type": "url", "url": EVIL}}, "model.remote"),
    ({"type": "image", "source": {"type": "file", "file_id": "file_1"}}, "model.remote"),
    ({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": EVIL}}, "model.remote"),
    ({"type": "image", "source": {"type": "base64", "media_type": "m", "data": "", "url": EVIL}}, "model.field"),
    ({"type": "image", "source": EVIL}, "model.shape"),
    ({"type": "document", "source": {"type": "url", "url": EVIL}}, "model.remote"),
    ({"type": "document", "source": {"type": "file", "file_id": "file_1"}}, "model.remote"),
    (
        {
            "type": "document",
            "source": {"type": "content", "content": [{"type": "image", "source": {"type": "url", "url": EVIL}}]},
        },
        "model.remote",
    ),
    (
        {
            "type": "tool_result",
            "tool_use_id": "t",
            "content": [{"type": "document", "source": {"type": "url", "url": EVIL}}],
        },
        "model.remote",
    ),
    ({"type": "container_upload", "file_id": "file_1"}, "model.server_tools"),
    ({"type": "server_tool_use", "id": "s", "name": "web_search", "input": {"query": "q"}}, "model.server_tools"),
    ({"type": "web_fetch_tool_result", "tool_use_id": "s", "content": {}}, "model.server_tools"),
    ({"type": "mcp_tool_use", "id": "m", "name": "n", "server_name": "s", "input": {}}, "model.server_tools"),
    ({"type": "tool_addition", "tool": {"type": "tool_definition", "definition": {}}}, "model.field"),
    (
        {"type": "tool_use", "id": "t", "name": "n", "input": {}, "caller": {"type": "code_execution_20260120"}},
        "model.server_tools",
    ),
    ({"type": "text", "text": "x", "url": EVIL}, "model.field"),
    ({"type": "text", "text": ["x"]}, "model.shape"),
    ({"text": "x"}, "model.shape"),
    ({"type": ["text"], "text": "x"}, "model.shape"),
]


@pytest.mark.parametrize(("block", "expected"), BLOCKS)
def test_blocks_that_are_refused(block: dict[str, Any], expected: str) -> None:
    for path in (MESSAGES, COUNT):
        assert rule(path, {**MINIMAL[path], "messages": [{"role": "user", "content": [block]}]}) == expected


@pytest.mark.parametrize(
    "kind",
    [
        *("web_search_20250305", "web_search_20260318", "web_fetch_20250910", "code_execution_20250825", "mcp_toolset"),
        *("advisor_20260301", "tool_search_tool_regex_20251119", "browser_toolset_20260801", "bash_", "bash_20250124x"),
        *("xbash_20250124", "Custom", "", "bash_20250124\n", 7, ["custom"], {}),
    ],
)
def test_tools_of_the_provider(kind: object) -> None:
    tool = {"type": kind, "name": "web_search", "max_uses": 5}
    assert rule(MESSAGES, {**MINIMAL[MESSAGES], "tools": [tool]}) == "model.server_tools"
    if isinstance(kind, str):
        assert rule(RESPONSES, {**MINIMAL[RESPONSES], "tools": [{"type": kind}]}) == "model.server_tools"
        assert rule(CHAT, {**MINIMAL[CHAT], "tools": [{"type": kind}]}) == "model.server_tools"


FIELDS: list[tuple[str, dict[str, Any], str]] = [
    (MESSAGES, {"mcp_servers": [{"type": "url", "url": EVIL, "name": "x"}]}, "model.server_tools"),
    (MESSAGES, {"mcp_servers": []}, "model.server_tools"),
    (MESSAGES, {"container": "container_1"}, "model.server_tools"),
    (COUNT, {"mcp_servers": [{"type": "url", "url": EVIL, "name": "x"}]}, "model.server_tools"),
    (MESSAGES, {"thread": {"type": "continue", "previous_message_id": "msg_1"}}, "model.remote"),
    (MESSAGES, {"fallbacks": [{"model": "claude-dear"}]}, "model.price"),
    (MESSAGES, {"speed": "fast"}, "model.price"),
    (MESSAGES, {"inference_geo": "us"}, "model.price"),
    (MESSAGES, {"context_management": {"edits": [{"type": "compact_20260112"}]}}, "model.price"),
    (MESSAGES, {"context_management": {"edits": [], "x": 1}}, "model.field"),
    (MESSAGES, {"betas": ["mcp-client-2025-11-20"]}, "model.field"),
    (MESSAGES, {"MCP_Servers": []}, "model.field"),
    (MESSAGES, {"max_tokens": None}, "model.shape"),
    (MESSAGES, {"max_tokens": -1}, "model.limit"),
    (MESSAGES, {"max_tokens": True}, "model.limit"),
    (MESSAGES, {"max_tokens": 5.0}, "model.limit"),
    (MESSAGES, {"max_tokens": 10**12}, "model.limit"),
    (MESSAGES, {"stream": "true"}, "model.shape"),
    (MESSAGES, {"model": None}, "model.shape"),
    (MESSAGES, {"model": "a b"}, "model.shape"),
    (MESSAGES, {"model": "m" * 300}, "model.shape"),
    (MESSAGES, {"model": "\ud800"}, "model.shape"),
    (MESSAGES, {"messages": None}, "model.shape"),
    (MESSAGES, {"messages": {}}, "model.shape"),
    (MESSAGES, {"tool_choice": {"type": "mcp"}}, "model.field"),
    (MESSAGES, {"tools": [{"name": "x", "allowed_callers": ["code_execution_20260120"]}]}, "model.server_tools"),
    (CHAT, {"web_search_options": {}}, "model.server_tools"),
    (CHAT, {"model": "gpt-4o-search-preview"}, "model.server_tools"),
    (CHAT, {"model": "gpt-5-search-api"}, "model.server_tools"),
    (RESPONSES, {"model": "o3-deep-research-2025-06-26"}, "model.server_tools"),
    (CHAT, {"store": True}, "model.field"),
    (CHAT, {"audio": {"voice": "alloy", "format": "wav"}}, "model.field"),
    (CHAT, {"modalities": ["text", "audio"]}, "model.field"),
    (CHAT, {"moderation": {"model": "x"}}, "model.field"),
    (CHAT, {"service_tier": "priority"}, "model.price"),
    (CHAT, {"n": 0}, "model.limit"),
    (CHAT, {"n": 129}, "model.limit"),
    (CHAT, {"messages": [{"role": "assistant", "audio": {"id": "audio_1"}}]}, "model.remote"),
    (RESPONSES, {"background": True}, "model.field"),
    (RESPONSES, {"previous_response_id": "resp_1"}, "model.remote"),
    (RESPONSES, {"conversation": "conv_1"}, "model.remote"),
    (RESPONSES, {"prompt": {"id": "pmpt_1"}}, "model.remote"),
    (RESPONSES, {"include": ["web_search_call.action.sources"]}, "model.server_tools"),
    (RESPONSES, {"tool_choice": {"type": "web_search_preview"}}, "model.server_tools"),
    (RESPONSES, {"tool_choice": {"type": "mcp", "server_label": "x"}}, "model.server_tools"),
    (RESPONSES, {"tools": [{"type": "mcp", "server_label": "x", "server_url": EVIL}]}, "model.server_tools"),
    (RESPONSES, {"tools": [{"type": "web_search", "external_web_access": False}]}, "model.server_tools"),
    (RESPONSES, {"tools": [{"type": "shell", "environment": {"type": "container_auto"}}]}, "model.server_tools"),
    (RESPONSES, {"tools": [{"type": "tool_search"}]}, "model.server_tools"),
    (RESPONSES, {"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "mcp"}]}]}, "model.server_tools"),
    (RESPONSES, {"input": [{"type": "item_reference", "id": "msg_1"}]}, "model.remote"),
    (RESPONSES, {"input": [{"id": "msg_1"}]}, "model.remote"),
    (RESPONSES, {"input": [{"type": None, "id": "msg_1"}]}, "model.remote"),
    (RESPONSES, {"input": [{"type": "message", "id": "msg_1"}]}, "model.shape"),
    (RESPONSES, {"input": [{"type": "mcp_approval_response", "approve": True}]}, "model.server_tools"),
    (RESPONSES, {"input": [{"type": "mcp_call", "id": "m"}]}, "model.server_tools"),
    (RESPONSES, {"input": [{"type": "web_search_call", "id": "m"}]}, "model.server_tools"),
    (RESPONSES, {"input": [{"type": "program", "code": "fetch()"}]}, "model.server_tools"),
    (RESPONSES, {"input": [{"type": "additional_tools", "tools": [{"type": "mcp"}]}]}, "model.field"),
    (RESPONSES, {"input": [{"type": "tool_search_output", "tools": [{"type": "mcp"}]}]}, "model.server_tools"),
    (RESPONSES, {"input": ["hi"]}, "model.shape"),
    (EMBEDDINGS, {"url": EVIL}, "model.field"),
]


@pytest.mark.parametrize(("path", "fields", "expected"), FIELDS)
def test_fields_that_are_refused(path: str, fields: dict[str, Any], expected: str) -> None:
    assert rule(path, {**MINIMAL[path], **fields}) == expected


@pytest.mark.parametrize(
    "part",
    [
        {"type": "input_image", "image_url": EVIL},
        {"type": "input_image", "image_url": " data:x"},
        {"type": "input_image", "image_url": "DATA:x"},
        {"type": "input_image", "file_id": "file_1"},
        {"type": "input_file", "file_url": EVIL},
        {"type": "input_file", "file_id": "file_1"},
        {"type": "input_file", "file_data": EVIL},
    ],
)
def test_remote_parts_of_responses(part: dict[str, Any]) -> None:
    for item in (
        {"role": "user", "content": [part]},
        {"type": "function_call_output", "call_id": "c", "output": [part]},
        {"type": "custom_tool_call_output", "call_id": "c", "output": [part]},
    ):
        assert rule(RESPONSES, {"model": "m", "input": [item]}) == "model.remote"


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": EVIL}},
        {"type": "file", "file": {"file_id": "file_1"}},
        {"type": "file", "file": {"file_data": EVIL}},
        {"type": "input_audio", "input_audio": {"data": EVIL, "format": "wav"}},
    ],
)
def test_remote_parts_of_chat(part: dict[str, Any]) -> None:
    assert rule(CHAT, {"model": "m", "messages": [{"role": "user", "content": [part]}]}) == "model.remote"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", "model.json"),
        (b"[]", "model.json"),
        (b"\xff", "model.json"),
        (b"\xef\xbb\xbf{}", "model.json"),
        (b'{"model":"a","model":"b"}', "model.json"),
        (b'{"model":"a","mo\\u0064el":"b"}', "model.json"),
        (b'{"metadata":{"a":1,"a":2}}', "model.json"),
        (b'{"temperature":NaN}', "model.json"),
        (b'{"temperature":-Infinity}', "model.json"),
        (b'{"temperature":1e999}', "model.json"),
        (b'{"a":' + b"9" * 5000 + b"}", "model.json"),
        (b'{"a":1} {}', "model.json"),
        (b'{"a":"\n"}', "model.json"),
        (b'{"metadata":' + b"[" * DEPTH + b"]" * DEPTH + b"}", "model.json"),
        (b"[" * 100_000, "model.json"),
        (b'{"metadata":[' + b"[]," * VALUES + b"[]]}", "model.size"),
        (b" " * (BODY_BYTES + 1), "model.size"),
        (b"{}", "model.shape"),
        (b'{"\\ud800\\u0007' + b"k" * 1000 + b'":1}', "model.field"),
    ],
)
def test_json_that_is_refused(body: bytes, expected: str) -> None:
    assert rule(MESSAGES, body) == expected


def test_depth_just_so() -> None:
    deep: Any = []
    for _ in range(DEPTH - 2):
        deep = [deep]
    checked(MESSAGES, {**MINIMAL[MESSAGES], "metadata": deep})
    assert rule(MESSAGES, {**MINIMAL[MESSAGES], "metadata": [deep]}) == "model.json"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
KEYS = st.sampled_from(sorted({*CLAUDE_CODE, *CODEX, *CHAT_SDK, "type", "role", "content", "source", "input", "tools"}))


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(sorted(MINIMAL)), st.dictionaries(KEYS, JSON, max_size=5))
def test_nothing_but_invalid_errors(path: str, fields: dict[str, Any]) -> None:
    with contextlib.suppress(InvalidError):
        request = checked(path, {**MINIMAL[path], **fields})
        assert request.max_tokens >= 0
        assert 0 < request.input_bound <= INPUT_MOST
        assert bound(request, DEFAULT_PRICE) > 0


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_request_with_anything_put_somewhere_in_it(data: st.DataObject) -> None:
    path, body = data.draw(st.sampled_from([(MESSAGES, CLAUDE_CODE), (RESPONSES, CODEX), (CHAT, CHAT_SDK)]))
    body = copy.deepcopy(body)
    place: Any = body
    for _ in range(data.draw(st.integers(0, 6))):
        inner = list(place.values()) if isinstance(place, dict) else list(place)
        inner = [one for one in inner if isinstance(one, dict | list) and one]
        if not inner:
            break
        place = data.draw(st.sampled_from(inner))
    if isinstance(place, dict):
        place[data.draw(st.sampled_from(sorted(place)) | KEYS)] = data.draw(JSON)
    else:
        place[data.draw(st.integers(0, len(place) - 1))] = data.draw(JSON)
    with contextlib.suppress(InvalidError):
        checked(path, body)


@given(st.binary(max_size=200), st.text(max_size=30))
def test_any_bytes_and_any_path(body: bytes, path: str) -> None:
    for where in (MESSAGES, path):
        with pytest.raises(InvalidError):
            check("anthropic", where, body)


# Usage.


def sse(*events: dict[str, Any] | str, end: str = "\n") -> bytes:
    lines = []
    for event in events:
        text = event if isinstance(event, str) else json.dumps(event)
        name = "" if isinstance(event, str) or "type" not in event else f"event: {event['type']}{end}"
        lines.append(f"{name}data: {text}{end}{end}")
    return "".join(lines).encode()


def read(reader: UsageReader, data: bytes, size: int | None = None) -> UsageReader:
    for at in range(0, len(data), size or max(1, len(data))):
        reader.feed(data[at : at + (size or len(data))])
    return reader


START = {
    "type": "message_start",
    "message": {
        "id": "msg_1",
        "content": [],
        "usage": {
            "input_tokens": 12,
            "cache_creation_input_tokens": 1000,
            "cache_read_input_tokens": 20_000,
            "cache_creation": {"ephemeral_5m_input_tokens": 400, "ephemeral_1h_input_tokens": 600},
            "output_tokens": 2,
        },
    },
}
ANTHROPIC_STREAM = [
    START,
    {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}},
    {"type": "ping"},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "hm" * 10}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "abcd"}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "déjà\n\ndata: x"}},
    {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": '{"a":1}'}},
]
DELTA = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 57}}
STREAMED = 20 + 4 + len("déjà\n\ndata: x".encode()) + 7
ANTHROPIC_TOKENS = Tokens(12, 57, 20_000, 1000, 600)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_an_anthropic_stream_cut_anywhere(end: str) -> None:
    data = sse(*ANTHROPIC_STREAM, DELTA, {"type": "message_stop"}, end=end)
    for at in range(len(data) + 1):
        reader = UsageReader("anthropic", MESSAGES, "text/event-stream; charset=utf-8")
        reader.feed(data[:at])
        reader.feed(data[at:])
        assert reader.tokens() == ANTHROPIC_TOKENS
        assert reader.final
        assert not reader.unknown
        assert reader.estimated_output == 57
    for size in (1, 2, 3, 7):
        assert read(UsageReader("anthropic", MESSAGES, "text/event-stream"), data, size).tokens() == ANTHROPIC_TOKENS


def test_an_anthropic_stream_that_breaks_off() -> None:
    data = sse(*ANTHROPIC_STREAM)
    reader = read(UsageReader("anthropic", MESSAGES, "text/event-stream"), data)
    assert reader.tokens() == Tokens(12, 2, 20_000, 1000, 600)
    assert not reader.final
    assert reader.estimated_output == -(-STREAMED // 2)
    reader.feed(sse({"type": "message_delta", "delta": {}, "usage": {"output_tokens": 1000}}))
    assert (reader.estimated_output, reader.final) == (1000, False)
    reader.feed(sse({"type": "error", "error": {"type": "overloaded_error"}}))
    assert not reader.final


def test_the_estimate_never_falls_as_a_stream_goes_on() -> None:
    reader, last = UsageReader("anthropic", MESSAGES, "text/event-stream"), 0
    data = sse(*ANTHROPIC_STREAM)
    for at in range(len(data)):
        reader.feed(data[at : at + 1])
        assert reader.estimated_output >= last
        last = reader.estimated_output


def test_an_anthropic_body_cut_anywhere() -> None:
    usage = {"input_tokens": 3, "output_tokens": 4, "cache_read_input_tokens": None, "service_tier": "standard"}
    data = json.dumps({"content": [{"type": "text", "text": "{}}"}], "usage": usage}).encode() + b"\n"
    for at in range(len(data) + 1):
        reader = UsageReader("anthropic", MESSAGES, "application/json")
        reader.feed(data[:at])
        early = reader.final  # asking does not change what comes after
        assert not early or at >= len(data) - 1
        reader.feed(data[at:])
        assert reader.final
        assert reader.tokens() == Tokens(3, 4)
    read(reader := UsageReader("anthropic", MESSAGES, "application/json"), data, 1)
    assert reader.estimated_output == 4


CHAT_USAGE = {
    "prompt_tokens": 100,
    "completion_tokens": 30,
    "prompt_tokens_details": {"cached_tokens": 64, "cache_write_tokens": 10},
}
CHUNKS: list[dict[str, Any] | str] = [
    {"id": "c", "choices": [{"index": 0, "delta": {"role": "assistant", "content": "hello"}}], "usage": None},
    {"id": "c", "choices": [{"delta": {"tool_calls": [{"id": "x", "function": {"name": "f", "arguments": "{}"}}]}}]},
]


def test_a_chat_stream() -> None:
    data = sse(*CHUNKS, {"id": "c", "choices": [], "usage": CHAT_USAGE}, "[DONE]")
    for at in range(len(data) + 1):
        reader = UsageReader("openai", CHAT, "text/event-stream")
        reader.feed(data[:at])
        reader.feed(data[at:])
        assert (reader.final, reader.tokens()) == (True, Tokens(26, 30, 64, 10))
    without = read(UsageReader("openai", CHAT, "text/event-stream"), sse(*CHUNKS, "[DONE]"))
    assert (without.final, without.tokens(), without.estimated_output) == (False, Tokens(), 4)


@pytest.mark.parametrize("kind", ["response.completed", "response.incomplete", "response.failed"])
def test_a_responses_stream(kind: str) -> None:
    usage = {"input_tokens": 50, "input_tokens_details": {"cached_tokens": 40}, "output_tokens": 9}
    data = sse(
        {"type": "response.created", "response": {"id": "r", "usage": None, "instructions": "x" * 500}},
        {"type": "response.output_text.delta", "delta": "abcd", "obfuscation": "zzzz"},
        {"type": "response.output_item.done", "item": {"type": "reasoning", "encrypted_content": "gA" * 10}},
    )
    reader = read(UsageReader("openai", RESPONSES, "text/event-stream"), data, 5)
    assert (reader.final, reader.estimated_output) == (False, 12)
    read(reader, sse({"type": kind, "response": {"usage": usage}}), 3)
    assert (reader.final, reader.tokens(), reader.estimated_output) == (True, Tokens(10, 9, 40), 9)


def test_openai_bodies() -> None:
    chat = read(UsageReader("openai", CHAT, "application/json"), json.dumps({"usage": CHAT_USAGE}).encode())
    assert chat.tokens() == Tokens(26, 30, 64, 10)
    body = json.dumps({"data": [{"embedding": "x" * 5000}], "usage": {"prompt_tokens": 8, "total_tokens": 8}}).encode()
    reader = UsageReader("openai", EMBEDDINGS, "application/json")
    reader.feed(body[:3000])
    assert (reader.estimated_output, reader.final) == (0, False)
    reader.feed(body[3000:])
    assert (reader.tokens(), reader.final) == (Tokens(8), True)


def test_what_is_free() -> None:
    for api, path in (("anthropic", COUNT), ("anthropic", "/v1/models"), ("openai", "/v1/models/gpt-x")):
        reader = read(UsageReader(api, path, "application/json"), b'{"input_tokens": 5}')
        assert (reader.final, reader.tokens(), reader.estimated_output) == (True, Tokens(), 0)


def test_a_body_that_is_too_large() -> None:
    reader = UsageReader("openai", CHAT, "application/json")
    read(reader, b'{"a":"' + b"x" * JSON_BYTES + b'","usage":{"prompt_tokens":1}}', 65_536)
    assert (reader.unknown, reader.final) == (True, False)
    assert reader.estimated_output > JSON_BYTES // 2
    assert len(reader._body) == 0
    other = read(UsageReader("openai", CHAT, "text/plain"), b'{"usage":{"prompt_tokens":1}}')
    assert (other.unknown, other.final) == (True, False)


def test_an_event_that_is_too_large_is_passed_over_whole() -> None:
    large = b"data: " + json.dumps({"type": "x", "x": "y" * EVENT_BYTES}).encode()
    for size in (None, 65_536, 65_537):
        for many in (large, (b"data: " + b"z" * 1000 + b"\n") * 5000, b"\n".join([large, b"data: {}"])):
            reader = UsageReader("anthropic", MESSAGES, "text/event-stream")
            read(reader, sse(START) + many, size)
            assert len(reader._body) + reader._event_bytes <= EVENT_BYTES
            assert reader.unknown
            read(reader, b"\n\n" + sse(DELTA), size)
            assert reader.tokens() == ANTHROPIC_TOKENS
            assert not reader.unknown


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([("anthropic", MESSAGES), ("openai", CHAT), ("openai", RESPONSES), ("openai", EMBEDDINGS)]),
    st.sampled_from(["text/event-stream", "application/json", "", "x"]),
    st.lists(
        JSON | st.dictionaries(KEYS | st.sampled_from(["usage", "message", "delta", "choices"]), JSON), max_size=4
    ),
    st.binary(max_size=40),
    st.integers(1, 9),
)
def test_any_answer_cut_in_any_way(
    where: tuple[str, str], kind: str, values: list[Any], noise: bytes, size: int
) -> None:
    data = b"".join(b"data:" + json.dumps(value).encode() + b"\r\n\n" for value in values) + noise
    if kind == "application/json" and values:
        data = json.dumps(values[0]).encode()
    whole, cut = UsageReader(*where, kind), UsageReader(*where, kind)
    read(whole, data)
    read(cut, data, size)
    assert whole.tokens() == cut.tokens()
    assert (whole.final, whole.unknown, whole.estimated_output) == (cut.final, cut.unknown, cut.estimated_output)
    assert min(whole.tokens().input, whole.tokens().output, whole.estimated_output) >= 0


def test_figures_that_make_no_sense() -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": -3, "prompt_tokens_details": {"cached_tokens": 10**30}}
    reader = read(UsageReader("openai", CHAT, "application/json"), json.dumps({"usage": usage}).encode())
    assert reader.tokens() == Tokens(0, 0, 5, 0)


# Asking for usage.


def test_a_chat_stream_is_made_to_tell() -> None:
    body = json.dumps({**CHAT_SDK, "temperature": 0.1, "user": "é\ud800"}).encode()
    out = needs_usage("openai", CHAT, body)
    assert parse(out) == {**parse(body), "stream_options": {"include_usage": True}}
    assert needs_usage("openai", CHAT, out) is out
    check("openai", CHAT, out)
    some = json.dumps({**CHAT_SDK, "stream_options": {"include_usage": False, "include_obfuscation": False}}).encode()
    assert parse(needs_usage("openai", CHAT, some))["stream_options"] == {
        "include_usage": True,
        "include_obfuscation": False,
    }


@pytest.mark.parametrize(
    ("path", "body"), [(MESSAGES, CLAUDE_CODE), (RESPONSES, CODEX), (CHAT, {**CHAT_SDK, "stream": False})]
)
def test_every_other_body_stays(path: str, body: dict[str, Any]) -> None:
    data = json.dumps(body).encode()
    assert needs_usage(api_of(path), path, data) is data


# Money.


def test_cost_is_rounded_up() -> None:
    price = Price(3_000_000, 15_000_000, 300_000, 3_750_000)
    assert cost(Tokens(), price) == 0
    assert cost(Tokens(cache_read=1), price) == 1
    assert cost(Tokens(1000, 100, 2000, 400), price) == 3000 + 1500 + 600 + 1500
    assert cost(Tokens(cache_write=400, long_write=400), price) == 2400
    assert cost(Tokens(cache_write=400, long_write=100), price) == 300 * 3.75 + 600


def test_the_bound_covers_whatever_is_used_within_it() -> None:
    request = Request("m", True, 1000, 5000, False, 1)
    assert bound(request, DEFAULT_PRICE) == 5000 * 18.75 + 75_000
    assert bound(Request("m", True, 1000, 5000, False, 1, True), DEFAULT_PRICE) == 5000 * 30 + 75_000
    assert bound(Request("m", True, 0, 1, False, 1), Price(0, 0, 0, 1)) == 1


@given(*[st.integers(0, 10**8)] * 4, *[st.integers(0, 10**6)] * 4, st.booleans())
def test_no_cost_is_above_its_bound(
    a: int, b: int, c: int, d: int, plain: int, output: int, read_: int, written: int, long: bool
) -> None:
    price = Price(a, b, c, d)
    used = Tokens(plain, output, read_, written, written if long else 0)
    request = Request("m", True, output, plain + read_ + written, False, 1, long)
    assert cost(used, price) <= bound(request, price)


@pytest.mark.parametrize("bad", [-1, 1.5, True])
def test_prices_are_whole_numbers(bad: Any) -> None:
    with pytest.raises(ValueError):
        Price(1, bad, 1, 1)
