"""Policies as TOML text, and where in it a complaint belongs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any


def line_of(text: str, message: str) -> str:
    """`:line` where the first quoted word of a message stands in the text, else its first word as a key."""
    quoted = [re.escape(word) for word in re.findall(r"'([^']+)'", message)]
    key = rf"^\s*{re.escape(message.split(' ', 1)[0])}\s*="
    for pattern in [*quoted, key]:
        for number, line in enumerate(text.splitlines(), start=1):
            if re.search(pattern, line.partition("#")[0]):
                return f":{number}"
    return ""


def to_toml_text(data: Mapping[str, Any]) -> str:
    """A policy's plain data as TOML."""
    lines = [f"{key} = {_toml_value(value)}" for key, value in data.items() if key != "rules"]
    for rule in data.get("rules", ()):
        lines += ["", "[[rules]]", *(f"{key} = {_toml_value(value)}" for key, value in rule.items())]
    return "\n".join(lines) + "\n"


def _toml_value(value: object) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml_value(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return (
        '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'
        if isinstance(value, str)
        else str(value)
    )
