"""``kvarts evaluate``: WER and CER of a checkpoint on manifests; training reports its result through it too.

References are the raw texts of the manifest through `kvarts.text.normalise`, never decoded from label ids: a
letter outside the alphabet counts as the error it is. An utterance without reference words is scored as well;
every word recognised in it is an insertion.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import operator
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
from kvarts.files import atomic_text_writer, write_error
from kvarts.manifest import Utterance, read_manifest, write_manifest
from kvarts.recogniser_options import add_decoder_arguments, add_grammar_arguments, add_model_arguments, positive_number
from kvarts.text import NORMALISER_VERSION

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.console import Console
    from rich.table import Table

    from kvarts.hotword_metrics import HotwordCounts
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
    hotwords: HotwordCounts | None = None  # where there are any

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
            **({} if self.hotwords is None else {"hotwords": self.hotwords.as_json()}),
        }


def together(evaluations: Sequence[Evaluation]) -> Evaluation:
    """Several scores as one: errors, words, utterances and times are added up."""
    hot = [evaluation.hotwords for evaluation in evaluations if evaluation.hotwords is not None]
    return Evaluation(
        name="together",
        words=sum((evaluation.words for evaluation in evaluations), ErrorCounts()),
        characters=sum((evaluation.characters for evaluation in evaluations), ErrorCounts()),
        num_utterances=sum(evaluation.num_utterances for evaluation in evaluations),
        audio_s=sum(evaluation.audio_s for evaluation in evaluations),
        elapsed_s=sum(evaluation.elapsed_s for evaluation in evaluations),
        hotwords=functools.reduce(operator.add, hot) if hot else None,
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
    hot_phrases: Sequence[str] = (),
) -> tuple[Evaluation, list[str]]:
    """Recognises and scores utterances, batched with others of similar duration.

    Args:
        recognizer: with any engine.
        name: of the manifest, for tables and files.
        batch_duration_s: longest utterance times number of utterances, at most, in a batch of more than one.
        on_text: called with every utterance as soon as its text is known; long utterances come first.
        hot_phrases: to be counted, see `kvarts.hotword_metrics`.

    Returns:
        The score, and the texts in the order of `utterances`.

    Raises:
        AudioError: some files could not be read; all the others have been recognised and given to `on_text`.
    """
    from kvarts.recogniser import text_of

    start_s = time.perf_counter()
    predictions = [""] * len(utterances)
    for batch in manifest_log_probs(recognizer, utterances, name=name, batch_duration_s=batch_duration_s):
        for (index, _), words in zip(batch, recognizer.decoded([matrix for _, matrix in batch]), strict=True):
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
        hotwords=_hotword_counts(hot_phrases, references, predictions) if hot_phrases else None,
    )
    return evaluation, predictions


def _hotword_counts(phrases: Sequence[str], references: Sequence[str], predictions: Sequence[str]) -> HotwordCounts:
    from kvarts.hotword_metrics import HotwordCounts, hotword_counts

    pairs = zip(references, predictions, strict=True)
    return sum((hotword_counts(phrases, *pair) for pair in pairs), HotwordCounts())


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
            yield list(zip(indices, recognizer.log_probs(features), strict=True))
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
    hot_phrases: Sequence[str] = (),
) -> list[Evaluation]:
    """Evaluates manifests, given by name, one after the other.

    All of them are read, and the headers of all their audio files checked, before the first is recognised.

    Args:
        recognizer: see `evaluate_manifest`, as for `batch_duration_s` and `hot_phrases`.
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
    if output is not None:
        _make_folder(output)
    read = {name: _checked_manifest(path) for name, path in manifests.items()}
    evaluations: list[Evaluation] = []
    for name, utterances in read.items():
        partial = None if output is None else output / f"{name}_pred.partial.jsonl"
        with nullcontext() if partial is None else _kept_texts(partial) as on_text:
            evaluation, predictions = evaluate_manifest(
                recognizer,
                utterances,
                name=name,
                batch_duration_s=batch_duration_s,
                on_text=on_text,
                hot_phrases=hot_phrases,
            )
            evaluations.append(evaluation)
            if on_evaluation is not None:
                on_evaluation(evaluation)
            if output is not None:
                rows = map(_predicted_row, utterances, predictions)
                write_manifest(output / f"{name}_pred.jsonl", rows)
                _write_results(output / "results.json", evaluations, manifests, read, about or {})
    return evaluations


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the subcommand."""
    parser.description = (
        "Recognises the utterances of manifests and prints WER, CER, the kinds of word errors and the speed, "
        "for each manifest and for all together; with --hotwords also how many of them are found, with --streaming "
        "what a stream gives and when, with --grammar how many commands are understood."
    )
    add_model_arguments(parser)
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
        type=positive_number,
        default=BATCH_DURATION_S,
        help="seconds of sound in a batch, padding included (default: %(default)g); less needs less memory",
    )
    add_decoder_arguments(parser)
    streaming = parser.add_argument_group("streaming")
    streaming.add_argument(
        "--streaming", action="store_true", help="play the utterances to a stream, and measure what one sees and when"
    )
    streaming.add_argument(
        "--chunk-s",
        metavar="N",
        type=positive_number,
        nargs="+",
        help="seconds of sound that come at a time, a row each (default: 0.02 0.1 0.32 1 2)",
    )
    grammar = add_grammar_arguments(parser)
    grammar.description = "Texts that are no phrase of it count as speech that must not be taken for a command."
    grammar.add_argument(
        "--false-accepts-per-hour",
        metavar="N",
        type=_not_negative_number,
        help="instead: the score with which there are no more, found on these very manifests",
    )
    parser.set_defaults(usage_error=parser.error)


def run(args: argparse.Namespace) -> int:
    """Evaluates as the arguments say and prints the table; what is scored before an error is printed too."""
    from rich.console import Console

    from kvarts import hotword_metrics
    from kvarts.recogniser_options import recogniser_of

    if args.streaming and args.grammar is not None:
        args.usage_error("--streaming and --grammar are measured one at a time")
    if args.chunk_s is not None and not args.streaming:
        args.usage_error("--chunk-s goes with --streaming")
    threshold = (args.unknown_below, args.false_accepts_per_hour)
    if threshold != (None, None) and (args.grammar is None or None not in threshold):
        args.usage_error("--unknown-below or --false-accepts-per-hour, one of them, goes with --grammar")
    # In a file or a pipe there is no edge to wrap at.
    console = Console(width=None if sys.stdout.isatty() else 120)
    manifests = name_manifests(args.manifest)
    if args.output is not None:
        _make_folder(args.output)
    if args.grammar is not None:
        return _run_grammar(args, manifests, console)
    recognizer = recogniser_of(args)
    if args.streaming:
        return _run_streaming(args, recognizer, manifests, console)
    evaluations: list[Evaluation] = []
    try:
        evaluate_manifests(
            recognizer,
            manifests,
            batch_duration_s=args.batch_duration_s,
            output=args.output,
            about=None if args.output is None else _about(args, recognizer),
            on_evaluation=evaluations.append,
            hot_phrases=_hot_phrases(recognizer),
        )
    finally:
        if evaluations:
            rows = evaluations if len(evaluations) == 1 else [*evaluations, together(evaluations)]
            console.print(render_table(rows))
            hot = [(row.name, row.hotwords) for row in rows if row.hotwords is not None]
            if hot:
                console.print(hotword_metrics.render_table(hot))
    if args.output is not None:
        print(f"results: {args.output / 'results.json'}")
    return 0


def _hot_phrases(recognizer: Recognizer) -> tuple[str, ...]:
    from kvarts.search import BeamSearch

    hotwords = recognizer.decoder.rules.hotwords if isinstance(recognizer.decoder, BeamSearch) else None
    return () if hotwords is None else tuple(hotwords.phrases)


def _about(args: argparse.Namespace, recognizer: Recognizer) -> dict[str, Any]:
    """What a file of results says of where they come from."""
    from kvarts.confidence import description_of, model_identity

    return {
        "command": args.command_line,
        "checkpoint": {"path": str(args.model.absolute()), "sha256": model_identity(args.model)},
        "engine": recognizer.engine.name,
        "decoder": description_of(recognizer.decoder),
    }


def _run_streaming(
    args: argparse.Namespace, recognizer: Recognizer, manifests: Mapping[str, Path], console: Console
) -> int:
    from kvarts.streaming_metrics import CHUNK_SIZES_S, evaluate_streaming, streaming_table

    results: dict[str, Any] = {}
    read = {name: _checked_manifest(path) for name, path in manifests.items()}
    for name, utterances in read.items():
        evaluations = evaluate_streaming(recognizer, utterances, args.chunk_s or CHUNK_SIZES_S, name=name)
        table = streaming_table(evaluations)
        table.title = name
        console.print(table)
        results[name] = [evaluation.as_json() for evaluation in evaluations]
    if args.output is not None:
        _write_json(args.output / "streaming.json", {**_versions(), **_about(args, recognizer), "manifests": results})
        print(f"results: {args.output / 'streaming.json'}")
    return 0


def _run_grammar(args: argparse.Namespace, manifests: Mapping[str, Path], console: Console) -> int:
    from kvarts.grammar_metrics import Outcome, outcomes, render_table, score, threshold
    from kvarts.recogniser_options import grammar_search_of, recogniser_of

    search = grammar_search_of(args)
    penalty = search.unknown_penalty
    recognizer = recogniser_of(args, search)
    read = {name: _checked_manifest(path) for name, path in manifests.items()}
    found: dict[str, list[Outcome]] = {
        name: outcomes(recognizer, utterances, search, batch_duration_s=args.batch_duration_s)
        for name, utterances in read.items()
    }
    everything = [one for of_manifest in found.values() for one in of_manifest]
    if args.false_accepts_per_hour is not None:
        if all(one.meaning is not None for one in everything):
            raise ManifestError("no text is outside the grammar: add a manifest of other speech to find a threshold")
        penalty = threshold(everything, args.false_accepts_per_hour)
    evaluations = [score(of_manifest, penalty, name=name) for name, of_manifest in found.items()]
    if len(found) > 1:
        evaluations.append(score(everything, penalty, name="together"))
    console.print(render_table(evaluations))
    if args.output is not None:
        content = {**_versions(), **_about(args, recognizer), "manifests": [one.as_json() for one in evaluations]}
        _write_json(args.output / "grammar.json", content)
        print(f"results: {args.output / 'grammar.json'}")
    return 0


def _checked_manifest(path: Path) -> list[Utterance]:
    """The utterances of a manifest, the headers of their files checked.

    Raises:
        ManifestError: a line is broken, or its audio missing, not audio or not of the duration it gives.
    """
    from kvarts.checks import check_audio

    utterances = read_manifest(path)
    problems = check_audio(utterances)
    if problems:
        raise ManifestError(listing("utterances that cannot be evaluated", list(map(str, problems))))
    return utterances


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
    path: Path,
    evaluations: Sequence[Evaluation],
    manifests: Mapping[str, Path],
    read: Mapping[str, Sequence[Utterance]],
    about: Mapping[str, Any],
) -> None:
    results = {
        **_versions(),
        **about,
        "complete": len(evaluations) == len(manifests),
        "manifests": [
            {
                **evaluation.as_json(),
                **_spoken_versions(read[evaluation.name]),
                "manifest": str(manifests[evaluation.name].absolute()),
                "predictions": f"{evaluation.name}_pred.jsonl",
            }
            for evaluation in evaluations
        ],
        "together": together(evaluations).as_json(),
    }
    _write_json(path, results)


def _spoken_versions(utterances: Sequence[Utterance]) -> dict[str, Any]:
    """Of `kvarts.spoken`, which wrote the references, where rows say so: another version may write another text."""
    versions = {str(u.fields["spoken_version"]) for u in utterances if "spoken_version" in u.fields}
    return {"spoken_versions": sorted(versions)} if versions else {}


def _versions() -> dict[str, Any]:
    return {"kvarts_version": __version__, "normaliser_version": NORMALISER_VERSION}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with atomic_text_writer(path) as file:
        json.dump(content, file, ensure_ascii=False, indent=2)
        file.write("\n")


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path, error) from error


def _not_negative_number(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 on")
    return value
