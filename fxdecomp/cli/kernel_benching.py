"""`fxdecomp bench-kernels`: which kernels a provider runs well on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fxdecomp.cli.options import AsJson, Provider, Quiet, Threads
from fxdecomp.cli.terminal import print_json, print_text, progress_bars


def bench_kernels(
    provider: Provider = "cpu",
    precision: Annotated[str, typer.Option(help="float32, float16 or int8")] = "float32",
    threads: Threads = 1,
    channel: Annotated[list[int] | None, typer.Option(help="Channels in and out; repeatable")] = None,
    size: Annotated[list[int] | None, typer.Option(help="Height and width; repeatable")] = None,
    kind: Annotated[list[str] | None, typer.Option(help="pointwise, 'core 3x3', ...")] = None,
    runs: Annotated[int, typer.Option(help="Counted runs of each kernel")] = 20,
    plot: Annotated[Path | None, typer.Option(help="Draw the roofline: .svg, .png, .pdf")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Time the kernels of chains against the machine's peak.

    Its memory is the other bound: a roofline.
    """
    from fxdecomp.export import bench_kernels as measure
    from fxdecomp.export.kernel_bench import CHANNELS, KERNELS, SIZES
    from fxdecomp.export.kernel_map import check_picture
    from fxdecomp.providers import provider_of

    if plot is not None:
        check_picture(plot)
    with progress_bars(quiet=quiet or as_json) as progress:
        found = measure(
            provider=provider_of(provider),
            precision=precision,  # type: ignore[arg-type]  # an unknown one is refused in words
            threads=threads,
            channels=channel or CHANNELS,
            sizes=size or SIZES,
            kinds=kind or tuple(KERNELS),
            runs=runs,
            progress=progress,
        )
    if plot is not None:
        found.plot(plot)
    if as_json:
        print_json(found.to_dict())
    else:
        print_text(str(found))
