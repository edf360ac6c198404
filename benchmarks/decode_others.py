"""The other half of decode.py: pyctcdecode and flashlight-text, run by a Python of their own, without Kvarts.

Reads a job (JSON) that decode.py wrote, then from standard input systems, a line of JSON each: a name, and weights for
pyctcdecode. Answers each with the seconds that all utterances took, one after the other in one thread, and their texts.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np


def pyctcdecode_system(
    job: dict[str, Any], weights: dict[str, float] | None, hotwords: list[str] | None = None
) -> Callable[[Any], str]:
    """Its beam search at the same beam, width and least log-probability; with weights also with the language model."""
    from pyctcdecode import build_ctcdecoder

    logging.disable(logging.WARNING)
    labels = [*job["alphabet"], ""]
    if weights is not None:
        decoder = build_ctcdecoder(
            labels,
            kenlm_model_path=job["arpa"],
            unigrams=job["unigrams"],
            **weights,
        )
    else:
        decoder = build_ctcdecoder(labels)
    options = {"beam_width": job["beam"], "beam_prune_logp": -job["width"], "token_min_logp": job["least_log_prob"]}
    if hotwords is not None:
        options |= {"hotwords": hotwords, "hotword_weight": job["hotword_weight"]}
    return lambda log_probs: str(decoder.decode(log_probs, **options))


def flashlight_system(job: dict[str, Any]) -> Callable[[Any], str]:
    """Its decoder with a lexicon, which gives no word outside it, and the same language model."""
    from flashlight.lib.text import decoder as fl
    from flashlight.lib.text.dictionary import Dictionary

    spellings = {word: [job["alphabet"].index(letter) for letter in word] for word in job["unigrams"]}
    words = Dictionary()
    for word in [*spellings, "<unk>"]:
        words.add_entry(word)
    model = fl.KenLM(job["arpa"], words)
    trie = fl.Trie(len(job["alphabet"]) + 1, 0)
    start = model.start(False)
    for word, spelling in spellings.items():
        index = words.get_index(word)
        _, score = model.score(start, index)
        trie.insert([*spelling, 0], index, score)  # a space, label 0, ends every word
    trie.smear(fl.SmearingMode.MAX)
    options = fl.LexiconDecoderOptions(
        beam_size=job["beam"],
        beam_size_token=len(job["alphabet"]) + 1,
        beam_threshold=job["width"],
        lm_weight=job["lm_weight"] * np.log(10),  # its model speaks in logarithms to base 10
        word_score=job["word_bonus"],
        unk_score=-np.inf,
        sil_score=0,
        log_add=True,
        criterion_type=fl.CriterionType.CTC,
    )
    searcher = fl.LexiconDecoder(options, trie, model, 0, len(job["alphabet"]), words.get_index("<unk>"), [], False)

    def text(log_probs: Any) -> str:
        # The last word needs a space behind it.
        matrix = np.concatenate([log_probs, np.full((1, log_probs.shape[1]), -30.0, np.float32)])
        matrix[-1, 0] = 0
        best = searcher.decode(matrix.ctypes.data, *matrix.shape)[0]
        return " ".join(words.get_entry(index) for index in best.words if index >= 0)

    return text


def main() -> None:
    """Serves until standard input ends."""
    with open(sys.argv[1], encoding="utf-8") as file:  # noqa: PTH123 - nothing but the standard library
        job = json.load(file)
    with np.load(job["log_probs"]) as arrays:
        sounds = [arrays[str(number)] for number in range(len(arrays.files))]
    make = {
        "pyctcdecode beam": lambda weights: pyctcdecode_system(job, None),
        "pyctcdecode beam + LM": lambda weights: pyctcdecode_system(job, weights),
        "pyctcdecode beam + LM + hot words": lambda weights: pyctcdecode_system(job, weights, job["hotwords"]),
        "flashlight-text lexicon + LM": lambda weights: flashlight_system(job),
    }
    made: dict[str, Callable[[Any], str]] = {}
    for line in sys.stdin:
        if line not in made:
            asked = json.loads(line)
            made[line] = make[asked["name"]](asked["weights"])
        started_s = time.perf_counter()
        texts = [made[line](sound) for sound in sounds]
        print(json.dumps({"seconds": time.perf_counter() - started_s, "texts": texts}), flush=True)


if __name__ == "__main__":
    main()
