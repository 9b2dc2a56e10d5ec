"""Policies as TOML text, and where in it a complaint belongs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import tomli_w


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
    return tomli_w.dumps(data)
