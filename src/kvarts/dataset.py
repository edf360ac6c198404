"""From manifest to batch: what the network is fed, in which order, and how a run picks up where it stopped.

The order of utterances is a function of (seed, epoch) alone and augmentation one of (seed, epoch, utterance), so they
do not depend on the number of workers, and a resumed run sees exactly what the killed one would have seen.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from kvarts.alphabet import ALPHABET, encode
from kvarts.audio import read_audio
from kvarts.device_sound import DeviceSound, DrawnSound, SoundBatch
from kvarts.errors import AudioError, ConfigError
from kvarts.feature_cache import FeatureCache
from kvarts.features import N_MELS, log_mel
from kvarts.manifest import Utterance
from kvarts.sound import Sound, to_pcm
from kvarts.text import normalise

Features = NDArray[np.float32]
Pcm = NDArray[np.int16]  # (samples,), 16 kHz
Augmentation = Callable[[Features, np.random.Generator], Features]
# Lengths are blurred by up to so much before they are sorted, which keeps company changing from epoch to epoch. Of
# large batches about as much is then padding; where that would be over 5 %, half the blur has to do. Padding left, mean
# of 20 epochs: 487 utterances of 4 to 18 s in batches of 8, 16, 32: 4.0, 4.1, 5.3 %; the 90 of sample/ in batches of 4,
# 8, 16: 3.2, 4.3, 6.6 %, where sorting alone leaves 1.4, 3.4, 5.9 %.
_BLUR = 0.05
_MOST_PADDING = 0.05
# An utterance in a certain epoch: (epoch, index into the manifest).
Draw = tuple[int, int]


@dataclass(frozen=True)
class Example:
    """One utterance ready for the network: features (frames, 64) float32, label ids (characters,) int64.

    Where its features are to be made on the device, `sound` says of what, and `features` is empty.
    """

    features: Tensor
    targets: Tensor
    utterance: Utterance
    sound: DrawnSound | None = None

    @property
    def frames(self) -> int:
        """Of its features, made or to be made."""
        return len(self.features) if self.sound is None else self.sound.frames


@dataclass
class Batch:
    """Utterances padded to the longest.

    features (batch, frames, 64) float32; feature_lengths (batch,) int64, frames; targets (sum of target_lengths,)
    int64, all label ids one after the other; target_lengths (batch,) int64. left_out names utterances that would be
    here but could not be used. Where the features are to be made on the device, `sound` is what they are made of, and
    until then they are empty.
    """

    features: Tensor
    feature_lengths: Tensor
    targets: Tensor
    target_lengths: Tensor
    utterances: list[Utterance]
    left_out: list[str] = field(default_factory=list)
    sound: SoundBatch | None = None

    @property
    def texts(self) -> list[str]:
        """The manifest's raw texts: what WER is measured against."""
        return [utterance.text for utterance in self.utterances]

    def where(self, selected: Tensor | None = None) -> str:
        """``file:line`` of the utterances (of those `selected`, (batch,) bool), for messages."""
        chosen = [True] * len(self.utterances) if selected is None else selected.tolist()
        places = (u.where for u, is_chosen in zip(self.utterances, chosen, strict=True) if is_chosen)
        return ", ".join(dict.fromkeys(places))  # once where two views of an utterance are in the batch

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch with its tensors on `device`."""
        return replace(
            self,
            features=self.features.to(device, non_blocking=non_blocking),
            feature_lengths=self.feature_lengths.to(device, non_blocking=non_blocking),
            targets=self.targets.to(device, non_blocking=non_blocking),
            target_lengths=self.target_lengths.to(device, non_blocking=non_blocking),
            sound=None if self.sound is None else self.sound.to(device, non_blocking),
        )

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, from which a GPU copies faster."""
        return replace(
            self,
            features=self.features.pin_memory(),
            feature_lengths=self.feature_lengths.pin_memory(),
            targets=self.targets.pin_memory(),
            target_lengths=self.target_lengths.pin_memory(),
            sound=None if self.sound is None else self.sound.pin_memory(),
        )


def collate(examples: Sequence[Example], device_sound: DeviceSound | None = None) -> Batch:
    """Pads with zeros; the encoder masks whatever lies beyond an utterance's length.

    With `device_sound`, which is what drew the examples' sounds, the features are left to be made by it.
    """
    sounds = [e.sound for e in examples if e.sound is not None]
    return Batch(
        features=torch.nn.utils.rnn.pad_sequence([e.features for e in examples], batch_first=True),
        feature_lengths=torch.tensor([e.frames for e in examples]),
        targets=torch.cat([e.targets for e in examples]),
        target_lengths=torch.tensor([len(e.targets) for e in examples]),
        utterances=[e.utterance for e in examples],
        sound=None if device_sound is None else device_sound.batch(sounds),
    )


def example_of(
    utterance: Utterance,
    features: Callable[[], Features],
    samples: Callable[[], Pcm],
    sound: Sound | None,
    augmentation: Augmentation | None,
    seed: int,
    draw: Draw,
    device_sound: DeviceSound | None = None,
) -> Example:
    """An utterance with its features (frames, 64), augmented as (seed, epoch, utterance) have it.

    Of `features` and `samples`, which read it or take it from a cache, only what is needed is called. With
    `device_sound`, which is made of the same sound and augmentation, it is left to be augmented on the device.
    """
    generator = np.random.default_rng((seed, *draw))
    # Validation data may hold foreign letters: they count as errors in WER, and the loss leaves them out.
    labels = encode("".join(c for c in normalise(utterance.text) if c in ALPHABET))
    targets = torch.tensor(labels, dtype=torch.long)
    if device_sound is not None:
        return Example(torch.empty(0, N_MELS), targets, utterance, device_sound.drawn(samples(), generator))
    drawn = features() if sound is None else sound.features(features, samples, generator)
    if augmentation is not None:
        drawn = augmentation(drawn, generator)
    return Example(torch.from_numpy(drawn), targets, utterance)


class SpeechDataset(Dataset[Example]):
    """Utterances by (epoch, index).

    Args:
        utterances: of one or more manifests.
        augmentation: applied to the features (frames, 64) afresh in every epoch, or None; must not change them.
        seed: of the augmentation.
        cache: where features are kept, so that a file is decoded once, or None.
        sound: augmentation of the waveform, before that of the features, or None.
        sample_cache: where decoded samples are kept for `sound`, or None.
        device_sound: made of `sound` and `augmentation`, to do both on the device; or None.
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        augmentation: Augmentation | None = None,
        seed: int = 0,
        cache: FeatureCache | None = None,
        sound: Sound | None = None,
        sample_cache: FeatureCache | None = None,
        device_sound: DeviceSound | None = None,
    ) -> None:
        self.utterances = utterances
        self._augmentation = augmentation
        self._seed = seed
        self._cache = cache
        self._sound = sound
        self._sample_cache = sample_cache
        self._device_sound = device_sound

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, draw: Draw) -> Example:
        _, index = draw
        utterance = self.utterances[index]
        path = utterance.audio_path

        def features() -> Features:
            return _decoded(path) if self._cache is None else self._cache.get(path, _decoded)

        def samples() -> Pcm:
            return _samples(path) if self._sample_cache is None else self._sample_cache.get(path, _samples)

        try:
            how = (self._sound, self._augmentation, self._seed, draw, self._device_sound)
            return example_of(utterance, features, samples, *how)
        except AudioError as error:
            raise AudioError(f"{utterance.where}: {error}") from error


def _decoded(audio_path: Path) -> Features:
    return log_mel(read_audio(audio_path))


def _samples(audio_path: Path) -> Pcm:
    return to_pcm(read_audio(audio_path))


class BucketSampler(Sampler[list[Draw]]):
    """Batches of similar length, in an order drawn anew in every epoch; each rank gets its share.

    A batch of the whole job has `batch_size` utterances for each rank. Every utterance is drawn once an epoch. The
    sampler knows its place, so that a run resumes in the middle of an epoch: see `state_dict`.

    Args:
        durations_s: of all utterances.
        batch_size: utterances a batch on one rank.
        shuffle: draw the order; else the manifest's order, cut into batches.
        bucketing: put utterances of similar length together, so that little is padding.
        seed: of the order; the same on all ranks.
        rank, world_size: this process and their number.
    """

    def __init__(
        self,
        durations_s: ArrayLike,
        batch_size: int,
        shuffle: bool = True,
        bucketing: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"data.batch_size is {batch_size}; it must be at least 1")
        self._durations_s = np.asarray(durations_s, dtype=np.float64)
        if len(self._durations_s) < world_size:
            raise ConfigError(
                f"{len(self._durations_s)} utterances cannot be shared by {world_size} processes; "
                "use fewer trainer.devices"
            )
        self._joint_size = batch_size * world_size
        self._shuffle = shuffle
        self._bucketing = bucketing
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self.epoch = 0
        self.batches_done = 0

    def __len__(self) -> int:
        """Batches of a whole epoch on each rank."""
        return len(self._starts(len(self._durations_s)))

    def __iter__(self) -> Iterator[list[Draw]]:
        """The rest of the current epoch."""
        epoch = self.epoch
        for joint_batch in islice(self._joint_batches(epoch), self.batches_done, None):
            yield [(epoch, index) for index in joint_batch[self._rank :: self._world_size]]

    def batch_done(self) -> None:
        """Counts a batch that was trained on (a data loader runs ahead, so it cannot be counted when it is drawn)."""
        self.batches_done += 1
        if self.batches_done == len(self):
            self.epoch += 1
            self.batches_done = 0

    def state_dict(self) -> dict[str, int]:
        """The place in the data: epochs and batches behind us, and the size of an epoch, to notice another data set."""
        return {"epoch": self.epoch, "batches_done": self.batches_done, "batches": len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from a place in the same data.

        Raises:
            ConfigError: the data or the batch size changed since.
        """
        if state["batches"] != len(self):
            raise ConfigError(
                f"the run to resume had {state['batches']} batches an epoch, this one has {len(self)}; resume with the "
                "same data, batch size and devices, or start from its weights with model.init_weights="
            )
        self.epoch, self.batches_done = state["epoch"], state["batches_done"]

    def _starts(self, count: int) -> range:
        """Where an order is cut into joint batches; a rest too small for every rank joins the batch before it."""
        starts = range(0, count, self._joint_size)
        return starts[:-1] if len(starts) > 1 and count - starts[-1] < self._world_size else starts

    def _joint_batches(self, epoch: int) -> Iterator[list[int]]:
        return self._drawn(range(len(self._durations_s)), random.Random(f"{self._seed} {epoch}"))

    def _drawn(self, places: Iterable[int], draw: random.Random) -> Iterator[list[int]]:
        """Joint batches of some utterances; of a million, 36 MB for a moment, then 11 MB."""
        order = array("q", places)
        if self._shuffle:
            draw.shuffle(order)
        chosen = np.asarray(order)
        starts = self._starts(len(chosen))
        if self._bucketing:
            tilts = np.fromiter((draw.uniform(-1, 1) if self._shuffle else 0.0 for _ in order), np.float64, len(order))
            by_length = self._by_length(chosen, tilts, _BLUR)
            if self._padding(by_length, starts) > _MOST_PADDING:
                by_length = self._by_length(chosen, tilts, _BLUR / 2)
            chosen = by_length
        batches = array("q", range(len(starts)))
        if self._shuffle:
            draw.shuffle(batches)
        ends = [*starts[1:], len(chosen)]
        return (chosen[starts[batch] : ends[batch]].tolist() for batch in batches)

    def _by_length(self, places: NDArray[np.int64], tilts: NDArray[np.float64], blur: float) -> NDArray[np.int64]:
        return places[np.argsort(self._durations_s[places] * (1 + blur * tilts), kind="stable")]

    def _padding(self, places: NDArray[np.int64], starts: range) -> float:
        """Share of padding in batches that are padded to their longest."""
        durations_s = self._durations_s[places]
        longest_s = np.maximum.reduceat(durations_s, starts)
        return float(1 - durations_s.sum() / (longest_s @ np.diff([*starts, len(places)])))


class ShareSampler(Sampler[list[Draw]]):
    """Every utterance exactly once over all ranks, for evaluation: rank r takes r, r + world_size, … of the sorted.

    Args:
        durations_s: of all utterances; long ones come together, so that little is padding.
        batch_size: utterances a batch.
        rank, world_size: this process and their number.
    """

    def __init__(self, durations_s: Sequence[float], batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        if len(durations_s) < world_size:
            raise ConfigError(
                f"{len(durations_s)} utterances cannot be shared by {world_size} processes; use fewer trainer.devices"
            )
        order = np.argsort(durations_s, kind="stable")[rank::world_size].tolist()
        self._batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[Draw]]:
        for batch in self._batches:
            yield [(0, index) for index in batch]


def random_places(durations_s: ArrayLike, wanted_s: float, seed: int) -> list[int]:
    """Places of about `wanted_s` seconds of utterances, drawn at random, ascending; all where there are no more."""
    lengths_s = np.asarray(durations_s, dtype=np.float64)
    order = list(range(len(lengths_s)))
    random.Random(seed).shuffle(order)
    before_s = np.cumsum(lengths_s[order]) - lengths_s[order]
    return sorted(order[: int(np.count_nonzero(before_s < wanted_s))])
