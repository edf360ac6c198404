"""The tree of letters against one of dictionaries."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvarts.alphabet import ALPHABET, decode, encode
from kvarts.errors import TextError
from kvarts.vocabulary import LetterTree, letter_tree

Trie = dict[str, list[int]]
words = st.lists(st.one_of(st.text("абя", max_size=4), st.text(ALPHABET, max_size=6)), max_size=12)


def trie(words: list[str]) -> Trie:
    """By each beginning, the words that begin so."""
    found: Trie = {"": []}
    for number, word in enumerate(words):
        for length in range(len(word) + 1):
            found.setdefault(word[:length], []).append(number)
    return found


def node_of(tree: LetterTree, text: str) -> int:
    node = 0
    for label in encode(text):
        node = tree.child(node, label)
        if node < 0:
            break
    return node


@given(words)
def test_it_is_the_tree_of_dictionaries(words: list[str]) -> None:
    tree = letter_tree(words)
    expected = trie(words)
    assert len(tree.word) == len(expected)
    for name in ("mask", "first_child", "depth", "parent", "label"):
        assert len(getattr(tree, name)) == len(expected)
    nodes = {text: node_of(tree, text) for text in expected}
    assert sorted(nodes.values()) == list(range(len(expected)))
    last = {word: number for number, word in enumerate(words)}
    for text, node in nodes.items():
        assert tree.depth[node] == len(text)
        assert tree.word[node] == last.get(text, -1)
        assert tree.has(text) == (text in last)
        assert not tree.has(text + "ъъъъъъъ")
        following = [letter for letter in ALPHABET if text + letter in expected]
        assert [label for label in range(64) if int(tree.mask[node]) >> label & 1] == encode("".join(following))
        # What search.c counts on: children lie side by side, behind their parent, in the order of their labels.
        children = [nodes[text + letter] for letter in following]
        assert children == list(range(tree.first_child[node], tree.first_child[node] + len(children)))
        if text:
            assert tree.parent[node] == nodes[text[:-1]] < node
            assert tree.label[node] == encode(text[-1])[0]
        for letter in ALPHABET:
            if letter not in following:
                assert tree.child(node, ALPHABET.index(letter)) == -1
    assert (tree.parent[0], tree.label[0]) == (0, -1)
    assert np.all(np.diff(tree.depth) >= 0)


@given(words.filter(bool), st.integers(0, 2**32 - 1))
def test_the_highest_below_is_the_best_of_all_that_begin_so(words: list[str], seed: int) -> None:
    last = {word: number for number, word in enumerate(words)}
    values = np.random.default_rng(seed).normal(size=len(words)).astype(np.float32)
    tree = letter_tree(words)
    found = tree.highest_below(values)
    assert found.dtype == np.float32
    for text, numbers in trie(words).items():
        assert found[node_of(tree, text)] == max(values[last[words[number]]] for number in numbers)


def test_words_that_begin_other_words() -> None:
    tree = letter_tree(["дом", "домой", "до", "я"])
    ends = {decode(encode(text)): int(tree.word[node_of(tree, text)]) for text in ("д", "до", "дом", "домо", "домой")}
    assert ends == {"д": -1, "до": 2, "дом": 0, "домо": -1, "домой": 1}
    assert node_of(tree, "домик") == node_of(tree, "ядом") == -1
    assert tree.highest_below(np.array([1, 5, 2, -3], np.float32))[node_of(tree, "д")] == 5
    assert tree.highest_below(np.array([1, 0, 2, -3], np.float32))[node_of(tree, "дом")] == 1


def test_of_two_that_are_the_same_the_later() -> None:
    tree = letter_tree(["да", "нет", "да"])
    assert tree.word[node_of(tree, "да")] == 2
    assert tree.highest_below(np.array([9, 1, 2], np.float32))[0] == 2


def test_no_words() -> None:
    for words, ends in (([], -1), ([""], 0)):
        tree = letter_tree(words)
        assert (len(tree.word), tree.word[0], tree.mask[0], tree.depth[0]) == (1, ends, 0, 0)
        assert tree.child(0, 5) == -1
    assert letter_tree([""]).highest_below(np.ones(1, np.float32)).tolist() == [1]


def test_all_labels_of_one_node() -> None:
    tree = letter_tree(list(ALPHABET))
    assert int(tree.mask[0]) == 2**33 - 1
    assert [tree.child(0, label) for label in range(33)] == list(range(1, 34))


def test_letters_without_a_label() -> None:
    with pytest.raises(TextError, match="light"):
        letter_tree(["свет", "light"])
