"""The weights that ship: there, small, understood by every command without a path, and as good as their card says."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from kvarts import Recognizer
from kvarts.audio import read_audio
from kvarts.checkpoint import COURSE_BLOCKS, load_model
from kvarts.cli import main
from kvarts.confidence import model_identity
from kvarts.decoder import ConvDecoder
from kvarts.encoder import QuartzNet
from kvarts.error_counts import ErrorCounts, char_errors
from kvarts.errors import ModelFolderError
from kvarts.manifest import read_manifest
from kvarts.model import QuartzNetCTC
from kvarts.model_folder import CARD, INT8, checked_file, read_config
from kvarts.open_weights import CHECKPOINT, LANGUAGE_MODEL, MODEL
from kvarts.recogniser_options import read_weights, weights_path
from kvarts.torch_engine import Torch

MOST_WRONG_LETTERS = 0.10  # 0.085 on these 26 utterances
SAMPLE = Path(__file__).resolve().parents[1] / "sample"


@pytest.fixture(scope="module")
def utterances():
    """Validation: the sentences 651 to 700, which it was not trained on."""
    return read_manifest(SAMPLE / "val_opus" / "manifest.jsonl")


def errors(recognizer, utterances):
    texts = [result.text for result in recognizer.transcribe_batch([one.audio_path for one in utterances])]
    return sum((char_errors(one.text, text) for one, text in zip(utterances, texts, strict=True)), ErrorCounts())


def test_whole_and_small():
    config = read_config(MODEL)
    for name in config["files"]:
        checked_file(MODEL, config, name)
    assert (MODEL / INT8).stat().st_size <= 9e6
    assert CHECKPOINT.stat().st_size <= 14e6
    assert LANGUAGE_MODEL.stat().st_size <= 5e6
    assert weights_path(LANGUAGE_MODEL).exists()
    assert config["licence"] != "unspecified"


def test_what_it_recognises_is_russian(utterances):
    """Letters right of sentences not heard in training; int8 is as good as the checkpoint in float16."""
    int8 = errors(Recognizer.load(), utterances)
    half = errors(Recognizer(Torch(load_model(CHECKPOINT))), utterances)
    assert int8.rate < MOST_WRONG_LETTERS
    assert abs(int8.rate - half.rate) < 0.01


def test_the_command_line_needs_no_model(capsys, utterances):
    path = str(utterances[0].audio_path)
    assert main(["transcribe", path]) == 0
    plain = capsys.readouterr().out
    assert main(["transcribe", "--model", "open", path]) == 0
    assert capsys.readouterr().out == plain
    assert set(plain.strip()) <= set("абвгдежзийклмнопрстуфхцчшщъыьэюя ")
    assert main(["transcribe", "--lm", "open", path]) == 0
    assert capsys.readouterr().out.strip()
    assert main(["evaluate", "--manifest", str(SAMPLE / "val_opus" / "manifest.jsonl")]) == 0
    assert "WER" in capsys.readouterr().out


def test_a_folder_of_the_same_name_is_meant_by_its_path(tmp_path, monkeypatch, capsys, utterances):
    (tmp_path / "open").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["transcribe", "--model", "./open", str(utterances[0].audio_path)]) == 2
    assert "is no model" in capsys.readouterr().err
    with pytest.raises(ModelFolderError, match="is no model"):
        Recognizer.load("open")


def test_training_starts_from_them(caplog):
    with caplog.at_level("INFO", "lightning"):
        network = QuartzNetCTC(QuartzNet(COURSE_BLOCKS), ConvDecoder(), init_weights="open")
    assert "successful load initial weights" in caplog.text
    for name, tensor in load_model(CHECKPOINT).state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor)


def test_the_checkpoint_and_int8_are_of_one_training(utterances):
    """The same log-probabilities but for rounding."""
    waveform = read_audio(utterances[0].audio_path)
    from kvarts.features import log_mel

    [one] = Recognizer.load().log_probs([log_mel(waveform)])
    [other] = Recognizer(Torch(load_model(CHECKPOINT))).log_probs([log_mel(waveform)])
    assert np.abs(np.exp(one) - np.exp(other)).sum(1).mean() / 2 < 0.1


def test_the_language_model_is_not_tuned_where_it_lies(capsys):
    manifest = str(SAMPLE / "val_opus" / "manifest.jsonl")
    assert main(["lm", "tune", "--lm", "open", "--manifest", manifest]) == 2
    assert "ships with its weights" in capsys.readouterr().err


def test_its_weights_were_tuned_on_validation():
    about = json.loads(weights_path(LANGUAGE_MODEL).read_text(encoding="utf-8"))
    assert "val_opus" in about["command"]
    weights = read_weights(LANGUAGE_MODEL)
    assert (weights.lm_weight, weights.temperature) == (about["lm_weight"], about["temperature"])
    assert weights.label_prior == tuple(about["label_prior"])
    assert weights.prior_weight > 0


def test_the_card_says_what_it_heard_and_under_which_licences():
    card = (MODEL / CARD).read_text(encoding="utf-8")
    for name in ("festvox-ru", "elena", "aleksandr-hq", "aleksandr", "anna", "irina", "GPL", "CC BY-SA 4.0"):
        assert name in card
    assert "## По-русски" in card
    assert len(model_identity(MODEL)) == 64
