"""Weights in and out of files. Loading runs no code from a file; saving never damages the file before it.

A checkpoint is what Lightning writes: a dict whose `state_dict` has the course's names and shapes. Ours add
`kvarts`, a plain description of alphabet, features and network, and `rng`, for resuming. Checkpoints without
`kvarts` are taken to be the course's: QuartzNet5x5. `.safetensors` files hold the `state_dict`, and the
description as JSON in their metadata.

Checkpoints are read here and not by `torch.load`. Its safe mode refuses the course's, whose callbacks are keyed by
classes; its other mode, even under an unpickler that runs nothing, runs the program in a TorchScript archive.
"""

from __future__ import annotations

import io
import json
import pickle
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins import CheckpointIO
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from kvarts.alphabet import ALPHABET
from kvarts.decoder import ConvDecoder
from kvarts.encoder import BlockConfig, QuartzNet
from kvarts.errors import ArchitectureMismatchError, CheckpointError
from kvarts.features import FEATURE_SETTINGS
from kvarts.files import atomic_writer
from kvarts.model import QuartzNetCTC

COURSE_BLOCKS = (
    BlockConfig(256, 1, 33, stride=4, residual=False),
    *(BlockConfig(filters, 5, kernel) for filters, kernel in ((256, 33), (256, 39))),
    *(BlockConfig(512, 5, kernel) for kernel in (51, 63, 75)),
    BlockConfig(512, 1, 87, dilation=2, residual=False),
    BlockConfig(1024, 1, 1, residual=False, separable=False),
)


class _Inert:
    """Stands in for every class and function a pickle names: takes anything, does nothing."""

    def __init__(self, *_args: object, **_kwargs: object) -> None:
        pass

    def __call__(self, *_args: object, **_kwargs: object) -> _Inert:
        return self

    def __setstate__(self, _state: object) -> None:
        pass

    def __setitem__(self, _key: object, _value: object) -> None:
        pass

    def append(self, _value: object) -> None:
        """Pickles append to lists and subclasses of them."""

    def extend(self, _values: object) -> None:
        """Likewise."""

    def add(self, _value: object) -> None:
        """And add to sets."""


class _Mapping(dict[Any, Any]):
    """An OrderedDict that a pickle can give items and nothing else: no attribute that hides a method."""

    def __setstate__(self, _state: object) -> None:
        pass


_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_HARMLESS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Mapping,
    ("torch", "Size"): tuple,
    **{("torch", name): dtype for name, dtype in _STORAGES.items()},
    **{("torch", str(dtype).removeprefix("torch.")): dtype for dtype in _STORAGES.values()},
}


class _Unpickler(pickle.Unpickler):
    """Builds tensors and plain containers; whatever else a file names becomes an `_Inert`.

    The layout is that of `torch.save` since PyTorch 1.6: a zip archive with one folder, in it the pickle
    `data.pkl` and the bytes of each tensor's storage as `data/<key>`.
    """

    def __init__(self, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{folder}data.pkl")), encoding="utf-8")
        self._archive = archive
        self._folder = folder
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _HARMLESS:
            return _HARMLESS[module, name]
        # A pickle may set attributes of what it is given, so functions are made for it alone.
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda *args: _tensor(*args)
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda data, *_: data
        # A class of its own for each name, for the course's checkpoints use classes as dict keys.
        return type(name, (_Inert,), {"__module__": f"inert.{module}"})

    def persistent_load(self, saved_id: Any) -> Any:
        kind, dtype, key, _location, numel = saved_id
        if kind != "storage":
            raise pickle.UnpicklingError(f"unknown persistent id {kind!r}")
        if not isinstance(dtype, torch.dtype):
            return _Inert()  # a kind of tensor that no weight of ours has
        if key not in self._storages:
            content = bytearray(self._archive.read(f"{self._folder}data/{key}"))
            if len(content) != numel * dtype.itemsize:
                raise ValueError(f"tensor {key} has {len(content)} bytes, not {numel} × {dtype.itemsize}")
            # Cloned, for PyTorch's own memory is aligned as its kernels like it. No buffer may be empty.
            flat = torch.frombuffer(content, dtype=dtype).clone() if content else torch.empty(0, dtype=dtype)
            self._storages[key] = flat
        return self._storages[key]


def _tensor(storage: Any, offset: int, size: Sequence[int], stride: Sequence[int], *_: object) -> Any:
    # as_strided refuses what lies outside the storage.
    return storage.as_strided(size, stride, offset) if isinstance(storage, Tensor) else _Inert()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's contents with all tensors on the CPU, without running anything the file asks for.

    Raises:
        CheckpointError: missing, damaged, or not a checkpoint.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path}: is a folder; give the checkpoint file inside it")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint; check the path")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        with zipfile.ZipFile(path) as archive:
            checkpoint = _unpickle(archive)
    except (zipfile.BadZipFile, EOFError):
        what = "damaged, cut short, or not a checkpoint (no whole zip archive)"
        raise CheckpointError(f"{path}: {what}; copy or download it again") from None
    except Exception as error:  # whatever a damaged or hostile file leads the unpickler into
        what = f"damaged, or not a checkpoint ({_one_line(str(error))})"
        raise CheckpointError(f"{path}: {what}; copy or download it again") from error
    if not isinstance(checkpoint, dict):
        kind = _one_line(type(checkpoint).__name__)
        raise CheckpointError(f"{path}: holds {kind}, not a checkpoint; save a dict with its state_dict")
    return checkpoint


def _unpickle(archive: zipfile.ZipFile) -> Any:
    names = archive.namelist()
    folders = [name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl")]
    if len(folders) != 1:
        raise ValueError("no data.pkl in it" if not folders else "more than one data.pkl in it")
    if f"{folders[0]}constants.pkl" in names:
        raise ValueError("a TorchScript program; save the state_dict of its model instead")
    byteorder = f"{folders[0]}byteorder"
    if byteorder in names and archive.read(byteorder).decode() != sys.byteorder:
        raise ValueError(f"written on a machine of another byte order than {sys.byteorder}-endian")
    return _Unpickler(archive, folders[0]).load()


def _one_line(text: str) -> str:
    """A text from a file or a library, fit to be shown: no line breaks, no orders to the terminal."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt") as file:
            checkpoint: dict[str, Any] = {"state_dict": {name: file.get_tensor(name) for name in file.keys()}}  # noqa: SIM118 - not a dict
            metadata = file.metadata() or {}
        if "kvarts" in metadata:
            checkpoint["kvarts"] = json.loads(metadata["kvarts"])
    except (SafetensorError, OSError, ValueError) as error:
        what = f"damaged, or not safetensors ({_one_line(str(error))})"
        raise CheckpointError(f"{path}: {what}; copy or download it again") from error
    return checkpoint


def check_run(path: Path) -> None:
    """Whether a training run of ours can be resumed from a file.

    Raises:
        CheckpointError: see `read_checkpoint`; also for weights alone, and for the runs of others.
    """
    if "rng" not in read_checkpoint(path):
        raise CheckpointError(
            f"{path}: holds weights and no training run of ours, so it cannot be resumed; "
            f"start from its weights with model.init_weights={path}"
        )


def load_weights(model: QuartzNetCTC, path: Path) -> None:
    """Put a checkpoint's weights into a model, strictly: all names and shapes must agree.

    Raises:
        CheckpointError: see `read_checkpoint`.
        ArchitectureMismatchError: other names, shapes, alphabet or features; the message names them.
    """
    _fill(model, read_checkpoint(path), path)


def load_model(path: Path, device: str | torch.device = "cpu") -> QuartzNetCTC:
    """The model a checkpoint describes, with its weights, in evaluation mode.

    Raises:
        CheckpointError: see `read_checkpoint`.
        ArchitectureMismatchError: not the weights of the network described (of QuartzNet5x5, where none is).
    """
    checkpoint = read_checkpoint(path)
    description = _description(checkpoint, path)
    try:
        encoder = QuartzNet(**description.get("encoder", {"blocks": COURSE_BLOCKS}))
        model = QuartzNetCTC(encoder, ConvDecoder(encoder.out_channels))
    except Exception as error:  # a file may describe anything
        what = f"describes a network this version cannot build ({_one_line(str(error))})"
        raise CheckpointError(f"{path}: {what}; update kvarts") from error
    _fill(model, checkpoint, path)
    return model.to(device).eval()


def _description(checkpoint: dict[str, Any], path: Path) -> dict[str, Any]:
    """What a checkpoint says of itself; nothing where it does not, as the course's."""
    try:
        # There and back again, so that what a file made look like a dict or a number is one.
        description = json.loads(json.dumps(checkpoint.get("kvarts", {})))
    except (TypeError, ValueError, RecursionError):
        description = None
    if not isinstance(description, dict):
        raise CheckpointError(f"{path}: damaged: its description is no plain JSON; copy or download it again")
    return description


def _fill(model: QuartzNetCTC, checkpoint: dict[str, Any], path: Path) -> None:
    description = _description(checkpoint, path)
    for name, ours in (("alphabet", ALPHABET), ("features", FEATURE_SETTINGS)):
        if name in description and description[name] != ours:
            theirs = _one_line(repr(description[name]))
            raise ArchitectureMismatchError(
                f"{path}: its {name} is {theirs}, this version has {ours!r}; use the kvarts it was made with"
            )
    found = checkpoint.get("state_dict")
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: has no state_dict; give a checkpoint of this network")
    wanted = model.state_dict()
    differences = (
        [f"{name} is missing" for name in wanted if name not in found]
        + [f"{name} is not in this network" for name in found if name not in wanted]
        + [
            f"{name} is {_kind(found[name])} instead of {_kind(tensor)}"
            for name, tensor in wanted.items()
            if name in found and _kind(found[name]) != _kind(tensor)
        ]
    )
    if differences:
        more = f" and {len(differences) - 5} more" if len(differences) > 5 else ""
        raise ArchitectureMismatchError(
            f"{path}: weights of another network: {_one_line('; '.join(differences[:5]))}{more}. "
            "Choose the network it was trained with (model=quartznet_10x5, model=quartznet_15x5 …)"
        )
    broken = [name for name, tensor in found.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise CheckpointError(f"{path}: {broken[0]} holds values that are not finite; use an earlier checkpoint")
    model.load_state_dict(found)


def _kind(value: object) -> str:
    """Shape, and type of number where it is not real: weights may be in half precision, not integers."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    shape = "×".join(map(str, value.shape)) or "scalar"
    return shape if value.is_floating_point() else f"{shape} of {str(value.dtype).removeprefix('torch.')}"


def save_weights(model: QuartzNetCTC, path: Path, dtype: torch.dtype | None = None) -> None:
    """Write weights and description, without training state: .safetensors by that name, else a checkpoint.

    Args:
        dtype: of the numbers in the file, torch.float16 for half the size; None: as the model has them.

    Raises:
        OutputError: the disk is full or the place not writable; a file there before stays as it was.
    """
    state_dict = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    if dtype is not None:
        state_dict = {name: x.to(dtype) if x.is_floating_point() else x for name, x in state_dict.items()}
    if path.suffix == ".safetensors":
        _write(path, to_safetensors(state_dict, {"kvarts": json.dumps(model.settings())}))
    else:
        _write(path, _serialise({"state_dict": state_dict, "kvarts": model.settings()}))


def _serialise(checkpoint: dict[str, Any]) -> memoryview:
    # In memory first (81 MB with Adam's state): then a full disk can only hit the plain write below.
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    return buffer.getbuffer()


def _write(path: Path, content: bytes | memoryview) -> None:
    with atomic_writer(path) as file:
        file.write(content)


class SafeCheckpointIO(CheckpointIO):
    """How Lightning reads and writes its checkpoints here: nothing is executed, nothing left half written."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        _write(Path(path), _serialise(checkpoint))

    def load_checkpoint(self, path: Any, *_: Any, **__: Any) -> dict[str, Any]:
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)
