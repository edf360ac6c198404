"""``kvarts calibrate``: fits what turns a decoder's confidences into probabilities, and shows how good they are."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kvarts.errors import ManifestError, OutputError

if TYPE_CHECKING:
    from rich.table import Table

    from kvarts.confidence import Calibration, Evidence, Scored, Threshold
    from kvarts.manifest import Utterance
    from kvarts.recogniser import Recognizer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the subcommand."""
    from kvarts.recogniser_options import add_decoder_arguments, add_model_arguments

    parser.description = (
        "Recognises validation data, fits the probability that a word or a whole utterance is right, writes it for "
        "kvarts transcribe --calibration, and prints how good it is. Use data that the model was not trained on."
    )
    add_model_arguments(parser)
    add_decoder_arguments(parser)
    parser.add_argument("--manifest", metavar="M", type=Path, required=True, help="what to fit it to")
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
        type=_share,
        default=0.05,
        help="share of what is wrong that the thresholds let through (default: %(default)s)",
    )
    parser.add_argument(
        "--test",
        metavar="M",
        type=Path,
        help="show the figures of this manifest (default: of --manifest, cross-validated by utterance)",
    )
    parser.add_argument("--picture", metavar="PNG", type=Path, help="draw confidence against the share of right ones")


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def run(args: argparse.Namespace) -> int:
    """Calibrates as the arguments say, writes the calibration and prints the figures.

    Raises:
        CalibrationError: there is too little to calibrate on.
        ManifestError, AudioError: a manifest or its audio cannot be read.
        OutputError: a file could not be written.
        KvartsError: the model cannot be loaded.
    """
    from rich.console import Console

    from kvarts import confidence
    from kvarts.manifest import read_manifest
    from kvarts.recogniser_options import recogniser_of

    for path in (args.output, args.picture):
        if path is not None and path.is_dir():  # told before the work
            raise OutputError(f"{path}: is a folder; name a file in it")
    fitting, testing = (None if path is None else read_manifest(path) for path in (args.manifest, args.test))
    assert fitting is not None
    recognizer = recogniser_of(args)
    model = confidence.model_identity(args.model)
    known = recognised(recognizer, fitting, args.manifest.name)
    confidence.check_enough(known)
    # Of scores that the weights were fitted to the threshold would be too low.
    held_out = confidence.cross_validated_scores(known)
    thresholds = [confidence.threshold_for(part.confidences, part.right, args.false_accept_rate) for part in held_out]
    word_weights, utterance_weights = confidence.fit(known)
    calibration = confidence.Calibration(
        word_weights=tuple(word_weights.tolist()),
        utterance_weights=tuple(utterance_weights.tolist()),
        word_threshold=thresholds[0].value,
        utterance_threshold=thresholds[1].value,
        false_accept_rate=args.false_accept_rate,
        decoder=confidence.description_of(recognizer.decoder),
        model=model,
        engine=recognizer.engine.name,
        num_words=len(held_out[0].right),
        num_utterances=len(known),
    )
    calibration.save(args.output)
    before, after = confidence.raw_scores(known), held_out
    shown = f"{args.manifest}, cross-validated by utterance"
    if testing is not None:
        shown = str(args.test)
        tested = recognised(recognizer, testing, args.test.name)
        before = confidence.raw_scores(tested)
        after = confidence.scores(tested, [(word_weights, utterance_weights)] * len(tested))
        if not len(before[0].right):
            raise ManifestError(f"{args.test}: no word was recognised in it, so it tests nothing; give speech")
        thresholds = [
            confidence.tried_threshold(part.confidences, part.right, threshold.value)
            for part, threshold in zip(after, thresholds, strict=True)
        ]
    # In a file or a pipe there is no edge to wrap at.
    Console(width=None if sys.stdout.isatty() else 120).print(_table(shown, before, after, thresholds, calibration))
    for part, what in zip(held_out, ("words", "utterances"), strict=True):
        if part.right.all() or not part.right.any():
            which = "right" if part.right.all() else "wrong"
            print(
                f"kvarts: all {len(part.right)} {what} that it was fitted on are {which}: what is said of {what} is "
                "little more than a guess; calibrate on more or other data",
                file=sys.stderr,
            )
    if args.picture is not None:
        draw_reliability(before, after, args.picture)
        print(f"picture: {args.picture}")
    print(f"calibration: {args.output}")
    return 0


def recognised(recognizer: Recognizer, utterances: Sequence[Utterance], name: str) -> list[Evidence]:
    """What the references say of the words that are recognised, in the order of `utterances`.

    Raises:
        AudioError: some files could not be read.
    """
    from kvarts.confidence import evidence
    from kvarts.evaluate import manifest_log_probs

    found: dict[int, Evidence] = {}
    for batch in manifest_log_probs(recognizer, utterances, name=name):
        words = recognizer.word_frames([matrix for _, matrix in batch])
        for (index, matrix), found_words in zip(batch, words, strict=True):
            found[index] = evidence(utterances[index].text, found_words, matrix)
    return [found[index] for index in range(len(utterances))]


def _table(
    shown: str,
    before: tuple[Scored, Scored],
    after: tuple[Scored, Scored],
    thresholds: Sequence[Threshold],
    calibration: Calibration,
) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from kvarts.confidence import MEASURES, measured

    rate = calibration.false_accept_rate
    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        title=f"{shown}: {len(before[0].right)} words, {len(before[1].right)} utterances; decoder: "
        f"{calibration.decoder}",
        title_justify="left",
        caption="ECE: expected calibration error, of 10 bins. In brackets: 95 % of draws of "
        "utterances, which for an ECE lie too high.",
        caption_justify="left",
    )
    table.add_column("", no_wrap=True)
    for what in ("words", "utterances"):
        for when in ("before", "after"):
            table.add_column(f"{what} {when}", justify="right")
    columns = [measured(scored) for pair in zip(before, after, strict=True) for scored in pair]
    right = [f"{scored.right.mean():.3f}" for scored in before]
    table.add_row("share right", right[0], "", right[1], "")
    for name in MEASURES:
        table.add_row(name, *(_estimate(*column[name]) for column in columns))
    for name, values in {
        f"threshold for {rate:g}": [threshold.value for threshold in thresholds],
        "  of wrong accepted": [threshold.false_accepts for threshold in thresholds],
        "  of right rejected": [threshold.false_rejects for threshold in thresholds],
        "  of all accepted": [threshold.accepted for threshold in thresholds],
    }.items():
        table.add_row(name, "", _number(values[0]), "", _number(values[1]))
    return table


def _estimate(value: float, low: float, high: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3g}"


def draw_reliability(before: tuple[Scored, Scored], after: tuple[Scored, Scored], path: Path) -> None:
    """Reliability diagrams as PNG: words above utterances, before beside after; 10 bins of equal width.

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
    figure = Figure(figsize=(9, 10), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(4, 2, sharex=True, gridspec_kw={"height_ratios": [3, 1, 3, 1]})
    for row, what in enumerate(("words", "utterances")):
        for column, (when, pair) in enumerate((("before", before), ("after", after))):
            scored = pair[row]
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
