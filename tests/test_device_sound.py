"""Augmentation on the device makes of every utterance what the processor's path makes, whatever the lengths."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from kvarts.audio import read_audio
from kvarts.config import compose_config, instantiate
from kvarts.data_shard import INDEX, write_shards
from kvarts.datamodule import SpeechData
from kvarts.dataset import Augmentation, Batch, SpeechDataset, collate
from kvarts.device_sound import DeviceSound, log_mel_of_batch
from kvarts.errors import ConfigError
from kvarts.features import log_mel
from kvarts.frames import mel_frames
from kvarts.manifest import read_manifest, write_manifest
from kvarts.rooms import write_sound
from kvarts.sound import Band, Codec, Effect, Gain, Noise, Room, Sound, Speed, from_pcm, to_pcm
from kvarts.specaugment import SpecAugment
from kvarts.warp import Chain, Warp
from small_run import make_data, run

RATE = 16_000
SAMPLE = Path(__file__).resolve().parents[1] / "sample"
LENGTHS = (1, 2, 159, 160, 161, 200, 201, 399, 400, 401, 8000, 31_999, 48_000)
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    return read_audio(sorted((SAMPLE / "train_opus").rglob("*.opus"))[0])[: 3 * RATE]


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Responses of different lengths and leads, and noises shorter and longer than the speech."""
    return room_folder(tmp_path_factory.mktemp("rooms"), ((4000, 30), (900, 4), (7000, 90)))


@pytest.fixture(scope="module")
def other_rooms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return room_folder(tmp_path_factory.mktemp("other"), ((2500, 12),))


def room_folder(folder: Path, shapes: tuple[tuple[int, int], ...]) -> Path:
    draw = np.random.default_rng(len(shapes))
    rows, noises = [], []
    for number, (length, lead) in enumerate(shapes):
        response = 0.1 * draw.standard_normal(length) * np.exp(-np.arange(length) / 600)
        response[:lead] = 0
        response[lead] = 0.8
        write_sound(folder / f"rir/{number}.flac", response.astype(np.float32), "PCM_24")
        rows.append({"audio_filepath": f"rir/{number}.flac", "direct_sample": lead, "room": f"room {number}"})
    for number, length in enumerate((5000, 90_000)):
        write_sound(folder / f"noise/{number}.flac", 0.1 * draw.standard_normal(length).astype(np.float32), "PCM_16")
        noises.append({"audio_filepath": f"noise/{number}.flac", "kind": "white"})
    write_manifest(folder / "rooms.jsonl", rows)
    write_manifest(folder / "noises.jsonl", noises)
    return folder


def both(
    sound: Sound, augmentation: Augmentation | None, waveforms: list[np.ndarray], device: str, seed: int = 0
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Features of each waveform by the processor, one after the other, and by the device, together."""
    device_sound = DeviceSound(sound, augmentation)
    alone, drawn = [], []
    for number, waveform in enumerate(waveforms):
        samples = to_pcm(waveform)
        draw = np.random.default_rng((seed, number))
        plain = log_mel(from_pcm(samples))
        features = sound.features(lambda plain=plain: plain, lambda samples=samples: samples, draw)
        alone.append(features if augmentation is None else augmentation(features, draw))
        drawn.append(device_sound.drawn(samples, np.random.default_rng((seed, number))))
    # As it comes from a worker process.
    batch = pickle.loads(pickle.dumps(device_sound.batch(drawn)))
    together = device_sound.features(batch.to(device)).cpu().numpy()
    assert [len(features) for features in alone] == [one.frames for one in drawn]
    assert together.shape == (len(waveforms), max(map(len, alone)), 64)
    assert np.isfinite(together).all()
    return alone, [features[: one.frames] for features, one in zip(together, drawn, strict=True)]


def cut(speech: np.ndarray) -> list[np.ndarray]:
    return [speech[-length:] for length in LENGTHS]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["clean", "room", "noise", "band", "gain", "all"])
def test_each_effect_is_that_of_the_processor(
    speech: np.ndarray, rooms: Path, other_rooms: Path, name: str, device: str
) -> None:
    folders = [str(rooms), str(other_rooms)]
    effects: dict[str, list[Effect]] = {
        "clean": [],
        "room": [Room(folders)],
        "noise": [Noise(folders, (0, 10))],
        "band": [Band()],
        "gain": [Gain((-20, 20))],
    }
    effects["all"] = [effect for chain in effects.values() for effect in chain]
    for seed in range(3):
        alone, together = both(Sound(effects[name], close_share=0.2), None, cut(speech), device, seed)
        for length, one, other in zip(LENGTHS, alone, together, strict=True):
            # Float32 transforms round as much of the loudest, which is seen where there is next to nothing.
            difference = np.abs(one - other)
            assert difference[one > one.max() - 16].max() < 0.01, (length, seed)  # 70 dB
            assert difference.max() < 0.1, (length, seed)
            assert difference.mean() < 2e-3, (length, seed)


@pytest.mark.parametrize("device", DEVICES)
def test_throats_tempos_and_masks_are_those_of_the_processor(speech: np.ndarray, rooms: Path, device: str) -> None:
    chain = Chain([SpecAugment(time_fraction=0.5), Warp(0.1, 0.2, 0.3), SpecAugment(3, 20, 1, 30), Warp(0.2, 0.1, 0.2)])
    for augmentation in (None, Warp(0.1, 0.1, 0.1), SpecAugment(), SpecAugment(0, 0, 0, 0), chain):
        alone, together = both(Sound([Gain()], close_share=0.2), augmentation, cut(speech), device)
        for length, one, other in zip(LENGTHS, alone, together, strict=True):
            np.testing.assert_allclose(other, one, atol=2e-3, err_msg=f"{length} {augmentation}")


def test_what_a_device_cannot_do_is_done_before(speech: np.ndarray, rooms: Path) -> None:
    """Another speed, a codec and the room before it, to the last bit of their silence."""
    codec = Codec({"mulaw": 1.0, "gsm": 1.0}, 0.5)
    steps: list[Effect] = [Speed(0.7), Room(str(rooms), 0.5), codec, Gain((-3, 3))]
    waveforms = [speech[start : start + 16_000 + start // 10] for start in range(0, 31_000, 1000)]
    alone, together = both(Sound(steps, close_share=0.1), None, waveforms, "cpu")
    differences = np.concatenate([np.abs(one - other) for one, other in zip(alone, together, strict=True)])
    assert (np.concatenate(alone) < -20).any()
    assert differences.max() < 0.05


def test_silence_and_full_scale_stay_finite(rooms: Path) -> None:
    steps: list[Effect] = [Room(str(rooms)), Noise(str(rooms)), Band(), Gain((20, 20))]
    waveforms = [np.zeros(5000, np.float32), np.ones(700, np.float32), -np.ones(1, np.float32)]
    alone, together = both(Sound(steps, close_share=0), Chain([Warp(), SpecAugment()]), waveforms, "cpu")
    np.testing.assert_array_equal(together[0], alone[0])
    np.testing.assert_allclose(together[1], alone[1], atol=0.02)


def test_an_utterance_does_not_depend_on_its_batch(speech: np.ndarray, rooms: Path) -> None:
    sound = Sound([Room(str(rooms)), Noise(str(rooms)), Band(), Gain()], close_share=0.2)
    device_sound = DeviceSound(sound, Chain([Warp(0, 0.1, 0), SpecAugment()]))
    drawn = [device_sound.drawn(to_pcm(part), np.random.default_rng(n)) for n, part in enumerate(cut(speech))]
    together = device_sound.features(device_sound.batch(drawn))
    for number, one in enumerate(drawn):
        alone = device_sound.features(device_sound.batch([one]))[0]
        np.testing.assert_allclose(together[number, : one.frames].numpy(), alone.numpy(), atol=0.02)


def test_little_of_a_batch_is_padding(rooms: Path) -> None:
    device_sound = DeviceSound(Sound([Speed(0.5), Gain()]), None)
    draw = np.random.default_rng(0)
    lengths = np.exp(draw.uniform(np.log(5000), np.log(200_000), 100)).astype(int)
    batch = device_sound.batch([device_sound.drawn(np.ones(length, np.int16), draw) for length in lengths])
    padded = sum(group.integers.numel() + group.floats.numel() for group in batch.groups)
    assert padded < 1.4 * sum(int(group.lengths.sum()) for group in batch.groups)
    assert len(batch.groups) <= 16
    assert sorted(int(place) for group in batch.groups for place in group.places) == list(range(100))


def test_features_of_a_batch_are_those_of_one_waveform(speech: np.ndarray) -> None:
    x = torch.zeros(len(LENGTHS), max(LENGTHS))
    for row, part in zip(x, cut(speech), strict=True):
        row[: len(part)] = torch.from_numpy(part)
    features = log_mel_of_batch(x, torch.tensor(LENGTHS))
    for row, part in zip(features, cut(speech), strict=True):
        np.testing.assert_allclose(row[: mel_frames(len(part))].numpy(), log_mel(part), atol=1e-5)


class Louder:
    def __call__(self, features: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        return features + 1


def test_an_augmentation_of_ones_own_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"Louder in augment\.features works on the processor"):
        DeviceSound(Sound([]), Chain([Louder()]))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, speech: np.ndarray) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for number in range(6):
        part = speech[: (number + 1) * 8000]
        write_sound(folder / f"{number}.flac", part, "PCM_16")
        rows.append({"audio_filepath": f"{number}.flac", "text": "да", "duration": len(part) / RATE})
    write_manifest(folder / "manifest.jsonl", rows)
    return folder


def settings_of(rooms: Path) -> Any:
    return compose_config(["augment=farfield", f"augment.rooms={rooms}"]).augment


def batches_of(folder: Path, manifest: Path, rooms: Path, **arguments: Any) -> list[Batch]:
    settings = settings_of(rooms)
    sound, features = instantiate(settings.sound), instantiate(settings.features)
    data = SpeechData(
        folder, 4, 3, train_manifest=str(manifest), val_manifest=str(folder / "manifest.jsonl"), test_manifests={},
        batch_size=2, sound=sound, augmentation=features, **arguments,
    )  # fmt: skip
    data.prepare()
    return [data.on_after_batch_transfer(batch.to("cpu"), 0) for batch in data.train_dataloader()]


@pytest.mark.parametrize("in_shards", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_is_fed_the_same(tmp_path: Path, data: Path, rooms: Path, in_shards: bool, workers: int) -> None:
    manifest = data / "manifest.jsonl"
    if in_shards:
        write_shards(read_manifest(manifest), tmp_path / "shards", 2**20, 0)
        manifest = tmp_path / "shards" / INDEX
    # By the same processes: in a worker PyTorch has one thread, its transforms round otherwise, and a codec may then
    # decide otherwise, by 2.0 in five bands of four frames here.
    how: dict[str, Any] = {"num_workers": workers, "cache_dir": str(tmp_path / "cache")}
    expected = batches_of(data, manifest, rooms, augment_on_device=False, **how)
    found = batches_of(data, manifest, rooms, augment_on_device=True, **how)
    assert len(found) == 3
    for one, other in zip(expected, found, strict=True):
        assert one.sound is None
        assert other.sound is None
        assert one.texts == other.texts
        assert torch.equal(one.targets, other.targets)
        assert torch.equal(one.feature_lengths, other.feature_lengths)
        assert one.features.shape == other.features.shape
        for row, another, length in zip(one.features, other.features, one.feature_lengths, strict=True):
            loud = row[:length] > -8
            assert (row[:length] - another[:length])[loud].abs().max() < 0.05


def test_an_epoch_is_the_same_again(data: Path, rooms: Path) -> None:
    settings = settings_of(rooms)
    sound, features = instantiate(settings.sound), instantiate(settings.features)
    device_sound = DeviceSound(sound, features)
    utterances = read_manifest(data / "manifest.jsonl")

    def epoch(number: int) -> torch.Tensor:
        dataset = SpeechDataset(utterances, features, 1, sound=sound, device_sound=device_sound)
        batch = collate([dataset[number, place] for place in range(6)], device_sound)
        assert batch.sound is not None
        return device_sound.features(batch.sound)

    assert torch.equal(epoch(0), epoch(0))
    assert not torch.equal(epoch(0)[:, :100], epoch(1)[:, :100])


def test_on_a_gpu_it_is_on_by_itself_where_it_can(data: Path, rooms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = instantiate(settings_of(rooms).sound)
    for kind, augmentation, wanted, expected in (
        ("cuda", None, None, True),
        ("cuda", Chain([Warp(), SpecAugment()]), None, True),
        ("cuda", Louder(), None, False),
        ("cuda", None, False, False),
        ("mps", None, None, False),
        ("cpu", None, None, False),
    ):
        speech_data = SpeechData(
            data, 4, 3, train_manifest=str(data / "manifest.jsonl"), val_manifest=str(data / "manifest.jsonl"),
            test_manifests={}, sound=sound, augmentation=augmentation, augment_on_device=wanted, cache_mb=0,
        )  # fmt: skip
        trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(kind)))
        monkeypatch.setattr(speech_data, "trainer", trainer)
        assert (speech_data._suitable_device_sound() is not None) is expected, (kind, augmentation, wanted)
    speech_data = SpeechData(
        data, 4, 3, train_manifest=str(data / "manifest.jsonl"), val_manifest=str(data / "manifest.jsonl"),
        test_manifests={}, sound=sound, augmentation=Louder(), augment_on_device=True, cache_mb=0,
    )  # fmt: skip
    with pytest.raises(ConfigError, match="Louder"):
        speech_data._suitable_device_sound()


def test_on_a_processor_it_is_off_until_asked_for(data: Path, rooms: Path) -> None:
    settings = settings_of(rooms)
    sound = instantiate(settings.sound)
    for wanted, augmentation, expected in ((None, None, False), (False, None, False), (True, None, True)):
        speech_data = SpeechData(
            data, 4, 3, train_manifest=str(data / "manifest.jsonl"), val_manifest=str(data / "manifest.jsonl"),
            test_manifests={}, sound=sound, augmentation=augmentation, augment_on_device=wanted, cache_mb=0,
        )  # fmt: skip
        speech_data.prepare()
        batch = next(iter(speech_data.train_dataloader()))
        assert (batch.sound is not None) is expected


def test_a_training_learns_from_it(tmp_path: Path, rooms: Path) -> None:
    """Through Lightning, which brings the batches to the device."""
    data_dir = make_data(tmp_path / "data", train=4, val=2)
    settings = ("augment=farfield", f"augment.rooms={rooms}", "data.augment_on_device=true", "trainer.max_steps=4")
    assert run(data_dir, tmp_path / "run", *settings) == []
    assert (tmp_path / "run/checkpoints/last.ckpt").is_file()
