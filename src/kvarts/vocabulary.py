"""The words a search knows, as a tree of letters in arrays, for a search in C and in Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvarts.alphabet import encode, encode_long


@dataclass(frozen=True)
class LetterTree:
    """Words that begin alike share their first letters' nodes. Node 0 is the beginning.

    Attributes:
        mask: (nodes,) uint64, bit k is set where a child by label k follows.
        first_child: (nodes,) int32, the first child; the others come after it in the order of their labels.
        word: (nodes,) int32, number of the word that ends here, -1 for none.
        depth: (nodes,) int32, letters from the beginning.
        parent: (nodes,) int32, of node 0 itself 0.
        label: (nodes,) int32, of the letter that leads here, of node 0 -1.
    """

    mask: NDArray[np.uint64]
    first_child: NDArray[np.int32]
    word: NDArray[np.int32]
    depth: NDArray[np.int32]
    parent: NDArray[np.int32]
    label: NDArray[np.int32]

    def child(self, node: int, label: int) -> int:
        """The node that follows by a label, or -1."""
        mask = int(self.mask[node])
        if not mask >> label & 1:
            return -1
        return int(self.first_child[node]) + bin(mask & ((1 << label) - 1)).count("1")

    def has(self, word: str) -> bool:
        """Whether it is one of the words.

        Raises:
            TextError: a letter has no label.
        """
        node = 0
        for label in encode(word):
            node = self.child(node, label)
            if node < 0:
                return False
        return bool(self.word[node] >= 0)

    def highest_below(self, of_word: NDArray[np.float32]) -> NDArray[np.float32]:
        """(nodes,) the highest of the values of all words that end at or below each node; of none -inf."""
        highest = np.where(self.word >= 0, of_word[self.word], -np.inf).astype(np.float32)
        for depth in range(int(self.depth[-1]), 0, -1):
            here = slice(*np.searchsorted(self.depth, [depth, depth + 1]))
            np.maximum.at(highest, self.parent[here], highest[here])
        return highest


def letter_tree(words: Sequence[str]) -> LetterTree:
    """The tree of words; word k is `words[k]`, of two that are the same the later one.

    Raises:
        TextError: a letter has no label.
    """
    lengths = np.array(list(map(len, words)), np.int64)
    letters = np.zeros((len(words), lengths.max(initial=0)), np.uint8)
    letters[np.arange(letters.shape[1]) < lengths[:, None]] = encode_long("".join(words))
    at = np.zeros(len(words), np.int64)  # the node of each word so far
    parents, labels, depths = [np.array([0])], [np.array([-1])], [np.array([0])]
    count = 1
    for depth in range(letters.shape[1]):
        going = lengths > depth
        # Sorted by parent, then by letter: so children of a node lie side by side, in the order of their labels.
        keys, number = np.unique(at[going] * 64 + letters[going, depth], return_inverse=True)
        at[going] = count + number
        parents.append(keys // 64)
        labels.append(keys % 64)
        depths.append(np.full(len(keys), depth + 1))
        count += len(keys)
    parent, label = np.concatenate(parents), np.concatenate(labels)
    mask = np.zeros(count, np.uint64)
    np.bitwise_or.at(mask, parent[1:], np.left_shift(np.uint64(1), label[1:].astype(np.uint64)))
    word = np.full(count, -1, np.int32)
    word[at] = np.arange(len(words))
    return LetterTree(
        mask=mask,
        first_child=np.searchsorted(parent[1:], np.arange(count)).astype(np.int32) + np.int32(1),
        word=word,
        depth=np.concatenate(depths).astype(np.int32),
        parent=parent.astype(np.int32),
        label=label.astype(np.int32),
    )
