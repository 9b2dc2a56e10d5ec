"""The page of the sweep over pytorchcv: its rows in words and tables."""

from __future__ import annotations

from collections import Counter
from typing import Any

from benchmarks.network_checks import TOLERANCE, TOLERANCE_DOUBLE
from benchmarks.zoo_networks import constructors, family
from fxdecomp.version import __version__

CAUSES: dict[str, str] = {
    "linknet": "pytorchcv: its constructor fails, whatever the caller does",
    "superpointnet": "PyTorch: the network picks key points by value, which no tracer can follow",
    "ntsnet_cub": "PyTorch: regions are chosen in NumPy inside the network, which no tracer can follow",
    "centernet_resnet18_voc": "the network: two key points with equal scores, which come in either order",
    "revnet": "PyTorch: an `autograd.Function` of its own, which torch.export cannot trace",
}
"""Why a network fails, by name or family, where the cause is known."""


def page(rows: list[dict[str, Any]]) -> str:
    """The results as a Markdown page."""
    known = constructors()
    failed = [row for row in rows if row["failed_at"]]
    passed = len(rows) - len(failed)
    exact = Counter(row["full_rank_type"] for row in rows if row["full_rank_error"] is not None)
    tracers = Counter(row["tracer"] for row in rows if row["tracer"])
    reasons: Counter[str] = Counter()
    for row in rows:
        reasons.update(row["skipped"])
    twins = sum(bool(row["twin_of"]) for row in rows)
    onnx = Counter(row["onnx"].partition(":")[0] for row in rows if row["onnx"])
    lines = [
        "# The zoo: pytorchcv",
        "",
        "Written by `python -m benchmarks.zoo --out benchmarks/zoo.jsonl --table docs/zoo.md`, not by hand.",
        f"Version {__version__}.",
        "Random weights, drawn BatchNorm statistics, the smallest input that each network accepts, Tucker-2.",
        "Pose networks give heat maps, sound networks take spectra, by pytorchcv's options: no tracer can",
        "follow key points that are decoded by value, into Python integers. BatchNorms are drawn smaller",
        "where the network overflows or makes roundings a million times larger (a thousand residual layers).",
        "Where ONNX Runtime differs and the network, or its half-rank version, makes roundings over ten",
        "times larger, it is compared again with smaller BatchNorms.",
        "",
        f"- The zoo: {len(known)} names in {len(set(map(family, known.values())))} families.",
        f"- Swept so far: {len(rows)} networks from {len({row['family'] for row in rows})} families; "
        f"**{passed} pass ({passed / max(len(rows), 1):.1%})**. "
        f"{twins} are the same as another, weights and all, such as networks for two data sets of ten "
        "classes: one of them was checked.",
        f"- Tracers: {', '.join(f'{kind} {count}' for kind, count in tracers.items())}.",
        f"- Full rank: largest difference over largest output at most {TOLERANCE:g} with float32 factors "
        f"({exact['float32']} networks), or {TOLERANCE_DOUBLE:g} with float64 factors where torch.export "
        f"fixed the type or the network amplifies float32 rounding ({exact['float64']} networks).",
        "- Half rank: every layer listed once, MACs told equal MACs counted in the running graph, and lower.",
        f"- Layers replaced at half rank: {sum(row['applied'] for row in rows):,} of "
        f"{sum(row['layers'] for row in rows):,}; left alone: "
        + ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common())
        + ".",
        f"- BatchNorms folded: {sum(row['folded'] for row in rows):,}; left in the graph: "
        f"{sum(row['unfolded'] for row in rows):,}.",
    ]
    if onnx:
        missing = passed - onnx.total()
        lines.append(
            f"- ONNX of {onnx.total()} networks at half rank, compared with PyTorch: "
            + ", ".join(f"{kind} {count}" for kind, count in onnx.most_common())
            + (f"; {missing} more are not compared yet." if missing else ".")
        )
    lines += ["", "## What does not pass", ""]
    if failed:
        lines += ["| network | family | at | message | cause |", "|---|---|---|---|---|"]
        for row in failed:
            cause = CAUSES.get(row["name"], CAUSES.get(row["family"], "not known yet"))
            message = " ".join(row["error"].split()).replace("|", "/")[:160]
            lines.append(f"| {row['name']} | {row['family']} | {row['failed_at']} | {message} | {cause} |")
    else:
        lines.append("Nothing.")
    unexported = [row for row in rows if row["onnx"] and not row["onnx"].startswith("equal")]
    if unexported:
        lines += ["", "## What does not export", "", "| network | message |", "|---|---|"]
        for row in unexported:
            message = " ".join(row["onnx"].split()).replace("|", "/")
            lines.append(f"| {row['name']} | {message[:200]} |")
    lines += [
        "",
        "## Every network",
        "",
        "| network | params | input | tracer | layers | replaced | full rank | half MACs | ONNX | s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (row["family"], row["params"])):
        error = "" if row["full_rank_error"] is None else f"{row['full_rank_error']:.0e}"
        half = "" if row["half_macs"] is None else f"{row['half_macs']:.2f}"
        lines.append(
            f"| {row['name']} | {row['params'] / 1e6:.2f} M | {row['inputs']} | {row['tracer']} | "
            f"{row['layers']} | {row['applied']} | {error} | {half} | "
            f"{row['onnx'].partition(':')[0]} | {row['seconds']:.1f} |"
        )
    return "\n".join(lines) + "\n"
