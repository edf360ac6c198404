"""``kvarts compare``: is one recogniser really better than another? Both have recognised the same utterances.

Since the same utterances are hard for both, the difference of their error rates is much surer than the rates are. What
is drawn anew, or swapped, is therefore an utterance with both its results, or a speaker with all of them.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvarts.breakdown import LEAST_UTTERANCES, groupings, groups, intervals, speakers_of
from kvarts.error_counts import ErrorCounts, align_words, total
from kvarts.errors import ManifestError, OutputError, listing
from kvarts.evaluate import field_names, name_predictions
from kvarts.files import atomic_text_writer
from kvarts.recogniser_options import positive_number
from kvarts.scored import Scored, read_predictions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.table import Table

    from kvarts.bootstrap import Difference


@dataclass(frozen=True)
class Pair:
    """One utterance, recognised twice."""

    first: Scored
    second: Scored

    @property
    def change(self) -> int:
        """Word errors of the second less those of the first."""
        return self.second.words.errors - self.first.words.errors

    def as_json(self) -> dict[str, Any]:
        """What changed, for an utterance whose texts differ."""
        return {
            "id": self.first.utterance_id,
            "audio_filepath": str(self.first.audio_path),
            "text": self.first.reference,
            "pred_text_a": self.first.text,
            "pred_text_b": self.second.text,
            "word_errors": [self.first.words.errors, self.second.words.errors],
            "character_errors": [self.first.characters.errors, self.second.characters.errors],
        }


@dataclass(frozen=True)
class Comparison:
    """Two recognisers on the same utterances.

    Attributes:
        words, characters: errors of both.
        wer, cer: the differences, utterances drawn anew.
        wer_by_speaker: the same with speakers drawn; None where there are too few, or they are not known.
        better, worse: utterances with fewer and with more word errors in the second.
        sign_p: two-sided p-value of the sign test: are there as many better as worse ones?
    """

    name: str
    num_utterances: int
    num_changed: int  # texts
    words: tuple[ErrorCounts, ErrorCounts]
    characters: tuple[ErrorCounts, ErrorCounts]
    wer: Difference
    cer: Difference
    speakers: str  # how many, or why there is no difference by speaker
    wer_by_speaker: Difference | None
    better: int
    worse: int
    sign_p: float

    def as_json(self) -> dict[str, Any]:
        """Rates and differences as fractions, second less first."""
        return {
            "name": self.name,
            "utterances": self.num_utterances,
            "texts_changed": self.num_changed,
            "wer_a": self.words[0].rate,
            "wer_b": self.words[1].rate,
            "cer_a": self.characters[0].rate,
            "cer_b": self.characters[1].rate,
            "wer_difference": asdict(self.wer),
            "cer_difference": asdict(self.cer),
            "speakers": self.speakers,
            "wer_difference_by_speaker": None if self.wer_by_speaker is None else asdict(self.wer_by_speaker),
            "better": self.better,
            "worse": self.worse,
            "sign_test_p": self.sign_p,
        }


def paired(
    first: Sequence[Scored], second: Sequence[Scored], *, name: str, common: bool = False
) -> tuple[list[Pair], int]:
    """Utterances that both have, by id and reference, in the order of the first.

    Args:
        name: of the set, for messages.
        common: leave out what only one of them has; else that is an error.

    Returns:
        The pairs, and how many utterances of either had no partner.

    Raises:
        ManifestError: an id stands twice in one of them; something has no partner; nothing has one.
    """
    by_id, others = _by_id(first), _by_id(second)
    lone = [f"{one.where}: {key!r} is not in the other" for key, one in by_id.items() if key not in others]
    lone += [f"{one.where}: {key!r} is not in the other" for key, one in others.items() if key not in by_id]
    pairs: list[Pair] = []
    for key, one in by_id.items():
        other = others.get(key)
        if other is None:
            continue
        if one.reference != other.reference:
            lone.append(f"{one.where}: {key!r} has another text in {other.where}")
        else:
            pairs.append(Pair(one, other))
    if lone and not (common and pairs):
        what = "no utterance in common" if not pairs else "different utterances; --common compares the others"
        raise ManifestError(listing(f"{name}: {what}", lone) if len(lone) > 1 else f"{name}: {what}: {lone[0]}")
    return pairs, len(lone)


def _by_id(scored: Sequence[Scored]) -> dict[str, Scored]:
    found: dict[str, Scored] = {}
    twins: list[str] = []
    for one in scored:
        before = found.setdefault(one.utterance_id, one)
        if before is not one:
            twins.append(f"{one.where}: the id {one.utterance_id!r} is that of {before.where} too; ids must differ")
    if twins:
        raise ManifestError(listing("ids given twice", twins))
    return found


def compare(pairs: Sequence[Pair], *, name: str) -> Comparison:
    """How much, and how surely, the second results differ from the first; of at least one pair."""
    import numpy as np

    from kvarts.bootstrap import differences, randomisation_p, summed_by

    changes, lengths = _changes(pairs)
    wer, cer = differences(changes, lengths)
    speakers, why = speakers_of([pair.first for pair in pairs])
    by_speaker = None if why else differences(summed_by(changes, speakers), summed_by(lengths, speakers))[0]
    return Comparison(
        name=name,
        num_utterances=len(pairs),
        num_changed=sum(pair.first.text != pair.second.text for pair in pairs),
        words=(total([pair.first.words for pair in pairs]), total([pair.second.words for pair in pairs])),
        characters=(
            total([pair.first.characters for pair in pairs]),
            total([pair.second.characters for pair in pairs]),
        ),
        wer=wer,
        cer=cer,
        speakers=why or f"{len(set(speakers))} speakers",
        wer_by_speaker=by_speaker,
        better=int((changes[:, 0] < 0).sum()),
        worse=int((changes[:, 0] > 0).sum()),
        sign_p=randomisation_p(np.sign(changes[:, 0])),
    )


def _changes(pairs: Sequence[Pair]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of words and characters, (pairs, 2): errors of the second less those of the first; lengths of the references."""
    import numpy as np

    changes = [(pair.change, pair.second.characters.errors - pair.first.characters.errors) for pair in pairs]
    lengths = [(pair.first.words.reference_length, pair.first.characters.reference_length) for pair in pairs]
    return np.array(changes, dtype=np.int64), np.array(lengths, dtype=np.int64)


@dataclass(frozen=True)
class SetSize:
    """How large a test set must be to see a difference.

    Attributes:
        difference: of word error rates, a fraction above 0.
        utterances, hours: of such a set; None where errors differ nowhere, or there is but one utterance, so that
            nothing is known of how much differences vary.
        smallest: the difference that a set as large as this one shows as often.
    """

    difference: float
    utterances: int | None
    hours: float | None
    smallest: float


def set_size(pairs: Sequence[Pair], size: float | None) -> SetSize | None:
    """The size of a test set in which a difference of `size` (a fraction; None: the one found) is significant at 5 %,
    two-sided, 8 times in 10, see `kvarts.bootstrap.smallest_difference`. None where none is given and none is found.
    """
    from kvarts.bootstrap import needed_units, smallest_difference

    changes, lengths = (values[:, 0] for values in _changes(pairs))
    size = abs(float(changes.sum() / max(lengths.sum(), 1))) if size is None else size
    if size == 0:
        return None
    smallest = smallest_difference(changes, lengths)
    if smallest == 0:
        return SetSize(size, None, None, smallest)
    needed = needed_units(changes, lengths, size)
    mean_s = sum(pair.first.duration_s for pair in pairs) / len(pairs)
    return SetSize(size, needed, needed * mean_s / 3600, smallest)


def read_pairs(first: Path, second: Path, *, common: bool = False) -> tuple[dict[str, list[Pair]], list[str]]:
    """The utterances that two evaluations have in common, by set.

    Args:
        first, second: folders that `kvarts evaluate --output` wrote, or ``NAME_pred.jsonl`` in them.
        common: see `paired`; also of sets.

    Returns:
        The pairs by set, and a line on each thing that `common` left out.

    Raises:
        ManifestError: there are no predictions, they are broken, or not of the same utterances.
    """
    paths, others = _predictions(first), _predictions(second)
    if len(paths) == len(others) == 1 and first.is_file() and second.is_file():
        others = dict(zip(paths, others.values(), strict=True))  # whatever the files are called
    left_out = [
        f"{path}: {there} has no such set" for path, there in _lone(paths, others, second) + _lone(others, paths, first)
    ]
    names = [name for name in paths if name in others]
    if left_out and not (common and names):
        what = "different sets; --common compares the others" if names else "no set in common; name two files"
        raise ManifestError(listing(what, left_out) if len(left_out) > 1 else f"{what}: {left_out[0]}")
    found: dict[str, list[Pair]] = {}
    for name in names:
        pairs, num_lone = paired(
            read_predictions(paths[name]), read_predictions(others[name]), name=name, common=common
        )
        found[name] = pairs
        if num_lone:
            left_out.append(f"{name}: {num_lone} utterances of one or the other have no partner")
    return found, left_out


def _lone(paths: Mapping[str, Path], others: Mapping[str, Path], there: Path) -> list[tuple[Path, Path]]:
    return [(path, there) for name, path in paths.items() if name not in others]


def _predictions(path: Path) -> dict[str, Path]:
    if not path.exists():
        raise ManifestError(f"{path}: no such file or folder; check the path")
    if not path.is_dir():
        return name_predictions([path])
    found = sorted(path.glob("*_pred.jsonl"))
    if not found:
        raise ManifestError(f"{path}: no predictions (NAME_pred.jsonl) in it; write them with kvarts evaluate --output")
    return name_predictions(found)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the subcommand."""
    parser.description = (
        "Compares two recognisers, or decoders, on the utterances that both have recognised: the difference of WER and "
        "CER with its 95 % interval and p-value, the utterances that changed most, and how large a test set must be to "
        "see such a difference."
    )
    what = "a folder that kvarts evaluate --output wrote, or a NAME_pred.jsonl"
    parser.add_argument("first", metavar="A", type=Path, help=what)
    parser.add_argument("second", metavar="B", type=Path, help="the same of the other; B less A is reported")
    parser.add_argument(
        "--common", action="store_true", help="compare what both have, and leave out what only one of them has"
    )
    parser.add_argument(
        "--by",
        metavar="FIELDS",
        type=field_names,
        help="also compare by each of these, with commas between: length, snr, and any field of the manifest (default: "
        "domain, where it is given)",
    )
    parser.add_argument(
        "--difference",
        metavar="POINTS",
        type=positive_number,
        help="of WER, in per cent, that a test set shall show (default: the one that is found)",
    )
    parser.add_argument(
        "--changes",
        metavar="N",
        type=_natural_number,
        default=5,
        help="show the N utterances that got better most, and the N that got worse most (default: %(default)s)",
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all of it, and every text that changed, there")
    parser.add_argument(
        "--picture", metavar="PNG", type=Path, help="draw both WERs with their 95 %% intervals, by the fields of --by"
    )
    parser.set_defaults(usage_error=parser.error)


def run(args: argparse.Namespace) -> int:
    """Compares as the arguments say, and prints; exceptions are those of `_run`."""
    # The search for reference cycles goes through all utterances again and again, of twice 10,000 for 0.2 of 1.9 s.
    is_on = gc.isenabled()
    gc.disable()
    try:
        return _run(args)
    finally:
        if is_on:
            gc.enable()


def _run(args: argparse.Namespace) -> int:
    """Compares as the arguments say, and prints.

    Raises:
        ManifestError: see `read_pairs`.
        ConfigError: no line has a field of --by.
        AudioError: --by snr, and audio could not be measured.
        OutputError: --json or --picture is a folder, or could not be written.
    """
    for path in (args.json, args.picture):
        if path is not None and path.is_dir():
            raise OutputError(f"{path}: is a folder; name a file in it")
    if args.picture is not None:
        if not args.by:
            args.usage_error("--picture goes with --by")
        import matplotlib  # noqa: F401  # if it is not installed, say so before any work is done
    sets, left_out = read_pairs(args.first, args.second, common=args.common)
    every = [pair for pairs in sets.values() for pair in pairs]
    rows = [compare(pairs, name=name) for name, pairs in sets.items()]
    if len(sets) > 1:
        rows.append(compare(every, name="together"))
    parts = {field: _parts(every, field) for field in args.by} if args.by else _domains(every)
    size = set_size(every, None if args.difference is None else args.difference / 100)
    _print(args, rows, parts, left_out)
    print(verdict(rows[-1]))
    print(size_sentence(size, len(every), is_observed=args.difference is None))
    _print_changes(every, args.changes)
    if args.json is not None:
        from kvarts.bootstrap import LEVEL, POWER

        changed = [pair.as_json() for pair in _by_change(every) if pair.first.text != pair.second.text]
        content = {
            "a": str(args.first.absolute()),
            "b": str(args.second.absolute()),
            "left_out": left_out,
            "sets": [row.as_json() for row in rows],
            "by": {field: [group.as_json() for group in groups] for field, groups in parts.items()},
            "set_size": None if size is None else {**asdict(size), "power": POWER, "level": LEVEL},
            "changed": changed,
        }
        with atomic_text_writer(args.json) as file:
            json.dump(content, file, ensure_ascii=False, indent=2)
            file.write("\n")
        print(f"comparison: {args.json}")
    if args.picture is not None:
        draw_parts(every, args.by, (str(args.first), str(args.second)), args.picture)
        print(f"picture: {args.picture}")
    return 0


def _parts(pairs: Sequence[Pair], field: str) -> list[Comparison]:
    """By the values of a field."""
    return [compare(members, name=label) for label, members in _members(pairs, field)]


def _members(pairs: Sequence[Pair], field: str) -> list[tuple[str, list[Pair]]]:
    """The pairs of each value or range of a field, with what it is called."""
    [grouping] = groupings([field], [pair.first.fields for pair in pairs])
    pair_of = {id(pair.first): pair for pair in pairs}
    found = groups([pair.first for pair in pairs], grouping)
    return [(group.label, [pair_of[id(one)] for one in group.scored]) for group in found]


def _domains(pairs: Sequence[Pair]) -> dict[str, list[Comparison]]:
    """By domain; nothing where it is not given, or but one is."""
    if all(pair.first.fields.get("domain") is None for pair in pairs):
        return {}
    found = _parts(pairs, "domain")
    return {"domain": found} if len(found) > 1 else {}


def _print(
    args: argparse.Namespace,
    rows: Sequence[Comparison],
    parts: Mapping[str, Sequence[Comparison]],
    left_out: Sequence[str],
) -> None:
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 120)
    print(f"A: {args.first}\nB: {args.second}")
    for line in left_out:
        print(f"left out: {line}")
    console.print(comparison_table("", rows))
    for field, found in parts.items():
        console.print(comparison_table(f"by {field}", found))


def comparison_table(title: str, rows: Sequence[Comparison]) -> Table:
    """Rates of both, the difference in points with its interval, and the p-value of the randomisation test."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title=title or None, title_justify="left")
    table.add_column("", min_width=8, overflow="fold")
    for heading in ("utt.", "WER A", "WER B", "B - A", "95 %", "p", "CER A", "CER B", "B - A"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        few = row.num_utterances < LEAST_UTTERANCES
        table.add_row(
            row.name,
            str(row.num_utterances),
            *(f"{100 * counts.rate:.2f}" for counts in row.words),
            f"{100 * row.wer.value:+.2f}",
            "–" if few else f"{100 * row.wer.low:+.1f} … {100 * row.wer.high:+.1f}",
            p_text(row.wer.randomisation_p),
            *(f"{100 * counts.rate:.2f}" for counts in row.characters),
            f"{100 * row.cer.value:+.2f}",
        )
    return table


def draw_parts(pairs: Sequence[Pair], fields: Sequence[str], names: tuple[str, str], path: Path) -> None:
    """WER of both with their 95 % intervals by each field, a panel each, as PNG.

    Raises:
        OutputError: the file cannot be written.
    """
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from kvarts.files import atomic_writer

    figure = Figure(figsize=(1 + 4 * len(fields), 4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(fields), sharey=True, squeeze=False)[0]
    for panel, field in zip(panels, fields, strict=True):
        found = _members(pairs, field)
        for side, name in enumerate(names):
            parts = [[(pair.first, pair.second)[side] for pair in members] for _, members in found]
            wer = [100 * total([one.words for one in part]).rate for part in parts]
            ends = [intervals(part)["wer"] for part in parts]
            bars = [
                (0.0, 0.0) if pair is None else (rate - 100 * pair[0], 100 * pair[1] - rate)
                for rate, pair in zip(wer, ends, strict=True)
            ]
            places = np.arange(len(found)) + 0.14 * (2 * side - 1)
            panel.errorbar(places, wer, np.abs(np.transpose(bars)), fmt="os"[side], capsize=3, label=name)
        panel.set_xticks(range(len(found)), [f"{label}\n{len(members)}" for label, members in found], fontsize=8)
        panel.set(xlabel=f"{field}, utterances", xlim=(-0.6, len(found) - 0.4))
        panel.grid(axis="y", alpha=0.3)
    panels[0].set(ylabel="WER, %")
    panels[0].set_ylim(bottom=0)
    panels[0].legend()
    with atomic_writer(path) as file:
        figure.savefig(file, format="png", dpi=110)


def p_text(p: float) -> str:
    """A p-value with as many digits as mean something."""
    return "<0.0001" if p < 0.0001 else f"{p:.2g}"


def _p_clause(p: float) -> str:
    return "p < 0.0001" if p < 0.0001 else f"p = {p:.2g}"


def _points(size: float) -> str:
    return f"{100 * size:.2f} points"


def _interval_clause(found: Difference, unit: str) -> str:
    return f"95 % interval {100 * found.low:+.2f} to {100 * found.high:+.2f} by {unit}"


def verdict(row: Comparison) -> str:
    """What the comparison says, in sentences."""
    from kvarts.bootstrap import LEVEL

    clauses = [_p_clause(row.wer.randomisation_p)]
    if row.num_utterances >= LEAST_UTTERANCES:
        clauses.insert(0, _interval_clause(row.wer, "utterances"))
    told = ", ".join(clauses)
    if row.wer.randomisation_p < LEVEL:
        better, worse = ("B", "A") if row.wer.value < 0 else ("A", "B")
        first = f"{better} is better than {worse} by {_points(abs(row.wer.value))} of WER ({told})."
    elif row.wer.value == 0:
        first = f"No difference is shown: both have {100 * row.words[0].rate:.2f} % of WER."
    else:
        first = f"No difference is shown: B has {_points(abs(row.wer.value))} of WER "
        first += f"{'less' if row.wer.value < 0 else 'more'} than A, which may be chance ({told})."
    if row.wer_by_speaker is None:
        second = f"By speakers it cannot be told: {row.speakers}."
    else:
        clauses = [_interval_clause(row.wer_by_speaker, row.speakers), _p_clause(row.wer_by_speaker.randomisation_p)]
        second = f"For other speakers too: {', '.join(clauses)}."
    same = row.num_utterances - row.better - row.worse
    third = f"Of {row.num_utterances} utterances {row.better} have fewer word errors in B, {row.worse} have more, "
    third += f"{same} as many (sign test: {_p_clause(row.sign_p)}); {row.num_changed} texts changed."
    return "\n".join([first, second, third])


def size_sentence(size: SetSize | None, num_utterances: int, *, is_observed: bool) -> str:
    """How large a test set must be, in a sentence."""
    if size is None:
        return "How large a test set must be: give --difference, since WER is the same."
    if size.utterances is None or size.hours is None:
        return f"How large a test set must be for {_points(size.difference)}: unknown, since errors differ nowhere."
    which = "this difference" if is_observed else "a difference"
    return (
        f"To see {which} of {_points(size.difference)} takes some {size.utterances} utterances ({size.hours:.2g} h) "
        f"like these: 8 of 10 sets of that size show it with p < 0.05. Sets as large as this one, {num_utterances} "
        f"utterances, show a difference of {_points(size.smallest)} so often."
    )


def _print_changes(pairs: Sequence[Pair], most: int) -> None:
    ordered = _by_change(pairs)
    better = [pair for pair in ordered if pair.change < 0]
    worse = [pair for pair in reversed(ordered) if pair.change > 0]
    if most and (better or worse):
        print("\nChanged most; WRONG words in capitals, [missed] ones in brackets, word errors of A and B on the left:")
    for title, found in (("better in B", better), ("worse in B", worse)):
        if found and most:
            print(f"\n{title}: {min(most, len(found))} of {len(found)}")
        for pair in found[:most]:
            print(f"  {pair.first.utterance_id}  ({pair.first.where})")
            print(f"        said  {pair.first.reference}")
            for letter, one in (("A", pair.first), ("B", pair.second)):
                print(f"    {one.words.errors:>3}    {letter}  {marked(one)}")


def _by_change(pairs: Sequence[Pair]) -> list[Pair]:
    """Those that got better most come first; of equal ones, by letters."""
    return sorted(pairs, key=lambda pair: (pair.change, pair.second.characters.errors - pair.first.characters.errors))


def marked(one: Scored) -> str:
    """The recognised text, its wrong words in capitals, and missed ones in brackets."""
    return " ".join(
        heard if said == heard else heard.upper() or f"[{said}]" for said, heard in align_words(one.reference, one.text)
    )


def _natural_number(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0 on")
    return int(text)
