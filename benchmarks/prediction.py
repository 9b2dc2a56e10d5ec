"""What a budget predicts to keep against what it keeps: correlation, bias, and a scatter.

    python -m benchmarks.made_up > build/made_up.jsonl
    python -m benchmarks.prediction build/made_up.jsonl docs/pictures/prediction.png

A point is a network at a share of its multiply-accumulates. Predicted is the share of the output's signal
that the report's note names, true the share (R2) on inputs that nothing was fitted to. Of the weights alone
nothing is predicted.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

KINDS = ("real", "made up")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", type=Path)
    parser.add_argument("picture", type=Path, nargs="?")
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.rows.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row["predicted"] is not None]
    points = {}
    for kind in KINDS:
        chosen = [row for row in rows if row["data"] == kind]
        points[kind] = np.array([(row["predicted"], max(row["explained"], 0.0)) for row in chosen])
    for kind, pairs in points.items():
        if len(pairs) < 3:
            continue
        predicted, true = pairs.T
        correlation = np.corrcoef(predicted, true)[0, 1]
        print(
            f"{kind}: {len(pairs)} networks and shares, correlation {correlation:.2f}, "
            f"predicted less true {np.mean(predicted - true):+.3f} on average, "
            f"{max(predicted - true, key=abs):+.3f} at most"
        )
    if options.picture is not None:
        draw(points, options.picture)


def draw(points: dict[str, np.ndarray], picture: Path) -> None:
    """One point a network and share, by what it was fitted to; on the line the prediction is right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    least = min(float(pairs.min()) for pairs in points.values() if len(pairs)) - 0.01
    axes.plot([least, 1], [least, 1], color="0.7", linewidth=1)
    for (kind, pairs), marker in zip(points.items(), "os", strict=True):
        if len(pairs):
            axes.plot(*pairs.T, marker, label=kind, alpha=0.8)
    axes.set(xlabel="share of the signal predicted to be kept", ylabel="share kept on unseen inputs (R2)")
    axes.legend(title="fitted to")
    figure.savefig(picture, dpi=120)


if __name__ == "__main__":
    main()
