"""`transform`: the passes, in reading order."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from concurrent.futures import Executor
from contextlib import suppress

import torch
from torch.fx import GraphModule

from fxdecomp.calibration import Batch, Calibration
from fxdecomp.calibration.competing import better, is_doubtful
from fxdecomp.calibration.judging import judged_inputs, with_quality
from fxdecomp.errors import BudgetError, PolicyError
from fxdecomp.graphs.copies import copy_owning_tensors
from fxdecomp.graphs.inputs import require_graph
from fxdecomp.graphs.records import Record, record_of
from fxdecomp.graphs.untouched import one_at_a_time, unchanged_buffers
from fxdecomp.passes import DecomposeLayers, FoldBatchNorm, RefitChains
from fxdecomp.plans import Plan
from fxdecomp.policy import Latency, Policy
from fxdecomp.progress import Progress, silent
from fxdecomp.quality import LEAST_AGREEMENT

_log = logging.getLogger(__name__)


@one_at_a_time
def transform(
    gm: GraphModule,
    policy: Policy,
    *,
    calibration: Calibration | Iterable[Batch] | None = None,
    executor: Executor | None = None,
    least_agreement: float = LEAST_AGREEMENT,
    progress: Progress = silent,
) -> GraphModule:
    """Decompose the layers of a graph as a policy says.

    Args:
        gm: A traced network with recorded shapes, from `trace`; it is not changed.
        policy: Methods and ranks by layer.
        calibration: Unlabelled inputs, as an iterable of batches (tensors, tuples, dicts) or a `Calibration`
            with options. The decompositions are then fitted to the layers' outputs on seven eighths of them;
            where these are few or the result is poor, it competes with what the weights alone give on the
            rest, and the better is returned. Fewer than 4 inputs are not fitted to.
        executor: Takes the numerical work at the layers: any `concurrent.futures.Executor`, such as a process
            pool or Dask's `client.get_executor()`. The result is the same, bit for bit: each worker computes
            on as many threads as torch uses here (`torch.set_num_threads(1)` before, for a worker a core).
        least_agreement: A result that agrees less with `gm` is warned of, in the log and in the report.
        progress: Told of every finished layer.

    Returns:
        A new GraphModule, which shares no tensor with `gm`; `report` tells what became of each layer, and in
        `quality` how far the outputs are from those of `gm`: on an eighth of the calibration, to which
        nothing is fitted, or on the example inputs of `trace`.

    Raises:
        CalibrationError: The calibration holds NaN or does not fit the network.
        PolicyError: The policy does not fit the network.
        FxdecompError: The graph has no recorded shapes, or is no GraphModule.

    Example:
        >>> import torch, fxdecomp
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(16, 32, 3, padding=1), torch.nn.ReLU())
        >>> gm = fxdecomp.trace(model, torch.randn(1, 16, 8, 8))
        >>> small = fxdecomp.transform(gm, fxdecomp.Policy(method="tucker2", rank=(8, 4)))
        >>> [node.target for node in small.graph.nodes if node.op == "call_module"]
        ['0.pointwise_in', '0.core', '0.pointwise_out', '1']
    """
    require_graph(gm, "transform")
    if not isinstance(policy, Policy):
        raise PolicyError(
            f"transform takes a Policy, got {type(policy).__name__}; use Policy(method='tucker2')"
        )
    folded = FoldBatchNorm()(gm)
    data, judged = judged_inputs(gm, None if calibration is None else Calibration.of(calibration))

    def made(wanted: Policy, fitted_to: Calibration | None) -> GraphModule:
        with unchanged_buffers(gm):
            small = DecomposeLayers(wanted, fitted_to, executor, progress)(folded)
            if fitted_to is not None and fitted_to.refit:
                small = RefitChains(folded, fitted_to, progress)(small)
        with torch.inference_mode(False):
            return with_quality(copy_owning_tensors(small, gm), gm, judged, least_agreement)

    result = made(policy, data)
    if data is not None and is_doubtful(result, data) and not isinstance(policy.budget, Latency):
        with suppress(BudgetError):  # which the weights alone may not meet: heads then stay
            result = better(result, made(policy if policy.budget else _replayed(result), None))
    quality = (record_of(result) or Record()).quality
    if quality is not None and quality.warning:
        _log.warning("%s", quality.warning)
    return result


def _replayed(small: GraphModule) -> Policy:
    """The policy of the same layers, methods and ranks."""
    record = record_of(small) or Record()
    return Policy.from_plan(Plan.from_dict(record.plan or {}))
