"""Augmentation of a whole batch on the device that trains: rooms, noises, microphones, levels, features, their masks.

Beside a GPU the processor's cores cannot keep up: an H100 waited for 15 of them, each at 110 utterances a second.
Here they draw what is to be done (`DeviceSound.drawn`, the same values that `Sound` and the augmentation of features
draw from the same generator), and do only what is one sample after the other: `Speed` and `Codec`, and whatever comes
before these in the chain. The rest is `DeviceSound.features`, for many utterances at a time.

Utterances are sorted by length and padded in groups. What comes out is what the processor's path gives, but for the
rounding of transforms: tests/test_device_sound.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from kvarts.errors import ConfigError
from kvarts.features import CLAMP_MAX, CLAMP_MIN, N_FFT, N_MELS, hann_window, mel_filters
from kvarts.frames import HOP_LENGTH, mel_frames
from kvarts.sound import Band, Drawn, Effect, Gain, Noise, Room, Sound, carried_out, from_pcm
from kvarts.specaugment import Masks, SpecAugment
from kvarts.warp import Chain, Warp, bands_before, warped_frames

Pcm = NDArray[np.int16]
Samples = NDArray[np.int16] | NDArray[np.float32]
Augmentation = Callable[[NDArray[np.float32], np.random.Generator], NDArray[np.float32]]

_PAD = N_FFT // 2  # samples before the centre of a frame
_MOST_PADDING = 0.08  # of a batch's samples, in a group; each group takes some 100 kernels
_ROWS = 8  # of a transform, and its multiples: see `_transform_size`
_NO_ENERGY = 1e-20  # of silence, so that nothing is divided by 0; a single bit of 16 has 1e-9
_EFFECTS = (Room, Noise, Band, Gain)  # that a device can do


@dataclass(frozen=True)
class DrawnSound:
    """An utterance's samples (samples,) as far as its reader has brought them, and what is left to be done.

    Integers, or float32 where the reader did something: a telephone's silence above 4 kHz would drown in the rounding.
    `effects` are numbers of the chain's steps with their values; `augmented` is what was drawn for each step of the
    features' augmentation; `frames` is how many will come out.
    """

    samples: Samples
    effects: Sequence[tuple[int, Drawn]]
    augmented: Sequence[tuple[float, float] | Masks]
    frames: int


@dataclass(frozen=True)
class _Step:
    """What one step does: tensors by name, (utterances, …); of an effect also at which `rows` of a group they stand."""

    values: Mapping[str, Tensor]

    def to(self, device: torch.device | str, non_blocking: bool) -> _Step:
        return _Step({name: tensor.to(device, non_blocking=non_blocking) for name, tensor in self.values.items()})

    def pin_memory(self) -> _Step:
        return _Step({name: tensor.pin_memory() for name, tensor in self.values.items()})

    def __reduce__(self) -> tuple[Any, ...]:
        # From a worker process as bytes: PyTorch would open a shared file for every tensor, some 60 of them a batch.
        return _unpickled_step, ({name: tensor.numpy() for name, tensor in self.values.items()},)


def _unpickled_step(values: Mapping[str, NDArray[Any]]) -> _Step:
    return _Step({name: torch.from_numpy(array) for name, array in values.items()})


@dataclass(frozen=True)
class _Group:
    """Utterances of similar length, first those in integers.

    places: (rows,) int64, where they stand in the batch; integers: (some rows, longest) int16; floats: (other rows,
    longest) float32; lengths: (rows,) int64, how many samples are theirs; effects: by number of the step.
    """

    places: Tensor
    integers: Tensor
    floats: Tensor
    lengths: Tensor
    effects: Mapping[int, _Step]

    def to(self, device: torch.device | str, non_blocking: bool) -> _Group:
        return self._mapped(lambda part: part.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> _Group:
        return self._mapped(lambda part: part.pin_memory())

    def _mapped(self, change: Callable[[Any], Any]) -> _Group:
        effects = {number: change(step) for number, step in self.effects.items()}
        samples = (change(self.integers), change(self.floats))
        return _Group(change(self.places), *samples, change(self.lengths), effects)

    def __reduce__(self) -> tuple[Any, ...]:
        small = (self.places.numpy(), self.lengths.numpy())
        return _unpickled_group, (*small, self.integers, self.floats, self.effects)


def _unpickled_group(
    places: NDArray[np.int64], lengths: NDArray[np.int64], integers: Tensor, floats: Tensor, effects: Any
) -> _Group:
    return _Group(torch.from_numpy(places), integers, floats, torch.from_numpy(lengths), effects)


@dataclass(frozen=True)
class SoundBatch:
    """Utterances whose features are still to be made, in groups.

    `frames` (batch,) int64 are those of the sound, before its features are augmented, and `longest` is the most of
    them; `augmented` are the steps of the features' augmentation, each with the most frames that leave it.
    """

    groups: Sequence[_Group]
    frames: Tensor
    longest: int
    augmented: Sequence[tuple[_Step, int]]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> SoundBatch:
        """The same with its tensors on `device`."""
        return self._mapped(lambda part: part.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> SoundBatch:
        """The same in page-locked memory, from which a GPU copies faster."""
        return self._mapped(lambda part: part.pin_memory())

    def _mapped(self, change: Callable[[Any], Any]) -> SoundBatch:
        groups = [change(group) for group in self.groups]
        augmented = [(change(step), longest) for step, longest in self.augmented]
        return replace(self, groups=groups, frames=change(self.frames), augmented=augmented)


class DeviceSound:
    """`Sound` and an augmentation of features, drawn by readers and carried out on a device.

    Args:
        sound: the chain of effects.
        augmentation: of features: `Warp`, `SpecAugment`, a `Chain` of these, or None.

    Raises:
        ConfigError: an augmentation that only the processor can do.
    """

    def __init__(self, sound: Sound, augmentation: Augmentation | None) -> None:
        self._sound = sound
        steps = augmentation.steps if isinstance(augmentation, Chain) else [augmentation] if augmentation else []
        self._augmentation: list[Warp | SpecAugment] = []
        for step in steps:
            if not isinstance(step, (Warp, SpecAugment)):
                raise ConfigError(
                    f"data.augment_on_device=true: {type(step).__name__} in augment.features works on the processor "
                    "alone; leave it out, or set data.augment_on_device=false"
                )
            self._augmentation.append(step)
        # In their folders' order, one after the other: (number of the step, folder) → what comes before.
        self._before: dict[tuple[int, int], int] = {}
        for number, effect in enumerate(sound.steps):
            lists: Sequence[Sequence[object]] = ()
            if isinstance(effect, Room):
                lists = effect.responses
            elif isinstance(effect, Noise):
                lists = effect.noises
            for folder in range(len(lists)):
                self._before[number, folder] = sum(map(len, lists[:folder]))
        self._banks: dict[tuple[int, torch.device], tuple[Tensor, ...]] = {}

    # ------------------------------------------------------------------------------------------------- for a reader

    def drawn(self, samples: Pcm, draw: np.random.Generator) -> DrawnSound:
        """What is to be done to an utterance (samples,), at least one; its first effects are done where they must be.

        Raises:
            AudioError: as the effects do.
        """
        plan = self._sound.plan(draw)
        here = max((place + 1 for place, (effect, _) in enumerate(plan) if not isinstance(effect, _EFFECTS)), default=0)
        brought: Samples = samples
        if here:
            brought = carried_out(plan[:here], from_pcm(samples))
        frames = mel_frames(len(brought))
        augmented: list[tuple[float, float] | Masks] = []
        for step in self._augmentation:
            if isinstance(step, Warp):
                factors = step.draw(draw)
                frames = warped_frames(frames, factors[1])
                augmented.append(factors)
            else:
                augmented.append(step.draw(frames, N_MELS, draw))
        numbers = [next(n for n, step in enumerate(self._sound.steps) if step is effect) for effect, _ in plan[here:]]
        effects = [(number, drawn) for number, (_, drawn) in zip(numbers, plan[here:], strict=True)]
        return DrawnSound(brought, effects, augmented, frames)

    def batch(self, sounds: Sequence[DrawnSound]) -> SoundBatch:
        """A batch of utterances, to be brought to the device."""
        lengths = [len(sound.samples) for sound in sounds]
        groups: list[list[int]] = []
        padding = 0
        for place in sorted(range(len(sounds)), key=lambda place: -lengths[place]):
            padding += lengths[groups[-1][0]] - lengths[place] if groups else 0
            if not groups or padding > _MOST_PADDING * sum(lengths):
                groups.append([])
                padding = 0
            groups[-1].append(place)
        frames = [mel_frames(length) for length in lengths]
        first = (torch.tensor(frames), max(frames))
        augmented: list[tuple[_Step, int]] = []
        for number in range(len(self._augmentation)):
            what, frames = _values_of_augmentation([sound.augmented[number] for sound in sounds], frames)
            augmented.append((_Step(what), max(frames)))
        return SoundBatch([self._group(sounds, group) for group in groups], *first, augmented)

    def _group(self, sounds: Sequence[DrawnSound], places: Sequence[int]) -> _Group:
        places = sorted(places, key=lambda place: sounds[place].samples.itemsize)
        chosen = [sounds[place] for place in places]
        longest = max(len(sound.samples) for sound in chosen)
        integers, floats = (
            _padded([sound.samples for sound in chosen if sound.samples.dtype == dtype], longest, dtype)
            for dtype in (np.int16, np.float32)
        )
        effects: dict[int, tuple[list[int], list[Drawn]]] = {}
        for row_number, sound in enumerate(chosen):
            for number, drawn in sound.effects:
                rows, values = effects.setdefault(number, ([], []))
                rows.append(row_number)
                values.append(drawn)
        return _Group(
            torch.tensor(places),
            integers,
            floats,
            torch.tensor([len(sound.samples) for sound in chosen]),
            {
                number: _Step({"rows": torch.tensor(rows), **self._values(number, values)})
                for number, (rows, values) in sorted(effects.items())
            },
        )

    def _values(self, number: int, drawn: Sequence[Drawn]) -> dict[str, Tensor]:
        step: Effect = self._sound.steps[number]
        if isinstance(step, Room):
            return {"response": torch.tensor([self._before[number, d["folder"]] + d["response"] for d in drawn])}
        if isinstance(step, Noise):
            return {
                "noise": torch.tensor([self._before[number, d["folder"]] + d["noise"] for d in drawn]),
                "start": torch.tensor([step.first_sample(d) for d in drawn]),
                "snr": torch.tensor([10 ** (d["snr_db"] / 10) for d in drawn], dtype=torch.float32),
            }
        if isinstance(step, Band):
            return {"taps": torch.from_numpy(np.stack([step.filter(d)[0] for d in drawn]))}
        assert isinstance(step, Gain)
        return {"gain": torch.tensor([10 ** (d["gain_db"] / 20) for d in drawn], dtype=torch.float32)}

    # ------------------------------------------------------------------------------------------------- for a device

    def features(self, batch: SoundBatch) -> Tensor:
        """Log-mel features (batch, frames, 64) float32, on the device that the batch lies on.

        What lies beyond an utterance's frames is anything finite.
        """
        frames = batch.frames
        features = torch.zeros(len(frames), batch.longest, N_MELS, device=frames.device)
        for group in batch.groups:
            made = self._log_mel(group)
            features[group.places, : made.shape[1]] = made
        for step, longest in batch.augmented:
            if "bands" in step.values:
                features, frames = _warped(features, frames, longest, step.values)
            else:
                features = _masked(features, frames, step.values)
        return features

    def _log_mel(self, group: _Group) -> Tensor:
        x = torch.cat([group.integers * (1 / 32_767), group.floats])
        lengths = group.lengths
        inside = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
        for number, step in group.effects.items():
            rows = step.values["rows"]
            x = x.index_copy(0, rows, self._apply(number, step.values, x[rows], inside[rows]))
        x = x / x.abs().amax(1, keepdim=True).clamp(min=1)
        return log_mel_of_batch(x, lengths)

    def _apply(self, number: int, values: Mapping[str, Tensor], x: Tensor, inside: Tensor) -> Tensor:
        """An effect on waveforms (rows, samples), silent where they are not `inside`."""
        effect = self._sound.steps[number]
        if isinstance(effect, Room):
            responses, lead = self._bank(number, x.device)
            heard = _convolved(x, responses[values["response"]], int(lead)) * inside
            return _as_loud(heard, x)
        if isinstance(effect, Band):
            taps = values["taps"]
            return _as_loud(_convolved(x, taps, taps.shape[1] // 2) * inside, x)
        if isinstance(effect, Noise):
            samples, starts, counts = self._bank(number, x.device)
            chosen = values["noise"][:, None]
            place = values["start"][:, None] + torch.arange(x.shape[1], device=x.device)
            noise = samples[starts[chosen] + place % counts[chosen]] * inside
            return x + noise * (_energy(x) / values["snr"][:, None] / _energy(noise)).sqrt()
        return x * values["gain"][:, None]

    def _bank(self, number: int, device: torch.device) -> tuple[Tensor, ...]:
        """The responses (responses, taps) of a `Room`, moved to one lead, and that; the samples of a `Noise` one after
        the other, where each begins and how long it is."""
        if (number, device) not in self._banks:
            step = self._sound.steps[number]
            if isinstance(step, Room):
                responses = [response for folder in step.responses for response in folder]
                lead = max(response.lead for response in responses)
                taps = max(lead - response.lead + len(response.samples) for response in responses)
                rows = torch.zeros(len(responses), taps)
                for row, response in zip(rows, responses, strict=True):
                    start = lead - response.lead
                    row[start : start + len(response.samples)] = torch.from_numpy(response.samples)
                self._banks[number, device] = (rows.to(device), torch.tensor(lead))
            else:
                assert isinstance(step, Noise)
                noises = [torch.from_numpy(noise.samples) for folder in step.noises for noise in folder]
                counts = torch.tensor([len(noise) for noise in noises])
                starts = counts.cumsum(0) - counts
                self._banks[number, device] = tuple(part.to(device) for part in (torch.cat(noises), starts, counts))
        return self._banks[number, device]


def _padded(rows: Sequence[Samples], longest: int, dtype: Any) -> Tensor:
    padded = np.zeros((len(rows), longest), dtype)
    for row, samples in zip(padded, rows, strict=True):
        row[: len(samples)] = samples
    return torch.from_numpy(padded)


def _values_of_augmentation(
    drawn: Sequence[tuple[float, float] | Masks], frames: list[int]
) -> tuple[dict[str, Tensor], list[int]]:
    """One step's values as tensors, and the frames of each utterance that leave it."""
    masks = [one for one in drawn if isinstance(one, Masks)]
    if masks:
        return {
            "freq": torch.tensor([one.bands for one in masks]).view(len(masks), -1, 2),
            "time": torch.tensor([one.stretches for one in masks]).view(len(masks), -1, 2),
        }, frames
    factors = [one for one in drawn if not isinstance(one, Masks)]
    bands = torch.from_numpy(np.stack([bands_before(one[0]) for one in factors]))
    after = [warped_frames(count, one[1]) for count, one in zip(frames, factors, strict=True)]
    return {"bands": bands, "frames": torch.tensor(after)}, after


def log_mel_of_batch(x: Tensor, lengths: Tensor) -> Tensor:
    """`kvarts.features.log_mel` of waveforms (rows, samples) float32 with `lengths` (rows,) int64, at least 1.

    In double precision up to the logarithm, as there. (rows, frames, 64) float32 with the frames of the longest row;
    what lies beyond an utterance's own is anything.
    """
    fourier, filters = _matrices(x.device)
    frames = mel_frames(x.shape[1])
    place = torch.arange(-_PAD, (frames - 1) * HOP_LENGTH + _PAD, device=x.device)
    period = (2 * (lengths - 1)).clamp(min=1)[:, None]
    place = place.remainder(period)
    place = torch.where(place < lengths[:, None], place, period - place)
    spectrum = x.gather(1, place).double().unfold(1, N_FFT, HOP_LENGTH) @ fourier
    real, imaginary = spectrum.square().chunk(2, 2)
    mel: Tensor = (real + imaginary) @ filters
    return mel.clamp(CLAMP_MIN, CLAMP_MAX).float().log()


@cache
def _matrices(device: torch.device) -> tuple[Tensor, Tensor]:
    """The windowed Fourier transform (400, 2 · 201), real parts, then imaginary ones, and the mel filters (201, 64).

    One matrix product, where a library for GPUs would plan its transforms anew for every number of frames.
    """
    transform = np.fft.rfft(np.diag(hann_window()))
    fourier = np.concatenate([transform.real, transform.imag], axis=1)
    return torch.from_numpy(fourier).to(device), torch.from_numpy(mel_filters()).to(device)


def _convolved(x: Tensor, responses: Tensor, lead: int) -> Tensor:
    """Waveforms (rows, samples), each through its response (rows, taps), whose sample `lead` is time 0."""
    rows, samples = x.shape
    size = _transform_size(samples + responses.shape[1] - 1)
    more = -rows % _ROWS
    spectra = torch.fft.rfft(pad(x, (0, size - samples, 0, more)))
    spectra *= torch.fft.rfft(pad(responses, (0, size - responses.shape[1], 0, more)))
    heard: Tensor = torch.fft.irfft(spectra, size)
    return heard[:rows, lead : lead + samples]


def _transform_size(least: int) -> int:
    """From 5 to 8 eighths of a power of 2: few sizes, of rows in eights, so that a GPU's plans for them are kept."""
    eighth = max(1, (1 << (least - 1).bit_length()) // 8)
    return max(16, -(-least // eighth) * eighth)


def _energy(x: Tensor) -> Tensor:
    return x.square().sum(1, keepdim=True).clamp(min=_NO_ENERGY)


def _as_loud(x: Tensor, reference: Tensor) -> Tensor:
    return x * (_energy(reference) / _energy(x)).sqrt()


def _warped(
    features: Tensor, frames: Tensor, longest: int, values: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """`warp_frequency` and `warp_time` of features (rows, time, 64), and the new numbers of frames."""
    features = _interpolated(features, values["bands"], 2)
    after = values["frames"]
    step = (frames - 1).double() / (after - 1).clamp(min=1)
    place = torch.arange(longest, device=features.device) * step[:, None]
    return _interpolated(features, place, 1), after


def _interpolated(features: Tensor, place: Tensor, dim: int) -> Tensor:
    """Features (rows, time, bins) at fractional places (rows, new) along a dimension."""
    below = place.long().clamp(max=max(0, features.shape[dim] - 2))
    weight = (place - below).float()
    above = (below + 1).clamp(max=features.shape[dim] - 1)
    shape = list(features.shape)
    shape[dim] = place.shape[1]
    other = 3 - dim
    below, above = (index.unsqueeze(other).expand(shape) for index in (below, above))
    weight = weight.unsqueeze(other)
    return features.gather(dim, below) * (1 - weight) + features.gather(dim, above) * weight


def _masked(features: Tensor, frames: Tensor, values: Mapping[str, Tensor]) -> Tensor:
    """Features (rows, time, 64) with masks of their utterance's mean."""
    time = torch.arange(features.shape[1], device=features.device)
    inside = (time < frames[:, None])[..., None]
    level = torch.where(inside, features, 0).sum((1, 2)) / (frames * features.shape[2])
    blotted = _within(values["time"], time)[..., None] | _within(
        values["freq"], torch.arange(features.shape[2], device=features.device)
    ).unsqueeze(1)
    return torch.where(blotted, level[:, None, None], features)


def _within(masks: Tensor, place: Tensor) -> Tensor:
    """(rows, places) bool: inside one of the masks (rows, masks, 2)."""
    return ((place >= masks[..., :1]) & (place < masks[..., 1:])).any(1)
