"""The public names are a promise; nothing else is."""

import doctest
import importlib
import pkgutil
import re
from types import ModuleType, UnionType

import pytest

import fxdecomp
import fxdecomp.reporting

PROMISED = {
    "Applied",
    "BenchmarkError",
    "CalibrationError",
    "Energy",
    "ExportError",
    "Fixed",
    "Folded",
    "FxdecompError",
    "Latency",
    "MACs",
    "Outcome",
    "OutputDistance",
    "Params",
    "ParityError",
    "PassError",
    "Plan",
    "Policy",
    "PolicyError",
    "Quality",
    "Ratio",
    "Reason",
    "RecoveryError",
    "Report",
    "Rule",
    "SearchResult",
    "Study",
    "study",
    "Skipped",
    "TraceError",
    "VBMF",
    "export",
    "graph_diff",
    "plot_spectra",
    "recover",
    "report",
    "search",
    "trace",
    "transform",
}
MODULES = sorted(
    name
    for _, name, _ in pkgutil.walk_packages(fxdecomp.__path__, "fxdecomp.")
    if not name.startswith("fxdecomp.demo") and not name.endswith("__main__")
)


def test_the_promised_names_are_there() -> None:
    assert set(fxdecomp.__all__) == PROMISED
    assert all(hasattr(fxdecomp, name) for name in fxdecomp.__all__)
    assert len(set(fxdecomp.__all__)) == len(fxdecomp.__all__)
    assert re.fullmatch(r"\d+\.\d+\.\d+", fxdecomp.__version__)


@pytest.mark.parametrize("module", [fxdecomp, fxdecomp.export, fxdecomp.reporting])
def test_every_public_name_has_documentation_with_an_example(module: ModuleType) -> None:
    for name in module.__all__:
        value = getattr(module, name)
        if not isinstance(value, ModuleType | UnionType):
            assert ">>> " in (value.__doc__ or ""), f"{module.__name__}.{name}"


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_in_docstrings_run(module: str) -> None:
    result = doctest.testmod(importlib.import_module(module), raise_on_error=False)
    assert result.failed == 0


def test_there_are_examples() -> None:
    finder = doctest.DocTestFinder()
    examples = [
        test for module in MODULES for test in finder.find(importlib.import_module(module)) if test.examples
    ]
    assert len(examples) >= 5
