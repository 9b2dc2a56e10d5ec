"""The networks that are timed on every provider, by name: a batch size to the network and its inputs.

The recogniser has its own weights; all others have drawn ones, by the sizes of their papers, so that only
their speed says anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

Inputs = tuple[Tensor, ...]
_WIDTH, _HEADS, _LAYERS = 768, 12, 12


def _pictures(batch: int) -> Inputs:
    return (torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0)),)


def recogniser(batch: int) -> tuple[nn.Module, Inputs]:
    """EasyOCR's English recogniser on lines of 64 x 320."""
    from fxdecomp.demo.recogniser import load_recogniser

    return load_recogniser(), (torch.randn(batch, 1, 64, 320, generator=torch.Generator().manual_seed(0)),)


class VitBase(nn.Module):
    """A vision transformer of patches of 16, without a class token: the mean of all is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, _WIDTH, 16, stride=16)
        self.positions = nn.Parameter(torch.zeros(1, 196, _WIDTH))
        self.encoder = _encoder()
        self.head = nn.Linear(_WIDTH, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures `[batch, 3, 224, 224]` to logits."""
        found: Tensor = self.encoder(self.patches(x).flatten(2).transpose(1, 2) + self.positions)
        logits: Tensor = self.head(found.mean(1))
        return logits


class BertBase(nn.Module):
    """Twelve layers over the embeddings of 128 tokens, and the pooler of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(30522, _WIDTH)
        self.positions = nn.Parameter(torch.zeros(1, 128, _WIDTH))
        self.encoder = _encoder()
        self.pooler = nn.Linear(_WIDTH, _WIDTH)

    def forward(self, ids: Tensor) -> Tensor:
        """Tokens `[batch, 128]` to the pooled first one."""
        found: Tensor = self.encoder(self.words(ids) + self.positions)
        return torch.tanh(self.pooler(found[:, 0]))


def _encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(
        _WIDTH, _HEADS, 4 * _WIDTH, activation="gelu", batch_first=True, norm_first=True
    )
    return nn.TransformerEncoder(layer, _LAYERS, enable_nested_tensor=False)


def _vit(batch: int) -> tuple[nn.Module, Inputs]:
    torch.manual_seed(0)
    return VitBase().eval(), _pictures(batch)


def _bert(batch: int) -> tuple[nn.Module, Inputs]:
    torch.manual_seed(0)
    ids = torch.randint(0, 30522, (batch, 128), generator=torch.Generator().manual_seed(0))
    return BertBase().eval(), (ids,)


def _of_pytorchcv(name: str) -> Callable[[int], tuple[nn.Module, Inputs]]:
    def build(batch: int) -> tuple[nn.Module, Inputs]:
        from pytorchcv.model_provider import get_model

        torch.manual_seed(0)
        return get_model(name).eval(), _pictures(batch)

    return build


NETWORKS: Mapping[str, Callable[[int], tuple[nn.Module, Inputs]]] = {
    "vgg16": _of_pytorchcv("vgg16"),
    "resnet50": _of_pytorchcv("resnet50"),
    "resnet18": _of_pytorchcv("resnet18"),
    "recogniser": recogniser,
    "vit_base": _vit,
    "bert_base": _bert,
}
