"""``kvarts evaluate``: WER and CER of a checkpoint on manifests, how sure they are, and where the errors are; training
reports its result through it too.

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
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvarts import __version__
from kvarts.breakdown import (
    LEAST_UTTERANCES,
    MEASURES,
    NOT_GIVEN,
    Group,
    Grouping,
    Intervals,
    confusions,
    confusions_as_json,
    confusions_table,
    groupings,
    groups,
    groups_table,
    interval_text,
    intervals,
    intervals_as_json,
    speaker_intervals,
)
from kvarts.error_counts import ErrorCounts, align_letters, align_words, total
from kvarts.errors import AudioError, ConfigError, ManifestError, OutputError, listing
from kvarts.files import atomic_text_writer, write_error
from kvarts.manifest import Utterance, read_manifest, write_manifest
from kvarts.open_weights import MODEL
from kvarts.recogniser_options import (
    add_decoder_arguments,
    add_grammar_arguments,
    add_model_arguments,
    decoder_options,
    positive_number,
)
from kvarts.scored import Scored, predicted_row, read_predictions, scored
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
    """The score of one manifest, or of several together.

    Attributes:
        elapsed_s: wall clock from the first file read to the last text; None where the texts were there already.
        hotwords: where there are any.
        by: how it is to be broken down.
        num_confusions: how many confusions of words, and of letters, are to be told.
    """

    name: str
    scored: tuple[Scored, ...] = field(repr=False)
    elapsed_s: float | None
    hotwords: HotwordCounts | None = None
    by: tuple[Grouping, ...] = ()
    num_confusions: int = 0

    @functools.cached_property
    def words(self) -> ErrorCounts:
        """Errors in words, added up."""
        return total([one.words for one in self.scored])

    @functools.cached_property
    def characters(self) -> ErrorCounts:
        """Errors in characters, added up."""
        return total([one.characters for one in self.scored])

    @functools.cached_property
    def intervals(self) -> Intervals:
        """Bootstrap intervals over utterances."""
        return intervals(self.scored)

    @functools.cached_property
    def groups(self) -> Mapping[Grouping, Sequence[Group]]:
        """What it is broken down into.

        Raises:
            AudioError: see `kvarts.breakdown.groups`.
        """
        return {one: groups(self.scored, one) for one in self.by}

    @property
    def num_utterances(self) -> int:
        """All that were scored."""
        return len(self.scored)

    @property
    def num_exact(self) -> int:
        """Utterances whose text is right to the letter."""
        return sum(one.is_exact for one in self.scored)

    @property
    def audio_s(self) -> float:
        """The sum of the manifest's durations."""
        return sum(one.duration_s for one in self.scored)

    @property
    def rtfx(self) -> float | None:
        """Seconds of sound recognised in a second, reading and features included."""
        return None if self.elapsed_s is None else self.audio_s / self.elapsed_s

    def as_json(self) -> dict[str, Any]:
        """What results.json says of it; rates are fractions, not per cent."""
        found = {
            "name": self.name,
            "wer": self.words.rate,
            "cer": self.characters.rate,
            "words": asdict(self.words),
            "characters": asdict(self.characters),
            "utterances": self.num_utterances,
            "exact": self.num_exact,
            "exact_rate": self.num_exact / self.num_utterances,
            "intervals": intervals_as_json(self.scored, self.intervals),
            "hours": self.audio_s / 3600,
            "elapsed_s": self.elapsed_s,
            "rtfx": self.rtfx,
        }
        if self.hotwords is not None:
            found["hotwords"] = self.hotwords.as_json()
        if self.by:
            found["breakdown"] = {by.name: [group.as_json() for group in parts] for by, parts in self.groups.items()}
        if self.num_confusions:
            found["confusions"] = confusions_as_json(self.scored, self.num_confusions)
        return found | _spoken_versions(self.scored)


def together(evaluations: Sequence[Evaluation]) -> Evaluation:
    """Several scores as one: all their utterances, and their times added up."""
    hot = [evaluation.hotwords for evaluation in evaluations if evaluation.hotwords is not None]
    times_s = [evaluation.elapsed_s for evaluation in evaluations if evaluation.elapsed_s is not None]
    return Evaluation(
        name="together",
        scored=tuple(one for evaluation in evaluations for one in evaluation.scored),
        elapsed_s=sum(times_s) if times_s else None,
        hotwords=functools.reduce(operator.add, hot) if hot else None,
        by=evaluations[0].by,
        num_confusions=evaluations[0].num_confusions,
    )


def render_table(evaluations: Sequence[Evaluation]) -> Table:
    """A table for the terminal, a row for each evaluation in the order given."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    # Short headings, close together: golos' test sets still fit into 80 columns.
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", min_width=8, overflow="fold")
    for heading in ("WER %", "±", "CER %", "exact", "subst.", "del.", "ins.", "utt.", "hours", "RTFx"):
        table.add_column(heading, justify="right", no_wrap=True)
    for evaluation in evaluations:
        words = evaluation.words
        interval = evaluation.intervals["wer"]
        table.add_row(
            evaluation.name,
            f"{100 * words.rate:.2f}",
            "–" if interval is None else f"{50 * (interval[1] - interval[0]):.1f}",
            f"{100 * evaluation.characters.rate:.2f}",
            f"{100 * evaluation.num_exact / evaluation.num_utterances:.1f}",
            str(words.substitutions),
            str(words.deletions),
            str(words.insertions),
            str(evaluation.num_utterances),
            f"{evaluation.audio_s / 3600:.3f}",
            "–" if evaluation.rtfx is None else f"{evaluation.rtfx:.1f}",
        )
    return table


def intervals_table(evaluations: Sequence[Evaluation]) -> Table:
    """The intervals of each evaluation, over utterances and over speakers, or why there are none."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    title = "95 % intervals, by what is drawn anew"
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left", title_style="bold")
    table.add_column("", min_width=8, overflow="fold")
    table.add_column("drawn", overflow="fold")
    for heading in ("WER %", "CER %", "exact %"):
        table.add_column(heading, justify="right", no_wrap=True)
    for evaluation in evaluations:
        by_speaker, drawn = speaker_intervals(evaluation.scored)
        for name, what, found in (
            (evaluation.name, f"{evaluation.num_utterances} utterances", evaluation.intervals),
            ("", drawn, by_speaker),
        ):
            table.add_row(name, what, *(interval_text(found[measure]) for measure in MEASURES))
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
    hotwords = _hotword_counts(hot_phrases, references, predictions) if hot_phrases else None
    return Evaluation(name, tuple(scored(utterances, predictions)), elapsed_s, hotwords), predictions


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
    breakdown: Sequence[str] = (),
    num_confusions: int = 0,
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
        breakdown: fields to break each score down by, see `kvarts.breakdown.groupings`.
        num_confusions: how many confusions of words, and of letters, ``results.json`` gets.

    Raises:
        ConfigError: no manifest has a field of `breakdown`.
        ManifestError: a manifest is broken, or its audio missing, not audio or not of the duration it gives.
        AudioError: a file turned out to be damaged behind its header.
        OutputError: a result could not be written.
    """
    if output is not None:
        _make_folder(output)
    read = {name: _checked_manifest(path) for name, path in manifests.items()}
    sources = {
        name: {"manifest": str(path.absolute()), "predictions": f"{name}_pred.jsonl"}
        for name, path in manifests.items()
    }
    by = tuple(groupings(breakdown, [one.fields for utterances in read.values() for one in utterances]))
    evaluations: list[Evaluation] = []
    for name, utterances in read.items():
        partial = None if output is None else output / f"{name}_pred.partial.jsonl"
        with nullcontext() if partial is None else _kept_texts(partial) as on_text:
            evaluation, _ = evaluate_manifest(
                recognizer,
                utterances,
                name=name,
                batch_duration_s=batch_duration_s,
                on_text=on_text,
                hot_phrases=hot_phrases,
            )
            evaluation = replace(evaluation, by=by, num_confusions=num_confusions)
            evaluations.append(evaluation)
            if on_evaluation is not None:
                on_evaluation(evaluation)
            if output is not None:
                write_manifest(output / f"{name}_pred.jsonl", (one.fields for one in evaluation.scored))
                _write_results(output / "results.json", evaluations, sources, about or {})
    return evaluations


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the subcommand."""
    parser.description = (
        "Recognises the utterances of manifests and prints WER and half its 95 % interval, CER, how many texts are "
        "exact, in per cent, the kinds of word errors and the speed, for each manifest and for all together; with "
        "--hotwords also how many of them are found, with --streaming what a stream gives and when, with --grammar how "
        "many commands are understood. With --predictions the same of texts that were recognised before."
    )
    add_model_arguments(parser, is_optional=True)
    parser.add_argument("--manifest", metavar="M", type=Path, action="append", help="may be given several times")
    parser.add_argument(
        "--predictions",
        metavar="P",
        type=Path,
        nargs="+",
        help="instead of --model and --manifest: NAME_pred.jsonl that --output wrote; nothing is recognised anew",
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        type=Path,
        help="write results.json and predictions (NAME_pred.jsonl) there; with --predictions rescored.json",
    )
    details = parser.add_argument_group("where the errors are")
    details.add_argument(
        "--breakdown",
        metavar="FIELDS",
        type=field_names,
        default=(),
        help="scores by each of these, with commas between: length, snr (snr_db of the manifest, else estimated), and "
        "any field of the manifest: domain, speaker, rt60_s …",
    )
    details.add_argument(
        "--confusions",
        metavar="N",
        type=_count,
        default=0,
        help="show the N most frequent confusions of words, and of letters",
    )
    details.add_argument(
        "--report", metavar="FILE", type=Path, help="write the page that kvarts report makes of predictions, .html"
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
    from kvarts.recogniser_options import recogniser_of

    details = [name for name in ("breakdown", "confusions", "report") if getattr(args, name)]
    if details and (args.streaming or args.grammar is not None):
        args.usage_error(f"--{details[0]} goes without --streaming and --grammar")
    if args.predictions is not None:
        return _run_predictions(args)
    if args.manifest is None:
        args.usage_error("--manifest is needed, or --predictions")
    if args.model is None:
        args.model = MODEL
    if args.streaming and args.grammar is not None:
        args.usage_error("--streaming and --grammar are measured one at a time")
    if args.chunk_s is not None and not args.streaming:
        args.usage_error("--chunk-s goes with --streaming")
    threshold = (args.unknown_below, args.false_accepts_per_hour)
    if threshold != (None, None) and (args.grammar is None or None not in threshold):
        args.usage_error("--unknown-below or --false-accepts-per-hour, one of them, goes with --grammar")
    console = _console()
    manifests = name_manifests(args.manifest)
    _make_places(args)
    if args.grammar is not None:
        return _run_grammar(args, manifests, console)
    recognizer = recogniser_of(args)
    if args.streaming:
        return _run_streaming(args, recognizer, manifests, console)
    evaluations: list[Evaluation] = []
    about = {} if args.output is None and args.report is None else _about(args, recognizer)
    try:
        evaluate_manifests(
            recognizer,
            manifests,
            batch_duration_s=args.batch_duration_s,
            output=args.output,
            about=about,
            on_evaluation=evaluations.append,
            hot_phrases=_hot_phrases(recognizer),
            breakdown=args.breakdown,
            num_confusions=args.confusions,
        )
    finally:
        if evaluations:
            _print_tables(evaluations, console)
    if args.output is not None:
        print(f"results: {args.output / 'results.json'}")
    return _write_page(args, evaluations, about)


def _make_places(args: argparse.Namespace) -> None:
    """Before anything is recognised: what cannot be written must not be found out at the end."""
    if args.output is not None:
        _make_folder(args.output)
    if args.report is not None:
        if args.report.is_dir():
            raise OutputError(f"--report {args.report}: is a folder; name a file in it")
        _make_folder(args.report.parent)


def _write_page(args: argparse.Namespace, evaluations: Sequence[Evaluation], about: Mapping[str, Any]) -> int:
    from kvarts.report import described, report_written, write_report

    if args.report is None:
        return 0
    sections = {evaluation.name: evaluation.scored for evaluation in evaluations}
    told = described({"kvarts_version": __version__, **about})
    written = write_report(args.report, sections, title=", ".join(sections), about=told)
    return report_written(args.report, written)


def _console() -> Console:
    from rich.console import Console

    # In a file or a pipe there is no edge to wrap at.
    return Console(width=None if sys.stdout.isatty() else 120)


def _print_tables(evaluations: Sequence[Evaluation], console: Console) -> None:
    from kvarts import hotword_metrics

    rows = evaluations if len(evaluations) == 1 else [*evaluations, together(evaluations)]
    console.print(render_table(rows))
    hot = [(row.name, row.hotwords) for row in rows if row.hotwords is not None]
    if hot:
        console.print(hotword_metrics.render_table(hot))
    if any(row.num_utterances >= LEAST_UTTERANCES for row in rows):
        console.print(intervals_table(rows))
    for evaluation in evaluations:
        for by, parts in evaluation.groups.items():
            if [part.label for part in parts] != [NOT_GIVEN]:
                console.print(groups_table(evaluation.name, by, parts))
    whole = rows[-1]
    if whole.num_confusions:
        for what, align in (("words", align_words), ("letters", align_letters)):
            found = confusions(whole.scored, align, whole.num_confusions)
            console.print(confusions_table(f"{whole.name}: confused {what}", found))


def _run_predictions(args: argparse.Namespace) -> int:
    given = ["--model"] * (args.model is not None) + ["--manifest"] * (args.manifest is not None)
    given += ["--streaming"] * args.streaming + ["--grammar"] * (args.grammar is not None) + decoder_options(args)
    if given:
        args.usage_error(f"--predictions recognises nothing anew; leave out {', '.join(given)}")
    _make_places(args)
    paths = name_predictions(args.predictions)
    read = {name: read_predictions(path) for name, path in paths.items()}
    by = tuple(groupings(args.breakdown, [one.fields for of_file in read.values() for one in of_file]))
    evaluations = [
        Evaluation(name, tuple(of_file), None, by=by, num_confusions=args.confusions) for name, of_file in read.items()
    ]
    _print_tables(evaluations, _console())
    if args.output is not None:
        # Not results.json: in the folder of the predictions that says which model and decoder they come from.
        path = args.output / "rescored.json"
        sources = {name: {"predictions": str(place.absolute())} for name, place in paths.items()}
        _write_results(path, evaluations, sources, {"command": args.command_line})
        print(f"results: {path}")
    return _write_page(args, evaluations, {"command": args.command_line})


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


def name_predictions(paths: Sequence[Path]) -> dict[str, Path]:
    """The names of the sets that predictions are of: «crowd» of ``crowd_pred.jsonl``; longer where several are alike.

    Raises:
        ConfigError: a file is given twice.
    """
    short = [path.stem.removesuffix("_pred") for path in paths]
    if len(set(short)) == len(paths):
        return dict(zip(short, paths, strict=True))
    return {name.removesuffix("_pred"): path for name, path in name_manifests(paths).items()}


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
                file.write(json.dumps(predicted_row(utterance, text), ensure_ascii=False) + "\n")

            yield keep
    except OSError as error:
        raise write_error(path, error) from error
    except AudioError as error:
        raise AudioError(f"{error}\nwhat was recognised is kept in {path}") from error
    path.unlink()


def _write_results(
    path: Path, evaluations: Sequence[Evaluation], sources: Mapping[str, Mapping[str, str]], about: Mapping[str, Any]
) -> None:
    results = {
        **_versions(),
        **about,
        "complete": len(evaluations) == len(sources),
        "manifests": [{**evaluation.as_json(), **sources[evaluation.name]} for evaluation in evaluations],
        "together": together(evaluations).as_json(),
    }
    _write_json(path, results)


def _spoken_versions(utterances: Sequence[Scored]) -> dict[str, Any]:
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


def field_names(text: str) -> list[str]:
    """Names with commas between, as an argument of a command."""
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} has an empty name; write names with commas between")
    return names


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
    return int(text)


def _not_negative_number(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 on")
    return value
