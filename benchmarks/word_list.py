"""Writes the frequent words of Russian for `kvarts lm build --words`, as the package wordfreq counts them.

    pip install wordfreq
    python benchmarks/word_list.py -o words.txt [--number 200000] [--texts texts.txt 18000]

wordfreq (R. Speer, data under CC BY-SA 4.0) counts in subtitles, news, Wikipedia, books, web pages and more. Words with
letters outside the alphabet are left out, ё is written е. A line is a word and its occurrences in a thousand million.

With --texts, lines of words drawn at random too, for `narrator.py`: what follows from no other word has to be heard.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from kvarts.alphabet import foreign_characters
from kvarts.files import atomic_text_writer
from kvarts.text import normalise

SINGLE_LETTERS = "авиоукся"  # which are words
FLATTER = 0.45  # power of the frequencies that words are drawn by; with 1 half of a text are the commonest thousand
WORDS = (3, 9)  # in a line


def random_texts(words: Sequence[tuple[str, int]], number: int, seed: int) -> Iterator[str]:
    """Lines of words that are drawn by the given power of their frequencies."""
    known = [(word, count) for word, count in words if len(word) > 1 or word in SINGLE_LETTERS]
    shares = np.array([float(count) for _, count in known]) ** FLATTER
    shares /= shares.sum()
    draw = np.random.default_rng(seed)
    for _ in range(number):
        drawn = draw.choice(len(known), draw.integers(WORDS[0], WORDS[1] + 1), p=shares)
        yield " ".join(known[index][0] for index in drawn)


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=200_000, help="of the most frequent words (default: %(default)s)")
    parser.add_argument("--texts", nargs=2, metavar=("FILE", "NUMBER"))
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    try:
        from wordfreq import get_frequency_dict
    except ModuleNotFoundError:
        parser.error("the package wordfreq is missing: pip install wordfreq")
    counts: Counter[str] = Counter()
    for word, frequency in get_frequency_dict("ru", "large").items():
        normalised = normalise(word)
        if normalised.split() == [normalised] and not foreign_characters(normalised):
            counts[normalised] += frequency
    frequent = counts.most_common(args.number)
    words = [(word, round(1e9 * frequency)) for word, frequency in frequent if 1e9 * frequency >= 0.5]
    with atomic_text_writer(args.output) as file:
        file.writelines(f"{word} {count}\n" for word, count in words)
    print(f"{len(words)} words: {args.output}")
    if args.texts:
        path, number = args.texts
        with atomic_text_writer(Path(path)) as file:
            file.writelines(f"{text}\n" for text in random_texts(words, int(number), args.seed))
        print(f"{number} lines of random words: {path}")


if __name__ == "__main__":
    main()
