"""Writes the frequent words of Russian for `kvarts lm build --words`, as the package wordfreq counts them.

    pip install wordfreq
    python benchmarks/word_list.py -o words.txt [--number 200000]

wordfreq (R. Speer, data under CC BY-SA 4.0) counts in subtitles, news, Wikipedia, books, web pages and more. Words with
letters outside the alphabet are left out, ё is written е. A line is a word and its occurrences in a thousand million.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from kvarts.alphabet import foreign_characters
from kvarts.files import atomic_text_writer
from kvarts.text import normalise


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=200_000, help="of the most frequent words (default: %(default)s)")
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
    words = counts.most_common(args.number)
    with atomic_text_writer(args.output) as file:
        file.writelines(f"{word} {1e9 * frequency:.0f}\n" for word, frequency in words if 1e9 * frequency >= 0.5)
    print(f"{len(words)} words: {args.output}")


if __name__ == "__main__":
    main()
