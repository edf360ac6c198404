"""Reading and writing manifests."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from disk import no_file_beyond
from kvarts.errors import ManifestError, OutputError
from kvarts.manifest import read_manifest, write_manifest

GOOD: dict[str, Any] = {
    "id": "855e",
    "audio_filepath": "farfield/855e.opus",
    "text": "афина",
    "duration": 5.46,
}


def written(tmp_path: Path, *lines: str | bytes) -> Path:
    path = tmp_path / "manifest.jsonl"
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines) + b"\n")
    return path


def line(**changes: Any) -> str:
    return json.dumps(GOOD | changes)


def test_reads_the_fields_of_a_line(tmp_path: Path) -> None:
    path = written(tmp_path, line(speaker=7))
    [utterance] = read_manifest(path)
    assert utterance.audio_path == tmp_path / "farfield" / "855e.opus"
    assert (utterance.text, utterance.duration_s, utterance.utterance_id) == ("афина", 5.46, "855e")
    assert utterance.fields == GOOD | {"speaker": 7}
    assert utterance.where == f"{path}:1"


def test_json_escapes_are_undone(tmp_path: Path) -> None:
    raw = '{"audio_filepath": "farfield\\/1.opus", "text": "\\u0430\\u0444", "duration": 1}'
    [utterance] = read_manifest(written(tmp_path, raw))
    assert (utterance.audio_path, utterance.text) == (tmp_path / "farfield/1.opus", "аф")
    assert utterance.utterance_id == "1"  # the file's name, as there is no id


def test_absolute_paths_stay(tmp_path: Path) -> None:
    [utterance] = read_manifest(written(tmp_path, line(audio_filepath="/data/a.wav")))
    assert utterance.audio_path == Path("/data/a.wav")


def test_tolerates_a_bom_blank_lines_and_windows_line_ends(tmp_path: Path) -> None:
    path = written(tmp_path, b"\xef\xbb\xbf" + line().encode() + b"\r", "", "  ", line(id=7, text="") + "\r")
    first, second = read_manifest(path)
    assert (first.line, second.line) == (1, 4)
    assert (second.utterance_id, second.text) == ("7", "")


def test_a_line_separator_inside_a_text_does_not_end_the_line(tmp_path: Path) -> None:
    raw = json.dumps(GOOD | {"text": "а\u2028б"}, ensure_ascii=False)
    assert [utterance.text for utterance in read_manifest(written(tmp_path, raw))] == ["а\u2028б"]


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        ("{", "broken JSON .*column 2"),
        ('{"audio_filepath": "a.wav"} {}', "broken JSON"),
        ("[1, 2]", "a list, not an object"),
        ("null", "null, not an object"),
        ('"текст"', "a string, not an object"),
        ("[" * 100_000, "brackets"),
        ('{"duration": ' + "1" * 10_000 + "}", "too long a number"),
        ('{"audio_filepath": "a.wav", "text": "а", "duration": NaN}', "NaN is not JSON"),
        (line(text="а").encode().replace(b"\\u0430", b"\xe0"), "not UTF-8"),
        (line(text="а").replace("\\u0430", "\\ud800"), "surrogate"),
        (json.dumps({"text": "а", "duration": 1}), '"audio_filepath" is missing'),
        (json.dumps({"audio_filepath": "a.wav", "duration": 1}), '"text" is missing'),
        (json.dumps({"audio_filepath": "a.wav", "text": "а"}), '"duration" is missing'),
        (line(audio_filepath=7), '"audio_filepath" is a number'),
        (line(audio_filepath=" "), '"audio_filepath" names no file'),
        (line(audio_filepath="a\0.wav"), '"audio_filepath" names no file'),
        (line(text=None), '"text" is null'),
        (line(text=["а"]), '"text" is a list'),
        (line(duration="5"), '"duration" is a string'),
        (line(duration=True), '"duration" is true or false'),
        (line(duration={}), '"duration" is an object'),
        (line(duration=0), '"duration" is 0'),
        (line(duration=-1.5), '"duration" is -1.5'),
        (line(duration=10**400), '"duration" is inf'),
        (line(duration=1).replace("1}", "1e400}"), '"duration" is inf'),
        (line(id=[]), '"id" is a list'),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, bad: str | bytes, what: str) -> None:
    path = written(tmp_path, line(), bad)
    with pytest.raises(ManifestError, match=what) as caught:
        read_manifest(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:2: ")
    assert "; " in message  # what to do about it
    assert "\n" not in message


def test_all_bad_lines_are_counted_and_the_first_ten_listed(tmp_path: Path) -> None:
    path = written(tmp_path, *[line() if number % 2 else "{" for number in range(1, 51)])
    with pytest.raises(ManifestError) as caught:
        read_manifest(path)
    head, *listed, more = str(caught.value).split("\n")
    assert "(25)" in head
    assert [entry.split(": ")[0] for entry in listed] == [f"{path}:{number}" for number in range(2, 21, 2)]
    assert more == "… and 15 more"


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_an_empty_manifest(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "manifest.jsonl"
    path.write_bytes(content)
    with pytest.raises(ManifestError, match="empty"):
        read_manifest(path)


def test_a_missing_manifest_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no such manifest"):
        read_manifest(tmp_path / "none.jsonl")
    with pytest.raises(ManifestError, match="is a folder"):
        read_manifest(tmp_path)
    with pytest.raises(ManifestError, match="could not be read"):
        read_manifest(written(tmp_path, line()) / "below.jsonl")


@settings(deadline=None, max_examples=50)
@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=5),
    duration=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, texts: list[str], duration: float) -> None:
    path = tmp_path_factory.mktemp("written") / "manifest.jsonl"
    rows = [{"audio_filepath": "a.wav", "text": text, "duration": duration} for text in texts]
    write_manifest(path, rows)
    assert [utterance.fields for utterance in read_manifest(path)] == rows


def test_letters_are_written_as_they_are_and_folders_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "manifest.jsonl"
    write_manifest(path, [GOOD])
    assert '"text": "афина"' in path.read_text(encoding="utf-8")
    assert os.listdir(path.parent) == [path.name]  # noqa: PTH208 - hidden files too


def test_a_full_disk_leaves_the_old_manifest(tmp_path: Path) -> None:
    path = written(tmp_path, line())
    before = path.read_bytes()
    with no_file_beyond(4096), pytest.raises(OutputError, match=r"File too large.*unchanged") as caught:
        write_manifest(path, [GOOD] * 1000)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_whoever_reads_the_old_manifest_goes_on_reading_it(tmp_path: Path) -> None:
    path = written(tmp_path, line())
    before = path.read_bytes()
    with path.open("rb") as reader:
        write_manifest(path, [GOOD | {"id": "new"}])
        assert reader.read() == before
    assert read_manifest(path)[0].utterance_id == "new"


def test_a_row_that_json_cannot_say_leaves_the_old_manifest(tmp_path: Path) -> None:
    path = written(tmp_path, line())
    before = path.read_bytes()
    with pytest.raises(OutputError, match=":2: "):
        write_manifest(path, [GOOD, GOOD | {"score": float("nan")}])
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    file = written(tmp_path, line())
    with pytest.raises(OutputError):
        write_manifest(file / "manifest.jsonl", [GOOD])
    with pytest.raises(OutputError):
        write_manifest(tmp_path, [GOOD])
