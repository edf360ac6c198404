"""``kvarts export``: a checkpoint becomes a folder that runs without PyTorch, and proves that it computes the same.

`kvarts.model_folder` describes the folder, `kvarts.proof` is the proof, and `kvarts.model_card` writes down what came
of it, with how fast each engine is here. Everything is made and proved in a folder beside it, which takes its place
only when all checks have passed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kvarts
from kvarts import model_folder
from kvarts.errors import ConfigError
from kvarts.files import sha256_of, write_error

if TYPE_CHECKING:
    from kvarts.manifest import Utterance
    from kvarts.proof import Proof

_LICENCE = "unspecified"  # the weights are their trainer's, not ours to license
_CALIBRATING = 80  # utterances
_ONE_MAN = Path("sample/train_opus/manifest.jsonl")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the subcommand."""
    parser.description = (
        "Writes a checkpoint as a folder that runs without PyTorch: float32 and int8 in ONNX, tokens, settings, and a "
        "model card. Runs it in every engine installed and fails where it does not compute what the checkpoint does."
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help=".ckpt or .safetensors")
    parser.add_argument("-o", "--output", metavar="DIR", type=Path, required=True, help="the folder to write")
    parser.add_argument(
        "--calibration",
        metavar="M",
        type=Path,
        default=_ONE_MAN,
        help="manifest that int8 takes its scales from, 80 utterances spread over it: of all voices and places that "
        "the network was trained on, for what is unlike them is clipped; never the test set (default: %(default)s)",
    )
    parser.add_argument(
        "--test",
        metavar="M",
        type=Path,
        default=Path("sample/test_opus/crowd/manifest.jsonl"),
        help="manifest of real speech for the proof (default: %(default)s)",
    )
    parser.add_argument(
        "--compact",
        action="store_true",
        help="a third of the size: int8 alone, and the checkpoint in float16 to train from in place of float32",
    )
    parser.add_argument("--licence", default=_LICENCE, help="of the weights, for config.json (default: %(default)s)")
    parser.add_argument("--force", action="store_true", help="replace a model that DIR holds already")


def run(args: argparse.Namespace) -> int:
    """Exports as the arguments say and prints what was proved."""
    how = {"compact": args.compact, "licence": args.licence, "force": args.force}
    proofs = export(args.checkpoint, args.output, args.calibration, args.test, **how)
    for proof in proofs:
        low, high = (100 * end for end in proof.delta_wer)
        wer = f"WER {100 * proof.wer:6.2f} % ({low:+.2f} to {high:+.2f})"
        drift = "" if proof.drift is None else f"   largest difference {proof.drift:.2g}"
        print(f"{proof.engine:22} {wer}   same texts {proof.texts:4}{drift}")
    print(f"model: {args.output}; its card: {args.output / model_folder.CARD}")
    if args.calibration == _ONE_MAN:
        print(
            f"kvarts: warning: int8 took its scales from {_ONE_MAN}, one man's speech, and clips other voices; "
            "name speech of all voices that the model is for with --calibration",
            file=sys.stderr,
        )
    return 0


def export(
    checkpoint: Path,
    output: Path,
    calibration: Path,
    test: Path,
    *,
    compact: bool = False,
    licence: str = _LICENCE,
    force: bool = False,
) -> list[Proof]:
    """Writes the folder `output` and gives what was proved of it, PyTorch first.

    Args:
        calibration: manifest of which 80 utterances, evenly spread, give int8 its scales.
        test: manifest of the utterances that every engine must read as PyTorch does.
        compact: leave the network in float32 out; put in the checkpoint's weights in float16, to train from.
        force: whether a model in `output` may be replaced.

    Raises:
        CheckpointError: the checkpoint is missing or damaged.
        ConfigError: `output` exists and is no model, or is one and `force` is not set.
        ManifestError, AudioError: a manifest or its audio cannot be read.
        OutputError: the folder cannot be written.
        ExportError: an engine does not compute what PyTorch does; nothing is written then.
    """
    import onnx
    import torch

    from kvarts.checkpoint import load_model, save_weights
    from kvarts.manifest import read_manifest
    from kvarts.model_card import model_card
    from kvarts.onnx_graph import onnx_model
    from kvarts.proof import prove
    from kvarts.quantise import calibrated
    from kvarts.recogniser import Recognizer, file_features
    from kvarts.torch_engine import Torch

    _check_output(output, force)
    model = load_model(checkpoint)
    calibrating = [file_features(utterance.audio_path) for utterance in _spread(read_manifest(calibration))]
    utterances = read_manifest(test)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    except OSError as error:
        raise write_error(output, error) from error
    try:
        about = _about(checkpoint, model.encoder.stride, licence)
        graph = onnx_model(model, {key: _plain(value) for key, value in about.items()})
        if compact:
            save_weights(model, building / model_folder.WEIGHTS, torch.float16)
        else:
            onnx.save(graph, building / model_folder.FLOAT32)
        onnx.save(calibrated(graph, calibrating), building / model_folder.INT8)
        for name in (model_folder.TOKENS, model_folder.VOCABULARY):
            (building / name).write_text(model_folder.tokens_text(), encoding="utf-8")
        _write_config(building, about)
        proofs = prove(building, Recognizer(Torch(model)), utterances)
        card = model_card(output.name, building, about, proofs, test, utterances)
        (building / model_folder.CARD).write_text(card, encoding="utf-8")
        if output.exists():
            shutil.rmtree(output)
        building.chmod(0o755)  # mkdtemp lets nobody else in
        building.rename(output)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return proofs


def _spread(utterances: Sequence[Utterance]) -> list[Utterance]:
    """All of a few utterances; of many as many as calibrate, from the first to the last of the manifest."""
    count = min(len(utterances), _CALIBRATING)
    return [utterances[number * len(utterances) // count] for number in range(count)]


def _check_output(output: Path, force: bool) -> None:
    if not output.exists():
        return
    if not (output / model_folder.CONFIG).is_file():
        raise ConfigError(f"{output} exists and is no exported model: choose another folder")
    if not force:
        raise ConfigError(f"{output} holds a model already: choose another folder, or replace it with --force")


def _about(checkpoint: Path, stride: int, licence: str) -> dict[str, Any]:
    from kvarts.alphabet import ALPHABET, BLANK_ID
    from kvarts.features import FEATURE_SETTINGS, N_MELS
    from kvarts.text import NORMALISER_VERSION

    return {
        "kvarts_model": model_folder.FORMAT_VERSION,
        "kvarts_version": kvarts.__version__,
        "normaliser_version": NORMALISER_VERSION,
        "licence": licence,
        "checkpoint_sha256": sha256_of(checkpoint),
        "alphabet": ALPHABET,
        "blank_id": BLANK_ID,
        "stride": stride,
        "features": FEATURE_SETTINGS,
        # What onnx-asr looks for.
        "features_size": N_MELS,
        "subsampling_factor": stride,
        "version": "v2",
    }


def _write_config(folder: Path, about: dict[str, Any]) -> None:
    files = {
        entry.name: {"bytes": entry.stat().st_size, "sha256": sha256_of(entry)} for entry in sorted(folder.iterdir())
    }
    with (folder / model_folder.CONFIG).open("w", encoding="utf-8") as file:
        json.dump({**about, "files": files}, file, ensure_ascii=False, indent=2)
        file.write("\n")


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
