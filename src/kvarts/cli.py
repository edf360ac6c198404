"""The ``kvarts`` command. Every subcommand's module offers `add_arguments` and `run`, which alone imports
PyTorch; the module itself is imported when its subcommand is called.

Exit codes: 0 for success, 1 where some inputs failed and the others went on (`transcribe`), 2 for a mistake of
the user; one line on standard error says which. 130 for Ctrl-C, 141 for a reader that went away (``kvarts … | head``),
as a shell would count them.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from io import TextIOWrapper
from typing import Final

import kvarts
from kvarts.errors import KvartsError

_USER_MISTAKE = 2
_INTERRUPTED = 130
_READER_GONE = 141

# Subcommands, each in the module of its name, and what the help says of them. «train» has a parser of its own: Hydra's.
_COMMANDS: Final = {
    "evaluate": "measure WER and CER on manifests",
    "compare": "tell whether one recogniser is really better than another",
    "report": "write a page to look at and listen to, of what was recognised",
    "transcribe": "write down what is said in audio and video files",
    "calibrate": "fit confidences that are probabilities, and thresholds",
    "export": "write a checkpoint as a model that runs without PyTorch",
    "average": "write the weights between those of two checkpoints",
    "augment": "simulate rooms to train with, and listen to what training makes of a recording",
    "room": "measure a room from a recording of claps or of a sweep",
}
_DATA_COMMANDS: Final = {
    "download": "download and unpack a data set",
    "sample": "rebuild the sample speech from its Debian package",
}
# These in modules whose names begin with «data_».
_CORPUS_COMMANDS: Final[dict[str, str]] = {
    "import": "make manifests of other corpora: Golos, Common Voice, Kaldi, AudioFolder, NeMo, Festvox",
    "check": "find what is wrong with manifests, their texts and audio",
    "stats": "show hours, lengths, words, speakers, levels and spectra of manifests",
    "mix": "write one training manifest of several, each as often as it is to be heard",
    "shard": "pack a manifest and its audio into shards that training streams",
}
_LM_COMMANDS: Final = {
    "build": "estimate an n-gram language model from texts",
    "tune": "find the weights of a language model on a validation set",
}
_GRAMMAR_COMMANDS: Final = {
    "check": "find mistakes in a command grammar, and commands that sound alike",
}

# What to install where a package is missing: by the command, if its extra has all that it needs, else by the package.
_EXTRA_OF_COMMAND: Final = {"train": "train", "export": "export", "download": "download", "sample": "rooms"}
_EXTRA_OF_PACKAGE: Final = {
    **{"openvino": "openvino", "sounddevice": "mic", "av": "av", "onnx": "export"},
    "pyroomacoustics": "rooms",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line (without the program's name; ``sys.argv`` by default) and gives the exit code.

    Raises:
        SystemExit: argparse ends ``--help``, ``--version`` and wrong usage (code 2) itself.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, TextIOWrapper):
        # A terminal or locale without Cyrillic, a file name that is not UTF-8: show it escaped rather than
        # fail.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except KvartsError as error:
        print(f"kvarts: error: {error}", file=sys.stderr)
        return _USER_MISTAKE
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "kvarts":
            raise
        package = error.name.partition(".")[0]
        extra = _extra(arguments, package)
        print(
            f"kvarts: error: this command needs the package {package!r}; pip install 'kvarts[{extra}]' "
            f"(in a clone: pip install -e '.[{extra}]')",
            file=sys.stderr,
        )
        return _USER_MISTAKE
    except KeyboardInterrupt:
        print("kvarts: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        _drop_standard_output()
        return _READER_GONE
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _drop_standard_output()
        print(f"kvarts: error: {error.filename or 'output'}: {error.strerror}; free some space", file=sys.stderr)
        return _USER_MISTAKE
    return code


def _drop_standard_output() -> None:
    # Python flushes standard output once more at exit; what could not be written then goes nowhere, quietly.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(arguments: list[str]) -> int:
    # Hydra reads its own overrides and options («--help», «--cfg»), so argparse must not see them.
    if arguments[:1] == ["train"]:
        from kvarts.train import main as train

        return train(arguments[1:])
    parsed = _parser(arguments).parse_args(arguments)
    parsed.command_line = shlex.join(["kvarts", *arguments])
    code: int = parsed.run(parsed)
    return code


def _extra(arguments: Sequence[str], package: str) -> str:
    command = (arguments[1:] if arguments[:1] == ["data"] else arguments)[0]
    return _EXTRA_OF_COMMAND.get(command) or _EXTRA_OF_PACKAGE.get(package, "train")


def _parser(arguments: Sequence[str] | None = None) -> argparse.ArgumentParser:
    """Knows the arguments of every command, or only of those that `arguments` name: to import all takes 98 ms more."""
    parser = argparse.ArgumentParser(prog="kvarts", description="Compact Russian speech recognition: QuartzNet5x5-CTC.")
    parser.add_argument("--version", action="version", version=f"kvarts {kvarts.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    commands.add_parser("train", help="train or fine-tune; takes Hydra overrides, as main.py does", add_help=False)
    _add_commands(commands, _COMMANDS, arguments)
    data_parser = commands.add_parser("data", help="get the course's data, rebuild the sample")
    data_commands = data_parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_commands(data_commands, _DATA_COMMANDS, arguments)
    _add_commands(data_commands, _CORPUS_COMMANDS, arguments, prefix="data_")
    lm_parser = commands.add_parser("lm", help="build and tune language models")
    lm_commands = lm_parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_commands(lm_commands, _LM_COMMANDS, arguments, prefix="lm_")
    grammar_parser = commands.add_parser("grammar", help="check a command grammar")
    grammar_commands = grammar_parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_commands(grammar_commands, _GRAMMAR_COMMANDS, arguments, prefix="grammar_")
    return parser


def _add_commands(
    parsers: argparse._SubParsersAction[argparse.ArgumentParser],
    names: Mapping[str, str],
    arguments: Sequence[str] | None,
    prefix: str = "",
) -> None:
    """Adds subcommands, each from the module of its name behind the prefix."""
    for name, summary in names.items():
        parser = parsers.add_parser(name, help=summary)
        if arguments is None or name in arguments:
            module = importlib.import_module(f"kvarts.{prefix}{name}")
            module.add_arguments(parser)
            parser.set_defaults(run=module.run)
