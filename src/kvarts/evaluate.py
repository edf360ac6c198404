"""``kvarts evaluate``: WER and CER of a checkpoint on manifests; training reports its result through it too.

References are the raw texts of the manifest through `kvarts.text.normalise`, never decoded from label ids: a
letter outside the alphabet counts as the error it is. An utterance without reference words is scored as well;
every word recognised in it is an insertion.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvarts import __version__
from kvarts.error_counts import ErrorCounts, char_errors, word_errors
from kvarts.errors import AudioError, ConfigError, ManifestError, listing
from kvarts.files import atomic_text_writer, sha256_of, write_error
from kvarts.manifest import Utterance, read_manifest, write_manifest
from kvarts.text import NORMALISER_VERSION

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.table import Table

    from kvarts.recogniser import Recognizer

BATCH_DURATION_S = 120.0  # padded seconds of sound in a batch


@dataclass(frozen=True)
class Evaluation:
    """The score of one manifest, or of several together."""

    name: str
    words: ErrorCounts
    characters: ErrorCounts
    num_utterances: int
    audio_s: float  # sum of the manifest's durations
    elapsed_s: float  # wall clock from the first file read to the last text

    @property
    def rtfx(self) -> float:
        """Seconds of sound recognised in a second, reading and features included."""
        return self.audio_s / self.elapsed_s

    def as_json(self) -> dict[str, Any]:
        """What results.json says of it; rates are fractions, not per cent."""
        return {
            "name": self.name,
            "wer": self.words.rate,
            "cer": self.characters.rate,
            "words": asdict(self.words),
            "characters": asdict(self.characters),
            "utterances": self.num_utterances,
            "hours": self.audio_s / 3600,
            "elapsed_s": self.elapsed_s,
            "rtfx": self.rtfx,
        }


def together(evaluations: Sequence[Evaluation]) -> Evaluation:
    """Several scores as one: errors, words, utterances and times are added up."""
    return Evaluation(
        name="together",
        words=sum((evaluation.words for evaluation in evaluations), ErrorCounts()),
        characters=sum((evaluation.characters for evaluation in evaluations), ErrorCounts()),
        num_utterances=sum(evaluation.num_utterances for evaluation in evaluations),
        audio_s=sum(evaluation.audio_s for evaluation in evaluations),
        elapsed_s=sum(evaluation.elapsed_s for evaluation in evaluations),
    )


def render_table(evaluations: Sequence[Evaluation]) -> Table:
    """A table for the terminal, a row for each evaluation in the order given."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    # Short headings: golos' test sets still fit into 80 columns.
    table.add_column("", min_width=8, overflow="fold")
    for heading in ("WER %", "CER %", "subst.", "del.", "ins.", "utt.", "hours", "RTFx"):
        table.add_column(heading, justify="right", no_wrap=True)
    for evaluation in evaluations:
        words = evaluation.words
        table.add_row(
            evaluation.name,
            f"{100 * words.rate:.2f}",
            f"{100 * evaluation.characters.rate:.2f}",
            str(words.substitutions),
            str(words.deletions),
            str(words.insertions),
            str(evaluation.num_utterances),
            f"{evaluation.audio_s / 3600:.3f}",
            f"{evaluation.rtfx:.1f}",
        )
    return table


def evaluate_manifest(
    recognizer: Recognizer,
    utterances: Sequence[Utterance],
    *,
    name: str,
    batch_duration_s: float = BATCH_DURATION_S,
    on_text: Callable[[Utterance, str], None] | None = None,
) -> tuple[Evaluation, list[str]]:
    """Recognises and scores utterances, batched with others of similar duration.

    Args:
        recognizer: with any engine.
        name: of the manifest, for tables and files.
        batch_duration_s: longest utterance times number of utterances, at most, in a batch of more than one.
        on_text: called with every utterance as soon as its text is known; long utterances come first.

    Returns:
        The score, and the texts in the order of `utterances`.

    Raises:
        AudioError: some files could not be read; all the others have been recognised and given to `on_text`.
    """
    from kvarts.recogniser import text_of

    start_s = time.perf_counter()
    predictions = [""] * len(utterances)
    for batch in manifest_log_probs(recognizer, utterances, name=name, batch_duration_s=batch_duration_s):
        matrices = [matrix for _, matrix in batch]
        for (index, _), words in zip(batch, recognizer.decoded(matrices, list(map(len, matrices))), strict=True):
            predictions[index] = text_of(words)
            if on_text is not None:
                on_text(utterances[index], predictions[index])
    elapsed_s = time.perf_counter() - start_s
    references = [utterance.text for utterance in utterances]
    evaluation = Evaluation(
        name=name,
        words=sum(map(word_errors, references, predictions), ErrorCounts()),
        characters=sum(map(char_errors, references, predictions), ErrorCounts()),
        num_utterances=len(utterances),
        audio_s=sum(utterance.duration_s for utterance in utterances),
        elapsed_s=elapsed_s,
    )
    return evaluation, predictions


def manifest_log_probs(
    recognizer: Recognizer,
    utterances: Sequence[Utterance],
    *,
    name: str,
    batch_duration_s: float = BATCH_DURATION_S,
) -> Iterator[list[tuple[int, NDArray[np.float32]]]]:
    """What the network says of utterances, batched with others of similar duration, long ones first.

    Yields:
        Of each batch, places in `utterances` and log-probabilities (time, 34).

    Raises:
        AudioError: some files could not be read; after all others.
    """
    from kvarts.progress import progress_bar, run_ahead

    failures: list[str] = []
    durations_s = [utterance.duration_s for utterance in utterances]

    def load(batch: list[int]) -> list[tuple[int, NDArray[np.float32] | AudioError]]:
        return [(index, _features_or_error(utterances[index])) for index in batch]

    with progress_bar(f"recognising {name}", sum(durations_s)) as advance:
        for loaded in run_ahead(load, _batches(durations_s, batch_duration_s), workers=2, ahead=2):
            indices: list[int] = []
            features: list[NDArray[np.float32]] = []
            for index, result in loaded:
                if isinstance(result, AudioError):
                    failures.append(f"{utterances[index].where}: {result}")
                else:
                    indices.append(index)
                    features.append(result)
            padded, lengths = recognizer.log_probs(features)
            yield [(index, row[:length]) for index, row, length in zip(indices, padded, lengths, strict=True)]
            advance(sum(durations_s[index] for index, _ in loaded))
    if failures:
        raise AudioError(listing(f"{name}: files that could not be read", failures))


def evaluate_manifests(
    recognizer: Recognizer,
    manifests: Mapping[str, Path],
    *,
    batch_duration_s: float = BATCH_DURATION_S,
    output: Path | None = None,
    about: Mapping[str, Any] | None = None,
    on_evaluation: Callable[[Evaluation], None] | None = None,
) -> list[Evaluation]:
    """Evaluates manifests, given by name, one after the other.

    All of them are read, and the headers of all their audio files checked, before the first is recognised.

    Args:
        recognizer: see `evaluate_manifest`, as for `batch_duration_s`.
        output: a folder that gets, after each manifest, ``<name>_pred.jsonl`` (the manifest with `pred_text`
            added and absolute paths) and a new ``results.json``. Should recognition break off, the texts
            known by then stay in ``<name>_pred.partial.jsonl``.
        about: what ``results.json`` starts with, beside the versions: where the model came from.
        on_evaluation: called with each score as soon as it is known, before anything is written.

    Raises:
        ManifestError: a manifest is broken, or its audio missing, not audio or not of the duration it gives.
        AudioError: a file turned out to be damaged behind its header.
        OutputError: a result could not be written.
    """
    from kvarts.checks import check_audio

    if output is not None:
        _make_folder(output)
    read = {name: read_manifest(path) for name, path in manifests.items()}
    problems = check_audio([utterance for utterances in read.values() for utterance in utterances])
    if problems:
        raise ManifestError(listing("utterances that cannot be evaluated", list(map(str, problems))))
    evaluations: list[Evaluation] = []
    for name, utterances in read.items():
        partial = None if output is None else output / f"{name}_pred.partial.jsonl"
        with nullcontext() if partial is None else _kept_texts(partial) as on_text:
            evaluation, predictions = evaluate_manifest(
                recognizer, utterances, name=name, batch_duration_s=batch_duration_s, on_text=on_text
            )
            evaluations.append(evaluation)
            if on_evaluation is not None:
                on_evaluation(evaluation)
            if output is not None:
                rows = map(_predicted_row, utterances, predictions)
                write_manifest(output / f"{name}_pred.jsonl", rows)
                _write_results(output / "results.json", evaluations, manifests, about or {})
    return evaluations


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the subcommand."""
    parser.description = (
        "Recognises the utterances of manifests and prints WER, CER, the kinds of word errors and the speed, "
        "for each manifest and for all together."
    )
    parser.add_argument("--checkpoint", metavar="C", type=Path, required=True, help=".ckpt or .safetensors")
    parser.add_argument(
        "--manifest",
        metavar="M",
        type=Path,
        required=True,
        action="append",
        help="may be given several times",
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        type=Path,
        help="write results.json and predictions (NAME_pred.jsonl) there",
    )
    parser.add_argument(
        "--batch-duration-s",
        metavar="N",
        type=_positive_number,
        default=BATCH_DURATION_S,
        help="seconds of sound in a batch, padding included (default: %(default)g); less needs less memory",
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 …; auto: the GPU if there is one")


def run(args: argparse.Namespace) -> int:
    """Evaluates as the arguments say and prints the table; what is scored before an error is printed too."""
    from rich.console import Console

    from kvarts.recogniser import Recognizer
    from kvarts.torch_engine import Torch

    manifests = name_manifests(args.manifest)
    about: dict[str, Any] = {"command": args.command_line}
    recognizer = Recognizer(Torch.load(args.checkpoint, args.device))
    if args.output is not None:
        about["checkpoint"] = {"path": str(args.checkpoint.absolute()), "sha256": sha256_of(args.checkpoint)}
    evaluations: list[Evaluation] = []
    try:
        evaluate_manifests(
            recognizer,
            manifests,
            batch_duration_s=args.batch_duration_s,
            output=args.output,
            about=about,
            on_evaluation=evaluations.append,
        )
    finally:
        if evaluations:
            rows = evaluations if len(evaluations) == 1 else [*evaluations, together(evaluations)]
            # In a file or a pipe there is no edge to wrap at.
            Console(width=None if sys.stdout.isatty() else 120).print(render_table(rows))
    if args.output is not None:
        print(f"results: {args.output / 'results.json'}")
    return 0


def name_manifests(paths: Sequence[Path]) -> dict[str, Path]:
    """Short names for manifests, different from each other, that will do as the beginning of a file name.

    ``test_opus/crowd/manifest.jsonl`` is «crowd», ``train_opus/1hour.jsonl`` «train_opus-1hour»; folders
    further up are put before where that is not enough.

    Raises:
        ConfigError: a manifest is given twice.
    """
    whole = [path.resolve() for path in paths]
    for path, twin in zip(paths, whole, strict=True):
        if whole.count(twin) > 1:
            raise ConfigError(f"{path}: given twice; give every manifest once")
    folders = [path.parent.parts[1:] for path in whole]  # without the root
    stems = [() if path.stem == "manifest" else (path.stem,) for path in whole]
    deepest = max(map(len, folders))
    for depth in range(1, deepest + 1):
        names = ["-".join(above[-depth:] + stem) for above, stem in zip(folders, stems, strict=True)]
        if len(set(names)) == len(names):
            return dict(zip(names, paths, strict=True))
    # Alike but for the ending: manifest.json beside manifest.jsonl.
    return {f"{number}-{path.name}": path for number, path in enumerate(paths, start=1)}


def _features_or_error(utterance: Utterance) -> NDArray[np.float32] | AudioError:
    from kvarts.recogniser import file_features

    try:
        return file_features(utterance.audio_path)
    except AudioError as error:
        return error


def _batches(durations_s: Sequence[float], batch_duration_s: float) -> list[list[int]]:
    """Indices of utterances, longest first: what does not fit into memory fails at once, not at the end."""
    batches: list[list[int]] = []
    batch: list[int] = []
    for index in sorted(range(len(durations_s)), key=lambda index: -durations_s[index]):
        if batch and durations_s[batch[0]] * (len(batch) + 1) > batch_duration_s:
            batches.append(batch)
            batch = []
        batch.append(index)
    return [*batches, batch]


@contextmanager
def _kept_texts(path: Path) -> Iterator[Callable[[Utterance, str], None]]:
    """Gives a function that appends utterances with their texts to a file, gone once the block ends well."""
    try:
        with path.open("w", encoding="utf-8", buffering=1) as file:

            def keep(utterance: Utterance, text: str) -> None:
                file.write(json.dumps(_predicted_row(utterance, text), ensure_ascii=False) + "\n")

            yield keep
    except OSError as error:
        raise write_error(path, error) from error
    except AudioError as error:
        raise AudioError(f"{error}\nwhat was recognised is kept in {path}") from error
    path.unlink()


def _predicted_row(utterance: Utterance, text: str) -> dict[str, Any]:
    return {**utterance.fields, "audio_filepath": str(utterance.audio_path.absolute()), "pred_text": text}


def _write_results(
    path: Path, evaluations: Sequence[Evaluation], manifests: Mapping[str, Path], about: Mapping[str, Any]
) -> None:
    results = {
        "kvarts_version": __version__,
        "normaliser_version": NORMALISER_VERSION,
        **about,
        "complete": len(evaluations) == len(manifests),
        "manifests": [
            {
                **evaluation.as_json(),
                "manifest": str(manifests[evaluation.name].absolute()),
                "predictions": f"{evaluation.name}_pred.jsonl",
            }
            for evaluation in evaluations
        ],
        "together": together(evaluations).as_json(),
    }
    with atomic_text_writer(path) as file:
        json.dump(results, file, ensure_ascii=False, indent=2)
        file.write("\n")


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path, error) from error


def _positive_number(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value
