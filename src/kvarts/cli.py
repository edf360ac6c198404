"""The ``kvarts`` command. Every subcommand's module offers `add_arguments` and `run`, which alone imports
PyTorch.

Exit codes: 0 for success, 2 for a mistake of the user (one line on standard error says which), 130 for
Ctrl-C, 141 for a reader that went away (``kvarts … | head``), as a shell would count them.
"""

from __future__ import annotations

import argparse
import errno
import os
import shlex
import sys
from collections.abc import Sequence
from io import TextIOWrapper

import kvarts
from kvarts import download, evaluate, sample, transcribe
from kvarts.errors import KvartsError

_USER_MISTAKE = 2
_INTERRUPTED = 130
_READER_GONE = 141


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
        extra = {"download": "download", "sample": "rooms"}.get(arguments[1] if len(arguments) > 1 else "", "train")
        print(
            f"kvarts: error: this command needs the package {error.name!r}; pip install 'kvarts[{extra}]' "
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
    parsed = _parser().parse_args(arguments)
    parsed.command_line = shlex.join(["kvarts", *arguments])
    code: int = parsed.run(parsed)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kvarts", description="Compact Russian speech recognition: QuartzNet5x5-CTC.")
    parser.add_argument("--version", action="version", version=f"kvarts {kvarts.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    commands.add_parser("train", help="train or fine-tune; takes Hydra overrides, as main.py does", add_help=False)

    evaluate_parser = commands.add_parser("evaluate", help="measure WER and CER on manifests")
    evaluate.add_arguments(evaluate_parser)
    evaluate_parser.set_defaults(run=evaluate.run)

    transcribe_parser = commands.add_parser("transcribe", help="print the text of audio files")
    transcribe.add_arguments(transcribe_parser)
    transcribe_parser.set_defaults(run=transcribe.run)

    data_parser = commands.add_parser("data", help="get the course's data, rebuild the sample")
    data_commands = data_parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    download_parser = data_commands.add_parser("download", help="download and unpack a data set")
    download.add_arguments(download_parser)
    download_parser.set_defaults(run=download.run)
    sample_parser = data_commands.add_parser("sample", help="rebuild the sample speech from its Debian package")
    sample.add_arguments(sample_parser)
    sample_parser.set_defaults(run=sample.run)
    return parser
