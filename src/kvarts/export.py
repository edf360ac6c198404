"""``kvarts export``: a checkpoint becomes a folder that runs without PyTorch, and proves that it computes the same.

`kvarts.model_folder` describes the folder. Everything is made and proved in a folder beside it, which takes its place
only when all checks have passed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import kvarts
from kvarts import model_folder
from kvarts.errors import ConfigError, ExportError
from kvarts.files import sha256_of, write_error

_LARGEST_DRIFT = 1e-3  # of a float32 log-probability
_BATCH = 8  # utterances of a ragged batch
_LICENCE = "unspecified"  # the weights are their trainer's, not ours to license

Features = NDArray[np.float32]


@dataclass(frozen=True)
class Proof:
    """What one engine gave on real speech, against PyTorch.

    Attributes:
        engine: its name and precision.
        drift: largest difference of a log-probability.
        moved: the share of probability that went to other labels (total variation distance), mean over frames, 0 to 1.
        texts: how many of the utterances had the same text.
        wer: word error rate, 0 to 1.
        delta_wer: 95 % interval of that rate less PyTorch's, by the paired bootstrap.
    """

    engine: str
    drift: float
    moved: float
    texts: int
    wer: float
    delta_wer: tuple[float, float]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the subcommand."""
    parser.description = (
        "Writes a checkpoint as a folder that runs without PyTorch: float32 and int8 in ONNX, tokens, settings. Runs "
        "it in every engine installed and fails where it does not compute what the checkpoint does."
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help=".ckpt or .safetensors")
    parser.add_argument("-o", "--output", metavar="DIR", type=Path, required=True, help="the folder to write")
    parser.add_argument(
        "--calibration",
        metavar="M",
        type=Path,
        default=Path("sample/train_opus/manifest.jsonl"),
        help="manifest of real speech that int8 takes its scales from; never the test set (default: %(default)s)",
    )
    parser.add_argument(
        "--test",
        metavar="M",
        type=Path,
        default=Path("sample/test_opus/crowd/manifest.jsonl"),
        help="manifest of real speech for the proof (default: %(default)s)",
    )
    parser.add_argument("--licence", default=_LICENCE, help="of the weights, for config.json (default: %(default)s)")
    parser.add_argument("--force", action="store_true", help="replace a model that DIR holds already")


def run(args: argparse.Namespace) -> int:
    """Exports as the arguments say and prints what was proved."""
    proofs = export(args.checkpoint, args.output, args.calibration, args.test, licence=args.licence, force=args.force)
    for proof in proofs:
        print(
            f"{proof.engine:22} WER {100 * proof.wer:6.2f} % "
            f"({100 * proof.delta_wer[0]:+.2f} to {100 * proof.delta_wer[1]:+.2f})   "
            f"same texts {proof.texts:4}   largest difference {proof.drift:.2g}"
        )
    print(f"model: {args.output}")
    return 0


def export(
    checkpoint: Path, output: Path, calibration: Path, test: Path, *, licence: str = _LICENCE, force: bool = False
) -> list[Proof]:
    """Writes the folder `output` and gives what was proved of it, PyTorch first.

    Args:
        calibration: manifest whose first 50 utterances give int8 its scales.
        test: manifest of the utterances that every engine must read as PyTorch does.
        force: whether a model in `output` may be replaced.

    Raises:
        CheckpointError: the checkpoint is missing or damaged.
        ConfigError: `output` exists and is no model, or is one and `force` is not set.
        ManifestError, AudioError: a manifest or its audio cannot be read.
        OutputError: the folder cannot be written.
        ExportError: an engine does not compute what PyTorch does; nothing is written then.
    """
    import onnx

    from kvarts.checkpoint import load_model
    from kvarts.manifest import read_manifest
    from kvarts.onnx_graph import onnx_model
    from kvarts.quantise import calibrated
    from kvarts.recogniser import Recognizer, file_features
    from kvarts.torch_engine import Torch

    _check_output(output, force)
    model = load_model(checkpoint)
    calibrating = [file_features(utterance.audio_path) for utterance in read_manifest(calibration)[:50]]
    utterances = read_manifest(test)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    except OSError as error:
        raise write_error(output, error) from error
    try:
        about = _about(checkpoint, model.encoder.stride, licence)
        graph = onnx_model(model, {key: _plain(value) for key, value in about.items()})
        onnx.save(graph, building / model_folder.FLOAT32)
        onnx.save(calibrated(graph, calibrating), building / model_folder.INT8)
        for name in (model_folder.TOKENS, model_folder.VOCABULARY):
            (building / name).write_text(model_folder.tokens_text(), encoding="utf-8")
        _write_config(building, about)
        proofs = prove(
            building,
            Recognizer(Torch(model)),
            [file_features(utterance.audio_path) for utterance in utterances],
            [utterance.text for utterance in utterances],
        )
        if output.exists():
            shutil.rmtree(output)
        building.chmod(0o755)  # mkdtemp lets nobody else in
        building.rename(output)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return proofs


def prove(folder: Path, reference: Any, features: Sequence[Features], texts: Sequence[str]) -> list[Proof]:
    """Runs the folder in every engine installed, on ragged batches, against a recogniser in PyTorch.

    Raises:
        ExportError: float32 drifts by more than 1e-3, or gives another text.
    """
    from kvarts.bootstrap import paired_interval
    from kvarts.engines import ENGINES, PRECISIONS
    from kvarts.error_counts import ErrorCounts, word_errors
    from kvarts.progress import progress_bar
    from kvarts.recogniser import Recognizer, text_of

    def recognised(recognizer: Any) -> tuple[list[Features], list[str], list[ErrorCounts]]:
        log_probs: list[Features] = []
        found: list[str] = []
        for start in range(0, len(features), _BATCH):
            batch = features[start : start + _BATCH]
            padded, lengths = recognizer.log_probs(batch)
            log_probs += [matrix[:length] for matrix, length in zip(padded, lengths, strict=True)]
            found += map(text_of, recognizer.decoded(padded, lengths))
        return log_probs, found, [word_errors(*pair) for pair in zip(texts, found, strict=True)]

    def wer(counts: Sequence[ErrorCounts]) -> float:
        return sum(counts, ErrorCounts()).rate

    expected, expected_texts, expected_counts = recognised(reference)
    proofs = [Proof(reference.engine.name, 0.0, 0.0, len(features), wer(expected_counts), (0.0, 0.0))]
    ways = [(engine, precision) for engine in ENGINES for precision in PRECISIONS]
    with progress_bar("proving", len(ways)) as advance:
        for engine, precision in ways:
            advance(1)
            try:
                recognizer = Recognizer.load(folder, engine=engine, precision=precision)
            except ConfigError:  # not installed, or does not compute in it
                continue
            log_probs, found, counts = recognised(recognizer)
            drift = max(float(np.abs(a - b).max()) for a, b in zip(log_probs, expected, strict=True))
            moved = float(np.abs(np.exp(np.concatenate(log_probs)) - np.exp(np.concatenate(expected))).sum(axis=1).mean()) / 2
            same = sum(a == b for a, b in zip(found, expected_texts, strict=True))
            interval = paired_interval(expected_counts, counts)
            proofs.append(Proof(recognizer.engine.name, drift, moved, same, wer(counts), interval))
            if precision == "float32" and not (drift <= _LARGEST_DRIFT and same == len(features)):
                raise ExportError(
                    f"{recognizer.engine.name} does not compute what the checkpoint does: log-probabilities differ by "
                    f"up to {drift:.2g}, {len(features) - same} of {len(features)} texts differ; nothing was written"
                )
    return proofs


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
