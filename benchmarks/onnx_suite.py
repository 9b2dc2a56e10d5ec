"""onnx's own backend cases through import, full-rank transform and export.

    python -m benchmarks.onnx_suite [--kind node] [--only PATTERN] [--json build/onnx_suite.json]

Each case brings a model, inputs and outputs; `layers` are the cases of single layers again, with their
weights as constants, as files have them. Those that ONNX Runtime itself runs are counted; a case has come
through where the graph gives the file's outputs, and so does the file that is written of it after every layer
was replaced by a chain of full rank.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnx.backend.test.case.node import collect_testcases
from onnx.backend.test.loader import load_model_tests

import fxdecomp
from fxdecomp import FxdecompError, Policy, Rule
from fxdecomp.export.sessions import open_session
from fxdecomp.export.tensor_runs import as_value, run_on_tensors
from fxdecomp.importing import from_onnx
from fxdecomp.layers import LayerSpec
from fxdecomp.sites import survey

KINDS = ("node", "layers", "simple", "pytorch-converted", "pytorch-operator")


LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "LSTM", "GRU", "Einsum")


@dataclass(frozen=True)
class Row:
    """What became of one case: `step` is empty where it came through, `by_itself` where it is not counted."""

    kind: str
    name: str
    step: str = ""
    reason: str = ""
    carried: int = 0
    layers: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=KINDS, action="append")
    parser.add_argument("--only", default="*", help="a pattern of names of cases")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in options.kind or KINDS:
            for name, path, feeds in cases(kind, Path(folder)):
                if fnmatch.fnmatch(name, options.only):
                    rows.append(tried(kind, name, path, feeds))
                    if rows[-1].step not in ("", "by itself"):
                        print(f"{kind} {name}: {rows[-1].step}: {rows[-1].reason[:300]}", file=sys.stderr)
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


def cases(kind: str, folder: Path) -> Iterator[tuple[str, Path, list[Any]]]:
    """The cases of a kind: name, model file, and the inputs of its first data set."""
    if kind in ("node", "layers"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the cases compute their own outputs, some of them NaN
            found = collect_testcases()
        for case in found:
            path, model = folder / f"{case.name}.onnx", case.model
            if model is None:
                continue
            if kind == "layers" and not _bind_weights(model, case.data_sets):
                continue
            onnx.save(model, path)
            types = [item.type for item in model.graph.input]
            values = case.data_sets[0][0] if case.data_sets else []
            yield case.name, path, [_as_input(v, t) for v, t in zip(values, types, strict=False)]
            path.unlink()
        return
    for test in load_model_tests(kind=kind):
        path = Path(str(test.model_dir)) / "model.onnx"
        data = sorted(path.parent.glob("test_data_set_*"))
        yield test.name, path, _inputs(path, data[0]) if data else []


def _bind_weights(model: Any, data: Any) -> bool:
    """Make constants of what a single layer takes beside its first input; whether there is such a layer."""
    if len(model.graph.node) != 1 or model.graph.node[0].op_type not in LAYERS or not data:
        return False
    for item, value in zip(list(model.graph.input)[1:], data[0][0][1:], strict=True):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), item.name))
        model.graph.input.remove(item)
    return True


def _inputs(path: Path, folder: Path) -> list[Any]:
    """The inputs of a data set, arrays or lists of them."""
    declared = onnx.load(str(path), load_external_data=False).graph.input
    files = sorted(folder.glob("input_*.pb"), key=lambda file: int(file.stem.removeprefix("input_")))
    return [_read(file.read_bytes(), item.type) for file, item in zip(files, declared, strict=False)]


def _read(data: bytes, kind: Any) -> Any:
    """A value of one of ONNX's types."""
    if kind.HasField("sequence_type"):
        return numpy_helper.to_list(onnx.SequenceProto.FromString(data))
    if kind.HasField("optional_type"):
        return numpy_helper.to_optional(onnx.OptionalProto.FromString(data))
    return _as_input(onnx.TensorProto.FromString(data), kind)


def _as_input(value: Any, kind: Any) -> Any:
    """A value of a case as ONNX Runtime takes it."""
    if isinstance(value, list):
        return [_as_input(each, kind) for each in value]
    if isinstance(value, onnx.SequenceProto):
        return numpy_helper.to_list(value)
    if isinstance(value, onnx.OptionalProto):
        return numpy_helper.to_optional(value)
    if value is None:
        return None
    array = numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)
    if array.dtype.name in ("bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"):
        bits = torch.from_numpy(np.array(array).view(f"i{array.dtype.itemsize}"))
        return bits.view(getattr(torch, array.dtype.name))
    return array.astype(object) if array.dtype.kind in "US" else array


def tried(kind: str, name: str, path: Path, feeds: Sequence[Any]) -> Row:
    """One case on its way."""
    try:
        run_on_tensors(open_session(path), [as_value(each) for each in feeds])
    except Exception as error:  # noqa: BLE001 - whatever it raises, it does not run it
        return Row(kind, name, "by itself", f"{type(error).__name__}: {error}"[:300])
    step = "import"
    try:
        imported = from_onnx(path, inputs=feeds)
        step = "trace"
        gm = fxdecomp.trace(imported.gm, imported.example_inputs)
        layers = 0
        if survey(gm).sites:
            step = "transform"
            full = Policy(
                rules=[
                    Rule(site.name, method=_method(site.spec), rank=fxdecomp.Energy(1.0))
                    for site in survey(gm).sites
                ],
                require_saving=False,
            )
            gm = fxdecomp.transform(gm, full)
            layers = len(fxdecomp.report(gm).applied)
        step = "export"
        with tempfile.TemporaryDirectory() as folder:
            written = fxdecomp.export.to_onnx(gm, imported.example_inputs, Path(folder) / "out.onnx")
        if any("was not used" in note for note in written.notes):
            return Row(kind, name, "splice", " ".join(written.notes)[:300], len(imported.carried), layers)
        return Row(kind, name, carried=len(imported.carried), layers=layers)
    except FxdecompError as error:
        return Row(kind, name, step, str(error)[:300])
    except Exception as error:  # noqa: BLE001 - this is what is looked for
        return Row(kind, name, f"raw error at {step}", f"{type(error).__name__}: {error}"[:300])


def _method(spec: LayerSpec) -> str:
    """A method that is exact at full rank, whatever the layer."""
    return "svd" if spec.is_linear or set(spec.kernel) == {1} else "channel_svd"


def table(rows: Sequence[Row]) -> str:
    """The counts by kind, and every case that did not come through."""
    lines = [
        "| kind | cases | ONNX Runtime runs | come through | of them with carried nodes | with layers |",
        "|---|---|---|---|---|---|",
    ]
    for kind in dict.fromkeys(row.kind for row in rows):
        of_kind = [row for row in rows if row.kind == kind]
        run = [row for row in of_kind if row.step != "by itself"]
        through = [row for row in run if not row.step]
        carried, layers = (sum(bool(getattr(row, key)) for row in through) for key in ("carried", "layers"))
        share = len(through) / max(len(run), 1)
        lines.append(
            f"| {kind} | {len(of_kind)} | {len(run)} | {len(through)} ({share:.1%}) | {carried} | {layers} |"
        )
    failed = [row for row in rows if row.step not in ("", "by itself")]
    lines += ["", str(dict(Counter(row.step for row in failed)))] if failed else []
    lines += [f"- {row.kind} `{row.name}`, {row.step}: {row.reason}" for row in failed]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
