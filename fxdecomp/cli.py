"""The command line: parses, calls the library, prints. Exit codes: 0, 1 (failed), 2 (bad arguments)."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from fxdecomp.errors import FxdecompError

app = typer.Typer(
    help="Low-rank decomposition of PyTorch networks, with checked and timed ONNX files.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()
messages = Console(stderr=True)

Model = Annotated[str, typer.Argument(help="package.module:callable, or a .pt2 file")]
Inputs = Annotated[list[str] | None, typer.Option("--input", help="Shape of an example input: 1x3x224x224")]
Method = Annotated[
    str | None, typer.Option(help="svd, tucker2, cp, cp3, spatial_svd, channel_svd, tensor_train")
]
RankText = Annotated[
    str | None, typer.Option("--rank", help="vbmf, energy:0.9, a share 0.5, a rank 32, or ranks 64,32")
]
PolicyFile = Annotated[Path | None, typer.Option("--policy", help="A policy in TOML")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress")]


@app.command()
def inspect(model: Model, inputs: Inputs = None, as_json: AsJson = False) -> None:
    """What is in a network: its layers, their cost, and which methods suit them, or why none does."""
    from fxdecomp.inspection import inspect_layers

    rows = inspect_layers(_traced(model, inputs))
    if as_json:
        _print_json([row.to_dict() for row in rows])
        return
    table = Table("layer", "kind", "MACs", "params", "methods", title=model)
    for row in rows:
        table.add_row(row.site, row.layer, f"{row.macs:,}", f"{row.params:,}", row.verdict)
    console.print(table)
    console.print(f"{sum(row.macs for row in rows):,} MACs, {sum(row.params for row in rows):,} parameters")


@app.command()
def compress(
    model: Model,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results")],
    inputs: Inputs = None,
    method: Method = None,
    rank: RankText = None,
    policy: PolicyFile = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Decompose a network; write small.onnx, small.pt2, report.json, policy.toml and graph.diff."""
    from fxdecomp.loading import load_model, parse_shape, policy_from
    from fxdecomp.results import compress_to

    chosen = policy_from(method, rank, policy)
    loaded = load_model(model, tuple(map(parse_shape, inputs or ())))
    with _progress(quiet=quiet or as_json) as progress:
        result = compress_to(loaded, chosen, out, progress=progress)
    if as_json:
        _print_json(result.to_dict())
        return
    console.print(str(result.report), markup=False, highlight=False, soft_wrap=True)
    console.print(str(result.exported), markup=False, highlight=False, soft_wrap=True)


@app.command()
def bench(
    files: Annotated[list[Path], typer.Argument(help="ONNX files; ratios are taken against the first")],
    provider: Annotated[list[str] | None, typer.Option(help="ONNX Runtime execution provider")] = None,
    threads: Annotated[int, typer.Option(help="Threads; 0 for all")] = 1,
    rounds: Annotated[int, typer.Option(help="Timed rounds; every round runs each file once")] = 30,
    batch: Annotated[int | None, typer.Option(help="Batch size, where the file leaves it open")] = None,
    axis: Annotated[list[str] | None, typer.Option(help="Length of another open axis: width=400")] = None,
    as_json: AsJson = False,
) -> None:
    """Time ONNX files against each other, interleaved, and show where the time goes."""
    from fxdecomp.export import benchmark
    from fxdecomp.loading import parse_axes

    names = _distinct_names(files)
    report = benchmark(
        dict(zip(names, files, strict=True)),
        providers=tuple(provider or ["CPUExecutionProvider"]),
        threads=threads,
        rounds=rounds,
        batch_sizes=batch,
        axes=parse_axes(axis or []),
    )
    if as_json:
        _print_json(report.to_dict())
        return
    tables = [str(report), *(report.kernel_table(name) for name in names)]
    console.print("\n\n".join(tables), markup=False, highlight=False, soft_wrap=True)


@app.command()
def diff(
    before: Model,
    after: Annotated[
        str | None, typer.Argument(help="A second model; without it, the policy is applied")
    ] = None,
    inputs: Inputs = None,
    method: Method = None,
    rank: RankText = None,
    policy: PolicyFile = None,
) -> None:
    """The graph before and after, as a unified diff."""
    from fxdecomp import graph_diff, transform
    from fxdecomp.loading import policy_from

    gm = _traced(before, inputs)
    other = _traced(after, inputs) if after else transform(gm, policy_from(method, rank, policy))
    console.print(graph_diff(gm, other), markup=False, highlight=False, soft_wrap=True)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results")] = Path("demo-output"),
    lines: Annotated[int, typer.Option(help="Lines of text to judge by")] = 500,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Compress EasyOCR's English recogniser and read rendered text with it, before and after."""
    from fxdecomp.demo import run_demo

    with _progress(quiet=quiet or as_json) as progress:
        result = run_demo(out, lines=lines, progress=progress)
    if as_json:
        _print_json(result.to_dict())
    else:
        console.print(str(result), markup=False, highlight=False, soft_wrap=True)


def main() -> None:
    """Entry point: errors in one line with what to do; `--debug` before the command shows the traceback."""
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    try:
        app()
    except FxdecompError as error:
        if debug:
            raise
        messages.print(f"fxdecomp: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2 if isinstance(error, ValueError) else 1)


def _traced(reference: str, inputs: list[str] | None) -> Any:
    from fxdecomp import trace
    from fxdecomp.loading import load_model, parse_shape

    loaded = load_model(reference, tuple(map(parse_shape, inputs or ())))
    return trace(loaded.model, loaded.example_inputs)


def _distinct_names(files: list[Path]) -> list[str]:
    """The files' stems, numbered where the same stem comes again."""
    names: list[str] = []
    for file in files:
        earlier = sum(other.stem == file.stem for other in files[: len(names)])
        names.append(f"{file.stem} ({earlier + 1})" if earlier else file.stem)
    return names


def _print_json(data: Any) -> None:
    console.print(json.dumps(data, indent=2), markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Any]:
    """A progress bar on standard error, one task per kind of work."""
    from fxdecomp.progress import silent

    if quiet:
        yield silent
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TimeRemainingColumn(), console=messages, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def progress(work: str, done: int, total: int) -> None:
            if work not in tasks:
                tasks[work] = bars.add_task(work, total=total)
            bars.update(tasks[work], completed=done, total=total)

        yield progress
