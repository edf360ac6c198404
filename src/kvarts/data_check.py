"""``kvarts data check``: finds what is wrong with manifests, their texts and their audio, before anybody trains."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from kvarts.errors import ConfigError, OutputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the subcommand."""
    from kvarts.recogniser_options import add_model_arguments

    parser.description = (
        "Checks manifests: every line, text and audio file by itself, and what is there twice. Each finding has the "
        "manifest and its line, a name, and what to do. Exit code 0: no errors; 1: errors, or with --strict anything; "
        "2: a manifest that cannot be read, or wrong usage."
    )
    parser.add_argument("manifests", metavar="M", nargs="+", type=Path, help="a manifest, JSON Lines")
    parser.add_argument(
        "--test",
        metavar="M",
        nargs="+",
        type=Path,
        action="extend",
        default=[],
        help="test manifests: checked too, and what they have in common with the others is found",
    )
    parser.add_argument(
        "--no-audio", action="store_true", help="do not open any audio file, nor look whether it is there"
    )
    parser.add_argument(
        "--format",
        choices=["text", "json", "html"],
        default="text",
        help="html is one page to look at (default: %(default)s)",
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=Path, help="write the report there, and only numbers here"
    )
    parser.add_argument(
        "--fix",
        metavar="NEW",
        type=Path,
        help="write a new manifest: without the lines that have errors, look-alike letters and durations corrected",
    )
    parser.add_argument(
        "--ignore",
        metavar="NAME",
        nargs="+",
        action="extend",
        default=[],
        help="findings not to report, by their names",
    )
    parser.add_argument("--strict", action="store_true", help="exit code 1 for warnings, too")
    add_model_arguments(parser, is_optional=True)


def run(args: argparse.Namespace) -> int:
    """Checks as the arguments say and writes the report.

    Raises:
        ConfigError: options that do not go together, an unknown name to ignore, a manifest given twice.
        ManifestError: a manifest cannot be read or is empty, or --fix would leave no line.
        OutputError: a file could not be written.
        KvartsError: the model cannot be loaded.
    """
    from kvarts import lint_report
    from kvarts.files import atomic_text_writer
    from kvarts.lint import KINDS, lint
    from kvarts.lint_fix import write_fixed

    _check_paths(args)
    for name in args.ignore:
        if name not in KINDS:
            raise ConfigError(f"--ignore {name}: no such finding; there are {', '.join(KINDS)}")
    recognizer = None
    if args.model is not None:
        from kvarts.recogniser_options import recogniser_of

        if args.no_audio:
            raise ConfigError("--model needs the audio: leave out --no-audio, or --model")
        recognizer = recogniser_of(args)
    report = lint(
        args.manifests, args.test, audio=not args.no_audio, recognizer=recognizer, ignored=frozenset(args.ignore)
    )
    fixed = None if args.fix is None else write_fixed(report, args.manifests, args.fix)
    writers = {"text": lint_report.write_text, "json": lint_report.write_json, "html": lint_report.write_html}
    write = writers[args.format]
    if args.output is None:
        write(report, fixed, sys.stdout)
    else:
        with atomic_text_writer(args.output) as file:
            write(report, fixed, file)
        sys.stdout.write(lint_report.summary(report, fixed))
        print(f"report: {args.output}")
    return 1 if report.findings.num_errors or (args.strict and len(report.findings)) else 0


def _check_paths(args: argparse.Namespace) -> None:
    """Told before the work: a folder where a file is to be written, an input that would be lost, an input twice."""
    seen: set[Path] = set()
    for path in (*args.manifests, *args.test):
        if path.resolve() in seen:
            raise ConfigError(f"{path}: given twice; give every manifest once")
        seen.add(path.resolve())
    for option, path in (("--output", args.output), ("--fix", args.fix)):
        if path is None:
            continue
        if path.is_dir():
            raise OutputError(f"{path}: is a folder; name a file in it")
        if path.resolve() in seen:
            raise ConfigError(f"{option} {path}: is read or written already; name another file")
        seen.add(path.resolve())
