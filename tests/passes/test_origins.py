"""A chain knows the layer that it came from by what was recorded, never by how it is called."""

import pytest
import torch
from torch import Tensor, nn

import fxdecomp
from fxdecomp import Policy, Rule
from fxdecomp.recovery.blocks import blocks_of


class Namesakes(nn.Module):
    """`fc`, whose bias has a second use, so that its chain sits under another name; and another layer."""

    def __init__(self, other: str) -> None:
        super().__init__()
        self.other = other
        self.fc = nn.Linear(16, 16)
        setattr(self, other, nn.Linear(16, 16))

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, self.other)(torch.tanh(self.fc(x) + self.fc.bias))


@pytest.mark.parametrize("other", ["second", "fc_chain"])
def test_a_chain_is_fitted_to_its_own_layer(other: str) -> None:
    torch.manual_seed(0)
    model, x = Namesakes(other).eval(), torch.randn(512, 16)
    gm = fxdecomp.trace(model, x)
    policy = Policy(rules=[Rule("fc", method="svd", rank=14)], require_saving=False)
    small = fxdecomp.transform(gm, policy, calibration=[x[:256], x[256:]])
    (done,) = fxdecomp.report(small).applied
    assert done.site == "fc"
    assert done.chain.startswith("fc_chain")
    with torch.no_grad():
        wanted, got = model(x), small(x)
    assert float((wanted - got).norm() / (wanted - wanted.mean(0)).norm()) < 0.1
    (block,) = blocks_of(small, gm)
    assert block.target == next(node.name for node in gm.graph.nodes if node.target == "fc")
