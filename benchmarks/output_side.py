"""A layer's error weighed by what the network's outputs make of it, against every output channel alike.

    python -m benchmarks.output_side [--rounds 30] [--seed 0] [--only "residual network" ...]

With `S = E[g g^T]`, g the gradient of a random projection of the network's outputs with respect to a layer's
output y, the layer's chain is made for `M W` with `M = S^(p/2)`, and its last stage is multiplied by `M^-1`:

    minimise  tr (W - W')^T S^p (W - W') Sigma        p = 0: all outputs alike, 1/2: the root, 1: the whole

At a uniform share of the ranks, and at the ranks that budgets of `MACs` find, the same for all p. Fitted to
256 unlabelled digits, untrained after; printed are the relative error of the outputs on the 500 that nothing
saw and the accuracy there: as decomposed, after a refit with all channels alike, after a refit with the same
weights in it, and after that of the chains for p = 0. The package itself weighs the refit by the root; here
that is left out, to be done from outside. The seed draws network, calibration and projections.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, fx, nn
from torch.fx import GraphModule

import fxdecomp
from benchmarks.digit_networks import TRAINED, Transformer, digit_cnn, digit_images, trained
from benchmarks.joint import inception, transformer
from fxdecomp import Policy, Ratio, Rule
from fxdecomp.calibration.moments import Moments
from fxdecomp.chains import Chain
from fxdecomp.decompositions import problems_of
from fxdecomp.decompositions.base import measured_error
from fxdecomp.decompositions.factorising import Solution, Task, factorise, relative_error
from fxdecomp.fitting.refitting import JointMoments, refit
from fxdecomp.passes import DecomposeLayers, RefitChains
from fxdecomp.reasons import Refusal
from fxdecomp.sites import survey

NETWORKS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "residual network": (digit_cnn, "spatial_svd"),
    "transformer": (Transformer, "svd"),
    "gated transformer": (lambda: transformer(gated=True), "svd"),
    "inception": (inception, "spatial_svd"),
}
"""How each is made, and the method at the uniform rank."""
RANK, BUDGETS, POWERS = 0.5, (0.5, 0.35, 0.25), (0.0, 0.5, 1.0)
INPUTS, PROJECTIONS, FLOOR = 48, 8, 0.03
Roots = dict[str, tuple[Tensor, Tensor]]  # M and its inverse for each layer, in float64


def second_moments(gm: GraphModule, images: Tensor, seed: int) -> dict[str, Tensor]:
    """`S` of every layer without groups, `[out, out]`, over all positions of all inputs."""
    layers = {call.node.name: site for site in survey(gm).sites for call in site.calls}
    kept: dict[str, Tensor] = {}

    class Watched(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if n.name not in layers:
                return value
            kept[n.name] = value if value.requires_grad else value.requires_grad_()
            return 1.0 * value  # operations in place must not change what was kept

    scores = Watched(gm).run(images)
    generator = torch.Generator().manual_seed(seed)
    found = {site.name: torch.zeros((), dtype=torch.float64) for site in layers.values()}
    for _ in range(PROJECTIONS):
        signs = torch.randint(0, 2, scores.shape, generator=generator) * 2.0 - 1
        slopes = torch.autograd.grad(scores, list(kept.values()), signs, retain_graph=True)
        for name, slope in zip(kept, slopes, strict=True):
            site = layers[name]
            rows = slope.movedim(-1 - site.spec.ndim, -1).flatten(0, -2).double()
            found[site.name] = found[site.name] + rows.T @ rows / len(rows) / PROJECTIONS
    return {site.name: found[site.name] for site in layers.values() if site.spec.groups == 1}


def roots_of(moments: dict[str, Tensor], power: float) -> Roots:
    """`M` and `M^-1`; no eigenvalue of `S` is taken for less than a share of their mean."""
    found: Roots = {}
    for name, S in moments.items() if power else ():
        values, vectors = torch.linalg.eigh(S)
        scales = (values / values.mean()).clamp_min(FLOOR) ** (power / 2)
        found[name] = ((vectors * scales) @ vectors.T, (vectors / scales) @ vectors.T)
    return found


def times(M: Tensor, weight: Tensor) -> Tensor:
    """A weight or bias `[out, ...]` with its outputs multiplied by a matrix."""
    return (M @ weight.reshape(len(weight), -1).double()).reshape(weight.shape).to(weight.dtype)


def seen_through(M: Tensor, chain: Chain) -> Chain:
    """A chain behind which the outputs are multiplied by a matrix."""
    bias = None if chain.bias is None else times(M, chain.bias)
    return replace(chain, weights=(*chain.weights[:-1], times(M, chain.weights[-1])), bias=bias)


def weighed_factorise(roots: Roots) -> Callable[[Task], Solution | Refusal]:
    """The package's `factorise` with the output side weighed; errors are told as before."""

    def weighed(task: Task) -> Solution | Refusal:
        if task.site not in roots or task.problems is None:  # p = 0, or groups
            return factorise(task)
        M, inverse = roots[task.site]
        known = tuple(problem.moments for problem in task.problems if problem.moments is not None)
        weight, bias = times(M, task.weight), None if task.bias is None else times(M, task.bias)
        problems = problems_of(weight, task.specs[0], known)
        found = factorise(replace(task, weight=weight, bias=bias, problems=problems))
        if isinstance(found, Refusal):
            return found
        chain = seen_through(inverse, found.chain)
        kernel = chain.composed_weight()
        return Solution(chain, relative_error(task.weight, kernel), measured_error(task.problems, (kernel,)))

    return weighed


def weighed_refit(roots: Roots, gm: GraphModule) -> Callable[..., Chain]:
    """The package's `refit`, the outputs weighed by any power."""
    layers = {site.weight.data_ptr(): site.name for site in survey(gm).sites}

    def weighed(fit: JointMoments, held: JointMoments, chain: Chain, layer: Tensor) -> Chain:
        if (name := layers[layer.data_ptr()]) not in roots:
            return refit(fit, held, chain, layer)
        M, inverse = roots[name]

        def outputs(known: JointMoments) -> JointMoments:
            T = torch.eye(known.inputs + len(M), dtype=M.dtype)
            T[known.inputs :, known.inputs :] = M
            seen, mean = known.moments.covariance.double() @ T, T @ known.moments.mean.double()
            seen = seen if known.moments.is_root else T @ seen
            return JointMoments(Moments(seen, mean, known.moments.count), known.inputs)

        given = seen_through(M, chain)
        new = refit(outputs(fit), outputs(held), given, times(M, layer))
        return chain if new is given else seen_through(inverse, new)

    return weighed


@torch.no_grad()
def told(network: GraphModule, gm: GraphModule, images: Tensor, labels: Tensor) -> str:
    """The error of the outputs and the accuracy on what nothing saw."""
    scores, wanted = network(images[TRAINED:]), gm(images[TRAINED:])
    right = (scores.argmax(1) == labels[TRAINED:]).float().mean()
    return f"{(scores - wanted).norm() / (wanted - wanted.mean()).norm():.2%} {right:.1%}"


def compare(name: str, rounds: int, seed: int) -> None:
    """Print a line for each policy and power."""
    (images, labels), (build, method) = digit_images(), NETWORKS[name]
    gm = fxdecomp.trace(trained(lambda: (torch.manual_seed(seed), build())[1], 1, rounds), images[:1])
    data = list(torch.split(images[256 * seed : 256 * seed + 256], 32))
    policies = {f"MACs {share}": Policy(budget=fxdecomp.MACs(share)) for share in BUDGETS}
    study = fxdecomp.study(gm, data)
    layers = survey(study.folded)
    body = {site.name for site in layers.sites} - layers.heads
    rules = [Rule(each, method=method, rank=Ratio(RANK)) for each in sorted(body)]
    policies[f"{method} {RANK}"] = Policy(rules=rules, require_saving=False)
    moments = second_moments(study.folded, torch.cat(data)[:INPUTS], seed)
    for kind, policy in policies.items():
        alike: Any = patch("fxdecomp.passes.refit_chains.output_sides", lambda *_: {})
        with alike, tempfile.TemporaryDirectory() as folder:
            known = Path(folder) / "study"  # all but the other powers' chains
            plain: list[GraphModule] = []
            for power in POWERS:
                study.save(known)
                own, roots = fxdecomp.study(gm, data, saved=known), roots_of(moments, power)
                with patch("fxdecomp.passes.decompose_layers.factorise", weighed_factorise(roots)):
                    chains = DecomposeLayers(policy, own.work)(own.folded)
                assert own.work.calibration is not None
                refitting = RefitChains(own.folded, own.work.calibration)
                found = [chains, refitting(chains)]
                if power:
                    with patch("fxdecomp.passes.refit_chains.refit", weighed_refit(roots, own.folded)):
                        found += [refitting(each) for each in (chains, *plain)]
                else:
                    study, plain = own, [chains]
                results = (told(network, gm, images, labels) for network in found)
                print(f"{name}, seed {seed}, {kind}, p {power}:", ", ".join(results), flush=True)


def main() -> None:
    """Compare on every network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seed", type=int, choices=range(5), default=0)
    parser.add_argument("--only", choices=[*NETWORKS], nargs="*", default=[*NETWORKS])
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.only:
        compare(name, options.rounds, options.seed)


if __name__ == "__main__":
    main()
