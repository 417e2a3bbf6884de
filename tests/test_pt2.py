"""`.pt2` files come in without running anything of them, and go out so that PyTorch opens them."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_nets import NETS, Chain, Tied, captured, conv, randomised
from torch import Tensor, nn
from torch._export.serde import schema, serialize
from torch.export import Dim
from torch.utils._pytree import tree_leaves

from cprune.channels.groups import analyse
from cprune.models.formats import pt2
from cprune.network import open_batch
from cprune.network.capture import capture
from cprune.targets.errors import UserError


def saved(model: nn.Module, inputs: tuple[Tensor, ...], path: Path, any_batch: bool = True) -> Path:
    free = tuple({0: Dim.AUTO} for _ in inputs) if any_batch else None
    torch.export.save(torch.export.export(model.eval(), inputs, dynamic_shapes=free), path)
    return path


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(randomised(Chain()), Chain().example(), tmp_path_factory.mktemp("pt2") / "chain.pt2")


def changed(source: Path, path: Path, change: Callable[[str, bytes], bytes | None], packed: bool = False) -> Path:
    """Write the archive again with `change(name, content)` of every part; None leaves it out."""
    how = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w", how) as new:
        for info in old.infolist():
            content = change(info.filename, old.read(info))
            if content is not None:
                new.writestr(info.filename, content)
    return path


def edited(part: str, edit: Callable[[Any], None]) -> Callable[[str, bytes], bytes]:
    """Return a change of the JSON in the parts that end so."""

    def change(name: str, content: bytes) -> bytes:
        if not name.endswith(part):
            return content
        told = json.loads(content)
        edit(told)
        return json.dumps(told).encode()

    return change


def test_our_numbers_are_those_of_this_version_of_torch() -> None:
    assert schema.SCHEMA_VERSION[0] == pt2.SCHEMA
    dtypes = serialize._TORCH_TO_SERIALIZE_DTYPE
    assert {dtypes[dtype].value: dtype for dtype in pt2._DTYPES.values()} == pt2._DTYPES
    formats = serialize._TORCH_TO_SERIALIZE_MEMORY_FORMAT
    assert {kind.value: memory for memory, kind in formats.items()} == pt2._MEMORY
    assert schema.Layout.Strided.value == pt2._STRIDED


# -- what comes in is the model


@pytest.mark.parametrize("name", NETS)
def test_a_network_comes_back_from_its_file(name: str, tmp_path: Path) -> None:
    model = randomised(NETS[name]())
    found = pt2.read(saved(model, model.example(), tmp_path / "m.pt2"))
    for size in (1, 3):
        x = model.example(size)
        for a, b in zip(tree_leaves(found.network(*x)), tree_leaves(model(*x)), strict=True):
            torch.testing.assert_close(a, b)
    assert found.network.state_dict().keys() == captured(name).network.state_dict().keys()
    assert [x.shape[0] for x in found.example_inputs] == [1]


@pytest.mark.parametrize("name", NETS)
def test_it_has_the_groups_of_the_model(name: str, tmp_path: Path) -> None:
    model = randomised(NETS[name]())
    found = pt2.read(saved(model, model.example(), tmp_path / "m.pt2"))
    graph = analyse(found.network, model.example(), raise_bugs=True)
    assert graph.groups == captured(name).graph.groups
    assert graph.frozen == captured(name).graph.frozen  # with the lines of the model's code


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    found = pt2.read(saved(randomised(Tied()), Tied().example(), tmp_path / "m.pt2")).network
    assert len(list(found.parameters())) == len(list(captured("Tied").network.parameters()))


class Two(nn.Module):
    """Two inputs, one of them numbers of an embedding; returns a dict with a tuple in it."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.fc = nn.Embedding(5, 4), nn.Linear(3, 4)

    def forward(self, x: Tensor, words: Tensor) -> dict[str, Any]:
        y = self.fc(x) + self.table(words)
        return {"sum": y, "parts": (y.mean(1), 2 * y)}


def test_several_inputs_and_outputs_keep_their_structure(tmp_path: Path) -> None:
    model = randomised(Two())
    x = (torch.randn(2, 3), torch.tensor([1, 4]))
    found = pt2.read(saved(model, x, tmp_path / "m.pt2"))
    assert found.input_names == ("x", "words")
    assert found.example_inputs[1].dtype == torch.int64
    result, wanted = found.network(*x), model(*x)
    assert list(result) == ["sum", "parts"]
    torch.testing.assert_close(result["parts"][1], wanted["parts"][1])


def test_a_shape_is_given_by_name_and_must_fit(chain: Path) -> None:
    assert pt2.read(chain, {"x": (4, 3, 8, 8)}).example_inputs[0].shape == (4, 3, 8, 8)
    assert pt2.read(chain, {"": (2, 3, 8, 8)}).example_inputs[0].shape == (2, 3, 8, 8)
    with pytest.raises(UserError, match="takes N x 3 x 8 x 8, not 1 x 3 x 9 x 9"):
        pt2.read(chain, {"x": (1, 3, 9, 9)})
    with pytest.raises(UserError, match="unknown input of the file 'y'"):
        pt2.read(chain, {"y": (1, 3, 8, 8)})


class WritesIntoAView(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(3, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y.view(-1)[:4].mul_(3)
        return y


def test_writing_into_a_view_is_refused_and_not_computed_wrongly(tmp_path: Path) -> None:
    path = saved(randomised(WritesIntoAView()), (torch.randn(2, 3, 8, 8),), tmp_path / "m.pt2")
    with pytest.raises(UserError, match="does not compute what the model does"):
        pt2.read(path)


# -- a batch of one in the file


class Flat(nn.Module):
    """Says its batch of one in every reshape."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = conv(3, 6), nn.Linear(6 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(F.relu(self.conv(x)), 2)
        return self.fc(x.view(1, 6, 4).reshape(1, -1))


def test_a_batch_of_one_is_opened(tmp_path: Path) -> None:
    model = randomised(Flat())
    found = pt2.read(saved(model, (torch.randn(1, 3, 8, 8),), tmp_path / "m.pt2", any_batch=False))
    with pytest.raises(UserError, match="the model takes 1 x 3 x 8 x 8"):
        found.network(torch.randn(3, 3, 8, 8))
    network = open_batch.opened(found.network, found.example_inputs)
    x = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(network(x), torch.cat([model(one[None]) for one in x]))


class AcrossTheBatch(nn.Module):
    """Would compute something else for several images: the mean goes over them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(3, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y - y.mean()


def test_a_batch_that_matters_stays_closed(tmp_path: Path) -> None:
    network = capture(randomised(AcrossTheBatch()), (torch.randn(1, 3, 8, 8),))
    nodes = [n for n in network.nodes if n.op == "input"]
    assert nodes[0].args[0][0] is None  # an nn.Module says itself what it does with a batch
    path = saved(randomised(AcrossTheBatch()), (torch.randn(1, 3, 8, 8),), tmp_path / "m.pt2", any_batch=False)
    found = pt2.read(path)
    assert open_batch.opened(found.network, found.example_inputs) is found.network


# -- nothing of the file is run


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def test_a_pickle_in_the_file_is_not_opened(chain: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"

    def change(name: str, content: bytes) -> bytes:
        if name.endswith("weights_config.json"):
            told = json.loads(content)
            told["config"]["conv1.weight"]["use_pickle"] = True
            return json.dumps(told).encode()
        return (
            pickle.dumps(Bomb(mark)) if name.endswith(("weight_0", "model.pt", "sample_inputs/chain.pt")) else content
        )

    with pytest.raises(UserError, match=r"'conv1\.weight' is pickled; cprune runs no code"):
        pt2.read(changed(chain, tmp_path / "m.pt2", change))
    assert not mark.exists()


def test_an_expression_in_the_file_is_not_evaluated(chain: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    code = f"__import__('os').mkdir({str(mark)!r})"

    def change(name: str, content: bytes) -> bytes:
        if not name.endswith("models/model.json"):
            return content
        told = json.loads(content)
        sizes = told["graph_module"]["graph"]["tensor_values"]["x"]["sizes"]
        sizes[0]["as_expr"]["expr_str"] = code
        return json.dumps(told).encode()

    pt2.read(changed(chain, tmp_path / "m.pt2", change))
    assert not mark.exists()


@pytest.mark.parametrize(
    "target",
    [
        "torch.ops.prim.device.default",
        "os.system",
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.__class__.mro",
        "torch.ops.aten.relu.__call__",
        "torch.ops.aten.relu",
        "builtins.eval",
    ],
)
def test_only_aten_s_operators_may_be_called(chain: Path, tmp_path: Path, target: str) -> None:
    def edit(told: Any) -> None:
        told["graph_module"]["graph"]["nodes"][-1]["target"] = target

    with pytest.raises(UserError, match="which is not one of ATen's"):
        pt2.read(changed(chain, tmp_path / "m.pt2", edited("models/model.json", edit)))


# -- damaged files


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.999])
def test_a_file_that_is_cut_short_is_refused(chain: Path, tmp_path: Path, share: float) -> None:
    data = chain.read_bytes()
    (tmp_path / "m.pt2").write_bytes(data[: int(share * len(data))])
    with pytest.raises(UserError, match="or is cut short"):
        pt2.read(tmp_path / "m.pt2")


def test_gigabytes_of_zeros_are_refused_at_once(tmp_path: Path) -> None:
    with (tmp_path / "m.pt2").open("wb") as file:
        file.truncate(5 << 30)
    with pytest.raises(UserError, match=r"is no \.pt2 file"):
        pt2.read(tmp_path / "m.pt2")


def test_a_part_that_unpacks_to_gigabytes_is_refused(chain: Path, tmp_path: Path) -> None:
    path = changed(chain, tmp_path / "m.pt2", lambda name, content: content, packed=True)
    with pytest.raises(UserError, match="is packed"):
        pt2.read(path)


def test_a_zip_file_of_something_else_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.pt2", "w") as archive:
        archive.writestr("hello.txt", "hello")
    with pytest.raises(UserError, match="it holds no exported model") as failure:
        pt2.read(tmp_path / "m.pt2")
    assert "torch.export.save" in failure.value.hint


def test_nan_weights_are_named(tmp_path: Path) -> None:
    model = randomised(Chain())
    with torch.no_grad():
        model.conv2.weight[0, 0, 0, 0] = float("nan")
    path = saved(model, Chain().example(), tmp_path / "m.pt2")
    with pytest.raises(UserError, match=r"'conv2\.weight' holds NaN"):
        pt2.read(path)


def shrink(told: Any) -> None:
    told["config"]["conv1.weight"]["tensor_meta"]["sizes"][0]["as_int"] = 1000


def forget(told: Any) -> None:
    del told["config"]["conv1.weight"]


def older(told: Any) -> None:
    told["schema_version"]["major"] = 3


def twisted(told: Any) -> None:
    told["graph_module"]["graph"]["nodes"].reverse()  # every value is read before it is made: no order is right


def mutating(told: Any) -> None:
    told["graph_module"]["signature"]["output_specs"][0] = {"buffer_mutation": {}}


def list_of_nothing(told: Any) -> None:
    told["graph_module"]["graph"]["nodes"] = None


@pytest.mark.parametrize(
    ("part", "edit", "message"),
    [
        ("weights_config.json", shrink, "is damaged"),
        ("weights_config.json", forget, r"the weights lack the tensor 'conv1\.weight'"),
        ("models/model.json", older, "schema 3 of torch.export, this version of cprune reads 8"),
        ("models/model.json", twisted, "is damaged"),
        ("models/model.json", mutating, "changes a buffer or an input"),
        ("models/model.json", list_of_nothing, "is damaged"),
    ],
)
def test_a_damaged_file_is_refused(
    chain: Path, tmp_path: Path, part: str, edit: Callable[[Any], None], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        pt2.read(changed(chain, tmp_path / "m.pt2", edited(part, edit)))


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        pt2.read(tmp_path / "none.pt2")
    with pytest.raises(UserError, match="cannot read"):
        pt2.read(tmp_path)
