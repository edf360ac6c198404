"""The estimates of n-gram models: against the formulas written out with dicts, by hand, and against other tools."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvarts import ngram
from kvarts.arpa import BackoffModel, read_arpa
from kvarts.ngram import LanguageModel, thresholds, train

GOLDEN = Path(__file__).parent / "golden"

Gram = tuple[str, ...]
Table = dict[Gram, tuple[float, float]]  # probability and backoff weight

SENTENCES = st.lists(st.lists(st.sampled_from("абвгд"), max_size=7), min_size=1, max_size=40)


def table(lines: list[str]) -> Table:
    """The n-grams of an ARPA file that Kvarts or lmplz wrote."""
    found: Table = {}
    for line in lines:
        fields = line.rstrip("\n").split("\t")
        if len(fields) > 1:
            backoff = float(fields[2]) if len(fields) > 2 else 0.0
            found[tuple(fields[1].split(" "))] = (10 ** float(fields[0]), 10**backoff)
    return found


def counts_and_discounts(
    sentences: list[list[str]], order: int
) -> tuple[list[Counter[Gram]], list[dict[Gram, int]], list[list[float]]]:
    """Of each order: how often each n-gram is seen, its adjusted count (Heafield et al., 3.2), and the discounts."""
    raw: list[Counter[Gram]] = [Counter() for _ in range(order)]
    for sentence in sentences:
        marked = ["<s>", *sentence, "</s>"]
        for n in range(1, order + 1):
            raw[n - 1].update(tuple(marked[i : i + n]) for i in range(len(marked) - n + 1))
    while not raw[-1]:
        raw.pop()
    adjusted: list[dict[Gram, int]] = []
    for n, grams in enumerate(raw, start=1):
        if n == len(raw):
            adjusted.append(dict(grams))
        else:
            before = {gram: len({longer[0] for longer in raw[n] if longer[1:] == gram}) for gram in grams}
            adjusted.append({gram: grams[gram] if gram[0] == "<s>" else before[gram] for gram in grams})
    adjusted[0].pop(("<s>",))
    discounts = []
    for of_order in adjusted:
        n1, n2, n3, n4 = (sum(count == k for count in of_order.values()) for k in (1, 2, 3, 4))
        own = [0.5, 1.0, 1.5]
        if n1 and n2 and n3:  # Chen and Goodman, equation 26
            y = n1 / (n1 + 2 * n2)
            formula = [1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
            own = formula if min(formula) >= 0 else own
        discounts.append(own)
    return raw, adjusted, discounts


def by_the_formulas(sentences: list[list[str]], order: int, prune: list[int]) -> Table:
    """Modified Kneser–Ney, interpolated down to the uniform distribution, n-gram after n-gram."""
    raw, adjusted, discounts = counts_and_discounts(sentences, order)
    limits = thresholds(order, prune)
    vocabulary = {word for (word,) in raw[0]} - {"<s>"} | {"<unk>"}

    def discount(n: int, count: int) -> float:
        return discounts[n - 1][min(count, 3) - 1]

    def is_kept(gram: Gram) -> bool:
        return len(gram) == 1 or raw[len(gram) - 1][gram] > limits[len(gram) - 1]

    def weight(context: Gram) -> float:
        n = len(context) + 1
        followers = {gram: a for gram, a in adjusted[n - 1].items() if gram[:-1] == context} if n <= len(raw) else {}
        if not followers:
            return 1.0
        left = sum(discount(n, a) if is_kept(gram) else a for gram, a in followers.items())
        return left / sum(followers.values())

    def probability(gram: Gram) -> float:
        n = len(gram)
        total = sum(a for other, a in adjusted[n - 1].items() if other[:-1] == gram[:-1])
        own = adjusted[n - 1].get(gram, 0)
        shorter = probability(gram[1:]) if n > 1 else 1 / len(vocabulary)
        return (own - discount(n, own) if own else 0) / total + weight(gram[:-1]) * shorter

    grams = [("<unk>",), *(gram for of_order in adjusted for gram in of_order if is_kept(gram))]
    return {gram: (probability(gram), weight(gram)) for gram in grams} | {("<s>",): (0.0, weight(("<s>",)))}


def read(model: LanguageModel, folder: Path) -> BackoffModel:
    path = folder / "lm.arpa"
    path.write_text("".join(model.arpa()), encoding="utf-8")
    return read_arpa(path)


def assert_same(ours: Table, theirs: Table, tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    for gram, (probability, backoff) in theirs.items():
        if gram != ("<s>",):
            assert ours[gram][0] == pytest.approx(probability, rel=tolerance, abs=1e-98), gram
        assert ours[gram][1] == pytest.approx(backoff, rel=tolerance, abs=1e-98), gram


def assert_sums(model: BackoffModel) -> None:
    for node in range(len(model.word)):
        if model.word[node] != ngram._END_ID:  # after the end nothing comes
            total = sum(math.exp(model.score(node, word)[0]) for word in range(1, len(model.words)))
            assert total == pytest.approx(1, abs=2e-5)


@settings(max_examples=40, deadline=None)
@given(SENTENCES, st.integers(1, 4), st.sampled_from([[], [0, 1], [0, 0, 1], [0, 1, 2]]))
def test_as_the_formulas_say(sentences: list[list[str]], order: int, prune: list[int]) -> None:
    sentences = [*sentences, ["а"]]
    prune = prune[:order]
    model = train(sentences, order, prune)
    assert_same(table(list(model.arpa())), by_the_formulas(sentences, order, prune), 5e-6)


@settings(max_examples=10, deadline=None)
@given(SENTENCES, st.integers(1, 4), st.sampled_from([[], [0, 1], [0, 0, 2]]))
def test_what_follows_a_context_sums_to_one(
    tmp_path_factory: pytest.TempPathFactory, sentences: list[list[str]], order: int, prune: list[int]
) -> None:
    assert_sums(read(train([*sentences, ["а"]], order, prune[:order]), tmp_path_factory.mktemp("sums")))


def test_by_hand() -> None:
    # «а б» and «а». Bigrams: <s> а twice, а б, а </s>, б </s> once each. None is there three times, so discounts are
    # 0.5, 1 and 1.5. Words by how many stand before them: а 1, б 1, </s> 2, together 4; again nobody has 3. What that
    # leaves, (0.5 + 0.5 + 1) / 4 = 0.5, goes to а, б, </s> and <unk> in equal parts:
    #   P(а) = P(б) = 0.5 / 4 + 0.5 / 4 = 0.25,  P(</s>) = 1 / 4 + 0.5 / 4 = 0.375,  P(<unk>) = 0.5 / 4 = 0.125.
    # After <s>, 2 in all, left 1 / 2:            P(а | <s>) = 1 / 2 + 0.5 · 0.25 = 0.625.
    # After а, 2 in all, left (0.5 + 0.5) / 2:    P(б | а) = 0.5 / 2 + 0.5 · 0.25,  P(</s> | а) = 0.5 / 2 + 0.5 · 0.375.
    # After б, 1 in all, left 0.5 / 1:            P(</s> | б) = 0.5 / 1 + 0.5 · 0.375.
    model = train([["а", "б"], ["а"]], order=2)
    assert model.discounts == (ngram.FALLBACK_DISCOUNTS, ngram.FALLBACK_DISCOUNTS)
    expected = {
        ("<s>",): (0.0, 0.5),
        ("</s>",): (0.375, 1.0),
        ("<unk>",): (0.125, 1.0),
        ("а",): (0.25, 0.5),
        ("б",): (0.25, 0.5),
        ("<s>", "а"): (0.625, 1.0),
        ("а", "б"): (0.375, 1.0),
        ("а", "</s>"): (0.4375, 1.0),
        ("б", "</s>"): (0.6875, 1.0),
    }
    assert_same(table(list(model.arpa())), expected, 2e-6)


def test_a_context_that_leaves_nothing_and_one_that_leaves_all() -> None:
    # Bigrams: 8 seen once, 2 twice (of «а»), 2 three times (of «б»). So y = 8 / 12, D2 = 2 - 3 y · 2 / 2 = 0, and, as
    # none is seen four times, D3 = 3: all of «б </s>» goes to what is shorter, and nothing of «а </s>».
    sentences = [["а"]] * 2 + [["б"]] * 3 + [["в"], ["г"], ["д"], ["е"]]
    model = train(sentences, order=2)
    assert model.discounts[1] == pytest.approx((2 / 3, 0, 3))
    found = table(list(model.arpa()))
    assert found["а", "</s>"][0] == pytest.approx(1)
    assert found[("а",)][1] == pytest.approx(0, abs=1e-90)
    assert found[("б",)][1] == pytest.approx(1)
    assert found["б", "</s>"][0] == pytest.approx(found[("</s>",)][0])


def test_no_order_without_ngrams() -> None:
    # Nothing is longer than «<s> да </s>».
    model = train([["да"], ["нет"], []], order=7)
    assert [len(grams.word) for grams in model.orders] == [5, 5, 2]
    assert list(model.arpa())[:4] == ["\\data\\\n", "ngram 1=5\n", "ngram 2=5\n", "ngram 3=2\n"]


def test_rare_words_are_counted_as_unknown() -> None:
    sentences = [["а", "б", "а"], ["в", "а"], ["б", "г", "а"]]
    unknown = [["а", "б", "а"], ["<unk>", "а"], ["б", "<unk>", "а"]]
    few = train(sentences, 3, min_count=2)
    assert few.words == ("<s>", "</s>", "<unk>", "а", "б")
    assert list(few.arpa()) == list(train(unknown, 3).arpa())
    assert table(list(few.arpa()))[("<unk>",)][0] > 0.1


def test_words_by_their_frequency_in_the_language(tmp_path: Path) -> None:
    """What the texts leave to words as such goes to frequent ones; sums stay 1, and what was seen is known better."""
    sentences = [list("аб"), list("ба"), list("аабв")]
    frequencies = {"а": 1.0, "г": 30.0, "д": 9.0}  # «а» seen too, «б» and «в» seen alone, the others listed alone
    plain, listed = train(sentences, 2), train(sentences, 2, frequencies=frequencies)
    assert listed.words == (*plain.words, "г", "д")
    ours, theirs = table([*listed.arpa()]), table([*plain.arpa()])
    # Seven words may come, of which each has a seventh of the even tenth. To all of them the texts leave this share:
    left = (theirs[("<unk>",)][0]) * (len(plain.words) - 1)
    assert ours[("г",)][0] == pytest.approx(left * (0.1 / 7 + 0.9 * 30 / 40), rel=1e-4)
    assert ours[("д",)][0] == pytest.approx(left * (0.1 / 7 + 0.9 * 9 / 40), rel=1e-4)
    assert ours[("<unk>",)][0] == pytest.approx(left * 0.1 / 7, rel=1e-4)
    assert ours[("б",)][0] < theirs[("б",)][0]
    assert_sums(read(listed, tmp_path))


def test_a_file_has_its_words_in_alphabetical_order_and_leaves_out_backoffs_of_0() -> None:
    """So it is the same whatever the order of the texts, and a gzipped one a fifth smaller."""
    sentences, listed = [["ель", "бук"], ["бук", "дуб"]], {"граб": 2.0, "вяз": 1.0, "бук": 3.0}
    model = train(sentences, 2, frequencies=listed)
    assert model.words == ("<s>", "</s>", "<unk>", "бук", "вяз", "граб", "дуб", "ель")
    lines = [line.split("\t") for line in "".join(model.arpa(3)).splitlines()]
    assert [len(cells) for cells in lines if cells[-1] in ("вяз", "граб")] == [2, 2]  # nothing comes behind them
    assert [len(cells) for cells in lines if cells[1:2] == ["ель"]] == [3]
    again = train(sentences[::-1], 2, frequencies=dict(reversed(listed.items())))
    assert "".join(again.arpa()) == "".join(model.arpa())


def test_rare_words_that_are_listed_are_kept() -> None:
    assert train([["а", "а", "б", "в"]], min_count=2, frequencies={"б": 1.0}).words[3:] == ("а", "б")


def test_pruning_leaves_out_what_is_seen_no_more_often() -> None:
    sentences = [["а", "б"]] * 3 + [["в", "б"]] * 2 + [["г", "а"]]
    grams = set(table(list(train(sentences, 3, [0, 1, 2]).arpa())))
    assert {gram for gram in grams if len(gram) == 2} == {
        *(("<s>", "а"), ("а", "б"), ("б", "</s>"), ("<s>", "в"), ("в", "б")),
    }
    assert {gram for gram in grams if len(gram) == 3} == {("<s>", "а", "б"), ("а", "б", "</s>")}


def test_thresholds() -> None:
    assert thresholds(4, []) == [0, 0, 0, 0]
    assert thresholds(4, [0, 1]) == [0, 1, 1, 1]
    assert thresholds(2, [0, 3]) == [0, 3]
    for order, prune, said in ((2, [0, 0, 1], "3 values"), (2, [1], "begin with 0"), (3, [0, 2, 1], "falls")):
        with pytest.raises(ValueError, match=said):
            thresholds(order, prune)
    for order in (0, 10):
        with pytest.raises(ValueError, match="from 1 to 9"):
            thresholds(order, [])


@pytest.mark.parametrize(
    ("sentences", "said"),
    [
        ([], "no word"),
        ([[], []], "no word"),
        ([["<unk>"]], "no word"),
        ([["а", "<s>"]], "'<s>' is no word"),
        ([["</s>", "а"]], "'</s>' is no word"),
        ([["а б"]], "'а б' is no word"),
        ([["а", ""]], "'' is no word"),
    ],
)
def test_what_cannot_be_counted(sentences: list[list[str]], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        train(sentences)


def golden_text() -> list[list[str]]:
    return [line.split() for line in (GOLDEN / "lm_text.txt").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(("name", "order", "prune"), [("lm_lmplz_3", 3, []), ("lm_lmplz_4_pruned", 4, [0, 0, 1])])
def test_as_kenlm_estimates(name: str, order: int, prune: list[int]) -> None:
    theirs = table((GOLDEN / f"{name}.arpa").read_text(encoding="utf-8").splitlines())
    assert len(theirs) > 200
    model = train(golden_text(), order, prune)
    # Words fall back, for a count is nobody's; longer n-grams do not.
    assert [discounts == ngram.FALLBACK_DISCOUNTS for discounts in model.discounts] == [True] + [False] * (order - 1)
    assert_same(table(list(model.arpa())), theirs, 5e-6)


def test_as_irstlm_estimates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # IRSTLM marks a sentence's beginning by several «<s>» and counts n-grams of them, so its discounts are others. It
    # prints them: 0.628571, 0.259341 and 2.37143 for bigrams; of trigrams only one, 0.492754, for it finds the others
    # odd. It smoothes single words after Witten and Bell, and counts bigrams of «<s>» in its own way. The rest must be
    # the same: with its discounts, the weights of contexts, and what of each probability is not of a shorter n-gram.
    theirs = read_arpa(GOLDEN / "lm_irstlm.arpa")
    discounts = iter([[0, 0.5, 1, 1.5], [0, 0.628571, 0.259341, 2.37143], [0, 0.492754, 0.492754, 0.492754]])
    monkeypatch.setattr(ngram, "_discounts", lambda adjusted: np.array(next(discounts)))
    ours = read(train(golden_text(), 3), tmp_path)
    compared = Counter[int]()
    for gram in table((GOLDEN / "lm_lmplz_3.arpa").read_text(encoding="utf-8").splitlines()):
        if len(gram) > 1 and gram[:-1] != ("<s>",):
            (weight, own), (their_weight, their_own) = (parts(model, gram) for model in (ours, theirs))
            assert weight == pytest.approx(their_weight, abs=2e-5), gram
            assert own == pytest.approx(their_own, abs=2e-5), gram
            compared[len(gram)] += 1
    assert compared == {2: 75, 3: 150}


def parts(model: BackoffModel, gram: Gram) -> tuple[float, float]:
    """The weight of an n-gram's context, and its probability less what it has of the shorter n-gram's."""
    *context, word = (model.ids[word] for word in gram)
    node = 0
    for number in context:
        node = model._child(node, number)
    child = model._child(node, word)
    weight = math.exp(model.backoff[node])
    return weight, math.exp(model.log_probability[child]) - weight * math.exp(
        model.log_probability[model.suffix[child]]
    )
