"""While the tests run, shape annotations and the contract of passes are checked, and exports are quicker."""

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
def _quick_exporter() -> Iterator[None]:
    """Spare what torch's exporter does again at each call, and what coverage would make of it, all Python.

    Each export reads the source of every operator of onnxscript's library to know its signature: a quarter of
    its time. Little of ours runs inside: tracing it for coverage makes it half as long again.
    """
    with pytest.MonkeyPatch.context() as patch:

        def untraced(function: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(function)
            def call(*args: Any, **kwargs: Any) -> Any:
                from torch.onnx._internal._lazy_import import onnxscript_apis

                if "get_torchlib_ops" not in vars(onnxscript_apis):
                    known = functools.cache(onnxscript_apis.get_torchlib_ops)
                    patch.setattr(onnxscript_apis, "get_torchlib_ops", known, raising=False)
                tracer = sys.gettrace()
                sys.settrace(None)
                try:
                    return function(*args, **kwargs)
                finally:
                    sys.settrace(tracer)

            return call

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
