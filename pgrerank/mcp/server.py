"""The SDK's server, which tells a model what is wrong with its arguments in one line for each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.types import CallToolResult, InputRequiredResult
from pydantic import ValidationError

__all__ = ["Server"]

_SHOWN = 100
"""Characters of a wrong value that are repeated."""


class Server(MCPServer[Any]):
    """An MCP server whose errors name the argument, the value found, and the value wanted."""

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Context[Any, Any] | None = None
    ) -> CallToolResult | InputRequiredResult:
        """Call a tool; raises ToolError for arguments that it doesn't take, unknown ones too."""
        taken = {
            tool.name: list(tool.input_schema["properties"]) for tool in await self.list_tools()
        }
        unknown = [argument for argument in arguments if argument not in taken.get(name, arguments)]
        if unknown:
            raise ToolError(
                f"{name} has no argument {', '.join(unknown)}:"
                f" it takes {', '.join(taken[name]) or 'none'}"
            )
        try:
            return await super().call_tool(name, arguments, context)
        except ToolError as error:
            if not isinstance(error.__cause__, ValidationError):
                raise
            wrong = [_wrong(name, found) for found in error.__cause__.errors()]
            raise ToolError("\n".join(wrong)) from error


def _wrong(tool: str, found: Mapping[str, Any]) -> str:
    argument = ".".join(str(part) for part in found["loc"])
    if found["type"] == "missing":
        return f"{tool} needs the argument {argument}"
    value = json.dumps(found["input"], ensure_ascii=False, default=str)
    shown = value if len(value) <= _SHOWN else value[:_SHOWN] + "…"
    return f"{tool}: {argument} is {shown}, it {found['msg'].removeprefix('Input ')}"
