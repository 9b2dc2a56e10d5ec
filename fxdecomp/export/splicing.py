"""The file that a graph was read from, with the layers that were changed replaced by their chains.

Everything else stays as it is in the file: names, inputs and outputs, operator sets, metadata, subgraphs,
quantised parts. Where nothing was changed, the bytes of the file are kept and metadata put behind them.
"""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.fx import GraphModule, Node

from fxdecomp.export.matching import Match, NotSpliceable, matched
from fxdecomp.export.onnx_nodes import NodeWriter
from fxdecomp.export.recurrent import onnx_weights
from fxdecomp.export.value_names import all_names, node_names, read_by, values_read
from fxdecomp.graphs.origins import Origin
from fxdecomp.sites.base import shape_of

_PREFIX = "fxdecomp."


@dataclass(frozen=True, slots=True, eq=False)
class Spliced:
    """A file that was read, as it is to be written.

    Attributes:
        proto: An `onnx.ModelProto`, with its weights.
        in_one_file: Whether its weights are in the file itself.
        data: The bytes of the file that was read, where nothing is changed in it and it is in one piece.
    """

    proto: Any
    in_one_file: bool = True
    data: bytes | None = None

    def save(self, path: Path, props: Mapping[str, str]) -> None:
        """Write the file.

        Args:
            path: Where.
            props: Metadata to put in; those of an earlier writing go.
        """
        import onnx

        appended = onnx.ModelProto()
        onnx.helper.set_model_props(appended, dict(props))
        if self.data is not None:
            # What is repeated in a message adds up.
            path.write_bytes(self.data + appended.SerializeToString())
            return
        kept = [item for item in self.proto.metadata_props if not item.key.startswith(_PREFIX)]
        del self.proto.metadata_props[:]
        self.proto.metadata_props.extend([*kept, *appended.metadata_props])
        if self.in_one_file:
            path.write_bytes(self.proto.SerializeToString())
            return
        copied = onnx.ModelProto()
        copied.CopyFrom(self.proto)  # saving takes the weights out of the model
        onnx.save_model(copied, str(path), save_as_external_data=True, location=f"{path.name}.data")


def splice(gm: GraphModule, origin: Origin) -> Spliced:
    """Put what was changed in a graph into the file that it was read from.

    Args:
        gm: The graph.
        origin: The file.

    Raises:
        NotSpliceable: What was changed cannot be put into the file.
    """
    original, proto = origin.graph(), origin.model()
    try:
        match = matched(gm, original)
    except NotSpliceable as reason:
        match = matched(gm, _as_unpickled(original, reason))
    if match.is_whole:
        own = any(item.key.startswith(_PREFIX) for item in proto.metadata_props)
        data = None if own or not origin.in_one_file else origin.data
        return Spliced(proto, origin.in_one_file, data)
    _Editor(proto, gm, match).edit()
    return Spliced(proto, origin.in_one_file)


def _as_unpickled(gm: GraphModule, reason: NotSpliceable) -> GraphModule:
    """The graph with the names and arguments that it has after a way through pickle, which traces it anew.

    Raises:
        NotSpliceable: The reason that is given: it has other nodes then, or no such way.
    """
    nodes = list(gm.graph.nodes)
    try:
        again: GraphModule = pickle.loads(pickle.dumps(gm))
    except Exception:  # noqa: BLE001 - what torch raises where it cannot trace
        raise reason from None
    if len(again.graph.nodes) != len(nodes):
        raise reason
    for node, known in zip(again.graph.nodes, nodes, strict=True):
        node.meta = dict(known.meta)
    return again


class _Editor:
    """Edits one model in place."""

    def __init__(self, proto: Any, gm: GraphModule, match: Match) -> None:
        self._graph = proto.graph
        self._gm = gm
        self._ir_version = proto.ir_version
        self._match = match
        found = (item.version for item in proto.opset_import if item.domain in ("", "ai.onnx"))
        names = {node: name for name, node in match.stands_for.items()}
        self._writer = NodeWriter(
            gm,
            match.named,
            names,
            taken=all_names(self._graph),
            node_names=node_names(self._graph),
            opset=next(found, 1),
        )

    def edit(self) -> None:
        """Put the new nodes in, and take out what only the replaced ones needed."""
        replaced = self._replace()
        for names, module in self._match.retrained.items():
            replaced |= set(names)
            self._retrain(names, module)
        self._store()
        self._remove_unused(replaced)
        self._check_order()

    def _replace(self) -> set[str]:
        """Write each replaced value where it stood; the names that the replaced nodes read."""
        missing = self._match.stands_for.keys() - {name for node in self._graph.node for name in node.output}
        missing |= {x for _, x in self._match.narrowed} - {name for n in self._graph.node for name in n.input}
        if missing:
            raise NotSpliceable(f"{sorted(missing)[0]!r} is not computed in the file itself")
        nodes, read = [], set()
        for node in self._graph.node:
            stage = self._stage_of(node)
            if stage is not None:
                before = len(self._writer.nodes)
                narrow = self._narrow(node, stage)
                nodes += [*self._writer.nodes[before:], narrow]
                read |= set(node.input) - {""}
                continue
            values = [name for name in node.output if name in self._match.stands_for]
            if not values:
                nodes.append(node)
                continue
            if len([name for name in node.output if name]) > 1:
                raise NotSpliceable(f"{values[0]!r} is one of several outputs of its node")
            before = len(self._writer.nodes)
            self._writer.value(self._match.stands_for[values[0]], values[0])
            nodes += self._writer.nodes[before:]
            read |= {name for name in node.input if name}
        new = [_copied(node) for node in nodes]
        del self._graph.node[:]
        self._graph.node.extend(new)
        return read

    def _stage_of(self, node: Any) -> Node | None:
        """The stage that a recurrent layer's node has become, None where it stays or is no such node."""
        found = self._match.narrowed.items()
        calls = (stage for (names, x), stage in found if [*node.input[: len(names) + 1]] == [x, *names])
        return next(calls, None)

    def _narrow(self, node: Any, stage: Node) -> Any:
        """A recurrent layer's node with weights of its own, behind the stage before it, which is written."""
        source, path = stage.args[0], str(stage.target)
        assert isinstance(source, Node)  # a chain's stage reads the one before it
        arrays = onnx_weights(self._gm.get_submodule(path))
        weights = [self._writer.constant(f"{path}.{key}", a) for key, a in zip("WRB", arrays, strict=False)]
        narrow = _copied(node)
        del narrow.input[:]
        inputs = [self._writer.value(source), *weights, *[""] * (3 - len(weights)), *node.input[4:]]
        hidden = [each for each in narrow.attribute if each.name == "hidden_size"]
        if any(each.i != arrays[1].shape[2] for each in hidden):  # what it begins with is zero, and too long
            inputs = inputs[:4]
            hidden[0].i = arrays[1].shape[2]
        narrow.input.extend(inputs)
        return narrow

    def _retrain(self, names: tuple[str, ...], module: Any) -> None:
        """Give a recurrent layer's nodes new weights."""
        arrays = onnx_weights(module)
        new = [self._writer.constant(name, array) for name, array in zip(names, arrays, strict=False)]
        layers = [node for node in self._graph.node if tuple(node.input[1 : 1 + len(names)]) == names]
        if not layers:
            raise NotSpliceable(
                f"the weights {names} were trained, and their layer is not in the file itself"
            )
        for node in layers:
            for place, name in enumerate(new, start=1):
                node.input[place] = name

    def _store(self) -> None:
        """Add the new constants; before IR 4 each is named among the inputs as well."""
        from onnx import helper, numpy_helper

        for name, array in self._writer.constants.items():
            tensor = numpy_helper.from_array(array, name)
            self._graph.initializer.append(tensor)
            if self._ir_version < 4:
                self._graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, array.shape))

    def _remove_unused(self, front: set[str]) -> None:
        """Remove what computes values that nothing reads any more, and constants likewise."""
        uses = Counter(values_read(self._graph))
        producers = {name: node for node in self._graph.node for name in node.output if name}
        kept = {id(node): node for node in self._graph.node}
        gone: set[str] = set()
        while front:
            name = front.pop()
            if uses[name]:
                continue
            gone.add(name)
            node = producers.get(name)
            if node is None or id(node) not in kept or any(uses[other] for other in node.output):
                continue
            gone |= set(node.output)
            del kept[id(node)]
            uses.subtract(each := list(read_by(node)))
            front |= set(each)
        stale = {item.name for item in self._graph.initializer} & gone
        _keep(self._graph.node, lambda node: id(node) in kept)
        _keep(self._graph.initializer, lambda item: item.name not in gone)
        _keep(self._graph.input, lambda item: item.name not in stale)
        present = set(all_names(self._graph))
        _keep(self._graph.value_info, lambda item: item.name in present)
        if self._has_other_sizes():
            del self._graph.value_info[:]

    def _has_other_sizes(self) -> bool:
        """Whether a value is smaller than the file says; then others may be that have no node."""
        names = {name: node for node, name in self._match.named.items()} | self._match.stands_for
        for item in self._graph.value_info:
            shape = shape_of(names[item.name]) if item.name in names else None
            dims = item.type.tensor_type.shape.dim
            if shape is not None and len(shape) == len(dims):
                known = zip(dims, shape, strict=True)
                if any(dim.HasField("dim_value") and dim.dim_value != size for dim, size in known):
                    return True
        return False

    def _check_order(self) -> None:
        """Raise where a new node reads what is computed behind it."""
        made = {name for node in self._graph.node for name in node.output}
        seen: set[str] = set()
        for node in self._graph.node:
            if any(name in made and name not in seen for name in node.input if name):
                raise NotSpliceable(f"{node.name!r} would read what the file computes behind it")
            seen |= set(node.output)


def _copied(node: Any) -> Any:
    import onnx

    new = onnx.NodeProto()
    new.CopyFrom(node)
    return new


def _keep(items: Any, wanted: Any) -> None:
    """Keep some entries of a repeated field; it is not touched where that is all."""
    kept = [item for item in items if wanted(item)]
    if len(kept) < len(items):
        copies = [type(item)() for item in kept]
        for copy, item in zip(copies, kept, strict=True):
            copy.CopyFrom(item)
        del items[:]
        items.extend(copies)
