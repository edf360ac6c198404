"""`kvarts evaluate`, with a real model that was built by hand to read tones.

Every label of the alphabet is a tone in the middle of a mel band of its own, and silence is the blank. The
network has one block that hands the bands on and a head that picks the loudest, so what it recognises is
known in advance.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray
from rich.console import Console

import kvarts
from disk import no_file_beyond
from kvarts.checkpoint import save_weights
from kvarts.cli import main
from kvarts.decoder import ConvDecoder
from kvarts.encoder import BlockConfig, QuartzNet
from kvarts.error_counts import ErrorCounts
from kvarts.errors import AudioError, ConfigError, ManifestError
from kvarts.evaluate import (
    Evaluation,
    evaluate_manifest,
    evaluate_manifests,
    name_manifests,
    name_predictions,
    render_table,
    together,
)
from kvarts.frames import HOP_LENGTH, SAMPLE_RATE
from kvarts.hotwords import read_hotwords
from kvarts.manifest import read_manifest, write_manifest
from kvarts.model import QuartzNetCTC
from kvarts.recogniser import Recognizer, file_features
from kvarts.scored import Scored
from kvarts.search import BeamSearch
from kvarts.text import NORMALISER_VERSION
from kvarts.torch_engine import Torch
from tone_reader import ToneReader
from tones import speak, unsure


def write_speech(folder: Path, spoken_and_text: Sequence[tuple[str | NDArray[np.float32], str]]) -> Path:
    """A manifest in `folder` whose files say the first of each pair, or are it, and whose texts are the second."""
    (folder / "audio").mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    for number, (spoken, text) in enumerate(spoken_and_text):
        waveform = speak(spoken) if isinstance(spoken, str) else spoken
        soundfile.write(folder / "audio" / f"{number}.wav", waveform, SAMPLE_RATE)
        row = {"id": f"u{number}", "audio_filepath": f"audio/{number}.wav", "text": text}
        rows.append(row | {"duration": len(waveform) / SAMPLE_RATE})
    write_manifest(folder / "manifest.jsonl", rows)
    return folder / "manifest.jsonl"


CROWD = [
    ("афина хотела номер", "афина хотела номер"),
    ("да", "нет"),
    ("салют вызов светлане", "Салют, вызов Светлане!"),
    ("ежик", "ёжик"),
    ("дом пять", "дом 5"),
]
FARFIELD = [("включи", "включи свет"), ("это не то", "то"), ("", "")]
CROWD_WORDS = ErrorCounts(substitutions=2, reference_length=3 + 1 + 3 + 1 + 2)
FARFIELD_WORDS = ErrorCounts(deletions=1, insertions=2, reference_length=3)


@pytest.fixture
def model() -> ToneReader:
    return ToneReader().eval()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "tones.ckpt"
    save_weights(ToneReader(), path)
    return path


@pytest.fixture
def crowd(tmp_path: Path) -> Path:
    return write_speech(tmp_path / "test_opus" / "crowd", CROWD)


@pytest.fixture
def farfield(tmp_path: Path) -> Path:
    return write_speech(tmp_path / "test_opus" / "farfield", FARFIELD)


def damage(manifest: Path, number: int) -> None:
    """Cuts an audio file so that its header still promises all of it."""
    utterance = read_manifest(manifest)[number]
    flac = utterance.audio_path.with_suffix(".flac")
    waveform, _ = soundfile.read(utterance.audio_path)
    soundfile.write(flac, waveform, SAMPLE_RATE)
    content = flac.read_bytes()
    flac.write_bytes(content[: len(content) // 2])
    rows = [row.fields for row in read_manifest(manifest)]
    rows[number]["audio_filepath"] = f"audio/{flac.name}"
    write_manifest(manifest, rows)


# --- The functions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch_duration_s", "num_batches"), [(0.1, 5), (3.0, 3), (5.1, 2), (1000.0, 1)])
def test_scores_and_texts_whatever_the_batches(
    model: ToneReader, crowd: Path, batch_duration_s: float, num_batches: int
) -> None:
    utterances = read_manifest(crowd)
    seen: dict[str, str] = {}

    evaluation, predictions = evaluate_manifest(
        Recognizer(Torch(model)),
        utterances,
        name="crowd",
        batch_duration_s=batch_duration_s,
        on_text=lambda utterance, text: seen.update({utterance.utterance_id: text}),
    )

    assert predictions == [spoken for spoken, _ in CROWD]  # in the manifest's order
    assert seen == {f"u{number}": spoken for number, (spoken, _) in enumerate(CROWD)}
    assert evaluation.words == CROWD_WORDS
    assert evaluation.characters.reference_length == sum(len(text) for _, text in CROWD) - 2  # , and !
    assert evaluation.num_utterances == 5
    assert evaluation.audio_s == sum(utterance.duration_s for utterance in utterances)
    assert evaluation.rtfx == evaluation.audio_s / evaluation.elapsed_s > 0
    assert len(model.batch_shapes) == num_batches
    for size, frames in model.batch_shapes:
        assert size == 1 or size * (frames - 1) * HOP_LENGTH / SAMPLE_RATE <= batch_duration_s


def test_a_real_network_gives_the_same_texts_alone_and_in_a_batch(crowd: Path) -> None:
    torch.manual_seed(0)
    blocks = [BlockConfig(48, 1, 11, stride=4, residual=False), BlockConfig(64, 2, 13), BlockConfig(64, 1, 1)]
    random = QuartzNetCTC(QuartzNet(blocks), ConvDecoder(64)).train()
    before = {name: tensor.clone() for name, tensor in random.state_dict().items()}
    features = [file_features(utterance.audio_path) for utterance in read_manifest(crowd)]
    together_ = Recognizer(Torch(random)).texts(features)
    assert together_ == [Recognizer(Torch(random)).texts([matrix])[0] for matrix in features]
    assert any(together_)
    # Run as in use, left as it was in training: also its running statistics.
    assert random.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in random.state_dict().items())


def test_together_agrees_with_jiwer(model: ToneReader, crowd: Path, farfield: Path) -> None:
    evaluations = evaluate_manifests(Recognizer(Torch(model)), {"crowd": crowd, "farfield": farfield})
    both = together(evaluations)
    assert [evaluation.name for evaluation in evaluations] == ["crowd", "farfield"]
    assert both.words == CROWD_WORDS + FARFIELD_WORDS
    references = [text.lower().replace("ё", "е").strip("!").replace(",", "") for _, text in [*CROWD, *FARFIELD]]
    spoken = [spoken for spoken, _ in [*CROWD, *FARFIELD]]
    assert both.words.rate == jiwer.wer(references, spoken)
    assert both.characters.rate == jiwer.cer(references, spoken)
    assert both.num_utterances == 8


def test_the_table_has_a_row_for_each(model: ToneReader, crowd: Path) -> None:
    table = render_table(evaluate_manifests(Recognizer(Torch(model)), {"one": crowd}))
    cells = {column.header: list(column.cells) for column in table.columns}
    assert cells[""] == ["one"]
    assert cells["WER %"] == ["20.00"]
    assert (cells["subst."], cells["del."], cells["ins."], cells["utt."]) == (
        ["2"],
        ["0"],
        ["0"],
        ["5"],
    )


def test_the_table_fits_into_80_columns() -> None:
    usual = Scored({}, "m:1", Path("a.wav"), 4.0, "да", "да", ErrorCounts(1, 1, 1, 6), ErrorCounts(1, 1, 1, 1))
    other = Scored({}, "m:2", Path("b.wav"), 419.7, "да", "", ErrorCounts(6, 6, 6, 5042), ErrorCounts(1, 1, 1, 1))
    large = Evaluation("farfield", (*[usual] * 9993, other), 131)
    console = Console(width=80, file=io.StringIO())
    console.print(render_table([large, together([large, large])]))
    assert isinstance(console.file, io.StringIO)
    for word in ("farfield", "together", "46.15", "300.00", "100.0", "9999", "19988", "22.440", "308.3"):
        assert word in console.file.getvalue()


def test_all_audio_is_checked_before_the_first_is_recognised(
    model: ToneReader, crowd: Path, farfield: Path, tmp_path: Path
) -> None:
    rows = [utterance.fields for utterance in read_manifest(farfield)]
    (farfield.parent / "audio" / "0.wav").unlink()
    (farfield.parent / "audio" / "1.wav").write_bytes(b"")
    rows[2]["duration"] += 1
    write_manifest(farfield, rows)
    with pytest.raises(ManifestError) as caught:
        evaluate_manifests(Recognizer(Torch(model)), {"crowd": crowd, "farfield": farfield}, output=tmp_path / "out")
    for number in (1, 2, 3):
        assert f"{farfield}:{number}: " in str(caught.value)
    assert model.batch_shapes == []
    assert list((tmp_path / "out").iterdir()) == []


def test_a_damaged_file_is_named_and_all_others_are_kept(
    model: ToneReader, crowd: Path, farfield: Path, tmp_path: Path
) -> None:
    damage(farfield, 1)
    known: list[str] = []
    with pytest.raises(AudioError) as caught:
        evaluate_manifests(
            Recognizer(Torch(model)),
            {"crowd": crowd, "farfield": farfield},
            output=tmp_path / "out",
            on_evaluation=lambda evaluation: known.append(evaluation.name),
        )
    assert f"{farfield}:2: " in str(caught.value)
    partial = tmp_path / "out" / "farfield_pred.partial.jsonl"
    assert str(partial) in str(caught.value)
    assert {row.utterance_id: row.fields["pred_text"] for row in read_manifest(partial)} == {
        "u0": "включи",
        "u2": "",
    }
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert ([entry["name"] for entry in results["manifests"]], results["complete"]) == (["crowd"], False)
    assert (tmp_path / "out" / "crowd_pred.jsonl").exists()
    assert known == ["crowd"]


def test_results_name_the_versions_of_spoken_texts(model: ToneReader, crowd: Path, tmp_path: Path) -> None:
    rows = [{**row.fields, "audio_filepath": str(row.audio_path)} for row in read_manifest(crowd)]
    rows[0]["spoken_version"], rows[-1]["spoken_version"] = "2", "1"
    write_manifest(tmp_path / "spoken.jsonl", rows)
    manifests = {"crowd": crowd, "spoken": tmp_path / "spoken.jsonl"}
    evaluate_manifests(Recognizer(Torch(model)), manifests, output=tmp_path / "out")
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    plain, spoken = results["manifests"]
    assert "spoken_versions" not in plain
    assert spoken["spoken_versions"] == ["1", "2"]


def test_ctrl_c_keeps_what_was_recognised(model: ToneReader, crowd: Path, tmp_path: Path) -> None:
    model.failure = (2, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        evaluate_manifests(Recognizer(Torch(model)), {"crowd": crowd}, batch_duration_s=0.1, output=tmp_path)
    kept = read_manifest(tmp_path / "crowd_pred.partial.jsonl")
    # The two longest, for those come first.
    assert [row.fields["pred_text"] for row in kept] == [CROWD[2][0], CROWD[0][0]]


def test_too_large_a_batch_is_told_in_words(model: ToneReader, crowd: Path) -> None:
    model.failure = (0, torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate …"))
    with pytest.raises(ConfigError, match=r"^5 s of sound .* lower --batch-duration-s"):
        evaluate_manifests(Recognizer(Torch(model)), {"crowd": crowd}, batch_duration_s=5.1)


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["d/test_opus/crowd/manifest.jsonl", "d/test_opus/farfield/manifest.jsonl"], ["crowd", "farfield"]),
        (["d/train_opus/manifest.jsonl", "d/train_opus/1hour.jsonl"], ["train_opus", "train_opus-1hour"]),
        (["a/crowd/manifest.jsonl", "b/crowd/manifest.jsonl"], ["a-crowd", "b-crowd"]),
        (["a-b/manifest.jsonl", "a/b.jsonl"], None),
        (["a/manifest.jsonl", "a/manifest.json"], ["1-manifest.jsonl", "2-manifest.json"]),
    ],
)
def test_manifests_get_different_names(tmp_path: Path, paths: list[str], names: list[str] | None) -> None:
    named = name_manifests([tmp_path / path for path in paths])
    assert list(named.values()) == [tmp_path / path for path in paths]
    assert not any("/" in name for name in named)
    if names is not None:
        assert list(named) == names


def test_a_manifest_given_twice() -> None:
    with pytest.raises(ConfigError, match="given twice"):
        name_manifests([Path("a/manifest.jsonl"), Path("b/../a/manifest.jsonl")])


# --- The command line ---------------------------------------------------------------------------------------


def test_evaluate_prints_a_table_and_writes_results(
    checkpoint: Path,
    crowd: Path,
    farfield: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    out = Path("out", "deep")
    arguments = ["evaluate", "--checkpoint", str(checkpoint), "--output", str(out)]
    arguments += ["--manifest", str(crowd.relative_to(tmp_path)), "--manifest", str(farfield)]
    assert main(arguments) == 0

    printed = capsys.readouterr().out
    rows = {line.split()[0]: line.split()[1:] for line in printed.splitlines() if line.strip()}
    assert rows["crowd"][0] == "20.00"
    assert rows["crowd"][1] == "–"  # five utterances are too few for an interval
    assert rows["crowd"][3:8] == ["60.0", "2", "0", "0", "5"]
    assert rows["farfield"][3:8] == ["33.3", "0", "1", "2", "3"]
    assert rows["together"][0] == f"{100 * 5 / 13:.2f}"
    assert str(out / "results.json") in printed

    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert results["checkpoint"] == {
        "path": str(checkpoint),
        "sha256": sha256(checkpoint.read_bytes()).hexdigest(),
    }
    assert results["kvarts_version"] == kvarts.__version__
    assert results["normaliser_version"] == NORMALISER_VERSION
    assert results["command"] == "kvarts " + " ".join(arguments)
    assert results["complete"] is True
    assert [entry["manifest"] for entry in results["manifests"]] == [str(crowd), str(farfield)]
    assert results["manifests"][0]["wer"] == 0.2
    assert (results["together"]["exact"], results["together"]["exact_rate"]) == (4, 0.5)
    assert results["manifests"][0]["hours"] * 3600 == pytest.approx(
        sum(utterance.duration_s for utterance in read_manifest(crowd))
    )
    assert results["together"]["words"] == {
        "substitutions": 2,
        "deletions": 1,
        "insertions": 2,
        "reference_length": 13,
    }

    predicted = read_manifest(out / results["manifests"][1]["predictions"])
    assert [utterance.fields["pred_text"] for utterance in predicted] == [spoken for spoken, _ in FARFIELD]
    for before, after in zip(read_manifest(farfield), predicted, strict=True):
        assert after.audio_path.samefile(before.audio_path)
        kept = {key: value for key, value in after.fields.items() if key not in ("audio_filepath", "pred_text")}
        assert kept == {key: value for key, value in before.fields.items() if key != "audio_filepath"}
    assert sorted(entry.name for entry in out.iterdir()) == [
        "crowd_pred.jsonl",
        "farfield_pred.jsonl",
        "results.json",
    ]


def test_without_output_nothing_is_written(
    checkpoint: Path, crowd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "--checkpoint", str(checkpoint), "--manifest", str(crowd)]) == 0
    assert set(tmp_path.rglob("*")) == before


def test_what_is_scored_before_a_damaged_file_is_printed(
    checkpoint: Path, crowd: Path, farfield: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(farfield, 1)
    arguments = [
        "evaluate",
        "--checkpoint",
        str(checkpoint),
        "--manifest",
        str(crowd),
        "--manifest",
        str(farfield),
    ]
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert "crowd" in captured.out
    assert "20.00" in captured.out
    assert captured.err.startswith(f"kvarts: error: {farfield}:2: ")
    assert captured.err.count("\n") == 1


def test_a_disk_that_fills_up_costs_no_score(
    checkpoint: Path,
    crowd: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [
        "evaluate",
        "--checkpoint",
        str(checkpoint),
        "--manifest",
        str(crowd),
        "--output",
        str(tmp_path / "o"),
    ]
    assert main(arguments) == 0
    old = (tmp_path / "o" / "results.json").read_bytes()
    predictions = (tmp_path / "o" / "crowd_pred.jsonl").stat().st_size
    assert predictions < len(old)
    capsys.readouterr()
    with no_file_beyond(predictions):  # enough for the predictions, not for the results
        assert main(arguments) == 2
    captured = capsys.readouterr()
    assert "20.00" in captured.out
    assert captured.err.startswith(f"kvarts: error: {tmp_path / 'o' / 'results.json'}: could not be written")
    assert captured.err.count("\n") == 1
    assert (tmp_path / "o" / "results.json").read_bytes() == old


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"--checkpoint": "none.ckpt"}, "none.ckpt"),
        ({"--device": "abacus"}, "--device abacus"),
        ({"--device": "cuda:99"}, "--device cuda:99"),
    ],
)
def test_wrong_arguments_are_one_line(
    changes: dict[str, str],
    what: str,
    checkpoint: Path,
    crowd: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = {"--checkpoint": str(checkpoint), "--device": "cpu"} | changes
    arguments = ["evaluate", *(part for option in options.items() for part in option), "--manifest", str(crowd)]
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("kvarts: error: ")
    assert what in captured.err
    assert captured.err.count("\n") == 1


def test_an_output_that_cannot_be_is_told_before_the_work(
    checkpoint: Path, crowd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(crowd)  # a file
    assert main(["evaluate", "--checkpoint", str(checkpoint), "--manifest", str(crowd), "--output", output]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert output in captured.err


def test_spaces_around_a_text_are_dropped(model: ToneReader, tmp_path: Path) -> None:
    path = tmp_path / "spaces.wav"
    soundfile.write(path, speak(" да нет "), SAMPLE_RATE)
    assert Recognizer(Torch(model)).texts([file_features(path)]) == ["да нет"]


def test_a_click_is_no_speech(model: ToneReader, tmp_path: Path) -> None:
    # Loud enough to be recognised as a letter if the network were asked.
    path = tmp_path / "click.wav"
    soundfile.write(path, speak("а")[640 + 400 : 640 + 799], SAMPLE_RATE)
    with pytest.raises(AudioError, match=r"24\.9 ms of sound, less than one analysis window of 25 ms"):
        file_features(path)
    soundfile.write(path, speak("а")[640 + 400 : 640 + 800], SAMPLE_RATE)
    assert Recognizer(Torch(model)).texts([file_features(path)]) == ["а"]


# --- How sure, and where the errors are -------------------------------------------------------------------------------

# Twelve utterances of two rooms and six speakers; every third has «кит» for «кот».
TWELVE = [("мой кит", "мой кот") if number % 3 == 0 else ("дом", "Дом!") for number in range(12)]


@pytest.fixture
def twelve(tmp_path: Path) -> Path:
    path = write_speech(tmp_path / "twelve", TWELVE)
    rows = [utterance.fields for utterance in read_manifest(path)]
    for number, row in enumerate(rows):
        row |= {"room": "kitchen" if number < 4 else "hall", "speaker": f"s{number // 2}", "rt60_s": number / 10}
    write_manifest(path, rows)
    return path


def test_intervals_parts_and_confusions(
    coarse: str, twelve: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    arguments = ["--breakdown", "room, length,rt60_s,snr", "--confusions", "3"]
    assert evaluate(coarse, "--manifest", twelve, "--output", output, *arguments) == 0
    printed = capsys.readouterr().out
    [entry] = json.loads((output / "results.json").read_text(encoding="utf-8"))["manifests"]
    assert (entry["wer"], entry["exact"], entry["exact_rate"]) == (4 / 16, 8, pytest.approx(2 / 3))
    low, high = entry["intervals"]["by_utterance"]["wer"]
    # Of 12 utterances the share k that has the error is drawn; it then has 2 words: k / (12 + k).
    assert (low, high) == pytest.approx((1 / 13, 7 / 19), abs=1e-9)
    assert entry["intervals"]["by_utterance"]["exact_rate"] == pytest.approx([5 / 12, 11 / 12])
    assert entry["intervals"]["by_speaker"]["drawn"] == "6 speakers"
    assert entry["intervals"]["by_speaker"]["wer"][0] < 0.25 < entry["intervals"]["by_speaker"]["wer"][1]
    parts = {one["value"]: one for one in entry["breakdown"]["room"]}
    assert list(parts) == ["hall", "kitchen"]
    assert (parts["kitchen"]["utterances"], parts["kitchen"]["wer"]) == (4, 2 / 6)
    assert (parts["hall"]["utterances"], parts["hall"]["wer"]) == (8, 2 / 10)
    assert list(entry["breakdown"]) == ["room", "length", "rt60_s", "snr"]
    assert [one["value"] for one in entry["breakdown"]["rt60_s"]] == ["< 0.28", "0.28 – 0.55", "0.55 – 0.83", "≥ 0.83"]
    assert sum(one["utterances"] for one in entry["breakdown"]["snr"]) == 12
    assert entry["confusions"]["words"] == [{"said": "кот", "heard": "кит", "count": 4, "total": 4}]
    assert entry["confusions"]["letters"] == [{"said": "о", "heard": "и", "count": 4, "total": 16}]

    table, rest = printed.split("95 % intervals")
    assert rows_of(table)["twelve"][:4] == ["25.00", f"{50 * (high - low):.1f}", "7.69", "66.7"]
    assert "12 utterances" in rest
    assert "6 speakers" in rest
    for title in ("twelve by room", "twelve by length, s", "twelve by rt60_s", "twelve by snr, dB (estimated"):
        assert title in rest
    assert rows_of(rest.split("by room")[1])["hall"] == ["20.00", "–", "6.25", "75.0", "8", "10"]
    words, letters = rest.split("twelve: confused words")[1].split("twelve: confused letters")
    assert rows_of(words)["кот"] == ["кит", "4", "4", "100.0"]
    assert rows_of(letters)["о"] == ["и", "4", "16", "25.0"]


def test_the_same_from_predictions_without_a_model(
    coarse: str, twelve: Path, farfield: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    details = ["--breakdown", "room", "--confusions", "3", "--output", str(output)]
    assert evaluate(coarse, "--manifest", twelve, "--manifest", farfield, *details) == 0
    before = json.loads((output / "results.json").read_text(encoding="utf-8"))
    first = capsys.readouterr().out
    paths = [str(output / f"{name}_pred.jsonl") for name in ("twelve", "farfield")]
    assert main(["evaluate", "--predictions", *paths, *details]) == 0
    again = json.loads((output / "rescored.json").read_text(encoding="utf-8"))
    second = capsys.readouterr().out
    assert "farfield by room" not in first  # which does not know of rooms
    for row, other in zip(
        [*before["manifests"], before["together"]], [*again["manifests"], again["together"]], strict=True
    ):
        unlike = {"elapsed_s", "rtfx", "predictions", "manifest"}
        assert {key: row[key] for key in row.keys() - unlike} == {key: other[key] for key in other.keys() - unlike}
        assert (other["elapsed_s"], other["rtfx"]) == (None, None)
    assert [entry["predictions"] for entry in again["manifests"]] == paths
    assert second.split("95 % intervals")[1].split("results")[0] == first.split("95 % intervals")[1].split("results")[0]
    assert rows_of(second)["farfield"][-1] == "–"
    # results.json, which tells of the model, is as it was.
    assert json.loads((output / "results.json").read_text(encoding="utf-8")) == before


def test_the_page_is_that_of_report(
    coarse: str, twelve: Path, farfield: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def data_of(page: Path) -> dict[str, Any]:
        text = page.read_text(encoding="utf-8")
        found: dict[str, Any] = json.loads(text.split('id="data">')[1].split("</script")[0])
        found["rows"] = [[*row[:1], *row[2:]] for row in found["rows"]]  # without the line it was read from
        return found

    output, at_once = tmp_path / "out", tmp_path / "deep" / "at_once.html"
    manifests = ["--manifest", twelve, "--manifest", farfield]
    assert evaluate(coarse, *manifests, "--output", output, "--report", at_once) == 0
    assert f"report: {at_once}" in capsys.readouterr().out
    paths = [str(output / f"{name}_pred.jsonl") for name in ("twelve", "farfield")]
    later, rescored = tmp_path / "later.html", tmp_path / "rescored.html"
    assert main(["report", *paths, "-o", str(later)]) == 0
    assert main(["evaluate", "--predictions", *paths, "--report", str(rescored)]) == 0
    expected = data_of(later)
    about = dict(expected.pop("about"))
    assert about["engine"].startswith("torch")
    for page in (at_once, rescored):
        found = data_of(page)
        told = dict(found.pop("about"))
        assert found == expected
        if page == at_once:
            assert told.items() <= about.items()
            assert told["checkpoint sha256"] == sha256(Path(coarse).read_bytes()).hexdigest()
    assert at_once.read_text(encoding="utf-8").count('type="text/plain" id="a') == len(expected["rows"]) == 15


def test_a_page_that_cannot_be_is_told_before_the_work(
    coarse: str, twelve: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(coarse, "--manifest", twelve, "--report", tmp_path) == 2
    printed, errors = capsys.readouterr()
    assert printed == ""
    assert errors == f"kvarts: error: --report {tmp_path}: is a folder; name a file in it\n"


def test_predictions_have_short_names_where_they_can() -> None:
    assert list(name_predictions([Path("a/crowd_pred.jsonl"), Path("a/far_pred.jsonl")])) == ["crowd", "far"]
    assert list(name_predictions([Path("a/x_pred.jsonl"), Path("b/x_pred.jsonl")])) == ["a-x", "b-x"]
    with pytest.raises(ConfigError, match="given twice"):
        name_predictions([Path("a/x_pred.jsonl"), Path("a/x_pred.jsonl")])


def test_an_unknown_field_is_told_before_the_work(
    coarse: str, twelve: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(coarse, "--manifest", twelve, "--breakdown", "room,rooms") == 2
    printed, errors = capsys.readouterr()
    assert printed == ""
    assert errors.startswith("kvarts: error: no line has a field 'rooms' to group by; there are room, rt60_s, speaker,")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "--manifest is needed, or --predictions"),
        ("--model m", "--manifest is needed, or --predictions"),
        ("--predictions p --model m", "--predictions recognises nothing anew; leave out --model"),
        ("--predictions p --manifest m --lm l", "leave out --manifest, --lm"),
        ("--predictions p --streaming --grammar g", "leave out --streaming, --grammar"),
        ("--model m --manifest m --streaming --confusions 3", "--confusions goes without --streaming and --grammar"),
        ("--model m --manifest m --grammar g --breakdown room", "--breakdown goes without --streaming and --grammar"),
        ("--model m --manifest m --streaming --report r", "--report goes without --streaming and --grammar"),
        ("--predictions p --confusions 0", "0 is not a whole number above 0"),
        ("--predictions p --breakdown room,", "'room,' has an empty name; write names with commas between"),
    ],
)
def test_what_does_not_go_with_predictions(options: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", *options.split()])
    assert ended.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


# --- Decoders, streams and grammars -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def coarse(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint that reads tones in frames of 40 ms."""
    path = tmp_path_factory.mktemp("checkpoint") / "coarse.ckpt"
    save_weights(ToneReader(stride=4), path)
    return str(path)


def evaluate(coarse: str, *arguments: str | Path) -> int:
    return main(["evaluate", "--model", coarse, *map(str, arguments)])


def rows_of(printed: str) -> dict[str, list[str]]:
    """Of each line of tables its cells by the first."""
    lines = [line.replace("│", " ").split() for line in printed.splitlines()]
    return {line[0]: line[1:] for line in lines if line}


# Heard is the first of two, unless something speaks for the second.
UNSURE = [
    (unsure("мой кит", "мой кот"), "мой кот"),
    (unsure("пол", "кол"), "пол"),
    (unsure("ком", "кот"), "кот"),
    ("дом", "дом"),
]


def test_hot_words_change_texts_and_are_counted(
    coarse: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = write_speech(tmp_path / "test", UNSURE)
    hot = tmp_path / "hot.txt"
    hot.write_text("кот\nкол\n", encoding="utf-8")
    assert evaluate(coarse, "--manifest", manifest, "--output", tmp_path / "greedy") == 0
    printed = capsys.readouterr().out
    assert rows_of(printed)["test"][0] == "40.00"
    assert "hot words" not in printed
    assert evaluate(coarse, "--manifest", manifest, "--output", tmp_path / "hot", "--hotwords", hot) == 0
    table, hot_table = capsys.readouterr().out.split("hot words")
    assert rows_of(table)["test"][0] == "20.00"
    # «кот» was said and found twice, «кол» found once for «пол», one of the three other words.
    assert [cell for cell in rows_of(hot_table)["test"] if cell] == ["2", "2", "100.0", "1", "33.33"]

    found = {
        name: json.loads((tmp_path / name / "results.json").read_text(encoding="utf-8")) for name in ("greedy", "hot")
    }
    assert (found["greedy"]["decoder"], found["hot"]["decoder"]) == (
        "greedy",
        BeamSearch(hotwords=read_hotwords(hot)).description,
    )
    assert found["greedy"]["engine"] == found["hot"]["engine"] == "torch cpu"
    assert "hotwords" not in found["greedy"]["together"]
    expected = {"spoken": 2, "found": 2, "recall": 1, "given": 3, "false": 1, "wer_elsewhere": pytest.approx(1 / 3)}
    assert found["hot"]["together"]["hotwords"] == found["hot"]["manifests"][0]["hotwords"] == expected
    texts = {
        name: [row.fields["pred_text"] for row in read_manifest(tmp_path / name / "test_pred.jsonl")] for name in found
    }
    assert texts == {"greedy": ["мой кит", "пол", "ком", "дом"], "hot": ["мой кот", "кол", "кот", "дом"]}


def test_hot_words_of_several_manifests_are_added_up(
    coarse: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = write_speech(tmp_path / "first", UNSURE[:1]), write_speech(tmp_path / "second", [("дом", "кот")])
    hot = tmp_path / "hot.txt"
    hot.write_text("кот", encoding="utf-8")
    assert evaluate(coarse, "--manifest", first, "--manifest", second, "--hotwords", hot) == 0
    rows = rows_of(capsys.readouterr().out.split("hot words")[1])
    assert [rows[name][:3] for name in ("first", "second", "together")] == [
        ["1", "1", "100.0"],
        ["1", "0", "0.0"],
        ["2", "1", "50.0"],
    ]


def test_streams_are_measured(coarse: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = write_speech(tmp_path / "said", [("включи свет", "включи свет"), ("дом", "нет")])
    output = tmp_path / "out"
    arguments = ["--manifest", manifest, "--output", output, "--streaming", "--chunk-s", "0.1", "1"]
    assert evaluate(coarse, *arguments, "--beam", "20") == 0
    printed = capsys.readouterr().out
    rows = rows_of(printed)
    for size in ("0.1", "1"):
        assert rows[size][:3] == ["33.33", "33.33", "100"]
    assert "said" in rows
    assert f"results: {output / 'streaming.json'}" in printed
    found = json.loads((output / "streaming.json").read_text(encoding="utf-8"))
    assert (found["decoder"], found["engine"]) == (BeamSearch(beam=20).description, "torch cpu")
    assert found["kvarts_version"] == kvarts.__version__
    assert found["checkpoint"]["sha256"] == sha256(Path(coarse).read_bytes()).hexdigest()
    assert [entry["chunk_s"] for entry in found["manifests"]["said"]] == [0.1, 1]
    for entry in found["manifests"]["said"]:
        assert (entry["num_utterances"], entry["wer"], entry["same_as_offline_share"]) == (2, pytest.approx(1 / 3), 1)
        assert entry["network_s"] > 0
    assert sorted(path.name for path in output.iterdir()) == ["streaming.json"]


GRAMMAR = """
[light_on]
включи свет
[off]
выключи {what}
{what}:
window: окно
light: свет
"""
# Two commands said clearly, one less so; and what is none, the last of them heard as one.
COMMANDS = [
    ("включи свет", "Включи свет!"),
    ("выключи окно", "выключи окно"),
    (unsure("выключи свит", "выключи свет"), "выключи свет"),
    ("мой дом", "мой дом"),
    (unsure("включи звет", "включи свет"), "включи звук"),
]


@pytest.fixture
def grammar(tmp_path: Path) -> Path:
    path = tmp_path / "light.grammar"
    path.write_text(GRAMMAR, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("options", "exact", "rejected", "false_accepts"),
    [
        ([], 3, 0, 1),
        (["--unknown-below", "0.01"], 2, 1, 0),
        (["--false-accepts-per-hour", "0"], None, None, 0),
        (["--false-accepts-per-hour", "1e9"], 3, 0, 2),
    ],
)
def test_commands_are_counted(
    coarse: str,
    grammar: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    exact: int | None,
    rejected: int | None,
    false_accepts: int,
) -> None:
    manifest = write_speech(tmp_path / "said", COMMANDS)
    output = tmp_path / "out"
    assert evaluate(coarse, "--manifest", manifest, "--output", output, "--grammar", grammar, *options) == 0
    printed = capsys.readouterr().out
    assert f"results: {output / 'grammar.json'}" in printed
    found = json.loads((output / "grammar.json").read_text(encoding="utf-8"))
    assert found["decoder"].startswith("grammar ")
    assert (found["engine"], found["normaliser_version"]) == ("torch cpu", NORMALISER_VERSION)
    [entry] = found["manifests"]
    assert (entry["name"], entry["commands"], entry["outside"]) == ("said", 3, 2)
    assert entry["false_accepts"] == false_accepts
    outside_s = sum(utterance.duration_s for utterance in read_manifest(manifest)[3:])
    assert entry["outside_s"] == pytest.approx(outside_s)
    assert entry["false_accepts_per_hour"] == pytest.approx(false_accepts * 3600 / outside_s)
    if exact is not None:
        assert (entry["exact"], entry["right_intents"], entry["right_slots"]) == (exact,) * 3
        assert entry["rejected"] == rejected
    cells = rows_of(printed)["said"]
    assert cells[0] == f"{100 * entry['exact_rate']:.2f}"
    assert cells[3:5] == [f"{100 * entry['rejected_rate']:.2f}", "3"]
    assert cells[5] == f"{entry['false_accepts_per_hour']:.2f}"


def test_commands_of_several_manifests_together(
    coarse: str, grammar: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inside, outside = write_speech(tmp_path / "inside", COMMANDS[:3]), write_speech(tmp_path / "outside", COMMANDS[3:4])
    arguments = ["--manifest", inside, "--grammar", grammar]
    assert evaluate(coarse, *arguments, "--manifest", outside, "--false-accepts-per-hour", "0") == 0
    rows = rows_of(capsys.readouterr().out)
    assert rows["inside"][4:6] == ["3", "–"]
    assert rows["outside"][:6] == ["–", "–", "–", "–", "0", "0.00"]
    assert rows["together"][0] == "100.00"
    assert rows["together"][4:6] == ["3", "0.00"]
    # One threshold for all.
    assert rows["inside"][-1] == rows["outside"][-1] == rows["together"][-1]

    assert evaluate(coarse, *arguments, "--false-accepts-per-hour", "0") == 2
    errors = capsys.readouterr().err
    assert errors.startswith("kvarts: error: no text is outside the grammar: add a manifest of other speech")
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--streaming --grammar g", "--streaming and --grammar are measured one at a time"),
        ("--chunk-s 1", "--chunk-s goes with --streaming"),
        ("--chunk-s 1 --grammar g", "--chunk-s goes with --streaming"),
        ("--unknown-below 1", "--unknown-below or --false-accepts-per-hour, one of them, goes with --grammar"),
        ("--false-accepts-per-hour 1", "one of them, goes with --grammar"),
        ("--false-accepts-per-hour 1 --unknown-below 1 --grammar g", "one of them, goes with --grammar"),
        ("--streaming --chunk-s", "--chunk-s"),
        ("--streaming --chunk-s 0", "0 is not a number above 0"),
        ("--streaming --chunk-s 1 nan", "nan is not a number above 0"),
        ("--grammar g --unknown-below 0", "0 is not a number above 0"),
        ("--grammar g --false-accepts-per-hour=-1", "-1 is not a number from 0 on"),
        ("--grammar g --false-accepts-per-hour inf", "inf is not a number from 0 on"),
    ],
)
def test_what_does_not_go_together(options: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        evaluate("m", "--manifest", "m.jsonl", *options.split())
    assert ended.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--lm-weight 1", "--lm-weight goes with --lm"),
        ("--hotwords none.txt", "none.txt cannot be read"),
        ("--grammar none.grammar", "none.grammar"),
        ("--grammar g --lm lm.arpa --beam 3", "--grammar is a decoder of its own; leave out --beam, --lm"),
        ("--streaming --chunk-s 1e-6", "chunks of 1e-06 s"),
        ("--streaming --beam 0", "beam 0"),
    ],
)
def test_a_wrong_decoder_is_one_line(
    options: str, message: str, coarse: str, crowd: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(coarse, "--manifest", crowd, *options.split()) == 2
    printed, errors = capsys.readouterr()
    assert (printed, errors.count("\n")) == ("", 1)
    assert errors.startswith("kvarts: error: ")
    assert message in errors
