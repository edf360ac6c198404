"""``kvarts calibrate``: fits what turns a decoder's confidences into probabilities, and shows how good they are."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvarts.errors import ManifestError, OutputError

if TYPE_CHECKING:
    from rich.table import Table

    from kvarts.confidence import Calibration, CommandCalibration, Evidence, Scored, Threshold
    from kvarts.grammar_search import GrammarSearch
    from kvarts.manifest import Utterance
    from kvarts.recogniser import Recognizer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the subcommand."""
    from kvarts.recogniser_options import add_decoder_arguments, add_model_arguments, fraction

    parser.description = (
        "Recognises validation data, fits the probability that a word or a whole utterance is right, or a command of a "
        "grammar, writes it for kvarts transcribe --calibration, and prints how good it is. Use data that the model "
        "was not trained on."
    )
    add_model_arguments(parser)
    add_decoder_arguments(parser)
    parser.add_argument(
        "--grammar",
        metavar="FILE",
        type=Path,
        help="fit the probability that its commands are what was meant; give other speech, too",
    )
    parser.add_argument(
        "--manifest",
        metavar="M",
        type=Path,
        required=True,
        action="append",
        help="what to fit it to; may be given several times",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        type=Path,
        default=Path("calibration.json"),
        help="what to write (default: %(default)s)",
    )
    parser.add_argument(
        "--false-accept-rate",
        metavar="R",
        type=fraction,
        default=0.05,
        help="share of what is wrong that the thresholds let through (default: %(default)s)",
    )
    parser.add_argument(
        "--test",
        metavar="M",
        type=Path,
        action="append",
        help="show the figures of this manifest (default: of --manifest, cross-validated by utterance); may be given "
        "several times",
    )
    parser.add_argument("--picture", metavar="PNG", type=Path, help="draw confidence against the share of right ones")


@dataclass(frozen=True)
class _Fitted:
    """What was fitted and how good it is: of what («words»), before and after, with a threshold."""

    calibration: Calibration | CommandCalibration
    before: dict[str, Scored]
    after: dict[str, Scored]
    thresholds: dict[str, Threshold]
    fitted_on: dict[str, Scored]


def run(args: argparse.Namespace) -> int:
    """Calibrates as the arguments say, writes the calibration and prints the figures.

    Raises:
        CalibrationError: there is too little to calibrate on.
        ManifestError, AudioError: a manifest or its audio cannot be read.
        OutputError: a file could not be written.
        KvartsError: the model cannot be loaded.
    """
    from rich.console import Console

    from kvarts.confidence import model_identity
    from kvarts.manifest import read_manifest
    from kvarts.recogniser_options import grammar_search_of, recogniser_of

    for path in (args.output, args.picture):
        if path is not None and path.is_dir():  # told before the work
            raise OutputError(f"{path}: is a folder; name a file in it")
    fitting, testing = (
        [utterance for path in paths for utterance in read_manifest(path)] for paths in (args.manifest, args.test or [])
    )
    search = None if args.grammar is None else grammar_search_of(args)
    recognizer = recogniser_of(args, search)
    about = {
        "false_accept_rate": args.false_accept_rate,
        "model": model_identity(args.model),
        "engine": recognizer.engine.name,
    }
    if search is None:
        fitted = _fit_words(recognizer, fitting, testing, about)
    else:
        fitted = _fit_commands(recognizer, search, fitting, testing, about)
    fitted.calibration.save(args.output)
    names = ", ".join(map(str, args.test or args.manifest))
    shown = names if testing else f"{names}, cross-validated by utterance"
    # In a file or a pipe there is no edge to wrap at.
    Console(width=None if sys.stdout.isatty() else 120).print(_table(shown, fitted))
    for what, part in fitted.fitted_on.items():
        if part.right.all() or not part.right.any():
            which = "right" if part.right.all() else "wrong"
            print(
                f"kvarts: all {len(part.right)} {what} that it was fitted on are {which}: what is said of {what} is "
                "little more than a guess; calibrate on more or other data",
                file=sys.stderr,
            )
    if args.picture is not None:
        draw_reliability(fitted.before, fitted.after, args.picture)
        print(f"picture: {args.picture}")
    print(f"calibration: {args.output}")
    return 0


def _fit_words(
    recognizer: Recognizer, fitting: Sequence[Utterance], testing: Sequence[Utterance], about: dict[str, Any]
) -> _Fitted:
    from kvarts import confidence

    kinds = ("words", "utterances")
    known = recognised(recognizer, fitting)
    confidence.check_enough(known)
    # Of scores that the weights were fitted to the threshold would be too low.
    held_out = dict(zip(kinds, confidence.cross_validated_scores(known), strict=True))
    thresholds = _thresholds(held_out, about["false_accept_rate"])
    word_weights, utterance_weights = confidence.fit(known)
    calibration = confidence.Calibration(
        **about,
        word_weights=tuple(word_weights.tolist()),
        utterance_weights=tuple(utterance_weights.tolist()),
        word_threshold=thresholds["words"].value,
        utterance_threshold=thresholds["utterances"].value,
        decoder=confidence.description_of(recognizer.decoder),
        num_utterances=len(known),
        num_words=len(held_out["words"].right),
    )
    before, after = dict(zip(kinds, confidence.raw_scores(known), strict=True)), held_out
    if testing:
        tested = recognised(recognizer, testing)
        before = dict(zip(kinds, confidence.raw_scores(tested), strict=True))
        if not len(before["words"].right):
            raise ManifestError("no word was recognised in --test, so it tests nothing; give speech")
        weights = [(word_weights, utterance_weights)] * len(tested)
        after = dict(zip(kinds, confidence.scores(tested, weights), strict=True))
        thresholds = _tried(after, thresholds)
    return _Fitted(calibration, before, after, thresholds, held_out)


def _fit_commands(
    recognizer: Recognizer,
    search: GrammarSearch,
    fitting: Sequence[Utterance],
    testing: Sequence[Utterance],
    about: dict[str, Any],
) -> _Fitted:
    import numpy as np

    from kvarts import confidence
    from kvarts.grammar_metrics import outcomes

    def found(utterances: Sequence[Utterance]) -> tuple[confidence.Floats, confidence.Bools]:
        """Scores and which commands are right; not of sound that is too short for any."""
        known = [one for one in outcomes(recognizer, utterances, search) if one.command.intent is not None]
        return np.array([one.command.score for one in known]), np.array([one.is_right for one in known], bool)

    scores, right = found(fitting)
    confidence.check_enough_commands(right)
    held_out = {"commands": confidence.cross_validated_commands(scores, right)}
    thresholds = _thresholds(held_out, about["false_accept_rate"])
    weights = confidence.fit_commands(scores, right)
    calibration = confidence.CommandCalibration(
        **about,
        command_weights=tuple(weights.tolist()),
        utterance_threshold=thresholds["commands"].value,
        decoder=confidence.description_of(search),
        num_utterances=len(right),
    )
    before, after = {"commands": confidence.raw_command_scores(scores, right)}, held_out
    if testing:
        scores, right = found(testing)
        if not len(right):
            raise ManifestError("all of --test is too short for a command, so it tests nothing; give speech")
        before = {"commands": confidence.raw_command_scores(scores, right)}
        after = {"commands": confidence.scored_commands(scores, right, weights)}
        thresholds = _tried(after, thresholds)
    return _Fitted(calibration, before, after, thresholds, held_out)


def _thresholds(scored: dict[str, Scored], false_accept_rate: float) -> dict[str, Threshold]:
    from kvarts.confidence import threshold_for

    return {what: threshold_for(part.confidences, part.right, false_accept_rate) for what, part in scored.items()}


def _tried(scored: dict[str, Scored], thresholds: dict[str, Threshold]) -> dict[str, Threshold]:
    from kvarts.confidence import tried_threshold

    return {
        what: tried_threshold(part.confidences, part.right, thresholds[what].value) for what, part in scored.items()
    }


def recognised(recognizer: Recognizer, utterances: Sequence[Utterance]) -> list[Evidence]:
    """What the references say of the words that are recognised, in the order of `utterances`.

    Raises:
        AudioError: some files could not be read.
    """
    from kvarts.confidence import evidence, evidenced
    from kvarts.evaluate import manifest_log_probs

    found: dict[int, Evidence] = {}
    for batch in manifest_log_probs(recognizer, utterances, name="speech"):
        for index, matrix in batch:
            found[index] = evidence(utterances[index].text, evidenced(recognizer.decoder, matrix), matrix)
    return [found[index] for index in range(len(utterances))]


def _table(shown: str, fitted: _Fitted) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from kvarts.confidence import MEASURES, measured

    counts = ", ".join(f"{len(part.right)} {what}" for what, part in fitted.before.items())
    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        title=f"{shown}: {counts}; decoder: {fitted.calibration.decoder}",
        title_justify="left",
        caption="ECE: expected calibration error, of 10 bins. In brackets: 95 % of draws of "
        "utterances, which for an ECE lie too high.",
        caption_justify="left",
    )
    table.add_column("", no_wrap=True)
    for what in fitted.before:
        for when in ("before", "after"):
            table.add_column(f"{what} {when}", justify="right")
    columns = [measured(part[what]) for what in fitted.before for part in (fitted.before, fitted.after)]
    shares = [part.right.mean() for part in fitted.before.values()]
    table.add_row("share right", *(cell for share in shares for cell in (f"{share:.3f}", "")))
    for name in MEASURES:
        table.add_row(name, *(_estimate(*column[name]) for column in columns))
    thresholds = fitted.thresholds.values()
    for name, values in {
        f"threshold for {fitted.calibration.false_accept_rate:g}": [threshold.value for threshold in thresholds],
        "  of wrong accepted": [threshold.false_accepts for threshold in thresholds],
        "  of right rejected": [threshold.false_rejects for threshold in thresholds],
        "  of all accepted": [threshold.accepted for threshold in thresholds],
    }.items():
        table.add_row(name, *(cell for value in values for cell in ("", _number(value))))
    return table


def _estimate(value: float, low: float, high: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3g}"


def draw_reliability(before: dict[str, Scored], after: dict[str, Scored], path: Path) -> None:
    """Reliability diagrams as PNG: words above utterances, or commands, before beside after; 10 bins of equal width.

    Above, the share of right ones against the mean confidence of each bin, with Wilson's 95 % interval; below, how many
    there are in it.

    Raises:
        OutputError: the file cannot be written.
    """
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from kvarts.confidence import bin_numbers, calibration_error, wilson_interval
    from kvarts.files import atomic_writer

    bins = 10
    rows = len(before)
    figure = Figure(figsize=(9, 5 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2 * rows, 2, sharex=True, gridspec_kw={"height_ratios": [3, 1] * rows})
    for row, what in enumerate(before):
        for column, (when, parts) in enumerate((("before", before), ("after", after))):
            scored = parts[what]
            share, counts = panels[2 * row, column], panels[2 * row + 1, column]
            numbers = bin_numbers(scored.confidences, bins, equal_mass=False)
            size = np.bincount(numbers, minlength=bins)
            held = size > 0
            n = size[held]
            mean = np.bincount(numbers, weights=scored.confidences, minlength=bins)[held] / n
            right = np.bincount(numbers, weights=scored.right, minlength=bins)[held] / n
            low, high = wilson_interval(right, n)
            share.plot([0, 1], [0, 1], "--", color="grey", linewidth=1)
            share.errorbar(mean, right, yerr=np.maximum([right - low, high - right], 0), fmt="o", capsize=3)
            error = calibration_error(scored.confidences, scored.right, bins=bins)
            share.set_title(f"{what} {when} (ECE {error:.3f})")
            share.set_xlim(0, 1)
            share.set_ylim(0, 1)
            share.grid(alpha=0.3)
            bars = counts.bar((np.arange(bins) + 0.5) / bins, size, width=0.9 / bins)
            counts.bar_label(bars, fontsize=7)
            counts.margins(y=0.3)
            if column == 0:
                share.set_ylabel("share right")
                counts.set_ylabel(what)
    for panel in panels[-1]:
        panel.set_xlabel("confidence")
    with atomic_writer(path) as file:
        figure.savefig(file, format="png", dpi=100)
