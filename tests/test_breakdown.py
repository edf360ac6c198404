"""Scores in parts: intervals, groups and confusions, counted by hand."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from rich.console import Console
from rich.table import Table

from kvarts import breakdown
from kvarts.breakdown import (
    Confusion,
    Group,
    Grouping,
    confusions,
    confusions_as_json,
    confusions_table,
    groupings,
    groups,
    groups_table,
    interval_text,
    intervals,
    intervals_as_json,
    rates,
    speaker_intervals,
)
from kvarts.error_counts import ErrorCounts, align_letters, align_words
from kvarts.errors import AudioError, ConfigError
from kvarts.frames import SAMPLE_RATE
from kvarts.lint_sound import measure
from kvarts.manifest import Utterance
from kvarts.scored import Scored, scored


def said(text: str, heard: str, duration_s: float = 1.0, **fields: Any) -> Scored:
    path = Path("set.jsonl")
    row = {"audio_filepath": "1.wav", "text": text, "duration": duration_s, **fields}
    return scored([Utterance(Path("1.wav"), text, duration_s, "1", path, 1, row)], [heard])[0]


def counted(errors: int, length: int, **fields: Any) -> Scored:
    words = ErrorCounts(substitutions=errors, reference_length=length)
    characters = ErrorCounts(substitutions=2 * errors, reference_length=6 * length)
    return Scored(fields, "m:1", Path("1.wav"), 1.0, "да", "да" if errors == 0 else "нет", words, characters)


def printed(table: Table) -> list[list[str]]:
    console = Console(width=100, file=io.StringIO())
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return [line.split() for line in console.file.getvalue().splitlines() if line.strip()]


# --- Intervals --------------------------------------------------------------------------------------------------------


def test_intervals_of_all_three_measures_against_a_loop() -> None:
    generator = np.random.default_rng(1)
    some = [counted(int(generator.binomial(n, 0.3)), int(n)) for n in generator.integers(1, 12, 80)]
    found = intervals(some)
    draws = []
    for _ in range(2000):
        drawn = [some[number] for number in generator.integers(len(some), size=len(some))]
        draws.append([rates(drawn)[name] for name in ("wer", "cer", "exact_rate")])
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    for column, name in enumerate(("wer", "cer", "exact_rate")):
        assert found[name] == pytest.approx((low[column], high[column]), abs=0.08 * (high - low)[column])


def test_no_interval_where_nothing_can_be_known() -> None:
    none = {"wer": None, "cer": None, "exact_rate": None}
    assert intervals([counted(n % 3, 5) for n in range(9)]) == none  # too few
    assert intervals([counted(0, n) for n in range(1, 30)]) == none  # no error
    always = intervals([counted(1, n) for n in range(1, 30)])
    assert always["exact_rate"] is None
    assert always["wer"] is not None


@pytest.mark.parametrize(
    ("speakers", "drawn"),
    [
        ([None] * 20, "no speakers are given"),
        (["a"] * 20, "1 speaker, and 5 are the least"),
        (["a", "b", "c", "d"] * 5, "4 speakers, and 5 are the least"),
        (["a", "b", "c", "d", "e", "f", None, None] * 3, "the speaker of 6 of 24 utterances is not given"),
        (["a", "b", "c", "d", 5] * 4, "5 speakers"),
    ],
)
def test_speakers_or_why_not(speakers: list[Any], drawn: str) -> None:
    some = [counted(n % 3, 5 + n, **({} if who is None else {"speaker": who})) for n, who in enumerate(speakers)]
    found, what = speaker_intervals(some)
    assert what == drawn
    assert (found["wer"] is None) == (drawn != "5 speakers")
    as_json = intervals_as_json(some, intervals(some))
    assert as_json["by_speaker"] == {"drawn": drawn, **found}
    assert as_json["by_utterance"] == intervals(some)


def test_speakers_that_differ_make_intervals_wide() -> None:
    some = [counted(who, 10, speaker=f"s{who}") for who in range(8) for _ in range(40)]
    by_utterance, (by_speaker, _) = intervals(some)["wer"], speaker_intervals(some)
    wide = by_speaker["wer"]
    assert by_utterance is not None
    assert wide is not None
    # Eight values 0 … 7 tenths: a deviation of 0.229, over √8 and over √320.
    assert wide[1] - wide[0] == pytest.approx(2 * 1.96 * 0.229 / 8**0.5, rel=0.05)
    assert by_utterance[1] - by_utterance[0] == pytest.approx(2 * 1.96 * 0.229 / 320**0.5, rel=0.05)


def test_interval_in_words() -> None:
    assert interval_text((0.1234, 0.5)) == "12.3 – 50.0"
    assert interval_text(None) == "–"


# --- Groups -----------------------------------------------------------------------------------------------------------


def labels(some: Sequence[Scored], name: str) -> dict[str, int]:
    [grouping] = groupings([name], [one.fields for one in some])
    return {group.label: len(group.scored) for group in groups(some, grouping)}


def test_groups_by_value_the_most_frequent_first() -> None:
    domains = ["b", "a", "b", None, "c", "a", "b", ""]
    some = [said("да", "да", domain=domain) for domain in domains]
    assert list(labels(some, "domain").items()) == [("b", 3), ("a", 2), ('""', 1), ("c", 1), ("not given", 1)]


def test_values_of_other_kinds_are_groups_too() -> None:
    values = [True, False, True, [4.2, 5], [4.2, 5], {"a": "я"}, "true"]
    some = [said("да", "да", thing=value) for value in values]
    assert labels(some, "thing") == {"true": 3, "false": 1, "[4.2, 5]": 2, '{"a": "я"}': 1}


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("length", [0.5, 1.99, 2, 4, 5, 9.9, 10, 19, 20, 300], ["< 2", "2 – 5", "5 – 10", "10 – 20", "≥ 20"]),
        ("snr", [-3, -0.1, 0, 1, 29, 30], ["< 0", "0 – 5", "20 – 30", "≥ 30"]),
        ("snr_db", [12, 16.5, 14, 17], ["10 – 15", "15 – 20"]),
    ],
)
def test_ranges_hold_their_lower_edge(name: str, values: list[float], expected: list[str]) -> None:
    some = [
        said("да", "да", duration_s=value) if name == "length" else said("да", "да", snr_db=value) for value in values
    ]
    found = labels(some, name)
    assert list(found) == expected
    if len(values) > 4:
        assert list(found.values())[:2] == [2, 2]


def test_other_numbers_are_cut_at_quartiles_if_they_are_many() -> None:
    some = [said("да", "да", rt60_ms=number) for number in range(1, 41)] + [said("да", "да")]
    # Quartiles 10.75, 20.5 and 30.25, to two digits.
    assert labels(some, "rt60_ms") == {"< 11": 10, "11 – 20": 9, "20 – 30": 10, "≥ 30": 11, "not given": 1}
    few = [said("да", "да", distance_m=number % 3 + 0.5) for number in range(20)]
    assert list(labels(few, "distance_m")) == ["0.5", "1.5", "2.5"]
    # All alike but for the digits that are cut off.
    same = [said("да", "да", gain=1 + number / 1e6) for number in range(20)]
    assert labels(same, "gain") == {"≥ 1": 20}


def test_a_field_that_no_line_has() -> None:
    rows = [{"text": "да", "audio_filepath": "1.wav", "duration": 1, "speaker": "a"}, {"domain": "b", "id": "1"}]
    with pytest.raises(
        ConfigError, match=r"^no line has a field 'dimain' to group by; there are domain, speaker, and length and snr$"
    ):
        groupings(["domain", "dimain"], rows)
    with pytest.raises(ConfigError, match="there are none, and length"):
        groupings(["domain"], [{"text": "да", "pred_text": "да"}])
    assert groupings(["snr", "length", "snr"], rows[:1]) == [
        Grouping("snr", (0, 5, 10, 15, 20, 30)),
        Grouping("length", (2, 5, 10, 20)),
    ]


def test_snr_of_the_manifest_or_of_the_audio(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    time_s = np.arange(2 * SAMPLE_RATE) / SAMPLE_RATE
    loud = np.where(time_s < 1, 0.3 * np.sin(2 * np.pi * 440 * time_s), 0)
    paths = []
    for number, noise in enumerate((0.1, 0.004)):
        paths.append(tmp_path / f"{number}.wav")
        soundfile.write(paths[-1], loud + noise * generator.standard_normal(len(loud)), SAMPLE_RATE)
    measured = [measure(path).snr_db for path in paths]
    assert 5 < measured[0] < 10
    assert measured[1] > 30
    some = [dataclasses.replace(said("да", "да"), audio_path=path) for path in paths]
    some.insert(1, said("да", "нет", snr_db=12))  # its audio is not there, and not asked for
    assert labels(some, "snr") == {"5 – 10": 1, "10 – 15": 1, "≥ 30": 1}
    [by] = groupings(["snr"], [one.fields for one in some])
    title = printed(groups_table("set", by, groups(some, by)))[0]
    assert " ".join(title) == "set by snr, dB (estimated from the audio of 2 utt.)"
    given = some[1:2]
    assert " ".join(printed(groups_table("set", by, groups(given, by)))[0]) == "set by snr, dB (the manifest's)"

    gone = [dataclasses.replace(one, audio_path=tmp_path / f"none{n}.wav") for n, one in enumerate(some)]
    with pytest.raises(AudioError, match=r"(?s)could not be measured \(2\):\nset.jsonl:1: .*none0.*none2"):
        groups(gone, by)


def test_a_group_in_figures() -> None:
    some = [said("да нет", "да", duration_s=3600, domain="x"), said("он она", "он она", duration_s=1800, domain="x")]
    [group] = groups(some, Grouping("domain", None))
    assert group.as_json() == {
        "value": "x",
        "utterances": 2,
        "words": 4,
        "hours": 1.5,
        "wer": 0.25,
        "cer": 4 / 12,
        "exact_rate": 0.5,
        "intervals": {"wer": None, "cer": None, "exact_rate": None},
    }
    rows = printed(groups_table("set", Grouping("domain", None), [group]))
    assert rows[0] == ["set", "by", "domain"]
    assert rows[-1] == ["x", "25.00", "–", "33.33", "50.0", "2", "4"]


def test_a_large_group_has_an_interval_and_many_groups_are_cut() -> None:
    large = Group("large", tuple(counted(n % 3, 10) for n in range(60)))
    low, high = large.intervals["wer"] or (0, 0)
    assert low < rates(large.scored)["wer"] < high
    small = Group("small", tuple(counted(0, 10) for _ in range(3)))
    rows = printed(groups_table("set", Grouping("domain", None), [large, *[small] * 22]))
    assert rows[3][:5] == ["large", "10.00", f"{100 * low:.1f}", "–", f"{100 * high:.1f}"]
    assert rows[-1] == ["…", "and", "3", "more"]
    assert len(rows) == 3 + 20 + 1


# --- Confusions -------------------------------------------------------------------------------------------------------

HEARD = [
    said("мой кот дома", "мой код дома"),
    said("кот и кит", "код кит"),
    said("кот", "кот и"),
    said("дом и сад", "дом и и сад"),
]


def test_confusions_of_words_by_hand() -> None:
    expected = [
        Confusion("", "и", 2, 3),  # «и» was recognised three times
        Confusion("кот", "код", 2, 3),
        Confusion("и", "", 1, 2),
    ]
    assert confusions(HEARD, align_words, 10) == expected
    assert confusions(HEARD, align_words, 1) == expected[:1]
    assert confusions(HEARD[2:3] * 0, align_words, 5) == []


def test_confusions_of_letters_by_hand() -> None:
    found = confusions(HEARD, align_letters, 10)
    assert found[0] == Confusion("", " ", 2, 7)
    assert found[1] == Confusion("", "и", 2, 4)
    assert found[2] == Confusion("т", "д", 2, 4)
    assert {(one.said, one.heard) for one in found[3:]} == {(" ", ""), ("и", "")}


def test_confusions_as_they_are_shown_and_stored() -> None:
    rows = printed(confusions_table("title", confusions(HEARD, align_letters, 3)))
    assert rows[0] == ["title"]
    assert rows[3:] == [["–", "␣", "2", "7", "28.6"], ["–", "и", "2", "4", "50.0"], ["т", "д", "2", "4", "50.0"]]
    stored = confusions_as_json(HEARD, 2)
    assert stored["words"][1] == {"said": "кот", "heard": "код", "count": 2, "total": 3}
    assert [len(stored[name]) for name in ("words", "letters")] == [2, 2]


def test_measured_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "1.wav"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(SAMPLE_RATE), SAMPLE_RATE)
    some = [dataclasses.replace(said("да", "да"), audio_path=path)]
    by = Grouping("snr", breakdown._SNR_EDGES_DB)
    first = groups(some, by)
    path.unlink()
    assert groups(some, by) == first
