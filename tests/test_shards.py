"""Shards: what is written, who is given what and when, what is fetched, and what is said of whatever is damaged."""

from __future__ import annotations

import hashlib
import http.server
import io
import itertools
import json
import logging
import os
import random
import signal
import subprocess
import sys
import tarfile
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
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

import kvarts.shards
import small_run
from kvarts.audio import read_audio
from kvarts.cli import main
from kvarts.data_shard import INDEX, write_shards
from kvarts.datamodule import SpeechData
from kvarts.dataset import Batch, BucketSampler, Draw
from kvarts.errors import AudioError, ConfigError, DownloadError, KvartsError, ManifestError, TrainingDataError
from kvarts.feature_cache import FeatureCache
from kvarts.features import log_mel
from kvarts.manifest import Utterance, read_manifest, write_manifest
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
    index = write_shards(read_manifest(manifest), folder, SHARD_BYTES, seed=0)
    counts = [shard["utterances"] for shard in index["shards"]]
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


def copied(shards: Path, folder: Path) -> Path:
    files = list(shards.parent.iterdir())
    folder.mkdir()
    for path in files:
        (folder / path.name).write_bytes(path.read_bytes())
    return folder / INDEX


# -------------------------------------------------------------------------------------------------- what is written


def test_a_shard_holds_files_and_rows_as_they_were(manifest: Path, shards: Path) -> None:
    by_id = {utterance.utterance_id: utterance for utterance in read_manifest(manifest)}
    content = json.loads(shards.read_text(encoding="utf-8"))
    seen: list[str] = []
    for entry in content["shards"]:
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
    assert (content["utterances"], content["shuffle_seed"]) == (COUNT, 0)
    assert content["seconds"] == pytest.approx(sum(utterance.duration_s for utterance in by_id.values()))


def test_webdataset_reads_them(shards: Path) -> None:
    index = json.loads(shards.read_text(encoding="utf-8"))
    urls = [str(shards.parent / entry["name"]) for entry in index["shards"]]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [f"{number:09d}" for number in range(COUNT)]
    for sample in samples:
        suffix = json.loads(sample["json"])["audio_filepath"].partition(".")[2]
        assert soundfile.info(io.BytesIO(sample[suffix])).samplerate > 0


def test_unpacked_they_are_a_manifest_again(manifest: Path, shards: Path, tmp_path: Path) -> None:
    for path in sorted(shards.parent.glob("*.tar")):
        with tarfile.open(path) as tar:
            tar.extractall(tmp_path, filter="data")
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
    index = write_shards(read_manifest(manifest), tmp_path, 1, seed=0)
    assert [shard["utterances"] for shard in index["shards"]] == [1] * COUNT


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
    assert json.loads((out / INDEX).read_text())["utterances"] == 1

    assert f"{out}: has shards of other utterances" in fails(manifest, "-o", out)
    (out / INDEX).unlink()
    assert f"{out}: has shards of other utterances" in fails(manifest, "-o", out)
    (out / INDEX).write_text("{}")
    assert f"{out}: its index cannot be read" in fails(manifest, "-o", out)


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
        audio_suffix=["opus"] * count,
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


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_ranks_and_workers_share_an_epoch(world_size: int, manifest: Path, shards: Path) -> None:
    wanted = sorted(utterance.utterance_id for utterance in read_manifest(manifest))
    shares: dict[int, list[list[list[str]]]] = {}
    for workers in range(4):
        shares[workers] = [
            [ids(batch) for batch in batches_of(data_of(shards, manifest, rank, world_size, num_workers=workers))]
            for rank in range(world_size)
        ]
        assert sorted(itertools.chain(*itertools.chain(*shares[workers]))) == wanted
        assert len({len(share) for share in shares[workers]}) == 1, "ranks that take different numbers of steps"
        assert shares[workers] == shares[0], "workers have a say in the order"


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
def test_resumed_loaders_go_on(workers: int, manifest: Path, shards: Path) -> None:
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
    entries = json.loads(shards.read_text())["shards"]
    assert server.requests == Counter({INDEX: 1, **{entry["name"]: 1 for entry in entries}}), "fetched more than once"
    kept = {path.name: path.read_bytes() for path in (tmp_path / "kept").glob("*.tar")}
    assert kept == {f"{e['sha256']}.tar": (shards.parent / e["name"]).read_bytes() for e in entries}


def test_ranks_of_a_machine_fetch_a_shard_once(manifest: Path, server: Server, tmp_path: Path) -> None:
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
    with pytest.raises(DownloadError, match=r"http://127.0.0.1:9/index.json: .*refused.*, 4 times"):
        read_index("http://127.0.0.1:9/index.json")
    with pytest.raises(DownloadError, match=r"http://\[x/index.json: .*check the address"):
        read_index("http://[x/index.json")


@pytest.mark.parametrize("harm", ["missing", "cut short", "flipped"])
@pytest.mark.parametrize("remote", [False, True])
def test_a_damaged_shard_is_named_or_left_out_and_counted(
    harm: str, remote: bool, manifest: Path, server: Server, tmp_path: Path, warnings: Callable[[], list[str]]
) -> None:
    whole = json.loads((server.folder / INDEX).read_text())["shards"][2]
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
        files.look_ahead(kept=[], soon=[shard])
        files.read(shard, 0, 1)
        os.utime(folder / f"{index.shards[shard].sha256}.tar", (now_s + shard, now_s + shard))
    assert there() == {"a" * 64} | digests(0, 1, 2), "what nobody used for a day goes first, what is used stays"
    files.look_ahead(kept=[2], soon=[3])
    assert files.read(3, 257, 5) == b"ustar"
    assert there() == {"a" * 64} | digests(0, 2, 3), "what was used last is needed last"
    # What is needed is kept, even if it is too much.
    files = ShardFiles(index, folder, 1)
    files.look_ahead(kept=[4], soon=[5])
    for shard in (4, 5):
        files.read(shard, 0, 1)
    assert there() == {"a" * 64} | digests(4, 5)
    # And what was taken away meanwhile is fetched again.
    files = ShardFiles(index, folder, 2**30)
    (folder / f"{index.shards[4].sha256}.tar").unlink()
    assert files.read(4, 257, 5) == b"ustar"


def test_a_folder_that_cannot_be_made(server: Server, manifest: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    data = data_of(server.index, manifest, shard_dir=str(tmp_path / "file" / "x"))
    with pytest.raises(KvartsError, match="could not be written"):
        list(batches_of(data))


# -------------------------------------------------------------------------------------------------------- addresses


def test_what_is_an_index() -> None:
    assert all(map(is_index, ("index.json", "/a/index.json", "http://x/i.json", "s3://b/k/index.json")))
    assert not any(map(is_index, ("manifest.jsonl", "train_manifest.json", "/index.json/manifest.jsonl")))


def test_other_file_systems(manifest: Path, shards: Path, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for path in shards.parent.iterdir():
        memory.pipe(f"/bucket/{path.name}", path.read_bytes())
    wanted = [ids(batch) for batch in batches_of(data_of(shards, manifest))]
    data = data_of("memory://bucket/index.json", manifest, shard_dir=str(tmp_path), num_workers=1)
    assert [ids(batch) for batch in batches_of(data)] == wanted
    assert [ids(batch) for batch in batches_of(data_of(f"file://{shards}", manifest))] == wanted
    with pytest.raises(ManifestError, match=r"memory://bucket/none.json: no such index"):
        read_index("memory://bucket/none.json")
    memory.rm("/bucket/shard-000000.tar")
    with pytest.raises(KvartsError, match=r"memory://bucket/shard-000000.tar: no such file"):
        list(batches_of(data_of("memory://bucket/index.json", manifest, shard_dir=str(tmp_path / "other"))))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"abc://.*cannot be read.*pip install fsspec"):
        read_index("abc://bucket/index.json")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ConfigError, match=r"data.train_manifest=s3://bucket/index.json.*pip install fsspec s3fs"):
        read_index("s3://bucket/index.json")
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(ConfigError, match="pip install fsspec s3fs"):
        read_index("s3://bucket/index.json")


def edited(content: dict[str, Any], **changes: Any) -> dict[str, Any]:
    first, *others = content["shards"]
    return {**content, "shards": [{**first, **changes}, *others]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: [], "TypeError"),
        (lambda content: {}, "kvarts_shards"),
        (lambda content: {**content, "kvarts_shards": 2}, "its format is 2, this version reads 1"),
        (lambda content: {**content, "shards": []}, "no utterances"),
        (lambda content: edited(content, name="../x.tar"), r"a shard is called '../x.tar'"),
        (lambda content: edited(content, sha256="../x"), "SHA-256 '../x'"),
        (lambda content: edited(content, json_crc32=[1]), "shard-000000.tar has lists of different lengths"),
        (lambda content: edited(content, bytes=100), "a member lies outside its shard"),
        (lambda content: edited(content, json_offset=[-1] * content["shards"][0]["utterances"]), "outside"),
        (lambda content: edited(content, duration_s=[0.0] * content["shards"][0]["utterances"]), "duration"),
        (lambda content: edited(content, json_crc32=["x"] * content["shards"][0]["utterances"]), "ValueError"),
    ],
)
def test_what_is_no_index(change: Callable[[Any], Any], words: str, shards: Path, tmp_path: Path) -> None:
    path = tmp_path / INDEX
    path.write_text(json.dumps(change(json.loads(shards.read_text()))))
    with pytest.raises(ManifestError, match=words) as caught:
        read_index(str(path))
    assert str(caught.value).startswith(f"{path}: no index of shards")
    assert "\n" not in str(caught.value)


def test_no_index_there(tmp_path: Path, server: Server) -> None:
    (tmp_path / "x").write_text("{")
    with pytest.raises(ManifestError, match="no index of shards"):
        read_index(str(tmp_path / "x"))
    for nothing in (str(tmp_path / INDEX), server.index.replace(INDEX, "none/index.json")):
        with pytest.raises(ManifestError, match="no such index; check the path"):
            read_index(nothing)
    with pytest.raises(ManifestError, match="could not be read"):
        read_index(str(tmp_path))


# ------------------------------------------------------------------------------------------------------ a whole run


def test_killed_and_resumed_equals_never_killed_and_is_evaluated(tmp_path: Path) -> None:
    data_dir = small_run.make_data(tmp_path / "data")
    utterances: list[Utterance] = read_manifest(data_dir / "train_opus" / "manifest.jsonl")
    index = write_shards(utterances, tmp_path / "shards", 120_000, seed=0)
    assert len(index["shards"]) >= 3
    more = (f"data.train_manifest={tmp_path / 'shards' / INDEX}", "data.shard_window=1", "trainer.max_steps=6")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    evaluations = small_run.run(data_dir, whole, *more, "evaluate.enabled=true", "evaluate.train_minutes=0.5")
    assert evaluations[0].name == "train sample"
    assert 30 <= evaluations[0].audio_s < 60
    sample = read_manifest(whole / "train_sample" / "manifest.jsonl")
    assert len(sample) == evaluations[0].num_utterances
    by_id = {utterance.utterance_id: utterance for utterance in utterances}
    assert all(u.audio_path.read_bytes() == by_id[u.utterance_id].audio_path.read_bytes() for u in sample)
    small_run.kill_at(5, data_dir, cut, *more, "data.num_workers=1")
    small_run.run(data_dir, cut, *more, f"resume={cut / 'checkpoints' / 'last.ckpt'}")
    assert small_run.points(cut) == small_run.points(whole)
