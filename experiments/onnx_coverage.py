"""How much of ONNX cprune reads: onnx's own backend tests, and real files.

    python -m experiments.onnx_coverage
    python -m experiments.onnx_coverage --files a.onnx b.onnx --input x=1,3,96,160 --fix sr=16000

The first reads every model of onnx's test data that lies in the package (every operator, at every opset, and small
models of PyTorch's exporter, brought to opset 17 where they are older than 7), runs it on the inputs given there and
compares with the outputs given there.  A model is equal, refused with a message, wrong, or ends in another exception;
the last two must be 0.  Shapes that the tests hand over as inputs are constants in models; where such a test is
refused, it is read again with those inputs fixed.

The second opens files, compares with ONNX Runtime, removes 30 % of the channels of every group at random, compares with
the whole network with those channels masked, writes the result and compares that with ONNX Runtime again.
"""

from __future__ import annotations

import argparse
import random
import re
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cprune.channels.groups import analyse
from cprune.channels.surgery import masked, prune
from cprune.models.formats.onnx import opened, runtime_difference, write
from cprune.models.formats.onnx.opened import model_of
from cprune.models.formats.onnx.read import OLDEST_OPSET, graph_of
from cprune.models.opened import Opened
from cprune.network.capture import capture
from cprune.targets.errors import UserError

KINDS = ("node", "simple", "pytorch-converted", "pytorch-operator")
HALF = ("float16", "bfloat16")


# -- onnx's own tests


def backend(kind: str) -> tuple[Counter[str], Counter[str], list[str]]:
    """Return how many models came out how, why others were refused, and what went wrong."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = load_model_tests(kind=kind)
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    bad = []
    for case in cases:
        try:
            model, data = _loaded(case)
            how = _tried(case, model, data, capturing=kind != "node")
        except UserError as error:
            how = "refused"
            reasons[_reason(error)] += 1
        except Exception as error:
            how = "exception"
            bad.append(f"{case.name}: {type(error).__name__} {str(error)[:200]}")
        if how.startswith("wrong"):
            bad.append(f"{case.name}: {how}")
        counts[how.partition(":")[0]] += 1
    return counts, reasons, bad


def _loaded(case: Any) -> tuple[Any, list[tuple[list[Any], list[Any]]]]:
    """Return a test's model, and pairs of inputs and outputs."""
    import onnx
    import onnx.version_converter

    if case.model is not None:
        return case.model, [([_array(x) for x in i], [_array(x) for x in o]) for i, o in case.data_sets]
    folder = Path(case.model_dir)
    model = onnx.load(folder / "model.onnx")
    if min(o.version for o in model.opset_import) < OLDEST_OPSET:  # what cprune tells its user to do
        model = onnx.version_converter.convert_version(model, 17)
    data = []
    for there in sorted(folder.glob("test_data_set_*")):
        pair = []
        for which, values in (("input", model.graph.input), ("output", model.graph.output)):
            files = sorted(there.glob(f"{which}_*.pb"), key=lambda f: int(f.stem.split("_")[1]))
            pair.append([_tensor_in(file, value) for file, value in zip(files, values, strict=False)])
        data.append((pair[0], pair[1]))
    return model, data


def _tensor_in(file: Path, value: Any) -> Any:
    import onnx

    if value.type.WhichOneof("value") != "tensor_type":
        return None
    tensor = onnx.TensorProto()
    tensor.ParseFromString(file.read_bytes())
    return onnx.numpy_helper.to_array(tensor)


def _array(x: Any) -> Any:
    import onnx

    if isinstance(x, onnx.TensorProto):
        return onnx.numpy_helper.to_array(x)
    return np.asarray(x) if isinstance(x, np.generic) else x


def _tried(case: Any, model: Any, data: Sequence[tuple[list[Any], list[Any]]], capturing: bool) -> str:
    for inputs, outputs in data:
        names = [value.name for value in model.graph.input][: len(inputs)]
        given = dict(zip(names, inputs, strict=True))
        try:
            how = _compared(case, _opened(model, given, {}), given, outputs, capturing)
        except UserError:
            fixed = {name: x for name, x in given.items() if _is_number(x)}
            if not fixed:
                raise
            how = _compared(case, _opened(model, given, fixed), given, outputs, capturing)
            how = how if how.startswith("wrong") else "equal, inputs fixed"
    return how


def _is_number(x: Any) -> bool:
    return isinstance(x, np.ndarray) and x.ndim <= 1 and (x.dtype.kind in "iub" or x.size <= 8)


def _opened(model: Any, given: Mapping[str, Any], fixed: Mapping[str, Any]) -> Opened:
    graph = graph_of(model, "the model")
    names = [value.name for value in graph.inputs]
    shapes = {n: x.shape for n, x in given.items() if n in names and n not in fixed and isinstance(x, np.ndarray)}
    return model_of(graph, shapes, {n: x for n, x in fixed.items() if n in names})


def _compared(case: Any, found: Opened, given: Mapping[str, Any], outputs: Sequence[Any], capturing: bool) -> str:
    inputs = tuple(_tensor(given[name]) for name in found.input_names)
    module: nn.Module = found.model
    if capturing:
        module = capture(module, tuple(x for x in inputs))
    with torch.no_grad():
        results = module(*inputs)
    for wanted, result in zip(outputs, results if isinstance(results, tuple) else (results,), strict=False):
        half = wanted.dtype.name in HALF
        wanted = _tensor(wanted)
        if wanted.dtype != result.dtype or wanted.shape != result.shape:
            return f"wrong: {result.dtype} {list(result.shape)} instead of {wanted.dtype} {list(wanted.shape)}"
        rtol, atol = (5e-3, 5e-3) if half else (case.rtol, max(case.atol, 1e-6))
        if not torch.allclose(result.double(), wanted.double(), rtol, atol, equal_nan=True):
            return f"wrong: by {(result.double() - wanted.double()).abs().max():.3g}"
    return "equal"


def _tensor(array: Any) -> Tensor:
    array = np.asarray(array)
    return torch.from_numpy(np.array(array.astype(np.float32) if array.dtype.name in HALF else array))


def _reason(error: UserError) -> str:
    text = error.message.removeprefix("the model: ").removeprefix("the model ")
    text = re.sub(r"the operator (\w+) (\S+|\(number \d+\)) fails on .*", r"the operator \1 fails on its input", text)
    text = re.sub(r", not array\(.*", ", not what was given", text, flags=re.DOTALL)
    text = re.sub(r" \(the first is .*\)", "", text)
    return re.sub(r" '[^']*'| \(number \d+\)|\d+", "", text)


# -- files


def row(path: Path, shapes: Mapping[str, Any], fixed: Mapping[str, Any]) -> list[str]:
    """Return what became of one file."""
    import onnx

    names = [value.name for value in onnx.load(path, load_external_data=False).graph.input]
    shapes = {name: shape for name, shape in shapes.items() if name in names}
    fixed = {name: value for name, value in fixed.items() if name in names}
    start = time.perf_counter()
    try:
        model = opened(path, shapes, fixed)
        network = capture(model.model, model.example_inputs)
        cells = [path.name, f"{time.perf_counter() - start:.1f}"]
        cells.append(f"{_against_runtime(path, model, fixed):.1e}")
        graph = analyse(network, model.example_inputs)
        frozen = sum(one.channels for one in graph.frozen)
        cells += [str(len(graph.groups)), str(sum(g.channels for g in graph.groups)), str(frozen)]
        draw = random.Random(0)
        gone = {g.id: draw.sample(range(g.channels), int(0.3 * g.channels)) for g in graph.groups}
        small = prune(network, graph, gone)
        cells.append(f"{_apart(small, model.example_inputs, masked(network, graph, gone, *model.example_inputs)):.1e}")
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / path.name
            batch = write(small, file, model.input_names, model.output_names, model.example_inputs)
            cells.append(f"{runtime_difference(file, small, model.example_inputs):.1e}")
            again = opened(file, {n: x.shape for n, x in zip(model.input_names, model.example_inputs, strict=True)})
            with torch.no_grad():
                cells.append(f"{_apart(small, model.example_inputs, again.model(*model.example_inputs)):.1e}")
        cells.append("open" if batch else "closed")
        for one in graph.frozen:
            print(f"  {path.name}: {one.channels} channels of {', '.join(one.layers[:3])} stay: {one.reason}")
    except UserError as error:
        return [path.name, str(error).replace("\n", " ")]
    return cells


def _apart(network: nn.Module, inputs: Sequence[Tensor], wanted: Any) -> float:
    with torch.no_grad():
        found = network(*inputs)
    pairs = zip(*(x if isinstance(x, tuple) else (x,) for x in (found, wanted)), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


def _against_runtime(path: Path, model: Opened, fixed: Mapping[str, Any]) -> float:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options)
    given = dict(zip(model.input_names, (x.numpy() for x in model.example_inputs), strict=True))
    types = {"tensor(float16)": np.float16, "tensor(int64)": np.int64, "tensor(float)": np.float32}
    feed = {}
    for value in session.get_inputs():
        array = np.asarray(given[value.name] if value.name in given else fixed[value.name])
        feed[value.name] = array.astype(types.get(value.type, array.dtype))
    wanted = tuple(torch.from_numpy(array) for array in session.run(list(model.output_names), feed))
    return _apart(model.model, model.example_inputs, wanted)


def main() -> None:
    """Run what the command line asks for and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", nargs="+", type=Path, default=[])
    parser.add_argument("--input", action="append", default=[], help="NAME=1,3,224,224, for every file that has it")
    parser.add_argument("--fix", action="append", default=[], help="NAME=NUMBER")
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.files:
        shapes = {name: [int(n) for n in text.split(",")] for name, text in (i.split("=") for i in options.input)}
        fixed = {name: int(text) for name, text in (i.split("=") for i in options.fix)}
        head = [
            "file",
            "seconds",
            "from ORT",
            "groups",
            "channels",
            "frozen",
            "pruned-masked",
            "written",
            "again",
            "batch",
        ]
        print("\n".join("  ".join(cells) for cells in [head, *(row(f, shapes, fixed) for f in options.files)]))
        return
    for kind in options.kinds:
        counts, reasons, bad = backend(kind)
        print(f"{kind}: {sum(counts.values())} models: {', '.join(f'{n} {how}' for how, n in counts.most_common())}")
        for reason, count in reasons.most_common():
            print(f"    {count:4} {reason}")
        for text in bad:
            print(f"    !! {text}")


if __name__ == "__main__":
    main()
