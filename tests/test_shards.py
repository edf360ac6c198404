"""Shards: what is written, who is given what and when, what is fetched, and what is said of whatever is damaged."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import itertools
import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time
import tracemalloc
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import numpy as np
import pytest
import soundfile
import torch
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

import kvarts.shards
import small_run
from kvarts.audio import read_audio
from kvarts.cli import main
from kvarts.data_shard import INDEX, UTTERANCE_COLUMNS, entry_of, write_index, write_shards
from kvarts.datamodule import SpeechData
from kvarts.dataset import Batch, BucketSampler, Draw
from kvarts.errors import AudioError, ConfigError, DownloadError, KvartsError, ManifestError, TrainingDataError
from kvarts.feature_cache import FeatureCache
from kvarts.features import log_mel
from kvarts.manifest import Utterance, read_manifest, write_manifest
from kvarts.model import QuartzNetCTC
from kvarts.shards import ShardFiles, ShardIndex, ShardSampler, is_index, read_index, shard_order
from kvarts.specaugment import SpecAugment

COUNT = 23
SHARD_BYTES = 115_000


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise of 0.2 to 1.6 s, in three formats, some fields more than a manifest needs."""
    folder = tmp_path_factory.mktemp("noise")
    draw = np.random.default_rng(0)
    rows = []
    for number in range(COUNT):
        noise = 0.1 * draw.standard_normal(draw.integers(3200, 25_600))
        suffix = ("wav", "opus", "FLAC")[number % 7 % 3]
        kind = {"format": "OGG", "subtype": "OPUS"} if suffix == "opus" else {}
        soundfile.write(folder / f"{number}.{suffix}", noise, 16_000, **kind)
        row = {"audio_filepath": f"{number}.{suffix}", "text": "да", "duration": len(noise) / 16_000}
        rows.append({**row, "speaker": "Ёж", "id": f"u.{number}"} if number % 2 else row)
    write_manifest(folder / "manifest.jsonl", rows)
    return folder / "manifest.jsonl"


@pytest.fixture(scope="module")
def shards(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The index of six shards of different sizes."""
    folder = tmp_path_factory.mktemp("shards")
    counts = [shard.utterances for shard in write_shards(read_manifest(manifest), folder, SHARD_BYTES, seed=0)]
    assert len(counts) == 6
    assert len(set(counts)) > 2
    return folder / INDEX


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvarts.shards, "_RETRY_WAITS_S", (0.01, 0.01, 0.01))


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Messages of warnings so far."""
    monkeypatch.setattr(logging.getLogger("lightning"), "propagate", True)
    return lambda: [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.fixture
def undecoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """No audio is decoded: checksums stand before that, and it would take most of the time."""
    monkeypatch.setattr(kvarts.shards, "_decoded", lambda *_: np.zeros(0, np.float32))
    monkeypatch.setattr(kvarts.shards, "log_mel", lambda _: np.zeros((400, 64), np.float32))


def copied(shards: Path, folder: Path) -> Path:
    files = list(shards.parent.iterdir())
    folder.mkdir()
    for path in files:
        (folder / path.name).write_bytes(path.read_bytes())
    return folder / INDEX


def rows_of(index: Path) -> list[dict[str, Any]]:
    """The header and the lines of shards."""
    return [json.loads(line) for line in index.read_text(encoding="utf-8").splitlines()]


# -------------------------------------------------------------------------------------------------- what is written


def test_a_shard_holds_files_and_rows_as_they_were(manifest: Path, shards: Path) -> None:
    by_id = {utterance.utterance_id: utterance for utterance in read_manifest(manifest)}
    header, *entries = rows_of(shards)
    seen: list[str] = []
    for entry in entries:
        path = shards.parent / entry["name"]
        data = path.read_bytes()
        assert len(data) == entry["bytes"] <= SHARD_BYTES
        assert hashlib.sha256(data).hexdigest() == entry["sha256"]
        with tarfile.open(path) as tar:
            members = tar.getmembers()
            found = {member.name: tar.extractfile(member).read() for member in members}  # type: ignore[union-attr]
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in members} == {(0, 0, 0, "", "")}
        assert len(members) == 2 * entry["utterances"]
        seconds = 0.0
        for place in range(entry["utterances"]):
            key = f"{entry['first'] + place:09d}"
            name = f"{key}.{entry['audio_suffix'][place]}"
            assert [m.name for m in members[2 * place : 2 * place + 2]] == [f"{key}.json", name]
            row = json.loads(found[f"{key}.json"])
            utterance = by_id[row["id"]]
            assert row == {**utterance.fields, "id": row["id"], "audio_filepath": name}
            assert name.partition(".")[2] == utterance.audio_path.suffix[1:].lower()
            assert found[name] == utterance.audio_path.read_bytes()
            for kind, member in (("json", f"{key}.json"), ("audio", name)):
                begin = entry[f"{kind}_offset"][place]
                assert data[begin : begin + entry[f"{kind}_bytes"][place]] == found[member]
            assert entry["duration_s"][place] == utterance.duration_s
            seconds += utterance.duration_s
            seen.append(row["id"])
        assert entry["seconds"] == pytest.approx(seconds)
    assert sorted(seen) == sorted(by_id)
    assert seen != list(by_id), "not shuffled"
    assert (header["kvarts_shards"], header["shards"], header["utterances"]) == (1, 6, COUNT)
    assert header["shuffle_seed"] == 0
    assert header["seconds"] == pytest.approx(sum(utterance.duration_s for utterance in by_id.values()))


def test_webdataset_reads_them(shards: Path) -> None:
    urls = [str(shards.parent / entry["name"]) for entry in rows_of(shards)[1:]]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [f"{number:09d}" for number in range(COUNT)]
    for sample in samples:
        suffix = json.loads(sample["json"])["audio_filepath"].partition(".")[2]
        assert soundfile.info(io.BytesIO(sample[suffix])).samplerate > 0


def test_unpacked_they_are_a_manifest_again(manifest: Path, shards: Path, tmp_path: Path) -> None:
    for path in sorted(shards.parent.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:  # extractall's filter is not there in Debian 12's Python, and asked for by later ones
                (tmp_path / member.name).write_bytes(tar.extractfile(member).read())
    rows = b"".join(path.read_bytes() for path in sorted(tmp_path.glob("*.json")))
    (tmp_path / "manifest.jsonl").write_bytes(rows)
    utterances = {u.utterance_id: u for u in read_manifest(tmp_path / "manifest.jsonl")}
    for original in read_manifest(manifest):
        unpacked = utterances[original.utterance_id]
        assert (unpacked.text, unpacked.duration_s) == (original.text, original.duration_s)
        assert unpacked.audio_path.read_bytes() == original.audio_path.read_bytes()


def test_the_bytes_depend_on_the_utterances_and_the_seed_alone(manifest: Path, shards: Path, tmp_path: Path) -> None:
    def written(name: str, seed: int) -> list[bytes]:
        write_shards(read_manifest(manifest), tmp_path / name, SHARD_BYTES, seed)
        return [path.read_bytes() for path in sorted((tmp_path / name).iterdir())]

    first = [path.read_bytes() for path in sorted(shards.parent.iterdir())]
    assert written("again", 0) == first
    assert written("other", 1) != first


def test_an_utterance_larger_than_a_shard_has_one_of_its_own(manifest: Path, tmp_path: Path) -> None:
    written = write_shards(read_manifest(manifest), tmp_path, 1, seed=0)
    assert [shard.utterances for shard in written] == [1] * COUNT


_KILLED = """
import os, signal, sys
from pathlib import Path
from kvarts import data_shard
from kvarts.manifest import read_manifest
left = int(sys.argv[4])
add = data_shard._add
def dies(*args):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return add(*args)
data_shard._add = dies
data_shard.write_shards(read_manifest(Path(sys.argv[1])), Path(sys.argv[2]), int(sys.argv[3]), 0)
"""


@pytest.mark.parametrize("members", [3, 29])
def test_a_killed_run_goes_on(members: int, manifest: Path, shards: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _KILLED, str(manifest), str(tmp_path), str(SHARD_BYTES), str(members)]
    killed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / INDEX).exists()
    finished = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.glob("shard-*.tar")}
    assert len(finished) == 0 if members == 3 else 1 < len(finished) < 6
    for path, (content, _) in finished.items():
        assert content == (shards.parent / path.name).read_bytes(), "a shard that is half"
    # A kill while the journal is written: the last line is cut.
    journal = tmp_path / "index.partial.jsonl"
    if finished:
        journal.write_text(journal.read_text()[:-20])
    write_shards(read_manifest(manifest), tmp_path, SHARD_BYTES, seed=0)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {
        p.name: p.read_bytes() for p in shards.parent.iterdir()
    }
    for path in sorted(finished)[:-1]:
        assert path.stat().st_mtime_ns == finished[path][1], "written again"


def test_what_is_complete_stays_and_what_was_lost_is_written_again(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["data", "shard", str(manifest), "-o", str(tmp_path / "out"), "--shard-mb", "0.125"]
    assert main(command) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    lost, short, *untouched = sorted(times)
    lost.unlink()
    short.write_bytes(b"x")
    assert main(command) == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert all(path.stat().st_mtime_ns == times[path] for path in untouched)
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith(f"{tmp_path / 'out' / INDEX}: {len(times)} shards, {COUNT} utterances, 0.01 h, ")


def test_mistakes_of_the_command(manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(*arguments: object) -> str:
        assert main(["data", "shard", *map(str, arguments)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("kvarts: error: ")
        return error

    out = tmp_path / "out"
    for wrong in ("0", "-1", "nan", "inf"):
        assert f"--shard-mb {wrong}" in fails(manifest, "-o", out, f"--shard-mb={wrong}")
    assert "no such manifest" in fails(tmp_path / "none.jsonl", "-o", out)
    (tmp_path / "file").write_text("")
    assert f"{tmp_path / 'file' / 'out'}" in fails(manifest, "-o", tmp_path / "file" / "out")

    rows = [{**u.fields, "audio_filepath": str(u.audio_path)} for u in read_manifest(manifest)[:4]]
    rows[1]["text"] = "42"
    rows[2]["audio_filepath"] = "none.wav"
    rows[3]["duration"] = 9.5
    write_manifest(tmp_path / "bad.jsonl", rows)
    error = fails(tmp_path / "bad.jsonl", "-o", out)
    for line in (2, 3, 4):
        assert f"bad.jsonl:{line}: " in error
    assert "--on-bad skip" in error
    assert not out.exists()
    assert main(["data", "shard", str(tmp_path / "bad.jsonl"), "-o", str(out), "--on-bad", "skip"]) == 0
    printed = capsys.readouterr().out
    assert "left out 3 of 4 utterances" in printed
    assert "bad.jsonl:3: " in printed
    assert rows_of(out / INDEX)[0]["utterances"] == 1

    assert f"{out}: has shards of other utterances" in fails(manifest, "-o", out)
    (out / INDEX).unlink()
    assert f"{out}: has shards of other utterances" in fails(manifest, "-o", out)
    for content in ("", "{", "{}", "[]", '{"source": "x"}\n{"name": 1}\n', "\xff"):
        (out / INDEX).write_text(content, encoding="latin-1")
        assert f"{out / INDEX}: cannot be read" in fails(manifest, "-o", out)


def test_audio_that_changes_meanwhile_is_noticed(
    manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    utterances = read_manifest(manifest)
    monkeypatch.setattr(Path, "read_bytes", lambda path: b"shorter")
    with pytest.raises(AudioError, match=r"manifest.jsonl:\d+: .* was changed meanwhile"):
        write_shards(utterances, tmp_path, SHARD_BYTES, seed=0)
    assert list(tmp_path.glob("*.tar*")) == []


# ---------------------------------------------------------------------------------------------------- who gets what


def index_of(counts: list[int], durations_s: list[float]) -> ShardIndex:
    """An index of shards that do not exist."""
    count = sum(counts)
    zeros = np.zeros(count, np.int64)
    return ShardIndex(
        base="/none/",
        shards=[kvarts.shards.Shard(f"shard-{number}.tar", 1, f"{number:064x}") for number in range(len(counts))],
        shard=np.repeat(np.arange(len(counts), dtype=np.int32), counts),
        number=np.arange(count),
        duration_s=np.array(durations_s),
        json_offset=zeros,
        json_bytes=zeros,
        json_crc32=zeros,
        audio_offset=zeros,
        audio_bytes=zeros,
        audio_crc32=zeros,
        audio_suffix=zeros,
        suffixes=["opus"],
    )


@st.composite
def jobs(draw: st.DrawFn) -> dict[str, Any]:
    world_size = draw(st.integers(1, 4))
    counts = draw(st.lists(st.integers(1, 12), min_size=1, max_size=9).filter(lambda c: sum(c) >= world_size))
    durations_s = draw(st.lists(st.floats(0.1, 30), min_size=sum(counts), max_size=sum(counts)))
    return {
        "index": index_of(counts, durations_s),
        "batch_size": draw(st.integers(1, 7)),
        "window": draw(st.integers(1, 10)),
        "shuffle": draw(st.booleans()),
        "bucketing": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**32 - 1)),
        "world_size": world_size,
    }


def epoch_of(sampler: ShardSampler) -> list[list[Draw]]:
    batches = list(sampler)
    for _ in batches:
        sampler.batch_done()
    return batches


@given(job=jobs())
@settings(deadline=None, max_examples=80)
def test_every_utterance_comes_once_an_epoch_on_one_of_the_ranks(job: dict[str, Any]) -> None:
    ranks = [ShardSampler(**job, rank=rank) for rank in range(job["world_size"])]
    durations_s = job["index"].duration_s.tolist()
    of_files = BucketSampler(durations_s, job["batch_size"], world_size=job["world_size"])
    for epoch in range(3):
        shares = [epoch_of(sampler) for sampler in ranks]
        drawn = Counter(draw for share in shares for batch in share for draw in batch)
        assert drawn == Counter((epoch, index) for index in range(len(durations_s)))
        # A rank without a batch would leave the others waiting for it; a run of files would have as many steps.
        assert {len(share) for share in shares} == {len(ranks[0])} == {len(of_files)}
        assert all(1 <= len(batch) <= job["batch_size"] + 1 for share in shares for batch in share)


@given(job=jobs(), data=st.data())
@settings(deadline=None, max_examples=60)
def test_a_run_goes_on_where_it_stopped(job: dict[str, Any], data: st.DataObject) -> None:
    whole = ShardSampler(**job)
    wanted = [batch for _ in range(3) for batch in epoch_of(whole)]
    stop = data.draw(st.integers(0, len(wanted) - 1))
    stopped, done = ShardSampler(**job), 0
    while done < stop:
        for _ in itertools.islice(iter(stopped), stop - done):
            stopped.batch_done()
            done += 1
    resumed = ShardSampler(**job)
    resumed.load_state_dict(stopped.state_dict())
    rest: list[list[Draw]] = []
    while len(rest) < len(wanted) - stop:
        rest += epoch_of(resumed)
    assert rest == wanted[stop:]


@given(job=jobs())
@settings(deadline=None, max_examples=60)
def test_windows_come_in_the_order_of_the_epoch(job: dict[str, Any]) -> None:
    """No batch reaches into a window before all that could be made of those before it were drawn."""
    sampler = ShardSampler(**{**job, "world_size": 1})
    index, window = job["index"], job["window"]
    for epoch in range(2):
        order = shard_order(len(index.shards), job["seed"] if job["shuffle"] else None, epoch)
        window_of = [order.index(int(shard)) // window for shard in index.shard]
        drawn = 0
        for batch in epoch_of(sampler):
            reached = max(window_of[i] for _, i in batch)
            before = sum(window_of[i] < reached for i in range(len(window_of)))
            # What is left of earlier windows is less than a joint batch, and one for each rank.
            assert drawn >= before - job["batch_size"] - 1
            drawn += len(batch)


def test_windows_are_mixed_and_epochs_differ() -> None:
    draw = random.Random(0)
    durations_s = [draw.uniform(4, 18) for _ in range(1200)]
    index = index_of([100] * 12, durations_s)
    sampler = ShardSampler(index, 16, window=4, seed=1)
    epochs = [epoch_of(sampler) for _ in range(3)]
    companies = [{frozenset(i for _, i in batch) for batch in epoch} for epoch in epochs]
    assert not companies[0] & companies[1] | companies[1] & companies[2]
    assert np.mean([len({i // 100 for _, i in batch}) for batch in epochs[0]]) > 3, "shards are hardly mixed"
    windows = [shard_order(12, 1, epoch=0)[:4], shard_order(12, 1, epoch=0)[4:8]]
    drawn = [i for batch in epochs[0] for _, i in batch]
    later = drawn[next(n for n, i in enumerate(drawn) if i // 100 in windows[1]) :]
    left = [i for i in later if i // 100 in windows[0]]
    assert len(left) >= 1
    assert len({i // 100 for i in left}) > 1, "what is left of a window is always of its last shard"
    padded = sum(len(batch) * max(durations_s[i] for _, i in batch) for batch in epochs[0])
    assert 1 - sum(durations_s) / padded < 0.08
    assert [epoch_of(ShardSampler(index, 16, window=4, seed=1))] == epochs[:1]
    assert epoch_of(ShardSampler(index, 16, window=4, seed=2)) != epochs[0]


def test_more_ranks_train_on_the_same_joint_batches() -> None:
    index = index_of([7, 3, 20, 5, 10], [1 + number % 7 for number in range(45)])
    alone = epoch_of(ShardSampler(index, 6, window=2, seed=1))
    ranks = [epoch_of(ShardSampler(index, 2, window=2, seed=1, rank=r, world_size=3)) for r in range(3)]
    joint = [sorted(draw for share in shares for draw in share) for shares in zip(*ranks, strict=True)]
    # One process keeps one utterance for the last batch, three keep three: windows end elsewhere, batches are as many.
    assert len(joint) == len(alone)
    assert sorted(itertools.chain(*joint)) == sorted(itertools.chain(*alone))


def data_of(shards: Path | str, manifest: Path, rank: int = 0, world_size: int = 1, **more: Any) -> SpeechData:
    paths = {"train_manifest": str(shards), "val_manifest": str(manifest), "test_manifests": {}}
    chosen = {"batch_size": 2, "shard_window": 2, "check_audio": False, "cache_mb": 0, "num_workers": 0, **more}
    data = SpeechData(manifest.parent, 4, seed=1, **paths, **chosen)
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size)  # type: ignore[assignment]
    data.prepare()
    return data


def batches_of(data: SpeechData) -> Iterator[Batch]:
    """The rest of an epoch, as training gets it."""
    for batch in data.train_dataloader():
        yield data.on_before_batch_transfer(batch, 0)
        data.batch_done()


def ids(batch: Batch) -> list[str]:
    return [utterance.utterance_id for utterance in batch.utterances]


@pytest.mark.parametrize(("world_size", "workers"), [(1, 2), (2, 1), (2, 3), (3, 2), (4, 1)])
def test_ranks_and_workers_share_an_epoch(
    world_size: int, workers: int, manifest: Path, shards: Path, undecoded: None
) -> None:
    wanted = sorted(utterance.utterance_id for utterance in read_manifest(manifest))
    alone, shared = (
        [
            [ids(batch) for batch in batches_of(data_of(shards, manifest, rank, world_size, num_workers=count))]
            for rank in range(world_size)
        ]
        for count in (0, workers)
    )
    assert sorted(itertools.chain(*itertools.chain(*shared))) == wanted
    assert len({len(share) for share in shared}) == 1, "ranks that take different numbers of steps"
    assert shared == alone, "workers have a say in the order"


def test_an_example_is_that_of_the_file(manifest: Path, shards: Path, tmp_path: Path) -> None:
    by_id = {utterance.utterance_id: utterance for utterance in read_manifest(manifest)}
    for _ in range(2):  # from the audio, then from the cache
        for batch in batches_of(data_of(shards, manifest, cache_dir=str(tmp_path), cache_mb=10)):
            for features, length, text, utterance in zip(
                batch.features, batch.feature_lengths, batch.texts, batch.utterances, strict=True
            ):
                original = by_id[utterance.utterance_id]
                assert torch.equal(features[:length], torch.from_numpy(log_mel(read_audio(original.audio_path))))
                assert text == original.text
                assert utterance.fields.get("speaker") == original.fields.get("speaker")
    assert len(list(tmp_path.glob("*/*.mel"))) == COUNT


def test_the_cache_knows_audio_by_name(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path, 2**20)
    draw = np.random.default_rng(0)
    wanted = {name: draw.standard_normal((9, 64)).astype(np.float32) for name in ("a 1", "a 11", "b 1")}
    for name, features in wanted.items():
        assert cache.get_named(name, lambda features=features: features) is features  # type: ignore[misc]

    def never() -> Any:
        raise AssertionError("computed again")

    again = FeatureCache(tmp_path, 2**20)
    assert all((again.get_named(name, never) == features).all() for name, features in wanted.items())
    with pytest.raises(AssertionError):
        again.get_named("b 11", never)


def test_augmentation_does_not_depend_on_workers(manifest: Path, shards: Path) -> None:
    def features(workers: int) -> list[torch.Tensor]:
        data = data_of(shards, manifest, num_workers=workers, augmentation=SpecAugment(time_fraction=0.5))
        return [batch.features for _ in range(2) for batch in batches_of(data)]

    one, other = features(0), features(2)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    plain = [batch.features for batch in batches_of(data_of(shards, manifest))]
    assert not all(torch.equal(a, b) for a, b in zip(one, plain, strict=False))


@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_loaders_go_on(workers: int, manifest: Path, shards: Path, undecoded: None) -> None:
    whole = data_of(shards, manifest, num_workers=workers)
    wanted = [ids(batch) for _ in range(3) for batch in batches_of(whole)]
    stopped = data_of(shards, manifest)
    found = [ids(batch) for batch in batches_of(stopped)]
    for batch in itertools.islice(stopped.train_dataloader(), 5):
        found.append(ids(batch))
        stopped.batch_done()
    place = json.loads(json.dumps(stopped.state_dict()))
    resumed = data_of(shards, manifest, num_workers=workers)
    resumed.load_state_dict(place)
    while len(found) < len(wanted):
        found += [ids(batch) for batch in batches_of(resumed)]
    assert found == wanted
    for other, words in (({"shard_window": 3}, "data.shard_window was 2, is 3"), ({"batch_size": 3}, "batch_size")):
        changed = data_of(shards, manifest, **other)
        changed.load_state_dict(place)
        with pytest.raises(ConfigError, match=words):
            changed.train_dataloader()


def test_a_place_in_other_shards_is_refused(manifest: Path, shards: Path, tmp_path: Path) -> None:
    place = data_of(shards, manifest)
    place.train_dataloader()
    write_shards(read_manifest(manifest), tmp_path, SHARD_BYTES, seed=5)
    other = data_of(tmp_path / INDEX, manifest)
    other.load_state_dict(place.state_dict())
    with pytest.raises(ConfigError, match="digest of the training utterances"):
        other.train_dataloader()


def test_a_part_is_drawn_by_seed_and_touches_few_shards(manifest: Path, shards: Path) -> None:
    whole = read_index(str(shards))
    counts = {shard: int((whole.shard == number).sum()) for number, shard in enumerate(whole.shards)}
    parts = [whole.part(3.0, seed) for seed in range(20)]
    for part in parts:
        assert 3.0 <= part.duration_s.sum() < 4.7
        cut = [
            number for number in range(len(part.shards)) if (part.shard == number).sum() < counts[part.shards[number]]
        ]
        assert len(cut) <= 1, "shards are taken whole, but the last"
        for index in range(len(part)):
            original = int(np.flatnonzero(whole.number == part.number[index])[0])
            assert part.member(index) == whole.member(original)
            assert part.audio_crc32[index] == whole.audio_crc32[original]
    assert len({tuple(part.number) for part in parts}) > 3
    assert len(whole.part(1e9, 0)) == COUNT
    data = data_of(shards, manifest, train_minutes=0.05)
    drawn = [member for batch in batches_of(data) for member in ids(batch)]
    assert 0 < len(drawn) < COUNT


# ----------------------------------------------------------------------------------------------------- from a server


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder; `faults` are taken one a request for a file: a status, "cut", or other bytes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.requests: Counter[str] = Counter()
        self.faults: dict[str, list[int | str | bytes]] = {}
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def index(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/{INDEX}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name = urllib.parse.unquote(self.path).lstrip("/")
        with self.server.lock:
            self.server.requests[name] += 1
            faults = self.server.faults.get(name, [])
            fault = faults.pop(0) if faults else None
        path = self.server.folder / name
        status = fault if isinstance(fault, int) else 200 if path.is_file() else 404
        content = fault if isinstance(fault, bytes) else path.read_bytes() if status == 200 else b""
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if fault == "cut" else content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(shards: Path, tmp_path: Path) -> Iterator[Server]:
    copied(shards, tmp_path / "served")
    with Server(tmp_path / "served") as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_a_server_gives_what_a_folder_gives(manifest: Path, shards: Path, server: Server, tmp_path: Path) -> None:
    local = data_of(shards, manifest)
    wanted = [ids(batch) for _ in range(2) for batch in batches_of(local)]
    data = data_of(server.index, manifest, shard_dir=str(tmp_path / "kept"), num_workers=2)
    assert [ids(batch) for _ in range(2) for batch in batches_of(data)] == wanted
    entries = rows_of(shards)[1:]
    assert server.requests == Counter({INDEX: 1, **{entry["name"]: 1 for entry in entries}}), "fetched more than once"
    kept = {path.name: path.read_bytes() for path in (tmp_path / "kept").glob("*.tar")}
    assert kept == {f"{e['sha256']}.tar": (shards.parent / e["name"]).read_bytes() for e in entries}


def test_ranks_of_a_machine_fetch_a_shard_once(manifest: Path, server: Server, tmp_path: Path, undecoded: None) -> None:
    ranks = [
        batches_of(data_of(server.index, manifest, rank, 2, shard_dir=str(tmp_path / "kept"), num_workers=2))
        for rank in range(2)
    ]
    steps = list(zip(*ranks, strict=True))
    assert sum(len(batch.utterances) for step in steps for batch in step) == COUNT
    assert {count for name, count in server.requests.items() if name != INDEX} == {1}


def test_the_next_window_is_fetched_ahead(manifest: Path, server: Server, tmp_path: Path) -> None:
    data = data_of(server.index, manifest, shard_dir=str(tmp_path / "kept"), shard_window=1)
    names = [f"shard-{shard:06d}.tar" for shard in shard_order(6, 1, epoch=0)]
    batch = next(batches_of(data))
    reached = max(names.index(utterance.manifest.name) for utterance in batch.utterances)
    wanted = {INDEX, *names[: reached + 2]}
    assert len(wanted) < 6
    deadline_s = time.monotonic() + 10
    while server.requests.keys() != wanted and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert server.requests.keys() == wanted, "this window and the next, no more"


@pytest.mark.parametrize("fault", [503, 429, "cut", b"not what it should be"])
def test_trouble_that_passes_is_waited_for(
    fault: Any, manifest: Path, server: Server, tmp_path: Path, warnings: Callable[[], list[str]]
) -> None:
    if not isinstance(fault, bytes):
        server.faults[INDEX] = [fault]
    server.faults["shard-000002.tar"] = [fault] if isinstance(fault, bytes) else [fault, fault]
    data = data_of(server.index, manifest, shard_dir=str(tmp_path / "kept"))
    assert sum(len(batch.utterances) for batch in batches_of(data)) == COUNT
    assert any("shard-000002.tar: " in message and "another attempt in" in message for message in warnings())
    assert all("left out" not in message for message in warnings())
    assert not list((tmp_path / "kept").glob("*.tmp"))


@pytest.mark.parametrize(("status", "attempts"), [(500, 4), (403, 1)])
def test_trouble_that_stays_stops_the_run_under_any_rule(
    status: int, attempts: int, manifest: Path, server: Server, tmp_path: Path
) -> None:
    server.faults["shard-000002.tar"] = [status] * 99
    data = data_of(server.index, manifest, shard_dir=str(tmp_path / "kept"), on_bad="skip", shard_window=6)
    with pytest.raises(DownloadError, match=rf"shard-000002.tar: HTTP {status} ") as caught:
        list(batches_of(data))
    assert "\n" not in str(caught.value)
    assert server.requests["shard-000002.tar"] >= attempts


def test_addresses_have_any_letters(server: Server) -> None:
    copied(server.folder / INDEX, server.folder / "мои шарды")
    index = read_index(server.index.replace(INDEX, f"мои шарды/{INDEX}"))
    assert len(index) == COUNT
    assert index.base.endswith("/мои шарды/")


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(DownloadError, match=r"http://127.0.0.1:9/index.jsonl: .*refused.*, 4 times"):
        read_index("http://127.0.0.1:9/index.jsonl")
    with pytest.raises(DownloadError, match=r"http://\[x/index.jsonl: .*check the address"):
        read_index("http://[x/index.jsonl")


@pytest.mark.parametrize("harm", ["missing", "cut short", "flipped"])
@pytest.mark.parametrize("remote", [False, True])
def test_a_damaged_shard_is_named_or_left_out_and_counted(
    harm: str, remote: bool, manifest: Path, server: Server, tmp_path: Path, warnings: Callable[[], list[str]]
) -> None:
    whole = rows_of(server.folder / INDEX)[3]
    path = server.folder / "shard-000002.tar"
    whole_content = path.read_bytes()
    content = bytearray(whole_content)
    if harm == "missing":
        path.unlink()
        bad = range(whole["utterances"])
    elif harm == "cut short":
        path.write_bytes(content[: whole["audio_offset"][1] + 5])
        bad = range(1, whole["utterances"])
    else:
        content[whole["audio_offset"][1] + 700] ^= 1
        path.write_bytes(content)
        bad = range(1, 2)
    where = server.index if remote else server.folder / INDEX
    names = [f"{whole['first'] + place:09d}" for place in bad]

    def data(on_bad: str) -> SpeechData:
        return data_of(where, manifest, on_bad=on_bad, shard_dir=str(tmp_path / "kept"))

    with pytest.raises(KvartsError, match=r"shard-000002.tar: [^\n]*(copy|check)") as caught:
        list(batches_of(data("error")))
    assert "data.on_bad=skip" in str(caught.value)
    if harm != "missing":
        assert any(f"shard-000002.tar: {name}." in str(caught.value) for name in names)

    skipping = data("skip")
    for _ in range(2):
        seen = [utterance.line for batch in batches_of(skipping) for utterance in batch.utterances]
        assert set(seen) == set(range(COUNT)) - {whole["first"] + place for place in bad}
    counted = [message for message in warnings() if message.startswith("epoch ")]
    assert len(counted) == 2
    for epoch, message in enumerate(counted):
        assert message.startswith(f"epoch {epoch}: left out {len(names)} utterances\n")
        assert "shard-000002.tar" in message
    assert any(message.startswith("left out: ") for message in warnings())
    if remote and harm != "missing":
        assert any("shard-000002.tar: damaged: SHA-256 " in message for message in warnings())
    # Mended, it is whole in the next run.
    path.write_bytes(whole_content)
    mended = data("error")
    assert sum(len(batch.utterances) for batch in batches_of(mended)) == COUNT


def test_bad_audio_and_bad_texts_are_named(manifest: Path, tmp_path: Path, warnings: Callable[[], list[str]]) -> None:
    """What was bad when it was packed, past the checks of the command."""
    good, *others = read_manifest(manifest)[:4]
    (tmp_path / "noise.opus").write_bytes(b"OggS is how it begins")
    broken = replace(others[0], audio_path=tmp_path / "noise.opus")
    digits = replace(others[1], fields={**others[1].fields, "text": "42"})
    write_shards([good, broken, digits], tmp_path / "out", SHARD_BYTES, seed=0)
    with pytest.raises(KvartsError) as caught:
        list(batches_of(data_of(tmp_path / "out" / INDEX, manifest, batch_size=3)))
    assert "shard-000000.tar: 00000000" in str(caught.value)
    assert "characters outside the alphabet" in str(caught.value)
    assert "the audio is cut short" in str(caught.value)
    assert str(tmp_path) not in str(caught.value)
    # With batches of one, two are left without an utterance, and every rank has to take the step.
    data = data_of(tmp_path / "out" / INDEX, manifest, batch_size=1, on_bad="skip")
    assert [ids(batch) for batch in batches_of(data)] == [[good.utterance_id]] * 3
    assert any(message.startswith("epoch 0: left out 2 utterances") for message in warnings())
    write_shards([broken, digits], tmp_path / "none", SHARD_BYTES, seed=0)
    with pytest.raises(TrainingDataError, match="no utterance of it can be used"):
        list(batches_of(data_of(tmp_path / "none" / INDEX, manifest, on_bad="skip")))


def test_what_an_unfinished_epoch_left_out_is_said_at_the_end(
    manifest: Path, shards: Path, tmp_path: Path, warnings: Callable[[], list[str]]
) -> None:
    copied(shards, tmp_path / "copy")
    for number in range(3):
        (tmp_path / "copy" / f"shard-{number:06d}.tar").unlink()
    data = data_of(tmp_path / "copy" / INDEX, manifest, rank=1, world_size=2, on_bad="skip", shard_window=6)
    batches = batches_of(data)
    while not next(batches).left_out:
        pass
    data.teardown("fit")
    data.teardown("fit")
    said = [message for message in warnings() if message.startswith("epoch 0 of process 2 of 2: left out ")]
    assert len(said) == 1


# ------------------------------------------------------------------------------------------------- the folder of shards


def test_the_folder_of_shards_is_bounded(server: Server, tmp_path: Path) -> None:
    index = read_index(server.index)
    # From the largest to the smallest: where one goes, the next has room.
    index = replace(index, shards=sorted(index.shards, key=lambda shard: -shard.size))
    sizes = [shard.size for shard in index.shards]
    folder = tmp_path / "kept"
    folder.mkdir()
    # Shards of other data: one used today, one last week.
    now_s = time.time()
    for name, age_s, size in (("a" * 64, 10, 1000), ("b" * 64, 7 * 24 * 3600, 50_000)):
        (folder / f"{name}.tar").write_bytes(bytes(size))
        os.utime(folder / f"{name}.tar", (now_s - age_s, now_s - age_s))
    files = ShardFiles(index, folder, 1000 + sum(sizes[:3]))

    def there() -> set[str]:
        return {path.stem for path in folder.glob("*.tar")}

    def digests(*shards: int) -> set[str]:
        return {index.shards[shard].sha256 for shard in shards}

    for shard in range(3):
        files.look_ahead([], [shard], [])
        files.read(shard, 0, 1)
        os.utime(folder / f"{index.shards[shard].sha256}.tar", (now_s + shard, now_s + shard))
    assert there() == {"a" * 64} | digests(0, 1, 2), "what nobody used for a day goes first, what is used stays"
    files.look_ahead([2], [3], [])
    assert files.read(3, 257, 5) == b"ustar"
    assert there() == {"a" * 64} | digests(0, 2, 3), "what was used last is needed last"
    # What is needed is kept, even if it is too much.
    files = ShardFiles(index, folder, 1)
    files.look_ahead([4], [5], [])
    for shard in (4, 5):
        files.read(shard, 0, 1)
    assert there() == {"a" * 64} | digests(4, 5)
    # And what was taken away meanwhile is fetched again.
    files = ShardFiles(index, folder, 2**30)
    (folder / f"{index.shards[4].sha256}.tar").unlink()
    assert files.read(4, 257, 5) == b"ustar"


@pytest.mark.parametrize("harm", ["flipped", "cut short", "empty"])
def test_what_this_disk_damaged_is_fetched_again(
    harm: str, manifest: Path, server: Server, tmp_path: Path, undecoded: None, warnings: Callable[[], list[str]]
) -> None:
    kept = tmp_path / "kept"
    assert len(list(batches_of(data_of(server.index, manifest, shard_dir=str(kept))))) > 0
    path = max(kept.glob("*.tar"), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    if harm == "flipped":
        for place in range(0, len(content), 512):
            content[place] ^= 1
    path.write_bytes({"flipped": content, "cut short": content[:700], "empty": b""}[harm])
    got, _ = delivered(server.index, manifest, shard_dir=str(kept))
    assert len(got) == COUNT
    assert [message for message in warnings() if "damaged" in message] == [
        f"{path}: was damaged on this disk; it is fetched again"
    ]
    assert sorted(count for name, count in server.requests.items() if name != INDEX) == [1, 1, 1, 1, 1, 2]


def test_a_folder_that_cannot_be_made(server: Server, manifest: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    data = data_of(server.index, manifest, shard_dir=str(tmp_path / "file" / "x"))
    with pytest.raises(KvartsError, match="could not be written"):
        list(batches_of(data))


# -------------------------------------------------------------------------------------------------------- addresses


def test_what_is_an_index() -> None:
    assert all(map(is_index, ("index.jsonl", "/a/index.jsonl", "http://x/i.json", "s3://b/k/index.jsonl")))
    assert not any(map(is_index, ("manifest.jsonl", "train_index.jsonl", "/index.jsonl/manifest.jsonl")))


def test_other_file_systems(manifest: Path, shards: Path, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for path in shards.parent.iterdir():
        memory.pipe(f"/bucket/{path.name}", path.read_bytes())
    wanted = [ids(batch) for batch in batches_of(data_of(shards, manifest))]
    data = data_of("memory://bucket/index.jsonl", manifest, shard_dir=str(tmp_path), num_workers=1)
    assert [ids(batch) for batch in batches_of(data)] == wanted
    assert [ids(batch) for batch in batches_of(data_of(f"file://{shards}", manifest))] == wanted
    with pytest.raises(ManifestError, match=r"memory://bucket/none.jsonl: no such index"):
        read_index("memory://bucket/none.jsonl")
    memory.rm("/bucket/shard-000000.tar")
    with pytest.raises(KvartsError, match=r"memory://bucket/shard-000000.tar: no such file"):
        list(batches_of(data_of("memory://bucket/index.jsonl", manifest, shard_dir=str(tmp_path / "other"))))


def test_an_s3_server(manifest: Path, shards: Path, tmp_path: Path, undecoded: None) -> None:
    """Needs a bucket to write to, say of moto: KVARTS_TEST_S3=s3://bucket FSSPEC_S3_ENDPOINT_URL=http://127.0.0.1:5000"""
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    if "KVARTS_TEST_S3" not in os.environ:
        pytest.skip("no S3 server: KVARTS_TEST_S3=s3://bucket names none")
    base = f"{os.environ['KVARTS_TEST_S3']}/{time.time_ns()}"
    files, root = fsspec.url_to_fs(base)
    for path in shards.parent.iterdir():
        files.pipe(f"{root}/{path.name}", path.read_bytes())
    wanted = [ids(batch) for batch in batches_of(data_of(shards, manifest))]
    for workers in (0, 2):
        data = data_of(f"{base}/{INDEX}", manifest, shard_dir=str(tmp_path / str(workers)), num_workers=workers)
        assert [ids(batch) for batch in batches_of(data)] == wanted
    with pytest.raises(ManifestError, match="no such index; check the path"):
        read_index(f"{base}/none/{INDEX}")
    lost = rows_of(shards)[3]
    files.rm(f"{root}/{lost['name']}")
    got, left_out = delivered(f"{base}/{INDEX}", manifest, shard_dir=str(tmp_path / "lost"), on_bad="skip")
    assert (len(got), len(left_out)) == (COUNT - lost["utterances"], lost["utterances"])
    assert all(f"{base}/{lost['name']}: no such file; copy it there again" in line for line in left_out)
    files.rm(root, recursive=True)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"abc://.*cannot be read.*pip install fsspec"):
        read_index("abc://bucket/index.jsonl")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)  # what was loaded before
    with pytest.raises(ConfigError, match=r"data.train_manifest=s3://bucket/index.jsonl.*pip install fsspec s3fs"):
        read_index("s3://bucket/index.jsonl")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(ConfigError, match="pip install fsspec s3fs"):
        read_index("s3://bucket/index.jsonl")


def put(**changes: Any) -> Callable[[list[dict[str, Any]]], None]:
    return lambda rows: rows[1].update(changes)


def each(name: str, value: Any) -> Callable[[list[dict[str, Any]]], None]:
    """One of the first shard's utterances has another value, the last."""
    return lambda rows: rows[1][name].__setitem__(-1, value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows.clear(), r":1: no index of shards, .*; write one with kvarts data shard"),
        (lambda rows: rows.__setitem__(0, []), r":1: no index of shards, a list, not an object"),
        (lambda rows: rows.__setitem__(0, {}), r':1: no index of shards, "kvarts_shards" is missing'),
        (lambda rows: rows[0].update(kvarts_shards=2), ":1: no index of shards, its format is 2, this version reads 1"),
        (lambda rows: rows[0].update(utterances="7"), ':1: no index of shards, "utterances" is a string'),
        (
            lambda rows: rows.__delitem__(slice(1, None)),
            ": the header counts 6 shards with 23 .* lines 0 shards with 0 ",
        ),
        (
            lambda rows: rows[:] and rows.__setitem__(slice(None), [{**rows[0], "shards": 0, "utterances": 0}]),
            "has no u",
        ),
        (lambda rows: rows.pop(), ": the header counts 6 shards with 23 utterances, the lines 5 shards with "),
        (lambda rows: rows.pop(1), r":2: shard-000001.tar begins with utterance \d, not 0, so lines are missing"),
        (lambda rows: rows.insert(1, rows.pop(2)), r":2: shard-000001.tar begins with utterance \d, not 0"),
        (lambda rows: rows.insert(1, rows[1]), r":3: shard-000000.tar begins with utterance 0, not \d"),
        (put(first=-1), r":2: .*begins with utterance -1, not 0"),
        (put(name="../x.tar"), ":2: a shard is called '../x.tar'"),
        (put(sha256="../x"), "SHA-256 '../x'"),
        (put(json_crc32=[1]), r'shard-000000.tar: "json_crc32" has 1 entries for \d utterances'),
        (put(json_crc32="1111"), '"json_crc32" is a string'),
        (put(utterances=True), '"utterances" is true or false'),
        (put(bytes=100), "shard-000000.tar: a member lies outside it"),
        (put(seconds=1.0), '"seconds" is not the sum'),
        (each("json_offset", -1), "a member lies outside it"),
        (each("audio_bytes", -1), "a member lies outside it"),
        (each("audio_offset", 2**63 - 2), "a member lies outside it"),
        (each("audio_offset", 2**64 - 2), '"audio_offset" has what is no whole number'),
        (each("audio_offset", 2**65), '"audio_offset" has what is no whole number'),
        (each("audio_offset", 1.5), '"audio_offset" has what is no whole number'),
        (each("json_crc32", "x"), '"json_crc32" has what is no whole number'),
        (each("json_crc32", [1]), '"json_crc32" has what is no whole number'),
        (each("json_crc32", None), '"json_crc32" has what is no whole number'),
        (each("duration_s", 0.0), 'a "duration_s" is no number above 0'),
        (each("duration_s", "x"), '"duration_s" has what is no number'),
        (each("duration_s", 77.0), '"seconds" is not the sum'),
        (each("audio_suffix", ["opus"]), 'an "audio_suffix" is not one of a file'),
        (each("audio_suffix", "/x"), 'an "audio_suffix" is not one of a file'),
    ],
)
def test_what_is_no_index(change: Callable[[Any], Any], words: str, shards: Path, tmp_path: Path) -> None:
    path = tmp_path / INDEX
    rows = rows_of(shards)
    change(rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ManifestError, match=words) as caught:
        read_index(str(path))
    lines = str(caught.value).splitlines()
    assert lines[0].startswith(f"{path}:")
    assert "kvarts data shard" in lines[-1]


def test_every_bad_line_of_an_index_is_named(shards: Path, tmp_path: Path) -> None:
    lines = shards.read_bytes().splitlines()
    lines[2], lines[5] = b'{"name": "cut', b"\xff"
    (tmp_path / INDEX).write_bytes(b"\n".join([*lines, b""]))
    with pytest.raises(ManifestError) as caught:
        read_index(str(tmp_path / INDEX))
    said = str(caught.value).splitlines()
    assert said[0] == f"{tmp_path / INDEX}: bad lines (2):"
    assert [line.partition(";")[0] for line in said[1:]] == [
        f"{tmp_path / INDEX}:3: broken JSON (Unterminated string starting at, column 10)",
        f"{tmp_path / INDEX}:6: not UTF-8 (byte 1 of the line)",
    ]


def test_an_index_is_read_in_any_pieces(shards: Path) -> None:
    memory = fsspec.filesystem("memory")
    content = b"\n".join([*shards.read_bytes().splitlines(), b"", b"  "])  # blank lines, no line end
    memory.pipe("/pieces/index.jsonl", content)
    wanted = read_index(str(shards))
    for size in (1, 7, 4096, len(content)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kvarts.shards, "_CHUNK_BYTES", size)
            index = read_index("memory://pieces/index.jsonl")
        assert index.shards == wanted.shards
        assert index.suffixes == wanted.suffixes
        for name in ("shard", "number", *UTTERANCE_COLUMNS):
            assert (getattr(index, name) == getattr(wanted, name)).all()


def test_a_large_index_takes_little_memory(tmp_path: Path) -> None:
    """80 bytes an utterance, where lists of Python's numbers would take 350, and a line at a time."""
    count = 1000
    columns: dict[str, list[Any]] = {name: [1000 + n for n in range(count)] for name in UTTERANCE_COLUMNS}
    columns |= {"audio_suffix": ["opus"] * count}
    row = {"bytes": 10**6, "sha256": "0" * 64, "utterances": count, "seconds": float(sum(columns["duration_s"]))}
    entries = [
        entry_of({**row, **columns, "name": f"shard-{number:06d}.tar", "first": number * count}) for number in range(40)
    ]
    write_index(tmp_path / INDEX, entries, 0, "")
    tracemalloc.start()
    try:
        index = read_index(str(tmp_path / INDEX))
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(index) == 40_000
    assert kept < 80 * len(index)
    assert peak < 120 * len(index)


def test_no_index_there(tmp_path: Path, server: Server) -> None:
    (tmp_path / "x").write_text("{")
    with pytest.raises(ManifestError, match="x:1: no index of shards, broken JSON"):
        read_index(str(tmp_path / "x"))
    for nothing in (str(tmp_path / INDEX), server.index.replace(INDEX, "none/index.jsonl")):
        with pytest.raises(ManifestError, match="no such index; check the path"):
            read_index(nothing)
    with pytest.raises(ManifestError, match="could not be read"):
        read_index(str(tmp_path))


# ---------------------------------------------------------------------------------------------------------- damage


@dataclass(frozen=True)
class Packed:
    """Where an utterance lies, told by tarfile and not by the index."""

    shard: str
    key: str  # ``shard-000000.tar: 000000000.``, for messages
    row: tarfile.TarInfo
    audio: tarfile.TarInfo
    content: tuple[bytes, bytes]


@pytest.fixture(scope="module")
def packed(shards: Path) -> dict[str, Packed]:
    """By id."""
    found: dict[str, Packed] = {}
    for path in sorted(shards.parent.glob("*.tar")):
        with tarfile.open(path) as tar:
            members = tar.getmembers()
            for row, audio in zip(members[::2], members[1::2], strict=True):
                content = tuple(tar.extractfile(member).read() for member in (row, audio))  # type: ignore[union-attr]
                key = f"{path.name}: {len(found):09d}."
                found[json.loads(content[0])["id"]] = Packed(path.name, key, row, audio, content)  # type: ignore[arg-type]
    return found


SHARD_HARMS = (
    *("cut", "flip", "zero", "insert", "delete", "append"),
    *("members", "shards", "gone", "twice", "foreign", "folder"),
)
INDEX_HARMS = ("flip", "digit", "cut", "cut file", "drop", "twice", "swap", "garble", "type", "foreign")


def damage_shard(folder: Path, kind: str, draw: random.Random) -> None:
    """One kind of harm to one or two shards of a folder."""
    first, second = draw.sample(sorted(folder.glob("*.tar")), 2)
    content = bytearray(first.read_bytes())
    place = draw.randrange(len(content))
    if kind == "cut":
        del content[draw.choice([0, 1, 511, 512, place]) :]
    elif kind == "flip":
        for _ in range(draw.choice([1, 3, 40])):
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    elif kind == "zero":
        size = draw.choice([512, 4096, 20_000])
        content[place : place + size] = bytes(len(content[place : place + size]))
    elif kind == "insert":
        content[place:place] = draw.randbytes(draw.choice([1, 512]))
    elif kind == "delete":
        del content[place : place + draw.choice([1, 512])]
    elif kind == "append":
        content += draw.randbytes(700)
    elif kind == "members":  # as if two were packed in each other's place
        with tarfile.open(first) as tar:
            one, other = draw.sample(tar.getmembers(), 2)
        for target, source in ((one, other), (other, one)):
            taken = first.read_bytes()[source.offset_data :][: min(one.size, other.size)]
            content[target.offset_data : target.offset_data + len(taken)] = taken
    elif kind == "shards":
        content, other_content = bytearray(second.read_bytes()), first.read_bytes()
        second.write_bytes(other_content)
    elif kind == "twice":
        content = bytearray(second.read_bytes())
    elif kind == "foreign":
        content = bytearray(draw.choice([b"", b"no tar", draw.randbytes(90_000), gzip.compress(bytes(content))]))
    if kind in ("gone", "folder"):
        first.unlink()
        if kind == "folder":
            first.mkdir()
    else:
        first.write_bytes(content)


def delivered(where: str, manifest: Path, **more: Any) -> tuple[set[str], list[str]]:
    """Ids of an epoch, and what was left out."""
    got: set[str] = set()
    left_out: list[str] = []
    for batch in batches_of(data_of(where, manifest, **more)):
        got |= set(ids(batch))
        left_out += batch.left_out
    return got, left_out


def check_damaged(
    where: str, bad: set[str], packed: dict[str, Packed], manifest: Path, folder: Path, what: str
) -> None:
    """Under both rules: what is whole is delivered, what is not is named, and nothing else."""
    more = {"shard_dir": str(folder), "shard_window": 6}
    got, left_out = delivered(where, manifest, on_bad="skip", batch_size=5, **more)
    assert got == packed.keys() - bad, what
    assert len(left_out) == len(bad), what
    for name in bad:
        assert sum(packed[name].key in line for line in left_out) == 1, (what, name, left_out)
    if not bad:
        assert delivered(where, manifest, **more) == (got, []), what
        return
    with pytest.raises(TrainingDataError) as caught:
        delivered(where, manifest, batch_size=COUNT, **more)
    lines = str(caught.value).splitlines()
    assert lines[-1] == "mend them, or leave them out with data.on_bad=skip", what
    found = [line for line in lines if any(packed[name].key in line for name in bad)]
    assert len(found) == min(len(bad), 10), what
    assert len(bad) == 1 or lines[0] == f"members of shards that cannot be used ({len(bad)}):", what
    assert all("copy" in line for line in found), what


def bad_of(packed: dict[str, Packed], folder: Path) -> set[str]:
    """Ids of which not every byte is where it was."""
    bad: set[str] = set()
    for name, utterance in packed.items():
        path = folder / utterance.shard
        now = path.read_bytes() if path.is_file() else b""
        for member, content in zip((utterance.row, utterance.audio), utterance.content, strict=True):
            if now[member.offset_data : member.offset_data + member.size] != content:
                bad.add(name)
    return bad


@pytest.mark.parametrize("remote", [False, True])
def test_shards_damaged_at_random(
    remote: bool,
    manifest: Path,
    shards: Path,
    packed: dict[str, Packed],
    tmp_path: Path,
    undecoded: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kvarts.shards, "_RETRY_WAITS_S", (0.0,))
    monkeypatch.setattr(os, "fsync", lambda _: None)  # nobody pulls the plug
    memory = fsspec.filesystem("memory")
    count_bad = 0
    for seed, kind in enumerate(SHARD_HARMS * (2 if remote else 6)):
        where = copied(shards, tmp_path / str(seed))
        damage_shard(where.parent, kind, random.Random(seed))
        bad = bad_of(packed, where.parent)
        count_bad += len(bad)
        address = str(where)
        if remote:
            address = f"memory://damaged{seed}/{INDEX}"
            for path in where.parent.iterdir():
                if path.is_file():
                    memory.pipe(f"/damaged{seed}/{path.name}", path.read_bytes())
        check_damaged(address, bad, packed, manifest, tmp_path / f"kept{seed}", f"seed {seed}: {kind}")
    assert count_bad > (50 if remote else 150)


def damage_index(lines: list[bytes], kind: str, draw: random.Random) -> None:
    """One kind of harm to the lines of an index."""
    number = draw.randrange(len(lines))
    line = bytearray(lines[number])
    if kind == "flip":
        line[draw.randrange(len(line))] ^= 1 << draw.randrange(7)
        line = line.replace(b"\n", b" ")
    elif kind == "digit":
        place = draw.choice([place for place, letter in enumerate(line) if letter in b"0123456789"])
        line[place : place + 1] = draw.choice(
            [b"1", b"9", b"-1", b"", b"1e9", b"99999999999999999999", b"1.5", b"null"]
        )
    elif kind == "cut":
        del line[draw.randrange(len(line)) :]
    elif kind == "garble":
        line = bytearray(draw.choice([draw.randbytes(50).replace(b"\n", b""), b"{}", b"null", b"[" * 5000, b"<html>"]))
    elif kind == "type":
        row = json.loads(line)
        row[draw.choice(sorted(row))] = draw.choice([None, True, [], {}, "x", -5, 1.5, 10**30, [[1]], ["x", 1]])
        line = bytearray(json.dumps(row).encode())
    lines[number] = bytes(line)
    if kind == "cut file":
        del lines[number:]
    elif kind == "drop":
        del lines[number]
    elif kind == "twice":
        lines.insert(number, lines[number])
    elif kind == "swap":
        other = draw.randrange(len(lines))
        lines[number], lines[other] = lines[other], lines[number]
    elif kind == "foreign":
        lines[:] = draw.choice(
            [[], [b""], [b"\x1f\x8b\x08"], [b'{"audio_filepath": "a.wav", "text": "x"}'], [b"<html>"] * 9]
        )


def test_indexes_damaged_at_random(
    manifest: Path, shards: Path, packed: dict[str, Packed], tmp_path: Path, undecoded: None
) -> None:
    """Either the lines are named and nothing is trained on, or the members that are not where their line says."""
    whole = shards.read_bytes().splitlines()
    where = copied(shards, tmp_path / "damaged")
    refused = 0
    for seed, kind in enumerate(INDEX_HARMS * 15):
        lines = list(whole)
        damage_index(lines, kind, random.Random(seed))
        what = f"seed {seed}: {kind}"
        where.write_bytes(b"".join(line + b"\n" for line in lines))
        try:
            got, left_out = delivered(str(where), manifest, on_bad="skip", shard_window=6)
        except ManifestError as error:
            refused += 1
            said = str(error)
        else:
            assert len(got) + len(left_out) == COUNT, what
            of_whole = {json.loads(line)["name"] for line in set(lines[1:]) & set(whole[1:])}
            assert got >= {name for name, utterance in packed.items() if utterance.shard in of_whole}, what
            keys = [re.findall(r"\.tar: (\d{9})\.", line)[0] for line in left_out]
            assert len(set(keys)) == len(left_out), what
            if left_out:
                with pytest.raises(TrainingDataError, match=re.escape(left_out[0].partition(": ")[0])):
                    delivered(str(where), manifest, batch_size=COUNT, shard_window=6)
            else:
                assert delivered(str(where), manifest, shard_window=6) == (got, []), what
            continue
        named = {int(number) for number in re.findall(rf"{where}:(\d+): ", said)}
        assert named or "the header counts" in said, what
        altered = {
            number for number in range(1, len(lines) + 1) if lines[number - 1 : number] != whole[number - 1 : number]
        }
        # After a line that is missing or stands elsewhere, the next is where one sees it.
        assert named <= altered | {number + 1 for number in altered} | {1}, what
        assert 1 in named or named >= {number for number, line in enumerate(lines, 1) if not is_object(line)}, what
        assert "kvarts data shard" in said, what
        with pytest.raises(ManifestError, match=re.escape(said)):
            data_of(where, manifest)
    assert 75 < refused < 150


def is_object(line: bytes) -> bool:
    try:
        return not line.strip() or isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


# ------------------------------------------------------------------------------------------------------ a whole run


def test_cut_and_resumed_equals_never_cut_and_is_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut by an exception, which leaves what a kill leaves (test_resume.py has kills) and starts no second Python."""
    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: None)  # a second each; the points are what counts
    data_dir = small_run.make_data(tmp_path / "data")
    utterances: list[Utterance] = read_manifest(data_dir / "train_opus" / "manifest.jsonl")
    assert len(write_shards(utterances, tmp_path / "shards", 120_000, seed=0)) >= 3
    more = (f"data.train_manifest={tmp_path / 'shards' / INDEX}", "data.shard_window=1", "trainer.max_steps=6")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    evaluations = small_run.run(data_dir, whole, *more, "evaluate.enabled=true", "evaluate.train_minutes=0.5")
    assert evaluations[0].name == "train sample"
    assert 30 <= evaluations[0].audio_s < 60
    sample = read_manifest(whole / "train_sample" / "manifest.jsonl")
    assert len(sample) == evaluations[0].num_utterances
    by_id = {utterance.utterance_id: utterance for utterance in utterances}
    assert all(u.audio_path.read_bytes() == by_id[u.utterance_id].audio_path.read_bytes() for u in sample)

    class CutError(Exception):
        pass

    step = QuartzNetCTC.training_step

    def dies(model: QuartzNetCTC, batch: Batch, batch_idx: int) -> torch.Tensor:
        if model.global_step == 5:
            raise CutError
        return step(model, batch, batch_idx)

    monkeypatch.setattr(QuartzNetCTC, "training_step", dies)
    with pytest.raises(CutError):
        small_run.run(data_dir, cut, *more, "data.num_workers=1")
    monkeypatch.setattr(QuartzNetCTC, "training_step", step)
    last = cut / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=False)["global_step"] == 3
    small_run.run(data_dir, cut, *more, f"resume={last}")
    assert small_run.points(cut) == small_run.points(whole)
