"""Small ONNX files to be imported."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

X = (2, 4, 6, 8)


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def write(
    path: Path,
    nodes: list[onnx.NodeProto],
    constants: dict[str, np.ndarray] | None = None,
    *,
    shape: tuple[int | str, ...] = X,
    outputs: tuple[str, ...] = ("y",),
    opset: int = 18,
    kind: int = TensorProto.FLOAT,
) -> Path:
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9), path)
    return path


def node(op: str, *inputs: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, ["x", *inputs], ["y"], f"/block/{op}", **attributes)


def ints(*values: int) -> np.ndarray:
    return np.asarray(values, np.int64)
