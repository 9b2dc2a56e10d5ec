"""`Ledger`: counts every stored tensor of a graph once, however many layers share it."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor
from torch.fx import GraphModule
from torch.fx.graph_module import _get_attr
from torch.nn.parameter import is_lazy


class Ledger:
    """How many numbers of each stored tensor no layer has been charged with yet."""

    def __init__(self, gm: GraphModule) -> None:
        stored: list[object] = [*gm.parameters(), *gm.buffers()]
        stored += [_get_attr(gm, str(node.target)) for node in gm.graph.nodes if node.op == "get_attr"]
        self._left = {
            id(tensor): tensor.numel()
            for tensor in stored
            if isinstance(tensor, Tensor) and not is_lazy(tensor)  # which has no size yet
        }
        self._seen: set[int] = set()

    def take(self, roots: Iterable[int], wanted: int) -> int:
        """Charge a layer with a weight.

        Args:
            roots: Identities of the stored tensors that the weight is made of.
            wanted: Number of its elements: fewer than a tensor holds where it is a slice of that. Tensors
                that are multiplied or added, such as a weight and its mask, are charged each.

        Returns:
            How many of its elements no other layer has been charged with.
        """
        taken = 0
        for root in roots:
            self._seen.add(root)
            if root in self._left:
                share = min(wanted, self._left[root])
                self._left[root] -= share
                taken += share
        return taken

    def take_whole(self, tensors: Iterable[Tensor]) -> int:
        """Charge a layer with all that is left of some tensors."""
        return sum(self.take([id(tensor)], self._left.get(id(tensor), 0)) for tensor in tensors)

    def see(self, tensors: Iterable[Tensor]) -> None:
        """Note that some tensors have a use, though nothing is charged for them: a scale of `weight_norm`."""
        self._seen.update(map(id, tensors))

    def unseen(self, tensors: Iterable[Tensor]) -> list[Tensor]:
        """Those tensors that no layer was charged with or seen to use."""
        return [tensor for tensor in tensors if id(tensor) not in self._seen]
