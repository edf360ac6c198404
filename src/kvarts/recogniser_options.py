"""The recogniser that a command line asks for: which model, in which engine, with which decoder and calibration."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kvarts.errors import ConfigError, LanguageModelError
from kvarts.open_weights import NAME, language_model_named, model_named

if TYPE_CHECKING:
    from kvarts.decoding import Decoder
    from kvarts.grammar_search import GrammarSearch
    from kvarts.recogniser import Recognizer
    from kvarts.search import BeamSearch, Weights


# Options of a decoder, and of which others each needs one.
_DECODER_OPTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "--beam": (),
    "--lm": (),
    "--lm-weight": ("--lm",),
    "--word-bonus": ("--lm",),
    "--unknown-penalty": ("--lm", "--vocabulary"),
    "--spelling-weight": ("--lm", "--vocabulary"),
    "--temperature": ("--beam", "--lm", "--hotwords", "--vocabulary"),
    "--prior-weight": ("--lm",),
    "--hotwords": (),
    "--hotword-weight": ("--hotwords",),
    "--vocabulary": (),
    "--closed": ("--lm", "--vocabulary"),
}
# Weights of the search that have an option; the later ones are missing in files of before them, which hold on.
_WEIGHT_OPTIONS = ("lm_weight", "word_bonus", "unknown_penalty", "spelling_weight", "temperature", "prior_weight")
_LATER_WEIGHTS = {"temperature", "prior_weight"}


def weights_path(language_model: Path) -> Path:
    """Where `kvarts lm tune` leaves the weights of a language model: beside it, with «.json» behind its name."""
    return language_model.parent / f"{language_model.name}.json"  # an empty path or «/» has no name to replace


def read_weights(language_model: Path) -> Weights:
    """The weights that were tuned for a language model; the defaults where none were.

    Raises:
        LanguageModelError: the file of the weights is damaged.
    """
    from kvarts.search import Weights

    path = weights_path(language_model)
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        found = {name: content[name] for name in _WEIGHT_OPTIONS if name in content or name not in _LATER_WEIGHTS}
        prior = content.get("label_prior") or []
        if any(type(value) not in (int, float) for value in [*found.values(), *prior]):
            raise TypeError
        label_prior = tuple(map(float, prior)) or None
        weights = Weights(**{name: float(value) for name, value in found.items()}, label_prior=label_prior)
        weights.check()
    except FileNotFoundError:
        return Weights()
    except OSError as error:
        raise LanguageModelError(f"{path} cannot be read ({error.strerror}): check its permissions") from None
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError, ConfigError):
        problem = "is damaged, or of another Kvarts"
        raise LanguageModelError(f"{path} {problem}: delete it, or run `kvarts lm tune` again") from None
    return weights


def add_model_arguments(parser: argparse.ArgumentParser, *, is_optional: bool = False) -> None:
    """--model, and in which engine it is to run; where it is not given, the open weights, or None if optional."""
    parser.add_argument(
        "--model",
        "--checkpoint",
        dest="model",
        metavar="M",
        type=model_named,
        default=None if is_optional else NAME,
        help="a folder that kvarts export wrote, a .ckpt or .safetensors checkpoint (needs kvarts[train]), or open: "
        "the weights that ship with Kvarts" + ("" if is_optional else " (default: %(default)s)"),
    )
    engine = parser.add_argument_group("engine")
    engine.add_argument("--engine", help="openvino or onnxruntime (default: the faster one that is installed)")
    engine.add_argument("--precision", help="float32, bfloat16 or int8 (default: the fastest without noticeable loss)")
    engine.add_argument("--threads", metavar="N", type=_positive_integer, help="default: all processors")
    engine.add_argument("--device", help="for a checkpoint: cpu, cuda, cuda:1 …, or auto, the GPU if there is one")


def _positive_integer(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def add_decoder_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of a decoder; without any of them it is greedy."""
    group = parser.add_argument_group("decoder (greedy, unless one of --beam, --lm, --hotwords, --vocabulary is given)")
    group.add_argument("--beam", metavar="N", type=int, help="prefixes kept after a frame (default: 200)")
    group.add_argument(
        "--lm",
        metavar="ARPA",
        type=language_model_named,
        help="language model of words, .arpa or .arpa.gz, or open, the one that ships with Kvarts",
    )
    group.add_argument(
        "--lm-weight", metavar="W", type=float, help="default: what kvarts lm tune found for this model, else 0.5"
    )
    group.add_argument("--word-bonus", metavar="B", type=float, help="added for each word; likewise, else 0.5")
    group.add_argument(
        "--unknown-penalty", metavar="P", type=float, help="of each word it does not know, 0 or less; likewise, else 0"
    )
    group.add_argument(
        "--spelling-weight", metavar="W", type=float, help="of how such a word is spelt; likewise, else 0.5"
    )
    group.add_argument(
        "--temperature", metavar="T", type=float, help="above 1: believe the network less; likewise, else 1"
    )
    group.add_argument(
        "--prior-weight",
        metavar="W",
        type=float,
        help="how much of the network's expectation of a letter is taken from it; likewise, else 0",
    )
    group.add_argument(
        "--hotwords",
        metavar="FILE",
        type=Path,
        help="a word or phrase a line, after it a weight if you like; «кварц*» stands for all words that begin so",
    )
    group.add_argument("--hotword-weight", metavar="W", type=float, help="of those without their own (default: 5)")
    group.add_argument("--vocabulary", metavar="FILE", type=Path, help="words that it knows beside those of --lm")
    group.add_argument("--closed", action="store_true", help="give no other words than those of --lm and --vocabulary")


def add_grammar_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """--grammar, a decoder that goes with none of those others, in a group of its own."""
    group = parser.add_argument_group("command grammar")
    group.add_argument("--grammar", metavar="FILE", type=Path, help="find its commands, or [unk], and nothing else")
    group.add_argument(
        "--unknown-below",
        metavar="P",
        type=positive_number,
        help="a command whose score is lower than -P is [unk] (default: 3)",
    )
    return group


def positive_number(text: str) -> float:
    """A number above 0, for `argparse`."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


def fraction(text: str) -> float:
    """A number from 0 to 1, for `argparse`."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def add_calibration_argument(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """--calibration, in a group of its own."""
    group = parser.add_argument_group("confidence")
    group.add_argument(
        "--calibration",
        metavar="FILE",
        type=Path,
        help="that kvarts calibrate wrote for this model and decoder: confidences are then probabilities, and json and "
        "jsonl say how sure it is that all of a recording is right",
    )
    return group


def recogniser_of(args: argparse.Namespace, decoder: Decoder | None = None) -> Recognizer:
    """The recogniser that the options ask for.

    Args:
        args: with the options of `add_model_arguments`, and with those of a decoder and a calibration or without them.
        decoder: instead of that of the options.

    Raises:
        ConfigError: options that do not go together, or impossible values.
        KvartsError: a file that an option names cannot be used.
    """
    from kvarts.decoding import CommandDecoder, greedy_words
    from kvarts.recogniser import Recognizer

    if decoder is None:
        decoder = decoder_of(args) if hasattr(args, "lm") else greedy_words
    calibration = None
    if getattr(args, "calibration", None) is not None:
        from kvarts.confidence import Calibration, CommandCalibration

        kind = CommandCalibration if isinstance(decoder, CommandDecoder) else Calibration
        calibration = kind.load(args.calibration)
    is_checkpoint = args.model.suffix in (".ckpt", ".safetensors") and not args.model.is_dir()
    if not is_checkpoint:
        if args.device is not None:
            raise ConfigError(f"--device {args.device}: exported models run on the processor; name a checkpoint")
        return Recognizer.load(
            args.model,
            engine=args.engine,
            precision=args.precision,
            threads=args.threads,
            decoder=decoder,
            calibration=calibration,
        )
    for option in ("engine", "precision"):
        if getattr(args, option) is not None:
            what = f"--{option} {getattr(args, option)}"
            raise ConfigError(f"{what}: checkpoints run in PyTorch, in float32; export it, or leave the option out")
    import torch

    from kvarts.torch_engine import Torch

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    recognizer = Recognizer(Torch.load(args.model, args.device or "auto"), args.threads, decoder, calibration)
    if calibration is not None:
        from kvarts.confidence import model_identity

        calibration.check(recognizer.decoder, model_identity(args.model))
    return recognizer


def decoder_of(args: argparse.Namespace) -> Decoder:
    """The decoder that the options ask for.

    Raises:
        ConfigError: options that do not go together, or impossible values.
        LanguageModelError, HotwordError: a file cannot be used.
    """
    from kvarts.decoding import greedy_words

    options = decoder_options(args)
    if getattr(args, "grammar", None) is not None:
        return grammar_search_of(args)
    if getattr(args, "unknown_below", None) is not None:
        raise ConfigError("--unknown-below goes with --grammar")
    return beam_search_of(args) if options else greedy_words


def grammar_search_of(args: argparse.Namespace) -> GrammarSearch:
    """The search of --grammar.

    Raises:
        GrammarError: the file is no grammar.
        ConfigError: other options of decoders are given; or it asks for cases, and pymorphy3 is not installed.
    """
    from kvarts.grammar import Grammar
    from kvarts.grammar_search import DEFAULT_UNKNOWN_PENALTY, GrammarSearch

    if options := decoder_options(args):
        raise ConfigError(f"--grammar is a decoder of its own; leave out {', '.join(options)}")
    unknown_below = getattr(args, "unknown_below", None)
    penalty = DEFAULT_UNKNOWN_PENALTY if unknown_below is None else unknown_below
    return GrammarSearch(Grammar.load(args.grammar), unknown_penalty=penalty)


def decoder_options(args: argparse.Namespace) -> list[str]:
    """The options of `add_decoder_arguments` that are given."""
    values = {option: getattr(args, option[2:].replace("-", "_")) for option in _DECODER_OPTIONS}
    return [option for option, value in values.items() if value is not None and value is not False]


def beam_search_of(args: argparse.Namespace, weights: Weights | None = None) -> BeamSearch:
    """The beam search of the options.

    Args:
        weights: those that the options do not give; None: those that were tuned for the language model.

    Raises:
        KvartsError: see `decoder_of`.
    """
    from kvarts.arpa import read_arpa
    from kvarts.hotwords import DEFAULT_WEIGHT, read_hotwords
    from kvarts.search import DEFAULT_BEAM, BeamSearch, Weights

    options = decoder_options(args)
    for option in options:
        needed = _DECODER_OPTIONS[option]
        if needed and not any(other in options for other in needed):
            raise ConfigError(f"{option} goes with {' or '.join(needed)}")
    if weights is None:
        weights = Weights() if args.lm is None else read_weights(args.lm)
    given = {name: getattr(args, name) for name in _WEIGHT_OPTIONS}
    weights = replace(weights, **{name: value for name, value in given.items() if value is not None})
    hotword_weight = DEFAULT_WEIGHT if args.hotword_weight is None else args.hotword_weight
    return BeamSearch(
        language_model=None if args.lm is None else read_arpa(args.lm),
        hotwords=None if args.hotwords is None else read_hotwords(args.hotwords, hotword_weight),
        vocabulary=() if args.vocabulary is None else read_vocabulary(args.vocabulary),
        is_closed=args.closed,
        beam=DEFAULT_BEAM if args.beam is None else args.beam,
        weights=weights,
    )


def read_vocabulary(path: Path) -> list[str]:
    """The words of a text, normalised.

    Raises:
        ConfigError: the file cannot be read, has no word, or a word with letters outside the alphabet.
    """
    from kvarts.alphabet import foreign_characters
    from kvarts.text import normalise

    try:
        lines = path.read_bytes().decode("utf-8-sig").splitlines()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}): check the path") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is no UTF-8 text: save it as UTF-8") from None
    words: dict[str, None] = {}
    for number, line in enumerate(lines, start=1):
        for word in normalise(line).split():
            if foreign_characters(word):
                raise ConfigError(f"{path}:{number}: {word!r} has letters outside the alphabet: spell it in Russian")
            words[word] = None
    if not words:
        raise ConfigError(f"{path} has no words: write one a line")
    return list(words)
