"""Nothing in a `.pt2` file runs: a payload for every way in which torch would run it."""

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxdecomp
from fxdecomp.cli.loading import load_model
from fxdecomp.tracing.archives import check_archive
from fxdecomp.tracing.exported import load_program
from fxdecomp.tracing.guards import InputConditions

MODEL, WEIGHTS = "models/model.json", "data/weights/model_weights_config.json"
CONSTANTS, INPUTS = "data/constants/model_constants_config.json", "data/sample_inputs/model.pt"


class Net(nn.Module):
    """Sizes, conditions, keyword arguments, a number among the outputs, an attention."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.register_buffer("scale", torch.ones(1))

    def forward(self, x: Tensor, *, shift: Tensor) -> dict[str, Any]:
        y = self.norm(self.conv(x)).flatten(2).transpose(1, 2)
        if x.shape[2] % 4 == 0:
            y = y * 2
        return {"y": self.attention(y, y, y)[0] * self.scale, "rows": x.shape[0] * 2, "z": shift + 1}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    free = torch.export.Dim.AUTO
    program = torch.export.export(
        Net().eval(),
        (torch.randn(2, 3, 8, 8),),
        {"shift": torch.randn(2, 1)},
        dynamic_shapes={"x": {0: free, 2: free}, "shift": {0: free}},
    )
    path = tmp_path_factory.mktemp("archive") / "good.pt2"
    torch.export.save(program, path)
    return path


class Payload:
    """Leaves a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.mark}",)


def altered(good: Path, path: Path, records: dict[str, Callable[[bytes], bytes]]) -> Path:
    """A copy of an archive with records changed or added, behind its root folder."""
    with zipfile.ZipFile(good) as before, zipfile.ZipFile(path, "w") as after:
        root = before.namelist()[0].split("/")[0]
        for item in before.infolist():
            change = records.get(item.filename.removeprefix(f"{root}/"), bytes)
            after.writestr(item.filename, change(before.read(item)))
        for name, change in records.items():
            if f"{root}/{name}" not in before.namelist():
                after.writestr(f"{root}/{name}", change(b""))
    return path


def in_json(change: Callable[[Any], object]) -> Callable[[bytes], bytes]:
    def changed(data: bytes) -> bytes:
        read = json.loads(data)
        change(read)
        return json.dumps(read).encode()

    return changed


def pickled(mark: Path) -> Callable[[bytes], bytes]:
    def changed(_: bytes) -> bytes:
        buffer = io.BytesIO()
        torch.save(((Payload(mark),), {}), buffer)
        return buffer.getvalue()

    return changed


def payloads(mark: Path) -> dict[str, dict[str, Callable[[bytes], bytes]]]:
    """Every kind, each with the command that leaves the mark."""
    code = f"__import__('os').system('touch {mark}')"

    def guard(model: Any) -> None:
        model["guards_code"] = [f"{code} == 0"]

    def size(model: Any) -> None:
        model["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][0]["as_expr"]["expr_str"] = code

    def hidden_size(model: Any) -> None:
        model["graph_module"]["graph"]["tensor_values"]["x"]["sizes"][0]["as_expr"]["expr_str"] = (
            f"Symbol('s1', positive={code})"
        )

    def node(target: str) -> Callable[[Any], None]:
        def add(model: Any) -> None:
            graph = model["graph_module"]["graph"]
            argument = {"name": "command", "arg": {"as_string": f"touch {mark}"}, "kind": 1}
            values = {"as_sym_int": {"as_name": "ran"}}
            graph["nodes"].append(
                {**graph["nodes"][0], "target": target, "inputs": [argument], "outputs": [values]}
            )

        return add

    def name(model: Any) -> None:
        graph = json.dumps(model["graph_module"])
        model["graph_module"] = json.loads(graph.replace('"shift"', f'"shift={code}"'))

    def argument(model: Any) -> None:
        for entry in model["graph_module"]["module_call_graph"]:
            if entry["signature"]:
                entry["signature"]["forward_arg_names"] = ["x", f"shift={code}"]

    def keyword(model: Any) -> None:
        for entry in model["graph_module"]["module_call_graph"]:
            if entry["signature"]:
                entry["signature"]["forward_arg_names"] = None
                spec = entry["signature"]["in_spec"]
                entry["signature"]["in_spec"] = spec.replace("shift", f"shift={code}")

    def enumeration(model: Any) -> None:
        for entry in model["graph_module"]["module_call_graph"]:
            if entry["signature"]:
                spec = json.loads(entry["signature"]["out_spec"])
                spec[1]["context"] = json.dumps([{"__enum__": 1, "fqn": "antigravity:geohash"}, "rows", "z"])
                entry["signature"]["out_spec"] = json.dumps(spec)

    def parameter(model: Any) -> None:
        specs = model["graph_module"]["signature"]["input_specs"]
        told = next(spec["parameter"] for spec in specs if "parameter" in spec)
        told["parameter_name"] = f'a-b"), {code}, ("'

    def opaque(config: Any) -> None:
        config["config"]["scale"] = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True}

    def weight(config: Any) -> None:
        config["config"]["conv.weight"]["use_pickle"] = True

    return {
        "guard": {MODEL: in_json(guard)},
        "size": {MODEL: in_json(size)},
        "assumption of a size": {MODEL: in_json(hidden_size)},
        "operator": {MODEL: in_json(node("torch.serialization.os.system"))},
        "operator of Python": {MODEL: in_json(node("_operator.methodcaller"))},
        "operator that writes files": {MODEL: in_json(node("torch.ops.aten.save.default"))},
        "library": {MODEL: in_json(node("torch.ops.load_library"))},
        "name": {MODEL: in_json(name)},
        "argument": {MODEL: in_json(argument)},
        "keyword": {MODEL: in_json(keyword)},
        "enumeration": {MODEL: in_json(enumeration)},
        "parameter": {MODEL: in_json(parameter)},
        "pickled inputs": {INPUTS: pickled(mark)},
        "pickled weight": {WEIGHTS: in_json(weight), "data/weights/weight_0": pickled(mark)},
        "pickled constant": {
            CONSTANTS: in_json(opaque),
            "data/constants/opaque_obj_0": lambda _: pickle.dumps(Payload(mark)),
        },
        "old weights": {"data/weights/model.pt": pickled(mark)},
        "compiled": {"data/aotinductor/model/model.so": lambda _: b"\x7fELF"},
    }


def test_a_value_without_end_is_refused(good: Path, tmp_path: Path) -> None:
    def enlarge(model: Any) -> None:
        model["graph_module"]["graph"]["tensor_values"]["z"] = {
            "sizes": [{"as_int": 10**7}, {"as_int": 10**7}]
        }

    evil = altered(good, tmp_path / "evil.pt2", {MODEL: in_json(enlarge)})
    with pytest.raises(fxdecomp.TraceError, match=r"the value 'z' in models/model\.json has 1e\+14 elements"):
        load_program(evil)


KINDS = sorted(payloads(Path()))


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_would_run_something_is_refused_and_runs_nothing(
    kind: str, good: Path, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    evil = altered(good, tmp_path / "evil.pt2", payloads(mark)[kind])
    with pytest.raises(fxdecomp.TraceError, match=r"evil\.pt2 is refused: .*pass --trust"):
        fxdecomp.trace(evil, (torch.randn(2, 3, 8, 8),))
    with pytest.raises(fxdecomp.TraceError, match="is refused"):
        load_model(str(evil))
    assert not mark.exists()


def test_files_of_torch_are_taken(good: Path) -> None:
    check_archive(good)
    loaded = load_model(str(good))
    gm = fxdecomp.trace(loaded.model, loaded.example_inputs)
    x, shift = torch.randn(3, 3, 12, 8), torch.randn(3, 1)
    assert set(gm(x, shift=shift)) == {"y", "rows", "z"}
    with pytest.raises(fxdecomp.TraceError, match="the graph holds where"):
        gm(torch.randn(3, 3, 10, 8), shift=shift)


def test_a_file_of_ones_own_is_opened_on_trust(good: Path, tmp_path: Path) -> None:
    weight, buffer = nn.Parameter(torch.full((8, 3, 3, 3), 0.5)), io.BytesIO()
    torch.save(weight, buffer)
    records = payloads(tmp_path)["pickled weight"] | {"data/weights/weight_0": lambda _: buffer.getvalue()}
    own = altered(good, tmp_path / "own.pt2", records)
    with pytest.raises(fxdecomp.TraceError, match=r"keeps 'conv\.weight' as a pickle"):
        load_program(own)
    assert torch.equal(load_program(own, trust=True).state_dict["conv.weight"], weight)


def test_a_condition_is_never_run_even_in_a_graph_of_the_users_own() -> None:
    conditions = InputConditions(("__import__('os').getcwd() != ''",), ("x",))
    with pytest.raises(fxdecomp.TraceError, match="is no condition of a graph: it holds"):
        conditions(torch.ones(1))


def test_a_trusted_file_is_still_not_evaluated(good: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    own = altered(good, tmp_path / "own.pt2", payloads(mark)["guard"])
    with pytest.raises(fxdecomp.TraceError, match="which is no comparison of sizes"):
        fxdecomp.trace(load_program(own, trust=True), (torch.randn(2, 3, 8, 8),))
    assert not mark.exists()
