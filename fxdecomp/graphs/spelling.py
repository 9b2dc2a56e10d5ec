"""Layers that are called by a word of Python's own, such as `class`.

For a call of `blocks.class` torch.fx writes `self.blocks.class(x)`, which is no Python; here it is
`getattr(self.blocks, 'class')(x)`, as torch.fx writes it for names that begin with a digit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from keyword import iskeyword
from typing import Any

import torch.fx.graph
from torch.fx import Graph
from torch.fx.graph import CodeGen


def spell_keywords(graph: Graph) -> None:
    """Let a graph write its code so that its layers may have any name, in every copy of it too.

    A graph whose layers have ordinary names is left as it is.
    """
    targets = (str(node.target) for node in graph.nodes if node.op in ("call_module", "get_attr"))
    writer = graph._codegen
    if isinstance(writer, _Spelling):
        return
    if any(iskeyword(name) for target in targets for name in target.split(".")):
        writer.__class__ = type(f"Spelling{type(writer).__name__}", (_Spelling, type(writer)), {})


@contextmanager
def keywords_spelled() -> Iterator[None]:
    """Let every graph of the process do so for a while: torch's exporters make graphs of their own."""
    module: Any = torch.fx.graph
    kept = module._format_target
    module._format_target = _path
    try:
        yield
    finally:
        module._format_target = kept


def _path(base: str, target: str) -> str:
    for name in target.split("."):
        plain = name.isidentifier() and not iskeyword(name)
        base = f"{base}.{name}" if plain else f"getattr({base}, {name!r})"
    return base


class _Spelling(CodeGen):
    def _gen_python_code(self, *args: Any, **options: Any) -> Any:
        with keywords_spelled():
            return super()._gen_python_code(*args, **options)
