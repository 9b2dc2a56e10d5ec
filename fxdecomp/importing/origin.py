"""`OnnxOrigin`: an ONNX file as it was read, from which its graph can be made again, node by node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.fx import GraphModule

from fxdecomp.errors import ExportError
from fxdecomp.graphs.origins import LAYER, VALUE
from fxdecomp.importing.carried import Carried
from fxdecomp.importing.converting import converted
from fxdecomp.importing.preparing import prepared
from fxdecomp.importing.repairing import has_wrong_shapes, inner_values, misconverted
from fxdecomp.sites.recurrent import IN_BRANCH


@dataclass(frozen=True, slots=True, eq=False)
class OnnxOrigin:
    """An ONNX file, and how it is converted.

    Attributes:
        name: What it is called in messages.
        data: Its bytes.
        folder: Where data lie that it keeps in other files.
        shapes: Lengths of the axes of inputs, None for those that are left open.
        ranks: Numbers of axes of values inside that onnx does not find.
        carry: Names of values whose nodes are carried, though they have a counterpart.
        tolerance: Largest relative difference of an output that passes, None for that of its type.
        is_prepared: Whether operators are brought to a recent set, constants folded and shapes inferred.
    """

    name: str
    data: bytes
    folder: str
    shapes: Mapping[str, tuple[int | None, ...]] = field(default_factory=dict)
    ranks: Mapping[str, int] = field(default_factory=dict)
    carry: frozenset[str] = frozenset()
    tolerance: float | None = None
    is_prepared: bool = True

    @staticmethod
    def of(path: Path, tolerance: float | None = None) -> OnnxOrigin:
        """Read a file."""
        return OnnxOrigin(str(path), path.read_bytes(), str(path.parent.absolute()), tolerance=tolerance)

    @property
    def in_one_file(self) -> bool:
        """Whether its weights are in the file itself."""
        return not any(map(_is_elsewhere, self._bare().graph.initializer))

    def model(self) -> Any:
        """The file as an `onnx.ModelProto`, with its weights.

        Raises:
            ExportError: It is no model, or data that it keeps in other files are not there any more.
        """
        from onnx.external_data_helper import load_external_data_for_model

        proto = self._bare()
        try:
            load_external_data_for_model(proto, self.folder)
        except Exception as error:
            raise ExportError(f"{self.name} cannot be read as an ONNX model: {error}") from error
        return proto

    def graph(self) -> GraphModule:
        """The file as a graph; nodes that compute a value of the file keep its name in their meta."""
        proto = self.model()
        known = {item.name for item in proto.graph.input}
        known |= {name for node in proto.graph.node for name in node.output if name}
        gm = converted(self._prepared(proto), self.carry)
        for node in gm.graph.nodes:
            names = [name for name in node.meta.pop(VALUE, ()) if name in known]
            if names:
                node.meta[VALUE] = names[0]
        for node in gm.graph.nodes:
            if LAYER in node.meta and VALUE not in node.args[0].meta:  # an If was decided around it
                setattr(gm.get_submodule(str(node.target)), IN_BRANCH, True)
        return gm

    def understood(
        self, inputs: Mapping[str, Any], fixed: Mapping[str, tuple[int, ...]]
    ) -> tuple[OnnxOrigin, GraphModule]:
        """The conversion that carries least: what is known of the inputs is used where it helps.

        Args:
            inputs: Example inputs by name; they tell how many axes there are inside.
            fixed: Shapes that the user has given.

        Returns:
            The file with what is taken for known, and its graph.
        """
        values = list(inputs.values())
        best, gm = self, self.graph()
        if not carried_nodes(gm):
            return best, gm

        def carries_less(tried: OnnxOrigin | None) -> bool:
            nonlocal best, gm
            if tried is None or carried_nodes(other := tried.graph()) >= carried_nodes(gm):
                return False
            best, gm = tried, other
            return True

        is_run = carries_less(self._with_ranks(values))
        if not fixed or not carried_nodes(gm):
            return best, gm
        stated = replace(self, shapes=fixed)
        if not is_run:
            is_run = not carries_less(stated)
        if is_run:
            carries_less(stated._with_ranks(values))
        if best.shapes:  # a free batch, where it does as well
            free = replace(best, shapes={name: (None, *shape[1:]) for name, shape in fixed.items()})
            other = free.graph()
            if carried_nodes(other) <= carried_nodes(gm):
                best, gm = free, other
        return best, gm

    def carrying_more(self, inputs: Sequence[Any]) -> OnnxOrigin | None:
        """The same with the node carried that is converted to something else, or else with nothing prepared.

        None where that is so already.

        Args:
            inputs: Inputs for which graph and file differ.
        """
        model = self._prepared(self.model())
        known = inner_values(model, inputs)
        name = None
        if not (self.is_prepared and has_wrong_shapes(model, known)):
            name = misconverted(converted(model, self.carry), known, inputs)
        if name is not None and name not in self.carry:
            return replace(self, carry=self.carry | {name})
        if not self.is_prepared:
            return None
        bare = replace(self, is_prepared=False, carry=frozenset(), ranks={})
        return replace(bare, ranks=bare._ranks(inputs))

    def _with_ranks(self, inputs: Sequence[Any]) -> OnnxOrigin | None:
        """The same with the numbers of axes that a run shows; None where onnx finds them all."""
        found = self._ranks(inputs)
        return replace(self, ranks=found) if found else None

    def _ranks(self, inputs: Sequence[Any]) -> dict[str, int]:
        model = self._prepared(self.model())
        unknown = {str(value.name) for node in model.graph for value in node.outputs if value.shape is None}
        found = inner_values(model, inputs) if unknown else {}
        return {
            name: value.ndim for name, value in found.items() if name in unknown and isinstance(value, Tensor)
        }

    def _prepared(self, proto: Any) -> Any:
        return prepared(proto, self.shapes, self.ranks, is_changed=self.is_prepared)

    def _bare(self) -> Any:
        import onnx

        try:
            return onnx.load_model_from_string(self.data)
        except Exception as error:
            raise ExportError(f"{self.name} cannot be read as an ONNX model: {error}") from error


def carried_nodes(gm: GraphModule) -> int:
    """How many nodes of its file a graph carries."""
    return sum(module.size for module in gm.modules() if isinstance(module, Carried))


def _is_elsewhere(tensor: Any) -> bool:
    return bool(tensor.data_location == type(tensor).EXTERNAL)
