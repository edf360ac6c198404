"""Features kept on disk: the same ones for the same audio, whoever writes, kills, spoils or fills the folder."""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import DataLoader

import kvarts.datamodule
import kvarts.dataset
import kvarts.feature_cache
from disk import no_file_beyond
from kvarts.audio import read_audio
from kvarts.datamodule import SpeechData
from kvarts.dataset import SpeechDataset, collate
from kvarts.errors import AudioError, ConfigError
from kvarts.feature_cache import FeatureCache
from kvarts.features import log_mel
from kvarts.files import cache_dir
from kvarts.manifest import Utterance, read_manifest
from kvarts.sound import Gain, Sound
from kvarts.specaugment import SpecAugment

SAMPLE = Path(__file__).resolve().parents[1] / "sample"
MB = 2**20
BLOCK = 4096


def noise(path: Path, seed: int, samples: int = 8000) -> Path:
    """A wav file that differs from those of other seeds, and is as large."""
    wave = 0.1 * np.random.default_rng(seed).standard_normal(samples)
    soundfile.write(path, wave.astype(np.float32), 16_000, subtype="FLOAT")
    return path


@pytest.fixture
def audio(tmp_path: Path) -> list[Path]:
    """Half a second each: entries of 13.1 kB, four disk blocks."""
    (tmp_path / "audio").mkdir()
    return [noise(tmp_path / "audio" / f"{number}.wav", number) for number in range(8)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


class Computing:
    """What features are computed with; counts."""

    def __init__(self) -> None:
        self.paths: list[Path] = []

    def __call__(self, path: Path) -> np.ndarray[Any, np.dtype[np.float32]]:
        self.paths.append(path)
        return log_mel(read_audio(path))


@pytest.fixture
def compute() -> Computing:
    return Computing()


def expected(path: Path) -> np.ndarray[Any, np.dtype[np.float32]]:
    return log_mel(read_audio(path))


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.mel"))


def size_on_disk(folder: Path) -> int:
    """Of everything stored, finished or not, in whole blocks."""
    return sum(-(-path.stat().st_size // BLOCK) * BLOCK for path in folder.glob("*/*"))


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.fixture
def caplog_of_lightning(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("lightning"), "propagate", True)
    caplog.set_level(logging.INFO, logger="lightning")
    return caplog


# ------------------------------------------------------------------------------------------- the same, decoded once


def utterances_of_sample(count: int = 6) -> list[Utterance]:
    return read_manifest(SAMPLE / "train_opus" / "manifest.jsonl")[:count]


def test_features_are_the_same_without_from_a_cold_and_from_a_warm_cache(folder: Path) -> None:
    utterances = utterances_of_sample()
    for augmentation in (None, SpecAugment()):
        plain = SpeechDataset(utterances, augmentation, seed=1)
        cold = SpeechDataset(utterances, augmentation, seed=1, cache=FeatureCache(folder, 64 * MB))
        warm = SpeechDataset(utterances, augmentation, seed=1, cache=FeatureCache(folder, 64 * MB))
        for draw in [(epoch, index) for epoch in range(2) for index in range(6)]:
            wanted = plain[draw].features
            for dataset in (cold, warm):
                found = dataset[draw].features
                assert (found.dtype, found.shape) == (torch.float32, wanted.shape)
                assert torch.equal(found.view(torch.int32), wanted.view(torch.int32))


def test_a_file_is_decoded_once_for_epochs_data_sets_and_workers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    utterances = utterances_of_sample()
    decoded: list[Path] = []

    def counting(path: Path) -> np.ndarray[Any, np.dtype[np.float32]]:
        decoded.append(path)
        return read_audio(path)

    monkeypatch.setattr(kvarts.dataset, "read_audio", counting)
    draws = [(epoch, index) for epoch in range(2) for index in range(6)]
    for _ in range(2):
        dataset = SpeechDataset(utterances, SpecAugment(), cache=FeatureCache(folder, 64 * MB))
        for draw in draws:
            dataset[draw]
    assert sorted(decoded) == sorted(utterance.audio_path for utterance in utterances)

    def refusing(path: Path) -> np.ndarray[Any, np.dtype[np.float32]]:
        raise AssertionError(f"{path} is decoded again")

    monkeypatch.setattr(kvarts.dataset, "read_audio", refusing)  # forked workers take this with them
    dataset = SpeechDataset(utterances, cache=FeatureCache(folder, 64 * MB))
    loader = DataLoader(
        dataset, batch_sampler=[draws[:6], draws[6:]], collate_fn=collate, num_workers=2, multiprocessing_context="fork"
    )
    assert [len(batch.utterances) for batch in loader] == [6, 6]


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_fill_what_a_later_run_reads(context: str, folder: Path) -> None:
    utterances = utterances_of_sample(4)
    dataset = SpeechDataset(utterances, cache=FeatureCache(folder, 64 * MB))
    loader = DataLoader(
        dataset,
        batch_sampler=[[(0, 0), (0, 1)], [(0, 2), (0, 3)]],
        collate_fn=collate,
        num_workers=2,
        multiprocessing_context=context,
    )
    assert len(list(loader)) == 2
    assert len(entries(folder)) == 4


def test_every_epoch_is_augmented_anew(folder: Path) -> None:
    dataset = SpeechDataset(utterances_of_sample(2), SpecAugment(), cache=FeatureCache(folder, 64 * MB))
    epochs = [dataset[epoch, 0].features for epoch in range(4)]
    assert not any(torch.equal(one, other) for one, other in itertools.pairwise(epochs))


def test_whoever_writes_into_features_does_not_reach_the_cache(audio: list[Path], folder: Path) -> None:
    utterance = Utterance(audio[0], "да", 0.5, "x", Path("m.jsonl"), 1, {})
    dataset = SpeechDataset([utterance], cache=FeatureCache(folder, MB))
    before = [dataset[0, 0].features.clone() for _ in range(2)]
    stored = entries(folder)[0].read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of arrays that may not be written to
        dataset[0, 0].features.fill_(7)
    assert torch.equal(dataset[0, 0].features, before[0])
    assert torch.equal(before[1], before[0])
    assert entries(folder)[0].read_bytes() == stored


def test_features_outlive_their_entry(audio: list[Path], folder: Path, compute: Computing) -> None:
    FeatureCache(folder, MB).get(audio[0], compute)
    features = FeatureCache(folder, MB).get(audio[0], compute)
    shutil.rmtree(folder)
    assert np.array_equal(features, expected(audio[0]))
    assert len(compute.paths) == 1


# -------------------------------------------------------------------------------------------- keyed by what matters


def in_place(path: Path, content: bytes) -> None:
    with path.open("r+b") as file:
        file.write(content)


def by_another_file(path: Path, content: bytes) -> None:
    other = path.with_suffix(".new")
    other.write_bytes(content)
    other.replace(path)


@pytest.mark.parametrize("replace", [in_place, by_another_file])
def test_another_file_under_the_same_path_has_features_of_its_own(
    replace: Callable[[Path, bytes], None], audio: list[Path], folder: Path, compute: Computing
) -> None:
    cache = FeatureCache(folder, MB)
    path = audio[0]
    cache.get(path, compute)
    assert path.stat().st_size == audio[1].stat().st_size
    before = path.stat()
    replace(path, audio[1].read_bytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    for each in (cache, FeatureCache(folder, MB)):
        assert np.array_equal(each.get(path, compute), expected(audio[1]))
    assert len(compute.paths) == 2


def test_a_file_that_was_just_written_is_not_taken_for_an_untouched_one(
    audio: list[Path], folder: Path, compute: Computing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written to twice within a tick of the file system's clock, which this file system's stands still for."""
    cache = FeatureCache(folder, MB)
    path = audio[0]
    cache.get(path, compute)
    frozen = path.stat()
    in_place(path, audio[1].read_bytes())
    real_stat = Path.stat
    monkeypatch.setattr(Path, "stat", lambda self, **more: frozen if self == path else real_stat(self, **more))
    assert np.array_equal(cache.get(path, compute), expected(audio[1]))


def test_a_file_replaced_while_it_is_decoded_is_not_stored(audio: list[Path], folder: Path) -> None:
    cache = FeatureCache(folder, MB)
    path, first = audio[0], audio[0].read_bytes()

    def slow(path: Path) -> np.ndarray[Any, np.dtype[np.float32]]:
        in_place(path, audio[1].read_bytes())
        return log_mel(read_audio(path))

    cache.get(path, slow)
    in_place(path, first)
    assert np.array_equal(cache.get(path, expected), expected(path))


def test_the_same_sound_elsewhere_is_the_same_entry(
    audio: list[Path], folder: Path, compute: Computing, tmp_path: Path
) -> None:
    FeatureCache(folder, MB).get(audio[0], compute)
    copy = shutil.copy(audio[0], tmp_path / "moved.flac")
    assert np.array_equal(FeatureCache(folder, MB).get(Path(copy), compute), expected(audio[0]))
    assert len(compute.paths) == 1


@pytest.mark.parametrize("change", ["setting", "version", "library"])
def test_other_settings_are_other_entries(
    change: str, audio: list[Path], folder: Path, compute: Computing, monkeypatch: pytest.MonkeyPatch
) -> None:
    FeatureCache(folder, MB).get(audio[0], compute)
    if change == "setting":
        monkeypatch.setitem(kvarts.feature_cache.FEATURE_SETTINGS, "f_min", 20.0)
    elif change == "version":
        monkeypatch.setattr(kvarts.feature_cache, "CACHE_VERSION", 2)
    else:
        monkeypatch.setattr(soundfile, "__libsndfile_version__", "9.9.9")
    FeatureCache(folder, MB).get(audio[0], compute)
    assert len(compute.paths) == len(entries(folder)) == 2
    monkeypatch.undo()
    FeatureCache(folder, MB).get(audio[0], compute)
    assert len(compute.paths) == 2


def test_a_file_is_read_once_to_name_its_entry(
    audio: list[Path], folder: Path, compute: Computing, monkeypatch: pytest.MonkeyPatch
) -> None:
    FeatureCache(folder, MB).get(audio[0], compute)
    cache = FeatureCache(folder, MB)
    monkeypatch.setattr(kvarts.feature_cache, "_CLOCK_TICK_NS", -1)  # as if it had lain there for long
    hashed: list[Path] = []
    real = FeatureCache._hashed
    monkeypatch.setattr(FeatureCache, "_hashed", lambda self, path: (hashed.append(path), real(self, path))[1])
    for _ in range(3):
        cache.get(audio[0], compute)
    assert hashed == [audio[0]]


def test_a_missing_file_is_missing_whatever_is_stored(audio: list[Path], folder: Path, tmp_path: Path) -> None:
    utterance = Utterance(audio[0], "да", 0.5, "x", Path("m.jsonl"), 1, {})
    dataset = SpeechDataset([utterance], cache=FeatureCache(folder, MB))
    dataset[0, 0]
    audio[0].unlink()
    with pytest.raises(AudioError, match=r"^m.jsonl:1: .* does not exist"):
        dataset[1, 0]
    os.mkfifo(audio[0])  # opening one would wait for a writer
    with pytest.raises(AudioError, match="is not a regular file"):
        dataset[1, 0]


# ------------------------------------------------------------------------------------------ spoilt, killed, in a hurry


def spoilt_entries() -> dict[str, Callable[[bytes], bytes]]:
    def flip(position: int) -> Callable[[bytes], bytes]:
        def flipped(content: bytes) -> bytes:
            changed = bytearray(content)
            changed[position] ^= 1
            return bytes(changed)

        return flipped

    return {
        "empty": lambda content: b"",
        "part of a header": lambda content: content[:10],
        "header alone": lambda content: content[:64],
        "cut": lambda content: content[: len(content) // 2],
        "a byte short": lambda content: content[:-1],
        "a frame short": lambda content: content[:-256],
        "a byte too many": lambda content: content + b"\0",
        "zeros, as after a power cut": lambda content: bytes(len(content)),
        "magic": flip(0),
        "checksum": flip(8),
        "frames": flip(12),
        "first value": flip(64),
        "last value": flip(-1),
        "something else": lambda content: b"text\n" * 100,
    }


@pytest.mark.parametrize("how", spoilt_entries())
def test_a_spoilt_entry_is_computed_again_and_replaced(
    how: str, audio: list[Path], folder: Path, compute: Computing
) -> None:
    cache = FeatureCache(folder, MB)
    cache.get(audio[0], compute)
    (entry,) = entries(folder)
    good = entry.read_bytes()
    entry.write_bytes(spoilt_entries()[how](good))
    assert np.array_equal(cache.get(audio[0], compute), expected(audio[0]))
    assert len(compute.paths) == 2
    assert entry.read_bytes() == good
    assert np.array_equal(cache.get(audio[0], compute), expected(audio[0]))
    assert len(compute.paths) == 2


KILLED = """
import os, signal, sys
from pathlib import Path
from kvarts.audio import read_audio
from kvarts.feature_cache import FeatureCache
from kvarts.features import log_mel
Path.replace = lambda self, target: os.kill(os.getpid(), signal.SIGKILL)
FeatureCache(Path(sys.argv[1]), 2**20).get(Path(sys.argv[2]), lambda path: log_mel(read_audio(path)))
"""


def test_a_killed_writer_leaves_nothing_that_is_read_or_stays(
    audio: list[Path], folder: Path, compute: Computing, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, folder, audio[0]], check=False)
    assert killed.returncode < 0
    (left,) = folder.glob("*/*")
    assert left.suffix == ".tmp"
    bound = 4 * BLOCK * 8
    cache = FeatureCache(folder, bound)
    for path in audio[:7]:
        assert np.array_equal(cache.get(path, compute), expected(path))
    assert len(entries(folder)) == 7
    assert size_on_disk(folder) == bound, "what is left counts"
    os.utime(left, (time.time() - 2 * 86400,) * 2)
    cache.get(audio[7], compute)
    assert len(entries(folder)) == 8
    assert not left.exists()


def fill(folder: Path, audio: list[Path], bound: int, go: Any, wrong: Any) -> None:
    cache = FeatureCache(folder, bound)
    go.wait()
    for path in audio:
        if not np.array_equal(cache.get(path, expected), expected(path)):
            wrong.set()


@pytest.mark.parametrize("room_for", [4, 100])
def test_several_processes_fill_a_cache_at_once(room_for: int, tmp_path: Path, folder: Path) -> None:
    audio = [noise(tmp_path / f"{number}.wav", number, 1600) for number in range(40)]  # of a block each
    bound = BLOCK * room_for
    context = multiprocessing.get_context("fork")
    go, wrong = context.Event(), context.Event()
    orders = [audio, audio, audio[::-1], audio[20:] + audio[:20]]
    writers = [context.Process(target=fill, args=(folder, order, bound, go, wrong)) for order in orders]
    for writer in writers:
        writer.start()
    go.set()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    assert not wrong.is_set()
    assert len(entries(folder)) == min(room_for, 40)
    assert sorted(folder.glob("*/*")) == entries(folder), "temporary files are left"
    assert int((folder / "stored_bytes").read_text()) == size_on_disk(folder) <= bound


# ---------------------------------------------------------------------------------------------------------- bounded


def test_a_full_cache_keeps_what_it_has(
    audio: list[Path], folder: Path, compute: Computing, caplog_of_lightning: pytest.LogCaptureFixture
) -> None:
    bound = 4 * BLOCK * 3 + BLOCK
    cache = FeatureCache(folder, bound)
    for _ in range(3):
        for path in audio:
            assert np.array_equal(cache.get(path, compute), expected(path))
            assert size_on_disk(folder) <= bound
    assert len(compute.paths) == 3 + 3 * 5, "three are stored, five decoded in every epoch"
    (message,) = warned(caplog_of_lightning)
    assert str(folder) in message
    assert "data.cache_mb=" in message


def test_what_was_not_used_for_a_day_gives_way_oldest_first(
    audio: list[Path], folder: Path, compute: Computing
) -> None:
    bound = 4 * BLOCK * 6
    cache = FeatureCache(folder, bound)
    stored = []
    for path in audio[:6]:
        cache.get(path, compute)
        stored.append(next(entry for entry in entries(folder) if entry not in stored))
    alien = folder / "00" / "thesis.txt"
    alien.parent.mkdir(exist_ok=True)
    alien.write_bytes(bytes(200_000))
    for number in (1, 2, 3, 4):
        os.utime(stored[number], (time.time() - (2 + number) * 86400,) * 2)
    os.utime(alien, (0, 0))
    cache.get(audio[4], compute)  # the oldest of all, but used now
    assert len(compute.paths) == 6
    cache.get(audio[6], compute)
    left = set(entries(folder))
    assert {stored[0], stored[4], stored[5]} < left
    assert stored[3] not in left
    assert stored[1] in left, "more was removed than needed"
    assert len(left) >= 5
    assert alien.exists()
    assert sum(path.stat().st_size for path in left) <= bound


def test_a_lost_or_wrong_count_is_made_anew(audio: list[Path], folder: Path, compute: Computing) -> None:
    bound = 4 * BLOCK * 4
    for content in (b"", b"half a numb", b"%020d" % 10**12):
        shutil.rmtree(folder, ignore_errors=True)
        FeatureCache(folder, bound).get(audio[0], compute)
        (folder / "stored_bytes").write_bytes(content)
        FeatureCache(folder, bound).get(audio[1], compute)
        assert int((folder / "stored_bytes").read_text()) == size_on_disk(folder) == 8 * BLOCK


# ------------------------------------------------------------------------------------------ folders that do not serve


def assert_goes_on_and_says_so_once(
    cache: FeatureCache, audio: list[Path], compute: Computing, caplog: pytest.LogCaptureFixture, words: str
) -> None:
    for _ in range(2):
        for path in audio:
            assert np.array_equal(cache.get(path, compute), expected(path))
    (message,) = warned(caplog)
    assert words in message
    assert str(cache.folder) in message
    assert "data.cache_dir=" in message


def test_a_full_disk_stops_storing_not_training(
    audio: list[Path], folder: Path, compute: Computing, caplog_of_lightning: pytest.LogCaptureFixture
) -> None:
    cache = FeatureCache(folder, MB)
    with no_file_beyond(5000):
        assert_goes_on_and_says_so_once(cache, audio, compute, caplog_of_lightning, "File too large")
    assert list(folder.glob("*/*")) == []


def test_the_last_gigabyte_is_left_to_checkpoints(
    audio: list[Path],
    folder: Path,
    compute: Computing,
    monkeypatch: pytest.MonkeyPatch,
    caplog_of_lightning: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**30 + 100))
    words = "less than 1 GiB of the disk is free"
    assert_goes_on_and_says_so_once(FeatureCache(folder, MB), audio, compute, caplog_of_lightning, words)
    assert list(folder.glob("*/*")) == []


def test_a_folder_that_cannot_be_made(
    audio: list[Path], tmp_path: Path, compute: Computing, caplog_of_lightning: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("a file", encoding="utf-8")
    cache = FeatureCache(tmp_path / "file" / "cache", MB)
    assert_goes_on_and_says_so_once(cache, audio, compute, caplog_of_lightning, "Not a directory")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_only_be_read_is_read(
    audio: list[Path], folder: Path, compute: Computing, caplog_of_lightning: pytest.LogCaptureFixture
) -> None:
    FeatureCache(folder, MB).get(audio[0], compute)
    parts = [folder, *(folder / f"{number:02x}" for number in range(256))]
    for part in parts:
        part.mkdir(exist_ok=True)
    for part in parts:
        part.chmod(0o500)
    try:
        assert_goes_on_and_says_so_once(
            FeatureCache(folder, MB), audio, compute, caplog_of_lightning, "Permission denied"
        )
    finally:
        for part in parts:
            part.chmod(0o700)
    assert compute.paths.count(audio[0]) == 1


def test_workers_say_it_once_between_them(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file", encoding="utf-8")
    log = tmp_path / "log.txt"
    handler = logging.FileHandler(log)
    logger = logging.getLogger("lightning")
    logger.addHandler(handler)
    try:
        cache = FeatureCache(tmp_path / "file" / "cache", MB)
        for _ in range(2):  # training and validation
            loader = DataLoader(
                SpeechDataset(utterances_of_sample(4), cache=cache),
                batch_sampler=[[(0, 0), (0, 1)], [(0, 2), (0, 3)]],
                collate_fn=collate,
                num_workers=2,
                multiprocessing_context="fork",
            )
            assert len(list(loader)) == 2
    finally:
        logger.removeHandler(handler)
    assert log.read_text().count("no more features are stored") == 1


def test_of_several_ranks_one_says_it(
    audio: list[Path],
    tmp_path: Path,
    compute: Computing,
    monkeypatch: pytest.MonkeyPatch,
    caplog_of_lightning: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").write_text("a file", encoding="utf-8")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert len(FeatureCache(tmp_path / "file" / "x", MB).get(audio[0], compute)) == 51
    assert warned(caplog_of_lightning) == []


# --------------------------------------------------------------------------------------------------------- settings


def test_where_features_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "kvarts"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for not_a_place in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", not_a_place)
        assert cache_dir() == tmp_path / "home" / ".cache" / "kvarts"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == tmp_path / "home" / ".cache" / "kvarts"

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert cache_dir() is None


def first_batch(**settings: Any) -> torch.Tensor:
    data = SpeechData(SAMPLE, 4, seed=1, check_audio=False, train_minutes=0.2, batch_size=2, **settings)
    data.prepare()
    features: torch.Tensor = next(iter(data.train_dataloader())).features
    return features


def test_the_settings_decide_where_and_how_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog_of_lightning: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    without = first_batch(cache_mb=0)
    assert list(tmp_path.iterdir()) == []
    named = first_batch(cache_dir=str(tmp_path / "named"), cache_mb=1)
    assert [path.name for path in tmp_path.iterdir()] == ["named"]
    assert len(entries(tmp_path / "named")) == 2
    default = first_batch()
    assert len(entries(tmp_path / "home" / "kvarts" / "features")) == 2
    assert torch.equal(without, named)
    assert torch.equal(without, default)
    assert f"features are kept in {tmp_path / 'named'}, up to 1 MB" in caplog_of_lightning.text
    assert re.search(r"up to 4096 MB \(46 h of speech\)", caplog_of_lightning.text)

    monkeypatch.setattr(kvarts.datamodule, "cache_dir_of_user", lambda: None)
    assert torch.equal(first_batch(), without)
    (message,) = warned(caplog_of_lightning)
    assert "data.cache_dir=" in message


def test_a_file_where_the_folder_should_be_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file", encoding="utf-8")
    for wrong in (tmp_path / "file", tmp_path / "file" / "cache" / "features"):
        with pytest.raises(ConfigError, match=re.escape(f"data.cache_dir={wrong}: ")):
            SpeechData(SAMPLE, 4, seed=1, cache_dir=str(wrong))
        SpeechData(SAMPLE, 4, seed=1, cache_dir=str(wrong), cache_mb=0)


@pytest.mark.parametrize(
    ("device", "cores", "devices", "workers", "with_sound"),
    [
        ("cpu", 64, 1, 0, 0),
        ("cuda", 64, 1, 8, 63),
        ("cuda", 48, 6, 7, 7),
        ("cuda", 2, 1, 1, 1),
        ("cuda", 4, 8, 0, 0),
        ("mps", 8, 1, 7, 7),
    ],
)
@pytest.mark.parametrize("sound", [None, Sound([Gain()])])
def test_the_number_of_workers_suits_the_machine_and_the_augmentation(
    device: str,
    cores: int,
    devices: int,
    workers: int,
    with_sound: int,
    sound: Sound | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kvarts.datamodule, "_cores", lambda: cores)
    for setting, wanted in ((None, workers if sound is None else with_sound), (3, 3), (0, 0)):
        data = SpeechData(SAMPLE, 4, seed=1, check_audio=False, num_workers=setting, sound=sound)
        data.prepare()
        assert data.val_dataloader().num_workers == (setting or 0), "without a trainer there is no device"
        strategy = SimpleNamespace(root_device=torch.device(device))
        data.trainer = SimpleNamespace(  # type: ignore[assignment]
            strategy=strategy, num_devices=devices, global_rank=0, world_size=devices
        )
        assert data.train_dataloader().num_workers == data.val_dataloader().num_workers == wanted
