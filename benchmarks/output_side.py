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
from fxdecomp.decompositions import problems_of
from fxdecomp.decompositions.base import measured_error
from fxdecomp.decompositions.factorising import Solution, Task, factorise, relative_error
from fxdecomp.fitting.output_side import OutputSide, behind
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
INPUTS, PROJECTIONS = 48, 8
Sides = dict[str, OutputSide]


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


def weighed_factorise(sides: Sides) -> Callable[[Task], Solution | Refusal]:
    """The package's `factorise` with the output side weighed; errors are told as before."""

    def weighed(task: Task) -> Solution | Refusal:
        if task.site not in sides or task.problems is None:  # p = 0, or groups
            return factorise(task)
        root = sides[task.site].root
        known = tuple(problem.moments for problem in task.problems if problem.moments is not None)
        weight, bias = root(task.weight), None if task.bias is None else root(task.bias)
        problems = problems_of(weight, task.specs[0], known)
        found = factorise(replace(task, weight=weight, bias=bias, problems=problems))
        if isinstance(found, Refusal):
            return found
        chain = behind(root.inverse, found.chain)
        kernel = chain.composed_weight()
        return Solution(chain, relative_error(task.weight, kernel), measured_error(task.problems, (kernel,)))

    return weighed


def refitted(refitting: RefitChains, chains: GraphModule, sides: Sides) -> GraphModule:
    """What the package's refit makes of chains, with these weights in the place of its own."""
    return replace(refitting, sides=lambda *_: sides)(chains)


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
        with tempfile.TemporaryDirectory() as folder:
            known = Path(folder) / "study"  # all but the other powers' chains
            plain: list[GraphModule] = []
            for power in POWERS:
                study.save(known)
                own = fxdecomp.study(gm, data, saved=known)
                sides = {name: OutputSide.of(S, power) for name, S in moments.items()} if power else {}
                with patch("fxdecomp.passes.decompose_layers.factorise", weighed_factorise(sides)):
                    chains = DecomposeLayers(policy, own.work)(own.folded)
                assert own.work.calibration is not None
                refitting = RefitChains(own.folded, own.work.calibration)
                found = [chains, refitted(refitting, chains, {})]
                if power:
                    found += [refitted(refitting, each, sides) for each in (chains, *plain)]
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
