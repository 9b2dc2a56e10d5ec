import torch
from torch import nn

import fxdecomp
from fxdecomp.calibration import Calibration
from fxdecomp.calibration.moments import MomentsSum
from fxdecomp.calibration.output_gradients import output_gradients
from fxdecomp.chains import Chain
from fxdecomp.decompositions import method_named
from fxdecomp.fitting.output_side import OutputSide
from fxdecomp.fitting.refitting import JointMoments, matrix_of, refit
from fxdecomp.layers import LayerSpec
from fxdecomp.sites import survey


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def joint(z: torch.Tensor, y: torch.Tensor) -> JointMoments:
    total = MomentsSum()
    total.add(torch.cat((z, y), dim=1))
    return JointMoments.of(total.moments(), z.shape[1])


def case(count: int) -> tuple[JointMoments, JointMoments, Chain, torch.Tensor]:
    layer = normal(5, 6, seed=0)
    fit, held = (joint(z, z @ layer.T) for z in (normal(count, 6, seed=1), normal(count, 6, seed=2)))
    form = method_named("svd").form(LayerSpec(6, 5), (2,))
    weights = normal(2, 6, seed=3), normal(5, 2, seed=4)
    return fit, held, Chain(form, weights, layer.new_zeros(5)), layer


def test_outputs_that_matter_alike_are_fitted_as_without():
    for count in (4, 400):
        wanted, got = refit(*case(count)), OutputSide.of(3 * torch.eye(5).double()).refit(*case(count))
        assert torch.allclose(matrix_of(got), matrix_of(wanted), atol=1e-9)
        assert torch.allclose(got.bias, wanted.bias, atol=1e-9)


def test_what_matters_more_comes_closer():
    *_, layer = case(400)
    S = torch.diag(torch.tensor([1.0, 1.0, 1.0, 1.0, 400.0], dtype=torch.float64))
    plain, weighed = (matrix_of(f(*case(400))) for f in (refit, OutputSide.of(S).refit))
    lost = [(matrix - layer).square().sum(1) for matrix in (plain, weighed)]
    assert lost[1][4] < 0.5 * lost[0][4]
    assert lost[1].sum() > lost[0].sum()


class Net(nn.Module):
    def __init__(self, chosen: bool) -> None:
        super().__init__()
        self.one, self.two, self.chosen = nn.Linear(6, 5), nn.Linear(5, 1), chosen

    def forward(self, x):
        y = self.two(self.one(x).add_(1.0))
        return y.argmax(1) if self.chosen else y


def gradients(
    chosen: bool, room_bytes: int = 1 << 20, inputs: tuple[int, ...] = (8,)
) -> tuple[Net, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    net = Net(chosen).eval()
    gm = fxdecomp.trace(net, torch.randn(2, 6))
    with torch.no_grad():
        data = Calibration([torch.randn(count, 6) for count in inputs])
        return net, output_gradients(gm, survey(gm).sites, data, room_bytes=room_bytes)


def test_the_moment_of_the_gradients_of_a_linear_network_is_known():
    net, found = gradients(chosen=False)
    wanted = net.two.weight.double().T @ net.two.weight.double()
    assert torch.allclose(found["one"] / found["one"].trace(), wanted / wanted.trace(), atol=1e-6)


def test_fewer_gradients_than_outputs_weigh_as_their_moment_does():
    few, more = (gradients(chosen=False, inputs=each)[1]["one"] for each in ((1, 3), (1, 3, 4)))
    assert (few.shape, more.shape) == ((4, 5), (5, 5))
    identity = torch.eye(5).double()
    for count in (1, 4):
        rows = normal(count, 5, seed=7)
        found, wanted = OutputSide.of(rows), OutputSide.of(rows.T @ rows)
        assert torch.allclose(found.root(identity), wanted.root(identity), atol=1e-12)
        assert torch.allclose(found.root.inverse(wanted.root(identity)), identity, atol=1e-12)


def test_where_there_is_no_gradient_or_no_room_nothing_is_weighed():
    assert gradients(chosen=True)[1] == {}
    assert gradients(chosen=False, room_bytes=100)[1] == {}
