"""Manifests of real people, `benchmarks/real_voices.py`: which texts are certain, and that none is in two of them."""

import gzip
import sys

import numpy as np
import pytest
import soundfile

import real_voices
from kvarts.manifest import read_manifest

pytest.importorskip("av", reason="G.722 is read by PyAV")
TEXTS = """; Core Asterisk Sounds in Russian

agent-pass: Введите пароль и нажмите решетку.
beep: [this is a simple beep tone]
conf-adminmenu: conf-adminmenu: Нажмите 1, 2 или 3
digits/mon-9: октрября
dir-usingkeypad: ... используйте 7 для Q и 9 для Z
is:
letters/dot: Точка [.]
letters/w: дабл-в
letters/zed: ЗэД
lost: Этого звука нет.
to-call-this-number: Что бы набрать данный номер.
vm-opts: Нажмите 0
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    root = tmp_path / "root"
    texts = root / real_voices.PROMPT_TEXTS
    texts.parent.mkdir(parents=True)
    texts.write_bytes(gzip.compress(TEXTS.encode()))
    for line in TEXTS.splitlines():
        name = line.partition(":")[0]
        sound = root / real_voices.PROMPTS / f"{name}.g722"
        if line and name != "lost":
            sound.parent.mkdir(parents=True, exist_ok=True)
            sound.write_bytes(bytes(range(256)) * 16)  # half a second; any bytes are G.722
    stamps = root / real_voices.STAMPS / "animals"
    stamps.mkdir(parents=True)
    words = ["рысь", "лев", "тигр", "ёж", "кот", "пёс", "слон", "мышь", "барс", "конь"]
    for number, word in enumerate([*words, *words]):
        soundfile.write(stamps / f"{number}_desc_ru.ogg", np.zeros((4410, 2), np.float32), 44100)
        (stamps / f"{number}.txt").write_text(f"A beast.\nuk.utf8=Звір.\nru.utf8=Большой {word}.\n", encoding="utf-8")
    (stamps / "20_desc_uk.ogg").write_bytes(b"")
    monkeypatch.setattr(sys, "argv", ["real_voices.py", "--root", str(root), "-o", str(tmp_path / "real")])
    return root


@pytest.fixture
def real(root):
    real_voices.main()
    return root.parent / "real"


def texts(folder):
    return {utterance.utterance_id: utterance.text for utterance in read_manifest(folder / "manifest.jsonl")}


def test_only_what_is_certain_to_be_said_is_in_the_manifests(real):
    assert texts(real / "exchange") == {
        "ivrvoice-agent-pass": "введите пароль и нажмите решетку",
        "ivrvoice-conf-adminmenu": "нажмите один два или три",
        "ivrvoice-digits-mon-9": "октября",
        "ivrvoice-letters-dot": "точка",
        "ivrvoice-to-call-this-number": "чтобы набрать данный номер",
    }
    assert texts(real / "mailbox") == {"ivrvoice-vm-opts": "нажмите ноль"}


def test_a_stamp_for_validation_has_no_twin_in_training(real):
    train, val = texts(real / "stamps"), texts(real / "stamps_val")
    assert len(train) + len(val) == 20
    assert len(set(val.values())) == 2
    assert not set(train.values()) & set(val.values())
    assert "большой еж" in {*train.values(), *val.values()}


def test_sound_is_there_at_16_khz_and_as_long_as_the_manifest_says(real):
    for manifest in real.rglob("manifest.jsonl"):
        for utterance in read_manifest(manifest):
            info = soundfile.info(utterance.audio_path)
            assert (info.samplerate, info.channels) == (16000, 1)
            assert info.frames == round(utterance.duration_s * 16000)


def test_packages_that_are_not_there_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["real_voices.py", "--root", str(tmp_path), "-o", str(tmp_path / "real")])
    with pytest.raises(SystemExit):
        real_voices.main()
    assert f"apt-get install {real_voices.PACKAGES}" in capsys.readouterr().err


def test_without_pyav_it_says_what_to_install(root, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(SystemExit):
        real_voices.main()
    assert "vm-opts.g722 is not audio that libsndfile reads" in capsys.readouterr().err
