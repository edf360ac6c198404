"""Other speeds and throats, made of features: the identity, the real thing as oracle, and what a user may get wrong."""

from pathlib import Path

import numpy as np
import pytest
import soxr
from hydra.utils import instantiate

from kvarts.audio import read_audio
from kvarts.config import compose_config
from kvarts.errors import ConfigError
from kvarts.features import CLAMP_MIN, log_mel
from kvarts.specaugment import SpecAugment
from kvarts.warp import Chain, Warp, warp_frequency, warp_time


@pytest.fixture(scope="module")
def waveform():
    return read_audio(sorted((Path(__file__).parents[1] / "sample").rglob("*.opus"))[0])


def test_a_factor_of_one_changes_nothing(waveform):
    features = log_mel(waveform)
    np.testing.assert_array_equal(warp_time(features, 1.0), features)
    np.testing.assert_allclose(warp_frequency(features, 1.0), features, atol=1e-4)
    same = Warp(0, 0, 0)(features, np.random.default_rng(0))
    np.testing.assert_allclose(same, features, atol=1e-4)


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_speed_is_near_to_that_of_a_resampled_recording(waveform, factor):
    """Against the waveform really played faster or slower: nearer than the recording itself by far."""
    features = log_mel(waveform)
    faster = log_mel(soxr.resample(waveform, 16_000 * factor, 16_000).astype(np.float32))
    warped = warp_time(warp_frequency(features, factor), factor)
    assert abs(len(warped) - len(faster)) <= 1
    frames = min(len(warped), len(faster))
    # Bands above 8 kHz · factor have no source.
    bands = slice(0, 58)
    warped, faster = warped[:frames, bands], faster[:frames, bands]
    only_time = warp_time(features, factor)[:frames, bands]
    error, without = np.abs(warped - faster).mean(), np.abs(only_time - faster).mean()
    assert error < 0.75
    assert error < 0.8 * without


def test_frequencies_move_where_they_should():
    """A tone of 1000 Hz made 1.2 times as high peaks in the band of 1200 Hz."""
    tone = lambda hz: np.sin(2 * np.pi * hz * np.arange(16_000) / 16_000).astype(np.float32)  # noqa: E731
    warped = warp_frequency(log_mel(tone(1000)), 1.2)
    assert abs(int(warped[50].argmax()) - int(log_mel(tone(1200))[50].argmax())) <= 1


@pytest.mark.parametrize("frames", [1, 2, 3, 100])
@pytest.mark.parametrize("factor", [0.5, 0.9, 1.0, 1.37, 2.0])
def test_lengths_and_ends(frames, factor):
    features = np.random.default_rng(frames).normal(size=(frames, 64)).astype(np.float32)
    warped = warp_time(features, factor)
    assert warped.shape == (max(1, round(frames / factor)), 64)
    np.testing.assert_array_equal(warped[0], features[0])
    if len(warped) > 1:
        np.testing.assert_allclose(warped[-1], features[-1], atol=1e-6)
    both = warp_frequency(warped, factor)
    assert both.dtype == np.float32
    assert np.isfinite(both).all()
    assert both.flags.c_contiguous


def test_silence_stays_silence():
    silence = np.full((50, 64), np.log(CLAMP_MIN), np.float32)
    warped = Warp(0.2, 0.2, 0.2)(silence, np.random.default_rng(0))
    np.testing.assert_allclose(warped, np.broadcast_to(silence[0], warped.shape), rtol=1e-6)


def test_the_draw_decides_and_the_source_is_left_alone(waveform):
    features = log_mel(waveform)
    before = features.copy()
    warp = Warp(0.1, 0.1, 0.1)
    one, again, other = (warp(features, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert one.shape != other.shape or not np.array_equal(one, other)
    np.testing.assert_array_equal(features, before)


def test_a_chain_is_its_steps_one_after_the_other(waveform):
    features = log_mel(waveform)
    warp, mask = Warp(), SpecAugment()
    draw = np.random.default_rng(3)
    expected = mask(warp(features, draw), draw)
    np.testing.assert_array_equal(Chain([warp, mask])(features, np.random.default_rng(3)), expected)


def test_the_config_makes_a_chain(waveform):
    config = compose_config(["augment=warp_specaugment"])
    chain = instantiate(config.augment.features)
    assert [type(step) for step in chain.steps] == [Warp, SpecAugment]
    assert chain(log_mel(waveform), np.random.default_rng(0)).shape[1] == 64


@pytest.mark.parametrize("setting", [{"speed": -0.1}, {"formants": 0.6}, {"tempo": "0.1"}, {"speed": True}])
def test_impossible_ranges_are_refused(setting):
    with pytest.raises(ConfigError, match=f"{next(iter(setting))}="):
        Warp(**setting)
