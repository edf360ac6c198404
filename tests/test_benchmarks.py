"""The benchmarks run and write what they promise; what the figures are is for those who run them in earnest."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import soundfile

import gpu
from kvarts.alphabet import ALPHABET
from kvarts.checkpoint import COURSE_BLOCKS, load_model, save_weights
from kvarts.decoder import ConvDecoder
from kvarts.encoder import QuartzNet
from kvarts.features import FEATURE_SETTINGS
from kvarts.frames import SAMPLE_RATE
from kvarts.manifest import read_manifest, write_manifest
from kvarts.model import QuartzNetCTC
from kvarts.model_folder import CONFIG, FLOAT32, FORMAT_VERSION, INT8, TOKENS, tokens_text
from kvarts.ngram import train
from kvarts.onnx_graph import onnx_model
from tone_reader import ToneReader
from tones import speak, unsure

ROOT = Path(__file__).resolve().parents[1]


def run(script: str, *arguments: str | Path) -> str:
    command = [sys.executable, ROOT / "benchmarks" / script, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two shortest training recordings of the sample."""
    folder = tmp_path_factory.mktemp("data")
    for part in ("train_opus", "val_opus"):
        utterances = read_manifest(ROOT / "sample" / part / "manifest.jsonl")
        utterances.sort(key=lambda utterance: utterance.duration_s)
        (folder / part).mkdir()
        rows: list[dict[str, Any]] = []
        for utterance in utterances[:2]:
            path = utterance.audio_path
            shutil.copy(path, folder / part)
            rows.append({"audio_filepath": path.name, "text": utterance.text, "duration": utterance.duration_s})
        write_manifest(folder / part / "manifest.jsonl", rows)
    return folder


def test_a_training_step(tmp_path: Path) -> None:
    arguments = ("--batch", "1", "--seconds", "0.5", "--rounds", "1", "--json", tmp_path / "step.json")
    table = run("train_step.py", *arguments, "--variants", "ours_fp32", "ours_bf16")  # the slow one is like them
    figures = json.loads((tmp_path / "step.json").read_text())
    for variant in ("plain_fp32", "ours_fp32", "ours_bf16"):
        assert variant in table
        assert figures[f"gflops_{variant}"] > 0
        assert 100 < figures[f"peak_rss_mb_{variant}"] < 10_000
    assert figures["ratio_fp32"] == pytest.approx(figures["step_s_plain_fp32"] / figures["step_s_ours_fp32"])
    assert figures["ratio_bf16"] == pytest.approx(figures["step_s_plain_fp32"] / figures["step_s_ours_bf16"])
    assert figures["sgemm_gflops"] > 0


def test_an_epoch(tmp_path: Path, data: Path) -> None:
    arguments = ("--data", data, "--batch", "2", "--rounds", "1", "--precision", "bf16")
    run("epoch.py", *arguments, "--json", tmp_path / "epoch.json")
    figures = json.loads((tmp_path / "epoch.json").read_text())
    ratio = figures["epoch_s_plain_fp32"] / figures["epoch_s_ours_bf16"]
    assert figures["ratio_bf16"] == pytest.approx(ratio)
    assert figures["ratio_first_epoch_bf16"] > 0


def test_augmentation(tmp_path: Path, data: Path) -> None:
    table = run("augment.py", "--data", data, "--batch", "1", "--steps", "1", "--json", tmp_path / "augment.json")
    figures = json.loads((tmp_path / "augment.json").read_text())
    more_s = figures["step_s_with"] - figures["step_s_without"]
    assert figures["share"] == pytest.approx(more_s / figures["step_s_without"])
    assert f"{figures['batch_share']:.1%}" in table
    effects = figures["effects_ms_per_s"]
    assert {"log-mel", "Speed", "Room", "Noise", "Band", "Gain"} < effects.keys()
    assert all(cost > 0 for cost in effects.values())


def test_augmented_sound_on_a_device() -> None:
    figures = gpu.sound(argparse.Namespace(batch=2, rounds=1, device="cpu"))
    assert 0 < figures["made by a core"] < figures["drawn by a core"]
    assert figures["made by the device"] > 0


def test_rooms_measured_and_true(tmp_path: Path, data: Path) -> None:
    """The room is found, two models are trained, and all three tested in it."""
    checkpoint = tmp_path / "weights.ckpt"
    save_weights(QuartzNetCTC(QuartzNet(COURSE_BLOCKS), ConvDecoder(1024)), checkpoint)
    speech = tmp_path / "speech"
    shutil.copytree(data, speech)
    shutil.copytree(speech / "val_opus", speech / "test_opus" / "crowd")
    settings = ["trainer.max_steps=1", "data.batch_size=2", "trainer.log_every_n_steps=1"]
    where = ("--weights", checkpoint, "--data", speech, "-o", tmp_path / "out", "--rooms", "1", "--noise-db", "60")
    said = run("own_room.py", *settings, *where)
    assert said.count("WER %") == 3
    rows = read_manifest(tmp_path / "out" / "test" / "manifest.jsonl")
    close = read_manifest(speech / "val_opus" / "manifest.jsonl")
    assert [row.duration_s for row in rows] == pytest.approx([one.duration_s for one in close], abs=1e-3)
    true, found = (json.loads((tmp_path / "out" / kind / "rooms.jsonl").read_text()) for kind in ("truth", "estimate"))
    assert found["drr_db"] == pytest.approx(true["drr_db"], abs=1)


def test_recognition(tmp_path: Path, data: Path) -> None:
    """Every system of the run has its figures, and float32 gives the same texts in all that have our features."""
    train, val = (data / part / "manifest.jsonl" for part in ("train_opus", "val_opus"))
    arguments = ("--calibration", train, "--audio", val, "--seconds", "0.5", "--rounds", "1")
    output = ("--json", tmp_path / "figures.json", "--plot", tmp_path / "figures.png")
    table = run("recognise.py", *arguments, *output)
    figures = json.loads((tmp_path / "figures.json").read_text())
    rows = {row["system"]: row for row in figures["rows"]}
    positive = ["encoder_rtfx_b1", "encoder_rtfx_b8", "encoder_ratio_to_eager", "encoder_ratio_to_eager_b8"]
    positive += ["onnxruntime_ratio_to_plain_export", "cold_start_s", "opus_decoder_share"]
    positive += [f"{kind}_to_text_{what}" for kind in ("wav", "opus") for what in ("rtfx", "ratio_to_onnx_asr")]
    for name in positive:
        assert name in table
        assert 0 < figures[name] < math.inf, name
    assert 20 < figures["cold_start_rss_mb"] < 1000
    ours = rows[figures["system"]]
    float32 = rows[figures["system"].rpartition(" ")[0] + " float32"]
    assert figures["delta_wer"] == pytest.approx(ours["wer"] - float32["wer"])
    assert figures["wav_to_text_rtfx"] == max(ours["wav_rtfx"], ours["wav_batch_rtfx"])
    for name in ("kvarts onnxruntime float32", "torch eager", "onnxruntime plain export", "onnx-asr float32"):
        assert rows[name]["same_texts"] == 1, name
    assert (tmp_path / "figures.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def exported_tone_reader(folder: Path) -> Path:
    """The folder of a network that reads tones, with the same weights under every precision."""
    network = ToneReader(stride=4).eval()
    graph = onnx_model(network, {}).SerializeToString()
    content = {FLOAT32: graph, INT8: graph, TOKENS: tokens_text().encode()}
    config = {
        "kvarts_model": FORMAT_VERSION,
        "alphabet": ALPHABET,
        "blank_id": len(ALPHABET),
        "features": FEATURE_SETTINGS,
        "stride": network.encoder.stride,
        "files": {
            name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in content.items()
        },
    }
    folder.mkdir()
    for name, data in {**content, CONFIG: json.dumps(config).encode()}.items():
        (folder / name).write_bytes(data)
    return folder


def test_decoders(tmp_path: Path) -> None:
    """Every decoder of Kvarts has its figures, and they are those of what is said."""
    # Heard is the first of two, unless something speaks for the second: the model for «кот», the hot word for «кол».
    said = [(unsure("мой кит", "мой кот"), "мой кот"), (unsure("пол", "кол"), "кол"), (speak("дом"), "дом")]
    commands = [(speak("включи свет"), "включи свет"), (speak("выключи свет"), "включи свет"), (speak("мой"), "мой")]
    for name, sounds in (("said", said), ("commands", commands)):
        (tmp_path / name).mkdir()
        rows: list[dict[str, Any]] = []
        for number, (sound, text) in enumerate(sounds):
            soundfile.write(tmp_path / name / f"{number}.wav", sound, SAMPLE_RATE, subtype="FLOAT")
            duration_s = len(sound) / SAMPLE_RATE
            rows.append({"audio_filepath": f"{number}.wav", "text": text, "duration": duration_s})
        write_manifest(tmp_path / name / "manifest.jsonl", rows)
    lm, hot, grammar = tmp_path / "lm.arpa", tmp_path / "hot.txt", tmp_path / "light.grammar"
    lm.write_text("".join(train([["мой", "кот"], ["дом"], ["пол"]], 2).arpa()), encoding="utf-8")
    hot.write_text("кол", encoding="utf-8")
    grammar.write_text("[on]\nвключи свет\n[off]\nвыключи свет\n", encoding="utf-8")
    arguments = (
        "--model",
        exported_tone_reader(tmp_path / "model"),
        "--manifest",
        tmp_path / "said" / "manifest.jsonl",
    )
    arguments += ("--lm", lm, "--hotwords", hot, "--grammar", grammar, "--beam", "10", "--rounds", "1")
    arguments += ("--commands", tmp_path / "commands" / "manifest.jsonl", "--json", tmp_path / "figures.json")
    table = run("decode.py", *arguments, "--plot", tmp_path / "figures.png")
    figures = json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))
    assert (figures["beam"], figures["utterances"], figures["ratios"]) == (10, 3, {})
    assert figures["audio_s"] == pytest.approx(sum(len(sound) for sound, _ in said) / SAMPLE_RATE)
    systems = figures["systems"]
    errors = {
        "greedy": 2,
        "beam": 2,
        "beam + LM": 1,
        "small beam + LM": 1,
        "closed beam + LM": 1,
        "beam + hot words": 1,
        "beam + LM + hot words": 0,
    }
    assert {name: row["wer"] for name, row in systems.items()} == {
        name: pytest.approx(number / 4) for name, number in errors.items()
    }
    for name, row in systems.items():
        assert name in table
        assert row["rtfx"] == pytest.approx(row["utterances_per_s"] * figures["audio_s"] / 3)
        assert 0 < row["rtfx"] < math.inf
        assert (row["cer"] == 0) == (errors[name] == 0)
        found = row["hotwords"]
        assert (found["spoken"], found["found"], found["false"]) == (1, int("hot" in name), 0)
    found = figures["grammar"]
    assert (found["commands"], found["exact"], found["right_slots"], found["outside"]) == (2, 1, 2, 1)
    assert found["false_accepts"] == 0
    assert found["states"] > 2
    assert 0 < found["added_ms_p50"] <= found["added_ms_p95"] < 1000
    assert f"grammar of {found['states']} states" in table
    assert (tmp_path / "figures.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_starts_on_a_large_manifest(tmp_path: Path, data: Path) -> None:
    manifest = data / "train_opus" / "manifest.jsonl"
    run("start.py", "--manifest", manifest, "--lines", "20000", "--json", tmp_path / "start.json")
    figures = json.loads((tmp_path / "start.json").read_text())
    first, second = figures["first"], figures["second"]
    assert figures["lines"] == 20_000
    assert 0 < second["of_it_manifest_s"] < first["of_it_manifest_s"] < first["first_batch_s"]  # it was kept
    assert 100 < second["peak_rss_mb"] < 2000


def test_depthwise_convolutions() -> None:
    rows = run("depthwise.py", "--batch", "1", "--frames", "9", "--repeats", "1").splitlines()
    assert [row.split()[0] for row in rows[2:]] == ["float32"] * 6 + ["bfloat16"] * 6


def test_the_recipes_for_small_data(tmp_path: Path, data: Path) -> None:
    """Both train, each on its own network, and the picture has both."""
    run("small_data.py", "--data", data, "--plain-steps", "2", "--our-steps", "2", "-o", tmp_path)
    for name in ("plain", "ours"):
        rows = [json.loads(line) for line in (tmp_path / name / "curve.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows if row["metric"] == "val_wer"] == [2]
    assert "PlainEncoder" in (tmp_path / "plain" / ".hydra" / "config.yaml").read_text()
    plain = load_model(tmp_path / "plain" / "checkpoints" / "last.ckpt")
    assert isinstance(plain.encoder, QuartzNet)  # what tests it
    assert (tmp_path / "small_data.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_curves_of_runs_in_one_picture(tmp_path: Path) -> None:
    for name, last in (("one", 0.5), ("other", 0.25)):
        (tmp_path / name).mkdir()
        rows = [{"step": s, "metric": "val_wer", "value": v, "seconds": 60.0 * s} for s, v in ((1, 1.0), (2, last))]
        (tmp_path / name / "curve.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    runs = [f"{name}={tmp_path / name}" for name in ("one", "other")]
    picture = tmp_path / "curves.png"
    run("curves.py", *runs, "-o", picture, "--by", "minutes", "--slower", "other=3.5")
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def open_mix(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    tools = [f"PYTHON={sys.executable}", f"KVARTS={Path(sys.executable).with_name('kvarts')}"]
    command = ["make", "-f", "benchmarks/open_mix.mk", *tools, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_the_mix_leaves_voices_and_texts_out(data: Path, tmp_path: Path) -> None:
    """What needs no package is made for real: texts held out, and each voice on them."""
    audio = read_manifest(data / "train_opus" / "manifest.jsonl")[0].audio_path
    sentences = [f"{'раз ' * number}конец" for number in range(1, 25)]
    commands = [f"{'два ' * number}стоп" for number in range(1, 14)]
    for name, texts in (("sentences", sentences), ("commands", commands)):
        (tmp_path / f"{name}.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    rows = [
        {"audio_filepath": str(audio), "text": text, "duration": 3.0, "speaker": speaker}
        for speaker in ("anna", "irina")
        for text in (*sentences, *commands)
    ]
    write_manifest(tmp_path / "voices.jsonl", rows)
    out = tmp_path / "speech"
    inputs = [f"{name.upper()}={tmp_path / name}.txt" for name in ("sentences", "commands")]
    done = open_mix(f"OUT={out}", f"VOICES={tmp_path / 'voices.jsonl'}", *inputs, out / "left_out" / "made")
    assert done.returncode == 0, done.stderr
    held = {"sentences": [sentences[11], sentences[23]], "commands": [commands[11]]}
    for name, texts in (("sentences", sentences), ("commands", commands)):
        left = (out / f"{name}_left.txt").read_text(encoding="utf-8").splitlines()
        assert left == [text for text in texts if text not in held[name]]
        for speaker in ("anna", "irina"):
            found = read_manifest(out / "left_out" / f"{speaker}_{name}.jsonl")
            assert [utterance.text for utterance in found] == held[name]
            assert {utterance.fields["speaker"] for utterance in found} == {speaker}
    assert (out / "held.txt").read_text(encoding="utf-8").splitlines() == held["sentences"] + held["commands"]
    again = open_mix(f"OUT={out}", f"VOICES={tmp_path / 'voices.jsonl'}", *inputs, out / "left_out" / "made")
    assert "up to date" in again.stdout, again.stdout
