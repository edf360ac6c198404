"""Room folders: read as they are described, refused by name; simulated rooms that are never test rooms."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from kvarts import cli, rooms
from kvarts.errors import AudioError, ConfigError
from kvarts.manifest import write_manifest
from kvarts.room_response import drr_db, schroeder_rt60
from kvarts.rooms import (
    NOISE_KINDS,
    as_response,
    direct_sample_of,
    draw_training_room,
    is_test_room,
    make_training_noise,
    read_noises,
    read_responses,
    simulate_responses,
)
from kvarts.sample import draw_rooms

RATE = 16_000


def write(path: Path, samples: Any, rate: int = RATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.asarray(samples, np.float32), rate, subtype="FLOAT" if path.suffix == ".wav" else "PCM_24")
    return path


def decaying(rt60_s: float, length: int, lead: int = 0) -> np.ndarray:
    """Energy falls by 60 dB in `rt60_s`, steadily."""
    return np.concatenate([np.zeros(lead), 10 ** (-3 * np.arange(length) / (RATE * rt60_s))])


# ------------------------------------------------------------------------------------------------------- responses


@pytest.mark.parametrize(
    ("response", "place"),
    [
        ([1], 0),
        ([0, 0, 1, 0.5], 2),
        ([0.1, -0.2, -1, 0.3], 2),  # it may be negative
        ([0, 0.3, 0.6, 0.8, 0.2, 0, 1, 0], 3),  # a reflection is higher by less than 6 dB
        ([0, 0.4, 0.1, 0, 1, 0], 4),  # what is lower than that is a sound before it
        ([0, 0.5, 1], 2),
        ([0, 1, 1], 1),
    ],
)
def test_the_direct_path_is_the_first_strong_peak(response: list[float], place: int) -> None:
    assert direct_sample_of(np.array(response, np.float32)) == place


def test_a_response_ends_where_60_db_are_gone() -> None:
    """Of a steady decay, Schroeder's curve falls as the response does: to -60 dB in the reverberation time."""
    for rt60_s in (0.1, 0.3):
        samples = decaying(rt60_s, RATE, lead=100).astype(np.float32)
        response = as_response(samples, 100, "r", Path("p"))
        assert response.lead == 40
        assert len(response.samples) - 40 == pytest.approx(rt60_s * RATE, abs=2)
        assert response.samples[response.lead] == 1
    # Louder than the direct path may be a reflection, never the direct path's time.
    samples = np.array([0, 0, 0.5, 0, -2, 0, 0], np.float32)
    response = as_response(samples, 2, "r", Path("p"))
    np.testing.assert_array_equal(response.samples, [0, 0, 0.25, 0, -1])
    assert response.lead == 2


def test_a_measured_response_ends_in_its_noise() -> None:
    """Two seconds were recorded; what rings for 0.4 s is under noise of -50 dB after 0.33 s."""
    noise = 10 ** (-50 / 20) * np.random.default_rng(0).standard_normal(2 * RATE)
    samples = decaying(0.4, 2 * RATE - 200, lead=200) + noise
    response = as_response(samples.astype(np.float32), 200, "r", Path("p"))
    assert 0.25 * RATE < len(response.samples) < 0.4 * RATE
    # Without noise there is none to end in, however late the last echo comes.
    echo = np.zeros(8000, np.float32)
    echo[[0, 7900]] = 1, 0.5
    assert len(as_response(echo, 0, "r", Path("p")).samples) == 7901


def test_a_folder_with_rows_and_one_without(tmp_path: Path) -> None:
    listed = tmp_path / "listed"
    write(listed / "rir/0001.flac", decaying(0.2, 4000, lead=60) * 0.9)
    write(listed / "rir/0002.wav", decaying(0.2, 4000, lead=5))
    write(listed / "rir/unlisted.wav", [1])
    rows = [
        {"audio_filepath": "rir/0001.flac", "rt60_s": 0.2, "drr_db": 3.0, "distance_m": 2.0, "direct_sample": 60},
        {"audio_filepath": "rir/0002.wav", "direct_sample": 5, "room": "kitchen", "note": "kept"},
    ]
    write_manifest(listed / "rooms.jsonl", [{**rows[0], "room": "hall"}, rows[1]])
    found = read_responses(listed)
    assert [(r.room, r.lead) for r in found] == [("hall", 40), ("kitchen", 5)]
    plain = tmp_path / "plain"
    write(plain / "b.WAV", decaying(0.2, 4000, lead=60))
    write(plain / "sub/a.flac", decaying(0.2, 12_000, lead=180), rate=48_000)  # the same at another rate
    (plain / "readme.txt").write_text("not sound")
    found = read_responses(plain)
    assert [r.path.name for r in found] == ["b.WAV", "a.flac"]
    assert len({r.room for r in found}) == 2
    for response in found:
        assert response.lead == 40
        assert np.abs(response.samples).argmax() == 40


def test_noises_are_read(tmp_path: Path) -> None:
    write(tmp_path / "noise/a.wav", [0.1, 0.2])
    write_manifest(tmp_path / "noises.jsonl", [{"audio_filepath": "noise/a.wav", "duration": 2 / RATE, "kind": "fan"}])
    [noise] = read_noises(tmp_path)
    assert (noise.kind, len(noise.samples)) == ("fan", 2)
    write(tmp_path / "plain/b.flac", [0.1, 0.2, 0.3])
    assert [n.kind for n in read_noises(tmp_path / "plain")] == ["noise"]
    # A folder of responses alone has no noises: they must not be taken for some.
    write(tmp_path / "rooms/rir/a.wav", [1])
    write_manifest(tmp_path / "rooms/rooms.jsonl", [{"audio_filepath": "rir/a.wav", "direct_sample": 0, "room": "r"}])
    with pytest.raises(ConfigError, match="no noises in it"):
        read_noises(tmp_path / "rooms")


BROKEN_ROWS = {
    "not json": (b"{", ConfigError, r"rooms\.jsonl:1: broken JSON"),
    "no path": (b'{"room": "r"}', ConfigError, r'rooms\.jsonl:1: "audio_filepath" is missing'),
    "room no text": (b'{"audio_filepath": "a.wav", "room": 3}', ConfigError, r'rooms\.jsonl:1: "room" is a number'),
    "no sample": (b'{"audio_filepath": "a.wav", "direct_sample": 1.5}', ConfigError, '"direct_sample" is 1.5'),
    "outside": (b'{"audio_filepath": "a.wav", "direct_sample": 9}', AudioError, '"direct_sample" is 9 of 3 samples'),
    "before": (b'{"audio_filepath": "a.wav", "direct_sample": -1}', AudioError, '"direct_sample" is -1 of 3'),
    "silent": (b'{"audio_filepath": "a.wav", "direct_sample": 1}', AudioError, "sample 1, the direct path's, is 0"),
    "missing": (b'{"audio_filepath": "b.wav"}', AudioError, r"rooms\.jsonl:1: .*b\.wav does not exist"),
    "nothing": (b"\n", ConfigError, "no room responses in it; make some with kvarts augment rooms"),
}


@pytest.mark.parametrize("name", BROKEN_ROWS)
def test_broken_rows_are_named(tmp_path: Path, name: str) -> None:
    row, kind, message = BROKEN_ROWS[name]
    write(tmp_path / "a.wav", [1, 0, 0.5])
    (tmp_path / "rooms.jsonl").write_bytes(row)
    with pytest.raises(kind, match=message) as caught:
        read_responses(tmp_path)
    assert "\n" not in str(caught.value)


def test_what_is_silent_is_no_room_and_no_noise(tmp_path: Path) -> None:
    write(tmp_path / "a.wav", np.zeros(100))
    with pytest.raises(AudioError, match=r"a\.wav: sample 0, the direct path's, is 0"):
        read_responses(tmp_path)
    with pytest.raises(AudioError, match=r"a\.wav is silent"):
        read_noises(tmp_path)


# ------------------------------------------------------------------------------------------------- simulated rooms


def test_training_rooms_are_not_test_rooms() -> None:
    """By name, and by their measures for every seed of the sample that anybody is likely to use."""
    tested = [room for seed in range(100) for room in draw_rooms(seed)]
    names = {name for name, _, _ in tested}
    measures = np.array([dims_m for _, dims_m, _ in tested])
    drawn = [draw_training_room(seed, number) for seed in range(2) for number in range(50)]
    assert len({room.room_id for room in drawn}) == 100
    assert not names & {room.room_id for room in drawn}
    for room in drawn:
        assert (np.abs(measures - room.dims_m).max(axis=1) > 0.1).all()


def test_a_room_that_a_test_has_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    _, dims_m, _ = draw_rooms(0)[3]
    length, width, height = dims_m
    assert is_test_room(dims_m)
    assert is_test_room((length + 0.09, width - 0.09, height))
    assert not is_test_room((length + 0.11, width, height))
    first = draw_training_room(0, 0)
    monkeypatch.setattr(rooms, "_test_rooms_m", lambda: [first.dims_m])
    assert draw_training_room(0, 0).dims_m != first.dims_m


def test_drawn_rooms_are_varied_and_everything_lies_inside() -> None:
    drawn = [draw_training_room(7, number) for number in range(60)]
    assert drawn[5] == draw_training_room(7, 5)
    assert drawn[5] != draw_training_room(8, 5)
    rt60_s = np.array([room.rt60_asked_s for room in drawn])
    assert rt60_s.min() < 0.25
    assert rt60_s.max() > 0.8
    for room in drawn:
        for place in (room.source_m, *room.microphones_m):
            assert all(0.2 <= x <= side - 0.2 + 1e-9 for x, side in zip(place, room.dims_m, strict=True))
        distances_m = [np.linalg.norm(np.subtract(room.source_m, place)) for place in room.microphones_m]
        assert 0.3 <= min(distances_m) <= max(distances_m) <= 6
        coefficients = np.array(list(room.absorption.values()))
        assert coefficients.shape == (6, 6)
        assert ((coefficients > 0) & (coefficients < 1)).all()


def test_a_simulated_response_rings_and_begins_as_it_should(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "_RAYS", 500)
    number = next(n for n in range(100) if 0.25 < draw_training_room(0, n).rt60_asked_s < 0.4)
    room = draw_training_room(0, number)
    for response, direct_sample in simulate_responses(room):
        near = np.abs(response[direct_sample - 10 : direct_sample + 11])
        assert near.argmax() in (9, 10, 11)
        # Before it comes little: the ripples of a band-limited impulse, and what a 10 Hz filter without phase leaves.
        assert np.abs(response[: direct_sample - 45]).max(initial=0) < 0.05 * near.max()
        assert 0.4 < schroeder_rt60(response[direct_sample:]) / room.rt60_asked_s < 2


@pytest.mark.parametrize("kind", NOISE_KINDS)
def test_noises_are_what_they_are_called(kind: str) -> None:
    noise = make_training_noise(kind, 3, 0, duration_s=3.0)
    assert noise.shape == (3 * RATE,)
    assert noise.dtype == np.float32
    assert np.isfinite(noise).all()
    assert np.abs(noise).max() <= 1
    assert 0.02 < np.sqrt(np.mean(noise.astype(float) ** 2)) <= 0.1001
    np.testing.assert_array_equal(noise, make_training_noise(kind, 3, 0, duration_s=3.0))
    assert not np.array_equal(noise, make_training_noise(kind, 3, 1, duration_s=3.0))


def test_brown_falls_faster_than_pink_and_pink_than_white() -> None:
    def slope_db(kind: str) -> float:
        found = []
        for number in range(12):  # each has a tilt of its own, up to 4 dB
            power = np.abs(np.fft.rfft(make_training_noise(kind, 0, number, duration_s=2.0))) ** 2
            low, high = power[500:1000].mean(), power[8000:16_000].mean()  # four octaves apart: 250…500, 4000…8000 Hz
            found.append(10 * np.log10(high / low) / 4)
        return float(np.mean(found))

    white, pink, brown = map(slope_db, ("white", "pink", "brown"))
    assert pink - white < -1.5
    assert brown - pink < -1.5


def test_the_command_makes_a_folder_that_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, workers in (("one", "1"), ("two", "2")):
        command = ["augment", "rooms", "-o", str(tmp_path / name), "--count", "2", "--noises", "2", "--seed", "5"]
        assert cli.main([*command, "--workers", workers]) == 0
    assert re.search(r"two: 2 responses of 1 rooms, 2 noises", capsys.readouterr().out)
    files = [file.relative_to(tmp_path / "one") for file in (tmp_path / "one").rglob("*") if file.is_file()]
    assert len(files) == 6
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file
    rows = [json.loads(line) for line in (tmp_path / "one/rooms.jsonl").read_text().splitlines()]
    for row, response in zip(rows, read_responses(tmp_path / "one"), strict=True):
        assert row["room"] == response.room == "simulated-5-0000"
        assert response.lead == row["direct_sample"]
        samples, rate = soundfile.read(tmp_path / "one" / row["audio_filepath"])
        assert rate == RATE
        assert soundfile.info(tmp_path / "one" / row["audio_filepath"]).subtype == "PCM_24"
        assert 0.3 <= row["distance_m"] <= 6
        # The row's figures are those of the file, which was cut at -60 dB.
        assert schroeder_rt60(samples[response.lead :]) == pytest.approx(row["rt60_s"], rel=0.1)
        assert drr_db(samples, row["direct_sample"]) == pytest.approx(row["drr_db"], abs=0.2)
    noises = [json.loads(line) for line in (tmp_path / "one/noises.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in noises] == list(NOISE_KINDS[:2])
    assert {row["duration"] for row in noises} == {15.0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--count", "0"], "--count 0: must be a whole number from 1 on"),
        (["--noises", "0"], "--noises 0"),
        (["--seed", "-1"], "--seed -1"),
        (["-o", "."], ". exists; give a new folder"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert cli.main(["augment", "rooms", "-o", str(tmp_path / "new"), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "new").exists()
