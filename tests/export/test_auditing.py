from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from fxdecomp.errors import ExportError
from fxdecomp.export import audit_layout, to_onnx
from fxdecomp.export.auditing import LayoutChange

from .nets import Recurrent, Residual, traced


def odd_rank() -> nn.Sequential:
    chain = OrderedDict(
        pointwise_in=nn.Conv2d(32, 21, 1), core=nn.Conv2d(21, 21, 3), pointwise_out=nn.Conv2d(21, 32, 1)
    )
    return nn.Sequential(OrderedDict(stem=nn.Conv2d(3, 32, 3), chain=nn.Sequential(chain)))


def test_a_rank_that_is_no_multiple_of_four_leaves_the_blocked_layout(tmp_path: Path) -> None:
    to_onnx(traced(odd_rank()), torch.randn(1, 3, 12, 12), tmp_path / "net.onnx")
    audit = audit_layout(tmp_path / "net.onnx")
    assert audit.blocked == ("stem", "chain.pointwise_in")
    assert [item.name for item in audit.outside] == ["chain.core", "chain.pointwise_out"]
    assert audit.outside[0].reason.startswith("21 input channels are no multiple of 4")
    assert audit.changes == (LayoutChange("ReorderOutput", "chain.pointwise_in", ("chain.core",)),)
    assert "ReorderOutput between chain.pointwise_in and chain.core" in str(audit)
    assert audit.to_dict()["outside"][0]["name"] == "chain.core"


def test_aligned_ranks_stay_in_it_from_end_to_end(tmp_path: Path) -> None:
    to_onnx(traced(Residual()), torch.randn(1, 3, 16, 16), tmp_path / "net.onnx")
    audit = audit_layout(tmp_path / "net.onnx")
    assert audit.blocked == ("stem", "first", "second.pointwise_in", "second.core", "second.pointwise_out")
    assert audit.outside == ()
    assert [(change.op, change.before) for change in audit.changes] == [("ReorderOutput", ("output",))]


def test_what_the_model_itself_transposes_is_no_layout_change(tmp_path: Path) -> None:
    to_onnx(traced(Recurrent()), torch.randn(1, 1, 16, 16), tmp_path / "net.onnx")
    audit = audit_layout(tmp_path / "net.onnx")
    assert [(change.op, change.after, change.before) for change in audit.changes] == [
        ("ReorderOutput", "conv", ("ReduceMean",))
    ]


def test_int8_changes_layout_only_at_its_ends(tmp_path: Path) -> None:
    data = [torch.randn(2, 3, 16, 16) for _ in range(4)]
    to_onnx(traced(Residual()), data[0], tmp_path / "net.onnx", quantize="int8", calibration=data)
    audit = audit_layout(tmp_path / "net.onnx")
    assert [(change.op, change.before) for change in audit.changes] == [
        ("Transpose", ("stem",)),
        ("Transpose", ("DequantizeLinear",)),
    ]


def test_a_file_that_is_no_model_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"nothing")
    with pytest.raises(ExportError, match="cannot be read as an ONNX model"):
        audit_layout(tmp_path / "net.onnx")
    with pytest.raises(ExportError, match="cannot be read as an ONNX model"):
        audit_layout(tmp_path / "absent.onnx")
