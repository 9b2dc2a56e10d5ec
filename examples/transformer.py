"""A transformer: SVD of attention and MLP, calibrated, and int8 on top."""

import sys
from pathlib import Path

import torch
from torch import nn

import fxdecomp


def tokens(count: int, seed: int) -> torch.Tensor:
    """Inputs `[count, 12, 64]` that live in 16 of the 64 dimensions, as real activations live in few."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    return torch.randn(count, 12, 16, generator=generator) @ basis / 4


def main(folder: Path) -> None:
    """Compress with and without calibration, compare, export to fp32 and int8."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(64, 4, 256, batch_first=True, norm_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    example = tokens(2, seed=1)
    gm = fxdecomp.trace(model, example)
    policy = fxdecomp.Policy(method="svd", rank=fxdecomp.Ratio(0.375, multiple_of=8))
    batches = [tokens(16, seed=10 + index) for index in range(4)]
    bare = fxdecomp.transform(gm, policy)
    small = fxdecomp.transform(gm, policy, calibration=batches)
    fresh = tokens(32, seed=99)
    with torch.no_grad():
        wanted = gm(fresh)
        for name, network in {"from the weights alone": bare, "calibrated": small}.items():
            lost = float((network(fresh) - wanted).square().mean() / wanted.var())
            print(f"{name}: {lost:.2%} of the output's variance is lost")
    print(fxdecomp.report(small))
    print(fxdecomp.export.to_onnx(small, example, folder / "encoder.onnx"))
    written = fxdecomp.export.to_onnx(
        small,
        example,
        folder / "encoder.int8.onnx",
        quantize=fxdecomp.export.Int8(max_error=0.2),
        calibration=batches,
    )
    print(written.quantization)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
