"""The folder that `kvarts export` writes and the recogniser reads: what is in it, and whether it is whole.

    config.json        alphabet, features, stride, versions, licence, and size and SHA-256 of the files below
    tokens.txt         a label and its id a line, «▁» for the space and «<blk>» for the blank
    v2_ctc.onnx        the network in float32; not in a compact folder
    v2_ctc.int8.onnx   the network in int8
    weights.safetensors   the checkpoint in float16, to train from; only in a compact folder
    v2_vocab.txt       tokens.txt once more
    README.md          the model card: errors, speed and memory of each engine; not read by anything

The names of the networks and of v2_vocab.txt are those by which onnx-asr finds a model of its kind «gigaam-v2-ctc»,
whose features and output are the same, so that it loads the folder as it is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from kvarts.alphabet import ALPHABET, BLANK_ID
from kvarts.engines import ENGINES, PRECISIONS, Engine, available_engine, cpu_threads
from kvarts.errors import ConfigError, ModelFolderError
from kvarts.features import FEATURE_SETTINGS
from kvarts.files import sha256_of

FORMAT_VERSION: Final = 1
CONFIG: Final = "config.json"
TOKENS: Final = "tokens.txt"
VOCABULARY: Final = "v2_vocab.txt"
FLOAT32: Final = "v2_ctc.onnx"
INT8: Final = "v2_ctc.int8.onnx"
WEIGHTS: Final = "weights.safetensors"
CARD: Final = "README.md"

_SPACE = "▁"
_BLANK = "<blk>"


def tokens_text() -> str:
    """The content of tokens.txt."""
    labels = [*ALPHABET.replace(" ", _SPACE), _BLANK]
    return "".join(f"{label} {index}\n" for index, label in enumerate(labels))


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a folder, checked to be one that this version can run.

    Raises:
        ModelFolderError: no folder, no config.json in it, or it is none of an exported model, or of another alphabet,
            features or a later format.
    """
    path = folder / CONFIG
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        what = "is no model: it has no config.json" if folder.is_dir() else "does not exist or is no folder"
        raise ModelFolderError(f"{folder} {what}; name a folder that `kvarts export` wrote") from None
    except OSError as error:
        raise ModelFolderError(f"{path} cannot be read ({error.strerror}): check its permissions") from None
    except ValueError:
        raise ModelFolderError(f"{path} is damaged (no JSON): export the model again") from None
    config: dict[str, Any] = content if isinstance(content, dict) else {}
    version = config.get("kvarts_model")
    if type(version) is not int or not isinstance(config.get("files"), dict):
        raise ModelFolderError(f"{path} is not of a Kvarts model: name a folder that `kvarts export` wrote")
    if version > FORMAT_VERSION:
        raise ModelFolderError(f"{folder} was exported by a later Kvarts (format {version}): pip install -U kvarts")
    if type(config.get("stride")) is not int or config["stride"] < 1:
        raise ModelFolderError(f"{path} has no stride: export the model again")
    expected = {"alphabet": ALPHABET, "blank_id": BLANK_ID, "features": FEATURE_SETTINGS}
    for key, value in expected.items():
        if config.get(key) != value:
            raise ModelFolderError(f"{path}: another {key} than this Kvarts has: export the checkpoint again with it")
    return config


def checked_file(folder: Path, config: dict[str, Any], name: str) -> Path:
    """The path of a file in the folder, after its size and hash were compared with config.json.

    Raises:
        ModelFolderError: it is missing or not the one that was exported.
    """
    path = folder / name
    expected = config["files"].get(name)
    if not isinstance(expected, dict):
        raise ModelFolderError(f"{folder / CONFIG} knows no {name}: export the model again")
    try:
        found = sha256_of(path)
    except OSError as error:
        raise ModelFolderError(f"{path} cannot be read ({error.strerror}): copy or export the model again") from None
    if found != expected.get("sha256"):
        raise ModelFolderError(f"{path} is not what was exported (its SHA-256 differs): copy or export it again")
    return path


def load_engine(folder: Path, engine: str | None, precision: str | None, threads: int | None) -> Engine:
    """The network of a folder in an engine; None chooses as `Recognizer.load` says.

    Raises:
        ModelFolderError: a file is missing, damaged or altered.
        ConfigError: no such engine or precision, not installed, or not to be had together.
    """
    config = read_config(folder)
    checked_file(folder, config, TOKENS)
    engine = available_engine(engine)
    is_compact = FLOAT32 not in config["files"]
    precision = precision or ("int8" if is_compact else default_precision(engine))
    if precision not in PRECISIONS:
        raise ConfigError(f"precision {precision!r}: there is none of that name; choose from {', '.join(PRECISIONS)}")
    if precision == "bfloat16" and engine != "openvino":
        raise ConfigError("precision bfloat16 is OpenVINO's: pip install 'kvarts[openvino]', or choose float32 or int8")
    if is_compact and precision != "int8":
        raise ConfigError(f"precision {precision}: {folder} holds the network in int8 alone; leave the option out")
    if threads is None:
        threads = cpu_threads()
    elif threads < 1:
        raise ConfigError(f"threads {threads}: must be 1 or more")
    path = checked_file(folder, config, INT8 if precision == "int8" else FLOAT32)
    return ENGINES[engine](path, threads, precision, config["stride"])


def default_precision(engine: str) -> str:
    """What an engine computes in where nobody says, and the folder holds all.

    OpenVINO in bfloat16 where the processor has it, else float32: `kvarts export` prints what each loses in WER. int8
    is faster still, but on 34 validation utterances, at 13.4 % CER in float32, it added 0.5 points.
    """
    if engine == "openvino":
        import openvino

        if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            return "bfloat16"
    return "float32"
