"""Memory that is free goes back to the system, and small graphs wait for the collector."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

from fxdecomp.linalg import memory


class Circle(nn.Linear):
    def __init__(self) -> None:
        super().__init__(64, 64)
        self.me = [self]


@pytest.mark.parametrize("large", [True, False])
def test_only_large_graphs_are_searched_for(monkeypatch: pytest.MonkeyPatch, large: bool) -> None:
    weights = sum(each.numel() * 4 for each in Circle().parameters())
    monkeypatch.setattr(memory, "LARGE_BYTES", weights if large else weights + 1)
    gc.collect()
    gc.disable()
    try:
        lost = weakref.ref(Circle())
        assert lost() is not None
        memory.give_back_graphs(Circle())
        assert (lost() is None) == large
    finally:
        gc.enable()


def test_a_sparse_weight_has_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "LARGE_BYTES", 6 * 6 * 4)
    searches: list[None] = []
    monkeypatch.setattr(gc, "collect", lambda: searches.append(None))
    like = nn.Module()
    like.weight = nn.Parameter(torch.eye(6).to_sparse(), requires_grad=False)
    memory.give_back_graphs(like)
    assert searches == [None]


def test_no_c_library_that_could_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_trim", lambda: None)
    memory.give_back_memory()
