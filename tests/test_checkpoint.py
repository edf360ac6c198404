"""Checkpoints: the course's and ours in, ours out; from strangers, broken, and while the disk fills up."""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib
import io
import json
import logging
import operator
import os
import pickle
import random
import resource
import signal
import subprocess
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import kvarts.checkpoint
from disk import no_file_beyond
from kvarts.checkpoint import COURSE_BLOCKS, SafeCheckpointIO, load_model, load_weights, read_checkpoint, save_weights
from kvarts.decoder import ConvDecoder
from kvarts.encoder import BlockConfig, QuartzNet
from kvarts.errors import ArchitectureMismatchError, CheckpointError, OutputError
from kvarts.model import QuartzNetCTC


class Row(NamedTuple):
    """A row of the course's layer table."""

    filters: int
    repeat: int
    kernel: int
    residual: bool = True
    separable: bool = True


COURSE_TABLE = [
    Row(256, 1, 33, residual=False),
    Row(256, 5, 33),
    Row(256, 5, 39),
    Row(512, 5, 51),
    Row(512, 5, 63),
    Row(512, 5, 75),
    Row(512, 1, 87, residual=False),
    Row(1024, 1, 1, residual=False, separable=False),
]


def shapes_of(table: list[Row]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a checkpoint's state_dict, from the layer table and the course's naming alone."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name: str, out: int, into: int, kernel: int) -> None:
        shapes[f"{name}.weight"] = (out, into, kernel)
        shapes[f"{name}.bias"] = (out,)

    def batch_norm(name: str, channels: int) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{part}"] = (channels,)
        shapes[f"{name}.num_batches_tracked"] = ()

    into = 64
    for number, row in enumerate(table):
        block = f"encoder.layers.{number}"
        channels = into
        for repeat in range(row.repeat):
            if row.separable:
                conv(f"{block}.conv.{5 * repeat}", channels, 1, row.kernel)
                conv(f"{block}.conv.{5 * repeat + 1}", row.filters, channels, 1)
                batch_norm(f"{block}.conv.{5 * repeat + 2}", row.filters)
            else:
                conv(f"{block}.conv.0", row.filters, channels, row.kernel)
                batch_norm(f"{block}.conv.1", row.filters)
            channels = row.filters
        if row.residual:
            conv(f"{block}.res.0", row.filters, into, 1)
            batch_norm(f"{block}.res.1", row.filters)
        into = row.filters
    conv("decoder.layers.0", 34, into, 1)
    return shapes


def weights_of(table: list[Row], seed: int = 0) -> OrderedDict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    state_dict: OrderedDict[str, Tensor] = OrderedDict()
    for name, shape in shapes_of(table).items():
        if name.endswith("num_batches_tracked"):
            state_dict[name] = torch.tensor(9794)
        else:
            state_dict[name] = torch.rand(shape, generator=draw) * 0.1 + (0.5 if "running_var" in name else 0.0)
    return state_dict


TINY_TABLE = [Row(8, 1, 5, residual=False), Row(8, 2, 3), Row(12, 1, 1, residual=False, separable=False)]
TINY_BLOCKS = [
    BlockConfig(8, 1, 5, stride=4, residual=False),
    BlockConfig(8, 2, 3),
    BlockConfig(12, 1, 1, residual=False, separable=False),
]


def tiny_model(seed: int = 0) -> QuartzNetCTC:
    torch.manual_seed(seed)
    model = QuartzNetCTC(QuartzNet(TINY_BLOCKS), ConvDecoder(12))
    model.load_state_dict(weights_of(TINY_TABLE, seed))
    return model.eval()


def course_model() -> QuartzNetCTC:
    return QuartzNetCTC(QuartzNet(COURSE_BLOCKS), ConvDecoder())


def log_probs(model: QuartzNetCTC) -> Tensor:
    features = torch.randn(2, 50, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return model.log_probs(features, torch.tensor([50, 31]))[0]


def same_weights(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def one_line(error: BaseException, path: Path) -> bool:
    """What every message must be: one line that begins with the file and ends with what to do."""
    message = str(error)
    return message.startswith(f"{path}: ") and message.isprintable() and ("; " in message or ". " in message)


# ---------------------------------------------------------------------------------------- the course's checkpoint


@pytest.fixture(scope="module")
def course_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What Lightning 1.5 left behind: callbacks keyed by classes, some of them of modules that are not here."""
    path = tmp_path_factory.mktemp("course") / "q5x5_ru_stride_4_crowd_epoch_4_step_9794.ckpt"
    module = types.ModuleType("code_of_that_time")
    progress = type("ProgressBar", (), {"__module__": module.__name__})
    settings = type("Settings", (dict,), {"__module__": module.__name__})
    module.ProgressBar, module.Settings = progress, settings  # type: ignore[attr-defined]
    state_dict = weights_of(COURSE_TABLE)
    adam = {number: {"step": 9794, "exp_avg": torch.zeros(2)} for number in range(3)}
    checkpoint = {
        "epoch": 4,
        "global_step": 9794,
        "pytorch-lightning_version": "1.5.10",
        "state_dict": state_dict,
        "callbacks": {
            ModelCheckpoint: {"monitor": "val_wer", "best_model_score": torch.tensor(0.1), "dirpath": "logs"},
            progress: {"last": np.float64(0.25)},
        },
        "optimizer_states": [{"state": adam, "param_groups": [{"lr": 1e-3, "params": [0, 1, 2]}]}],
        "lr_schedulers": [{"T_max": 9794, "_last_lr": [0.0]}],
        "hyper_parameters": settings(model={"encoder": [1, 2, 3]}),
    }
    sys.modules[module.__name__] = module
    try:
        torch.save(checkpoint, path)
    finally:
        del sys.modules[module.__name__]
    return path


def test_the_course_checkpoint_is_one_that_the_safe_mode_of_pytorch_refuses(course_checkpoint: Path) -> None:
    with pytest.raises(pickle.UnpicklingError):
        torch.load(course_checkpoint, weights_only=True)


def test_the_table_of_this_test_is_the_course_network() -> None:
    shapes = shapes_of(COURSE_TABLE)
    parameters = {name: shape for name, shape in shapes.items() if "running" not in name and "num_b" not in name}
    encoder = sum(int(np.prod(shape)) for name, shape in parameters.items() if name.startswith("encoder"))
    decoder = sum(int(np.prod(shape)) for name, shape in parameters.items() if name.startswith("decoder"))
    assert (encoder, decoder) == (6_708_096, 34_850)


def test_the_course_checkpoint_loads_strictly(course_checkpoint: Path) -> None:
    model = load_model(course_checkpoint)
    assert not model.training
    assert same_weights(model.state_dict(), weights_of(COURSE_TABLE))
    assert "code_of_that_time" not in sys.modules


def test_init_weights_takes_the_course_checkpoint_and_says_so(
    course_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "lightning"):
        model = QuartzNetCTC(QuartzNet(COURSE_BLOCKS), ConvDecoder(), init_weights=str(course_checkpoint))
    assert same_weights(model.state_dict(), weights_of(COURSE_TABLE))
    assert "successful load initial weights" in caplog.messages


def test_what_stands_beside_the_weights_is_read_too(course_checkpoint: Path) -> None:
    checkpoint = read_checkpoint(course_checkpoint)
    assert (checkpoint["epoch"], checkpoint["global_step"]) == (4, 9794)
    assert len(checkpoint["callbacks"]) == 2
    assert torch.equal(checkpoint["optimizer_states"][0]["state"][2]["exp_avg"], torch.zeros(2))


def test_tensors_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    base = torch.arange(24.0)
    tensors = {
        **{str(dtype): torch.tensor([[0, 1], [1, 1]]).to(dtype) for dtype in (torch.float16, torch.bfloat16)},
        **{str(dtype): torch.tensor([0, 1, 1]).to(dtype) for dtype in (torch.float64, torch.int32, torch.bool)},
        **{str(dtype): torch.tensor([0, 1, 1]).to(dtype) for dtype in (torch.uint8, torch.int8, torch.int16)},
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "view": base.view(4, 6).T[1:3],
        "base": base,
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    torch.save(tensors, path)
    read = read_checkpoint(path)
    assert {name: tensor.dtype for name, tensor in read.items()} == {n: t.dtype for n, t in tensors.items()}
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


# ------------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("name", ["x.ckpt", "x.safetensors", "no_suffix"])
def test_saved_weights_come_back_to_the_bit(tmp_path: Path, name: str) -> None:
    model = tiny_model()
    save_weights(model, tmp_path / name)
    again = load_model(tmp_path / name)
    assert not again.training
    assert same_weights(again.state_dict(), model.state_dict())
    assert again.settings() == model.settings()
    assert torch.equal(log_probs(again), log_probs(model))
    other = tiny_model(seed=1)
    assert not same_weights(other.state_dict(), model.state_dict())
    load_weights(other, tmp_path / name)
    assert same_weights(other.state_dict(), model.state_dict())
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_what_we_save_is_the_course_layout_and_opens_in_the_safe_mode_of_pytorch(tmp_path: Path) -> None:
    save_weights(course_model(), tmp_path / "x.ckpt")
    state_dict = torch.load(tmp_path / "x.ckpt", weights_only=True)["state_dict"]
    assert {name: tuple(tensor.shape) for name, tensor in state_dict.items()} == shapes_of(COURSE_TABLE)
    save_weights(course_model(), tmp_path / "x.safetensors")
    with safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        assert set(file.keys()) == set(shapes_of(COURSE_TABLE))


def test_half_precision_weights_load_as_single(tmp_path: Path) -> None:
    halves = {n: t.half() if t.is_floating_point() else t for n, t in weights_of(TINY_TABLE).items()}
    torch.save({"state_dict": halves, "kvarts": tiny_model().settings()}, tmp_path / "x.ckpt")
    model = load_model(tmp_path / "x.ckpt")
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert torch.equal(model.decoder.layers[0].weight, halves["decoder.layers.0.weight"].float())


# ------------------------------------------------------------------------------------ checkpoints from strangers


class Call:
    """Pickles as a call, which plain unpickling makes."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.reduced = (function, args)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.reduced

    def __call__(self) -> None:
        """Calls may be of what calls return."""


class Stateful:
    """Pickles as an object whose own `__setstate__` acts."""

    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __setstate__(self, state: dict[str, str]) -> None:
        Path(state["marker"]).touch()


class Keyed(dict[str, str]):
    """Pickles as a dict that acts when it is given an item."""

    def __setitem__(self, key: str, value: str) -> None:
        Path(value).touch()


def legacy(payload: object) -> bytes:
    """The format of PyTorch before 1.6: pickles one after the other, no zip archive."""
    buffer = io.BytesIO()
    torch.save({"state_dict": payload}, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def npy(payload: object) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([payload], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def zipped(pickled: bytes, **records: bytes) -> bytes:
    """A checkpoint of this pickle, byte for byte."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", "3\n")
        for name, content in records.items():
            archive.writestr(f"archive/data/{name}", content)
    return buffer.getvalue()


HOSTILE_OBJECTS: dict[str, Callable[[str], object]] = {
    "os.system": lambda marker: Call(os.system, f"touch {marker}"),
    "exec": lambda marker: Call(exec, f"open({marker!r}, 'w').close()"),
    "eval": lambda marker: Call(eval, f"open({marker!r}, 'w').close()"),
    "open": lambda marker: Call(open, marker, "w"),
    "subprocess": lambda marker: Call(subprocess.check_call, ["touch", marker]),
    "getattr": lambda marker: Call(Call(getattr, Path(marker), "touch")),
    "attrgetter": lambda marker: Call(
        Call(operator.attrgetter("system"), Call(importlib.import_module, "os")), f"touch {marker}"
    ),
    "map": lambda marker: Call(list, Call(map, os.system, [f"touch {marker}"])),
    "__setstate__": Stateful,
    "__setitem__": lambda marker: Keyed(x=marker),
    "torch.storage": lambda marker: Call(torch.storage._load_from_bytes, legacy(Call(os.system, f"touch {marker}"))),
    "torch.load": lambda marker: Call(
        functools.partial(torch.load, weights_only=False),
        io.BytesIO(legacy(Call(os.system, f"touch {marker}"))),
    ),
    "pickle": lambda marker: Call(pickle.loads, pickle.dumps(Call(os.system, f"touch {marker}"))),
    "numpy": lambda marker: Call(
        functools.partial(np.load, allow_pickle=True), io.BytesIO(npy(Call(os.system, f"touch {marker}")))
    ),
}

# Pickles by opcode (pickletools.opcodes): S string, c global, \x93 global from the stack, R call, i and o instances.
HOSTILE_PICKLES: dict[str, Callable[[str], bytes]] = {
    "REDUCE": lambda marker: f"cos\nsystem\n(S'touch {marker}'\ntR.".encode(),
    "INST": lambda marker: f"(S'touch {marker}'\nios\nsystem\n.".encode(),
    "OBJ": lambda marker: f"(cos\nsystem\nS'touch {marker}'\no.".encode(),
    "STACK_GLOBAL": lambda marker: b"\x80\x04\x8c\x05posix\x8c\x06system\x93" + argument(marker),
    "name with dots": lambda marker: b"\x80\x04\x8c\x0ctorch._utils\x8c\x0ftorch.os.system\x93" + argument(marker),
    "in torch": lambda marker: b"\x80\x04\x8c\x05torch\x8c\x09os.system\x93" + argument(marker),
    "persistent id": lambda marker: f"(S'storage'\ncos\nsystem\n(S'touch {marker}'\ntRS'0'\nS'cpu'\nI1\ntQ.".encode(),
    "before the end": lambda marker: f"cos\nsystem\n(S'touch {marker}'\ntR0(d.".encode(),
}


def argument(marker: str) -> bytes:
    return f"(S'touch {marker}'\ntR.".encode()


def read_by_all_means(path: Path) -> None:
    """Everything in the package that opens a checkpoint, and may fail, but do nothing else."""
    readers: list[Callable[[], object]] = [
        lambda: read_checkpoint(path),
        lambda: load_model(path),
        lambda: load_weights(tiny_model(), path),
        lambda: SafeCheckpointIO().load_checkpoint(path),
    ]
    for read in readers:
        with contextlib.suppress(CheckpointError):
            read()


@pytest.mark.parametrize("name", HOSTILE_OBJECTS)
def test_objects_that_act_when_unpickled_do_not(tmp_path: Path, name: str) -> None:
    marker = tmp_path / "marker"
    payload = HOSTILE_OBJECTS[name](str(marker))
    pickle.loads(pickle.dumps(payload))
    assert marker.exists(), "this payload would do no harm anywhere"
    marker.unlink()
    whole = {"state_dict": weights_of(TINY_TABLE), "kvarts": tiny_model().settings()}
    for content in (
        payload,
        whole | {"state_dict": payload},
        whole | {"state_dict": {"encoder.layers.0.conv.0.weight": payload}},
        whole | {"callbacks": {ModelCheckpoint: {"best": payload}}},
        whole | {"kvarts": payload},
    ):
        path = tmp_path / "x.ckpt"
        torch.save(content, path)
        read_by_all_means(path)
        assert not marker.exists()
    torch.save(whole | {"callbacks": {ModelCheckpoint: payload}}, path)
    assert same_weights(load_model(path).state_dict(), whole["state_dict"]), "the weights are of use all the same"


@pytest.mark.parametrize("name", HOSTILE_PICKLES)
def test_no_opcode_makes_a_call(tmp_path: Path, name: str) -> None:
    marker = tmp_path / "marker"
    pickled = HOSTILE_PICKLES[name](str(marker))
    with contextlib.suppress(pickle.UnpicklingError):
        pickle.loads(pickled)
    assert marker.exists(), "this payload would do no harm anywhere"
    marker.unlink()
    (tmp_path / "x.ckpt").write_bytes(zipped(pickled))
    read_by_all_means(tmp_path / "x.ckpt")
    assert not marker.exists()


def test_formats_that_torch_load_would_run(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    old = legacy(Call(os.system, f"touch {marker}"))
    path = tmp_path / "x.ckpt"
    for content in (
        old,
        # A zip archive is known by its end, the old format by its beginning: this is both.
        old + zipped(pickle.dumps({})),
        zipped(pickle.dumps({})) + old,
    ):
        path.write_bytes(content)
        read_by_all_means(path)
        assert not marker.exists()
    torch.load(io.BytesIO(old), weights_only=False)
    assert marker.exists(), "this payload would do no harm anywhere"


class Script(torch.nn.Module):
    """TorchScript has a `__setstate__` too, and it can write files."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path
        self.x = torch.zeros(1)

    @torch.jit.export
    def __getstate__(self):  # type: ignore[no-untyped-def]
        return (self.path, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.path = state[0]
        self.training = state[1]
        self.x = torch.from_file(state[0], shared=True, size=1)

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.filterwarnings("ignore")
def test_torchscript_programs_are_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    path = tmp_path / "x.ckpt"
    torch.jit.save(torch.jit.script(Script(str(marker))), path)
    read_by_all_means(path)
    assert not marker.exists()
    with pytest.raises(CheckpointError, match="TorchScript"):
        load_model(path)
    torch.load(path, weights_only=False)
    assert marker.exists(), "this payload would do no harm anywhere"


def test_a_pickle_changes_nothing_it_is_given(tmp_path: Path) -> None:
    """The opcode b sets attributes: of functions and classes too, where plain unpickling has its way."""
    build = "(dS'polluted'\nI1\ns(dS'polluted_too'\nI1\ns\x86b"  # state (dict for __dict__, dict for setattr)
    for module, name in (("torch._utils", "_rebuild_tensor_v2"), ("collections", "OrderedDict"), ("os", "system")):
        (tmp_path / "x.ckpt").write_bytes(zipped(f"c{module}\n{name}\n{build}.".encode("latin1")))
        read_by_all_means(tmp_path / "x.ckpt")
    for thing in (torch._utils._rebuild_tensor_v2, OrderedDict, os.system, kvarts.checkpoint._tensor):
        assert not hasattr(thing, "polluted")
        assert not hasattr(thing, "polluted_too")


class Hiding:
    """Pickles as an OrderedDict whose methods are hidden behind attributes of the same name."""

    def __reduce__(self) -> tuple[Any, ...]:
        return OrderedDict, (), {"items": "hidden", "keys": "hidden"}, None, iter(weights_of(TINY_TABLE).items())


def test_a_state_dict_cannot_hide_its_items(tmp_path: Path) -> None:
    torch.save({"state_dict": Hiding(), "kvarts": tiny_model().settings()}, tmp_path / "x.ckpt")
    assert same_weights(load_model(tmp_path / "x.ckpt").state_dict(), weights_of(TINY_TABLE))


def tensor_pickle(numel: int, size: int) -> bytes:
    """A pickled dict of one float32 tensor of `size` elements, over a storage that claims `numel`."""
    storage = f"(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI{numel}\ntQ"
    return f"(dS'w'\nctorch._utils\n_rebuild_tensor_v2\n({storage}I0\n(I{size}\nt(I1\ntI00\n(dtRs.".encode()


@pytest.mark.parametrize(("numel", "size"), [(4, 5), (4, 10**9), (5, 5), (3, 3), (10**6, 4), (-4, 4)])
def test_a_tensor_is_never_larger_than_its_data(tmp_path: Path, numel: int, size: int) -> None:
    path = tmp_path / "x.ckpt"
    content = np.arange(4, dtype=np.float32).tobytes()
    path.write_bytes(zipped(tensor_pickle(4, 4), **{"0": content}))
    assert read_checkpoint(path)["w"].tolist() == [0, 1, 2, 3]
    path.write_bytes(zipped(tensor_pickle(numel, size), **{"0": content}))
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert one_line(caught.value, path)


def test_names_from_a_file_do_not_command_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    torch.save({"state_dict": {"a\n\x1b[2J": torch.zeros(1)}, "kvarts": tiny_model().settings()}, path)
    with pytest.raises(ArchitectureMismatchError) as caught:
        load_model(path)
    assert one_line(caught.value, path)


@pytest.mark.parametrize(
    "description",
    [
        ["encoder"],
        "encoder",
        5,
        {"encoder": 5},
        {"encoder": {"blocks": 5}},
        {"encoder": {"blocks": ["x"]}},
        {"encoder": {"blocks": [{"filters": "x", "repeat": 1, "kernel": 3}]}},
        {"encoder": {"blocks": [{"filters": 8}]}},
        {"encoder": {"blocks": [{"filters": 8, "repeat": 1, "kernel": 4}]}},
        {"encoder": {"blocks": [{"filters": 2**60, "repeat": 1, "kernel": 3}]}},
        {"encoder": {"blocks": []}},
        {"encoder": {"blocks": [], "of_the_future": 1}},
        {"encoder": {"blocks": [{"filters": 8, "repeat": 1, "kernel": 5, "stride": 0, "residual": False}]}},
        {"encoder": {"blocks": [{"filters": 8, "repeat": 1, "kernel": 5, "dilation": 0}]}},
        {"alphabet": torch.zeros(2)},
        {"features": {"sample_rate": torch.zeros(2)}},
        {"encoder": {"dropout": 7}},
    ],
)
def test_descriptions_of_no_network(tmp_path: Path, description: object) -> None:
    path = tmp_path / "x.ckpt"
    torch.save({"state_dict": weights_of(TINY_TABLE), "kvarts": description}, path)
    with pytest.raises(CheckpointError) as caught:
        load_model(path)
    assert one_line(caught.value, path)


# -------------------------------------------------------------------------------------------------- broken files


@pytest.fixture(scope="module")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("tiny") / "x.ckpt"
    save_weights(tiny_model(), path)
    return path.read_bytes()


def test_no_file(tmp_path: Path) -> None:
    for name in ("none.ckpt", "none.safetensors"):
        with pytest.raises(CheckpointError, match="no such checkpoint") as caught:
            load_model(tmp_path / name)
        assert one_line(caught.value, tmp_path / name)
    with pytest.raises(CheckpointError, match="is a folder") as caught:
        load_model(tmp_path)
    assert one_line(caught.value, tmp_path)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 1000,
        "это не веса\n".encode() * 100,
        pickle.dumps({"state_dict": {}}),
        zipped(pickle.dumps([1, 2])),
        zipped(b""),
        zipped(b"no pickle"),
        zipped(pickle.dumps({"epoch": 3})),
        zipped(pickle.dumps({"state_dict": [1, 2]})),
    ],
)
def test_files_that_are_no_checkpoint(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        load_model(path)
    assert one_line(caught.value, path)


def test_a_zip_archive_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    for names in ([], ["letter.txt"], ["data.pkl"], ["a/data.pkl", "b/data.pkl"]):
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, b"}.")
        with pytest.raises(CheckpointError) as caught:
            load_model(path)
        assert one_line(caught.value, path)


def test_weights_of_a_machine_with_another_byte_order(tmp_path: Path, tiny_checkpoint: bytes) -> None:
    path = tmp_path / "x.ckpt"
    other = {"little": b"big", "big": b"little"}[sys.byteorder]
    with zipfile.ZipFile(io.BytesIO(tiny_checkpoint)) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, other if name.endswith("byteorder") else old.read(name))
    with pytest.raises(CheckpointError, match="byte order"):
        load_model(path)


def error_of(path: Path) -> CheckpointError | None:
    try:
        load_model(path)
    except CheckpointError as error:
        return error
    return None


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_every_cut_and_every_flipped_bit_is_one_clear_line(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    save_weights(tiny_model(), path)
    whole = path.read_bytes()
    draw = random.Random(0)
    cut = [whole[: draw.randrange(len(whole))] for _ in range(100)]
    flipped = [bytearray(whole) for _ in range(100)]
    for content in flipped:
        content[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
    refused = []
    for content in (*cut, *flipped):
        path.write_bytes(content)
        error = error_of(path)
        assert error is None or one_line(error, path)
        refused.append(error is not None)
    assert all(refused[:100])
    # A zip archive has checksums; safetensors has none for its data.
    assert sum(refused[100:]) > (60 if suffix == ".ckpt" else 10)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = tiny_model()
    model.encoder.layers[1].conv[0].bias.data[3] = float("nan")
    save_weights(model, tmp_path / "x.ckpt")
    with pytest.raises(CheckpointError, match=r"encoder.layers.1.conv.0.bias .*not finite"):
        load_model(tmp_path / "x.ckpt")


# ------------------------------------------------------------------------------------------------ other networks


def mismatch(path: Path, model: QuartzNetCTC | None = None) -> str:
    with pytest.raises(ArchitectureMismatchError) as caught:
        load_weights(model or tiny_model(), path)
    assert one_line(caught.value, path)
    return str(caught.value)


def test_another_architecture_is_named_by_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    good = weights_of(TINY_TABLE)
    name = "encoder.layers.1.res.0.weight"

    torch.save({"state_dict": {}}, path)
    assert "encoder.layers.0.conv.0.weight is missing" in mismatch(path)

    torch.save({"state_dict": {n: t for n, t in good.items() if n != name}}, path)
    assert f"{name} is missing. Choose" in mismatch(path)

    torch.save({"state_dict": good | {"fc.weight": torch.zeros(3)}}, path)
    assert "network: fc.weight is not in this network. Choose" in mismatch(path)

    torch.save({"state_dict": good | {name: torch.zeros(8, 7, 1)}}, path)
    assert f"{name} is 8×7×1 instead of 8×8×1" in mismatch(path)

    torch.save({"state_dict": good | {name: torch.zeros(8, 8, 1, dtype=torch.int64)}}, path)
    assert f"{name} is 8×8×1 of int64 instead of 8×8×1" in mismatch(path)

    torch.save({"state_dict": good | {name: "weights"}}, path)
    assert f"{name} is str instead of 8×8×1" in mismatch(path)

    torch.save({"state_dict": torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3)).state_dict()}, path)
    assert "missing" in mismatch(path)


def test_nothing_of_another_network_gets_into_the_model(tmp_path: Path) -> None:
    other = weights_of(TINY_TABLE, seed=1)
    other.popitem()
    torch.save({"state_dict": other}, tmp_path / "x.ckpt")
    model = tiny_model()
    mismatch(tmp_path / "x.ckpt", model)
    assert same_weights(model.state_dict(), weights_of(TINY_TABLE))


def test_a_deeper_quartznet_is_not_mistaken_for_the_course_network(tmp_path: Path) -> None:
    deeper = [row for row in COURSE_TABLE for _ in range(2 if row.residual else 1)]
    torch.save({"state_dict": weights_of(deeper)}, tmp_path / "x.ckpt")
    with pytest.raises(ArchitectureMismatchError, match="model=quartznet_10x5") as caught:
        load_model(tmp_path / "x.ckpt")
    assert one_line(caught.value, tmp_path / "x.ckpt")


@pytest.mark.parametrize(
    ("name", "value"),
    [("alphabet", " абв"), ("features", tiny_model().settings()["features"] | {"hop_length": 320})],
)
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_other_letters_or_features_are_refused(tmp_path: Path, name: str, value: object, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    description = tiny_model().settings() | {name: value}
    if suffix == ".ckpt":
        torch.save({"state_dict": weights_of(TINY_TABLE), "kvarts": description}, path)
    else:
        save_file(dict(weights_of(TINY_TABLE)), path, {"kvarts": json.dumps(description)})
    with pytest.raises(ArchitectureMismatchError, match=f"its {name} is") as caught:
        load_model(path)
    assert one_line(caught.value, path)
    assert name in mismatch(path)


# -------------------------------------------------------------------------------- full disks and sudden deaths


def save_all_ways() -> dict[str, Callable[[QuartzNetCTC, Path], None]]:
    def by_lightning(model: QuartzNetCTC, path: Path) -> None:
        SafeCheckpointIO().save_checkpoint({"state_dict": model.state_dict(), "kvarts": model.settings()}, path)

    return {"x.ckpt": save_weights, "x.safetensors": save_weights, "last.ckpt": by_lightning}


@pytest.mark.parametrize("name", save_all_ways())
@pytest.mark.parametrize("how", ["file too large", "fsync"])
def test_a_full_disk_leaves_the_earlier_checkpoint(
    tmp_path: Path, name: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, path = save_all_ways()[name], tmp_path / name
    save(tiny_model(), path)
    before = path.read_bytes()
    disk: AbstractContextManager[None] = nullcontext()
    if how == "fsync":  # where file systems that allocate late find out

        def full(_descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", full)
    else:  # the kernel itself stops the write in the middle
        disk = no_file_beyond(len(before) // 2)
    with disk, pytest.raises(OutputError, match="could not be written") as caught:
        save(tiny_model(seed=1), path)
    assert one_line(caught.value, path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
    monkeypatch.undo()
    save(tiny_model(seed=1), path)
    assert same_weights(load_model(path).state_dict(), weights_of(TINY_TABLE, seed=1))


@pytest.mark.parametrize("name", save_all_ways())
@pytest.mark.parametrize("how", [signal.SIGXFSZ, signal.SIGKILL], ids=["in the middle", "before the rename"])
def test_a_process_killed_while_it_writes_leaves_the_earlier_checkpoint(
    tmp_path: Path, name: str, how: signal.Signals
) -> None:
    save, path = save_all_ways()[name], tmp_path / name
    save(tiny_model(), path)
    child = os.fork()
    if child == 0:
        try:
            if how == signal.SIGKILL:
                os.fsync = lambda _descriptor: os.kill(os.getpid(), signal.SIGKILL)
            else:  # the kernel ends a process that passes this limit, in the middle of its write
                signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
                half = path.stat().st_size // 2
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                resource.setrlimit(resource.RLIMIT_FSIZE, (half, half))
            save(tiny_model(seed=1), path)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == how
    assert len(list(tmp_path.iterdir())) == 2, "it was killed before it wrote anything"
    assert same_weights(load_model(path).state_dict(), weights_of(TINY_TABLE))
    save(tiny_model(seed=1), path)
    assert same_weights(load_model(path).state_dict(), weights_of(TINY_TABLE, seed=1))
    assert [entry.name for entry in tmp_path.iterdir()] == [name], "the next writer clears up"
