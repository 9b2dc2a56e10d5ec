"""`Study`: what the passes compute about a network, kept for another policy, or in a file for another day."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.fx import GraphModule

from fxdecomp.allocation.site_work import SiteWork
from fxdecomp.calibration import Batch, Calibration
from fxdecomp.calibration.competing import FEW
from fxdecomp.calibration.judging import judged_inputs
from fxdecomp.calibration.made_up import made_up
from fxdecomp.errors import CalibrationError, PolicyError, first_line
from fxdecomp.files import write_with_torch
from fxdecomp.graphs.fingerprints import fingerprint
from fxdecomp.graphs.inputs import require_graph
from fxdecomp.graphs.untouched import full_precision, one_at_a_time
from fxdecomp.passes import FoldBatchNorm
from fxdecomp.policy import Policy
from fxdecomp.version import __version__


class Study:
    """A network, its calibration, and all that was found out about its layers.

    `transform` and `search` take it in the place of the calibration. The moments of the
    layers' inputs, spectra, candidates, sensitivities and chains are kept for the next call, as far as
    `Calibration.budget_bytes` reaches; `save` writes them, of the chains those of given ranks.

    Attributes:
        gm: The network.
        calibration: The user's, None where there is none.
        folded: The same, its BatchNorms folded.
        judged: The inputs that finished networks are compared on; None where none are known.
        work: What is known of the layers, fitted to the calibration where there is enough of it.

    Example:
        >>> import torch, fxdecomp
        >>> gm = fxdecomp.trace(torch.nn.Sequential(torch.nn.Linear(64, 32)), torch.randn(1, 64))
        >>> fxdecomp.study(gm).judged.description
        'the example inputs of trace, 1 input'
    """

    def __init__(self, gm: GraphModule, calibration: Calibration | Iterable[Batch] | None = None) -> None:
        self.gm = gm
        self.folded = FoldBatchNorm()(gm)
        self.calibration = None if calibration is None else Calibration.of(calibration)
        data, self.judged = judged_inputs(gm, self.calibration)
        self.work = SiteWork(self.folded, data)
        self._versions = _versions(gm)

    @cached_property
    def weights_alone(self) -> SiteWork:
        """What the weights alone say of the layers."""
        return self.work if self.work.calibration is None else SiteWork(self.folded, None)

    @cached_property
    def made_up(self) -> SiteWork | CalibrationError:
        """What inputs that are made up say of the layers, or why there are none.

        Those are made like inputs that are fitted to, if there are any: what is judged on stays unseen.
        """
        fitted = self.work.calibration
        like = None if fitted is None else next(iter(fitted.batches))
        try:
            return SiteWork(self.folded, made_up(self.gm, like=like))
        except CalibrationError as error:
            return error

    @cached_property
    def joined(self) -> SiteWork:
        """What few inputs say of the layers, together with inputs that are made up where these can be had."""
        if not isinstance(self.made_up, SiteWork):
            return self.work
        if self.work.calibration is None:
            return self.made_up
        return SiteWork(self.folded, self.work.calibration, self.made_up.calibration)

    def work_for(self, policy: Policy) -> tuple[SiteWork, str]:
        """What is known of the layers from the calibration, from made-up inputs, or from the weights alone.

        Args:
            policy: Says whether inputs are to be made up where there are none, or few.

        Returns:
            The work, and why no inputs could be made up; empty where they could, or were not wanted.
        """
        if not policy.wants_made_up:
            return self.work, ""
        if (given := self.calibration) is not None:
            is_few = not given.made_up and given.count < FEW
            return (self.joined if is_few else self.work), ""
        if isinstance(self.made_up, SiteWork):
            return self.made_up, ""
        return self.work, f"the weights alone were used: {self.made_up}"

    def save(self, path: Path | str) -> None:
        """Write what is known, for `study(gm, calibration, saved=path)`; chains of ranks by a rule are not.

        Args:
            path: The file; it holds tensors and plain data, and appears whole or not at all.

        Raises:
            PolicyError: The network has changed since it was studied.
            WriteError: The file cannot be written.
        """
        self.require(self.gm)
        works: dict[str, SiteWork] = {}
        for name in ("work", "made_up", "joined", "weights_alone"):
            each = vars(self).get(name)
            if isinstance(each, SiteWork) and each not in works.values():  # two may be one
                works[name] = each
        made = works["made_up"].calibration if "made_up" in works else None
        state = {
            "fingerprint": self._fingerprint,
            "inputs": None if made is None else (list(made.batches), made.seed),
            "works": {name: each.state() for name, each in works.items()},
        }
        write_with_torch(Path(path), lambda file: torch.save(state, file))

    def restore(self, path: Path) -> None:
        """Take up what a file holds; see `study`."""
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            if state["fingerprint"] != self._fingerprint:
                raise PolicyError(
                    f"study {path} is of another network or calibration, or of another version; make it anew"
                )
            self._take(state)
        except FileNotFoundError:
            raise PolicyError(f"there is no study {path}; write one with Study.save") from None
        except PolicyError:
            raise
        except Exception as error:
            raise PolicyError(f"study {path} cannot be read ({first_line(error)}); make it anew") from error

    def _take(self, state: Mapping[str, Any]) -> None:
        """Take up what `save` wrote."""
        if state["inputs"] is not None:
            batches, seed = state["inputs"]
            data = Calibration(batches, seed=seed, made_up=True)
            vars(self)["made_up"] = SiteWork(self.folded, data)
        for name, known in state["works"].items():
            getattr(self, name).restore(known)

    @property
    def _fingerprint(self) -> str:
        data = self.calibration
        options = None if data is None else (data.samples, data.seed, data.budget_bytes, data.made_up)
        settings = {"version": __version__, "options": options}
        return fingerprint(settings, [self.gm], None if data is None else list(data.batches))

    def require(self, gm: GraphModule) -> None:
        """Raise `PolicyError` unless this is about a network, as it is now."""
        if gm is not self.gm:
            raise PolicyError(
                "the study is of another network; make one with fxdecomp.study(gm, calibration)"
            )
        if _versions(gm) != self._versions:
            raise PolicyError("the network has changed since it was studied; make a new study of it")


@one_at_a_time
@full_precision()
def study(
    gm: GraphModule,
    calibration: Calibration | Iterable[Batch] | None = None,
    *,
    saved: Path | str | None = None,
) -> Study:
    """Begin to keep what is computed about a network.

    Args:
        gm: A traced network, from `trace`; it must not change as long as the study is used.
        calibration: Unlabelled inputs, as for `transform`.
        saved: A file from `Study.save`: what it holds of this network and calibration is not computed again.

    Raises:
        CalibrationError: The calibration holds NaN or does not fit the network.
        PolicyError: The file is not there, damaged, or of another network, calibration or version.
        FxdecompError: It is no GraphModule.

    Example:
        >>> import torch, fxdecomp
        >>> gm = fxdecomp.trace(torch.nn.Sequential(torch.nn.Linear(64, 32)), torch.randn(1, 64))
        >>> known = fxdecomp.study(gm, [torch.randn(32, 64)])
        >>> half, third = (
        ...     fxdecomp.transform(gm, fxdecomp.Policy(budget=fxdecomp.MACs(share)), calibration=known)
        ...     for share in (0.7, 0.4)
        ... )
    """
    require_graph(gm, "study")
    known = Study(gm, calibration)
    if saved is not None:
        known.restore(Path(saved))
    return known


def _versions(gm: GraphModule) -> list[tuple[int, int]]:
    """What tells that a tensor of the network has been exchanged, or written to."""
    return [(id(tensor), tensor._version) for tensor in gm.parameters() if not tensor.is_inference()]
