"""What became of each layer, as data: `Applied`, `Skipped`, `Folded` and `Narrowed`."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fxdecomp.layers import Count
from fxdecomp.reasons import Reason


@dataclass(frozen=True, slots=True)
class Applied:
    """A layer that was replaced by a chain.

    Attributes:
        site: Qualified name of the layer in the graph before, by which rules and plans know it.
        layer: The layer in words, such as `Conv2d 64->128, 3x3`.
        method: Name of the decomposition.
        rank: Its rank(s).
        relative_error: `||W - W'|| / ||W||` in the Frobenius norm, W' the composed kernel.
        params_before: Weights and biases of the layer.
        params_after: Weights and biases of the chain, and the layer's own bias where something else uses it.
        macs_before: Multiply-accumulates of the layer over all its call sites, for the example batch.
        macs_after: The same of the chain.
        calls: Number of places in the graph where the layer is applied.
        stages: Names of the chain's stages, in order.
        chain: Name under which the stages sit, where something else stands under the layer's own; else empty.
        shares: Names of the other layers with which it shares all stages but the last. The shared stages are
            among those of the first of them all, and counted there.
        before_own: Qualified names of the shared stages, where they are another layer's; they come first.
        output_error: `E||y - y'||^2 / E||y - mean(y)||^2` on calibration data, where there was any; after a
            refit, `y'` is what the chain gives behind the chains before it.

    Example:
        >>> import torch, fxdecomp
        >>> gm = fxdecomp.trace(torch.nn.Sequential(torch.nn.Linear(64, 32)), torch.randn(1, 64))
        >>> small = fxdecomp.transform(gm, fxdecomp.Policy(method="svd", rank=4))
        >>> done = fxdecomp.report(small).applied[0]
        >>> done.layer, done.method, done.rank, done.stages
        ('Linear 64->32', 'svd', (4,), ('pointwise_in', 'pointwise_out'))
        >>> done.params_before, done.params_after
        (2080, 416)
    """

    site: str
    layer: str
    method: str
    rank: tuple[int, ...]
    relative_error: float
    params_before: int
    params_after: int
    macs_before: int
    macs_after: int
    calls: int
    stages: tuple[str, ...]
    output_error: float | None = None
    chain: str = ""
    shares: tuple[str, ...] = ()
    before_own: tuple[str, ...] = ()

    @property
    def stage_names(self) -> tuple[str, ...]:
        """The qualified names of the stages that are its own."""
        place = self.chain or self.site
        return tuple(f"{place}.{stage}" if stage else place for stage in self.stages)

    @property
    def all_stage_names(self) -> tuple[str, ...]:
        """Those of all its stages, in the order in which they are applied."""
        return (*self.before_own, *self.stage_names)

    @property
    def before(self) -> Count:
        """What the layer took."""
        return Count(self.macs_before, self.params_before)

    @property
    def after(self) -> Count:
        """What the chain takes."""
        return Count(self.macs_after, self.params_after)


@dataclass(frozen=True, slots=True)
class Skipped:
    """A layer that was left alone, and why.

    Attributes:
        site: Qualified name of the layer.
        layer: The layer in words.
        reason: The kind of reason.
        detail: The particulars, with numbers.
        params: Weights and biases of the layer.
        macs: Its multiply-accumulates over all its call sites, 0 where unknown.

    Example:
        >>> import torch, fxdecomp
        >>> gm = fxdecomp.trace(torch.nn.Sequential(torch.nn.Linear(64, 32)), torch.randn(1, 64))
        >>> policy = fxdecomp.Policy(method="svd", rank=32)
        >>> left = fxdecomp.report(fxdecomp.transform(gm, policy)).skipped[0]
        >>> left.site, left.reason is fxdecomp.Reason.NO_SAVING
        ('0', True)
    """

    site: str
    layer: str
    reason: Reason
    detail: str = ""
    params: int = 0
    macs: int = 0

    @property
    def sentence(self) -> str:
        """Reason and detail in one line.

        Example:
            >>> Skipped("norm", "", Reason.ELEMENTWISE, "five of them").sentence[-54:]
            'or fill: there is no matrix to decompose; five of them'
        """
        colon = ";" if ":" in self.reason else ":"
        return f"{self.reason}{colon} {self.detail}" if self.detail else str(self.reason)

    @property
    def before(self) -> Count:
        """What the layer takes."""
        return Count(self.macs, self.params)

    @property
    def after(self) -> Count:
        """Likewise."""
        return self.before

    @property
    def macs_before(self) -> int:
        """As of an `Applied`: a layer that was left alone costs what it did."""
        return self.macs

    @property
    def macs_after(self) -> int:
        """Likewise."""
        return self.macs

    @property
    def params_before(self) -> int:
        """Likewise."""
        return self.params

    @property
    def params_after(self) -> int:
        """Likewise."""
        return self.params


@dataclass(frozen=True, slots=True)
class Folded:
    """A BatchNorm that was folded into the layers before it, or (`reason` set) was left in the graph.

    One that stands at several places may be both.

    Example:
        >>> import torch, fxdecomp
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3), torch.nn.BatchNorm2d(8))
        >>> gm = fxdecomp.trace(model, torch.randn(1, 8, 8, 8))
        >>> small = fxdecomp.transform(gm, fxdecomp.Policy(method="tucker2", rank=2))
        >>> fxdecomp.report(small).record.folds
        (Folded(norm='1', into='0', reason=''),)
    """

    norm: str
    into: str | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Narrowed:
    """A layer with fewer outputs or inputs than it had, or (`reason` set) one whose outputs were to be fewer.

    Attributes:
        site: Qualified name of the layer.
        layer: The layer in words, as it was.
        params_before: Weights and biases that it had.
        macs_before: Multiply-accumulates that it took.
        outputs: Outputs that are left, None where all are.
        inputs: Inputs that are left, likewise.
        weight_error: `||W - W'|| / ||W||`, what is gone taken for zero; of heads, of the products that they
            are used in.
        output_error: Of the layer that reads the narrower axis: the squared error of its output as a share of
            its variance, on the calibration; of layers that give queries or keys, of their products. None
            without.
        reason: Why its outputs stay.
    """

    site: str
    layer: str
    params_before: int
    macs_before: int
    outputs: int | None = None
    inputs: int | None = None
    weight_error: float = 0.0
    output_error: float | None = None
    reason: str = ""

    @property
    def is_changed(self) -> bool:
        """Whether the layer is another one now."""
        return self.outputs is not None or self.inputs is not None

    def seen_in(self, outcome: Outcome) -> Outcome:
        """The outcome of the layer as it is now, told of the layer as it was."""
        if not self.is_changed:
            if isinstance(outcome, Skipped) and outcome.reason is Reason.NOT_SELECTED:
                return replace(outcome, reason=Reason.WIDTH, detail=self.reason)
            return outcome
        if isinstance(outcome, Applied):
            params, macs = self.params_before, self.macs_before
            return replace(outcome, layer=self.layer, params_before=params, macs_before=macs)
        return Applied(
            self.site,
            self.layer,
            WIDTH,
            tuple(each for each in (self.inputs, self.outputs) if each is not None),
            self.weight_error,
            self.params_before,
            outcome.params,
            self.macs_before,
            outcome.macs,
            calls=1,
            stages=("",),
            output_error=self.output_error,
        )


WIDTH = "width"
"""The method of a layer that was narrowed and not decomposed besides."""

Outcome = Applied | Skipped
