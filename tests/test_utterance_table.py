"""Manifests of any size: the same utterances as read whole, in little memory, and known again at the next start."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import pickle
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

import kvarts.utterance_table
from kvarts.checks import Problem, check_audio, target_problem
from kvarts.dataset import SpeechDataset
from kvarts.errors import ManifestError
from kvarts.manifest import Utterance, read_manifest, write_manifest
from kvarts.utterance_table import TrainingManifest, UtteranceTable

STRIDE = 4


def write(path: Path, texts: list[str], folder: str = "") -> Path:
    names = (f"{folder}{number}.wav" for number in range(len(texts)))
    rows = [{"audio_filepath": name, "text": text, "duration": 1.0} for name, text in zip(names, texts, strict=True)]
    write_manifest(path, rows)
    return path


def target_problems(utterances: Iterable[Utterance]) -> list[Problem]:
    return [problem for u in utterances if (problem := target_problem(u, STRIDE)) is not None]


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of what is kept, from one line on."""
    monkeypatch.setattr(kvarts.utterance_table, "KEPT_FROM", 1)
    return tmp_path / "kept"


@pytest.fixture
def never_read(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on, reading a manifest's lines is an error."""

    def refuse(path: Path) -> None:
        raise AssertionError(f"{path} is read again")

    return lambda: monkeypatch.setattr(kvarts.utterance_table, "read_lines", refuse)


LINES = st.lists(
    st.sampled_from(
        [
            '{"audio_filepath": "а.wav", "text": "привет\u2028 мир", "duration": 2, "speaker": "х"}',
            '{"id": 7, "audio_filepath": "/b/c.opus", "text": "hello 5", "duration": 0.01}',
            '  {"audio_filepath": "d.wav", "text": "", "duration": 1e3}\t',
            "",
            " \r",
        ]
    ),
    min_size=1,
    max_size=12,
)


@given(lines=LINES, has_bom=st.booleans(), ending=st.sampled_from(["\n", "\r\n"]), ends=st.booleans())
@settings(deadline=None)
def test_it_holds_what_the_whole_manifest_holds(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], has_bom: bool, ending: str, ends: bool
) -> None:
    path = tmp_path_factory.mktemp("table") / "m.jsonl"
    path.write_bytes(("\ufeff" * has_bom + ending.join(lines) + ending * ends).encode())
    if not any(map(str.strip, lines)):
        with pytest.raises(ManifestError, match="is empty"):
            TrainingManifest(path, STRIDE, None)
        return
    whole = read_manifest(path)
    manifest = TrainingManifest(path, STRIDE, None)
    assert list(manifest.table) == whole
    assert [utterance.fields for utterance in manifest.table] == [utterance.fields for utterance in whole]
    assert manifest.table.duration_s.tolist() == [utterance.duration_s for utterance in whole]
    assert manifest.table.line.tolist() == [utterance.line for utterance in whole]
    for part in (manifest.table, manifest.table[::2], manifest.table[:0]):
        assert manifest.target_problems(part) == target_problems(part)
        assert list(map(str, manifest.audio_problems(part))) == list(map(str, check_audio(part)))


def test_parts_of_it_are_tables_too(tmp_path: Path) -> None:
    table = TrainingManifest(write(tmp_path / "m.jsonl", list("абвгд")), STRIDE, None).table
    assert [u.text for u in table[1:4]] == ["б", "в", "г"]
    assert [u.text for u in table.select([4, 0])] == ["д", "а"]
    assert [u.text for u in table.select(table.line > 3)] == ["г", "д"]
    assert (table[-1].text, len(table), len(table[5:])) == ("д", 5, 0)
    with pytest.raises(IndexError):
        table[5]


def test_the_digest_is_of_what_is_said_not_of_where_it_lies(tmp_path: Path) -> None:
    def digest(texts: list[str], folder: str = "") -> str:
        return TrainingManifest(write(tmp_path / "m.jsonl", texts, folder), STRIDE, None).table.digest

    assert digest(["а", "б"]) == digest(["а", "б"], folder="/elsewhere/")
    assert len({digest(["а", "б"]), digest(["б", "а"]), digest(["а"]), digest(["а", "в"])}) == 4


def test_every_bad_line_is_named(tmp_path: Path, kept: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"audio_filepath": "a.wav", "text": "а", "duration": 1}\n{"text": 3}\n[]\n')
    for _ in range(2):  # and nothing is kept of it
        with pytest.raises(ManifestError, match=r'(?s)m.jsonl:2: "audio_filepath" is missing.*m.jsonl:3: a list'):
            TrainingManifest(path, STRIDE, kept)
    with pytest.raises(ManifestError, match=r"none\.jsonl: no such manifest"):
        TrainingManifest(tmp_path / "none.jsonl", STRIDE, kept)
    with pytest.raises(ManifestError, match="is a folder"):
        TrainingManifest(tmp_path, STRIDE, kept)


def _texts(dataset: SpeechDataset, queue: multiprocessing.Queue[list[str]]) -> None:
    queue.put([utterance.text for utterance in dataset.utterances] * 50)


def test_processes_read_it_at_the_same_time(tmp_path: Path) -> None:
    texts = [letter * 2000 for letter in "абвгд"]
    table = TrainingManifest(write(tmp_path / "m.jsonl", texts), STRIDE, None).table
    assert table[0].text == texts[0]  # this process has opened the file
    context = multiprocessing.get_context("fork")
    queues = [context.Queue() for _ in range(2)]
    workers = [context.Process(target=_texts, args=(SpeechDataset(table), queue)) for queue in queues]
    for worker in workers:
        worker.start()
    for _ in range(50):
        assert [utterance.text for utterance in table] == texts
    assert [queue.get(timeout=60) for queue in queues] == [texts * 50] * 2
    for worker in workers:
        worker.join()
    assert [u.text for u in pickle.loads(pickle.dumps(table))] == texts  # how a spawned one gets it


OTHER = b'{"audio_filepath": "0.wav", "text": "x", "duration": 1.0}\n' * 3


# As long as what was there: only the second text is another.
TWIN = "".join(f'{{"audio_filepath": "{n}.wav", "text": "{t}", "duration": 1.0}}\n' for n, t in enumerate("ав"))


@pytest.mark.parametrize("content", [b"", b"[]\n" * 9, OTHER, TWIN.encode()])
def test_a_manifest_that_is_changed_during_the_run_is_noticed(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path / "m.jsonl", ["а", "б"])
    table = TrainingManifest(path, STRIDE, None).table
    assert len(TWIN.encode()) == path.stat().st_size
    path.write_bytes(content)
    with pytest.raises(ManifestError, match=r"m\.jsonl:2: the manifest was changed since the run began"):
        table[1]
    path.unlink()
    with pytest.raises(ManifestError, match=r"m\.jsonl:2: could not be read \(No such file"):
        pickle.loads(pickle.dumps(table))[1]


def test_what_was_found_is_known_at_the_next_start(tmp_path: Path, kept: Path, never_read: Callable[[], None]) -> None:
    path = write(tmp_path / "m.jsonl", ["привет", "hello", "", "мир" * 40])
    first = TrainingManifest(path, STRIDE, kept)
    never_read()
    second = TrainingManifest(path, STRIDE, kept)
    assert list(second.table) == list(first.table) == read_manifest(path)
    assert second.table.digest == first.table.digest
    problems = second.target_problems(second.table)
    assert problems == first.target_problems(first.table) == target_problems(read_manifest(path))
    assert [problem.utterance.line for problem in problems] == [2, 3, 4]
    for stride, manifest in ((2, path), (STRIDE, write(tmp_path / "other.jsonl", ["да"]))):
        with pytest.raises(AssertionError, match="is read again"):
            TrainingManifest(manifest, stride, kept)
    # The same bytes in another folder are other audio files.
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / "m.jsonl").write_bytes(path.read_bytes())
    with pytest.raises(AssertionError, match="is read again"):
        TrainingManifest(tmp_path / "moved" / "m.jsonl", STRIDE, kept)


def test_audio_that_was_good_is_not_opened_again(tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "m.jsonl", ["да", "нет", "кто", "где"])
    for number in (0, 1, 3):
        soundfile.write(tmp_path / f"{number}.wav", np.zeros(8000 if number == 1 else 16_000), 16_000)
    opened: list[str] = []

    def watched(utterances: UtteranceTable) -> list[Any]:
        opened.extend(utterance.audio_path.name for utterance in utterances)
        return check_audio(utterances)

    monkeypatch.setattr(kvarts.utterance_table, "check_audio", watched)

    def lines(part: slice = slice(None)) -> list[int]:
        manifest = TrainingManifest(path, STRIDE, kept)
        return [problem.utterance.line for problem in manifest.audio_problems(manifest.table[part])]

    def opened_now() -> list[str]:
        now = opened.copy()
        opened.clear()
        return now

    assert (lines(slice(0, 2)), opened_now()) == ([2], ["0.wav", "1.wav"])
    assert (lines(), opened_now()) == ([2, 3], ["1.wav", "2.wav", "3.wav"])
    assert (lines(), opened_now()) == ([2, 3], ["1.wav", "2.wav"])
    soundfile.write(tmp_path / "2.wav", np.zeros(16_000), 16_000)  # mended
    assert (lines(), opened_now()) == ([2], ["1.wav", "2.wav"])
    assert (lines(), opened_now()) == ([2], ["1.wav"])


def test_a_manifest_that_may_not_be_read_is_one_line(
    tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "m.jsonl", ["да"])

    def refuse(self: Path, *arguments: Any, **more: Any) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ManifestError, match=r"m\.jsonl: could not be read \(Permission denied\)"):
        TrainingManifest(path, STRIDE, kept)


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "flipped"])
def test_a_damaged_file_is_made_anew(tmp_path: Path, kept: Path, damage: str, never_read: Callable[[], None]) -> None:
    path = write(tmp_path / "m.jsonl", ["привет", "hello"])
    TrainingManifest(path, STRIDE, kept)
    [file] = kept.iterdir()
    whole = file.read_bytes()
    middle = whole.index(b"PK\x03\x04", 1) + 130
    flipped = whole[:middle] + bytes(byte ^ 0xFF for byte in whole[middle : middle + 40]) + whole[middle + 40 :]
    file.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "text": b"nothing", "flipped": flipped}[damage])
    manifest = TrainingManifest(path, STRIDE, kept)
    assert list(manifest.table) == read_manifest(path)
    assert [problem.utterance.line for problem in manifest.target_problems(manifest.table)] == [2]
    never_read()
    TrainingManifest(path, STRIDE, kept)


def test_where_nothing_can_be_kept_one_is_told(tmp_path: Path, kept: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "m.jsonl", ["привет"])
    kept.write_text("a file")
    with caplog.at_level(logging.WARNING, "lightning"):
        assert len(TrainingManifest(path, STRIDE, kept).table) == 1
    assert "m.jsonl is not kept for the next start" in caplog.text


def test_only_the_last_used_are_kept(tmp_path: Path, kept: Path) -> None:
    for number in range(20):
        TrainingManifest(write(tmp_path / f"{number}.jsonl", ["да"] * (number + 1)), STRIDE, kept)
        for age, file in enumerate(sorted(kept.iterdir(), key=lambda file: file.stat().st_mtime_ns)):
            os.utime(file, (1000 + age, 1000 + age))
    assert len(list(kept.iterdir())) == 16


def test_small_manifests_leave_nothing_behind(tmp_path: Path) -> None:
    TrainingManifest(write(tmp_path / "m.jsonl", ["да"]), STRIDE, tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_large_manifests_are_kept_in_little_memory(tmp_path: Path, never_read: Callable[[], None]) -> None:
    row = {"audio_filepath": "a.wav", "text": "о чём бы то ни было, но не слишком коротко", "duration": 3.0}
    line = json.dumps(row, ensure_ascii=False) + "\n"
    large, small = tmp_path / "large.jsonl", tmp_path / "small.jsonl"
    large.write_text(line * 20_000, encoding="utf-8")
    small.write_text(line * 2_000, encoding="utf-8")
    TrainingManifest(large, STRIDE, tmp_path / "kept")
    tracemalloc.start()  # reading is eight times slower now
    part = TrainingManifest(small, STRIDE, tmp_path / "kept").table
    assert [utterance.duration_s for utterance in part[::100]] == [3.0] * 20
    _, peak = tracemalloc.get_traced_memory()
    never_read()
    assert len(TrainingManifest(large, STRIDE, tmp_path / "kept").table) == 20_000
    tracemalloc.stop()
    # Bytes of an utterance, beside what reading any file takes; as objects they are 1,500.
    assert peak < 2_000 * 100 + 300_000
