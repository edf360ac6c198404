"""Weights in and out of files. Loading never runs code from a file, and saving never damages the file before it.

A checkpoint is what Lightning writes: a dict whose `state_dict` has the course's names and shapes. Ours add `kvarts`, a
plain description of alphabet, features and network, and `rng`, for resuming. Checkpoints without `kvarts` are taken to be
the course's: QuartzNet5x5. `.safetensors` files hold the `state_dict`, and the description as JSON in their metadata.
"""

from __future__ import annotations

import io
import json
import pickle
import zipfile
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
from kvarts.errors import ArchitectureMismatchError, CheckpointError, ConfigError
from kvarts.features import FEATURE_SETTINGS
from kvarts.files import atomic_writer
from kvarts.model import QuartzNetCTC

COURSE_BLOCKS = (
    BlockConfig(256, 1, 33, stride=4, residual=False),
    *(BlockConfig(filters, 5, kernel) for filters, kernel in ((256, 33), (256, 39), (512, 51), (512, 63), (512, 75))),
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


# What tensors are made of, and nothing else. None of these runs anything that a file could choose.
_HARMLESS = {
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch", "Size"),
    ("torch", "device"),
    *(("torch", f"{kind}Storage") for kind in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char")),
    *(("torch", f"{kind}Storage") for kind in ("Byte", "Bool")),
    *(("torch", kind) for kind in ("float32", "float64", "float16", "bfloat16", "int64", "int32", "uint8", "bool")),
}


class _Unpickler(pickle.Unpickler):
    """Builds tensors and plain containers; whatever else a file names becomes an `_Inert`."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _HARMLESS:
            return super().find_class(module, name)
        # A class of its own for each name, for the course's checkpoints use classes as dict keys.
        return type(name, (_Inert,), {"__module__": f"inert.{module}"})


class _SafePickle:
    """The part of the `pickle` module that `torch.load` uses."""

    Unpickler = _Unpickler
    __name__ = "kvarts.checkpoint"

    @staticmethod
    def load(file: Any, **kwargs: Any) -> Any:
        return _Unpickler(file, **kwargs).load()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's contents with all tensors on the CPU, without running anything the file asks for.

    Raises:
        CheckpointError: missing, damaged, or not a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint; check the path")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if not zipfile.is_zipfile(path):
        raise CheckpointError(
            f"{path}: not a PyTorch checkpoint, or cut short (it is no zip archive); copy or download it again"
        )
    try:
        # weights_only=True would refuse the course's checkpoint, whose callbacks are keyed by classes.
        checkpoint = torch.load(path, map_location="cpu", pickle_module=_SafePickle, weights_only=False)
    except Exception as error:  # whatever a damaged or hostile file leads the unpickler into
        raise CheckpointError(f"{path}: damaged, or not a checkpoint ({error}); copy or download it again") from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"{path}: holds {type(checkpoint).__name__}, not a checkpoint; export its state_dict")
    return checkpoint


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt") as file:
            checkpoint: dict[str, Any] = {"state_dict": {name: file.get_tensor(name) for name in file.keys()}}  # noqa: SIM118 - not a dict
            metadata = file.metadata() or {}
        if "kvarts" in metadata:
            checkpoint["kvarts"] = json.loads(metadata["kvarts"])
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged, or not safetensors ({error}); copy or download it again") from error
    return checkpoint


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
    settings = checkpoint.get("kvarts", {})
    try:
        encoder = QuartzNet(**settings["encoder"]) if "encoder" in settings else QuartzNet(COURSE_BLOCKS)
    except (TypeError, ConfigError) as error:
        raise CheckpointError(f"{path}: describes a network this version cannot build ({error}); update kvarts") from error
    model = QuartzNetCTC(encoder, ConvDecoder(encoder.out_channels))
    _fill(model, checkpoint, path)
    return model.to(device).eval()


def _fill(model: QuartzNetCTC, checkpoint: dict[str, Any], path: Path) -> None:
    settings = checkpoint.get("kvarts", {})
    for name, ours in (("alphabet", ALPHABET), ("features", FEATURE_SETTINGS)):
        if name in settings and settings[name] != ours:
            raise ArchitectureMismatchError(f"{path}: its {name} is {settings[name]!r}, this version has {ours!r}")
    found = checkpoint.get("state_dict")
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: has no state_dict; give a checkpoint of this network")
    wanted = model.state_dict()
    differences = (
        [f"{name} is missing" for name in wanted if name not in found]
        + [f"{name} is not in this network" for name in found if name not in wanted]
        + [
            f"{name} is {_shape(found[name])} instead of {_shape(tensor)}"
            for name, tensor in wanted.items()
            if name in found and _shape(found[name]) != _shape(tensor)
        ]
    )
    if differences:
        more = f" and {len(differences) - 5} more" if len(differences) > 5 else ""
        raise ArchitectureMismatchError(
            f"{path}: weights of another network: {'; '.join(differences[:5])}{more}. "
            "Choose the network it was trained with (model=quartznet_10x5, model=quartznet_15x5 …)"
        )
    broken = [name for name, tensor in found.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise CheckpointError(f"{path}: {broken[0]} holds values that are not finite; use an earlier checkpoint")
    model.load_state_dict(found)


def _shape(value: object) -> str:
    return "×".join(map(str, value.shape)) or "scalar" if isinstance(value, Tensor) else type(value).__name__


def save_weights(model: QuartzNetCTC, path: Path) -> None:
    """Write weights and description, without training state, as .safetensors or (any other name) as a checkpoint.

    Raises:
        OutputError: the disk is full or the place not writable; a file there before stays as it was.
    """
    state_dict = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
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
    """How Lightning reads and writes its checkpoints here: nothing is executed, nothing is left half written."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        _write(Path(path), _serialise(checkpoint))

    def load_checkpoint(self, path: Any, *_: Any, **__: Any) -> dict[str, Any]:
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)
