"""`kvarts export` and the folder it writes, with a small network that has every kind of block."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_asr
import pytest
import soundfile
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from kvarts.alphabet import ALPHABET
from kvarts.checkpoint import load_model, save_weights
from kvarts.cli import main
from kvarts.decoder import ConvDecoder
from kvarts.depthwise import DepthwiseConv
from kvarts.encoder import BlockConfig, QuartzNet
from kvarts.engines import OnnxRuntime, OpenVino, _padded_frames
from kvarts.errors import ConfigError, ExportError, ModelFolderError, OutputError
from kvarts.export import _spread, export
from kvarts.files import sha256_of
from kvarts.frames import SAMPLE_RATE, encoded_frames
from kvarts.manifest import read_manifest, write_manifest
from kvarts.model import QuartzNetCTC
from kvarts.model_folder import CARD, CONFIG, FLOAT32, INT8, TOKENS, VOCABULARY, WEIGHTS, load_engine
from kvarts.onnx_graph import onnx_model
from kvarts.proof import prove
from kvarts.quantise import calibrated, equalised, measured_ranges, quantised, rounded_tensors
from kvarts.recogniser import Recognizer, file_features
from kvarts.torch_engine import Torch

BLOCKS = (
    BlockConfig(32, 1, 9, stride=4, residual=False),
    BlockConfig(32, 2, 11),
    BlockConfig(48, 3, 13),
    BlockConfig(48, 1, 15, dilation=2, residual=False),
    BlockConfig(64, 1, 1, residual=False, separable=False),
)


@pytest.fixture(scope="module")
def model() -> QuartzNetCTC:
    """Random, with statistics as training would leave them, and a head that says many letters."""
    torch.manual_seed(3)
    model = QuartzNetCTC(QuartzNet(BLOCKS), ConvDecoder(64))
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_mean"):
                tensor.normal_(0, 0.3)
            elif name.endswith("running_var"):
                tensor.uniform_(0.3, 3)
        model.decoder.layers[0].weight.mul_(4)
    # What BatchNorm sees of real log-mel lies around -8.
    with torch.no_grad():
        for _ in range(30):
            model.encoder.train()(torch.randn(4, 200, 64) * 3 - 8, torch.tensor([200, 150, 90, 17]))
    return model.eval()


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of twelve utterances of modulated noise, of ragged lengths."""
    folder = tmp_path_factory.mktemp("speech")
    generator = np.random.default_rng(0)
    rows = []
    for number, samples in enumerate([400, 559, 560, 561, 639, 640, 641, 4000, 8001, 12345, 16000, 31999]):
        envelope = 1 + np.sin(np.arange(samples) * 0.002 * (number + 1))
        sound = (0.1 * envelope * generator.standard_normal(samples)).astype(np.float32)
        soundfile.write(folder / f"{number}.wav", np.clip(sound, -1, 1), SAMPLE_RATE)
        rows.append({"audio_filepath": f"{number}.wav", "text": "да нет", "duration": samples / SAMPLE_RATE})
    write_manifest(folder / "manifest.jsonl", rows)
    return folder / "manifest.jsonl"


@pytest.fixture(scope="module")
def checkpoint(model: QuartzNetCTC, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "small.safetensors"
    save_weights(model, path)
    return path


@pytest.fixture(scope="module")
def exported(checkpoint: Path, speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "model"
    export(checkpoint, folder, speech, speech)
    return folder


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    """A copy of the exported folder that a test may spoil."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for entry in exported.iterdir():
        (folder / entry.name).write_bytes(entry.read_bytes())
    return folder


def log_probs_of(model: QuartzNetCTC, features: NDArray[np.float32], lengths: NDArray[np.int64]) -> NDArray[np.float32]:
    return Torch(model).log_probs(features, lengths)


@pytest.mark.parametrize("engine", [OnnxRuntime, OpenVino])
def test_the_graph_computes_what_the_network_does_whatever_the_padding(
    model: QuartzNetCTC, engine: type[OnnxRuntime] | type[OpenVino], tmp_path: Path
) -> None:
    onnx.save(onnx_model(model, {}), tmp_path / "model.onnx")
    lengths = np.array([1, 2, 3, 4, 5, 40, 41, 200], np.int64)
    features = (np.random.default_rng(1).standard_normal((8, 200, 64)) * 3 - 8).astype(np.float32)
    for row, length in zip(features, lengths, strict=True):
        row[length:] = np.nan  # padding may be anything
    found = engine(tmp_path / "model.onnx", 1, "float32", 4).log_probs(features, lengths)
    expected = log_probs_of(model, features, lengths)
    for row, matrix, length in zip(found, expected, lengths, strict=True):
        frames = encoded_frames(int(length))
        np.testing.assert_allclose(row[:frames], matrix[:frames], atol=1e-4)
    # Alone as in the batch.
    for row, utterance, length in zip(found, features, lengths, strict=True):
        alone = engine(tmp_path / "model.onnx", 1, "float32", 4).log_probs(utterance[None, :length], np.array([length]))
        np.testing.assert_allclose(alone[0], row[: encoded_frames(int(length))], atol=1e-4)


def test_openvino_sees_few_lengths_and_little_more_than_there_is() -> None:
    padded = {frames: _padded_frames(frames) for frames in range(1, 3002)}
    assert all(frames <= longer < 1.125 * frames + 16 for frames, longer in padded.items())
    assert len({longer for frames, longer in padded.items() if frames > 300}) <= 8 * 4  # from 3 s to 30 s


def test_proofs_of_every_engine(exported: Path, model: QuartzNetCTC, speech: Path) -> None:
    utterances = read_manifest(speech)
    proofs = prove(exported, Recognizer(Torch(model)), utterances)
    by_engine = {proof.engine: proof for proof in proofs}
    assert list(by_engine) == [
        "torch cpu",
        "onnxruntime float32",
        "onnxruntime int8",
        "openvino float32",
        "openvino bfloat16",
        "openvino int8",
        "onnx-asr float32",
        "onnx-asr int8",
    ]
    for engine in ("onnxruntime float32", "openvino float32"):
        assert by_engine[engine].drift < 1e-4
        assert by_engine[engine].moved < 1e-5
        assert by_engine[engine].texts == 12
    for engine in ("onnxruntime int8", "openvino int8"):
        assert 1e-3 < by_engine[engine].drift < 3  # rounded, and not broken
        assert 1e-3 < by_engine[engine].moved < 0.2
    assert by_engine["onnx-asr float32"].texts == 12
    # The network does say something, or nothing would have been compared.
    assert any(Recognizer(Torch(model)).texts(features_of(speech)))


def weights_of(model: onnx.ModelProto) -> dict[str, NDArray[np.float32]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def features_of(manifest: Path) -> list[NDArray[np.float32]]:
    return [file_features(utterance.audio_path) for utterance in read_manifest(manifest)]


def test_weights_in_int8_are_the_nearest_steps_of_their_channel(exported: Path, speech: Path) -> None:
    exact = weights_of(equalised(onnx.load(exported / FLOAT32), features_of(speech)))
    rounded = weights_of(onnx.load(exported / INT8))
    names = [name.removesuffix(".integers") for name in rounded if name.endswith(".weight.integers")]
    assert len(names) == 17  # all convolutions but the head
    assert "decoder.weight" in rounded
    for name in names:
        steps, scale = rounded[f"{name}.integers"], rounded[f"{name}.scale"][:, None, None, None]
        assert steps.dtype == np.int8
        assert (np.abs(steps.astype(int)).max(axis=(1, 2, 3)) == 127).all()  # the whole range is used
        assert (np.abs(steps * scale - exact[name]) <= 0.501 * scale).all()


def test_evening_out_channels_changes_weights_and_no_result(
    exported: Path, speech: Path, tmp_path: Path, model: QuartzNetCTC
) -> None:
    plain, features = onnx.load(exported / FLOAT32), features_of(speech)
    even = equalised(plain, features)
    onnx.save(even, tmp_path / "even.onnx")
    before, after = weights_of(plain), weights_of(even)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    # Of each separable convolution both; neither 1×1 convolutions behind a ReLU nor those of residuals, nor the head.
    assert len(changed) == 14
    assert all(name.endswith(".weight") for name in changed)
    engine = OnnxRuntime(tmp_path / "even.onnx", 1, "float32", 4)
    for matrix in features:
        found = engine.log_probs(matrix[None], np.array([len(matrix)]))
        np.testing.assert_allclose(found, log_probs_of(model, matrix[None], np.array([len(matrix)])), atol=1e-4)


def test_channels_of_unlike_size_are_evened_out_before_they_are_rounded(
    model: QuartzNetCTC, speech: Path, tmp_path: Path
) -> None:
    """A network whose depthwise channels differ a thousandfold, which one scale for all of them cannot hold."""
    uneven = deepcopy(model)
    generator = np.random.default_rng(0)
    for block in uneven.encoder.layers:
        for depthwise, pointwise in pairwise(block.conv):
            if isinstance(depthwise, DepthwiseConv):
                size = torch.from_numpy(10 ** generator.uniform(-1.5, 1.5, len(depthwise.weight))).float()
                depthwise.weight.data *= size[:, None, None]
                depthwise.bias.data *= size
                pointwise.weight.data /= size[None, :, None]
    features = features_of(speech)
    graph = onnx_model(uneven, {})
    drifts = []
    for number, rounded in enumerate((quantised(graph, measured_ranges(graph, features)), calibrated(graph, features))):
        onnx.save(rounded, tmp_path / f"{number}.onnx")
        engine = OnnxRuntime(tmp_path / f"{number}.onnx", 1, "int8", 4)
        found = engine.log_probs(features[-1][None], np.array([len(features[-1])]))
        exact = log_probs_of(model, features[-1][None], np.array([len(features[-1])]))
        drifts.append(np.abs(found - exact).mean())
    assert drifts[1] < 0.6 * drifts[0], drifts


def test_ranges_hold_nearly_every_utterance_and_not_the_average_one(exported: Path, speech: Path) -> None:
    """Where two of twenty are of another kind they are not clipped, on either side."""
    graph = onnx.load(exported / FLOAT32)
    narrow = features_of(speech)[0]
    wide = 5 * narrow
    alone = {"wide": measured_ranges(graph, [wide]), "narrow": measured_ranges(graph, [narrow])}
    together = measured_ranges(graph, [narrow] * 18 + [wide] * 2)
    name = "features" if "features" in together else rounded_tensors(graph)[0]
    low, high = together[name]
    assert low == pytest.approx(min(alone["wide"][name][0], alone["narrow"][name][0]), rel=0.02)
    assert high == pytest.approx(alone["wide"][name][1], rel=0.02)
    assert high > 3 * alone["narrow"][name][1]
    assert measured_ranges(graph, [narrow] * 99 + [wide])[name][1] == pytest.approx(alone["narrow"][name][1], rel=1e-6)


def test_scales_are_taken_all_over_the_manifest() -> None:
    manifest: list[Any] = [SimpleNamespace(number=number) for number in range(1000)]
    chosen = [utterance.number for utterance in _spread(manifest)]
    assert len(chosen) == len(set(chosen)) == 80
    assert max(np.diff(chosen)) <= 13
    assert chosen[0] == 0
    assert chosen[-1] >= 987
    assert _spread(manifest[:7]) == manifest[:7]
    assert [utterance.number for utterance in _spread(manifest[:81])] == list(range(80))


def test_onnx_asr_reads_the_folder_and_says_the_same(exported: Path, speech: Path) -> None:
    theirs = onnx_asr.load_model("gigaam-v2-ctc", exported, providers=["CPUExecutionProvider"])
    ours = Recognizer.load(exported, engine="onnxruntime", precision="float32", threads=1)
    paths = [utterance.audio_path for utterance in read_manifest(speech)]
    expected = [ours.transcribe(path).text for path in paths]
    assert any(expected)
    assert [" ".join(theirs.recognize(path).split()) for path in paths] == expected


def test_what_lies_in_the_folder(exported: Path, checkpoint: Path) -> None:
    config = json.loads((exported / "config.json").read_text(encoding="utf-8"))
    assert config["alphabet"] == ALPHABET
    assert config["checkpoint_sha256"] == sha256_of(checkpoint)
    others = {entry.name for entry in exported.iterdir()} - {"config.json", "README.md"}
    assert set(config["files"]) == others >= {FLOAT32, INT8, TOKENS}
    for name, about in config["files"].items():
        assert about == {"bytes": (exported / name).stat().st_size, "sha256": sha256_of(exported / name)}
    tokens = (exported / TOKENS).read_text(encoding="utf-8").splitlines()
    assert (tokens[0], tokens[1], tokens[32], tokens[33]) == ("▁ 0", "а 1", "я 32", "<blk> 33")
    properties = {entry.key: entry.value for entry in onnx.load(exported / FLOAT32).metadata_props}
    assert properties["alphabet"] == ALPHABET
    assert json.loads(properties["stride"]) == 4


@pytest.mark.parametrize("name", [FLOAT32, TOKENS])
def test_a_file_missing_or_altered(copy: Path, name: str) -> None:
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ModelFolderError, match=f"{name} is not what was exported"):
        load_engine(copy, "onnxruntime", "float32", 1)
    (copy / name).unlink()
    with pytest.raises(ModelFolderError, match=f"{name} cannot be read"):
        load_engine(copy, "onnxruntime", "float32", 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is damaged"),
        ("[]", "is not of a Kvarts model"),
        ('{"kvarts_model": 99, "files": {}}', "by a later Kvarts"),
        ('{"kvarts_model": 1, "files": {}}', "has no stride"),
        ('{"kvarts_model": 1, "files": {}, "stride": 4, "alphabet": "abc"}', "another alphabet"),
    ],
)
def test_a_broken_config(copy: Path, content: str, message: str) -> None:
    (copy / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(ModelFolderError, match=message):
        load_engine(copy, None, None, 1)


def test_folders_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="does not exist"):
        load_engine(tmp_path / "none", None, None, 1)
    with pytest.raises(ModelFolderError, match="has no config"):
        load_engine(tmp_path, None, None, 1)


def test_settings_that_cannot_be_had(exported: Path) -> None:
    for engine, precision, threads, message in (
        ("onnxruntime", "bfloat16", 1, "OpenVINO"),
        ("onnxruntime", "int4", 1, "int4"),
        ("tensorrt", None, 1, "tensorrt"),
        ("onnxruntime", "float32", 0, "threads 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_engine(exported, engine, precision, threads)


def replace_network(folder: Path, name: str, graph: onnx.ModelProto) -> None:
    """With a hash that fits."""
    onnx.save(graph, folder / name)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["files"][name]["sha256"] = sha256_of(folder / name)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def with_other_head(graph: onnx.ModelProto, change: Callable[[NDArray[np.float32]], None]) -> onnx.ModelProto:
    [bias] = [tensor for tensor in graph.graph.initializer if tensor.name == "decoder.bias"]
    value = numpy_helper.to_array(bias).copy()
    change(value)
    bias.CopyFrom(numpy_helper.from_array(value, "decoder.bias"))
    return graph


def test_another_network_is_refused(copy: Path, model: QuartzNetCTC, speech: Path) -> None:
    def nudge(bias: NDArray[np.float32]) -> None:
        bias[0] += 0.01

    replace_network(copy, FLOAT32, with_other_head(onnx.load(copy / FLOAT32), nudge))
    with pytest.raises(ExportError, match=r"float32 does not compute .* differ by up to 0\.0"):
        prove(copy, Recognizer(Torch(model)), read_manifest(speech))


@pytest.mark.parametrize("value", [8.0, np.nan], ids=["another letter", "no number"])
def test_int8_that_says_something_else_is_refused(
    copy: Path, model: QuartzNetCTC, speech: Path, value: float
) -> None:
    def spoil(bias: NDArray[np.float32]) -> None:
        bias[3] = value

    replace_network(copy, INT8, with_other_head(onnx.load(copy / INT8), spoil))
    with pytest.raises(ExportError, match=r"int8 does not .* are other ones \(.* % of the prob"):
        prove(copy, Recognizer(Torch(model)), read_manifest(speech))


def test_a_folder_that_onnx_asr_cannot_use_is_refused(copy: Path, model: QuartzNetCTC, speech: Path) -> None:
    *lines, blank = (copy / "v2_vocab.txt").read_text(encoding="utf-8").splitlines()
    letters, ids = zip(*(line.split() for line in lines), strict=True)
    shifted = [f"{letter} {index}" for letter, index in zip((*letters[1:], letters[0]), ids, strict=True)]
    (copy / "v2_vocab.txt").write_text("\n".join([*shifted, blank, ""]), encoding="utf-8")
    with pytest.raises(ExportError, match="onnx-asr reads other texts from the model"):
        prove(copy, Recognizer(Torch(model)), read_manifest(speech))
    (copy / "v2_vocab.txt").unlink()
    with pytest.raises(ExportError, match="onnx-asr cannot use the model"):
        prove(copy, Recognizer(Torch(model)), read_manifest(speech))


def test_a_target_that_exists_is_left(copy: Path, checkpoint: Path, speech: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    with pytest.raises(ConfigError, match="is no exported model"):
        export(checkpoint, tmp_path / "notes", speech, speech, force=True)
    with pytest.raises(ConfigError, match="--force"):
        export(checkpoint, copy, speech, speech)
    assert {entry.name for entry in tmp_path.iterdir()} == {"copy", "notes"}


def test_a_failed_proof_leaves_nothing(
    checkpoint: Path, speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvarts.proof._LARGEST_DRIFT", 0.0)
    with pytest.raises(ExportError, match="nothing was written"):
        export(checkpoint, tmp_path / "model", speech, speech)
    assert list(tmp_path.iterdir()) == []


def test_the_model_card_has_a_row_of_figures_for_each_engine(exported: Path) -> None:
    card = (exported / "README.md").read_text(encoding="utf-8")
    assert card.startswith("# model\n")
    lines = [line for line in card.splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    cells = {row[0]: row[1:] for row in rows}
    assert {"torch cpu", "onnx-asr float32", "onnx-asr int8"} < cells.keys()
    for engine in ("onnxruntime float32", "onnxruntime int8", "openvino float32", "openvino bfloat16", "openvino int8"):
        megabytes, wer, interval, same, rtfx, latency, peak = cells[engine]
        network = exported / (INT8 if "int8" in engine else FLOAT32)
        assert float(megabytes) == pytest.approx(network.stat().st_size / 1e6, abs=0.06)
        assert float(wer) >= 0
        low, high = map(float, interval.split(" … "))
        assert low <= high
        assert 0 <= int(same) <= 12
        assert all(float(number) > 20 for number in rtfx.split(" / "))
        median_ms, late_ms = map(float, latency.split(" / "))
        assert 0 < median_ms <= late_ms
        assert 30 < float(peak) < 400  # of a process without PyTorch
    assert "12 utterances" in card
    assert "{" not in card
    assert "## По-русски" in card
    assert "README.md" not in json.loads((exported / "config.json").read_text(encoding="utf-8"))["files"]


def test_a_compact_folder(checkpoint: Path, model: QuartzNetCTC, speech: Path, tmp_path: Path) -> None:
    """int8 alone, and the weights in half precision to train from."""
    folder = tmp_path / "model"
    proofs = export(checkpoint, folder, speech, speech, compact=True)
    assert {proof.engine for proof in proofs} == {"torch cpu", "onnxruntime int8", "openvino int8", "onnx-asr int8"}
    assert {entry.name for entry in folder.iterdir()} == {INT8, WEIGHTS, TOKENS, VOCABULARY, CONFIG, CARD}
    assert load_engine(folder, "onnxruntime", None, 1).name == "onnxruntime int8"
    assert load_engine(folder, "openvino", None, 1).name == "openvino int8"
    with pytest.raises(ConfigError, match=r"precision float32: .* holds the network in int8 alone"):
        load_engine(folder, "onnxruntime", "float32", 1)
    halved = load_model(folder / WEIGHTS).state_dict()
    for name, exact in model.state_dict().items():
        torch.testing.assert_close(halved[name], exact, rtol=2**-11, atol=2**-24)  # half a unit of float16's last place
    assert (folder / WEIGHTS).stat().st_size < 0.6 * checkpoint.stat().st_size
    card = (folder / CARD).read_text(encoding="utf-8")
    assert f"| `{WEIGHTS}` |" in card
    assert f"| `{FLOAT32}` |" not in card


def test_a_place_that_cannot_be_written(checkpoint: Path, speech: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(OutputError, match="could not be written"):
        export(checkpoint, tmp_path / "file" / "model", speech, speech)


def test_the_command(checkpoint: Path, speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["export", str(checkpoint), "-o", str(tmp_path / "model"), "--test", str(speech)]
    assert main([*arguments, "--calibration", str(tmp_path / "none.jsonl")]) == 2
    assert "none.jsonl" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert main([*arguments, "--calibration", str(speech)]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[-1] == f"model: {tmp_path / 'model'}; its card: {tmp_path / 'model' / 'README.md'}"
    assert "warning" not in said.err
    assert main([*arguments, "--calibration", str(speech), "--force"]) == 0
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_scales_of_one_man_are_said_to_be_his(
    checkpoint: Path, speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured: of another man 87 % of the words wrong instead of 69, and nothing said so."""
    monkeypatch.chdir(Path(__file__).resolve().parents[1])
    assert main(["export", str(checkpoint), "-o", str(tmp_path / "model"), "--test", str(speech), "--compact"]) == 0
    assert "from sample/train_opus/manifest.jsonl, one man's speech" in capsys.readouterr().err
