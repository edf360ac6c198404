"""Decoders on the same log-probabilities: Kvarts beside pyctcdecode and flashlight-text used plainly.

    python benchmarks/decode.py --model M --manifest MANIFEST --lm ARPA [--hotwords FILE]
                                [--distractors MANIFEST] [--grammar FILE --commands MANIFEST]
                                [--others PYTHON [--tune MANIFEST]] [--beam 100] [--rounds 5] [--json FILE]
                                [--plot FILE]

PYTHON is the interpreter of an environment of their own, for pyctcdecode needs NumPy below 2:

    python3 -m venv others
    others/bin/pip install 'numpy<2' pyctcdecode kenlm flashlight-text

The network runs once. Then the decoders take turns, each in one thread, on all utterances one by one; times are medians
of the rounds, ratios medians of the ratios within rounds, above 1: Kvarts is faster. All search with the same beam, the
same width (10) and the same least log-probability (-5), but for one «small beam», 15 % of it; Kvarts with the weights
of `kvarts lm tune`, pyctcdecode with the weights that are best for it on the manifest of --tune (alpha, beta and offset
in turn, twice, each from a list, starting from its defaults) or with its defaults. flashlight-text gives no word
outside its lexicon, as `--closed` does, and has our weights for what both know, times our temperature, for it has none.
Hot words weigh 5 here and there.

Without --hotwords, --distractors draws them: 40 words of MANIFEST of four letters and more that the language model does
not know, and 160 such words of another manifest that do not occur in it. WER is that of MANIFEST; recall and false
finds of hot words are counted by `kvarts.hotword_metrics`. Commands are those
texts of the second manifest that are phrases of the grammar; what a grammar adds to the network's time for a command is
given for 3 s of sound. Do not tune on the set that is shown here.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from kvarts.alphabet import ALPHABET, foreign_characters
from kvarts.arpa import read_arpa
from kvarts.decoding import greedy_words
from kvarts.error_counts import ErrorCounts, char_errors, word_errors
from kvarts.evaluate import manifest_log_probs
from kvarts.frames import encoded_frames_of_duration
from kvarts.grammar import Grammar
from kvarts.grammar_metrics import GrammarEvaluation, outcome, score
from kvarts.grammar_search import GrammarSearch
from kvarts.hotword_metrics import HotwordCounts, hotword_counts
from kvarts.hotwords import Hotwords, hotwords, read_hotwords
from kvarts.manifest import read_manifest
from kvarts.recogniser import Recognizer
from kvarts.recogniser_options import read_weights
from kvarts.search import BeamSearch
from kvarts.text import normalise

WIDTH, LEAST_LOG_PROB, HOTWORD_WEIGHT = 10.0, -5.0, 5.0
SMALL = 0.15  # of the beam
COMMAND_S = 3.0
# Who is compared with whom.
RIVALS = {
    "beam": "pyctcdecode beam",
    "beam + LM": "pyctcdecode beam + LM",
    "small beam + LM": "pyctcdecode beam + LM",
    "beam + LM + hot words": "pyctcdecode beam + LM + hot words",
    "closed beam + LM": "flashlight-text lexicon + LM",
}
# pyctcdecode's weights: its defaults, and what is tried.
DEFAULTS = {"alpha": 0.5, "beta": 1.5, "unk_score_offset": -10.0}
TRIED = {
    "alpha": (0.1, 0.2, 0.3, 0.4, 0.7, 0.9),
    "beta": (-2.0, -1.0, 0.0, 0.75, 3.0),
    "unk_score_offset": (-30.0, -20.0, -15.0, -6.0, -3.0),
}


def hotwords_of(args: argparse.Namespace) -> Hotwords | None:
    """The list that was given, or one that is drawn."""
    if args.hotwords is not None:
        return read_hotwords(args.hotwords, HOTWORD_WEIGHT)
    if args.distractors is None:
        return None
    known = set(read_arpa(args.lm).words)
    spoken, others = (
        {
            word
            for utterance in read_manifest(path)
            for word in normalise(utterance.text).split()
            if word not in known and len(word) > 3 and not foreign_characters(word)
        }
        for path in (args.manifest, args.distractors)
    )
    draw = random.Random(0)
    drawn = draw.sample(sorted(spoken), min(40, len(spoken)))
    rest = sorted(others - spoken)
    return hotwords(dict.fromkeys(drawn + draw.sample(rest, min(160, len(rest))), HOTWORD_WEIGHT))


class Others:
    """decode_others.py in its own interpreter."""

    def __init__(self, python: str, job: Path) -> None:
        script = Path(__file__).with_name("decode_others.py")
        self._process = subprocess.Popen(
            [python, str(script), str(job)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, name: str, weights: dict[str, float]) -> tuple[float, list[str]]:
        """Seconds and texts."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"name": name, "weights": weights}) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"{name} failed; what it said stands above")
        found = json.loads(answer)
        return found["seconds"], found["texts"]

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def log_probs_of(recognizer: Recognizer, path: Path) -> tuple[list, list]:
    """Utterances of a manifest and their log-probabilities (time, 34)."""
    utterances = read_manifest(path)
    found = {}
    for batch in manifest_log_probs(recognizer, utterances, name=path.parent.name):
        found.update(batch)
    return utterances, [found[index] for index in range(len(utterances))]


def ours(args: argparse.Namespace, hot: Hotwords | None) -> dict[str, Callable]:
    """The decoders of Kvarts, by name."""
    options = {"beam": args.beam, "width": WIDTH, "least_log_prob": LEAST_LOG_PROB}
    with_model = {"language_model": read_arpa(args.lm), "weights": read_weights(args.lm)}
    systems = {
        "greedy": greedy_words,
        "beam": BeamSearch(**options),
        "beam + LM": BeamSearch(**options, **with_model),
        "small beam + LM": BeamSearch(**{**options, "beam": max(1, round(SMALL * args.beam))}, **with_model),
        "closed beam + LM": BeamSearch(**options, **with_model, is_closed=True),
    }
    if hot is not None:
        systems["beam + hot words"] = BeamSearch(**options, hotwords=hot)
        systems["beam + LM + hot words"] = BeamSearch(**options, **with_model, hotwords=hot)
    return systems


def write_job(args: argparse.Namespace, folder: Path, sounds: list, hot: Hotwords | None) -> Path:
    """What decode_others.py needs."""
    folder.mkdir()
    np.savez(folder / "log_probs.npz", **{str(number): sound for number, sound in enumerate(sounds)})
    weights = read_weights(args.lm)
    job = {
        "log_probs": str(folder / "log_probs.npz"),
        "alphabet": list(ALPHABET),
        "arpa": str(args.lm),
        "unigrams": [word for word in read_arpa(args.lm).words[3:] if not foreign_characters(word)],
        "lm_weight": weights.lm_weight * weights.temperature,  # what they weigh against a sound that is not softened
        "word_bonus": weights.word_bonus * weights.temperature,
        "beam": args.beam,
        "width": WIDTH,
        "least_log_prob": LEAST_LOG_PROB,
        "hotwords": [] if hot is None else sorted(hot.phrases),
        "hotword_weight": HOTWORD_WEIGHT,
    }
    path = folder / "job.json"
    path.write_text(json.dumps(job), encoding="utf-8")
    return path


def tuned(others: Others, references: list[str]) -> dict[str, float]:
    """The best of `TRIED` for pyctcdecode's beam + LM, one after the other, starting from its defaults."""
    weights = DEFAULTS
    found: dict[tuple[float, ...], float] = {}

    def wer(tried: dict[str, float]) -> float:
        key = tuple(tried.values())
        if key not in found:
            print(f"\rtuning pyctcdecode: {len(found)} tried", end="", file=sys.stderr, flush=True)
            _, texts = others.run("pyctcdecode beam + LM", tried)
            found[key] = sum(map(word_errors, references, texts), ErrorCounts()).rate
        return found[key]

    for name in [*TRIED, *TRIED]:
        weights = min(({**weights, name: value} for value in (weights[name], *TRIED[name])), key=wer)
    print(f"\npyctcdecode's own weights: {weights}, WER there {100 * wer(weights):.2f} %", file=sys.stderr)
    return weights


def turns(
    args: argparse.Namespace, recognizer: Recognizer, sounds: list, hot: Hotwords | None
) -> tuple[dict[str, list[float]], dict[str, list[str]]]:
    """Seconds of every round and the texts, by system."""
    systems = ours(args, hot)
    seconds: dict[str, list[float]] = {}
    texts: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        others = None
        weights = DEFAULTS
        rivals = []
        if args.others is not None:
            rivals = list(dict.fromkeys(rival for name, rival in RIVALS.items() if name in systems))
            if args.tune is not None:
                utterances, of_tuning = log_probs_of(recognizer, args.tune)
                others = Others(args.others, write_job(args, Path(folder, "tuning"), of_tuning, None))
                weights = tuned(others, [utterance.text for utterance in utterances])
                others.close()
            others = Others(args.others, write_job(args, Path(folder, "test"), sounds, hot))
        for number in range(args.rounds + 1):  # the first warms up
            print(f"\rround {number} of {args.rounds}", end="", file=sys.stderr, flush=True)
            for name, decoder in systems.items():
                started_s = time.perf_counter()
                found = [decoder(sound) for sound in sounds]
                seconds.setdefault(name, []).append(time.perf_counter() - started_s)
                texts[name] = [" ".join(word.text for word in words) for words in found]
            for name in rivals:
                taken_s, texts[name] = others.run(name, weights)
                seconds.setdefault(name, []).append(taken_s)
        if others is not None:
            others.close()
    print(file=sys.stderr)
    return {name: of_name[1:] for name, of_name in seconds.items()}, texts


def commands(args: argparse.Namespace, recognizer: Recognizer) -> dict[str, object]:
    """What the grammar finds, and how long a search for 3 s takes."""
    search = GrammarSearch(Grammar.load(args.grammar))
    utterances, sounds = log_probs_of(recognizer, args.commands)
    found = [
        outcome(search, utterance.text, utterance.duration_s, sound)
        for utterance, sound in zip(utterances, sounds, strict=True)
    ]
    evaluation: GrammarEvaluation = score(found, search.unknown_penalty, name="grammar")
    frames = encoded_frames_of_duration(COMMAND_S)
    long_enough = [sound[:frames] for sound in sounds if len(sound) >= frames] or [np.resize(sounds[0], (frames, 34))]
    times_ms = []
    for _ in range(args.rounds):
        for sound in long_enough[:50]:
            started_s = time.perf_counter()
            search.best(sound)
            times_ms.append(1e3 * (time.perf_counter() - started_s))
    return {
        **evaluation.as_json(),
        "states": len(search.grammar.graph.labels),
        "added_ms_p50": statistics.median(times_ms),
        "added_ms_p95": float(np.percentile(times_ms, 95)),
    }


def result_of(args: argparse.Namespace) -> dict[str, object]:
    """All figures."""
    recognizer = Recognizer.load(args.model)
    utterances, sounds = log_probs_of(recognizer, args.manifest)
    references = [utterance.text for utterance in utterances]
    audio_s = sum(utterance.duration_s for utterance in utterances)
    hot = hotwords_of(args)
    seconds, texts = turns(args, recognizer, sounds, hot)
    phrases = [] if hot is None else list(hot.phrases)
    rows = {}
    for name, of_name in seconds.items():
        median_s = statistics.median(of_name)
        hypotheses = list(zip(references, texts[name], strict=True))
        row = {
            "utterances_per_s": len(utterances) / median_s,
            "rtfx": audio_s / median_s,
            "wer": sum((word_errors(*pair) for pair in hypotheses), ErrorCounts()).rate,
            "cer": sum((char_errors(*pair) for pair in hypotheses), ErrorCounts()).rate,
        }
        if phrases:
            counts = sum((hotword_counts(phrases, *pair) for pair in hypotheses), HotwordCounts())
            row["hotwords"] = counts.as_json()
        rows[name] = row
    ratios = {
        name: statistics.median(theirs / own for own, theirs in zip(seconds[name], seconds[rival], strict=True))
        for name, rival in RIVALS.items()
        if name in seconds and rival in seconds
    }
    result = {"beam": args.beam, "utterances": len(utterances), "audio_s": audio_s, "systems": rows, "ratios": ratios}
    if args.grammar is not None:
        result["grammar"] = commands(args, recognizer)
    return result


def show(result: dict) -> None:
    """The table."""
    has_hot = any("hotwords" in row for row in result["systems"].values())
    hot = f"{'hot %':>8}{'false':>7}{'WER else':>10}" if has_hot else ""
    print(f"{'':36}{'utt/s':>9}{'RTFx':>9}{'WER %':>8}{'CER %':>8}{hot}")
    for name, row in result["systems"].items():
        line = f"{name:36}{row['utterances_per_s']:9.0f}{row['rtfx']:9.0f}"
        line += f"{100 * row['wer']:8.2f}{100 * row['cer']:8.2f}"
        if has_hot:
            counts = row["hotwords"]
            recall = math.nan if counts["recall"] is None else 100 * counts["recall"]
            line += f"{recall:8.1f}{counts['false']:7d}{100 * counts['wer_elsewhere']:10.2f}"
        print(line)
    for name, ratio in result["ratios"].items():
        print(f"{name}: {ratio:.1f} times as fast as {RIVALS[name]}")
    if "grammar" in result:
        found = result["grammar"]
        print(
            f"grammar of {found['states']} states: a command of {COMMAND_S:g} s takes {found['added_ms_p50']:.2f} ms "
            f"(95 %: {found['added_ms_p95']:.2f}); {found['exact']} of {found['commands']} commands exact, "
            f"{found['false_accepts']} false accepts in {found['outside_s'] / 60:.1f} minutes of other speech"
        )


def draw(result: dict, path: Path) -> None:
    """Speed against WER."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5))
    for name, row in result["systems"].items():
        is_rival = name in RIVALS.values()
        at = (row["utterances_per_s"], 100 * row["wer"])
        axes.scatter(*at, color="tab:gray" if is_rival else "tab:blue", zorder=2)
        # Slanted, so that names of neighbours do not lie on each other.
        axes.annotate(name, at, (4, 0), textcoords="offset points", fontsize=8, rotation=20, va="bottom")
    axes.set_xscale("log")
    axes.set_xlabel(f"utterances of {result['audio_s'] / result['utterances']:.1f} s decoded in a second, one thread")
    axes.set_ylabel("WER, %")
    axes.margins(x=0.2, y=0.2)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--lm", type=Path, required=True)
    parser.add_argument("--hotwords", type=Path)
    parser.add_argument("--distractors", metavar="MANIFEST", type=Path)
    parser.add_argument("--grammar", type=Path)
    parser.add_argument("--commands", type=Path)
    parser.add_argument("--others", metavar="PYTHON")
    parser.add_argument("--tune", metavar="MANIFEST", type=Path)
    parser.add_argument("--beam", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    if (args.grammar is None) != (args.commands is None):
        parser.error("--grammar and --commands go together")
    if args.tune is not None and args.others is None:
        parser.error("--tune goes with --others")
    result = result_of(args)
    show(result)
    if args.json is not None:
        args.json.write_text(json.dumps(result, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    if args.plot is not None:
        draw(result, args.plot)


if __name__ == "__main__":
    main()
