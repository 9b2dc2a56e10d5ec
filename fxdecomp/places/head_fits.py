"""Narrower heads in closed form: of queries and keys what products keep, of values what is read of them.

A pair of heads is balanced by the second moments of its queries and keys; a head of values by those of what
attention makes of it and by the weights that read it. Then the reader is fitted by least squares to all heads
together, and its bias keeps the mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fxdecomp.calibration.moments import Moments
from fxdecomp.fitting.balanced import Balanced, balanced
from fxdecomp.linalg.cholesky import cholesky
from fxdecomp.places.heads import Heads
from fxdecomp.sites import Site


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """What is left of a reader's inputs, and what they were as far as that tells.

    Attributes:
        kept: `[fewer, in]`, the inputs that are left.
        guess: `[in, fewer]`, the inputs that there were, from those that are left.
        mean: `[in]`, what the guess is about.
        error: Squared error of the reader's output as a share of its variance.
        weight_error: `||W - W guess kept|| / ||W||`.
    """

    kept: Tensor
    guess: Tensor
    mean: Tensor
    error: float
    weight_error: float


class HeadFit:
    """What is known of the heads of some layers, for every size of a head.

    Attributes:
        heads: The layers.
        is_fitted: Whether the moments of all that is read are known.
    """

    def __init__(self, heads: Heads, moments: Mapping[str, Moments]) -> None:
        """Balance every head.

        Args:
            heads: The layers.
            moments: Of their inputs, by name; those that lack are taken for independent numbers about 0.
        """
        self.heads = heads
        self.is_fitted = moments.keys() >= {site.name for site in heads.layers}
        given = moments if self.is_fitted else {}
        seen = [_outputs(site, given.get(site.name)) for site in heads.producers]
        self._covariance = _apart([covariance for covariance, _ in seen])
        self._mean = torch.cat([mean for _, mean in seen])
        self._pairs: list[tuple[Tensor, Tensor, Balanced]] = []
        for pair in heads.pairings:
            left = [self._seen(row) for row in pair.left]
            right = [self._seen(row, with_mean=not pair.ignores_mean) for row in pair.right]
            both = balanced(torch.stack(left).sum(0), torch.stack(right).sum(0))
            self._pairs.append((pair.left, pair.right, both))
        self._values: list[tuple[Tensor, Tensor, Balanced]] = []
        if heads.reader is not None:
            self._read = heads.reader.weight.double().flatten(1).cpu()
            self._inputs, self._inputs_mean = self._read_moments(given.get(heads.reader.name))
            for row in heads.values:
                places = _places(heads.columns, row)
                blocks = [places[:, index] for index in range(places.shape[1])]
                wanted = torch.stack([self._read[:, each].T @ self._read[:, each] for each in blocks])
                mixed = torch.stack([self._inputs[each][:, each] for each in blocks])
                self._values.append((row, places, balanced(wanted.sum(0), mixed.sum(0))))

    def _seen(self, row: Tensor, *, with_mean: bool = True) -> Tensor:
        """The second moment of a head, about its mean or not."""
        mean = self._mean[row] if with_mean else torch.zeros(len(row), dtype=torch.float64)
        found: Tensor = self._covariance[row][:, row] + torch.outer(mean, mean)
        return found

    def _read_moments(self, known: Moments | None) -> tuple[Tensor, Tensor]:
        """Of the reader's inputs; where these are not known, every place gives what it has itself."""
        heads = self.heads
        if known is not None:
            return known.dense().double().cpu(), known.mean.double().cpu()
        found = torch.zeros(2 * (len(heads.columns),), dtype=torch.float64)
        for row in heads.values:
            for places in _places(heads.columns, row).T:
                found[places[:, None], places] = self._covariance[row][:, row]
        return found, torch.zeros(len(heads.columns), dtype=torch.float64)

    def pair_error(self, kept: int) -> float:
        """Squared error of the products of queries and keys, as a share of their squares."""
        power = sum(each.power for *_, each in self._pairs)
        return sum(each.lost(kept) for *_, each in self._pairs) / power if power else 0.0

    def reading(self, kept: int) -> Reading:
        """What the reader gets of heads of a size, and what it makes of that.

        Cost: that of a system of as many unknowns as inputs are left.
        """
        fewer = self.heads.inner(kept).left(self.heads.columns)
        left = torch.zeros(len(fewer), len(self.heads.columns), dtype=torch.float64)
        guess = torch.zeros_like(left.T)
        for row, places, each in self._values:
            own = _places(fewer, self.heads.inner(kept).left(row))
            for before, after in zip(places.T, own.T, strict=True):
                left[after[:, None], before] = each.right[:kept]
                guess[before[:, None], after] = each.left[:kept].T
        if self.is_fitted:
            rest = self._inputs - guess @ (left @ self._inputs)
            lower = cholesky(left @ self._inputs @ left.T)
            guess = guess + torch.cholesky_solve((rest @ left.T).T, lower).T
        gone = self._read - (self._read @ guess) @ left
        power = float(((self._read @ self._inputs) * self._read).sum())
        lost = float(((gone @ self._inputs) * gone).sum())
        error = max(lost, 0.0) / power if power > 0 else 0.0
        size = float(self._read.norm())
        weight_error = float(gone.norm()) / size if size > 0 else 0.0
        return Reading(left, guess, self._inputs_mean, error, weight_error)

    def outputs(self, kept: int) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Weights and biases of the producers with heads of a size, by name, in float64."""
        inner = self.heads.inner(kept)
        maps = [(row, each.left) for left, _, each in self._pairs for row in left]
        maps += [(row, each.right) for _, right, each in self._pairs for row in right]
        maps += [(row, each.right) for row, _, each in self._values]
        found, start, new = {}, 0, 0
        for site in self.heads.producers:
            channels = site.spec.out_channels
            whole = torch.zeros(channels // inner.size * kept, channels, dtype=torch.float64)
            for row, every in maps:
                if start <= int(row[0]) < start + channels:
                    whole[(inner.left(row) - new)[:, None], row - start] = every[:kept]
            weight = whole.to(site.weight.device) @ site.weight.double().flatten(1)
            bias = None if site.bias is None else whole.to(site.bias.device) @ site.bias.double()
            found[site.name] = weight.reshape(-1, *site.weight.shape[1:]), bias
            start, new = start + channels, new + len(whole)
        return found

    def keys(self, kept: int) -> dict[str, Tensor]:
        """What would change layers' outputs so that products come out alike, `[out, out]`, by name."""
        found, start = {}, 0
        for site in self.heads.producers:
            channels = site.spec.out_channels
            whole = torch.eye(channels, dtype=torch.float64)
            rows = [(row - start, each) for _, right, each in self._pairs for row in right]
            own = [(row, each) for row, each in rows if 0 <= int(row[0]) < channels]
            for row, each in own:
                whole[row[:, None], row] = each.left[:kept].T @ each.right[:kept]
            if own:
                found[site.name] = whole
            start += channels
        return found


def _apart(blocks: Sequence[Tensor]) -> Tensor:
    """Covariances of layers that do not vary together."""
    whole = torch.zeros(2 * (sum(map(len, blocks)),), dtype=torch.float64)
    start = 0
    for each in blocks:
        whole[start : start + len(each), start : start + len(each)] = each
        start += len(each)
    return whole


def _outputs(site: Site, known: Moments | None) -> tuple[Tensor, Tensor]:
    """Covariance and mean of a layer's outputs, float64; of independent inputs where these are not known."""
    weight = site.weight.double().flatten(1)
    bias = torch.zeros(len(weight), dtype=torch.float64) if site.bias is None else site.bias.double().cpu()
    if known is None:
        return (weight @ weight.T).cpu(), bias
    weight = weight.to(known.mean.device)
    return known.output_covariance(weight).cpu(), (weight @ known.mean.double()).cpu() + bias


def _places(columns: Tensor, row: Tensor) -> Tensor:
    """Where the channels of a head are among the inputs of a layer, `[size, times]`."""
    found = (columns[None, :] == row[:, None]).nonzero()[:, 1]
    return found.reshape(len(row), -1)
