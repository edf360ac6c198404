"""What a user can get wrong with data and checkpoints: named, with the way out, before anything is lost."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from omegaconf import DictConfig, OmegaConf

from kvarts.checkpoint import load_model, read_checkpoint, save_weights
from kvarts.config import compose_config
from kvarts.decoder import ConvDecoder
from kvarts.encoder import QuartzNet
from kvarts.errors import (
    ArchitectureMismatchError,
    AudioError,
    CheckpointError,
    ConfigError,
    KvartsError,
    ManifestError,
    NonFiniteLossError,
    OutputError,
    TrainingDataError,
)
from kvarts.manifest import write_manifest
from kvarts.model import QuartzNetCTC
from kvarts.train import train

ROOT = Path(__file__).resolve().parents[1]
RATE = 16_000

SMALL = [
    "model.encoder.blocks=[{filters:8,repeat:1,kernel:5,stride:4,residual:false},{filters:8,repeat:2,kernel:3}]",
    "model.decoder.in_channels=8",
    "data.batch_size=2",
    "trainer.accelerator=cpu",
    "trainer.max_steps=2",
    "trainer.enable_progress_bar=false",
    "++trainer.enable_model_summary=false",
    "trainer.log_every_n_steps=1",
    "trainer.check_val_every_n_epoch=1",
    "checkpoint.every_n_steps=1",
    "evaluate.enabled=false",
]


def record(path: Path, samples: int = RATE // 2) -> dict[str, Any]:
    """Half a second of noise, and its line in a manifest."""
    noise = 0.1 * np.random.default_rng(0).standard_normal(samples)
    soundfile.write(path, noise.astype(np.float32), RATE)
    return {"audio_filepath": path.name, "text": "да", "duration": samples / RATE}


def add_part(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True)
    write_manifest(folder / "manifest.jsonl", [record(folder / f"{number}.wav") for number in range(count)])
    return folder / "manifest.jsonl"


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data folder that can be trained on: four utterances, and two of validation."""
    add_part(tmp_path / "data" / "train_opus", 4)
    add_part(tmp_path / "data" / "val_opus", 2)
    return tmp_path / "data"


@pytest.fixture(scope="module")
def small() -> DictConfig:
    return compose_config(SMALL)


@pytest.fixture
def run(small: DictConfig, data_dir: Path, tmp_path: Path) -> Callable[..., Path]:
    """Trains in tmp_path/run with some settings changed; gives the folder of its checkpoints."""

    def run(**changes: Any) -> Path:
        config = small.copy()
        for name, value in {"data_dir": str(data_dir), **changes}.items():
            OmegaConf.update(config, name.replace("__", "."), value)
        train(config, tmp_path / "run")
        return tmp_path / "run" / "checkpoints"

    return run


def lines_of(manifest: Path) -> list[str]:
    return manifest.read_text(encoding="utf-8").splitlines()


def insert(manifest: Path, line: str | dict[str, Any], number: int = 2) -> None:
    """Makes this the line of that number."""
    lines = lines_of(manifest)
    lines.insert(number - 1, line if isinstance(line, str) else json.dumps(line, ensure_ascii=False))
    manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")


# ------------------------------------------------------------------------------------------- a line of a manifest


def missing(folder: Path) -> dict[str, Any]:
    return {"audio_filepath": "none.wav", "text": "да", "duration": 0.5}


def zero_length(folder: Path) -> dict[str, Any]:
    (folder / "bad.wav").touch()
    return {"audio_filepath": "bad.wav", "text": "да", "duration": 0.5}


def without_samples(folder: Path) -> dict[str, Any]:
    return record(folder / "bad.wav", samples=0) | {"duration": 0.5}


def truncated(folder: Path) -> dict[str, Any]:
    row = record(folder / "bad.wav")
    (folder / "bad.wav").write_bytes((folder / "bad.wav").read_bytes()[:5000])
    return row


def truncated_opus(folder: Path) -> dict[str, Any]:
    soundfile.write(folder / "bad.opus", np.zeros(RATE, np.float32), RATE, format="OGG", subtype="OPUS")
    (folder / "bad.opus").write_bytes((folder / "bad.opus").read_bytes()[:-20])
    return {"audio_filepath": "bad.opus", "text": "да", "duration": 1.0}


def no_audio(folder: Path) -> dict[str, Any]:
    (folder / "bad.wav").write_text("это не звук\n" * 100, encoding="utf-8")
    return {"audio_filepath": "bad.wav", "text": "да", "duration": 0.5}


def a_folder(folder: Path) -> dict[str, Any]:
    (folder / "bad.wav").mkdir()
    return {"audio_filepath": "bad.wav", "text": "да", "duration": 0.5}


def one_sample(folder: Path) -> dict[str, Any]:
    return record(folder / "bad.wav", samples=1) | {"text": "а"}  # one letter would fit its one frame


def of_text(text: str) -> Callable[[Path], dict[str, Any]]:
    return lambda folder: record(folder / "bad.wav") | {"text": text}


def of_duration(duration_s: float) -> Callable[[Path], dict[str, Any]]:
    return lambda folder: record(folder / "bad.wav") | {"duration": duration_s}


# What makes the line, what is said about it, and what to do.
UNUSABLE = {
    "missing": (missing, "none.wav does not exist", "correct audio_filepath or take the line out"),
    "zero length": (zero_length, "bad.wav is empty (0 bytes)", "copy or download it again"),
    "no samples": (without_samples, "no sound", "record or download it again"),
    "truncated wav": (truncated, "bad.wav is cut short", "copy or download it again"),
    "truncated opus": (truncated_opus, "bad.opus is cut short", "copy or download it again"),
    "not audio": (no_audio, "bad.wav", "correct audio_filepath or take the line out"),
    "a folder": (a_folder, "bad.wav is a folder", "name an audio file"),
    "one sample": (one_sample, "0.0625 ms of sound, less than one analysis window", "take the line out"),
    "too much text": (of_text("слово " * 5), "0.5 s give 13 encoded frames", "check that text and audio belong"),
    "repeated letters": (of_text("нн" * 6), "the text needs 23", "check that text and audio belong together"),
    "latin": (of_text("дa"), "outside the alphabet: a (LATIN SMALL LETTER A)", "spell it in Russian letters"),
    "digits": (of_text("в 7"), "outside the alphabet: 7 (DIGIT SEVEN)", "write numbers as words"),
    "empty text": (of_text(""), "text is empty", "write what is said or take the line out"),
    "only stops": (of_text("…, !"), "text is empty", "write what is said or take the line out"),
    "too short": (of_duration(0.3), "duration is 0.3 s but", "correct the duration or the file"),
    "too long": (of_duration(1.5), "duration is 1.5 s but", "correct the duration or the file"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_an_utterance_that_cannot_be_trained_on_is_named_with_its_line(
    name: str, data_dir: Path, run: Callable[..., Path], tmp_path: Path
) -> None:
    make, what, remedy = UNUSABLE[name]
    manifest = data_dir / "train_opus" / "manifest.jsonl"
    insert(manifest, make(manifest.parent))
    with pytest.raises(TrainingDataError) as caught:
        run()
    offender, advice = str(caught.value).splitlines()
    assert offender.startswith(f"{manifest}:2: ")
    assert what in offender
    assert remedy in offender
    assert advice == "mend these lines, or leave them out with data.on_bad=skip"
    assert not (tmp_path / "run").exists()


BROKEN = {
    "broken JSON": ('{"audio_filepath": "0.wav", "text": "да", "dura', "broken JSON"),
    "no object": ("[1, 2]", "a list, not an object"),
    "no duration": ('{"audio_filepath": "0.wav", "text": "да"}', '"duration" is missing; add it as a number'),
    "duration a string": ('{"audio_filepath": "0.wav", "text": "да", "duration": "0.5"}', "make it a number"),
    "duration zero": ('{"audio_filepath": "0.wav", "text": "да", "duration": 0}', '"duration" is 0'),
    "duration negative": ('{"audio_filepath": "0.wav", "text": "да", "duration": -1}', '"duration" is -1'),
    "duration NaN": ('{"audio_filepath": "0.wav", "text": "да", "duration": NaN}', "NaN is not JSON"),
    "text a number": ('{"audio_filepath": "0.wav", "text": 5, "duration": 0.5}', "make it a string"),
    "path null": ('{"audio_filepath": null, "text": "да", "duration": 0.5}', '"audio_filepath" is null'),
}


@pytest.mark.parametrize("part", ["train_opus", "val_opus"])
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_line_is_named_and_not_even_skipped(
    name: str, part: str, data_dir: Path, run: Callable[..., Path], tmp_path: Path
) -> None:
    line, what = BROKEN[name]
    manifest = data_dir / part / "manifest.jsonl"
    insert(manifest, line)
    with pytest.raises(ManifestError) as caught:
        run(data__on_bad="skip")
    assert str(caught.value).startswith(f"{manifest}:2: ")
    assert what in str(caught.value)
    assert str(caught.value).isprintable()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("part", ["train_opus", "val_opus"])
def test_manifests_that_are_not_there(part: str, data_dir: Path, run: Callable[..., Path]) -> None:
    manifest = data_dir / part / "manifest.jsonl"
    manifest.write_text("\n\n")
    with pytest.raises(ManifestError, match="the manifest is empty; it needs one JSON object a line") as caught:
        run()
    assert str(caught.value).startswith(f"{manifest}: ")
    manifest.unlink()
    key = {"train_opus": "data__train_manifest", "val_opus": "data__val_manifest"}[part]
    with pytest.raises(ManifestError, match="no such manifest; check the path"):
        run(**{key: str(manifest)})
    with pytest.raises(ManifestError, match="is a folder; give the manifest file inside it"):
        run(**{key: str(manifest.parent)})


def test_all_offenders_are_listed_at_once_up_to_ten(data_dir: Path, run: Callable[..., Path]) -> None:
    manifest = data_dir / "train_opus" / "manifest.jsonl"
    for number in (1, 3, 6):
        insert(manifest, missing(manifest.parent), number)
    insert(data_dir / "val_opus" / "manifest.jsonl", zero_length(data_dir / "val_opus"))
    with pytest.raises(TrainingDataError) as caught:
        run()
    first, *offenders, _advice = str(caught.value).splitlines()
    assert first == "training utterances that cannot be used (3):"
    assert [line.split(": ")[0] for line in offenders] == [f"{manifest}:{number}" for number in (1, 3, 6)]
    for _ in range(20):
        insert(manifest, missing(manifest.parent), 1)
    with pytest.raises(TrainingDataError) as caught:
        run()
    assert "… and 13 more" in str(caught.value)
    assert str(caught.value).count("none.wav") == 10


def test_validation_and_test_data_are_checked_before_the_first_step(data_dir: Path, run: Callable[..., Path]) -> None:
    validation = data_dir / "val_opus" / "manifest.jsonl"
    insert(validation, zero_length(validation.parent))
    with pytest.raises(TrainingDataError, match=r"val_opus/manifest\.jsonl:2: "):
        run()
    test = add_part(data_dir / "test_opus" / "crowd", 2)
    insert(test, missing(test.parent))
    with pytest.raises(TrainingDataError, match=r"crowd/manifest\.jsonl:2: "):
        run(data__on_bad="skip")


def test_test_manifests_are_read_before_the_first_step_whatever_is_checked(
    data_dir: Path, run: Callable[..., Path]
) -> None:
    test = add_part(data_dir / "test_opus" / "farfield", 2)
    insert(test, "{")
    with pytest.raises(ManifestError, match=r"farfield/manifest\.jsonl:2: broken JSON"):
        run(data__check_audio=False)


def test_texts_of_validation_may_hold_what_cannot_be_learnt(data_dir: Path, run: Callable[..., Path]) -> None:
    for text in ("В 7 часов, ok?", ""):
        insert(data_dir / "val_opus" / "manifest.jsonl", {"audio_filepath": "0.wav", "text": text, "duration": 0.5})
    assert (run() / "last.ckpt").is_file()


def test_skipping_trains_on_the_rest_and_says_how_much_that_is(
    data_dir: Path, run: Callable[..., Path], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = data_dir / "train_opus" / "manifest.jsonl"
    insert(manifest, missing(manifest.parent), 1)
    insert(manifest, of_text("да 2")(manifest.parent), 3)  # 0.5 s
    insert(manifest, of_duration(2.0)(manifest.parent) | {"text": "yes"}, 5)  # wrong twice, and counted once
    seen: list[str] = []
    learn = QuartzNetCTC.training_step

    def watched(self: QuartzNetCTC, batch: Any, batch_idx: int) -> torch.Tensor:
        seen.extend(utterance.where for utterance in batch.utterances)
        return learn(self, batch, batch_idx)

    monkeypatch.setattr(QuartzNetCTC, "training_step", watched)
    with caplog.at_level(logging.INFO, "lightning"):
        run(data__on_bad="skip")
    report = next(message for message in caplog.messages if message.startswith("skipped"))
    assert report.splitlines()[0] == "skipped 3 of 7 training utterances, 3.0 s"
    assert all(f"{manifest}:{number}: " in report for number in (1, 3, 5))
    assert any(message.startswith("training on 4 utterances, ") for message in caplog.messages)
    assert sorted(seen) == [f"{manifest}:{number}" for number in (2, 4, 6, 7)]


def test_nothing_left_to_train_on(data_dir: Path, run: Callable[..., Path]) -> None:
    manifest = data_dir / "train_opus" / "manifest.jsonl"
    manifest.write_text("")
    insert(manifest, missing(manifest.parent), 1)
    with pytest.raises(TrainingDataError, match="no training utterance is left"):
        run(data__on_bad="skip")


@pytest.mark.parametrize("workers", [0, 1])
def test_damage_behind_a_good_header_is_named_when_it_is_met(
    workers: int, data_dir: Path, run: Callable[..., Path]
) -> None:
    manifest = data_dir / "train_opus" / "manifest.jsonl"
    bad = manifest.parent / "bad.flac"
    row = record(bad)
    bad.write_bytes(bad.read_bytes()[:-4000])
    insert(manifest, row)
    with pytest.raises(AudioError) as caught:
        run(data__num_workers=workers, trainer__max_steps=5)
    assert str(caught.value).startswith(f"{manifest}:2: {bad} is ")
    assert str(caught.value).isprintable(), "a worker's traceback"


def test_a_missing_file_is_named_also_without_the_check(data_dir: Path, run: Callable[..., Path]) -> None:
    manifest = data_dir / "train_opus" / "manifest.jsonl"
    insert(manifest, missing(manifest.parent))
    with pytest.raises(AudioError) as caught:
        run(data__check_audio=False, trainer__max_steps=5)
    assert str(caught.value).startswith(f"{manifest}:2: {manifest.parent / 'none.wav'} does not exist")


def test_the_program_prints_the_list_and_ends_with_2(data_dir: Path, tmp_path: Path) -> None:
    manifest = data_dir / "train_opus" / "manifest.jsonl"
    insert(manifest, missing(manifest.parent), 1)
    insert(manifest, of_text("да 2")(manifest.parent), 3)
    command = [sys.executable, ROOT / "main.py", *SMALL, f"data_dir={data_dir}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 2
    assert "Traceback" not in done.stdout + done.stderr
    printed = done.stderr[done.stderr.index("kvarts: error: ") :].splitlines()
    assert printed[0] == "kvarts: error: training utterances that cannot be used (2):"
    assert printed[1].startswith(f"{manifest}:1: ")
    assert printed[2].startswith(f"{manifest}:3: ")
    assert printed[3:] == ["mend these lines, or leave them out with data.on_bad=skip"]
    assert not list(tmp_path.rglob("*.ckpt"))


# ---------------------------------------------------------------------------------------------- which data it is


def messages(caplog: pytest.LogCaptureFixture, start: str) -> list[str]:
    return [message for message in caplog.messages if message.startswith(start)]


def test_a_folder_without_a_part_is_told_what_to_add(data_dir: Path, run: Callable[..., Path]) -> None:
    shutil.rmtree(data_dir / "val_opus")
    shutil.rmtree(data_dir / "test_opus" / "farfield", ignore_errors=True)
    with pytest.raises(ConfigError, match=r"nothing to validate on.*data\.val_manifest="):
        run()
    shutil.rmtree(data_dir / "train_opus")
    with pytest.raises(ConfigError, match=r"train_opus/manifest\.jsonl: no such manifest; .*download_data\.sh"):
        run()


def test_the_log_says_which_data_and_which_validation(
    data_dir: Path, run: Callable[..., Path], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The runs end at the first check that fails, which is after these lines.
    caplog.set_level(logging.INFO, "lightning")
    farfield = add_part(data_dir / "test_opus" / "farfield", 2)
    (data_dir / "train_opus" / "manifest.jsonl").write_text("")

    def log_of(**changes: Any) -> list[str]:
        caplog.clear()
        with pytest.raises(ManifestError):
            run(**changes)
        return messages(caplog, "data: ") + messages(caplog, "validation: ")

    held_out = data_dir / "val_opus" / "manifest.jsonl"
    assert log_of() == [f"data: {data_dir}", f"validation: {held_out} (the data folder has a validation set)"]
    assert log_of(data__val_manifest=str(farfield))[1] == f"validation: {farfield} (data.val_manifest)"
    held_out.unlink()
    course = f"validation: {farfield} (no val_opus there: the far-field test set, as in the course)"
    assert log_of()[1] == course

    monkeypatch.chdir(data_dir.parent)
    assert log_of(data_dir=None)[0] == "data: data"
    data_dir.rename(data_dir.with_name("sample"))
    assert log_of(data_dir=None)[0] == "data: sample (there is no ./data)"


def test_without_a_data_folder_the_sample_is_used(
    run: Callable[..., Path], caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "lightning")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(ManifestError):  # the end of this run, but not before it has said what data it takes
        run(data_dir=None, data__train_manifest=str(tmp_path / "none.jsonl"))
    assert messages(caplog, "data: ") == [f"data: {ROOT / 'sample'} (there is no ./data)"]


# --------------------------------------------------------------------------------------- weights and earlier runs


def test_initial_weights_of_another_network_are_refused_by_name(run: Callable[..., Path], tmp_path: Path) -> None:
    other = QuartzNetCTC(QuartzNet([{"filters": 8, "repeat": 1, "kernel": 5}]), ConvDecoder(8))
    save_weights(other, tmp_path / "other.ckpt")
    with pytest.raises(
        ArchitectureMismatchError, match=r"other.ckpt: weights of another network: encoder.layers.1.conv"
    ):
        run(model__init_weights=str(tmp_path / "other.ckpt"))
    assert not (tmp_path / "run").exists()


def test_what_a_run_saves_opens_in_the_safe_mode_of_pytorch(run: Callable[..., Path]) -> None:
    for name in ("last.ckpt", "best.ckpt"):
        saved = torch.load(run() / name, weights_only=True)
        assert {"state_dict", "epoch", "global_step", "optimizer_states", "lr_schedulers"} <= set(saved)
        assert all(name.startswith(("encoder.layers.", "decoder.layers.0.")) for name in saved["state_dict"])


def test_a_run_is_not_resumed_with_something_else(run: Callable[..., Path], data_dir: Path, tmp_path: Path) -> None:
    last = str(run() / "last.ckpt")
    before = Path(last).read_bytes()
    more = {"resume": last, "trainer__max_steps": 4}

    def refused(kind: type[KvartsError], words: str, **changes: Any) -> None:
        with pytest.raises(kind) as caught:
            run(**{**more, **changes})
        assert words in str(caught.value)
        assert str(caught.value).isprintable()
        assert Path(last).read_bytes() == before

    refused(CheckpointError, "none.ckpt: no such checkpoint; check the path", resume=str(tmp_path / "none.ckpt"))
    weights = tmp_path / "weights.ckpt"
    save_weights(load_model(Path(last)), weights)
    hint = f"weights.ckpt: holds weights and no training run of ours, so it cannot be resumed; start from its weights \
with model.init_weights={weights}"
    refused(CheckpointError, hint, resume=str(weights))
    course = {"state_dict": load_model(Path(last)).state_dict(), "epoch": 4, "global_step": 9794}
    course |= {"pytorch-lightning_version": "1.5.10", "callbacks": {}, "optimizer_states": [], "lr_schedulers": []}
    torch.save(course, weights)
    refused(CheckpointError, hint, resume=str(weights))
    (tmp_path / "broken.ckpt").write_bytes(before[:5000])
    refused(CheckpointError, "broken.ckpt: damaged", resume=str(tmp_path / "broken.ckpt"))

    refused(ConfigError, "data.batch_size was 2, is 3", data__batch_size=3)
    refused(ConfigError, "seed was 42, is 43", seed=43)
    refused(ConfigError, "data.shuffle was True, is False", data__shuffle=False)
    other_optimizer = OmegaConf.create({"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1})
    refused(ConfigError, "was optimised by Adam, this one is by SGD", model__optimizer=other_optimizer)
    blocks = [{"filters": 8, "repeat": 1, "kernel": 7, "stride": 4, "residual": False}]
    refused(ArchitectureMismatchError, "weights of another network", model__encoder__blocks=blocks)
    manifest = data_dir / "train_opus" / "manifest.jsonl"
    rows = [json.loads(line) for line in lines_of(manifest)]
    write_manifest(manifest, [rows[0] | {"text": "нет"}, *rows[1:]])
    refused(ConfigError, "digest of the training utterances was ")
    write_manifest(manifest, rows[:3])
    refused(ConfigError, "number of training utterances was 4, is 3")

    write_manifest(manifest, rows)
    assert read_checkpoint(run(**more) / "last.ckpt")["global_step"] == 4


# --------------------------------------------------------------------------------- numbers that are not, full disks


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_utterances(
    run: Callable[..., Path], data_dir: Path, tmp_path: Path
) -> None:
    manifest = data_dir / "train_opus" / "manifest.jsonl"
    with pytest.raises(NonFiniteLossError) as caught:
        run(model__optimizer__lr=1e30, trainer__max_steps=9)
    assert str(caught.value).startswith("step 1: the loss is not finite for ")
    named = [number for number in range(1, 5) if f"{manifest}:{number}" in str(caught.value)]
    assert 1 <= len(named) <= 2
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert read_checkpoint(last)["global_step"] == 1
    assert all(bool(torch.isfinite(tensor).all()) for tensor in load_model(last).state_dict().values())


def test_a_gradient_that_is_not_finite_stops_the_run_before_it_is_applied(
    run: Callable[..., Path], data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(self: QuartzNetCTC) -> None:
        if self.global_step == 1:
            self.decoder.layers[0].bias.grad[3] = float("nan")

    monkeypatch.setattr(QuartzNetCTC, "on_after_backward", spoil)
    with pytest.raises(NonFiniteLossError) as caught:
        run(trainer__max_steps=9)
    assert str(caught.value).startswith("step 1: the gradient is not finite for ")
    assert f"{data_dir / 'train_opus' / 'manifest.jsonl'}:" in str(caught.value)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert read_checkpoint(last)["global_step"] == 1
    load_model(last)


def test_weights_that_are_not_finite_never_replace_a_checkpoint(
    run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run()
    before = {path.name: path.read_bytes() for path in (tmp_path / "run" / "checkpoints").iterdir()}

    def spoil(self: QuartzNetCTC, *_: Any) -> None:
        self.encoder.layers[0].conv[2].running_var[0] = float("inf")

    monkeypatch.setattr(QuartzNetCTC, "on_validation_epoch_start", spoil)
    with pytest.raises(NonFiniteLossError, match=r"conv\.2\.running_var is not finite, so nothing was saved"):
        run(checkpoint__every_n_steps=100)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run" / "checkpoints").iterdir()} == before


def test_a_disk_that_fills_up_while_training_leaves_the_last_checkpoint(
    run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = 0
    sync = os.fsync

    def fills_up(descriptor: int) -> None:
        nonlocal written
        written += 1
        if written > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fills_up)
    with pytest.raises(OutputError, match=r"No space left.*; the file there before is unchanged; free space"):
        run(trainer__max_steps=9, trainer__check_val_every_n_epoch=9)
    checkpoints = tmp_path / "run" / "checkpoints"
    assert [path.name for path in checkpoints.iterdir()] == ["last.ckpt"]
    assert read_checkpoint(checkpoints / "last.ckpt")["global_step"] == 2
    load_model(checkpoints / "last.ckpt")
