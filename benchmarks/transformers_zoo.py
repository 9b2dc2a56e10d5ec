"""The zoo's checks over transformer and hybrid architectures, built small from their configurations.

    python -m benchmarks.transformers_zoo --out transformers.jsonl
    python -m benchmarks.transformers_zoo --out transformers.jsonl --table docs/transformers.md

Needs the `transformers` package, which is not among this package's dependencies. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.network_checks import Inputs, Row, check_network, to_json
from benchmarks.zoo_networks import randomise
from fxdecomp.version import __version__

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
PATCHES: dict[str, Any] = SMALL | {"image_size": 32, "patch_size": 8}


class FirstOutput(nn.Module):
    """A network whose output is the first tensor of what the wrapped one returns."""

    def __init__(self, inner: nn.Module, method: str = "") -> None:
        super().__init__()
        self.inner = inner
        self.method = method

    def forward(self, x: Tensor) -> Tensor:
        """The first tensor of the output."""
        result = self.inner(x, return_dict=False)
        while not isinstance(result, Tensor):
            result = result[0]
        return result


def image() -> Tensor:
    return torch.randn(2, 3, 32, 32)


def tokens() -> Tensor:
    return torch.randint(1, 90, (2, 9))


def architectures() -> dict[str, Callable[[], tuple[nn.Module, Tensor]]]:
    """Every architecture by name, with an input."""
    import transformers as t

    vocabulary = {"vocab_size": 99, "max_position_embeddings": 32}
    distil = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}
    return {
        "ViT": lambda: (t.ViTModel(t.ViTConfig(**PATCHES)), image()),
        "DeiT": lambda: (t.DeiTModel(t.DeiTConfig(**PATCHES)), image()),
        "BEiT": lambda: (t.BeitModel(t.BeitConfig(**PATCHES)), image()),
        "DINOv2": lambda: (t.Dinov2Model(t.Dinov2Config(**PATCHES)), image()),
        "CLIP vision": lambda: (t.CLIPVisionModel(t.CLIPVisionConfig(**PATCHES)), image()),
        "SigLIP vision": lambda: (t.SiglipVisionModel(t.SiglipVisionConfig(**PATCHES)), image()),
        "Swin": lambda: (
            t.SwinModel(
                t.SwinConfig(
                    image_size=32, patch_size=2, embed_dim=16, depths=[1, 2], num_heads=[2, 4], window_size=4
                )
            ),
            image(),
        ),
        "ConvNeXt": lambda: (
            t.ConvNextModel(t.ConvNextConfig(hidden_sizes=[16, 32, 32, 64], depths=[1, 1, 1, 1])),
            image(),
        ),
        "SegFormer": lambda: (
            t.SegformerModel(
                t.SegformerConfig(
                    hidden_sizes=[16, 16, 32, 32], depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 2, 4]
                )
            ),
            image(),
        ),
        "MobileViT": lambda: (
            t.MobileViTModel(
                t.MobileViTConfig(
                    image_size=32, hidden_sizes=[16, 24, 32], neck_hidden_sizes=[8, 8, 16, 16, 24, 32, 64]
                )
            ),
            image(),
        ),
        "BERT": lambda: (t.BertModel(t.BertConfig(**SMALL, **vocabulary)), tokens()),
        "DistilBERT": lambda: (
            t.DistilBertModel(t.DistilBertConfig(**distil, **vocabulary)),
            tokens(),
        ),
        "RoBERTa": lambda: (t.RobertaModel(t.RobertaConfig(**SMALL, **vocabulary)), tokens()),
        "Whisper encoder": lambda: (
            t.WhisperModel(
                t.WhisperConfig(
                    vocab_size=99,
                    d_model=32,
                    encoder_layers=2,
                    decoder_layers=1,
                    encoder_attention_heads=4,
                    decoder_attention_heads=4,
                    encoder_ffn_dim=64,
                    decoder_ffn_dim=64,
                    num_mel_bins=16,
                    max_source_positions=20,
                    pad_token_id=0,
                )
            ).get_encoder(),
            torch.randn(2, 16, 40),
        ),
        "DETR": lambda: (
            t.DetrModel(
                t.DetrConfig(
                    use_timm_backbone=False,
                    use_pretrained_backbone=False,
                    backbone=None,
                    backbone_config=t.ResNetConfig(
                        embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], out_features=["stage2"]
                    ),
                    d_model=32,
                    encoder_layers=1,
                    decoder_layers=1,
                    encoder_attention_heads=4,
                    decoder_attention_heads=4,
                    encoder_ffn_dim=64,
                    decoder_ffn_dim=64,
                    num_queries=5,
                )
            ),
            image(),
        ),
        "ResNet (hybrid's stem)": lambda: (
            t.ResNetModel(t.ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1])),
            image(),
        ),
    }


def check_one(name: str, make: Callable[[], tuple[nn.Module, Tensor]]) -> Row:
    """The row of one architecture."""
    torch.manual_seed(0)
    row = Row(name, "transformers")
    try:
        inner, x = make()
        inputs: Inputs = (x,)
        return check_network(row, randomise(FirstOutput(inner)), inputs, onnx=True)
    except Exception as error:  # noqa: BLE001 - one network's failure is its row
        return Row(
            name, "transformers", failed_at="construct", error=f"{type(error).__name__}: {error}"[:600]
        )


def table(rows: list[dict[str, Any]]) -> str:
    """The results as a Markdown page."""
    passed = sum(not row["failed_at"] for row in rows)
    lines = [
        "# Transformer and hybrid architectures",
        "",
        "Written by `python -m benchmarks.transformers_zoo --out FILE.jsonl --table docs/transformers.md`,",
        f"not by hand. Small configurations, random weights; version {__version__}.",
        "",
        f"{passed} of {len(rows)} pass.",
        "",
        "| architecture | params | tracer | layers | replaced | full rank | half-rank MACs | ONNX | fails |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        error = "" if row["full_rank_error"] is None else f"{row['full_rank_error']:.0e}"
        half = "" if row["half_macs"] is None else f"{row['half_macs']:.2f}"
        why = " ".join(f"{row['failed_at']} {row['error']}".split()).replace("|", "/")[:160]
        lines.append(
            f"| {row['name']} | {row['params'] / 1e3:.0f} k | {row['tracer']} | {row['layers']} | "
            f"{row['applied']} | {error} | {half} | {row['onnx'][:100]} | {why} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON lines file; it is written anew")
    parser.add_argument("--names", nargs="*")
    parser.add_argument("--table", type=Path, help="write the Markdown page and run nothing")
    options = parser.parse_args()
    if options.table:
        rows = [json.loads(line) for line in options.out.read_text().splitlines()]
        options.table.write_text(table(rows))
        return
    torch.set_num_threads(1)
    with options.out.open("w") as file:
        for name, make in architectures().items():
            if options.names and name not in options.names:
                continue
            row = check_one(name, make)
            file.write(json.dumps(to_json(row)) + "\n")
            file.flush()
            print(f"{name:24s} {row.seconds:7.1f} s  {row.failed_at or 'ok'} {row.error[:160]}")


if __name__ == "__main__":
    main()
