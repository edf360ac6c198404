"""``kvarts data stats``: the figures against ones worked by hand, the files it writes, and what can be wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

from kvarts import cli
from kvarts.features import log_mel, mel_peaks_hz
from kvarts.manifest import write_manifest


@pytest.fixture
def stats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., object]:
    """Runs the command in a folder of its own, and gives its exit code, what it said, and the figures."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> SimpleNamespace:
        code = cli.main(["data", "stats", *arguments, "--json", "out/figures.json"])
        said = capsys.readouterr()
        figures = Path("out/figures.json")
        found = json.loads(figures.read_text(encoding="utf-8"))["manifests"] if figures.exists() else None
        return SimpleNamespace(code=code, out=said.out, err=said.err, figures=found)

    return run


def manifest(path: str, *rows: dict[str, Any]) -> None:
    write_manifest(Path(path), [{"audio_filepath": "a.wav", "text": "да", "duration": 1.0} | row for row in rows])


def test_counts(stats: Callable[..., SimpleNamespace]) -> None:
    first = {"text": "Да, нет: да!", "duration": 2.0, "speaker": "а", "domain": "дом", "licence": "MIT"}
    manifest("one.jsonl", first, {"text": "ёж", "duration": 4.0, "speaker": "б"})
    manifest("two.jsonl", {"text": "да", "duration": 1.0, "speaker": "а", "domain": "дом"})
    ended = stats("one.jsonl", "two.jsonl", "--no-audio")
    assert (ended.code, ended.err) == (0, "")
    one, _, both = ended.figures
    assert (one["utterances"], one["words"], one["vocabulary"], one["words_once"]) == (2, 4, 3, 2)
    assert one["hours"] == pytest.approx(6 / 3600)
    assert one["duration_s"] == {"0": 2.0, "5": 2.1, "50": 3.0, "95": 3.9, "100": 4.0}
    assert one["words_per_utterance"]["100"] == 3
    assert (one["words_per_second"]["0"], one["words_per_second"]["100"]) == (0.25, 1.5)
    assert one["characters"] == {"д": 2, "а": 2, "н": 1, "е": 2, "т": 1, "ж": 1}
    assert list(one["speaker"]) == ["б", "а"]  # most seconds first
    assert one["speaker"]["а"] == {"utterances": 1, "hours": pytest.approx(2 / 3600)}
    assert both["speaker"]["а"] == {"utterances": 2, "hours": pytest.approx(3 / 3600)}
    assert both["domain"]["дом"]["utterances"] == 2
    assert (both["words"], both["vocabulary"], both["words_once"]) == (5, 3, 2)
    assert "gender" not in both
    assert not {"level_db", "snr_db", "spectrum_db"} & both.keys()
    rows = [line.split() for line in ended.out.splitlines()]
    assert [name.rpartition("-")[2] for name in rows[0]] == ["one", "two", "together"]
    assert ["vocabulary", "3", "1", "3"] in rows
    assert ["speakers", "2", "1", "2"] in rows
    assert "licence: MIT 0.001 h" in ended.out


def test_levels_and_spectrum(stats: Callable[..., SimpleNamespace]) -> None:
    """A second of sine at half scale, and half a second 40 dB below."""
    time = np.arange(24_000) / 16_000
    gain = np.where(time < 1, 0.5, 0.005)
    sound = (gain * np.sin(2 * np.pi * 1000 * time)).astype(np.float32)
    soundfile.write("a.wav", sound, 16_000, subtype="FLOAT")
    soundfile.write("b.wav", sound[:16_000], 16_000, subtype="FLOAT")
    manifest("m.jsonl", {"duration": 9.0}, {"audio_filepath": "b.wav", "duration": 9.0})
    [found] = stats("m.jsonl").figures
    assert found["duration_s"]["100"] == 1.5  # the file's, not the manifest's
    assert found["level_db"]["100"] == pytest.approx(20 * np.log10(0.5 / np.sqrt(2)), abs=0.01)
    assert found["snr_db"]["100"] == pytest.approx(40, abs=0.05)
    assert found["snr_db"]["0"] == pytest.approx(0, abs=0.01)
    loudest = int(np.argmax(found["spectrum_db"]))
    assert loudest == int(np.argmin(np.abs(mel_peaks_hz() - 1000)))
    # Each recording's frames have the weight of its seconds.
    means = [10 / np.log(10) * log_mel(part).mean(axis=0) for part in (sound, sound[:16_000])]
    expected = (1.5 * means[0] + means[1]) / 2.5
    np.testing.assert_allclose(found["spectrum_db"], expected, atol=0.01)
    assert found["spectrum_hz"] == pytest.approx(mel_peaks_hz(), abs=0.06)


def test_an_empty_text_is_counted(stats: Callable[..., SimpleNamespace]) -> None:
    manifest("m.jsonl", {"text": "…"})
    ended = stats("m.jsonl", "--no-audio")
    assert (ended.code, ended.figures[0]["words"], ended.figures[0]["vocabulary"]) == (0, 0, 0)


def test_the_picture(stats: Callable[..., SimpleNamespace]) -> None:
    soundfile.write("a.wav", np.zeros(16_000, np.float32), 16_000)
    manifest("m.jsonl", {})
    for arguments in ([], ["--no-audio"]):
        ended = stats("m.jsonl", "--picture", "new/p.png", *arguments)
        assert (ended.code, ended.err) == (0, "")
        assert Path("new/p.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        Path("new/p.png").unlink()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none.jsonl"], "none.jsonl: no such manifest"),
        (["."], "is a folder"),
        (["empty.jsonl"], "empty.jsonl: the manifest is empty"),
        (["bad.jsonl"], "bad.jsonl:2: broken JSON"),
        (["good.jsonl", "good.jsonl"], "given twice"),
        (["good.jsonl"], "good.jsonl:1: a.wav does not exist"),
        (["good.jsonl", "--no-audio", "--picture", "."], ".: is a folder"),
        (["good.jsonl", "--no-audio", "--picture", "good.jsonl/p.png"], "good.jsonl/p.png: could not be written"),
    ],
)
def test_what_can_be_wrong(stats: Callable[..., SimpleNamespace], arguments: list[str], said: str) -> None:
    manifest("good.jsonl", {})
    Path("empty.jsonl").write_text("\n")
    Path("bad.jsonl").write_text(Path("good.jsonl").read_text() + "{\n")
    ended = stats(*arguments)
    assert ended.code == 2
    assert ended.err.startswith("kvarts: error: ")
    assert said in ended.err
    assert ended.err.count("\n") == 1
