"""Audio files of every kind, whole, cut short and broken."""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from kvarts import audio
from kvarts.audio import audio_blocks, audio_duration_s, channel_count, read_audio
from kvarts.errors import AudioError
from kvarts.features import log_mel

GOLDEN = Path(__file__).parent / "golden" / "torchaudio_log_mel.npz"

# Container and codec as soundfile names them, by the suffix of the file.
FORMATS = {
    "wav": ("WAV", "PCM_16"),
    "aiff": ("AIFF", "PCM_16"),
    "flac": ("FLAC", "PCM_16"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
}

# Every example overwrites the same file in tmp_path.
in_tmp_path = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def speech() -> NDArray[np.float32]:
    """Two seconds of real speech at 16 kHz."""
    with np.load(GOLDEN) as arrays:
        return np.concatenate([arrays["excerpt_0"], arrays["excerpt_1"]]) / np.float32(32_768)


def tone(hz: float, rate: int, duration_s: float) -> NDArray[np.float32]:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(rate * duration_s)) / rate)).astype(np.float32)


def write(path: Path, samples: NDArray[np.floating], rate: int = 16_000, kind: str | None = None) -> Path:
    container, codec = FORMATS[kind or path.suffix[1:]]
    soundfile.write(path, samples, rate, format=container, subtype=codec)
    return path


def write_float_wav(path: Path, samples: NDArray[np.float32], rate: int = 16_000) -> Path:
    soundfile.write(path, samples, rate, format="WAV", subtype="FLOAT")
    return path


def write_with_ffmpeg(
    path: Path, samples: NDArray[np.float32], rate: int, codec: str, **options: str
) -> Path:
    av = pytest.importorskip("av")
    with av.open(str(path), "w", options=options) as container:
        container.metadata["title"] = "Запись"
        stream = container.add_stream(codec, rate=rate)
        stream.layout = "mono"
        whole = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        whole.sample_rate = rate
        fifo = av.AudioFifo()
        for frame in av.AudioResampler(stream.format.name, "mono", rate).resample(whole):
            frame.pts = None
            fifo.write(frame)
        frames = fifo.read_many(stream.codec_context.frame_size or 1024, partial=True)
        for frame in [*frames, None]:
            container.mux(stream.encode(frame))
    return path


def refusal(function, path) -> str:
    """The message of the AudioError, which must be one line that names the file."""
    with pytest.raises(AudioError) as caught:
        function(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return message


# --- whole files


@in_tmp_path
@given(samples=hnp.arrays(np.float32, st.integers(1, 500), elements=st.floats(-1, 1, width=32)))
def test_16_khz_mono_comes_back_bit_for_bit(tmp_path, samples):
    waveform = read_audio(write_float_wav(tmp_path / "a.wav", samples))
    assert waveform.dtype == np.float32
    np.testing.assert_array_equal(waveform, samples)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_its_speech_and_its_duration(tmp_path, speech, kind):
    path = write(tmp_path / f"a.{kind}", speech)
    waveform = read_audio(path)
    assert len(waveform) == len(speech)
    assert audio_duration_s(path) == len(speech) / 16_000
    assert np.corrcoef(waveform, speech)[0, 1] > 0.98


TONES = [
    *(("wav", rate, channels) for rate in (8000, 22_050, 44_100, 48_000, 96_000) for channels in (1, 2, 12)),
    *(("flac", rate, 2) for rate in (16_000, 96_000)),
    *(("ogg", rate, channels) for rate, channels in [(8000, 1), (44_100, 2), (48_000, 12)]),
    *(("mp3", rate, 2) for rate in (8000, 16_000, 44_100, 48_000)),
    *(("opus", rate, channels) for rate in (8000, 16_000, 24_000, 48_000) for channels in (1, 2)),
]


@pytest.mark.parametrize(("kind", "rate", "channels"), TONES)
def test_a_tone_keeps_its_pitch_its_level_and_its_duration(tmp_path, kind, rate, channels):
    # Quieter and louder channels, whose mean is the tone.
    gains = np.linspace(0.5, 1.5, channels) if channels > 1 else np.ones(1)
    path = write(tmp_path / f"a.{kind}", tone(1000, rate, 0.8)[:, None] * gains, rate)
    waveform = read_audio(path)
    assert len(waveform) == pytest.approx(12_800, abs=1)
    assert audio_duration_s(path) == pytest.approx(0.8, abs=1e-3)
    middle = waveform[3200:9600]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    assert spectrum.argmax() * 16_000 / len(middle) == pytest.approx(1000, abs=2.5)
    assert np.sqrt(2 * np.mean(middle**2)) == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_opus_of_48_khz_is_not_three_times_as_long(tmp_path, speech, rate):
    path = write(tmp_path / "a.opus", soxr.resample(speech, 16_000, rate), rate)
    assert audio_duration_s(path) == len(speech) / 16_000
    assert len(read_audio(path)) == len(speech)


@pytest.mark.parametrize(
    ("rate", "bands"), [(44_100, 62), (48_000, 62), (96_000, 62), (22_050, 62), (8000, 40)]
)
def test_features_of_resampled_speech_stay_close(tmp_path, speech, rate, bands):
    path = write_float_wav(tmp_path / "a.wav", soxr.resample(speech, 16_000, rate, "VHQ"), rate)
    there_and_back, original = log_mel(read_audio(path)), log_mel(speech)
    assert there_and_back.shape == original.shape
    # Frames away from the ends, and bands that the rate can carry, short of the resampler's slope.
    compared = np.s_[4:-4, :bands]
    audible = original[compared] > original.max() - 14  # 60 dB
    assert np.abs(there_and_back - original)[compared][audible].max() < 0.01


@in_tmp_path
@given(rate=st.sampled_from([8000, 11_025, 22_050, 44_100, 48_000, 96_000]), num_samples=st.integers(1, 3000))
def test_length_follows_the_rate(tmp_path, rate, num_samples):
    path = write(tmp_path / "a.wav", np.zeros(num_samples), rate)
    assert abs(len(read_audio(path)) - max(1, num_samples * 16_000 / rate)) <= 0.5
    assert audio_duration_s(path) == num_samples / rate


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "opus"])
@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_one_sample_is_audio(tmp_path, kind, rate):
    path = write(tmp_path / f"a.{kind}", np.full(1, 0.25), rate)
    assert read_audio(path).shape == (1,)
    assert audio_duration_s(path) == 1 / rate


def test_one_sample_keeps_its_value(tmp_path):
    for rate in (16_000, 48_000):
        assert read_audio(write_float_wav(tmp_path / "a.wav", np.full(1, 0.25, np.float32), rate)) == [0.25]


@pytest.mark.parametrize("kind", FORMATS)
def test_reading_in_blocks_changes_nothing(tmp_path, speech, kind, monkeypatch):
    """Also of a codec like mp3, whose frames lean on the ones before them, and with a resampler behind."""
    path = write(tmp_path / f"a.{kind}", np.stack([speech, 0.5 * speech], axis=1), 48_000)
    whole = read_audio(path)
    monkeypatch.setattr(audio, "_BLOCK_SAMPLES", 2 * 999)
    np.testing.assert_allclose(read_audio(path), whole, rtol=0, atol=1e-6)


def test_overshoot_is_clipped_and_integers_in_a_float_file_are_refused(tmp_path):
    path = write_float_wav(tmp_path / "a.wav", np.array([0.5, 1.5, -1.25], np.float32))
    np.testing.assert_array_equal(read_audio(path), np.array([0.5, 1, -1], np.float32))
    write_float_wav(path, np.array([3.0, -32_768.0], np.float32))
    assert "reaches 32768" in refusal(read_audio, path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_samples_that_are_not_finite_are_refused(tmp_path, value, rate):
    samples = np.zeros((3000, 2), np.float32)
    samples[1234, 1] = value
    assert "NaN or infinity" in refusal(read_audio, write_float_wav(tmp_path / "a.wav", samples, rate))


@pytest.mark.parametrize("function", [read_audio, audio_duration_s])
def test_paths_may_be_cyrillic_strings_or_not_even_utf_8(tmp_path, function):
    path = write(tmp_path / "запись ёж.wav", np.zeros(1600))
    assert np.size(function(path)) > 0
    assert np.array_equal(function(str(path)), function(path))
    if sys.platform == "linux":
        odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + "запись.wav".encode("cp1251")))
        assert np.array_equal(function(path.rename(odd)), function(odd))


@pytest.mark.parametrize("suffix", ["mp3", "raw", "txt", "opus", ""])
def test_content_counts_and_not_the_suffix(tmp_path, suffix):
    path = write(tmp_path / f"a.{suffix}", np.zeros(1600), kind="wav")
    assert len(read_audio(path)) == 1600
    assert audio_duration_s(path) == 0.1


# --- block by block


@pytest.mark.parametrize("rate", [16_000, 44_100])
@pytest.mark.parametrize(("kind", "channels"), [("wav", 1), ("wav", 2), ("flac", 8), ("wav", 12)])
def test_separate_channels_are_what_each_is_alone(tmp_path, speech, kind, channels, rate, monkeypatch):
    monkeypatch.setattr(audio, "_BLOCK_SAMPLES", 7919)
    shifted = np.stack([np.roll(speech, 1000 * channel) for channel in range(channels)], axis=1)
    path = write(tmp_path / f"a.{kind}", shifted, rate)
    assert channel_count(path) == channels
    blocks = list(audio_blocks(path, "separate"))
    assert len(blocks) > 1
    assert all(block.dtype == np.float32 and len(block) for block in blocks)
    together = np.concatenate(blocks)
    assert together.shape[1] == channels
    for channel in range(channels):
        alone = read_audio(write(tmp_path / f"b.{kind}", shifted[:, channel], rate))
        np.testing.assert_allclose(together[:, channel], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 12])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_blocks_stay_small(tmp_path, channels, rate):
    path = write(tmp_path / "a.wav", np.zeros((2**19 // channels, channels)), rate)
    for mode in ("mix", "separate"):
        assert max(block.size for block in audio_blocks(path, mode)) <= 2**18


@pytest.mark.parametrize("mode", ["mix", "separate"])
def test_what_is_wrong_further_on_is_told_there(tmp_path, speech, mode, monkeypatch):
    monkeypatch.setattr(audio, "_BLOCK_SAMPLES", 8000)
    good = np.tile(speech, 2)[: 5 * 8000]
    for sample, what in [(np.nan, "NaN or infinity"), (np.inf, "NaN or infinity"), (-99.0, "reaches 99")]:
        bad = np.append(good, [0, sample, 0]).astype(np.float32)
        blocks = audio_blocks(write_float_wav(tmp_path / "a.wav", bad), mode)
        np.testing.assert_array_equal(np.concatenate([next(blocks) for _ in range(5)])[:, 0], good)
        assert what in refusal(lambda _, blocks=blocks: next(blocks), tmp_path / "a.wav")
    path = write(tmp_path / "a.flac", good)
    path.write_bytes(path.read_bytes()[:-5000])
    blocks = audio_blocks(path, mode)
    assert next(blocks).shape == (8000, 1)
    refusal(lambda _: list(blocks), path)


def test_one_bad_channel_is_enough(tmp_path):
    samples = np.zeros((3000, 2), np.float32)
    samples[1234, 1] = 20  # 10 where channels are averaged
    path = write_float_wav(tmp_path / "a.wav", samples)
    assert len(read_audio(path)) == 3000
    assert "reaches 20" in refusal(lambda path: list(audio_blocks(path, "separate")), path)


@pytest.mark.parametrize("rate", [16_000, 96_000])
def test_one_sample_of_each_channel_is_a_block(tmp_path, rate):
    path = write_float_wav(tmp_path / "a.wav", np.array([[0.25, -0.5, 1.5]], np.float32), rate)
    [block] = audio_blocks(path, "separate")
    np.testing.assert_array_equal(block, [[0.25, -0.5, 1.0]])


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc here")
def test_who_stops_half_way_leaves_no_file_open(tmp_path, speech):
    open_files = len(list(Path("/proc/self/fd").iterdir()))
    blocks = audio_blocks(write(tmp_path / "a.wav", speech))
    next(blocks)
    assert len(list(Path("/proc/self/fd").iterdir())) > open_files
    blocks.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == open_files


# --- lengths not told


def test_wav_from_a_pipe_has_no_length_and_is_read_to_its_end(tmp_path):
    path = write(tmp_path / "a.wav", np.zeros(1600))
    content = bytearray(path.read_bytes())
    for unknown in (0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000):
        struct.pack_into("<I", content, content.index(b"data") + 4, unknown)
        path.write_bytes(content)
        assert len(read_audio(path)) == 1600
        assert audio_duration_s(path) == 0.1


def test_wav_may_count_a_byte_too_many(tmp_path):
    path = write(tmp_path / "a.wav", np.zeros(1600))
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, content.index(b"data") + 4, 3201)
    path.write_bytes(content)
    assert len(read_audio(path)) == 1600


def test_streamed_flac_has_no_length_and_is_decoded_for_it(tmp_path, speech):
    path = write(tmp_path / "a.flac", speech)
    content = bytearray(path.read_bytes())
    # STREAMINFO follows "fLaC" and 4 bytes; its bits 108 to 143 count the samples, 0 for unknown.
    content[8 + 13] &= 0xF0
    content[8 + 14 : 8 + 18] = bytes(4)
    path.write_bytes(content)
    assert len(read_audio(path)) == len(speech)
    assert audio_duration_s(path) == len(speech) / 16_000


def test_mp3_without_a_count_of_frames_is_decoded_for_its_duration(tmp_path):
    path = write_with_ffmpeg(tmp_path / "a.mp3", tone(440, 44_100, 3.0), 44_100, "libmp3lame", write_xing="0")
    with soundfile.SoundFile(path) as file:  # without a count, libsndfile guesses from the bit rate
        assert file.frames != len(file.read())
    waveform = read_audio(path)
    assert audio_duration_s(path) == len(waveform) / 16_000


def test_mp3_with_a_tag_in_front_is_still_counted(tmp_path, speech):
    path = write(tmp_path / "a.mp3", speech)
    # ID3 2.4 with five thousand bytes of padding; its size is written in groups of seven bits.
    path.write_bytes(b"ID3\x04\0\0\0\0\x27\x10" + bytes((0x27 << 7) + 0x10) + path.read_bytes())
    assert audio_duration_s(path) == len(speech) / 16_000
    path.write_bytes(path.read_bytes()[:-2000])
    assert "cut short" in refusal(read_audio, path)


# --- what is no audio


@pytest.mark.parametrize("function", [read_audio, audio_duration_s, channel_count])
class TestWhatIsNoAudio:
    def test_missing(self, tmp_path, function):
        assert "does not exist" in refusal(function, tmp_path / "нет.opus")
        assert "does not exist" in refusal(function, write(tmp_path / "a.wav", np.zeros(9)) / "b.wav")

    def test_link_to_nowhere(self, tmp_path, function):
        link = tmp_path / "a.wav"
        link.symlink_to(tmp_path / "b.wav")
        assert "does not exist" in refusal(function, link)

    def test_folder(self, tmp_path, function):
        assert "is a folder" in refusal(function, tmp_path)

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
    def test_pipe_that_nobody_writes_to(self, tmp_path, function):
        os.mkfifo(tmp_path / "a.wav")
        assert "not a regular file" in refusal(function, tmp_path / "a.wav")

    def test_impossible_name(self, tmp_path, function):
        assert "cannot be opened" in refusal(function, tmp_path / ("a" * 5000))
        assert "cannot be opened" in refusal(function, tmp_path / "a\0.wav")

    @pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no such permissions here")
    def test_permission_denied(self, tmp_path, function):
        path = write(tmp_path / "a.wav", np.zeros(1600))
        path.chmod(0)
        user = os.geteuid()
        if user == 0:  # root may read anything
            os.seteuid(65_534)
        try:
            assert "may not be read" in refusal(function, path)
        finally:
            os.seteuid(user)

    def test_zero_bytes(self, tmp_path, function):
        path = tmp_path / "a.opus"
        path.touch()
        assert "is empty (0 bytes)" in refusal(function, path)

    @pytest.mark.parametrize("suffix", ["wav", "mp3", "flac", "raw"])
    @pytest.mark.parametrize(
        "content",
        [
            b"\0",
            bytes(5000),
            "Привет, мир!\n".encode() * 400,
            b"<!DOCTYPE html><html>" * 99,
            b"RIFF\x24\0\0\0WAVEfmt ",
        ],
        ids=["one", "zeros", "text", "html", "riff"],
    )
    def test_other_content(self, tmp_path, function, suffix, content):
        path = tmp_path / f"a.{suffix}"
        path.write_bytes(content)
        assert "not audio" in refusal(function, path)

    @pytest.mark.parametrize("kind", ["wav", "aiff", "ogg"])
    def test_header_without_samples(self, tmp_path, function, kind):
        path = write(tmp_path / f"a.{kind}", np.zeros(0))
        assert "no sound after it" in refusal(function, path)

    def test_impossible_sample_rate(self, tmp_path, function):
        path = write(tmp_path / "a.wav", np.zeros(1600), 1)
        assert "sample rate of 1 Hz" in refusal(function, path)

    def test_the_file_is_closed_again(self, tmp_path, function):
        if not Path("/proc/self/fd").exists():
            pytest.skip("no /proc here")
        open_files = len(list(Path("/proc/self/fd").iterdir()))
        good = write(tmp_path / "a.wav", np.zeros(1600))
        cut_short, text = tmp_path / "b.wav", tmp_path / "c.wav"
        cut_short.write_bytes(good.read_bytes()[:999])
        text.write_text("Привет")
        for _ in range(3):
            function(good)
            refusal(function, cut_short)
            refusal(function, text)
        assert len(list(Path("/proc/self/fd").iterdir())) == open_files


# --- cut short


@pytest.fixture(scope="module")
def whole(tmp_path_factory, speech) -> Callable[[str], bytes]:
    """The content of a file of some kind; a function, since Hypothesis prints the arguments of what fails."""
    folder = tmp_path_factory.mktemp("whole")
    files = {kind: write(folder / f"a.{kind}", speech).read_bytes() for kind in FORMATS}
    return lambda kind: files[kind]


@pytest.mark.parametrize("kind", ["opus", "ogg"])
@in_tmp_path
@given(data=st.data())
def test_ogg_cut_anywhere_is_refused(tmp_path, whole, kind, data):
    content = whole(kind)
    cut = data.draw(st.integers(1, len(content) - 1))
    path = tmp_path / f"a.{kind}"
    path.write_bytes(content[:cut])
    for function in (read_audio, audio_duration_s):
        refusal(function, path)


@pytest.mark.parametrize("kind", ["opus", "ogg"])
def test_ogg_cut_between_pages_is_refused(tmp_path, whole, kind):
    content = whole(kind)
    starts = [i for i in range(1, len(content)) if content[i : i + 4] == b"OggS"]
    assert len(starts) > 2
    for start in starts:
        path = tmp_path / f"a.{kind}"
        path.write_bytes(content[:start])
        for function in (read_audio, audio_duration_s):
            assert "cut short" in refusal(function, path)


@pytest.mark.parametrize("kind", ["wav", "aiff"])
@in_tmp_path
@given(data=st.data())
def test_uncompressed_sound_cut_anywhere_is_refused(tmp_path, whole, kind, data):
    content = whole(kind)
    cut = data.draw(st.integers(1, len(content) - 2))
    path = tmp_path / f"a.{kind}"
    path.write_bytes(content[:cut])
    for function in (read_audio, audio_duration_s):
        refusal(function, path)


@in_tmp_path
@given(data=st.data())
def test_flac_cut_anywhere_is_refused_once_decoded(tmp_path, whole, data):
    content = whole("flac")
    path = tmp_path / "a.flac"
    path.write_bytes(content[: data.draw(st.integers(1, len(content) - 1))])
    refusal(read_audio, path)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8, 0.9])
def test_mp3_cut_by_more_than_its_slack_is_refused_once_decoded(tmp_path, whole, share):
    content = whole("mp3")
    path = tmp_path / "a.mp3"
    path.write_bytes(content[: round(share * len(content))])
    assert "cut short" in refusal(read_audio, path)


@pytest.mark.parametrize("kind", ["wav", "aiff", "flac", "ogg", "opus"])
@in_tmp_path
@given(data=st.data())
def test_damage_is_refused_or_harmless(tmp_path, whole, kind, data):
    content = bytearray(whole(kind))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, 200) | st.integers(0, len(content) - 1))
        content[place : place + 4] = data.draw(st.binary(max_size=8))
    path = tmp_path / f"a.{kind}"
    path.write_bytes(content)
    try:
        audio_duration_s(path)
        waveform = read_audio(path)
    except AudioError:
        return
    assert waveform.dtype == np.float32
    assert len(waveform) > 0
    assert np.abs(waveform).max() <= 1


# --- through FFmpeg


FFMPEG_KINDS = [("m4a", "aac"), ("mp4", "aac"), ("webm", "libopus"), ("mkv", "flac"), ("aac", "aac")]


@pytest.mark.parametrize(("suffix", "codec"), FFMPEG_KINDS)
@pytest.mark.parametrize("rate", [16_000, 48_000])
def test_ffmpeg_reads_what_libsndfile_does_not(tmp_path, suffix, codec, rate):
    path = write_with_ffmpeg(tmp_path / f"звук.{suffix}", tone(1000, rate, 1.5), rate, codec)
    waveform = read_audio(path)
    assert len(waveform) / 16_000 == pytest.approx(1.5, abs=0.15)
    assert audio_duration_s(path) == pytest.approx(len(waveform) / 16_000, abs=0.05)
    middle = waveform[8000:16_000]
    assert np.abs(np.fft.rfft(middle * np.hanning(8000))).argmax() * 2 == pytest.approx(1000, abs=2)
    assert np.sqrt(2 * np.mean(middle**2)) == pytest.approx(0.5, rel=0.05)
    assert channel_count(path) == 1


def test_ffmpeg_keeps_channels_apart(tmp_path):
    """Of an mkv with two channels, each a tone of its own."""
    av = pytest.importorskip("av")
    path = tmp_path / "a.mkv"
    tones = np.stack([tone(500, 48_000, 1.0), tone(1500, 48_000, 1.0)])
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=48_000)
        stream.layout = "stereo"
        planes = (tones.T * 32_767).astype(np.int16).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(planes), format="s16", layout="stereo")
        frame.sample_rate = 48_000
        for each in (frame, None):
            container.mux(stream.encode(each))
    assert channel_count(path) == 2
    blocks = np.concatenate(list(audio_blocks(path, "separate")))
    assert blocks.shape == (16_000, 2)
    spectrum = np.abs(np.fft.rfft(blocks[4000:12_000] * np.hanning(8000)[:, None], axis=0))
    np.testing.assert_allclose(spectrum.argmax(axis=0) * 2, [500, 1500], atol=2)


@pytest.mark.parametrize(("suffix", "codec"), FFMPEG_KINDS)
def test_containers_cut_short_are_refused(tmp_path, suffix, codec):
    options = {"movflags": "faststart"} if suffix == "m4a" else {}
    path = write_with_ffmpeg(tmp_path / f"a.{suffix}", tone(1000, 16_000, 2.0), 16_000, codec, **options)
    whole = path.read_bytes()
    for share in (0.3, 0.5, 0.8):
        path.write_bytes(whole[: round(share * len(whole))])
        refusal(read_audio, path)


def test_a_title_in_another_encoding_does_not_matter(tmp_path):
    path = write_with_ffmpeg(tmp_path / "a.mkv", tone(1000, 16_000, 0.5), 16_000, "flac")
    before = read_audio(path)
    content = path.read_bytes()
    assert "Запись".encode() in content
    path.write_bytes(content.replace("Запись".encode(), 2 * "Запись".encode("cp1251")))
    np.testing.assert_array_equal(read_audio(path), before)


def test_what_only_ffmpeg_reads_names_the_extra_to_install(tmp_path, monkeypatch):
    path = write_with_ffmpeg(tmp_path / "a.m4a", tone(1000, 16_000, 0.5), 16_000, "aac")
    monkeypatch.setitem(sys.modules, "av", None)
    for function in (read_audio, audio_duration_s):
        assert "install kvarts[av]" in refusal(function, path)


def test_a_playlist_does_not_make_ffmpeg_connect(tmp_path):
    """FFmpeg lets what was opened as a file open nothing but files; this must not change unnoticed."""
    pytest.importorskip("av")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/a.ts"
        path = tmp_path / "a.m3u8"
        path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{url}\n#EXT-X-ENDLIST\n")
        refusal(read_audio, path)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_a_picture_has_no_sound(tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))
        for each in (frame, None):
            container.mux(stream.encode(each))
    for function in (read_audio, audio_duration_s):
        assert "no sound track" in refusal(function, path)
