"""Shape annotations are checked while the tests run; torch's exporter is not traced for coverage."""

import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.export
import torch.onnx
from jaxtyping import install_import_hook

_CHECKED = ("calibration", "fitting", "linalg", "ranks")
# Of the decompositions all that is annotated, but for the polyadic sweeps: to check each of their many calls
# would double the suite's time. A test of their own does.
_CHECKED += tuple(f"decompositions.{name}" for name in ("estimating", "problem", "tucker2", "whitening"))
install_import_hook([f"fxdecomp.{room}" for room in _CHECKED], "beartype.beartype")


@pytest.fixture(autouse=True, scope="session")
def _exporter_without_coverage() -> Iterator[None]:
    """Little of ours runs inside torch's exporter, all Python: tracing it makes it half as long again."""

    def untraced(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            tracer = sys.gettrace()
            sys.settrace(None)
            try:
                return function(*args, **kwargs)
            finally:
                sys.settrace(tracer)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for module in (torch.onnx, torch.export):
            patch.setattr(module, "export", untraced(module.export))
        yield


@pytest.fixture(autouse=True, scope="session")
def _passes_keep_their_contract() -> Iterator[None]:
    """Every pass of every test is checked (tests/contract.py)."""
    from fxdecomp.passes.base import Pass
    from tests.contract import checked

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pass, "__call__", checked(Pass.__call__))
        yield
