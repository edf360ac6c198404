"""Augmentation of the sound: each effect against what it should be, its identity, and what is awkward to it."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import kvarts.sound
from kvarts import cli
from kvarts.audio import read_audio
from kvarts.config import compose_config
from kvarts.data_shard import INDEX, write_shards
from kvarts.datamodule import SpeechData
from kvarts.dataset import Batch, SpeechDataset, collate
from kvarts.errors import AudioError, ConfigError
from kvarts.feature_cache import FEATURES, SAMPLES, FeatureCache
from kvarts.features import log_mel
from kvarts.manifest import read_manifest, write_manifest
from kvarts.rooms import read_responses
from kvarts.sound import (
    Band,
    Codec,
    Effect,
    Gain,
    Noise,
    Room,
    Sound,
    Speed,
    carried_out,
    convolve,
    from_pcm,
    mixed,
    symmetric_filter,
    to_pcm,
)

RATE = 16_000
SAMPLE = Path(__file__).resolve().parents[1] / "sample"
CODECS = ("mulaw", "alaw", "gsm", "adpcm", "opus")


def write(path: Path, samples: Any, rate: int = RATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.asarray(samples, np.float32), rate, subtype="FLOAT")
    return path


def impulse(length: int, at: int, height: float = 1.0) -> np.ndarray:
    response = np.zeros(length, np.float32)
    response[at] = height
    return response


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    return read_audio(sorted((SAMPLE / "train_opus").rglob("*.opus"))[0])[: 3 * RATE]


@pytest.fixture(scope="module")
def rooms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two responses that ring, two noises."""
    folder = tmp_path_factory.mktemp("rooms")
    draw = np.random.default_rng(0)
    rows = []
    for number in range(2):
        response = 0.1 * draw.standard_normal(4000) * np.exp(-np.arange(4000) / 600)
        response[:30] = 0
        response[30] = 0.8
        write(folder / f"rir/{number}.wav", response)
        rows.append({"audio_filepath": f"rir/{number}.wav", "direct_sample": 30, "room": f"training {number}"})
    write_manifest(folder / "rooms.jsonl", rows)
    noises = [{"audio_filepath": f"noise/{number}.wav", "duration": 0.5, "kind": "white"} for number in range(2)]
    for row in noises:
        write(folder / str(row["audio_filepath"]), 0.1 * draw.standard_normal(RATE // 2))
    write_manifest(folder / "noises.jsonl", noises)
    return folder


def all_effects(rooms: Path) -> list[Effect]:
    return [
        Speed(),
        Room(str(rooms)),
        Noise(str(rooms)),
        Band(),
        *(Codec({codec: 1.0}) for codec in CODECS),
        Gain(),
    ]


def drawn_by(effect: Effect, waveform: np.ndarray, seed: int = 0) -> np.ndarray:
    return effect.apply(waveform, effect.draw(np.random.default_rng(seed)))


def lag(reference: np.ndarray, waveform: np.ndarray) -> int:
    """Samples by which the waveform comes later, by the peak of the cross-correlation."""
    size = 2 * len(reference)
    spectrum = np.fft.rfft(waveform, size) * np.conj(np.fft.rfft(reference, size))
    place = int(np.argmax(np.fft.irfft(spectrum, size)))
    return place if place < len(reference) else place - size


# ------------------------------------------------------------------------------------------------------ identities


@pytest.mark.parametrize("at", [0, 1, 39, 40, 41, 500])
@pytest.mark.parametrize("has_rows", [True, False])
def test_a_unit_impulse_is_no_room(tmp_path: Path, speech: np.ndarray, at: int, has_rows: bool) -> None:
    """Wherever it lies in its file, and however high it is."""
    write(tmp_path / "a.wav", impulse(800, at, 0.5))
    if has_rows:
        write_manifest(tmp_path / "rooms.jsonl", [{"audio_filepath": "a.wav", "direct_sample": at, "room": "none"}])
    heard = drawn_by(Room(str(tmp_path)), speech)
    np.testing.assert_allclose(heard, speech, atol=1e-6)


def test_nothing_drawn_is_nothing_changed(speech: np.ndarray, rooms: Path) -> None:
    for effect, values in (
        (Speed(), {"factor": 1.0}),
        (Gain(), {"gain_db": 0.0}),
        (Band(), {"low_hz": 1.0, "high_hz": 20_000.0, "tilt_db": 0.0, "ripple_db": [0.0] * 22}),
        (Noise(str(rooms)), {"folder": 0, "noise": 0, "start": 0.3, "snr_db": 140.0}),
    ):
        np.testing.assert_allclose(effect.apply(speech, values), speech, atol=1e-6)
    np.testing.assert_array_equal(carried_out([], speech), speech)


def test_pcm_and_back(speech: np.ndarray) -> None:
    edges = np.array([-1, 1, 0, 0.5], np.float32)
    for waveform in (speech, edges):
        back = from_pcm(to_pcm(waveform))
        assert back.dtype == np.float32
        assert np.abs(back - waveform).max() <= 0.5 / 32_767 + 1e-7
    np.testing.assert_array_equal(from_pcm(to_pcm(edges))[:3], edges[:3])


# ------------------------------------------------------------------------------------------ each against an oracle


@given(
    length=st.sampled_from([1, 2, 100, 4095, 4096, 4097, 9000, 20_000]),
    taps=st.sampled_from([1, 2, 511, 2048, 2049, 6000]),
    data=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_convolution_is_the_sum(length: int, taps: int, data: st.DataObject) -> None:
    lead = data.draw(st.integers(0, taps - 1))
    draw = np.random.default_rng((length, taps, lead))
    waveform, response = draw.standard_normal(length), draw.standard_normal(taps)
    # What np.convolve sums in double precision, from the lead on.
    expected = np.convolve(waveform, response)[lead : lead + length]
    found = convolve(waveform.astype(np.float32), response.astype(np.float32), lead)
    assert found.shape == (length,)
    np.testing.assert_allclose(found, expected, atol=1e-4 * math.sqrt(taps))


def test_a_room_keeps_time_power_and_length(speech: np.ndarray, rooms: Path) -> None:
    """The direct path arrives at once, though the file begins 30 samples before it."""
    effect = Room(str(rooms))
    clicks = impulse(RATE, 5000)
    for response in range(2):
        values = {"folder": 0, "response": response}
        heard = effect.apply(clicks, values)
        assert int(np.abs(heard).argmax()) == 5000
        assert np.abs(heard[:5000]).max() < 1e-5 * heard[5000]
        spoken = effect.apply(speech, values)
        assert spoken.shape == speech.shape
        assert np.mean(spoken.astype(float) ** 2) == pytest.approx(np.mean(speech.astype(float) ** 2), rel=1e-4)


def test_noise_has_the_ratio_that_was_drawn(speech: np.ndarray, rooms: Path) -> None:
    effect = Noise(str(rooms), snr_db=[-5, 30])
    recorded = [soundfile.read(rooms / f"noise/{number}.wav")[0] for number in range(2)]
    for seed in range(6):
        values = effect.draw(np.random.default_rng(seed))
        assert -5 <= values["snr_db"] <= 30
        added = effect.apply(speech, values).astype(float) - speech
        ratio_db = 10 * np.log10(np.mean(speech.astype(float) ** 2) / np.mean(added**2))
        assert ratio_db == pytest.approx(values["snr_db"], abs=0.05)
        # It is the recording, over and over from the place drawn.
        start = int(values["start"] * (RATE // 2))
        expected = np.roll(recorded[values["noise"]], -start)
        expected = np.resize(expected, len(speech))
        assert np.corrcoef(added, expected)[0, 1] > 0.999


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_speed_moves_times_and_pitches(factor: float) -> None:
    time_s = np.arange(RATE) / RATE
    tone = np.sin(2 * np.pi * 1000 * time_s).astype(np.float32)
    faster = Speed().apply(tone, {"factor": factor})
    assert len(faster) == round(RATE / factor)
    spectrum = np.abs(np.fft.rfft(faster * np.hanning(len(faster))))
    peak_hz = spectrum.argmax() * RATE / len(faster)
    assert peak_hz == pytest.approx(1000 * factor, abs=RATE / len(faster))
    click = Speed().apply(impulse(RATE, 8000), {"factor": factor})
    assert int(np.abs(click).argmax()) == pytest.approx(8000 / factor, abs=1)


def test_gain_and_the_guard_above_full_scale() -> None:
    waveform = np.array([0.5, -0.25, 0.125], np.float32)
    np.testing.assert_allclose(Gain().apply(waveform, {"gain_db": -20.0}), waveform / 10, rtol=1e-6)
    loud = carried_out([(Gain(), {"gain_db": 20.0})], waveform)
    np.testing.assert_allclose(loud, waveform / 0.5, rtol=1e-6)  # quieter as a whole, nothing is cut off


def test_a_band_cuts_what_lies_outside() -> None:
    draw = np.random.default_rng(0)
    white = (0.1 * draw.standard_normal(4 * RATE)).astype(np.float32)
    values = {"low_hz": 200.0, "high_hz": 4000.0, "tilt_db": 0.0, "ripple_db": [0.0] * 22}
    heard = Band().apply(white, values)
    assert lag(white, heard) == 0
    power = np.abs(np.fft.rfft(heard)) ** 2 / np.abs(np.fft.rfft(white)) ** 2
    hz = np.fft.rfftfreq(len(white), 1 / RATE)

    def level_db(at_hz: float) -> float:
        return float(10 * np.log10(power[np.abs(hz - at_hz) < 0.03 * at_hz].mean()))

    inside = level_db(1000)
    assert level_db(500) - inside == pytest.approx(0, abs=0.5)
    assert level_db(3000) - inside == pytest.approx(0, abs=0.5)
    assert level_db(100) - inside == pytest.approx(-24, abs=4)
    assert level_db(7500) - inside == pytest.approx(-24 * math.log2(7500 / 4000), abs=2)


def test_a_filter_of_no_gain_is_an_impulse() -> None:
    taps, middle = symmetric_filter(np.ones(257))
    assert len(taps) == 511
    np.testing.assert_allclose(taps, impulse(511, middle), atol=1e-7)
    shaped, middle = symmetric_filter(np.linspace(1, 0, 257))
    np.testing.assert_allclose(shaped, shaped[::-1], atol=1e-7)
    assert middle == 255


def mu_law_levels() -> np.ndarray:
    """All values that G.711 can give back: 8 octaves of 16 steps above a bias of 33 of 8192, and their negatives."""
    positive = np.array([((2 * step + 33) << octave) - 33 for octave in range(8) for step in range(16)]) / 8192
    return np.unique(np.concatenate([-positive, positive]))


def test_mu_law_is_that_of_the_standard(speech: np.ndarray) -> None:
    sent = speech[: 2 * 8000 : 2]
    heard = kvarts.sound._coded(sent, 8000, {"codec": "mulaw"})
    levels = mu_law_levels()
    places = np.abs(heard[:, None] - levels).argmin(axis=1)
    np.testing.assert_allclose(heard, levels[places], atol=1e-6)
    assert len(np.unique(places)) > 100
    # The nearest of them, or, where it lies between two, a neighbour.
    assert (np.abs(sent - heard) <= 0.55 * np.gradient(levels)[places] * 1.5).all()
    assert np.median(np.abs(sent - heard) / np.gradient(levels)[places]) < 0.35


@pytest.mark.parametrize("codec", CODECS)
def test_codecs_keep_time_and_words(speech: np.ndarray, codec: str) -> None:
    for seed in range(3):
        effect = Codec({codec: 1.0})
        values = effect.draw(np.random.default_rng(seed))
        assert values["codec"] == codec
        heard = effect.apply(speech, values)
        assert heard.shape == speech.shape
        assert heard.dtype == np.float32
        assert abs(lag(speech, heard)) <= 1
        assert 0.6 < np.corrcoef(speech, heard)[0, 1] < 0.99999
        if values["rate_hz"] == 8000:
            power = np.abs(np.fft.rfft(heard)) ** 2
            assert power[len(power) * 9 // 16 :].sum() < 1e-4 * power.sum()  # nothing above 4.5 kHz


# --------------------------------------------------------------------------------------------------- awkward sound


AWKWARD = {
    "none": np.zeros(0, np.float32),
    "one": np.array([0.3], np.float32),
    "one of silence": np.zeros(1, np.float32),
    "two": np.array([1, -1], np.float32),
    "silence": np.zeros(5000, np.float32),
    "clipped": np.sign(np.sin(np.arange(8000) / 9)).astype(np.float32),
    "constant": np.ones(3000, np.float32),
    "faint": np.full(3000, 1e-38, np.float32),
    "a click": impulse(3000, 1),
}


@pytest.mark.parametrize("name", AWKWARD)
def test_what_comes_out_is_finite(rooms: Path, name: str) -> None:
    waveform = AWKWARD[name]
    before = waveform.copy()
    for effect, seed in itertools.product(all_effects(rooms), range(2)):
        heard = drawn_by(effect, waveform, seed)
        assert heard.dtype == np.float32
        assert np.isfinite(heard).all(), effect
        if isinstance(effect, Speed):
            assert (len(heard) > 0) == (len(waveform) > 0)
        else:
            assert len(heard) == len(waveform), effect
    np.testing.assert_array_equal(waveform, before)
    everything = Sound(all_effects(rooms), close_share=0)
    heard = carried_out(everything.plan(np.random.default_rng(0)), waveform)
    assert np.isfinite(heard).all()
    assert np.abs(heard).max(initial=0) <= 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused(rooms: Path, bad: float) -> None:
    waveform = np.zeros(100, np.float32)
    waveform[7] = bad
    with pytest.raises(AudioError, match="not numbers"):
        carried_out(Sound(all_effects(rooms), 0).plan(np.random.default_rng(0)), waveform)


def test_silence_gets_no_noise() -> None:
    silence = np.zeros(100, np.float32)
    np.testing.assert_array_equal(mixed(silence, np.ones(100, np.float32), 5), silence)
    np.testing.assert_array_equal(mixed(np.ones(100, np.float32), silence, 5), np.ones(100, np.float32))


# ------------------------------------------------------------------------------------------------------- the chain


def test_the_share_and_the_probabilities_are_what_is_drawn(rooms: Path) -> None:
    sound = Sound([Speed(0.5), Room(str(rooms), 1.0), Gain(probability=0.0)], close_share=0.25)
    plans = [sound.plan(np.random.default_rng((5, number))) for number in range(2000)]
    clean = sum(not plan for plan in plans)
    assert clean / 2000 == pytest.approx(0.25, abs=0.04)
    names = [[type(effect).__name__ for effect, _ in plan] for plan in plans if plan]
    assert all(chain in (["Room"], ["Speed", "Room"]) for chain in names)
    assert sum(len(chain) == 2 for chain in names) / len(names) == pytest.approx(0.5, abs=0.05)
    factors = [plan[0][1]["factor"] for plan in plans if len(plan) == 2]
    assert 0.9 <= min(factors) < 0.91
    assert 1.09 < max(factors) <= 1.1
    assert sound.rooms == {"training 0", "training 1"}


def test_several_folders_are_drawn_from_evenly(tmp_path: Path, rooms: Path) -> None:
    """One measured response among many simulated ones must not get lost."""
    write(tmp_path / "measured.wav", impulse(100, 3))
    effect = Room([str(rooms), str(tmp_path)])
    drawn = [effect.draw(np.random.default_rng(seed))["folder"] for seed in range(400)]
    assert np.mean(drawn) == pytest.approx(0.5, abs=0.1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, speech: np.ndarray) -> Path:
    folder = tmp_path_factory.mktemp("speech")
    rows = []
    for number in range(4):
        write(folder / f"{number}.wav", speech[number * 4000 : number * 4000 + 16_000])
        rows.append({"audio_filepath": f"{number}.wav", "text": "да", "duration": 1.0})
    write_manifest(folder / "manifest.jsonl", rows)
    return folder / "manifest.jsonl"


def test_an_epoch_is_a_function_of_seed_epoch_and_utterance(tmp_path: Path, data: Path, rooms: Path) -> None:
    """With caches and without, cold and warm, in this process and in workers."""
    sound = Sound(all_effects(rooms), close_share=0.5)
    utterances = read_manifest(data)
    batches = [[(epoch, index) for index in range(4)] for epoch in range(3)]

    def epochs(dataset: SpeechDataset, workers: int = 0) -> list[torch.Tensor]:
        loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_sampler=batches,
            collate_fn=collate,
            num_workers=workers,  # type: ignore[arg-type]
        )
        return [batch.features for batch in loader]

    def made(seed: int = 1, folder: str | None = None) -> SpeechDataset:
        caches = [None if folder is None else FeatureCache(tmp_path / folder, 2**24, k) for k in (FEATURES, SAMPLES)]
        return SpeechDataset(utterances, None, seed, caches[0], sound, caches[1])

    plain = SpeechDataset(utterances)
    alone = epochs(made())
    for other in (epochs(made(folder="a")), epochs(made(folder="a")), epochs(made(folder="b"), workers=2)):
        assert all(map(torch.equal, alone, other))
    other = epochs(made(seed=2))
    assert not any(one.shape == two.shape and torch.equal(one, two) for one, two in zip(alone, other, strict=True))
    clean = 0
    for epoch, index in itertools.product(range(3), range(4)):
        features = made()[epoch, index].features
        plan = sound.plan(np.random.default_rng((1, epoch, index)))
        if plan:
            expected = log_mel(carried_out(plan, from_pcm(to_pcm(read_audio(utterances[index].audio_path)))))
            np.testing.assert_array_equal(features.numpy(), expected)
        else:
            clean += 1
            assert torch.equal(features, plain[0, index].features)
    assert 0 < clean < 12


def test_a_broken_file_is_named_by_its_line(tmp_path: Path, rooms: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"no audio")
    write_manifest(tmp_path / "manifest.jsonl", [{"audio_filepath": "a.wav", "text": "да", "duration": 1.0}])
    dataset = SpeechDataset(read_manifest(tmp_path / "manifest.jsonl"), sound=Sound([Room(str(rooms))], 0))
    with pytest.raises(AudioError, match=r"manifest\.jsonl:1: "):
        dataset[0, 0]


def test_samples_and_features_share_a_folder(tmp_path: Path, data: Path) -> None:
    path = read_manifest(data)[0].audio_path
    features, samples = (FeatureCache(tmp_path / "cache", 2**24, kind) for kind in (FEATURES, SAMPLES))
    for _ in range(2):
        np.testing.assert_array_equal(features.get(path, lambda p: log_mel(read_audio(p))), log_mel(read_audio(path)))
        np.testing.assert_array_equal(samples.get(path, lambda p: to_pcm(read_audio(p))), to_pcm(read_audio(path)))
    kept = sorted(file.suffix for file in (tmp_path / "cache").rglob("*.*"))
    assert kept == [".mel", ".pcm"]
    assert samples.get(path, lambda p: pytest.fail("read again")).dtype == np.int16
    # Both count against the bound, also where the count is lost and they are counted anew.
    (tmp_path / "cache" / "stored_bytes").unlink()
    features.get(read_manifest(data)[1].audio_path, lambda p: log_mel(read_audio(p)))
    blocks = sum(-(-file.stat().st_size // 4096) * 4096 for file in (tmp_path / "cache").rglob("*.*"))
    assert int((tmp_path / "cache" / "stored_bytes").read_text()) == blocks


def speech_data(folder: Path, manifest: Path, **arguments: Any) -> SpeechData:
    arguments = {"train_manifest": str(manifest), "val_manifest": str(manifest), "test_manifests": {}, **arguments}
    return SpeechData(folder, 4, 1, batch_size=2, cache_dir=str(folder / "cache"), num_workers=0, **arguments)


def test_shards_are_augmented_like_files(tmp_path: Path, data: Path, rooms: Path) -> None:
    utterances = read_manifest(data)
    write_shards(utterances, tmp_path / "shards", 2**20, 0)
    sound = Sound([Room(str(rooms)), Noise(str(rooms))], close_share=0.4)
    loaded = speech_data(
        tmp_path, data, train_manifest=str(tmp_path / "shards" / INDEX), val_manifest=str(data), sound=sound
    )
    loaded.prepare()
    found = 0
    for _ in range(2):
        for batch in loaded.train_dataloader():
            assert isinstance(batch, Batch)
            for features, utterance in zip(batch.features, batch.utterances, strict=True):
                clean = log_mel(
                    read_audio(next(u for u in utterances if u.fields["duration"] == utterance.duration_s).audio_path)
                )
                assert features.shape == clean.shape
                assert torch.isfinite(features).all()
                found += 1
    assert found == 8
    assert {file.suffix for file in (tmp_path / "cache").rglob("*.*")} == {".mel", ".pcm"}


# --------------------------------------------------------------------------------------- test rooms, bad settings


@pytest.mark.parametrize("part", ["val_manifest", "test_manifests"])
def test_test_rooms_are_never_training_rooms(tmp_path: Path, data: Path, rooms: Path, part: str) -> None:
    rows = [{**u.fields, "audio_filepath": str(u.audio_path), "room": "training 1"} for u in read_manifest(data)]
    write_manifest(tmp_path / "held out.jsonl", rows)
    place: Any = str(tmp_path / "held out.jsonl")
    named = {part: {"far": place} if part == "test_manifests" else place}
    with pytest.raises(ConfigError, match=r"held out\.jsonl:1: recorded in the room 'training 1'"):
        speech_data(tmp_path, data, sound=Sound([Room(str(rooms))]), **named).prepare()
    speech_data(tmp_path, data, sound=Sound([Noise(str(rooms))]), **named).prepare()


def test_the_shipped_settings_make_a_chain(rooms: Path) -> None:
    config = compose_config(["+experiment=finetune_farfield", f"augment.rooms={rooms}"])
    sound = instantiate(config.augment.sound)
    names = [type(step).__name__ for step in sound.steps]
    assert names == ["Speed", "Room", "Noise", "Band", "Codec", "Gain"]
    assert 0 < sound.close_share < 1
    several = compose_config(["augment=farfield", f"augment.rooms=[{rooms},{rooms}]"])
    assert len(instantiate(several.augment.sound).steps[1]._responses) == 2
    assert [type(s).__name__ for s in instantiate(compose_config(["augment=telephone"]).augment.sound).steps][-2:] == [
        "Codec",
        "Gain",
    ]


def test_throats_and_masks_of_the_farfield_chain_are_settings(rooms: Path) -> None:
    chosen = ["augment=farfield", f"augment.rooms={rooms}"]
    usual = instantiate(compose_config(chosen).augment.features).steps
    wider = [*chosen, "augment.formants=0.2", "augment.freq_width=15", "augment.time_width=35"]
    warp, masks = instantiate(compose_config(wider).augment.features).steps
    assert (warp.formants, masks.freq_width, masks.time_width) == (0.2, 15, 35)
    assert (usual[0].formants, usual[1].freq_width, usual[1].time_width) == (0.1, 10, 20)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda rooms: Speed(probability=1.5), "probability=1.5 of Speed: must be a number from 0 to 1"),
        (lambda rooms: Speed(change=0.6), "change=0.6"),
        (lambda rooms: Speed(change=True), "change=True"),
        (lambda rooms: Gain(gain_db=[5, -5]), "gain_db=.* of Gain: must be two rising numbers"),
        (lambda rooms: Gain(gain_db=3), "gain_db=3"),
        (lambda rooms: Gain(gain_db=[0, float("nan")]), "gain_db="),
        (lambda rooms: Noise(str(rooms), snr_db="ab"), "snr_db=ab"),
        (lambda rooms: Noise(str(rooms), snr_db=[0, 500]), "from -30 to 100"),
        (lambda rooms: Band(high_hz=[100, 200]), "high_hz="),
        (lambda rooms: Band(tilt_db=-1), "tilt_db=-1"),
        (lambda rooms: Codec({"mp3": 1}), "no codec of that name; choose from mulaw"),
        (lambda rooms: Codec({"gsm": -1}), "weights.gsm=-1"),
        (lambda rooms: Codec({}), "one must be above 0"),
        (lambda rooms: Room([]), "must be a path, or a list of paths"),
        (lambda rooms: Room("/none/such"), "no such folder; make one with kvarts augment rooms -o"),
        (lambda rooms: Sound([], close_share=-0.1), "close_share=-0.1"),
    ],
)
def test_impossible_settings_are_refused(rooms: Path, make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(rooms)


# ------------------------------------------------------------------------------------------------------ the preview


def test_the_preview_is_what_training_hears(tmp_path: Path, data: Path, rooms: Path, capsys: Any) -> None:
    audio = [str(u.audio_path) for u in read_manifest(data)][:2]
    out = tmp_path / "out"
    command = ["augment", "preview", *audio, "-o", str(out), "--variants", "3", "--seed", "1"]
    command += ["--set", f"augment.rooms={rooms}", "--set", "augment=farfield", "--set", "augment.sound.close_share=0"]
    assert cli.main(command) == 0, capsys.readouterr().err
    rows = [json.loads(line) for line in (out / "preview.jsonl").read_text().splitlines()]
    assert [(row["audio"], row["variant"]) for row in rows] == [(path, v) for path in audio for v in range(4)]
    page = (out / "preview.html").read_text()
    assert page.count("<audio") == 8
    config = compose_config(["augment=farfield", f"augment.rooms={rooms}", "augment.sound.close_share=0"])
    sound = instantiate(config.augment.sound)
    for row in rows:
        assert row["wav"] in page
        heard, rate = soundfile.read(out / row["wav"], dtype="float32")
        assert rate == RATE
        assert (out / row["picture"]).read_bytes().startswith(b"\x89PNG")
        waveform = read_audio(row["audio"])
        if row["variant"] == 0:
            assert row["effects"] == []
            np.testing.assert_allclose(heard, waveform, atol=1e-4)
            continue
        # As the data set draws it for this seed, epoch and utterance.
        plan = sound.plan(np.random.default_rng((1, row["variant"] - 1, audio.index(row["audio"]))))
        assert [effect["effect"] for effect in row["effects"]] == [type(effect).__name__ for effect, _ in plan]
        np.testing.assert_allclose(heard, np.clip(carried_out(plan, waveform), -1, 1), atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "augment=none"], "leave the sound as it is"),
        (["--set", "augment.rooms=/none/such"], "/none/such: no such folder; make one with kvarts augment rooms"),
        (["--set", "augment.sound.close_shar=1"], "did you mean augment.sound.close_share"),
        (["--variants", "0"], "--variants 0: must be"),
        (["--seed", "-1"], "--seed -1: must be"),
    ],
)
def test_mistakes_in_a_preview_are_one_line(
    tmp_path: Path, data: Path, capsys: Any, arguments: list[str], message: str
) -> None:
    audio = str(read_manifest(data)[0].audio_path)
    assert cli.main(["augment", "preview", audio, "-o", str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


# -------------------------------------------------------------------------------------------- a test set in rooms


def test_a_manifest_in_rooms(tmp_path: Path, data: Path, rooms: Path, capsys: Any) -> None:
    """Every utterance in time, as long as it was, in the room and the noise that its line names; the same each time."""
    rows = [json.loads(line) for line in (rooms / "rooms.jsonl").read_text().splitlines()]
    measured = tmp_path / "measured"
    write_manifest(measured / "rooms.jsonl", [{**row, "distance_m": 2.5, "room": row["room"] + "!"} for row in rows])
    for file in (*rooms.glob("rir/*"), *rooms.glob("noise/*")):
        write(measured / file.relative_to(rooms), soundfile.read(file)[0])
    command = ["augment", "manifest", str(data), "--rooms", str(rooms), str(measured), "--seed", "3"]
    noise = ["--snr-db", "5", "20", "--noises", str(measured / "noise")]
    for name in ("one", "two"):
        assert cli.main([*command, *noise, "-o", str(tmp_path / name)]) == 0, capsys.readouterr().err
    assert cli.main([*command, "-o", str(tmp_path / "quiet")]) == 0
    by_room = {response.room: response for folder in (rooms, measured) for response in read_responses(folder)}
    close = read_manifest(data)
    noisy, again, quiet = (read_manifest(tmp_path / name / "manifest.jsonl") for name in ("one", "two", "quiet"))
    for before, one, two, silent in zip(close, noisy, again, quiet, strict=True):
        assert one.audio_path.read_bytes() == two.audio_path.read_bytes()
        assert (one.text, one.utterance_id, one.duration_s) == (before.text, before.utterance_id, silent.duration_s)
        dry, heard, wet = (read_audio(u.audio_path) for u in (before, one, silent))
        assert len(dry) == len(heard) == len(wet)
        response = by_room[one.fields["room"]]
        expected = np.convolve(dry, response.samples)[response.lead : response.lead + len(dry)]
        np.testing.assert_allclose(wet, expected * math.sqrt((dry @ dry) / (expected @ expected)), atol=1e-3)
        assert one.fields["simulated"] is True
        assert one.fields["room"] == silent.fields["room"]
        assert one.fields.get("distance_m") == (2.5 if one.fields["room"].endswith("!") else None)
        # 600 samples to 1/e of the amplitude.
        assert one.fields["rt60_s"] == pytest.approx(3 * math.log(10) * 600 / RATE, rel=0.1)
        late = response.samples[response.lead + 41 :].astype(float)
        direct = response.samples[: response.lead + 41].astype(float)
        drr_db = 10 * math.log10((direct @ direct) / (late @ late))
        assert one.fields["drr_db"] == pytest.approx(drr_db, abs=0.06)
        assert "snr_db" not in silent.fields
        # As loud as before where nothing exceeds full scale; so the noise is what is left of it.
        scale = (heard @ wet) / (wet @ wet)
        left = heard - scale * wet
        snr_db = 10 * math.log10(scale**2 * (wet @ wet) / (left @ left))
        assert snr_db == pytest.approx(one.fields["snr_db"], abs=0.5)
    assert len({u.fields["room"] for u in noisy}) > 1
    held_out = speech_data(
        tmp_path,
        data,
        sound=Sound([Room([str(rooms), str(measured)])]),
        val_manifest=tmp_path / "one" / "manifest.jsonl",
    )
    with pytest.raises(ConfigError, match=r"which augment\.rooms has too"):
        held_out.prepare()


def test_a_room_that_does_not_ring_has_no_reverberation_time(tmp_path: Path, data: Path) -> None:
    # Of other speech in another room, which the new one is not.
    far = [{**u.fields, "audio_filepath": str(u.audio_path), "rt60_s": 0.7, "snr_db": 3.0} for u in read_manifest(data)]
    write_manifest(tmp_path / "far.jsonl", far)
    data = tmp_path / "far.jsonl"
    for name, response in (("impulse", impulse(1, 0)), ("echo", impulse(900, 0) + 0.2 * impulse(900, 899))):
        write(tmp_path / name / "response.wav", response)
        out = tmp_path / f"{name}_out"
        assert cli.main(["augment", "manifest", str(data), "--rooms", str(tmp_path / name), "-o", str(out)]) == 0
        for before, after in zip(read_manifest(data), read_manifest(out / "manifest.jsonl"), strict=True):
            assert after.fields.keys().isdisjoint({"rt60_s", "drr_db", "snr_db"})
            if name == "impulse":
                dry, heard = read_audio(before.audio_path), read_audio(after.audio_path)
                np.testing.assert_allclose(heard, dry, atol=2 / 32768)


def test_mistakes_with_a_manifest_are_one_line(tmp_path: Path, data: Path, rooms: Path, capsys: Any) -> None:
    out = str(tmp_path / "out")
    for arguments, message in (
        ([str(data), "--rooms", str(rooms), "-o", str(tmp_path)], "exists; give a new folder"),
        ([str(data), "--rooms", str(rooms), "-o", out, "--noises", "x"], "--noises goes with --snr-db"),
        ([str(data), "--rooms", str(rooms), "-o", out, "--snr-db", "9", "5"], "two rising numbers"),
        ([str(data), "--rooms", "/none/such", "-o", out], "/none/such: no such folder"),
        ([str(tmp_path / "none"), "--rooms", str(rooms), "-o", out], "no such manifest"),
        ([str(data), "--rooms", str(rooms), "-o", out, "--seed", "-1"], "--seed -1"),
    ):
        assert cli.main(["augment", "manifest", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert not Path(out).exists()


def test_a_broken_file_costs_the_others_nothing(tmp_path: Path, data: Path, rooms: Path, capsys: Any) -> None:
    close = read_manifest(data)
    lines = [{"audio_filepath": str(u.audio_path), "text": u.text, "duration": u.duration_s} for u in close]
    lines[1]["audio_filepath"] = str(tmp_path / "gone.opus")
    write_manifest(tmp_path / "m.jsonl", lines)
    out = tmp_path / "out"
    assert cli.main(["augment", "manifest", str(tmp_path / "m.jsonl"), "--rooms", str(rooms), "-o", str(out)]) != 0
    assert f"{tmp_path / 'm.jsonl'}:2" in capsys.readouterr().err
    assert len(read_manifest(out / "manifest.jsonl")) == len(close) - 1


def test_responses_are_read_once(rooms: Path) -> None:
    assert [response.room for response in read_responses(rooms)] == ["training 0", "training 1"]
