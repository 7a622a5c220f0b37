"""External tools: other MCP servers, whose every call goes through the gate."""
