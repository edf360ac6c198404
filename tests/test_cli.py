"""The command line itself: exit codes, messages, what it imports; each subcommand has its own tests."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TextIO

import pytest

import kvarts
from kvarts import cli, transcribe
from kvarts.errors import ManifestError

TRANSCRIBE = ["transcribe", "--checkpoint", "none.ckpt", "a.wav"]


def python(code: str, stdout: int | TextIO = subprocess.PIPE, **environment: str) -> subprocess.CompletedProcess[str]:
    # Standard output buffered, as a user has it, whatever this process was started with.
    env = os.environ | {"PYTHONUNBUFFERED": ""} | environment
    return subprocess.run(
        [sys.executable, "-c", code], stdout=stdout, stderr=subprocess.PIPE, text=True, env=env, check=False
    )


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"kvarts {kvarts.__version__}\n"


def test_help_is_light_and_names_the_commands() -> None:
    # Also where only recognition is installed, the command line must start: none of the training packages.
    code = (
        "import sys\n"
        "from kvarts.cli import main\n"
        "for command in ('', 'evaluate', 'transcribe', 'calibrate', 'data', 'data download', 'data sample', 'lm',\n"
        "                'lm build', 'lm tune', 'grammar', 'grammar check'):\n"
        "    try: main([*command.split(), '--help'])\n"
        "    except SystemExit as ended: assert ended.code == 0\n"
        "heavy = {'torch', 'pytorch_lightning', 'torchmetrics', 'hydra', 'rapidfuzz', 'rich', 'matplotlib'}\n"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()\n"
    )
    ended = python(code)
    assert ended.returncode == 0, ended.stderr
    whole, *of_commands = ended.stdout.split("usage: kvarts ")[1:]
    for command in ("train", "evaluate", "transcribe", "calibrate", "export", "data", "lm", "grammar"):
        assert re.search(rf"^ +{command}\b", whole, re.MULTILINE), command
    commands = {"data": ("download", "sample"), "lm": ("build", "tune"), "grammar": ("check",)}
    for group, names in commands.items():
        [said] = [part for part in of_commands if part.startswith(f"{group} [-h]")]
        for name in names:
            assert re.search(rf"^ +{name}\b", said, re.MULTILINE), name
    groups = {
        "evaluate": ("engine", "decoder", "streaming", "command grammar"),
        "transcribe": ("engine", "decoder", "confidence"),
        "calibrate": ("engine", "decoder"),
        "lm tune": ("engine", "decoder"),
    }
    for command, titles in groups.items():
        [said] = [part for part in of_commands if part.startswith(f"{command} [-h]")]
        for title in titles:
            assert re.search(rf"^{title}( \(.*)?:?$", said, re.MULTILINE), (command, title)


def test_as_a_module() -> None:
    ended = subprocess.run([sys.executable, "-m", "kvarts", "--version"], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, f"kvarts {kvarts.__version__}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["data"],
        ["data", "nonsense"],
        ["lm"],
        ["lm", "nonsense"],
        ["grammar"],
        ["grammar", "nonsense"],
        ["lm", "tune", "--model", "m"],
        ["calibrate", "--model", "m"],
        ["evaluate"],
        ["evaluate", "--checkpoint", "c.ckpt"],
        ["transcribe", "--checkpoint", "c.ckpt"],
        *[
            ["evaluate", "--checkpoint", "c", "--manifest", "m", "--batch-duration-s", number]
            for number in ("0", "-1", "nan", "inf", "x")
        ],
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert "usage: kvarts" in capsys.readouterr().err


def test_train_gets_its_arguments_untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def main(argv: list[str]) -> int:
        seen.append(argv)
        return 5

    monkeypatch.setitem(sys.modules, "kvarts.train", SimpleNamespace(main=main))
    assert cli.main(["train", "+experiment=overfit", "++trainer.strategy=ddp", "--cfg", "job"]) == 5
    assert cli.main(["train", "--help"]) == 5
    assert seen == [["+experiment=overfit", "++trainer.strategy=ddp", "--cfg", "job"], ["--help"]]


def test_the_command_line_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[argparse.Namespace] = []

    def run(args: argparse.Namespace) -> int:
        seen.append(args)
        return 0

    monkeypatch.setattr(transcribe, "run", run)
    assert cli.main(["transcribe", "--checkpoint", "c.ckpt", "two words.wav"]) == 0
    assert seen[0].command_line == "kvarts transcribe --checkpoint c.ckpt 'two words.wav'"


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (ManifestError("m.jsonl:3: broken"), 2, "kvarts: error: m.jsonl:3: broken\n"),
        (KeyboardInterrupt(), 130, "kvarts: interrupted\n"),
        (
            ModuleNotFoundError("No module named 'torch'", name="torch"),
            2,
            "kvarts: error: this command needs the package 'torch'; pip install 'kvarts[train]' "
            "(in a clone: pip install -e '.[train]')\n",
        ),
    ],
)
def test_what_is_raised_becomes_a_line_and_a_code(
    raised: BaseException,
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(args: argparse.Namespace) -> int:
        raise raised

    monkeypatch.setattr(transcribe, "run", run)
    assert cli.main(TRANSCRIBE) == code
    assert capsys.readouterr().err == message


@pytest.mark.parametrize(
    ("command", "package", "extra"),
    [
        (TRANSCRIBE, "torch", "train"),
        (TRANSCRIBE, "sounddevice", "mic"),
        (TRANSCRIBE, "openvino.runtime", "openvino"),
        (["evaluate", "--checkpoint", "c", "--manifest", "m"], "rich", "train"),
        (["data", "download", "course"], "rich", "download"),
        (["data", "sample", "--deb", "d"], "scipy.signal", "rooms"),
        (["train"], "hydra", "train"),
    ],
)
def test_a_missing_package_leads_to_the_extra_that_has_it(
    command: list[str], package: str, extra: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> int:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)

    if command == ["train"]:
        monkeypatch.setitem(sys.modules, "kvarts.train", SimpleNamespace(main=fail))
    else:
        module = command[1] if command[0] == "data" else command[0]
        monkeypatch.setattr(importlib.import_module(f"kvarts.{module}"), "run", fail)
    assert cli.main(command) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert repr(package.partition(".")[0]) in said
    assert f"pip install 'kvarts[{extra}]'" in said


@pytest.mark.parametrize(
    "raised",
    [RuntimeError("a bug"), MemoryError(), PermissionError(13, "no"), ModuleNotFoundError(name="kvarts.x")],
)
def test_a_bug_keeps_its_traceback(raised: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(args: argparse.Namespace) -> int:
        raise raised

    monkeypatch.setattr(transcribe, "run", run)
    with pytest.raises(type(raised)):
        cli.main(TRANSCRIBE)


PRINT_MUCH = (
    "from kvarts import cli, transcribe\n"
    "transcribe.run = lambda args: print('x' * 1_000_000) or 0\n"
    f"raise SystemExit(cli.main({TRANSCRIBE}))\n"
)


@pytest.mark.parametrize("length", [10, 1_000_000])
def test_a_reader_that_goes_away_is_no_error(length: int) -> None:
    code = PRINT_MUCH.replace("1_000_000", str(length))
    reading, writing = os.pipe()
    os.close(reading)
    ended = python(code, writing)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("length", [10, 1_000_000])
def test_a_full_disk_under_standard_output(length: int) -> None:
    code = PRINT_MUCH.replace("1_000_000", str(length))
    with Path("/dev/full").open("w") as full:
        ended = python(code, full)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert "No space left on device" in ended.stderr


def test_a_locale_without_cyrillic_shows_escapes() -> None:
    code = PRINT_MUCH.replace("'x' * 1_000_000", "'да'")
    ended = python(code, PYTHONIOENCODING="ascii")
    assert (ended.returncode, ended.stdout) == (0, "\\u0434\\u0430\n")
