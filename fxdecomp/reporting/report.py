"""`report`: what became of everything that holds weights in a graph, and what else is known of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.fx import GraphModule

from fxdecomp.export.benchmark_report import BenchmarkReport
from fxdecomp.export.kernel_map import KernelMap
from fxdecomp.files import check_file, write_text
from fxdecomp.graphs.inputs import require_graph
from fxdecomp.graphs.records import Record, record_of
from fxdecomp.outcomes import Applied, Outcome, Skipped
from fxdecomp.plans import Plan
from fxdecomp.quality import Quality
from fxdecomp.reasons import Reason
from fxdecomp.reporting.error_path import LayerError
from fxdecomp.reporting.evidence import Frontier, Lowered, Variant, frontier_of
from fxdecomp.reporting.page import page_html
from fxdecomp.reporting.text import change, table_of
from fxdecomp.reporting.verdict import Verdict, verdict_of
from fxdecomp.sites import survey

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from fxdecomp.searching.trials import SearchResult


@dataclass(frozen=True, slots=True)
class Report:
    """All that holds weights in a graph exactly once, with what was done to it or why it was left alone.

    Parameters are those of the module, each tensor counted once; a weight that is computed from stored
    tensors (`weight_norm`, parametrisations) counts as it is used, a buffer where it is a layer's weight.
    Multiply-accumulates are those of products with weights.

    Attributes:
        record: The history of the graph.
        before: The graph before, None where it was not given.
        after: The graph itself.
        benchmark: Measured times; the first of its models is the network before.
        roofline: What the machine's kernels can do.
        frontier: What a search judged.
        variants: Quality and size of each network, for the summary.
        command: The command that made it all.
        errors: What each chain loses by itself, behind those before it, and at the outputs, from
            `error_path.error_along`.
        lowered: What became of the files in lower precision, by name.

    Example:
        >>> import torch, fxdecomp
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(16, 32, 3, padding=1), torch.nn.ReLU())
        >>> gm = fxdecomp.trace(model, torch.randn(1, 16, 8, 8))
        >>> report = fxdecomp.report(fxdecomp.transform(gm, fxdecomp.Policy(method="tucker2", rank=(8, 4))))
        >>> report.macs_before, report.macs_after
        (294912, 38912)
    """

    record: Record
    before: GraphModule | None = field(default=None, repr=False, compare=False)
    after: GraphModule | None = field(default=None, repr=False, compare=False)
    benchmark: BenchmarkReport | None = field(default=None, repr=False)
    roofline: KernelMap | None = field(default=None, repr=False)
    frontier: Frontier | None = field(default=None, repr=False)
    variants: tuple[Variant, ...] = ()
    command: str = ""
    errors: tuple[LayerError, ...] = ()
    lowered: Mapping[str, Lowered] = field(default_factory=dict)

    @property
    def outcomes(self) -> tuple[Outcome, ...]:
        """Conv and Linear layers in the order of the graph, then all else that holds weights."""
        return self.record.outcomes

    @property
    def applied(self) -> tuple[Applied, ...]:
        """The layers that were replaced by chains."""
        return tuple(o for o in self.outcomes if isinstance(o, Applied))

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """The layers that were left alone."""
        return tuple(o for o in self.outcomes if isinstance(o, Skipped))

    @property
    def modified(self) -> bool:
        """Whether any layer was replaced."""
        return bool(self.applied)

    @property
    def plan(self) -> Plan:
        """Method and rank of every layer, for `Policy.from_plan`; empty before the first transform."""
        return self.record.plan or Plan(())

    @property
    def macs_before(self) -> int:
        """Multiply-accumulates of all products with weights before."""
        return sum(o.macs_before for o in self.outcomes)

    @property
    def macs_after(self) -> int:
        """Multiply-accumulates of all products with weights now."""
        return sum(o.macs_after for o in self.outcomes)

    @property
    def params_before(self) -> int:
        """Parameters before, those of BatchNorms that were folded among them."""
        return sum(o.params_before for o in self.outcomes) + self.record.dropped_params

    @property
    def params_after(self) -> int:
        """Parameters now."""
        return sum(o.params_after for o in self.outcomes)

    @property
    def summary(self) -> str:
        """What was done, in one line."""
        return (
            f"{len(self.applied)} of {len(self.outcomes)} layers replaced; "
            f"MACs {change(self.macs_before, self.macs_after)}, "
            f"params {change(self.params_before, self.params_after)}"
        )

    @property
    def quality(self) -> Quality | None:
        """How far the network is from the original, and on what that was measured; None where it was not."""
        return self.record.quality

    @property
    def verdict(self) -> Verdict | None:
        """Which of the networks of the summary to ship; None where they were not given."""
        return verdict_of(self.benchmark, self.variants)

    @property
    def remarks(self) -> tuple[str, ...]:
        """BatchNorms that were left in the graph, and the notes of the passes."""
        left = (f"{f.norm}: left in the graph, {f.reason}" for f in self.record.folds if f.reason)
        return (*left, *self.record.notes)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON data."""
        return self.record.to_dict() | {
            "macs_before": self.macs_before,
            "macs_after": self.macs_after,
            "params_before": self.params_before,
            "params_after": self.params_after,
        }

    def to_html(self, path: str | Path, *, title: str = "fxdecomp report") -> None:
        """Write one HTML page that needs no other file and no network, whole or not at all.

        It shows what the report holds: see `report` for what may be given to it.

        Args:
            path: The file; its folder must exist.
            title: The page's heading.

        Raises:
            OutputError: The file cannot be written, or its folder does not exist.
        """
        check_file(Path(path))
        write_text(Path(path), page_html(self, title))

    def plot_layers(self, axes: Axes | None = None) -> Axes:
        """A bar per layer, before and after: times where a benchmark was given, else multiply-accumulates.

        Args:
            axes: Where to draw; a new figure by default.

        Raises:
            FxdecompError: matplotlib is not installed, or there is no layer.
        """
        from fxdecomp.reporting.plots import plot_layers

        return plot_layers(self, axes)

    def plot_frontier(self, axes: Axes | None = None) -> Axes:
        """Cost against quality of what a search judged, with the chosen network marked.

        Args:
            axes: Where to draw; a new figure by default.

        Raises:
            FxdecompError: matplotlib is not installed, or the report holds no search.
        """
        from fxdecomp.reporting.plots import plot_frontier

        return plot_frontier(self, axes)

    def plot_kernels(self, axes: Axes | None = None) -> Axes:
        """The roofline with the kernels under it, or else where the time of each benchmarked model goes.

        Args:
            axes: Where to draw; a new figure by default.

        Raises:
            FxdecompError: matplotlib is not installed, or the report holds neither.
        """
        from fxdecomp.reporting.plots import plot_kernels

        return plot_kernels(self, axes)

    def _repr_html_(self) -> str:
        from fxdecomp.reporting.page import fragment_html

        return fragment_html(self)

    def __str__(self) -> str:
        lines = [*table_of(self.outcomes), self.summary]
        lines += [] if self.quality is None else [self.quality.sentence]
        lines += self.remarks
        return "\n".join(lines + ([self.quality.warning] if self.quality and self.quality.warning else []))


def report(
    gm: GraphModule,
    *,
    before: GraphModule | None = None,
    benchmark: BenchmarkReport | None = None,
    roofline: KernelMap | None = None,
    search: SearchResult | None = None,
    variants: Sequence[Variant] = (),
    command: str = "",
) -> Report:
    """What became of everything that holds weights in a graph.

    Args:
        gm: A graph from `transform`; the layers of one that was only traced are listed as untouched.
        before: The graph before, for the pictures of both.
        benchmark: Times of both networks, the one before first.
        roofline: From `export.bench_kernels`.
        search: The search that found the graph.
        variants: Quality and size of each network, for the summary.
        command: The command that made it all.

    Raises:
        FxdecompError: `gm` is no GraphModule.

    Example:
        >>> import torch, fxdecomp
        >>> gm = fxdecomp.trace(torch.nn.Sequential(torch.nn.Linear(4, 2)), torch.randn(1, 4))
        >>> print(fxdecomp.report(gm).skipped[0].layer)
        Linear 4->2
    """
    require_graph(gm, "report")
    record = record_of(gm) or Record()
    if record.policy is None:
        found = survey(gm)
        untouched = tuple(site.skipped(Reason.NOT_TRANSFORMED) for site in found.sites)
        outcomes = (*untouched, *found.skipped, *found.others)
        record = Record(record.traced_with, outcomes, record.folds, None, record.notes)
    return Report(
        record,
        before,
        gm,
        benchmark,
        roofline,
        None if search is None else frontier_of(search),
        tuple(variants),
        command,
    )
