"""Attention's fast path for inference gives other numbers than any traced graph."""

import pytest
import torch
from torch import Tensor, nn

import fxdecomp
from fxdecomp.reasons import Reason
from fxdecomp.tracing.reference import difference
from tests.nets import drawn, image

FULL = fxdecomp.Policy(method="svd", rank=1.0, require_saving=False)


class Tagger(nn.Module):
    """Tags tokens; those of id 0 are padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1)
        self.tag = nn.Linear(16, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.tag(self.encoder(self.embed(ids), src_key_padding_mask=ids == 0))


class Padded(Tagger):
    """Takes the mask as an input."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.tag(self.encoder(x, src_key_padding_mask=mask))


IDS = torch.tensor([[3, 4, 5, 0, 0], [3, 4, 5, 6, 7]])


@pytest.mark.parametrize(
    ("model", "inputs"), [(Tagger(), (IDS,)), (Padded(), (image(2, 5, 16), IDS == 0))], ids=["ids", "mask"]
)
@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage:UserWarning")
def test_a_padding_mask_hides_no_layer(model: nn.Module, inputs: tuple[Tensor, ...], fast: bool) -> None:
    kept = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(fast)
    try:
        gm = fxdecomp.trace(drawn(model), inputs)
        assert torch.backends.mha.get_fastpath_enabled() is fast
        report = fxdecomp.report(fxdecomp.transform(gm, FULL))
    finally:
        torch.backends.mha.set_fastpath_enabled(kept)
    assert len(report.applied) == 5
    embedding = {Reason.EMBEDDING} if len(inputs) == 1 else set()  # unused, and so not in the result
    assert {row.reason for row in report.skipped} == {Reason.ELEMENTWISE} | embedding
    real = IDS != 0
    assert difference(model(*inputs)[real], gm(*inputs)[real]) < 1e-5
    told = [remark.startswith("the fast path of nn.TransformerEncoderLayer") for remark in report.remarks]
    assert told == [True] * fast


def test_layers_that_stay_hidden_are_remarked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise NotImplementedError("no such operator")

    monkeypatch.setattr(torch.export, "export", refuse)
    gm = fxdecomp.trace(drawn(nn.Sequential(nn.TransformerEncoderLayer(16, 2, 32))), image(2, 5, 16))
    assert fxdecomp.report(gm).remarks == (
        "torch.export, which would show the layers inside modules, failed: "
        "NotImplementedError: no such operator",
    )
