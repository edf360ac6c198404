"""Does an exported folder compute what its checkpoint does? In every engine installed, on real speech."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kvarts.audio import read_audio
from kvarts.bootstrap import paired_interval
from kvarts.engines import ENGINES, PRECISIONS
from kvarts.error_counts import ErrorCounts, char_errors, word_errors
from kvarts.errors import ConfigError, ExportError
from kvarts.features import log_mel
from kvarts.frames import SAMPLE_RATE
from kvarts.manifest import Utterance
from kvarts.model_folder import FLOAT32, INT8
from kvarts.progress import progress_bar
from kvarts.recogniser import Recognizer, text_of

Floats = NDArray[np.float32]

_BATCH = 8  # utterances of a ragged batch
_LARGEST_DRIFT = 1e-3  # of a float32 log-probability
# Of what `Proof.moved` says. A trained network had 0.001 in bfloat16 and 0.014 in int8, one of random weights 0.12 in
# int8. The bounds tell rounding from an engine that computes something else; ΔWER says what rounding costs.
_MOST_MOVED = {"float32": 1e-3, "bfloat16": 0.05, "int8": 0.2}
_LARGEST_CER = 0.02  # between the texts of onnx-asr, whose features are rounded otherwise, and of PyTorch


@dataclass(frozen=True)
class Proof:
    """What one engine gave on real speech, against PyTorch.

    Attributes:
        engine: its name and precision.
        drift: largest difference of a log-probability; None where they are not to be had.
        moved: the share of probability that went to other labels (total variation distance), mean over frames.
        texts: how many of the utterances had the same text.
        wer: word error rate, 0 to 1.
        delta_wer: 95 % interval of that rate less PyTorch's, by the paired bootstrap.
    """

    engine: str
    drift: float | None
    moved: float | None
    texts: int
    wer: float
    delta_wer: tuple[float, float]


def prove(folder: Path, reference: Recognizer, utterances: Sequence[Utterance]) -> list[Proof]:
    """Runs the folder in every engine installed, in ragged batches, and in onnx-asr, against a recogniser in PyTorch.

    Raises:
        AudioError: an utterance cannot be read.
        ExportError: float32 drifts by more than 1e-3 or gives another text; bfloat16 or int8 says something else;
            onnx-asr cannot load the folder, or reads other texts from it.
    """
    waveforms = [read_audio(utterance.audio_path) for utterance in utterances]
    features = [log_mel(waveform) for waveform in waveforms]
    expected, expected_texts = _recognised(reference, features)

    def proof(engine: str, texts: Sequence[str], drift: float | None, moved: float | None) -> Proof:
        counts, plain = (
            [word_errors(utterance.text, text) for utterance, text in zip(utterances, found, strict=True)]
            for found in (texts, expected_texts)
        )
        same = sum(one == other for one, other in zip(texts, expected_texts, strict=True))
        return Proof(engine, drift, moved, same, sum(counts, ErrorCounts()).rate, paired_interval(plain, counts))

    proofs = [proof(reference.engine.name, expected_texts, 0.0, 0.0)]
    ways = [(engine, precision) for engine in ENGINES for precision in PRECISIONS]
    networks = {"float32": FLOAT32, "int8": INT8}
    held = [precision for precision, network in networks.items() if (folder / network).exists()]
    others = held if importlib.util.find_spec("onnx_asr") else []
    with progress_bar("proving", len(ways) + len(others)) as advance:
        for engine, precision in ways:
            advance(1)
            try:
                recognizer = Recognizer.load(folder, engine=engine, precision=precision)
            except ConfigError:  # not installed, does not compute in it, or is not in a compact folder
                continue
            found, texts = _recognised(recognizer, features)
            drift = max(float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True))
            proofs.append(proof(recognizer.engine.name, texts, drift, _moved(found, expected)))
            _check(proofs[-1], precision, len(utterances))
        for precision in others:
            advance(1)
            texts = _texts_of_onnx_asr(folder, precision, waveforms)
            proofs.append(proof(f"onnx-asr {precision}", texts, None, None))
            if precision == "float32":
                _check_texts(texts, expected_texts)
    return proofs


def _recognised(recognizer: Recognizer, features: Sequence[Floats]) -> tuple[list[Floats], list[str]]:
    """Log-probabilities (encoded frames, 34) and the text of each utterance."""
    log_probs: list[Floats] = []
    texts: list[str] = []
    for start in range(0, len(features), _BATCH):
        found = recognizer.log_probs(features[start : start + _BATCH])
        log_probs += found
        texts += map(text_of, recognizer.decoded(found))
    return log_probs, texts


def _moved(found: Sequence[Floats], expected: Sequence[Floats]) -> float:
    difference = np.abs(np.exp(np.concatenate(found)) - np.exp(np.concatenate(expected)))
    return float(difference.sum(axis=1).mean()) / 2


def _check(proof: Proof, precision: str, utterances: int) -> None:
    assert proof.drift is not None
    assert proof.moved is not None
    differs = ""
    if precision == "float32" and not (proof.drift <= _LARGEST_DRIFT and proof.texts == utterances):
        differs = f"differ by up to {proof.drift:.2g}, {utterances - proof.texts} of {utterances} texts differ"
    elif not proof.moved <= _MOST_MOVED[precision]:  # NaN is no number below anything
        differs = f"are other ones ({100 * proof.moved:.1f} % of the probability lies elsewhere)"
    if differs:
        raise ExportError(
            f"{proof.engine} does not compute what the checkpoint does: log-probabilities {differs}; nothing was "
            "written"
        )


def _texts_of_onnx_asr(folder: Path, precision: str, waveforms: Sequence[Floats]) -> list[str]:
    import onnx_asr

    try:
        model = onnx_asr.load_model(
            "gigaam-v2-ctc",
            folder,
            quantization=None if precision == "float32" else precision,
            providers=["CPUExecutionProvider"],
        )
        texts: list[str] = []
        for start in range(0, len(waveforms), _BATCH):
            batch: list[str | Path | Floats] = [*waveforms[start : start + _BATCH]]
            texts += model.recognize(batch, sample_rate=SAMPLE_RATE)
        return [" ".join(text.split()) for text in texts]
    except Exception as error:  # of its own, of ONNX Runtime's, whatever it meets
        raise ExportError(f"onnx-asr cannot use the model ({str(error).strip()}); nothing was written") from error


def _check_texts(texts: Sequence[str], expected: Sequence[str]) -> None:
    errors = sum((char_errors(*pair) for pair in zip(expected, texts, strict=True)), ErrorCounts())
    if errors.rate > _LARGEST_CER:
        raise ExportError(
            f"onnx-asr reads other texts from the model ({100 * errors.rate:.1f} % of the letters differ); nothing was "
            "written"
        )
