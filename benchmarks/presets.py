"""What each preset makes of trained networks: which file it says to ship, how fast, how good, how large.

    python -m benchmarks.presets                                        # five networks, a table in Markdown
    python -m benchmarks.presets digits pitch --presets balanced small

A row is one run of the command line, `fxdecomp compress NETWORK --preset P --calibration ... --metric ...`,
with unlabelled inputs of the training's kind, and a metric on others, by which a search chooses. What is told
of the files is measured on inputs that neither has seen. Networks are trained once (minutes) and kept.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import trained_networks as nets
from benchmarks.digit_networks import TRAINED, Transformer, digit_cnn, digit_images, trained
from fxdecomp.cli.settings import PRESETS

FOLDER = Path("build/presets")
SPLITS = ("fitted", "chosen", "judged")
"""What inputs are for: to fit to, to choose by, to tell of."""
_ENOUGH = 538
"""So many right answers show that less than the 0.01 of `safe` is lost on others (see `Standard`)."""

Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Case:
    """One network.

    Attributes:
        kind: What it is, in words.
        build: Trains it.
        draw: Inputs, and what they are, for one of `SPLITS`.
        right: Which of them a network gets right.
    """

    kind: str
    build: Callable[[], nn.Module]
    draw: Callable[[str], tuple[Tensor, Any]]
    right: Callable[[Network, Tensor, Any], Tensor]


def classes(network: Network, inputs: Tensor, truth: Tensor) -> Tensor:
    """Those whose class is right."""
    with torch.no_grad():
        return (network(inputs).argmax(-1) == truth).double()


def lines(network: Network, inputs: Tensor, truth: list[str]) -> Tensor:
    """The lines of text that are read without an error."""
    from fxdecomp.demo.judging import decode

    with torch.no_grad():
        read = [text for part in torch.split(inputs, 8) for text in decode(network(part))]
    return torch.tensor([float(a == b) for a, b in zip(read, truth, strict=True)])


def digits(split: str) -> tuple[Tensor, Tensor]:
    images, truth = digit_images()
    middle = (TRAINED + len(images)) // 2
    parts = (slice(256), slice(TRAINED, middle), slice(middle, None))
    part = parts[SPLITS.index(split)]
    return images[part], truth[part]


def drawn(draw: nets.Draw) -> Callable[[str], tuple[Tensor, Tensor]]:
    counts = {"fitted": 256, "chosen": 1000, "judged": 1000}
    return lambda split: draw(counts[split], 50 * (1 + SPLITS.index(split)))


def text(split: str) -> tuple[Tensor, list[str]]:
    from fxdecomp.demo.lines import Split, render_lines

    kinds = {"fitted": (64, Split.CALIBRATION), "chosen": (600, Split.SEARCH), "judged": (300, Split.JUDGE)}
    found = render_lines(*kinds[split])
    return found.images, list(found.texts)


def recogniser() -> nn.Module:
    from fxdecomp.demo.recogniser import load_recogniser

    return load_recogniser()


CASES: Mapping[str, Case] = {
    "digits": Case("residual CNN, 10 digits", lambda: trained(digit_cnn), digits, classes),
    "transformer": Case("transformer, 10 digits", lambda: trained(Transformer), digits, classes),
    "pitch": Case(
        "audio, 48 notes",
        lambda: nets.trained_on(nets.Pitch, nets.tones, nn.functional.cross_entropy, steps=400),
        drawn(nets.tones),
        classes,
    ),
    "bytes": Case(
        "transformer, source text of 8 packages",
        lambda: nets.trained_on(
            nets.Bytes, nets.snippets, nn.functional.cross_entropy, steps=600, count=16384
        ),
        drawn(nets.snippets),
        classes,
    ),
    "recogniser": Case("OCR, convolutions and LSTMs, lines of text", recogniser, text, lines),
}


def network(name: str) -> tuple[nn.Module, Tensor]:
    """A trained network and an example input, for the command line."""
    case, path = CASES[name], FOLDER / f"{name}.pt"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(case.build(), path)
    return torch.load(path, weights_only=False).eval(), case.draw("fitted")[0][:1]


def inputs(name: str) -> list[Tensor]:
    """Unlabelled batches, for the command line."""
    return list(torch.split(CASES[name].draw("fitted")[0], 8))


def metric(name: str) -> Callable[[Network], Tensor | float]:
    """What a network gets right of what is chosen by; their share where they are few."""
    case = CASES[name]
    drawn_inputs, truth = case.draw("chosen")

    def right(found: Network) -> Tensor | float:
        scores = case.right(found, drawn_inputs, truth)
        return scores if len(scores) >= _ENOUGH else float(scores.mean())

    return right


def run(name: str, preset: str) -> dict[str, Any]:
    """One run of the command line, and what it is worth."""
    network(name)
    out = FOLDER / f"{name}-{preset}"
    here = "benchmarks.presets"
    command = [sys.executable, "-m", "fxdecomp", "compress", f"{here}:network({name!r})", "--preset", preset]
    command += ["--calibration", f"{here}:inputs({name!r})", "--metric", f"{here}:metric({name!r})"]
    start = time.perf_counter()
    done = subprocess.run(
        [*command, "--out", str(out), "--json", "--quiet"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    took_s = time.perf_counter() - start
    told = json.loads(done.stdout)
    files = {"dense": out / "dense.onnx", "ship": out / f"{told['verdict']['ship']}.onnx"}
    unseen, truth = CASES[name].draw("judged")
    return {
        "network": name,
        "preset": preset,
        "ship": told["verdict"]["ship"],
        "ratio": told["verdict"]["ratio"],
        "right": {
            key: float(CASES[name].right(reader(path), unseen, truth).mean()) for key, path in files.items()
        },
        "bytes": {key: path.stat().st_size for key, path in files.items()},
        "of": len(truth),
        "took_s": took_s,
    }


def reader(path: Path) -> Network:
    """An ONNX file as a function."""
    from fxdecomp.export.sessions import open_session

    session = open_session(path, threads=0)
    name = session.get_inputs()[0].name
    return lambda given: torch.from_numpy(session.run(None, {name: given.numpy()})[0])


def row(found: Mapping[str, Any]) -> str:
    """A row of the table."""
    ratio, right, size = found["ratio"], found["right"], found["bytes"]
    speed = f"{ratio['value']:.2f}x [{ratio['low']:.2f}, {ratio['high']:.2f}]" if ratio else "1"
    cells = [
        f"{CASES[found['network']].kind}",
        f"`{found['preset']}`",
        f"`{found['ship']}.onnx`",
        speed,
        f"{right['dense']:.1%} → {right['ship']:.1%} of {found['of']}",
        f"{size['dense'] / 1e6:.2f} → {size['ship'] / 1e6:.2f} MB",
        f"{found['took_s']:.0f} s",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", help=f"some of {', '.join(CASES)}; all by default")
    parser.add_argument("--presets", nargs="+", default=list(PRESETS), choices=list(PRESETS))
    options = parser.parse_args()
    head = ("network", "preset", "ship", "times as fast", "right, unseen", "file", "took")
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}", flush=True)
    for name in options.networks or CASES:
        for preset in options.presets:
            found = run(name, preset)
            with (FOLDER / "rows.jsonl").open("a", encoding="utf-8") as kept:
                print(json.dumps(found), file=kept)
            print(row(found), flush=True)


if __name__ == "__main__":
    main()
