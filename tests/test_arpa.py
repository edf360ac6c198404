"""Reading ARPA files: against backing off written out with dicts, in all dialects, and what can be wrong with one."""

from __future__ import annotations

import gzip
import math
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from kvarts.arpa import BackoffModel, read_arpa
from kvarts.errors import LanguageModelError

Gram = tuple[str, ...]
Entries = dict[Gram, tuple[float, float]]  # decimal logarithms of probability and backoff weight

SMALL = r"""
\data\
ngram 1=5
ngram 2=3
ngram 3=1

\1-grams:
-99	<s>	-0.3
-1.0	</s>
-1.5	<unk>	-0.1
-0.5	да	-0.2
-0.7	нет	-0.4

\2-grams:
-0.3	<s> да	-0.25
-0.2	да нет	-0.15
-0.6	нет </s>

\3-grams:
-0.1	<s> да нет

\end\
"""


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "lm.arpa"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def random_entries(draw: random.Random, order: int, words: list[str]) -> Entries:
    """Contexts of n-grams are always there, suffixes often not, as after pruning."""
    entries: Entries = {(word,): (-draw.uniform(0.1, 3), draw.uniform(-1, 0.3)) for word in [*words, "</s>", "<unk>"]}
    entries["<s>",] = (-99.0, draw.uniform(-1, 0.3))
    level = [(word,) for word in [*words, "<s>", "<unk>"]]
    for _ in range(2, order + 1):
        longer = [(*gram, word) for gram in level for word in [*words, "</s>"] if draw.random() < 0.5]
        for gram in longer:
            entries[gram] = (-draw.uniform(0.01, 2), draw.choice((0.0, draw.uniform(-1, 0.3))))
        level = [gram for gram in longer if gram[-1] != "</s>"]
    return entries


def arpa(entries: Entries, draw: random.Random) -> str:
    """In some dialect: lines in any order, tabs or spaces, backoffs of 0 left out or not."""
    order = max(map(len, entries))
    lines = ["made by somebody", "\\data\\"]
    by_order = [[gram for gram in entries if len(gram) == n] for n in range(1, order + 1)]
    lines += [
        draw.choice((f"ngram {n}={len(grams)}", f"ngram  {n}=   {len(grams)}")) for n, grams in enumerate(by_order, 1)
    ]
    for n, grams in enumerate(by_order, start=1):
        lines += ["", f"\\{n}-grams:"]
        draw.shuffle(grams)
        for gram in grams:
            probability, backoff = entries[gram]
            ends = [f"{backoff:.7g}"] if backoff or draw.random() < 0.5 else []
            between = draw.choice(("\t", " ", " \t"))
            lines.append(between.join([f"{probability:.7g}", draw.choice((" ", "\t")).join(gram), *ends]))
            lines += [""] * (draw.random() < 0.1)
    return "\n".join([*lines, "", "\\end\\", ""])


def by_backing_off(entries: Entries, context: Gram, word: str, order: int) -> float:
    """Decimal logarithm of the probability of a word after all the words before it."""
    context = context[len(context) - order + 1 :] if len(context) >= order else context
    if (*context, word) in entries:
        return entries[(*context, word)][0]
    return entries.get(context, (0.0, 0.0))[1] + by_backing_off(entries, context[1:], word, order)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_scores_as_backing_off_gives_them(order: int, tmp_path: Path) -> None:
    draw = random.Random(order)
    words = ["да", "нет", "не", "знаю"]
    for _ in range(8):
        entries = random_entries(draw, order, words)
        model = read_arpa(write(tmp_path, arpa(entries, draw)))
        assert len(model.word) == 1 + len(entries)
        for _ in range(40):
            sentence = tuple(draw.choice([*words, "чужое"]) for _ in range(draw.randint(0, 9)))
            known = tuple(word if word in words else "<unk>" for word in sentence)
            node, total = model.begin(), 0.0
            for place, word in enumerate((*known, "</s>")):
                expected = by_backing_off(entries, ("<s>", *known[:place]), word, order) * math.log(10)
                score, node = model.score(node, model.ids[word])
                assert score == pytest.approx(expected, abs=1e-5)
                total += expected
            assert model.sentence(sentence) == pytest.approx(total, abs=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_the_layout(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    entries = random_entries(draw, 4, ["да", "нет", "не"])
    model = read_arpa(write(tmp_path, arpa(entries, draw)))
    nodes = len(model.word)
    assert model.words[:3] == ("<s>", "</s>", "<unk>")
    assert sorted(model.words[3:]) == ["да", "не", "нет"]
    assert (model.order, model.foreign_words) == (4, 0)
    assert (model.word[0], model.log_probability[0], model.backoff[0], model.suffix[0]) == (-1, 0, 0, 0)
    assert model.word[1 : 1 + 6].tolist() == list(range(6))
    assert (model.first_child[0], model.first_child[1]) == (1, 7)
    assert len(model.first_child) == nodes + 1
    assert model.first_child[-1] == nodes
    grams: list[Gram] = [()] * nodes
    for node in range(nodes):
        children = range(model.first_child[node], model.first_child[node + 1])
        assert (np.diff(model.word[children.start : children.stop]) > 0).all()
        for child in children:
            grams[child] = (*grams[node], model.words[model.word[child]])
    assert set(grams[1:]) == entries.keys()
    assert [len(gram) for gram in grams] == sorted(len(gram) for gram in grams)
    node_of = {gram: node for node, gram in enumerate(grams)}
    for node, gram in enumerate(grams[1:], start=1):
        probability, backoff = entries[gram]
        assert model.log_probability[node] == pytest.approx(probability * math.log(10), rel=1e-5)
        # Those of the longest n-grams, which no tool should write, say nothing.
        expected = backoff * math.log(10) if len(gram) < model.order else 0
        assert model.backoff[node] == pytest.approx(expected, rel=1e-5)
        longest = next(gram[cut:] for cut in range(1, len(gram) + 1) if gram[cut:] in node_of)
        assert model.suffix[node] == node_of[longest]
    for array, dtype in (
        (model.log_probability, "f4"),
        (model.backoff, "f4"),
        (model.suffix, "i4"),
        (model.word, "i4"),
    ):
        assert array.dtype == dtype
        assert array.shape == (nodes,)
    assert model.first_child.dtype == np.int32


def test_a_context_that_changes_nothing_is_not_kept(tmp_path: Path) -> None:
    model = read_arpa(write(tmp_path, SMALL))
    yes, no, end = model.ids["да"], model.ids["нет"], 1
    _, node = model.score(model.begin(), yes)
    assert node == 1 + len(model.words)  # «<s> да»
    # Nothing follows «<s> да нет» and it has no backoff; but «да нет» has one.
    _, node = model.score(node, no)
    assert (model.word[node], model.suffix[node]) == (no, 1 + no)
    # After the end nothing is known.
    assert model.score(node, end)[1] == 0


def test_perplexity_by_hand(tmp_path: Path) -> None:
    model = read_arpa(write(tmp_path, SMALL))
    # log10: «да» -0.3, «нет» -0.1, then </s>: «да нет </s>» is not there: -0.15, and «нет </s>» -0.6.
    first = -0.3 - 0.1 - 0.75
    # «кот» is unknown: -0.3 (backoff of <s>) - 1.5; </s> after it: -0.1 - 1.0.
    second_known, second = -1.1, -1.8 - 1.1
    assert model.sentence(["да", "нет"]) == pytest.approx(first * math.log(10))
    assert model.sentence(["кот"]) == pytest.approx(second * math.log(10))
    found = model.perplexity([["да", "нет"], ["кот"]])
    assert found.perplexity == pytest.approx(10 ** (-(first + second) / 5))
    assert found.perplexity_of_known == pytest.approx(10 ** (-(first + second_known) / 4))
    assert (found.words, found.unknown_words) == (3, 1)
    with pytest.raises(ValueError, match="no sentence"):
        model.perplexity([])


def same(first: BackoffModel, second: BackoffModel) -> bool:
    arrays = ("log_probability", "backoff", "suffix", "word", "first_child")
    return first.words == second.words and all(
        np.array_equal(getattr(first, name), getattr(second, name)) for name in arrays
    )


@pytest.mark.parametrize(
    "dialect",
    [
        lambda text: text.encode().replace(b"\n", b"\r\n"),
        lambda text: b"\xef\xbb\xbf" + text.lstrip().encode(),
        lambda text: ("# a comment\nngram 1=99\n\n" + text).encode(),
        lambda text: (text + "\nwhatever comes behind\n\\data\\\n").encode(),
        lambda text: text.replace("<unk>", "<UNK>").encode(),
        lambda text: text.replace("-99", "-inf").encode(),
        lambda text: text.replace("-99", "-1e30").encode(),
        lambda text: text.replace("\t-0.1\n", "\t-1e-1\n").encode(),
        lambda text: text.rstrip().encode(),
        lambda text: gzip.compress(text.encode()),
    ],
)
def test_dialects(dialect: Callable[[str], bytes], tmp_path: Path) -> None:
    expected = read_arpa(write(tmp_path, SMALL))
    assert same(read_arpa(write(tmp_path, dialect(SMALL))), expected)


def test_a_probability_a_little_above_one_is_one(tmp_path: Path) -> None:
    model = read_arpa(write(tmp_path, SMALL.replace("-0.6\tнет </s>", "1.2e-07\tнет </s>")))
    assert model.score(1 + model.ids["нет"], 1) == (0.0, 0)


def test_what_is_missing_is_put_in(tmp_path: Path) -> None:
    text = "\\data\\\nngram 1=2\n\n\\1-grams:\n-0.5\tда\t-0.2\n-0.7\tнет\t-0.4\n\n\\end\\\n"
    model = read_arpa(write(tmp_path, text))
    assert model.words == ("<s>", "</s>", "<unk>", "да", "нет")
    assert model.score(model.begin(), 3)[0] == pytest.approx(-0.5 * math.log(10))
    assert model.score(0, 1)[0] == model.score(0, 2)[0] == pytest.approx(-7 * math.log(10))
    assert model.score(0, 0)[0] == pytest.approx(-99 * math.log(10))


def test_foreign_words_are_left_out(tmp_path: Path) -> None:
    text = SMALL.replace("ngram 1=5", "ngram 1=8").replace("ngram 2=3", "ngram 2=5").replace("ngram 3=1", "ngram 3=2")
    text = text.replace("\n\\2-grams:", "-0.9\thello\t-0.1\n-0.9\t5-й\n-3\tещё\n\n\\2-grams:")
    text = text.replace("\n\\3-grams:", "-0.9\tда hello\t-0.1\n-0.9\thello да\n\n\\3-grams:")
    text = text.replace("\n\\end", "-0.9\tда hello да\n\n\\end")
    model = read_arpa(write(tmp_path, text))
    assert model.foreign_words == 3
    assert same(model, read_arpa(write(tmp_path, SMALL)))


def test_words_that_are_not_utf8_are_foreign(tmp_path: Path) -> None:
    text = SMALL.replace("ngram 1=5", "ngram 1=6").encode().replace(b"\n\\2-grams:", b"-3\t\xe4\xe0\n\n\\2-grams:")
    assert read_arpa(write(tmp_path, text)).foreign_words == 1
    with pytest.raises(LanguageModelError, match=r"none of its words has only .* normalised text"):
        read_arpa(write(tmp_path, SMALL.encode().replace("да".encode(), b"\xe4\xe0").replace("нет".encode(), b"\xed")))


def broken(old: str, new: str) -> str:
    assert SMALL.count(old) >= 1
    return SMALL.replace(old, new, 1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ": is empty; copy"),
        (gzip.compress(b"", mtime=0), ": is empty; copy"),
        ("\n\n", "has no line \\data\\, so it is no ARPA file"),
        ("да нет\n", "has no line \\data\\, so it is no ARPA file"),
        (b"mmap lm http://kheafield.com/code format version 5\n\0", "is in KenLM's binary format; give the ARPA file"),
        (b"iARPA\n\n\\data\\\n", "is in IRSTLM's intermediate format; give the ARPA file"),
        (gzip.compress(SMALL.encode(), mtime=0)[:-30], "damaged or cut off"),
        (gzip.compress(SMALL.encode(), mtime=0)[:40] + b"x" * 60, "damaged or cut off"),
        ("\\data\\\n\n\\1-grams:\n", ":3: \\data\\ has 0 orders; there must be 1 to 9"),
        ("\\data\\\nngram 2=1\n", ":2: should be «ngram 1=…»"),
        ("\\data\\\nngram 1=5\nngram one\n", ":3: should be «ngram 2=…»"),
        (
            "\\data\\\nngram 1=0\n\n\\1-grams:\n\n\\end\\\n",
            "none of its words has only the recogniser's letters; build",
        ),
        (broken("ngram 1=5", "ngram 1=6"), ":14: \\data\\ says that 1 more 1-grams come before"),
        (broken("ngram 1=5", "ngram 1=4"), ":12: \\2-grams: should be here; there are more 1-grams than \\data\\ says"),
        (broken("ngram 2=3", "ngram 2=2"), ":17: \\3-grams: should be here; there are more 2-grams"),
        (broken("ngram 3=1", "ngram 3=9"), ":22: \\data\\ says that 8 more 3-grams come before"),
        (broken("ngram 3=1\n", ""), ":18: \\end\\ should be here; there are more n-grams"),
        (broken("\\end\\", ""), ": the file ends here without \\end\\; copy"),
        (SMALL[: SMALL.index("-0.2\tда нет")], ":15: the file ends here without \\end\\; copy"),
        (broken("-0.5\tда\t-0.2", "-0.5\tда\t-0.2\t1"), ":11: 4 fields where there should be log-probability, 1 words"),
        (broken("-0.3\t<s> да\t-0.25", "-0.3\t<s>"), ":15: 2 fields where there should be log-probability, 2 words"),
        (broken("-0.5\tда", "x0.5\tда"), ":11: 'x0.5' is no number"),
        (broken("-0.5\tда", "nan\tда"), ":11: 'nan' is no number"),
        (broken("<s> да\t-0.25", "<s> да\tnan"), ":15: 'nan' is no number"),
        (broken("<s> да\t-0.25", "<s> да\tinf"), ":15: 'inf' is too high"),
        (broken("-0.2\tда нет", "0.2\tда нет"), ":16: '0.2' is too high for the logarithm of a probability"),
        (broken("-0.7\tнет", "-0.7\tда"), ":12: the word «да» was there before"),
        (broken("-0.7\tнет", "-0.7\t<UNK>"), ":12: the word «<UNK>» was there before"),
        (broken("нет </s>", "да нет"), ":17: this n-gram was there before"),
        (broken("да нет\t", "да кот\t"), ":16: the word «кот» is not among the 1-grams"),
        (broken("<s> да нет", "нет да нет"), ":20: its context «нет да» is not among the 2-grams"),
        (
            broken("-0.5\tда", "-0.5\tещё").replace("да", "ещё"),
            ":11: «ещё» should be «еще»; words that the recogniser spells otherwise (1) have 48.8 % of the prob",
        ),
        (SMALL.replace("да", "ДА").replace("нет", "НЕТ"), "the first is «ДА»; build the model from normalised text"),
        (SMALL.replace("да", "yes").replace("нет", "no"), "the first is «yes»; build the model from normalised text"),
    ],
)
def test_what_can_be_wrong(text: str | bytes, said: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    with pytest.raises(LanguageModelError) as raised:
        read_arpa(path)
    assert str(raised.value).startswith(f"{path}:")
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_too_many_orders(tmp_path: Path) -> None:
    counts = "".join(f"ngram {n}=1\n" for n in range(1, 11))
    with pytest.raises(LanguageModelError, match="10 orders; there must be 1 to 9"):
        read_arpa(write(tmp_path, f"\\data\\\n{counts}\n\\1-grams:\n-1 да\n"))


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(LanguageModelError, match=r"none\.arpa: no such language model; check the path"):
        read_arpa(tmp_path / "none.arpa")
    with pytest.raises(LanguageModelError, match="is a folder; give the ARPA file"):
        read_arpa(tmp_path)


def test_more_lines_than_are_read_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvarts.arpa._ROWS", 100)
    # 250 words, each followed by the next one.
    words = ["".join("абвгдежзий"[int(digit)] for digit in f"{number:03}") for number in range(250)]
    lines = ["\\data\\", "ngram 1=250", "ngram 2=249", "", "\\1-grams:"]
    lines += [f"-{1 + number / 100:.2f}\t{word}\t-0.5" for number, word in enumerate(words)]
    lines += ["", "\\2-grams:", *(f"-0.1\t{first} {second}" for first, second in pairwise(words)), "", "\\end\\", ""]
    model = read_arpa(write(tmp_path, "\n".join(lines)))
    assert model.words[3:] == tuple(words)
    for number in range(249):
        assert model.score(4 + number, 4 + number)[0] == pytest.approx(-0.1 * math.log(10))
        assert model.score(4 + number, 3)[0] == pytest.approx(-1.5 * math.log(10))
    for line, said in (("-1.0\tааг", "the word «ааг» was there before"), ("x\tу", "'x' is no number")):
        with pytest.raises(LanguageModelError, match=f":156: {said}"):
            read_arpa(write(tmp_path, "\n".join([*lines[:155], line, *lines[156:]])))
