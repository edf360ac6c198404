"""`kvarts compare`: pairs, figures against scipy's and hand-worked ones, and what is printed."""

from __future__ import annotations

import gc
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image
from scipy.stats import binomtest, bootstrap

from kvarts.breakdown import intervals
from kvarts.cli import main
from kvarts.compare import Pair, compare, marked, paired, read_pairs, set_size, size_sentence, verdict
from kvarts.error_counts import ErrorCounts, total
from kvarts.errors import ManifestError
from kvarts.manifest import write_manifest
from kvarts.scored import read_predictions

Line = tuple[str, str, str]  # id, reference, recognised


def predictions(path: Path, lines: Sequence[Line], **fields: Sequence[Any]) -> Path:
    """A predictions file of utterances of 3.6 s; of each field a value for every line."""
    rows = []
    for number, (utterance_id, text, heard) in enumerate(lines):
        row = {"id": utterance_id, "audio_filepath": f"/audio/{utterance_id}.wav", "text": text, "duration": 3.6}
        rows.append({**row, "pred_text": heard, **{name: values[number] for name, values in fields.items()}})
    write_manifest(path, rows)
    return path


def spoken(number: int, seed: int, wrong: float) -> list[Line]:
    """Utterances of 1 to 8 words, in which about so many are wrong; the words are the same whatever the seed."""
    words, errors = np.random.default_rng(7), np.random.default_rng(seed)
    lines = []
    for index in range(number):
        said = words.choice(["кот", "дом", "свет", "окно", "салют"], words.integers(1, 9)).tolist()
        heard = ["нет" if errors.random() < wrong else word for word in said]
        lines.append((f"u{index}", " ".join(said), " ".join(heard)))
    return lines


def pairs_of(folder: Path, first: Sequence[Line], second: Sequence[Line], **fields: Sequence[Any]) -> list[Pair]:
    one, other = (
        predictions(folder / f"{name}_pred.jsonl", lines, **fields) for name, lines in (("a", first), ("b", second))
    )
    [pairs] = read_pairs(one, other)[0].values()
    return pairs


# --- Figures ----------------------------------------------------------------------------------------------------------


def test_a_comparison_in_all_its_figures(tmp_path: Path) -> None:
    pairs = pairs_of(tmp_path, spoken(300, 1, 0.3), spoken(300, 2, 0.25))
    found = compare(pairs, name="set")
    first, second = (
        [one.words.errors for one in side] for side in zip(*((p.first, p.second) for p in pairs), strict=True)
    )
    lengths = [pair.first.words.reference_length for pair in pairs]
    changes = np.array(second) - np.array(first)
    assert found.words == (
        ErrorCounts(substitutions=sum(first), reference_length=sum(lengths)),
        ErrorCounts(substitutions=sum(second), reference_length=sum(lengths)),
    )
    assert found.wer.value == pytest.approx(changes.sum() / sum(lengths))
    theirs = bootstrap(
        (changes, np.array(lengths)),
        lambda d, n, axis: d.sum(axis=axis) / n.sum(axis=axis),
        paired=True,
        method="percentile",
        random_state=1,
    ).confidence_interval
    assert (found.wer.low, found.wer.high) == pytest.approx(tuple(theirs), abs=0.05 * (theirs.high - theirs.low))
    assert (found.better, found.worse) == ((changes < 0).sum(), (changes > 0).sum())
    assert found.sign_p == pytest.approx(binomtest(found.better, found.better + found.worse).pvalue)
    assert found.num_changed == sum(pair.first.text != pair.second.text for pair in pairs)
    letters = sum(pair.second.characters.errors - pair.first.characters.errors for pair in pairs)
    assert found.cer.value == pytest.approx(letters / sum(pair.first.characters.reference_length for pair in pairs))
    assert (found.wer_by_speaker, found.speakers) == (None, "no speakers are given")


def test_speakers_that_disagree_make_a_difference_unsure(tmp_path: Path) -> None:
    # Ten utterances of each of six speakers; for five B is right and A wrong, for one it is the other way round.
    who = [f"s{number // 10}" for number in range(60)]
    right = [(f"u{number}", "да", "да") for number in range(60)]
    wrong = [(f"u{number}", "да", "нет") for number in range(60)]
    first, second = wrong[:50] + right[50:], right[:50] + wrong[50:]
    found = compare(pairs_of(tmp_path, first, second, speaker=who), name="set")
    assert found.speakers == "6 speakers"
    assert found.wer.randomisation_p < 1e-6
    assert found.wer_by_speaker is not None
    # Of 2⁶ ways to swap whole speakers 2 · 7 are as far from 0.
    assert found.wer_by_speaker.randomisation_p == pytest.approx(14 / 64)
    assert found.wer_by_speaker.value == found.wer.value == pytest.approx(-40 / 60)
    # A draw holds binomially many of six in which the last speaker is; its difference is (2k − 6) / 6.
    assert found.wer_by_speaker.low == -1
    assert found.wer_by_speaker.high == pytest.approx(0)
    assert "For other speakers too: 95 % interval -100.00 to +0.00 by 6 speakers, p = 0.22." in verdict(found)


def test_the_size_of_a_test_set_by_hand(tmp_path: Path) -> None:
    # Of 100 one-word utterances B has 10 wrong that A has right, and 30 right that A has wrong.
    kinds = [("да", "нет")] * 10 + [("нет", "да")] * 30 + [("да", "да")] * 60
    first = [(f"u{n}", "да", heard) for n, (heard, _) in enumerate(kinds)]
    second = [(f"u{n}", "да", heard) for n, (_, heard) in enumerate(kinds)]
    pairs = pairs_of(tmp_path, first, second)
    variance = (0.4 - 0.2**2) * 100 / 99
    found = set_size(pairs, None)
    assert found is not None
    assert found.difference == pytest.approx(0.2)
    assert found.utterances == math.ceil((1.959964 + 0.841621) ** 2 * variance / 0.2**2) == 72
    assert found.hours == pytest.approx(72 * 3.6 / 3600)
    assert found.smallest == pytest.approx(2.801585 * math.sqrt(variance / 100), rel=1e-5)
    half = set_size(pairs, 0.005)
    assert half is not None
    assert half.utterances == math.ceil(2.801585**2 * variance / 0.005**2)
    assert size_sentence(found, 100, is_observed=True).startswith(
        "To see this difference of 20.00 points takes some 72 utterances (0.072 h) like these: 8 of 10 sets"
    )
    assert "100 utterances, show a difference of 16.89 points so often." in size_sentence(half, 100, is_observed=False)


def test_where_the_size_is_unknown(tmp_path: Path) -> None:
    lines = spoken(20, 1, 0.2)
    same = pairs_of(tmp_path, lines, lines)
    assert set_size(same, None) is None
    assert "give --difference" in size_sentence(None, 20, is_observed=True)
    nowhere = set_size(same, 0.01)
    assert nowhere is not None
    assert nowhere.utterances is None
    assert "unknown" in size_sentence(nowhere, 20, is_observed=False)
    alone = pairs_of(tmp_path, [("u", "да", "нет")], [("u", "да", "да")])
    single = set_size(alone, None)
    assert single is not None
    assert single.utterances is None


@pytest.mark.parametrize(
    ("seeds", "wrong", "beginning"),
    [
        ((1, 2), (0.5, 0.2), "B is better than A by "),
        ((1, 2), (0.2, 0.5), "A is better than B by "),
        ((1, 2), (0.3, 0.3), "No difference is shown: B has "),
        ((1, 1), (0.3, 0.3), "No difference is shown: both have 30.83 % of WER."),
    ],
)
def test_the_verdict(seeds: tuple[int, int], wrong: tuple[float, float], beginning: str, tmp_path: Path) -> None:
    sides = [spoken(200, seed, rate) for seed, rate in zip(seeds, wrong, strict=True)]
    found = compare(pairs_of(tmp_path, *sides), name="set")
    first, second, third = verdict(found).split("\n")
    assert first.startswith(beginning)
    assert second == "By speakers it cannot be told: no speakers are given."
    assert third.startswith(f"Of 200 utterances {found.better} have fewer word errors in B, {found.worse} have more, ")
    assert f"{found.num_changed} texts changed" in third


def test_a_few_utterances_have_no_interval(tmp_path: Path) -> None:
    found = compare(pairs_of(tmp_path, [("u", "да", "нет")], [("u", "да", "да")]), name="set")
    assert verdict(found).startswith(
        "No difference is shown: B has 100.00 points of WER less than A, which may be chance (p = 1)"
    )


def test_errors_are_marked(tmp_path: Path) -> None:
    path = predictions(tmp_path / "a_pred.jsonl", [("u", "включи свет на кухне", "включи цвет кухне да")])
    assert marked(read_predictions(path)[0]) == "включи ЦВЕТ [на] кухне ДА"


# --- Pairs ------------------------------------------------------------------------------------------------------------


def test_pairs_are_found_by_id_whatever_the_order(tmp_path: Path) -> None:
    lines = spoken(30, 1, 0.2)
    pairs = pairs_of(tmp_path, lines, lines[::-1])
    assert [pair.first.utterance_id for pair in pairs] == [line[0] for line in lines]
    assert all(pair.first.utterance_id == pair.second.utterance_id for pair in pairs)


def test_what_is_not_in_both_is_named(tmp_path: Path) -> None:
    first = predictions(tmp_path / "a_pred.jsonl", [("u1", "да", "да"), ("u2", "дом", "дом"), ("u3", "свет", "свет")])
    second = predictions(tmp_path / "b_pred.jsonl", [("u3", "цвет", "свет"), ("u1", "Да!", "нет"), ("u4", "я", "я")])
    with pytest.raises(ManifestError) as caught:
        read_pairs(first, second)
    head, *lines = str(caught.value).split("\n")
    assert head == "a: different utterances; --common compares the others (3):"
    assert lines == [
        f"{first}:2: 'u2' is not in the other",
        f"{second}:3: 'u4' is not in the other",
        f"{first}:3: 'u3' has another text in {second}:1",
    ]
    sets, left_out = read_pairs(first, second, common=True)
    assert [pair.first.utterance_id for pair in sets["a"]] == ["u1"]
    assert left_out == ["a: 3 utterances of one or the other have no partner"]


def test_nothing_in_common_is_an_error_in_any_case(tmp_path: Path) -> None:
    first = predictions(tmp_path / "a_pred.jsonl", [("u1", "да", "да")])
    second = predictions(tmp_path / "b_pred.jsonl", [("u1", "нет", "да")])
    for common in (False, True):
        with pytest.raises(ManifestError, match=r"^a: no utterance in common: .*:1: 'u1' has another text in"):
            read_pairs(first, second, common=common)


def test_an_id_given_twice(tmp_path: Path) -> None:
    path = predictions(tmp_path / "a_pred.jsonl", [("u1", "да", "да"), ("u2", "я", "я"), ("u1", "да", "да")])
    other = predictions(tmp_path / "b_pred.jsonl", [("u1", "да", "да")])
    for pair in ((path, other), (other, path)):
        with pytest.raises(ManifestError) as caught:
            paired(*map(read_predictions, pair), name="a", common=True)
        assert str(caught.value) == f"{path}:3: the id 'u1' is that of {path}:1 too; ids must differ"


def test_folders_are_compared_set_by_set(tmp_path: Path) -> None:
    for folder, seed in (("one", 1), ("two", 2)):
        for name in ("crowd", "farfield"):  # with the same ids in both
            predictions(tmp_path / folder / f"{name}_pred.jsonl", spoken(20, seed, 0.3))
    (tmp_path / "two" / "crowd_pred.partial.jsonl").write_text("broken", encoding="utf-8")
    sets, left_out = read_pairs(tmp_path / "one", tmp_path / "two")
    assert ({name: len(pairs) for name, pairs in sets.items()}, left_out) == ({"crowd": 20, "farfield": 20}, [])
    # A folder and one of its files; the other set is named.
    with pytest.raises(ManifestError, match=r"^different sets; .*: .*farfield_pred.jsonl: .* has no such set$"):
        read_pairs(tmp_path / "one", tmp_path / "two" / "crowd_pred.jsonl")
    sets, left_out = read_pairs(tmp_path / "one", tmp_path / "two" / "crowd_pred.jsonl", common=True)
    assert (list(sets), len(left_out)) == (["crowd"], 1)


@pytest.mark.parametrize(
    ("first", "second", "what"),
    [
        ("empty", "a_pred.jsonl", r"empty: no predictions \(NAME_pred.jsonl\) in it; write them with kvarts evaluate"),
        ("a_pred.jsonl", "none_pred.jsonl", "none_pred.jsonl: no such file or folder"),
        ("a_pred.jsonl", "raw.jsonl", 'raw.jsonl:1: "pred_text" is missing'),
        ("other", "a_pred.jsonl", "no set in common; name two files"),
    ],
)
def test_what_cannot_be_read(
    first: str, second: str, what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    predictions(tmp_path / "a_pred.jsonl", spoken(3, 1, 0.2))
    predictions(tmp_path / "other" / "z_pred.jsonl", spoken(3, 1, 0.2))
    write_manifest(tmp_path / "raw.jsonl", [{"audio_filepath": "u0.wav", "text": "да", "duration": 1}])
    with pytest.raises(ManifestError, match=what):
        read_pairs(tmp_path / first, tmp_path / second)
    assert main(["compare", str(tmp_path / first), str(tmp_path / second)]) == 2
    assert capsys.readouterr().err.startswith("kvarts: error: ")


# --- The command line -------------------------------------------------------------------------------------------------


def test_compare_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    domains = ["near", "far"] * 30
    lines = spoken(60, 1, 0.4)
    better = [(key, said, said if number % 3 else heard) for number, (key, said, heard) in enumerate(lines)]
    better[1] = ("u1", lines[1][1], "совсем не то что было сказано совсем")
    for folder, side in (("one", lines), ("two", better)):
        predictions(tmp_path / folder / "set_pred.jsonl", side, domain=domains)
    path = tmp_path / "out" / "comparison.json"
    assert main(["compare", str(tmp_path / "one"), str(tmp_path / "two"), "--json", str(path), "--changes", "2"]) == 0
    printed = capsys.readouterr().out
    found = json.loads(path.read_text(encoding="utf-8"))
    [whole] = found["sets"]
    rows = {cells[0]: cells[1:] for cells in map(str.split, printed.splitlines()) if cells}
    assert rows["A:"] == [str(tmp_path / "one")]
    wer = [f"{100 * whole[key]:.2f}" for key in ("wer_a", "wer_b")]
    assert rows["set"][:4] == ["60", *wer, f"{100 * whole['wer_difference']['value']:+.2f}"]
    assert rows["near"][0] == rows["far"][0] == "30"
    assert [group["name"] for group in found["by"]["domain"]] == ["far", "near"]
    groups = found["by"]["domain"]
    assert sum(group["better"] for group in groups) == whole["better"]
    assert "B is better than A by" in printed
    assert f"better in B: 2 of {whole['better']}" in printed
    assert "worse in B: 1 of 1" in printed
    assert "СОВСЕМ" in printed.split("worse in B")[1]
    assert f"comparison: {path}" in printed
    assert found["set_size"]["power"] == 0.8
    assert found["set_size"]["utterances"] > 0
    # All texts that changed, from the one that got better most to the one that got worse most.
    changes = [after - before for before, after in (one["word_errors"] for one in found["changed"])]
    assert changes == sorted(changes)
    assert (
        len(changes) == whole["texts_changed"] == sum(one[2] != two[2] for one, two in zip(lines, better, strict=True))
    )
    assert found["changed"][-1]["pred_text_b"] == better[1][2]


def test_the_picture_shows_both_with_their_intervals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn: list[tuple[Any, ...]] = []
    errorbar = Axes.errorbar

    def kept(axes: Axes, x: Any, y: Any, yerr: Any, **style: Any) -> Any:
        drawn.append((axes, np.asarray(y), np.asarray(yerr), style["label"]))
        return errorbar(axes, x, y, yerr, **style)

    monkeypatch.setattr(Axes, "errorbar", kept)
    rooms = ["hall"] * 25 + ["hut"] * 15
    sides = [
        predictions(tmp_path / f"{name}_pred.jsonl", spoken(40, seed, share), room=rooms, snr_db=[7.0] * 40)
        for name, seed, share in (("a", 1, 0.5), ("b", 1, 0.1))
    ]
    picture = tmp_path / "deep" / "parts.png"
    assert main(["compare", *map(str, sides), "--by", "room,snr_db", "--picture", str(picture)]) == 0
    assert f"picture: {picture}" in capsys.readouterr().out
    with Image.open(picture) as image:
        assert image.size == (990, 440)
    assert [name for _, _, _, name in drawn] == [*map(str, sides)] * 2  # two fields, a panel each
    for place, (axes, wer, bars, _) in enumerate(drawn):
        scored = read_predictions(sides[place % 2])
        parts = [scored[:25], scored[25:]] if place < 2 else [scored]
        assert [text.get_text() for text in axes.get_xticklabels()] == (
            ["hall\n25", "hut\n15"] if place < 2 else ["5 – 10\n40"]
        )
        for part, rate, below, above in zip(parts, wer, *bars, strict=True):
            ends = intervals(part)["wer"]
            assert ends is not None
            assert rate == pytest.approx(100 * total([one.words for one in part]).rate)
            assert (rate - below, rate + above) == pytest.approx((100 * ends[0], 100 * ends[1]))


def test_garbage_is_collected_again(tmp_path: Path) -> None:
    path = predictions(tmp_path / "a_pred.jsonl", spoken(12, 1, 0.3))
    for other, code in ((path, 0), (tmp_path / "none_pred.jsonl", 2)):
        assert main(["compare", str(path), str(other)]) == code
        assert gc.isenabled()


def test_options_of_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines, others = spoken(40, 1, 0.4), spoken(40, 2, 0.4)
    first = predictions(tmp_path / "a_pred.jsonl", lines, snr_db=[float(n) for n in range(40)])
    second = predictions(tmp_path / "b_pred.jsonl", others[:30])
    arguments = ["compare", str(first), str(second)]
    assert main(arguments) == 2
    assert "different utterances" in capsys.readouterr().err
    assert main([*arguments, "--common", "--by", "snr_db,length", "--difference", "0.5", "--changes", "0"]) == 0
    printed = capsys.readouterr().out
    assert "left out: a: 10 utterances of one or the other have no partner" in printed
    assert "5 – 10" in printed.split("by snr_db")[1]
    assert "by length" in printed.split("by snr_db")[1]
    assert "To see a difference of 0.50 points takes some " in printed
    assert "Changed most" not in printed

    with pytest.raises(SystemExit):
        main([*arguments, "--common", "--picture", str(tmp_path / "parts.png")])
    assert "--picture goes with --by" in capsys.readouterr().err

    assert main([*arguments, "--common", "--by", "room"]) == 2
    assert capsys.readouterr().err.startswith(
        "kvarts: error: no line has a field 'room' to group by; there are snr_db, and"
    )
    assert main([*arguments, "--common", "--json", str(tmp_path)]) == 2
    assert "is a folder; name a file in it" in capsys.readouterr().err
    for option in (["--changes", "-1"], ["--difference", "0"]):
        with pytest.raises(SystemExit):
            main([*arguments, *option])
        assert option[0] in capsys.readouterr().err


def test_the_default_field_is_left_out_where_it_says_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = spoken(12, 1, 0.4)
    for domains in ({}, {"domain": ["near"] * 12}):
        first = predictions(tmp_path / "a_pred.jsonl", lines, **domains)
        assert main(["compare", str(first), str(predictions(tmp_path / "b_pred.jsonl", lines))]) == 0
        printed = capsys.readouterr().out
        assert "by domain" not in printed
        assert "No difference is shown: both have" in printed


def test_several_sets_are_also_compared_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, seed in (("one", 1), ("two", 2)):
        for name, number in (("crowd", 20), ("farfield", 30)):
            predictions(tmp_path / folder / f"{name}_pred.jsonl", spoken(number, seed, 0.3))
    assert main(["compare", str(tmp_path / "one"), str(tmp_path / "two")]) == 0
    rows = {cells[0]: cells[1:] for cells in map(str.split, capsys.readouterr().out.splitlines()) if cells}
    assert [rows[name][0] for name in ("crowd", "farfield", "together")] == ["20", "30", "50"]


def test_ten_thousand_utterances_are_soon_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [predictions(tmp_path / f"{seed}_pred.jsonl", spoken(10_000, seed, 0.2)) for seed in (1, 2)]
    start_s = time.process_time()
    assert main(["compare", *map(str, paths)]) == 0
    taken_s = time.process_time() - start_s
    assert taken_s < 4  # twice what it may take alone on its machine; on a busy one a process takes more time too
    assert "Of 10000 utterances" in capsys.readouterr().out
