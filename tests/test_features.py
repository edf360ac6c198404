"""Log-mel features against torchaudio's own numbers and against the formula computed another way."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kvarts.errors import AudioError
from kvarts.features import CLAMP_MIN, FEATURE_SETTINGS, N_MELS, log_mel
from kvarts.frames import mel_frames

AWKWARD_LENGTHS = [
    1,
    2,
    3,
    159,
    160,
    161,
    199,
    200,
    201,
    202,
    319,
    320,
    321,
    359,
    360,
    400,
    519,
    520,
    521,
    16_000,
]
# A block of frames, one more, and one less: 256 whole frames follow the two that reach over the start.
BLOCK_LENGTHS = [160 * (2 + 256 + k) + 200 + d for k in (-1, 0, 1) for d in (-1, 0, 1)]

GOLDEN = Path(__file__).parent / "golden" / "torchaudio_log_mel.npz"


@pytest.fixture(scope="module")
def golden() -> dict[str, NDArray[np.generic]]:
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


def golden_cases() -> list[tuple[int, int]]:
    return [(excerpt, length) for excerpt in (0, 1) for length in (201, 400, 1601, 16_000)]


def by_the_formula(waveform: NDArray[np.float32]) -> NDArray[np.float64]:
    """The front end spelt out in double precision, with nothing from the package."""
    samples = waveform.astype(np.float64)
    last = len(samples) - 1

    def mirrored(i: int) -> float:
        while not 0 <= i <= last:
            i = -i if i < 0 else 2 * last - i
            if last == 0:
                return float(samples[0])
        return float(samples[i])

    def hz_of(mel: float) -> float:
        return 700 * (10 ** (mel / 2595) - 1)

    n = np.arange(400)
    window = np.sin(np.pi * n / 400) ** 2
    # cos and sin of 2 pi f n / 400 with the product reduced first, so that no digit is lost.
    angle = 2 * np.pi * (np.outer(n, np.arange(201)) % 400) / 400
    top_mel = 2595 * math.log10(1 + 8000 / 700)
    filters = np.zeros((201, 64))
    for m in range(64):
        left, centre, right = (hz_of(top_mel * (m + j) / 65) for j in range(3))
        for f in range(201):
            hz = 40.0 * f
            if left < hz <= centre:
                filters[f, m] = (hz - left) / (centre - left)
            elif centre < hz < right:
                filters[f, m] = (right - hz) / (right - centre)
    extended = np.array([mirrored(i) for i in range(-200, last + 201)])
    frames = np.array([extended[160 * k : 160 * k + 400] for k in range(len(samples) // 160 + 1)]) * window
    power = (frames @ np.cos(angle)) ** 2 + (frames @ np.sin(angle)) ** 2
    return np.log(np.clip(power @ filters, 1e-9, 1e9))


def noise(num_samples: int, seed: int = 0) -> NDArray[np.float32]:
    return (0.1 * np.random.default_rng(seed).standard_normal(num_samples)).astype(np.float32)


@pytest.mark.parametrize(("excerpt", "length"), golden_cases())
def test_equals_torchaudio_in_double_precision_on_real_speech(golden, excerpt, length):
    waveform = golden[f"excerpt_{excerpt}"][:length] / np.float32(32_768)
    expected = golden[f"float64_{excerpt}_{length}"]
    features = log_mel(waveform)
    assert features.shape == expected.shape
    # The golden value and ours are each rounded to float32 near 20, where its steps are 2e-6.
    np.testing.assert_allclose(features, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("excerpt", "length"), golden_cases())
def test_equals_torchaudio_in_single_precision_as_far_as_its_rounding_allows(golden, excerpt, length):
    waveform = golden[f"excerpt_{excerpt}"][:length] / np.float32(32_768)
    expected = golden[f"float32_{excerpt}_{length}"]
    apart = np.abs(log_mel(waveform) - expected)
    # 7 in natural log power is 30 dB: bands that are not drowned by the FFT's rounding of the loudest one.
    near_the_loudest = expected > expected.max(axis=1, keepdims=True) - 7
    assert apart[near_the_loudest].max() < 1e-4
    assert (apart < 1e-4).mean() > 0.95
    assert apart.max() < 0.02


def test_golden_file_says_how_it_was_made(golden):
    assert any("torchaudio 2." in version for version in golden["versions"].tolist())
    assert list(golden["lengths"]) == sorted({length for _, length in golden_cases()})


@pytest.mark.parametrize("num_samples", AWKWARD_LENGTHS + BLOCK_LENGTHS[::4])
def test_equals_the_formula_at_awkward_lengths(num_samples):
    waveform = noise(num_samples, seed=num_samples)
    features = log_mel(waveform)
    assert features.shape == (mel_frames(num_samples), 64)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, by_the_formula(waveform), rtol=0, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    num_samples=st.integers(1, 1200),
    seed=st.integers(0, 2**32 - 1),
    loudness=st.floats(-9, 0),
    tone_hz=st.floats(0, 8000),
    offset=st.floats(-0.5, 0.5),
)
def test_equals_the_formula_on_noise_tones_and_offsets(num_samples, seed, loudness, tone_hz, offset):
    tone = 0.3 * np.sin(2 * np.pi * tone_hz * np.arange(num_samples) / 16_000)
    waveform = (10**loudness * noise(num_samples, seed) + tone + offset).astype(np.float32)
    np.testing.assert_allclose(log_mel(waveform), by_the_formula(waveform), rtol=0, atol=1e-4)


@pytest.mark.parametrize("num_samples", BLOCK_LENGTHS)
def test_blocks_leave_no_seams(num_samples):
    """A frame depends on its 400 samples alone, wherever the blocks begin and end."""
    waveform = noise(num_samples)
    features = log_mel(waveform)
    assert features.shape == (mel_frames(num_samples), 64)
    for k in range(2, len(features) - 2):
        # The same samples in the middle of a short waveform are its frame 2.
        alone = log_mel(waveform[160 * k - 320 : 160 * k + 320])[2]
        np.testing.assert_allclose(features[k], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_samples", [1, 2, 3, 7, 100, 200])
def test_repeated_mirroring_is_numpy_pads(num_samples):
    waveform = noise(num_samples, seed=num_samples)
    padded = np.pad(waveform, 200, mode="reflect")
    # Frame 0 must be the frame that stands inside a longer waveform, far from its own mirrored ends.
    around = np.concatenate([np.zeros(320 - 200, np.float32), padded[:400], np.zeros(600, np.float32)])
    np.testing.assert_allclose(log_mel(waveform)[0], log_mel(around)[2], rtol=0, atol=1e-5)


def test_silence_is_the_clamp_and_a_huge_waveform_stays_finite():
    np.testing.assert_allclose(log_mel(np.zeros(800, np.float32)), math.log(CLAMP_MIN), atol=1e-6)
    loud = log_mel(np.full(800, 3e38, np.float32) * np.sign(noise(800)))
    np.testing.assert_allclose(loud, math.log(1e9), atol=1e-6)


@pytest.mark.parametrize("tone_hz", [100.0, 440.0, 1000.0, 3999.0, 7700.0])
def test_a_tone_is_loudest_in_its_own_band(tone_hz):
    tone = np.sin(2 * np.pi * tone_hz * np.arange(8000) / 16_000).astype(np.float32)
    mel = 2595 * math.log10(1 + tone_hz / 700)
    band = mel / (2595 * math.log10(1 + 8000 / 700)) * 65 - 1
    assert np.all(np.abs(log_mel(tone)[3:-3].argmax(axis=1) - band) <= 1)


def test_waveform_need_not_be_contiguous_and_is_left_alone():
    stereo = np.stack([noise(3000), noise(3000, seed=1)], axis=1)
    before = stereo.copy()
    np.testing.assert_array_equal(log_mel(stereo[:, 1]), log_mel(noise(3000, seed=1)))
    np.testing.assert_array_equal(stereo, before)


@pytest.mark.parametrize("where", [0, 200, 8000, 15_999])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite_are_refused(where, value):
    waveform = noise(16_000)
    waveform[where] = value
    with pytest.raises(AudioError, match="NaN or infinity"):
        log_mel(waveform)


@pytest.mark.parametrize(
    ("waveform", "message"),
    [
        (np.zeros(0, np.float32), "at least one sample"),
        (np.zeros((2, 400), np.float32), "mono"),
        (np.zeros(400, np.int16), "int16"),
    ],
)
def test_what_is_no_mono_float_waveform_is_refused(waveform, message):
    with pytest.raises(AudioError, match=message):
        log_mel(waveform)


def test_memory_does_not_grow_with_the_waveform():
    waveform = noise(16_000 * 120)
    tracemalloc.start()
    features = log_mel(waveform)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak - features.nbytes < 8e6


def test_settings_are_json_and_pinned():
    """A checkpoint is compared with these: a change here is a change of every model."""
    assert json.loads(json.dumps(FEATURE_SETTINGS)) == {
        "kind": "log_mel",
        "sample_rate": 16_000,
        "n_fft": 400,
        "win_length": 400,
        "hop_length": 160,
        "window": "hann_periodic",
        "center": True,
        "pad_mode": "reflect",
        "power": 2.0,
        "n_mels": 64,
        "f_min": 0.0,
        "f_max": 8000.0,
        "mel_scale": "htk",
        "mel_norm": None,
        "clamp_min": 1e-9,
        "clamp_max": 1e9,
        "log": "natural",
    }
    assert N_MELS == 64


def test_needs_numpy_alone():
    code = "import sys, kvarts.features; print({'torch', 'scipy', 'soundfile', 'soxr'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


def test_features_take_one_processor() -> None:
    """Threads of the matrix library would go on spinning beside the network's: recognition was half as fast."""
    code = (
        "import time, numpy as np\n"
        "from kvarts.features import log_mel\n"
        "waveform = np.random.default_rng(0).normal(0, 0.1, 160000).astype(np.float32)\n"
        "log_mel(waveform)\n"
        "time.sleep(1)\n"  # until threads that spin at the start have gone to sleep
        "wall_s, cpu_s = time.perf_counter(), time.process_time()\n"
        "for _ in range(200): log_mel(waveform)\n"
        "print((time.process_time() - cpu_s) / (time.perf_counter() - wall_s))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(ended.stdout) < 1.3
