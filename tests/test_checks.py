"""Checks before the work: audio headers against the manifest, texts against alphabet and CTC."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from kvarts.checks import check_audio, target_problem
from kvarts.errors import listing
from kvarts.manifest import Utterance, read_manifest, write_manifest


def utterances(tmp_path: Path, *rows: dict[str, Any]) -> list[Utterance]:
    path = tmp_path / "manifest.jsonl"
    write_manifest(path, [{"audio_filepath": "a.wav", "text": "да", "duration": 1.0} | row for row in rows])
    return read_manifest(path)


def record(path: Path, duration_s: float, rate: int = 16_000) -> None:
    kind = {"format": "OGG", "subtype": "OPUS"} if path.suffix == ".opus" else {}
    soundfile.write(path, np.zeros(round(duration_s * rate), np.float32), rate, **kind)


def test_good_audio_is_no_problem(tmp_path: Path) -> None:
    record(tmp_path / "a.wav", 1.0)
    record(tmp_path / "b.opus", 2.0, 48_000)
    record(tmp_path / "window.wav", 400 / 16_000)
    rows = utterances(
        tmp_path,
        {},
        {"audio_filepath": "b.opus", "duration": 2.0},
        {"audio_filepath": "window.wav", "duration": 400 / 16_000},
    )
    assert check_audio(rows) == []


def test_every_unusable_file_is_found_in_manifest_order(tmp_path: Path) -> None:
    record(tmp_path / "a.wav", 1.0)
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.wav").write_text("не звук" * 100, encoding="utf-8")
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "cut.wav").write_bytes((tmp_path / "a.wav").read_bytes()[:3000])
    record(tmp_path / "nothing.wav", 0)
    names = ["none.wav", "empty.wav", "a.wav", "text.wav", "folder.wav", "cut.wav", "nothing.wav"]
    rows = utterances(tmp_path, *({"audio_filepath": name} for name in names))
    problems = check_audio(rows)
    assert [problem.utterance.line for problem in problems] == [1, 2, 4, 5, 6, 7]
    for problem in problems:
        assert str(problem).startswith(f"{tmp_path / 'manifest.jsonl'}:{problem.utterance.line}: ")
        assert problem.utterance.audio_path.name in str(problem)
        assert "; " in str(problem)
        assert "\n" not in str(problem)


@pytest.mark.parametrize(
    ("actual_s", "claimed_s", "agree"),
    [
        (1.0, 1.09, True),
        (1.0, 0.91, True),
        (1.0, 1.11, False),
        (1.0, 0.89, False),
        (20.0, 20.39, True),  # 2 % are more than 0.1 s here
        (20.0, 20.41, False),
        (20.0, 19.61, True),
        (20.0, 19.59, False),
        (1.0, 3.0, False),  # 48 kHz taken for 16 kHz
    ],
)
def test_durations_may_differ_a_little(tmp_path: Path, actual_s: float, claimed_s: float, agree: bool) -> None:
    record(tmp_path / "a.wav", actual_s)
    problems = check_audio(utterances(tmp_path, {"duration": claimed_s}))
    assert [f"{claimed_s:g} s" in problem.what and f"{actual_s:.3f} s" in problem.what for problem in problems] == (
        [] if agree else [True]
    )


def test_targets_that_can_be_learnt(tmp_path: Path) -> None:
    rows = utterances(tmp_path, {}, {"text": "Ёж, он — к+олется!"})
    assert [target_problem(row, stride=4) for row in rows] == [None] * len(rows)


@pytest.mark.parametrize(
    ("text", "what", "remedy"),
    [
        ("", "text is empty", "write what is said"),
        (" ?!", "text is empty", "write what is said"),
        ("дом 5", "5 (DIGIT FIVE)", "numbers as words"),
        ("ok 7", "o (LATIN SMALL LETTER O), k (LATIN SMALL LETTER K), 7 (DIGIT SEVEN)", "numbers as words"),
        ("cаша", "c (LATIN SMALL LETTER C)", "Russian letters"),
        ("їжак", "ї (CYRILLIC SMALL LETTER YI)", "Russian letters"),
    ],
)
def test_texts_that_cannot_be_learnt(tmp_path: Path, text: str, what: str, remedy: str) -> None:
    good, problem = (target_problem(row, stride=4) for row in utterances(tmp_path, {}, {"text": text}))
    assert good is None
    assert problem is not None
    assert problem.utterance.line == 2
    assert what in problem.what
    assert remedy in problem.remedy


@pytest.mark.parametrize(
    ("text", "duration_s", "stride", "possible"),
    [
        # 0.36 s: 5760 samples, 37 mel frames, with a stride of 4 trunc(36 / 4) + 1 = 10 encoded frames.
        ("а" + "ба" * 4 + "б", 0.36, 4, True),  # 10 labels
        ("а" + "ба" * 5, 0.36, 4, False),  # 11 labels
        ("абабабабб", 0.36, 4, True),  # 9 labels and a blank between the last two
        ("ббабабабаа", 0.36, 4, False),  # 10 labels and two blanks
        ("а" + "ба" * 4 + "б", 0.359, 4, False),  # one mel frame less
        ("а" + "ба" * 4 + "б", 0.36, 8, False),
    ],
)
def test_ctc_needs_a_frame_for_every_label_and_repeat(
    tmp_path: Path, text: str, duration_s: float, stride: int, possible: bool
) -> None:
    [utterance] = utterances(tmp_path, {"text": text, "duration": duration_s})
    problem = target_problem(utterance, stride)
    assert (problem is None) == possible
    assert problem is None or "frames" in problem.what


def test_a_listing_shows_ten_and_counts_the_rest() -> None:
    assert listing("bad lines", ["a:1: x"]) == "a:1: x"
    assert listing("bad lines", ["a:1: x", "a:2: y"]) == "bad lines (2):\na:1: x\na:2: y"
    lines = listing("bad lines", [f"a:{number}: x" for number in range(1, 13)]).split("\n")
    assert lines[0] == "bad lines (12):"
    assert lines[10:] == ["a:10: x", "… and 2 more"]
