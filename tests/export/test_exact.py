"""Files and graphs in double precision."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from fxdecomp.export.exact import file_in_double
from tests.importing.files import drawn, node, write

X = torch.from_numpy(drawn(1, 3, 8, 8, seed=1))


def test_what_a_file_computes_without_rounding(tmp_path: Path) -> None:
    constant = helper.make_node("Constant", [], ["c"], value_float=1e6)
    nodes = [
        constant,
        helper.make_node("ConstantOfShape", ["one"], ["nothing"]),
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("BatchNormalization", ["a", "scale", "shift", "mean", "var"], ["b"]),
        helper.make_node("Cast", ["b"], ["d"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["d", "c"], ["e"]),
        helper.make_node("Sub", ["e", "c"], ["f"]),
        helper.make_node("Add", ["f", "nothing"], ["y"]),
    ]
    ones = np.ones(4, np.float32)
    constants = {"w": drawn(4, 3, 1, 1), "one": np.asarray([1], np.int64)}
    constants |= {"scale": 2 * ones, "shift": 0 * ones, "mean": 0 * ones, "var": ones}
    path = write(tmp_path / "a.onnx", nodes, constants, shape=tuple(X.shape), opset=13)
    found = file_in_double(path, (X,))
    assert found is not None
    wide = np.einsum("oi,nihw->nohw", constants["w"][:, :, 0, 0].astype(np.float64), X.double().numpy())
    assert np.abs(found[0].numpy() - wide * 2 / np.sqrt(1 + 1e-5)).max() < 1e-6


WIDENED = helper.make_node("Cast", ["h"], ["wide"], to=TensorProto.FLOAT)


@pytest.mark.parametrize(
    ("nodes", "times"),
    [
        ([node("AveragePool", kernel_shape=[1, 1])], 40),  # of more numbers than the reference has time for
        ([WIDENED, node("Add", "wide")], 1),  # half precision is meant
        ([node("Mine", domain="my.own")], 1),
    ],
)
def test_what_cannot_be_told(nodes: list[onnx.NodeProto], times: int, tmp_path: Path) -> None:
    x = X.repeat(1, 1, times, times)
    constants = {"h": np.ones(1, np.float16)} if WIDENED in nodes else {}
    path = write(tmp_path / "a.onnx", nodes, constants, shape=tuple(x.shape))
    assert file_in_double(path, (x,)) is None


def test_what_is_gathered_from_long_axes_can_be_told(tmp_path: Path) -> None:
    nodes = [  # the pool is one that ONNX Runtime has not in double precision; onnx's own Gather ends at 64
        helper.make_node("GatherElements", ["x", "where"], ["some"], axis=-1),
        helper.make_node("AveragePool", ["some"], ["y"], kernel_shape=[1, 1]),
    ]
    where = np.asarray([[[[79, -1], [0, 64]]]], np.int64)
    x = torch.from_numpy(drawn(1, 2, 3, 80, seed=2))
    path = write(tmp_path / "a.onnx", nodes, {"where": where}, shape=tuple(x.shape))
    (found,) = file_in_double(path, (x,)) or ()
    assert found.tolist() == [[[x[0, 0, 0, [79, -1]].tolist(), x[0, 0, 1, [0, 64]].tolist()]]]
