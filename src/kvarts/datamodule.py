"""Which data a run uses, whether it can be trained on, and the loaders that bring it."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from kvarts.checks import Problem, check_audio
from kvarts.dataset import (
    Augmentation,
    Batch,
    BucketSampler,
    Draw,
    Example,
    ShareSampler,
    SpeechDataset,
    collate,
    random_places,
)
from kvarts.device_sound import DeviceSound
from kvarts.errors import AudioError, ConfigError, KvartsError, TrainingDataError, listing
from kvarts.feature_cache import BYTES_PER_SECOND, SAMPLES, FeatureCache
from kvarts.files import cache_dir as cache_dir_of_user
from kvarts.frames import SAMPLE_RATE
from kvarts.manifest import Utterance, read_manifest
from kvarts.shards import ShardDataset, ShardFiles, ShardIndex, ShardSampler, is_index, read_index, unpack
from kvarts.sound import Sound
from kvarts.utterance_table import TrainingManifest, UtteranceTable

logger = logging.getLogger("lightning")

_MOST_WORKERS = 8

SAMPLE_DIR = Path(__file__).resolve().parents[2] / "sample"


def find_data_dir(data_dir: str | Path | None) -> Path:
    """The folder given, else ./data where it exists, else the sample that ships with the repository.

    Raises:
        ConfigError: there is none of them.
    """
    if data_dir is not None:
        if not Path(data_dir).is_dir():
            raise ConfigError(f"data_dir={data_dir}: no such folder; check the path")
        return Path(data_dir)
    for candidate in (Path("data"), Path("sample"), SAMPLE_DIR):
        if candidate.is_dir():
            return candidate
    raise ConfigError(
        "no data: there is neither ./data nor ./sample; fetch the course's data with ./download_data.sh "
        "or name a folder with data_dir="
    )


class SpeechData(pl.LightningDataModule):
    """Training and validation data of a run.

    Args:
        data_dir: folder in the course's layout, or None (see `find_data_dir`).
        stride: log-mel frames for each encoded frame, for the feasibility check.
        seed: of subset, order and augmentation.
        augmentation: of training features, or None.
        sound: augmentation of the waveforms of training, before that of features, or None.
        (the rest: as described in conf/quarznet_5x5_ru.yaml, section data)
    """

    def __init__(
        self,
        data_dir: str | Path | None,
        stride: int,
        seed: int,
        *,
        train_manifest: str | None = None,
        val_manifest: str | None = None,
        test_manifests: Mapping[str, str] | None = None,
        train_minutes: float | None = None,
        batch_size: int = 16,
        val_batch_size: int = 16,
        shuffle: bool = True,
        bucketing: bool = True,
        num_workers: int | None = None,
        augment_on_device: bool | None = None,
        cache_dir: str | None = None,
        cache_mb: int = 4096,
        on_bad: str = "error",
        check_audio: bool = True,
        shard_window: int = 4,
        shard_dir: str | None = None,
        shard_mb: int = 32768,
        augmentation: Augmentation | None = None,
        sound: Sound | None = None,
    ) -> None:
        super().__init__()
        if on_bad not in ("error", "skip"):
            raise ConfigError(f"data.on_bad={on_bad}; choose error or skip")
        root = find_data_dir(data_dir)
        if data_dir is None:
            other = "" if root.name == "data" else " (there is no ./data)"
            logger.info("data: %s%s", root, other)
        else:
            logger.info("data: %s", root)
        self._index_at = train_manifest if train_manifest is not None and is_index(train_manifest) else None
        self.train_manifest = Path(train_manifest or root / "train_opus" / "manifest.jsonl")
        if train_manifest is None and not self.train_manifest.is_file():
            raise ConfigError(
                f"{self.train_manifest}: no such manifest; fetch the course's data with ./download_data.sh, "
                "name another folder with data_dir=, or the manifest with data.train_manifest="
            )
        farfield = root / "test_opus" / "farfield" / "manifest.jsonl"
        held_out = root / "val_opus" / "manifest.jsonl"
        if val_manifest:
            self.val_manifest, why = Path(val_manifest), "data.val_manifest"
        elif held_out.is_file():
            self.val_manifest, why = held_out, "the data folder has a validation set"
        elif not farfield.is_file():
            raise ConfigError(
                f"{root}: nothing to validate on, neither val_opus/manifest.jsonl nor "
                "test_opus/farfield/manifest.jsonl; add one, or name a manifest with data.val_manifest="
            )
        else:
            self.val_manifest, why = farfield, "no val_opus there: the far-field test set, as in the course"
        logger.info("validation: %s (%s)", self.val_manifest, why)
        if test_manifests is not None:
            self.test_manifests = {name: Path(path) for name, path in test_manifests.items()}
        else:
            crowd = root / "test_opus" / "crowd" / "manifest.jsonl"
            self.test_manifests = {p.parent.name: p for p in (crowd, farfield) if p.is_file()}
        self._stride = stride
        self._seed = seed
        self._train_minutes = train_minutes
        self._batch_size = batch_size
        self._val_batch_size = val_batch_size
        self._shuffle = shuffle
        self._bucketing = bucketing
        self._num_workers = num_workers
        bytes_per_second = BYTES_PER_SECOND + (2 * SAMPLE_RATE if sound is not None else 0)
        self._cache = _feature_cache(cache_dir, cache_mb, bytes_per_second)
        self._on_bad = on_bad
        self._check_audio = check_audio
        self._shard_window = shard_window
        self._shard_dir = shard_dir
        self._shard_mb = shard_mb
        self._augmentation = augmentation
        self._sound = sound
        self._augment_on_device = augment_on_device
        self._device_sound: DeviceSound | None = None  # from the first loader on
        self._sample_cache = None
        if sound is not None and self._cache is not None:
            self._sample_cache = FeatureCache(self._cache.folder, cache_mb * 2**20, SAMPLES)
        self._sampler: BucketSampler | None = None
        self._place: dict[str, Any] | None = None
        self.train: UtteranceTable | ShardIndex  # from prepare() on
        self.val: list[Utterance] = []
        self._left_out: list[str] = []  # of this epoch, by name

    def prepare(self) -> None:
        """Read and check everything before step 0.

        Raises:
            ManifestError: a manifest, or the index of shards, is missing, empty or broken.
            TrainingDataError: utterances that cannot be used, listed by file:line, where on_bad is error.
        """
        manifest = None
        if self._index_at is not None:
            self.train = read_index(self._index_at)
            if self._train_minutes is not None:
                self.train = self.train.part(60 * self._train_minutes, self._seed)
        else:
            home = cache_dir_of_user()
            manifest = TrainingManifest(self.train_manifest, self._stride, home and home / "manifests")
        self.val = read_manifest(self.val_manifest)
        tests = [u for path in self.test_manifests.values() for u in read_manifest(path)]
        if self._sound is not None:
            _refuse_test_rooms(self._sound.rooms, [*self.val, *tests])
        if self._check_audio:
            bad_tests = check_audio(tests)
            if bad_tests:
                raise TrainingDataError(listing("test utterances that cannot be read", [str(p) for p in bad_tests]))
        if manifest is not None:
            self.train = self._usable_table(manifest)
        bad_val = self._unusable(check_audio(self.val) if self._check_audio else [], len(self.val), "validation")
        self.val = [utterance for utterance in self.val if utterance.line not in bad_val]
        count, train_s = len(self.train), float(self.train.duration_s.sum())
        logger.info(
            "training on %d utterances, %.2f h; validating on %d, %.2f h",
            *(count, train_s / 3600),
            *(len(self.val), sum(u.duration_s for u in self.val) / 3600),
        )

    def train_sample(self, duration_s: float, folder: Path) -> list[Utterance]:
        """About so many seconds of the training data, drawn by the seed; those of shards are unpacked into `folder`."""
        if isinstance(self.train, UtteranceTable):
            return [self.train[place] for place in random_places(self.train.duration_s, duration_s, self._seed)]
        part = self.train.part(duration_s, self._seed)
        return unpack(part, self._shard_files(part), folder, skip_bad=self._on_bad == "skip")

    def _shard_files(self, index: ShardIndex) -> ShardFiles:
        home = cache_dir_of_user()
        if self._shard_dir is not None:
            folder = Path(self._shard_dir)
        elif home is not None:
            folder = home / "shards"
        else:
            raise ConfigError("you have no home folder to keep shards in; name another folder with data.shard_dir=")
        return ShardFiles(index, folder, self._shard_mb * 2**20)

    def _usable_table(self, manifest: TrainingManifest) -> UtteranceTable:
        train = manifest.table
        if self._train_minutes is not None:
            train = train.select(random_places(train.duration_s, 60 * self._train_minutes, self._seed))
        problems = manifest.target_problems(train)
        if self._check_audio:
            problems += manifest.audio_problems(train)
        bad = self._unusable(problems, len(train), "training")
        return train.select(~np.isin(train.line, list(bad))) if bad else train

    def _unusable(self, problems: Sequence[Problem], count: int, part: str) -> set[int]:
        """The lines of a manifest's utterances, `count` in all, that are to be left out; they are named."""
        if not problems:
            return set()
        problems = sorted(problems, key=lambda problem: problem.utterance.line)  # of texts and of audio together
        message = listing(f"{part} utterances that cannot be used", [str(problem) for problem in problems])
        if self._on_bad == "error":
            raise TrainingDataError(f"{message}\nmend these lines, or leave them out with data.on_bad=skip")
        skipped_s = {problem.utterance.line: problem.utterance.duration_s for problem in problems}
        logger.warning(
            *("skipped %d of %d %s utterances, %.1f s\n%s", len(skipped_s), count, part, sum(skipped_s.values())),
            message,
        )
        if len(skipped_s) == count:
            raise TrainingDataError(f"no {part} utterance is left; {message}")
        return set(skipped_s)

    def train_dataloader(self) -> DataLoader[Example | Batch | KvartsError]:
        rank, world_size = self._share()
        place = self._place if self._sampler is None else self.state_dict()  # a loader made anew goes on
        how = (self._shuffle, self._bucketing, self._seed, rank, world_size)
        if isinstance(self.train, UtteranceTable):
            self._sampler = BucketSampler(self.train.duration_s, self._batch_size, *how)
        else:
            self._sampler = ShardSampler(self.train, self._batch_size, self._shard_window, *how)
        if place is not None:
            _refuse_other_order(place.get("order", {}), self._order())
            self._sampler.load_state_dict(place)
        self._device_sound = self._suitable_device_sound()
        if isinstance(self.train, UtteranceTable):
            caches = (self._cache, self._sound, self._sample_cache)
            dataset = SpeechDataset(self.train, self._augmentation, self._seed, *caches, self._device_sound)
            return self._loader(dataset, self._sampler, self._device_sound)
        sharded = ShardDataset(
            self.train,
            self._shard_files(self.train),
            self._shard_window,
            self._stride,
            skip_bad=self._on_bad == "skip",
            shuffle=self._shuffle,
            augmentation=self._augmentation,
            seed=self._seed,
            cache=self._cache,
            sound=self._sound,
            sample_cache=self._sample_cache,
            device_sound=self._device_sound,
        )
        # Without a batch size a loader takes whole batches from the data set.
        return DataLoader(sharded, batch_size=None, sampler=self._sampler, **self._reading())

    def val_dataloader(self) -> DataLoader[Example | Batch | KvartsError]:
        sampler = ShareSampler([u.duration_s for u in self.val], self._val_batch_size, *self._share())
        return self._loader(SpeechDataset(self.val, cache=self._cache), sampler)

    def _share(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def on_before_batch_transfer(self, batch: Batch | KvartsError, dataloader_idx: int) -> Batch:
        """Raises what went wrong where the batch was made, perhaps in another process; counts what was left out."""
        if isinstance(batch, KvartsError):
            raise batch
        if batch.left_out and not self._left_out:
            logger.warning("left out: %s; the epoch's end counts all", batch.left_out[0])
        self._left_out += batch.left_out
        return batch

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Makes the features that were left to the device."""
        if batch.sound is None:
            return batch
        assert self._device_sound is not None
        return replace(batch, features=self._device_sound.features(batch.sound), sound=None)

    def _suitable_device_sound(self) -> DeviceSound | None:
        """What augments sound on the device: where it is told to, or where that is a GPU of NVIDIA's and it can."""
        if self._sound is None or self._augment_on_device is False:
            return None
        is_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        if self._augment_on_device is None and not is_gpu:
            return None
        try:
            return DeviceSound(self._sound, self._augmentation)
        except ConfigError:
            if self._augment_on_device:
                raise
            return None

    def _loader(
        self,
        dataset: SpeechDataset,
        sampler: BucketSampler | ShareSampler,
        device_sound: DeviceSound | None = None,
    ) -> DataLoader[Example | Batch | KvartsError]:
        joined = partial(_collate, device_sound=device_sound)
        return DataLoader(_ErrorsAsItems(dataset), batch_sampler=sampler, collate_fn=joined, **self._reading())

    def _reading(self) -> dict[str, Any]:
        workers = self._suitable_workers() if self._num_workers is None else self._num_workers
        return {
            "num_workers": workers,
            "persistent_workers": workers > 0,
            "pin_memory": torch.cuda.is_available(),
            # A generator of its own: else making an iterator would draw from the model's random numbers, and a resumed
            # run would dream up other dropout masks than the one never killed.
            "generator": torch.Generator().manual_seed(self._seed),
        }

    def _suitable_workers(self) -> int:
        """None on a CPU, whose cores are the network's; else this process's share of the cores, its own left out.

        From a warm cache a worker prepares 2000 to 6000 utterances a second: more than 8 would have nothing to do.
        Where the sound is augmented it is 110, of 5.5 s each (augment=farfield, 15 workers beside an H100).
        """
        if self.trainer is None or self.trainer.strategy.root_device.type == "cpu":
            return 0
        share = _cores() // self.trainer.num_devices - 1
        return max(0, share if self._sound is not None else min(_MOST_WORKERS, share))

    def batch_done(self) -> None:
        """Training calls this after every batch, so that a checkpoint knows the place in the data."""
        if self._sampler is not None:
            self._sampler.batch_done()
            if self._sampler.batches_done == 0:
                self._report_left_out(self._sampler.epoch - 1)

    def teardown(self, stage: str) -> None:
        """Says what was left out in an epoch that did not come to its end."""
        if self._sampler is not None:
            self._report_left_out(self._sampler.epoch)

    def _report_left_out(self, epoch: int) -> None:
        if self._left_out:
            rank, world_size = self._share()
            whose = f" of process {rank + 1} of {world_size}" if world_size > 1 else ""
            message = listing("left out", self._left_out)
            logger.warning("epoch %d%s: left out %d utterances\n%s", epoch, whose, len(self._left_out), message)
            self._left_out.clear()

    def state_dict(self) -> dict[str, Any]:
        """The place in the data, and what the order of the data depends on."""
        return {} if self._sampler is None else {**self._sampler.state_dict(), "order": self._order()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the place for the training loader, which raises ConfigError where the order is no longer the same."""
        self._place = state_dict or None

    def _order(self) -> dict[str, Any]:
        windows = {} if isinstance(self.train, UtteranceTable) else {"data.shard_window": self._shard_window}
        return {
            **windows,
            "seed": self._seed,
            "data.batch_size": self._batch_size,
            "data.shuffle": self._shuffle,
            "data.bucketing": self._bucketing,
            "number of processes": self._share()[1],
            "number of training utterances": len(self.train),
            "digest of the training utterances": self.train.digest,
        }


def _cores() -> int:
    """Of this machine, as many as this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _feature_cache(cache_dir: str | None, cache_mb: int, bytes_per_second: int) -> FeatureCache | None:
    """The cache of a run, or None: switched off, or nowhere to put it.

    Raises:
        ConfigError: `cache_dir`, or what it lies in, is a file.
    """
    if cache_mb == 0:
        return None
    if cache_dir is None:
        root = cache_dir_of_user()
        if root is None:
            logger.warning("features are not kept, for you have no home folder; name a folder with data.cache_dir=")
            return None
        folder = root / "features"
    else:
        folder = Path(cache_dir)
        if _is_no_folder(folder):
            raise ConfigError(
                f"data.cache_dir={cache_dir}: this or what it lies in is a file; name a folder, or set data.cache_mb=0"
            )
    hours = cache_mb * 2**20 // (bytes_per_second * 3600)
    logger.info("features are kept in %s, up to %d MB (%d h of speech)", folder, cache_mb, hours)
    return FeatureCache(folder, cache_mb * 2**20)


def _is_no_folder(path: Path) -> bool:
    try:
        return not stat.S_ISDIR(path.stat().st_mode)
    except (NotADirectoryError, ValueError):
        return True
    except OSError:  # may not be looked at; the cache will say so when it stores
        return False


def _refuse_test_rooms(rooms: set[str], held_out: Sequence[Utterance]) -> None:
    """Test rooms are never training rooms: else a score would say how well these rooms were learnt."""
    offenders = [u for u in held_out if isinstance(u.fields.get("room"), str) and u.fields["room"] in rooms]
    if offenders:
        raise ConfigError(
            f"{offenders[0].where}: recorded in the room {offenders[0].fields['room']!r}, which augment.rooms has too; "
            "train in other rooms, or validate and test in others"
        )


def _refuse_other_order(then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    changed = [f"{name} was {then[name]}, is {now[name]}" for name in now if name in then and then[name] != now[name]]
    if changed:
        raise ConfigError(
            f"the run to resume had another order of data ({'; '.join(changed)}): resume it with what it had, "
            "or start from its weights with model.init_weights="
        )


class _ErrorsAsItems(Dataset[Example | KvartsError]):
    """Errors travel as items: one raised in a worker process would arrive with its traceback for a message."""

    def __init__(self, dataset: SpeechDataset) -> None:
        self._dataset = dataset

    def __getitem__(self, draw: Draw) -> Example | KvartsError:
        try:
            return self._dataset[draw]
        except KvartsError as error:
            return error


def _collate(items: Sequence[Example | KvartsError], device_sound: DeviceSound | None) -> Batch | KvartsError:
    errors = [item for item in items if isinstance(item, KvartsError)]
    if errors and all(isinstance(error, AudioError) for error in errors):
        return AudioError(listing("files that could not be read", [str(error) for error in errors]))
    if errors:
        return errors[0]
    return collate([item for item in items if isinstance(item, Example)], device_sound)
