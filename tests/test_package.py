"""What `pip install kvarts` brings, how big it is, and how fast it starts: the recogniser, without the trainer."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import torch

import kvarts
from kvarts.alphabet import ALPHABET, BLANK_ID
from kvarts.decoder import ConvDecoder
from kvarts.encoder import BlockConfig, QuartzNet
from kvarts.features import FEATURE_SETTINGS
from kvarts.model import QuartzNetCTC
from kvarts.model_folder import CONFIG, FLOAT32, FORMAT_VERSION, INT8, TOKENS, tokens_text
from kvarts.onnx_graph import onnx_model

ROOT = Path(__file__).parents[1]
SPEECH = next((ROOT / "sample" / "test_opus" / "crowd").rglob("*.opus"))

MAX_INSTALLED_BYTES = 195_000_000  # 25 of them the open weights
MAX_IMPORT_S = 0.15
TRAINING = (
    *("torch", "pytorch_lightning", "lightning", "torchmetrics", "hydra", "omegaconf", "tensorboard", "matplotlib"),
    *("safetensors", "rapidfuzz", "rich", "pytorch_optimizer", "requests", "gdown", "scipy", "onnx", "openvino", "av"),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small network, which says whatever it says."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(1)
    network = QuartzNetCTC(QuartzNet([BlockConfig(16, 1, 33, stride=4, residual=False)]), ConvDecoder(16)).eval()
    graph = onnx_model(network, {}).SerializeToString()
    content = {FLOAT32: graph, INT8: graph, TOKENS: tokens_text().encode()}
    for name, data in content.items():
        (folder / name).write_bytes(data)
    config = {
        "kvarts_model": FORMAT_VERSION,
        "alphabet": ALPHABET,
        "blank_id": BLANK_ID,
        "features": FEATURE_SETTINGS,
        "stride": network.encoder.stride,
        "files": {
            name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in content.items()
        },
    }
    (folder / CONFIG).write_text(json.dumps(config), encoding="utf-8")
    return folder


def run(*command: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, **options)


# ------------------------------------------------------------------------------------------------------ start-up


def cpu_s_of_import(statement: str, after: str = "pass") -> float:
    """Processor time, the least of five fresh interpreters: what else the machine does must not count."""
    code = f"import time; {after}; start = time.process_time(); {statement}; print(time.process_time() - start)"
    return min(float(run(sys.executable, "-c", code).stdout) for _ in range(5))


def test_importing_kvarts_is_quick() -> None:
    assert cpu_s_of_import("import kvarts") < MAX_IMPORT_S  # 8 ms on a busy machine
    # 75 ms, on a slow machine 220, of which NumPy takes 160.
    assert cpu_s_of_import("from kvarts import Recognizer", after="import numpy") < MAX_IMPORT_S


def test_importing_kvarts_imports_nothing_else() -> None:
    code = (
        "import sys; before = set(sys.modules); import typing; before |= set(sys.modules); import kvarts\n"
        "print(*set(sys.modules) - before)"
    )
    assert run(sys.executable, "-c", code).stdout.split() == ["kvarts"]


def test_names_are_fetched_when_asked_for() -> None:
    from kvarts import Recognizer, Result, Word, recogniser

    assert (Recognizer, Result, Word) == (recogniser.Recognizer, recogniser.Result, recogniser.Word)
    with pytest.raises(ImportError):
        from kvarts import Recogniser  # noqa: F401
    with pytest.raises(AttributeError, match="module 'kvarts' has no attribute 'nonsense'"):
        kvarts.nonsense  # noqa: B018
    for name in kvarts.__all__:
        assert getattr(kvarts, name)


def test_a_recognition_needs_none_of_the_training_packages(model: Path) -> None:
    # In this process's environment all of them are installed.
    code = (
        "import sys\n"
        "from kvarts.cli import main\n"
        f"assert main(['transcribe', '--model', {str(model)!r}, '--engine', 'onnxruntime', {str(SPEECH)!r}]) == 0\n"
        f"assert not {set(TRAINING)!r} & sys.modules.keys(), sys.modules.keys()\n"
        "assert 'onnxruntime' in sys.modules\n"
    )
    ended = run(sys.executable, "-c", code)
    assert ended.returncode == 0, ended.stderr


# --------------------------------------------------------------------------------------------------- installation


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with Kvarts from a wheel and no extra; no pip either, the one of the tests fills it."""
    folder = tmp_path_factory.mktemp("base")
    venv.create(folder, with_pip=False)
    constraints = str(ROOT / "constraints.txt")
    env = os.environ | {"PIP_CONSTRAINT": constraints, "PIP_BUILD_CONSTRAINT": constraints}
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--retries", "1", "--timeout", "15"]
    installed = run(*pip, "--python", folder / "bin" / "python", "install", "--no-compile", ROOT, env=env)
    if installed.returncode != 0:
        # A package of any version: constraints that no index can meet are a failure, not a reason to skip.
        probe = run(*pip, "download", "--no-deps", "--dest", folder / "probe", "tqdm")
        if probe.returncode != 0:
            pytest.skip("pip reaches no package index, so there is nothing to install from")
        pytest.fail(installed.stdout + installed.stderr)
    return folder


def test_the_recogniser_alone_is_small(base: Path) -> None:
    [packages] = base.glob("lib/python3*/site-packages")
    files = [path for path in packages.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    total = sum(path.stat().st_size for path in files)
    assert (packages / "kvarts" / "recogniser.py") in files
    assert total <= MAX_INSTALLED_BYTES, f"{total / 1e6:.1f} MB"
    assert not [name for name in TRAINING if (packages / name).exists()]


def test_the_recogniser_alone_recognises(base: Path, model: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from kvarts import Recognizer\n"
        f"result = Recognizer.load({str(model)!r}).transcribe({str(SPEECH)!r})\n"
        "print(result.duration_s > 1, Recognizer.__module__, sys.modules['kvarts'].__file__)\n"
    )
    ended = run(base / "bin" / "python", "-I", "-c", code, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    sound, module, file = ended.stdout.split()
    assert (sound, module) == ("True", "kvarts.recogniser")
    assert Path(file).is_relative_to(base)


def test_the_command_alone(base: Path, model: Path) -> None:
    kvarts_command = base / "bin" / "kvarts"
    version = run(kvarts_command, "--version")
    assert (version.returncode, version.stdout) == (0, f"kvarts {kvarts.__version__}\n")
    helped = run(kvarts_command, "transcribe", "--help")
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "usage: kvarts transcribe" in helped.stdout
    spoken = run(kvarts_command, "transcribe", "--model", model, SPEECH)
    assert (spoken.returncode, spoken.stderr) == (0, "")


def test_the_open_weights_are_in_the_wheel(base: Path) -> None:
    """Understood without a model and without training packages, greedily and with the language model."""
    for options in ([], ["--lm", "open"]):
        spoken = run(base / "bin" / "kvarts", "transcribe", *options, SPEECH)
        assert (spoken.returncode, spoken.stderr) == (0, "")
        assert len(spoken.stdout.split()) > 2
    [packages] = base.glob("lib/python3*/site-packages")
    assert {path.name for path in (packages / "kvarts" / "open").iterdir()} == {
        path.name for path in (ROOT / "src" / "kvarts" / "open").iterdir()
    }


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        ("train", "train"),
        ("evaluate --checkpoint c.ckpt --manifest m.jsonl", "train"),
        ("transcribe --model c.ckpt a.wav", "train"),
        ("export c.ckpt -o out", "export"),
        ("data download course", "download"),
    ],
)
def test_what_is_missing_is_one_line(base: Path, command: str, extra: str, tmp_path: Path) -> None:
    (tmp_path / "c.ckpt").write_bytes(b"PK")
    ended = run(base / "bin" / "kvarts", *command.split(), cwd=tmp_path)
    assert ended.returncode == 2
    assert re.fullmatch(
        rf"kvarts: error: this command needs the package '\w+'; pip install 'kvarts\[{extra}\]' .*\n", ended.stderr
    )
