"""`JointWork`: what is known of a graph in which layers were joined, from what is known of these layers.

They read one tensor, so that they have its moments in common. Damages add up: with every part scaled by the
root of its sensitivity over its power, the sensitivity of all together is the sum of theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field

from torch.fx import GraphModule

from fxdecomp.allocation.sensitivity import EXAMPLES
from fxdecomp.allocation.site_work import SiteWork
from fxdecomp.allocation.workers import ALONE, Item, Result, Workers
from fxdecomp.decompositions import Problem
from fxdecomp.graphs.records import Record, record_of
from fxdecomp.progress import Progress


@dataclass(slots=True, eq=False)
class JointWork(SiteWork):
    """The work at a graph that `JoinInputs` made.

    Attributes:
        parent: The work at the graph before.
    """

    parent: SiteWork = field(kw_only=True)

    @staticmethod
    def after(gm: GraphModule, parent: SiteWork) -> JointWork:
        """Begin with what is known of the graph before."""
        return JointWork(gm, parent.calibration, parent.prior, parent.whole or parent.gm, parent=parent)

    @property
    def joints(self) -> dict[str, tuple[str, ...]]:
        """The layers that were joined, by the name of the first, which is that of all."""
        record = record_of(self.gm) or Record()
        return {joint.names[0]: joint.names for joint in record.joints}

    def sensitivity(
        self, names: Collection[str], progress: Progress, examples: int = EXAMPLES
    ) -> dict[str, float] | None:
        """The sum of its layers' at a joint one; what was measured at the others."""
        joints = self.joints
        parts = {name: joints.get(name, (name,)) for name in names}
        known = self.parent.sensitivity(
            {each for part in parts.values() for each in part}, progress, examples
        )
        return None if known is None else {name: sum(map(known.__getitem__, parts[name])) for name in parts}

    def each(
        self,
        work: str,
        function: Callable[[Item], Result],
        items: Mapping[str, Item],
        workers: Workers = ALONE,
    ) -> dict[str, Result]:
        """The result at every layer, by name: at those that are the same, that of the graph before."""
        joints = self.joints
        same = {name: item for name, item in items.items() if name not in joints}
        mine = {name: item for name, item in items.items() if name in joints}
        found = self.parent.each(work, function, same, workers)
        found |= SiteWork.each(self, work, function, mine, workers)
        return {name: found[name] for name in items}

    def _begun(self, names: Collection[str], progress: Progress) -> Iterator[dict[str, tuple[Problem, ...]]]:
        """The problems of joint layers, from the moments of the first of each."""
        for problems in self.parent._known(names, progress):
            made = {}
            for name, (problem,) in problems.items():
                moments = None if problem.moments is None else (problem.moments,)
                made[name] = self._made(self._sites[name], moments)
            yield made
