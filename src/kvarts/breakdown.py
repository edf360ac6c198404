"""Scores in parts: how sure they are, where the errors are, and which words and letters are taken for which."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kvarts.error_counts import align_letters, align_words
from kvarts.errors import AudioError, ConfigError, listing

if TYPE_CHECKING:
    from rich.table import Table

    from kvarts.scored import Scored

MEASURES: Final = ("wer", "cer", "exact_rate")
LEAST_SPEAKERS: Final = 5
# Of fewer utterances the bootstrap's interval is much too narrow: it can only draw what it has.
LEAST_UTTERANCES: Final = 10
_SNR_EDGES_DB: Final = (0.0, 5.0, 10.0, 15.0, 20.0, 30.0)
# Edges that are the same for every set, so that sets can be compared; other numbers are cut at their quartiles.
_EDGES: Final[Mapping[str, tuple[float, ...]]] = {
    "length": (2.0, 5.0, 10.0, 20.0),
    "snr": _SNR_EDGES_DB,
    "snr_db": _SNR_EDGES_DB,
}
_UNITS: Final = {"length": "s", "snr": "dB"}
_OF_EVERY_LINE: Final = frozenset({"audio_filepath", "text", "pred_text", "id", "duration"})
_MOST_PLAIN_NUMBERS: Final = 8  # different ones in a field; more are put into ranges
_SHOWN: Final = 20  # groups in a table; the rest is in results.json
NOT_GIVEN: Final = "not given"

Intervals = Mapping[str, "tuple[float, float] | None"]


# --- Intervals --------------------------------------------------------------------------------------------------------


def intervals(scored: Sequence[Scored], keys: Sequence[str] | None = None) -> Intervals:
    """95 % bootstrap intervals of `MEASURES`, utterances drawn anew, or all utterances of a key, such as a speaker.

    None where there are fewer than `LEAST_UTTERANCES` utterances (`LEAST_SPEAKERS` keys), and where all units are alike
    (no error at all): what was not seen the bootstrap cannot know of.
    """
    import numpy as np

    from kvarts.bootstrap import ratio_intervals, summed_by

    num_units = len(scored) if keys is None else len(set(keys))
    if num_units < (LEAST_UTTERANCES if keys is None else LEAST_SPEAKERS):
        return dict.fromkeys(MEASURES)
    sums = np.array([(one.words.errors, one.characters.errors, one.is_exact) for one in scored], dtype=np.int64)
    of = np.array([(one.words.reference_length, one.characters.reference_length, 1) for one in scored], dtype=np.int64)
    if keys is not None:
        sums, of = summed_by(sums, keys), summed_by(of, keys)
    found = ratio_intervals(sums, of)
    return {name: ends if ends[0] < ends[1] else None for name, ends in zip(MEASURES, found, strict=True)}


def speakers_of(scored: Sequence[Scored]) -> tuple[list[str], str]:
    """The speaker of each utterance, and why there can be no interval over them: "" where there can."""
    speakers = [one.fields.get("speaker") for one in scored]
    known = {str(speaker) for speaker in speakers if speaker is not None}
    why = ""
    if not known:
        why = "no speakers are given"
    elif None in speakers:
        why = f"the speaker of {speakers.count(None)} of {len(speakers)} utterances is not given"
    elif len(known) < LEAST_SPEAKERS:
        why = f"{len(known)} speaker{'s'[: len(known) > 1]}, and {LEAST_SPEAKERS} are the least"
    return [str(speaker) for speaker in speakers], why


def speaker_intervals(scored: Sequence[Scored]) -> tuple[Intervals, str]:
    """The intervals when speakers are drawn anew with all they said, and how many were, or why there are none."""
    speakers, why = speakers_of(scored)
    if why:
        return dict.fromkeys(MEASURES), why
    return intervals(scored, speakers), f"{len(set(speakers))} speakers"


def intervals_as_json(scored: Sequence[Scored], by_utterance: Intervals) -> dict[str, Any]:
    """The intervals over utterances and over speakers."""
    by_speaker, drawn = speaker_intervals(scored)
    return {"level": 0.95, "by_utterance": dict(by_utterance), "by_speaker": {"drawn": drawn, **by_speaker}}


# --- Groups -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grouping:
    """How utterances are put into groups by a field.

    Attributes:
        edges: numbers are put into ranges between these, each from its lower edge on; None: a group for every value.
    """

    name: str
    edges: tuple[float, ...] | None


def groupings(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[Grouping]:
    """How to group by fields: «length» (duration), «snr» (see `groups`), or any field of the manifests' rows.

    Raises:
        ConfigError: no row has a field.
    """
    found: list[Grouping] = []
    for name in dict.fromkeys(names):
        values = [row[name] for row in rows if row.get(name) is not None]
        if not values and name not in _UNITS:
            fields = ", ".join(sorted({key for row in rows for key in row} - _OF_EVERY_LINE)) or "none"
            raise ConfigError(f"no line has a field {name!r} to group by; there are {fields}, and length and snr")
        edges = _EDGES.get(name)
        if edges is None and all(map(_is_number, values)) and len(set(values)) > _MOST_PLAIN_NUMBERS:
            edges = _quartiles(values)
        found.append(Grouping(name, edges))
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _quartiles(values: Sequence[float]) -> tuple[float, ...]:
    import numpy as np

    return tuple(sorted({float(f"{edge:.2g}") for edge in np.quantile(values, [0.25, 0.5, 0.75])}))


@dataclass(frozen=True)
class Group:
    """The utterances of one value of a field."""

    label: str
    scored: tuple[Scored, ...]

    @functools.cached_property
    def intervals(self) -> Intervals:
        """Over its utterances."""
        return intervals(self.scored)

    def as_json(self) -> dict[str, Any]:
        """Its scores; rates are fractions."""
        return {"value": self.label, **rates(self.scored), "intervals": dict(self.intervals)}


def rates(scored: Sequence[Scored]) -> dict[str, Any]:
    """Utterances, words, hours, WER, CER and the share of exact texts of at least one utterance; fractions."""
    words = sum(one.words.reference_length for one in scored)
    characters = sum(one.characters.reference_length for one in scored)
    return {
        "utterances": len(scored),
        "words": words,
        "hours": sum(one.duration_s for one in scored) / 3600,
        "wer": sum(one.words.errors for one in scored) / max(words, 1),
        "cer": sum(one.characters.errors for one in scored) / max(characters, 1),
        "exact_rate": sum(one.is_exact for one in scored) / len(scored),
    }


def groups(scored: Sequence[Scored], grouping: Grouping) -> list[Group]:
    """The groups that have utterances: ranges and numbers ascending, other values by the number of utterances.

    «snr» is the manifest's `snr_db` where it gives one, else `kvarts data stats`'s estimate, for which audio is read.

    Raises:
        AudioError: audio that was to be measured could not be read.
    """
    members: dict[Any, list[Scored]] = {}
    for one, value in zip(scored, _values(scored, grouping.name), strict=True):
        members.setdefault(_key(value, grouping.edges), []).append(one)

    def place(key: Any) -> tuple[bool, float, int, str]:
        is_number = _is_number(key)
        return key is None, key if is_number else 0.0, 0 if is_number else -len(members[key]), str(key)

    return [Group(_label(key, grouping.edges), tuple(members[key])) for key in sorted(members, key=place)]


def _values(scored: Sequence[Scored], name: str) -> list[Any]:
    if name == "length":
        return [one.duration_s for one in scored]
    if name == "snr":
        given = [one.fields.get("snr_db") for one in scored]
        measured = iter(_snrs_db([one for one, value in zip(scored, given, strict=True) if not _is_number(value)]))
        return [value if _is_number(value) else next(measured) for value in given]
    return [one.fields.get(name) for one in scored]


_measured_snr_db: dict[Path, float] = {}  # one set's recordings are asked for again with all sets together


def _snrs_db(scored: Sequence[Scored]) -> list[float]:
    from kvarts.engines import cpu_threads
    from kvarts.lint_sound import measure
    from kvarts.progress import progress_bar, run_ahead

    failures: list[str] = []

    def measured(one: Scored) -> tuple[Scored, float | AudioError]:
        try:
            return one, measure(one.audio_path).snr_db
        except AudioError as error:
            return one, error

    new = [one for one in scored if one.audio_path not in _measured_snr_db]
    workers = cpu_threads()
    with progress_bar("measuring SNR", len(new)) as advance:
        for one, found in run_ahead(measured, new, workers=workers, ahead=4 * workers):
            if isinstance(found, AudioError):
                failures.append(f"{one.where}: {found}")
            else:
                _measured_snr_db[one.audio_path] = found
            advance(1)
    if failures:
        raise AudioError(listing("snr: audio that could not be measured", failures))
    return [_measured_snr_db[one.audio_path] for one in scored]


def _key(value: Any, edges: tuple[float, ...] | None) -> Any:
    if value is None or (edges is not None and not _is_number(value)):
        return None
    if edges is not None:
        return sum(edge <= value for edge in edges)
    if _is_number(value):
        return value
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _label(key: Any, edges: tuple[float, ...] | None) -> str:
    if key is None:
        return NOT_GIVEN
    if edges is None:
        return f"{key:g}" if _is_number(key) else key or '""'
    if key == 0:
        return f"< {edges[0]:g}"
    return f"≥ {edges[-1]:g}" if key == len(edges) else f"{edges[key - 1]:g} – {edges[key]:g}"


def groups_table(name: str, grouping: Grouping, groups: Sequence[Group]) -> Table:
    """A row for each group of a set, with the interval of its WER; of very many the first."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    title = f"{name} by {grouping.name}"
    if grouping.name in _UNITS:
        title += f", {_UNITS[grouping.name]}"
    if grouping.name == "snr":
        estimated = sum(not _is_number(one.fields.get("snr_db")) for group in groups for one in group.scored)
        title += f" (estimated from the audio of {estimated} utt.)" if estimated else " (the manifest's)"
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left", title_style="bold")
    table.add_column("", min_width=8, overflow="fold")
    for heading in ("WER %", "95 %", "CER %", "exact %", "utt.", "words"):
        table.add_column(heading, justify="right", no_wrap=True)
    for group in groups[:_SHOWN]:
        found = rates(group.scored)
        table.add_row(
            group.label,
            f"{100 * found['wer']:.2f}",
            interval_text(group.intervals["wer"]),
            f"{100 * found['cer']:.2f}",
            f"{100 * found['exact_rate']:.1f}",
            str(found["utterances"]),
            str(found["words"]),
        )
    if len(groups) > _SHOWN:
        table.add_row(f"… and {len(groups) - _SHOWN} more")
    return table


def interval_text(interval: tuple[float, float] | None) -> str:
    """Per cent, «11.9 – 13.2»; «–» where there is none."""
    return "–" if interval is None else f"{100 * interval[0]:.1f} – {100 * interval[1]:.1f}"


# --- Confusions -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Confusion:
    """What was said, what was recognised for it, and how often; "" for nothing.

    Attributes:
        total: how often it was said in all, or, where nothing was, recognised.
    """

    said: str
    heard: str
    count: int
    total: int


def confusions(
    scored: Sequence[Scored], align: Callable[[str, str], list[tuple[str, str]]], most: int
) -> list[Confusion]:
    """The `most` frequent differences between what was said and recognised, frequent ones first, then by letters.

    Args:
        align: `kvarts.error_counts.align_words` or `align_letters`.
    """
    pairs: Counter[tuple[str, str]] = Counter()
    for one in scored:
        pairs.update(align(one.reference, one.text))
    said: Counter[str] = Counter()
    heard: Counter[str] = Counter()
    for (left, right), count in pairs.items():
        said[left] += count
        heard[right] += count
    differing = sorted((-count, pair) for pair, count in pairs.items() if pair[0] != pair[1])
    return [
        Confusion(left, right, -count, said[left] if left else heard[right])
        for count, (left, right) in differing[:most]
    ]


def confusions_as_json(scored: Sequence[Scored], most: int) -> dict[str, Any]:
    """The `most` frequent confusions of words and of letters."""
    aligners = {"words": align_words, "letters": align_letters}
    return {name: [asdict(one) for one in confusions(scored, align, most)] for name, align in aligners.items()}


def confusions_table(title: str, found: Sequence[Confusion]) -> Table:
    """A row for each confusion; «–» is nothing, «␣» the space between words."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left", title_style="bold")
    for heading in ("said", "heard"):
        table.add_column(heading, overflow="fold")
    for heading in ("times", "of all", "%"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in found:
        share = f"{100 * one.count / one.total:.1f}"
        table.add_row(_visible(one.said), _visible(one.heard), str(one.count), str(one.total), share)
    return table


def _visible(text: str) -> str:
    return {"": "–", " ": "␣"}.get(text, text)
