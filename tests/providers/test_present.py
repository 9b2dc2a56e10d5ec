"""What is written for the CPU's provider, on every other one that is installed: `make openvino`."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.fx import GraphModule

import fxdecomp
from fxdecomp import Latency, Policy, Rule
from fxdecomp.export import Int8, benchmark, to_onnx
from fxdecomp.export.running import relative_distance
from fxdecomp.export.sessions import available_providers, open_session
from fxdecomp.providers import CPU, PROVIDERS, described

pytest.importorskip("onnxruntime")

OTHERS = [each.name for each in PROVIDERS if each.name in available_providers() and each is not CPU]
pytestmark = pytest.mark.skipif(not OTHERS, reason="onnxruntime has no other provider here")
each_provider = pytest.mark.parametrize("provider", OTHERS)

X = torch.randn(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))


class WithLstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(16, 16, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lstm(x)[0]


@pytest.fixture(scope="module")
def gm() -> GraphModule:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1)]
    head = [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    return fxdecomp.trace(nn.Sequential(*layers, *head).eval(), X)


@pytest.fixture(scope="module")
def small(gm: GraphModule) -> GraphModule:
    return fxdecomp.transform(gm, Policy(made_up=False, rules=[Rule("3", "tucker2", rank=(16, 16))]))


@pytest.fixture(scope="module")
def files(small: GraphModule, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    paths = {name: folder / f"{name}.onnx" for name in ("small", "int8", "lstm")}
    to_onnx(small, X, paths["small"])
    batches = [torch.randn(2, 3, 24, 24) for _ in range(4)]
    to_onnx(small, X, paths["int8"], quantize=Int8(max_error=1), calibration=batches)
    rows = torch.randn(2, 5, 16)
    to_onnx(
        fxdecomp.trace(WithLstm().eval(), rows),
        rows,
        paths["lstm"],
        quantize=Int8(max_error=1),
        calibration=[torch.randn(2, 5, 16) for _ in range(4)],
    )
    return paths


def outputs(path: Path, provider: str) -> Any:
    session = open_session(path, provider=provider)
    return session.run(None, {session.get_inputs()[0].name: X.numpy()})[0]


@each_provider
def test_a_file_computes_what_the_network_does(
    small: GraphModule, files: dict[str, Path], provider: str
) -> None:
    wanted = small(X).detach().numpy()
    found, quantised = (outputs(files[name], provider) for name in ("small", "int8"))
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5)
    assert relative_distance([[wanted]], [[quantised]]) < 0.2


@each_provider
def test_files_are_timed_with_their_kernels_and_what_is_left_out_is_a_row(
    files: dict[str, Path], provider: str
) -> None:
    report = benchmark(files, providers=[provider, "NoSuchExecutionProvider"], rounds=2)
    for name in ("small", "int8"):
        row = report.timing(name)
        assert row.nodes[provider] > 0
        told = "no times of single layers" in report.kernel_table(name)
        assert told != described(provider).times_nodes
    absent = [row for row in report.timings if row.provider != provider]
    assert [row.problem.split(" in ")[0] for row in absent] == 3 * ["not available"]
    if "DynamicQuantizeLSTM" in described(provider).refused:
        assert next(row for row in report.timings if row.model == "lstm").problem == (
            "left 1 layer(s) to another provider: lstm; write the file with Int8(recurrent=False)"
        )


@each_provider
def test_a_budget_of_time_is_planned_and_checked_there(
    gm: GraphModule, provider: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FXDECOMP_CACHE_DIR", str(tmp_path))
    budget = Latency(0.8, provider=provider)
    rules = [Rule("3", "channel_svd")]
    policy = Policy(made_up=False, budget=budget, multiple_of=16, exclude=["0"], rules=rules)
    told = fxdecomp.report(fxdecomp.transform(gm, policy))
    assert told.record.latency is not None
    assert all(attempt.measured_s > 0 for attempt in told.record.latency.attempts)
    assert told.modified == (told.record.latency.taken is not None)
    assert list(tmp_path.rglob("*.json"))  # the times are kept
