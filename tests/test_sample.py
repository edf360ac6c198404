"""`kvarts data sample` on a package made up here, the acoustics behind it, and the sample that ships."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyroomacoustics as pra
import pytest
import soundfile

from archives import make_deb, make_tar
from kvarts import cli, sample
from kvarts.alphabet import foreign_characters
from kvarts.errors import ArchiveError, AudioError, ConfigError
from kvarts.frames import SAMPLE_RATE
from kvarts.text import normalise

SHIPPED = Path(__file__).parent.parent / "sample"
PLACES = {
    "train": "train_opus",
    "validation": "val_opus",
    "crowd": "test_opus/crowd",
    "farfield": "test_opus/farfield",
}


def rows_of(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {
        use: [
            json.loads(line) for line in (folder / place / "manifest.jsonl").read_text("utf-8").splitlines()
        ]
        for use, place in PLACES.items()
    }


def number_of(row: dict[str, Any]) -> int:
    match = re.fullmatch(r"festvox-ru ru_(\d{4})", row["source"])
    assert match
    return int(match[1])


def check_layout(folder: Path) -> None:
    """What must hold of every sample folder."""
    rows = rows_of(folder)
    assert max(map(number_of, rows["train"])) <= 650
    assert {650 < number_of(row) <= 700 for row in rows["validation"]} == {True}
    assert min(map(number_of, rows["crowd"] + rows["farfield"])) >= 701
    everything = [row for use_rows in rows.values() for row in use_rows]
    for field in ("source", "id", "audio_filepath"):
        assert max(Counter(row[field] for row in everything).values()) == 1
    for use, use_rows in rows.items():
        place = folder / PLACES[use]
        assert {file.relative_to(place).as_posix() for file in place.rglob("*.opus")} == {
            row["audio_filepath"] for row in use_rows
        }
        for row in use_rows:
            assert row["text"] == normalise(row["text"]) != ""
            assert foreign_characters(row["text"]) == ""
            assert row["id"] == hashlib.md5(row["source"].encode()).hexdigest()
            waveform, rate = soundfile.read(place / row["audio_filepath"], dtype="float32")
            assert (rate, waveform.ndim) == (SAMPLE_RATE, 1)
            assert row["duration"] == len(waveform) / SAMPLE_RATE
            assert 0.05 < np.abs(waveform).max() < 0.99  # neither silent nor clipped
            assert ("simulated" in row) == (use == "farfield")
    for row in rows["farfield"]:
        assert row["simulated"] is True
        assert 1 <= row["distance_m"] <= 5
        assert row["distance_m"] < np.linalg.norm(row["room_dims_m"])
        assert 0.3 <= row["rt60_s"] <= 0.8
        assert row["rt60_s"] == pytest.approx(row["rt60_asked_s"], rel=0.15)
        assert 5 <= row["snr_db"] <= 20
        assert row["noise"] in sample.NOISES


# --- The sample that ships ---------------------------------------------------------------------------------


def test_the_shipped_sample_is_what_it_says() -> None:
    check_layout(SHIPPED)
    rows = rows_of(SHIPPED)
    seconds = {use: sum(row["duration"] for row in use_rows) for use, use_rows in rows.items()}
    assert seconds["train"] == pytest.approx(600, abs=0.1)
    assert 85 <= len(rows["train"]) <= 115
    assert all(3 <= row["duration"] <= 12 for row in rows["train"] + rows["validation"])
    assert len(rows["validation"]) >= 20
    assert len(rows["crowd"]) >= 40
    assert len(rows["farfield"]) >= 40
    assert len({row["room"] for row in rows["farfield"]}) >= 6
    assert {row["noise"] for row in rows["farfield"]} == set(sample.NOISES)
    files = [file for file in SHIPPED.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 8_000_000
    bits = 8 * sum(file.stat().st_size for file in files if file.suffix == ".opus")
    assert 24_000 <= bits / sum(seconds.values()) <= 32_000


def test_the_readme_gives_the_numbers_of_the_manifests() -> None:
    readme = (SHIPPED / "README.md").read_text("utf-8")
    for use, use_rows in rows_of(SHIPPED).items():
        line = next(line for line in readme.splitlines() if line.startswith(f"| `{PLACES[use]}`"))
        minutes = sum(row["duration"] for row in use_rows) / 60
        assert f"| {len(use_rows)} | {minutes:.1f} |" in line


def test_the_licence_of_the_recordings_ships_with_them() -> None:
    notice = (SHIPPED / "NOTICE").read_text("utf-8")
    for phrase in (
        "Nickolay V. Shmyrev  Copyright (c) 2005",
        "Permission is hereby granted",
        "MODIFIED",
        "SIMULATED",
    ):
        assert phrase in notice


# --- A package made up here --------------------------------------------------------------------------------

TEXTS = {
    "ru_0001": "Она завела, прядь вол+ос — за ухо.",
    "ru_0020": "+Окна домов, Ёлка!",
    "ru_0650": "Последнее для обучения.",
    "ru_0649": "Слишком длинное, чтобы учиться на нём.",
    "ru_0030": "Дом 30, с цифрами.",
    "ru_0031": "Слово word чужое.",
    "ru_0651": "Первое для проверки.",
    "ru_0700": "Последнее для проверки.",
    "ru_0701": "Первое контрольное.",
    "ru_0800": "Второе контрольное.",
    "ru_0801": "Третье контрольное.",
    "ru_0844": "Четвёртое контрольное.",
}


def make_speech(name: str) -> np.ndarray:
    """Noise that swells and fades like syllables, of a length of its own."""
    number = int(name[3:])
    seconds = 13.0 if number == 649 else 3.0 + number / 1000
    time_s = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    noise = np.random.default_rng(number).standard_normal(len(time_s))
    return 0.1 * noise * np.sin(2 * np.pi * 2 * time_s) ** 2


def make_wav(waveform: np.ndarray, rate: int = SAMPLE_RATE) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, rate, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def package_members() -> dict[str, bytes]:
    voice = "./usr/share/festival/voices/russian/msu_ru_nsh_clunits/"
    lines = [f'( {name} "{text}" )\n' for name, text in TEXTS.items()]
    members = {f"{voice}wav/{name}.wav": make_wav(make_speech(name)) for name in TEXTS}
    return {
        f"{voice}etc/txt.done.data": "".join(lines).encode(),
        f"{voice}lab/ru_0001.lab": b"not wanted",
        **members,
        f"{voice}wav/ru_0099.wav": make_wav(make_speech("ru_0001")),  # has no text
    }


@pytest.fixture(autouse=True)
def _few_quick_rooms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "NUM_ROOMS", 2)
    monkeypatch.setattr(sample, "RT60_RANGE_S", (0.34, 0.36))


def build(package: Path, output: Path, *arguments: str) -> int:
    return cli.main(["data", "sample", "--deb", str(package), "-o", str(output), *arguments])


def tree(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()
    }


def test_the_whole_command_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deb = tmp_path / "festvox.deb"
    deb.write_bytes(make_deb(make_tar(package_members(), "w:xz")))
    assert build(deb, tmp_path / "one") == 0
    captured = capsys.readouterr()
    check_layout(tmp_path / "one")
    rows = rows_of(tmp_path / "one")
    assert [number_of(row) for row in rows["train"]] == [1, 20, 650]  # 649 is too long
    assert [row["text"] for row in rows["train"][:2]] == ["она завела прядь волос за ухо", "окна домов елка"]
    assert [number_of(row) for row in rows["validation"]] == [651, 700]
    assert (len(rows["crowd"]), len(rows["farfield"])) == (2, 2)
    assert {row["room"] for row in rows["farfield"]} == {"room_1", "room_2"}

    assert "train_opus: 3 utterances" in captured.out
    assert "is not festvox-ru 0.5+dfsg-6" in captured.err
    assert "ru_0030 is left out: its text has '30'" in captured.err
    assert "ru_0031 is left out: its text has 'word'" in captured.err

    # From the unpacked folder, over an older sample: the same bytes, and files of the user's stay.
    for name, content in package_members().items():
        (tmp_path / "unpacked" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "unpacked" / name).write_bytes(content)
    older = {"train_opus/manifest.jsonl": b"old", "train_opus/audio/old.opus": b"old", "README.md": b"mine"}
    for name, content in older.items():
        (tmp_path / "two" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "two" / name).write_bytes(content)
    assert build(tmp_path / "unpacked", tmp_path / "two") == 2
    error = capsys.readouterr().err
    assert "train_opus exists; give another -o, or --overwrite" in error
    assert error.count("\n") == 1
    assert tree(tmp_path / "two") == older
    assert build(tmp_path / "unpacked", tmp_path / "two", "--overwrite") == 0
    assert tree(tmp_path / "two") == {**tree(tmp_path / "one"), "README.md": b"mine"}
    assert {path.name for path in tmp_path.iterdir()} == {"festvox.deb", "one", "two", "unpacked"}


def test_a_package_without_test_recordings_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    members = {
        name: content for name, content in package_members().items() if not re.search("ru_0[78]", name)
    }
    deb = tmp_path / "festvox.deb"
    deb.write_bytes(make_deb(make_tar(members, "w:xz")))
    assert build(deb, tmp_path / "out") == 2
    assert "no recordings for" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["festvox.deb"]


@functools.cache
def broken_packages() -> dict[str, bytes]:
    good = make_deb(make_tar(package_members(), "w:xz"))
    return {
        "empty": b"",
        "text": b"hello",
        "cut": good[: len(good) // 2],
        "cut by a byte": good[:-2],
        "cut in a header": good[:100],
        "broken data": good[:-5000] + bytes(5000),
        "no data": good[:130],
        "zst": make_deb(b"\x28\xb5\x2f\xfd" + bytes(1000), "data.tar.zst"),
        "another package": make_deb(make_tar({"./usr/bin/true": b"\x7fELF"}, "w:xz")),
        "texts not UTF-8": make_deb(make_tar({"./etc/txt.done.data": b'( ru_0001 "\xff" )\n'}, "w:xz")),
    }


@pytest.mark.parametrize("name", broken_packages())
def test_broken_packages_are_named_in_one_line(tmp_path: Path, name: str) -> None:
    deb = tmp_path / "festvox.deb"
    deb.write_bytes(broken_packages()[name])
    with pytest.raises(ArchiveError, match=re.escape(str(deb))) as caught:
        sample.read_package(deb)
    assert "\n" not in str(caught.value)


def test_a_package_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "wav").mkdir()
    (tmp_path / "wav/ru_0001.wav").write_bytes(b"")
    (tmp_path / "festvox.deb").write_bytes(b"")
    monkeypatch.setattr(Path, "read_bytes", refuse)
    monkeypatch.setattr(Path, "open", refuse)
    for package in (tmp_path, tmp_path / "festvox.deb"):
        with pytest.raises(ArchiveError, match=r"could not be read \(Permission denied\)"):
            sample.read_package(package)


def test_a_missing_package(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="no such file; get it with: apt-get download festvox-ru"):
        sample.read_package(tmp_path / "missing.deb")


def test_no_member_of_a_package_is_ever_written(tmp_path: Path) -> None:
    members = {"../../wav/ru_0001.wav": b"evil", "/etc/txt.done.data": '( ru_0001 "Да." )'.encode()}
    deb = tmp_path / "in/festvox.deb"
    deb.parent.mkdir()
    deb.write_bytes(make_deb(make_tar(members, "w:xz")))
    assert sample.read_package(deb) == [sample.Recording("ru_0001", "Да.", b"evil")]
    assert [file.name for file in tmp_path.rglob("*")] == ["in", "festvox.deb"]


def test_recordings_of_other_rates_and_channels_become_16_khz_mono() -> None:
    tone = np.sin(2 * np.pi * 440 * np.arange(48_000) / 48_000) / 2
    wav = make_wav(np.stack([tone, np.zeros_like(tone)], axis=1), 48_000)
    waveform = sample.decode_wav(sample.Recording("ru_0001", "", wav))
    expected = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000) / 4
    np.testing.assert_allclose(waveform[200:-200], expected[200:-200], atol=1e-3)


@pytest.mark.parametrize("wav", [b"", b"no audio", make_wav(np.zeros(0))])
def test_a_recording_that_is_not_audio_is_named(wav: bytes) -> None:
    with pytest.raises(AudioError, match=r"^ru_0001\.wav: "):
        sample.decode_wav(sample.Recording("ru_0001", "Да.", wav))


# --- Which recording goes where ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "split"),
    [(1, "train"), (650, "train"), (651, "validation"), (700, "validation"), (701, "test"), (844, "test")],
)
def test_the_number_decides(number: int, split: str) -> None:
    assert sample.split_of(number) == split


@pytest.mark.parametrize("seed", range(5))
def test_choices_keep_to_the_rule_and_meet_the_target(seed: int) -> None:
    generator = np.random.default_rng(seed)
    durations_s = {f"ru_{i:04d}": float(generator.uniform(2.5, 17)) for i in range(1, 850)}
    chosen = sample.choose(durations_s, seed)
    for use, split in {
        "train": "train",
        "validation": "validation",
        "crowd": "test",
        "farfield": "test",
    }.items():
        assert {sample.split_of(int(name[3:])) for name in chosen[use]} == {split}
    assert sum(durations_s[name] for name in chosen["train"]) == pytest.approx(600, abs=0.1)
    assert all(3 <= durations_s[name] <= 12 for name in chosen["train"] + chosen["validation"])
    assert len(set(chosen["train"])) == sample.TRAIN_UTTERANCES
    assert set(chosen["crowd"]) | set(chosen["farfield"]) == {f"ru_{i:04d}" for i in range(701, 850)}
    assert not set(chosen["crowd"]) & set(chosen["farfield"])
    assert chosen == sample.choose(dict(reversed(durations_s.items())), seed)
    assert chosen != sample.choose(durations_s, seed + 1)


def test_a_set_without_recordings_is_named() -> None:
    with pytest.raises(ConfigError, match="no recordings for validation"):
        sample.choose({"ru_0001": 5.0, "ru_0701": 5.0, "ru_0702": 5.0}, 0)


# --- Acoustics ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rt60_s", [0.2, 0.5, 0.8])
def test_schroeder_finds_the_decay_of_a_known_one(rt60_s: float) -> None:
    time_s = np.arange(int(1.5 * rt60_s * SAMPLE_RATE)) / SAMPLE_RATE
    decay = np.random.default_rng(0).standard_normal(len(time_s)) * 10 ** (-3 * time_s / rt60_s)
    assert sample.schroeder_rt60(decay) == pytest.approx(rt60_s, rel=0.03)


@pytest.mark.parametrize(("dims_m", "rt60_s"), [((3.4, 4.1, 2.6), 0.34), ((5.1, 4.2, 2.5), 0.5)])
def test_rooms_ring_as_long_as_asked_at_other_places_too(
    dims_m: tuple[float, float, float], rt60_s: float
) -> None:
    room = sample.make_room("room", dims_m, rt60_s)
    for place in [
        sample.Placement((1.0, 0.8, 1.6), (2.9, 3.0, 0.9)),
        sample.Placement((2.2, 3.3, 1.2), (1.1, 1.0, 1.3)),
    ]:
        impulse_response = sample.simulate_impulse_response(room, place)
        # Another implementation of the same measure.
        independent_s = pra.experimental.measure_rt60(impulse_response, SAMPLE_RATE, decay_db=30)
        assert independent_s == pytest.approx(rt60_s, rel=0.15)
        assert sample.schroeder_rt60(impulse_response) == pytest.approx(independent_s, rel=0.03)


def test_the_impulse_response_starts_with_the_direct_sound() -> None:
    room = sample.make_room("room", (5.0, 4.0, 2.7), 0.34)
    near, far = (
        sample.simulate_impulse_response(room, sample.Placement((1.0, 1.0, 1.5), (1.0 + d_m, 1.0, 1.5)))
        for d_m in (1.0, 2.0)
    )
    assert np.argmax(np.abs(near)) <= 1
    # Direct sound falls with the distance, the diffuse tail does not.
    assert np.abs(near[:2]).max() / np.abs(far[:2]).max() == pytest.approx(2, rel=0.3)
    tails = [np.sum(response[1600:3200] ** 2) for response in (near, far)]
    assert tails[0] / tails[1] == pytest.approx(1, abs=0.5)


def test_far_field_speech_keeps_length_time_level_and_snr() -> None:
    dry = make_speech("ru_0801").astype(np.float32)
    room = sample.make_room("room", (5.0, 4.0, 2.7), 0.34)
    wet, label = sample.simulate_far_field("ru_0801", dry, room, "pink", np.ones(257), 0)
    assert wet.shape == dry.shape
    assert wet.dtype == np.float32
    assert np.abs(wet).max() <= sample.PEAK_LIMIT + 1e-6
    assert np.mean(wet**2) == pytest.approx(np.mean(dry**2), rel=1e-3)
    spectrum = np.fft.rfft(wet, 2 * len(wet)) * np.conj(np.fft.rfft(dry, 2 * len(dry)))
    correlation = np.fft.irfft(spectrum / np.abs(spectrum))  # whitened: sharp where the first sound arrives
    assert np.argmax(np.abs(correlation)) in (0, 1, len(correlation) - 1)
    assert 1 <= label.distance_m <= 5
    again, label_again = sample.simulate_far_field("ru_0801", dry, room, "pink", np.ones(257), 0)
    np.testing.assert_array_equal(again, wet)
    assert label_again == label


@pytest.mark.parametrize("snr_db", [5.0, 20.0])
@pytest.mark.parametrize("kind", sample.NOISES)
def test_noise_has_the_power_asked_for(kind: str, snr_db: float) -> None:
    generator = np.random.default_rng(0)
    speech = 0.3 * generator.standard_normal(40_001)
    noise = sample.make_noise(kind, len(speech), np.linspace(1, 0, 257), generator)
    added = sample.mix(speech, noise, snr_db) - speech
    assert 10 * np.log10(np.mean(speech**2) / np.mean(added**2)) == pytest.approx(snr_db, abs=1e-6)


def test_the_noises_have_their_spectra() -> None:
    def band_power(noise: np.ndarray, low_hz: float, high_hz: float) -> float:
        frequencies_hz = np.fft.rfftfreq(len(noise), 1 / SAMPLE_RATE)
        inside = (frequencies_hz >= low_hz) & (frequencies_hz < high_hz)
        return float(np.sum(np.abs(np.fft.rfft(noise)[inside]) ** 2))

    low_half = np.where(np.arange(257) < 128, 1.0, 0.0)
    pink, shaped, babble = (
        sample.make_noise(kind, 320_000, low_half, np.random.default_rng(1)) for kind in sample.NOISES
    )
    # Pink noise has the same power in every octave.
    assert band_power(pink, 250, 500) == pytest.approx(band_power(pink, 2000, 4000), rel=0.15)
    for noise in (shaped, babble):
        assert band_power(noise, 0, 2000) == pytest.approx(band_power(noise, 2000, 3900), rel=0.15)
        assert band_power(noise, 4100, 8000) < 0.01 * band_power(noise, 0, 4000)
    # Babble swells and fades more than steady noise does.
    loudness = [np.std(np.mean(noise.reshape(-1, 1600) ** 2, axis=1)) for noise in (shaped, babble)]
    assert loudness[1] > 3 * loudness[0]


def test_the_long_term_spectrum_follows_the_speech() -> None:
    tone = np.sin(2 * np.pi * 1000 * np.arange(16_000) / SAMPLE_RATE).astype(np.float32)
    spectrum = sample.long_term_spectrum([tone, tone])
    assert np.argmax(spectrum) == 1000 // (SAMPLE_RATE / 512)


def test_placements_lie_inside_their_room_and_1_to_5_m_apart() -> None:
    dims_m = (3.2, 2.8, 2.5)
    for seed in range(200):
        placement = sample.draw_placement(dims_m, random.Random(seed))
        for point in (placement.source_m, placement.microphone_m):
            assert all(
                0.5 <= coordinate <= size - 0.5 for coordinate, size in zip(point, dims_m, strict=True)
            )
        assert 1 <= placement.distance_m <= 5


# --- Opus --------------------------------------------------------------------------------------------------


def test_opus_files_are_stable_and_complete() -> None:
    waveform = make_speech("ru_0001").astype(np.float32)
    opus = sample.encode_opus(waveform, 0x12345678)
    assert opus == sample.encode_opus(waveform, 0x12345678)
    assert opus[14:18] == bytes.fromhex("78563412")
    decoded, rate = soundfile.read(io.BytesIO(opus), dtype="float32")
    assert (rate, len(decoded)) == (SAMPLE_RATE, len(waveform))
    assert np.corrcoef(decoded, waveform)[0, 1] > 0.8


def test_a_new_serial_number_changes_nothing_else() -> None:
    opus = sample.encode_opus(make_speech("ru_0001").astype(np.float32), 1)
    other = sample.with_ogg_serial(opus, 2)
    assert other != opus
    assert sample.with_ogg_serial(other, 1) == opus
    # libogg drops pages whose checksum is wrong.
    np.testing.assert_array_equal(soundfile.read(io.BytesIO(other))[0], soundfile.read(io.BytesIO(opus))[0])
