"""The command that sound agrees with best: the best path of CTC through the graph of a grammar.

A path has a label for every frame, as in CTC (Graves et al., «Connectionist Temporal Classification», 2006): a letter's
frames, blanks between letters, at least one of them between equal letters. Between words there are one or more spaces;
before the first and behind the last there may be some. Networks leave a space out now and then, so a single blank will
do in its place, for `space_penalty`. Every frame counts with its label's log-probability less that of its best label:
the sum is the log-likelihood ratio of the best path through the grammar to the best path of all, the greedy one's. It
is 0 where the network heard the command without any doubt, and says how far the sound is from any command otherwise.

The Viterbi algorithm finds it in one pass (grammar_search.c; without a C compiler NumPy, with the same result), and
keeps one byte for each node and frame for the way back. 75 frames (3 s) in a graph of 4,700 nodes took 1.3 ms in C and
53 ms in NumPy, the best of 25 runs in turn on a busy machine.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kvarts.alphabet import ALPHABET, BLANK_ID, NUM_CLASSES
from kvarts.compiled import FLAGS, NoLibraryError, compiled
from kvarts.decoding import WordFrames, greedy_words
from kvarts.errors import ConfigError

if TYPE_CHECKING:
    from kvarts.grammar import Grammar, LetterGraph

logger = logging.getLogger(__name__)

UNKNOWN = "[unk]"

# Of 34 read sentences of one voice (validation, a model of little training), each against the 33 others: the right one
# scored -0.77 at the worst, the best of the wrong ones -9.6. Of 192 commands by a synthetic voice 30 % scored below -1,
# 5 % below -2, none below -3; of 200 sentences by it, 14 minutes, the first is taken for a command at 4.8. Choose by
# `kvarts calibrate --grammar` or `kvarts.grammar_metrics.threshold`.
DEFAULT_UNKNOWN_PENALTY = 3.0
# There the right one's mean score was -0.41 where every space had to be heard, and -0.39 with this penalty.
DEFAULT_SPACE_PENALTY = 2.0

_SPACE_ID = ALPHABET.index(" ")
# A node's step into a frame: for its letter in the lower two bits, for its blank in the upper two.
_FROM_LETTER_OR_OWN, _FROM_BLANK_OR_OTHER, _FROM_BEFORE = 0, 1, 2


@dataclass(frozen=True)
class Command:
    """What was said.

    Attributes:
        intent: None if it was no command of the grammar.
        slots: values by name.
        text: of the command, «[unk]» for something else, empty where nothing was said.
        words: of the text, with their encoded frames; «[unk]» is one word.
        score: the best command's log-likelihood ratio to the free best path, for each of its letters, at most 0; it is
            the same whether that command was accepted or not. -inf if the sound is too short for any.
        confidence: exp(score), which is no probability; `kvarts.confidence.CommandCalibration` makes one of the score.
    """

    intent: str | None
    slots: Mapping[str, str]
    text: str
    words: tuple[WordFrames, ...]
    score: float
    confidence: float


class GrammarSearch:
    """Finds commands in log-probabilities. May be used from several threads at once, and as a `Recognizer`'s decoder.

    Example:
        >>> from kvarts.grammar import Grammar
        >>> search = GrammarSearch(Grammar("[yes]\\nда\\n[no]\\nнет"))
        >>> log_probs = np.full((4, 34), -9, np.float32)
        >>> log_probs[[0, 1, 2, 3], [5, 33, 1, 33]] = 0  # д, blank, а, blank
        >>> search.search(log_probs).intent
        'yes'
    """

    def __init__(
        self,
        grammar: Grammar,
        *,
        unknown_penalty: float = DEFAULT_UNKNOWN_PENALTY,
        space_penalty: float = DEFAULT_SPACE_PENALTY,
    ) -> None:
        """Args:
            unknown_penalty: nats a letter; a command whose score is lower than minus that is «[unk]».
                `kvarts.grammar_metrics` finds it for a wanted number of false accepts; inf accepts whatever can be a
                command.
            space_penalty: nats for a space that is not heard; inf demands each.

        Raises:
            ConfigError: a penalty is negative or no number.
        """
        for name, penalty in (("unknown_penalty", unknown_penalty), ("space_penalty", space_penalty)):
            if not penalty >= 0:
                raise ConfigError(f"{name} {penalty:g}: a penalty is a number from 0 on")
        self.grammar = grammar
        self.unknown_penalty = unknown_penalty
        self.space_penalty = space_penalty

    @property
    def description(self) -> str:
        """What confidences depend on, for `kvarts.confidence`."""
        return f"grammar {self.grammar.digest}, space penalty {self.space_penalty:g}"

    def __call__(self, log_probs: NDArray[np.float32]) -> list[WordFrames]:
        """The words of `search`, as `kvarts.decoding.Decoder` wants them."""
        return list(self.search(log_probs).words)

    def search(self, log_probs: NDArray[np.float32]) -> Command:
        """The best command, or «[unk]».

        Args:
            log_probs: (time, 34) of one utterance, finite or -inf.

        Raises:
            ValueError: another shape.
        """
        best = self.best(log_probs)
        if best.intent is not None and best.score >= -self.unknown_penalty:
            return best
        heard = greedy_words(log_probs) if len(log_probs) else []
        if not heard:
            return Command(None, {}, "", (), best.score, best.confidence)
        unknown = WordFrames(UNKNOWN, heard[0].start, heard[-1].stop, best.confidence)
        return Command(None, {}, UNKNOWN, (unknown,), best.score, best.confidence)

    def best(self, log_probs: NDArray[np.float32]) -> Command:
        """The best command, however bad; without intent only if the sound is too short for any.

        Args:
            log_probs: as of `search`.

        Raises:
            ValueError: another shape.
        """
        if log_probs.ndim != 2 or log_probs.shape[1] != NUM_CLASSES:
            raise ValueError(f"log_probs must be (time, {NUM_CLASSES}), got {log_probs.shape}")
        scores = np.ascontiguousarray(log_probs, np.float32)
        losses = scores - scores.max(axis=1, keepdims=True) if len(scores) else scores
        total, path = _best_path(self.grammar.graph, losses, self.space_penalty)
        if not math.isfinite(total):
            return Command(None, {}, "", (), -math.inf, 0.0)
        words = _words(self.grammar.graph, path, scores)
        text = " ".join(word.text for word in words)
        meaning = self.grammar.parse(text)
        assert meaning is not None, f"the graph has a path {text!r} that is no phrase"
        score = total / sum(len(word.text) for word in words)
        return Command(meaning.intent, meaning.slots, text, words, score, math.exp(score))


def _best_path(graph: LetterGraph, losses: NDArray[np.float32], space_penalty: float) -> tuple[float, list[int]]:
    """The best path's sum and its labels' nodes: of every frame 2 · node, plus 1 for a blank behind it."""
    frames, nodes = len(losses), len(graph.labels)
    # Letters (nodes,), then blanks (nodes,), of the last frame.
    library = _library()
    if library is None:
        state, steps, entries = _forward(graph, losses, space_penalty)
    else:
        state = np.empty((4, nodes), np.float32)
        steps = np.empty((frames, nodes), np.uint8)
        entries = np.empty((frames, graph.num_spaces), np.int32)
        arrays = (graph.labels, graph.parents, graph.barriers, graph.first_ends, graph.ends)
        library(
            *(losses.ctypes.data, frames, nodes, graph.num_spaces),
            *(array.ctypes.data for array in arrays),
            *(space_penalty, state.ctypes.data, steps.ctypes.data, entries.ctypes.data),
        )
    last_space = graph.num_spaces - 1
    finals = np.append(graph.ends[graph.first_ends[last_space] :], last_space)
    letters, blanks = state[0, finals], state[1, finals]
    best = int(np.maximum(letters, blanks).argmax())
    position = 2 * int(finals[best]) + int(blanks[best] > letters[best])
    total = float(max(letters[best], blanks[best]))
    if not math.isfinite(total):
        return total, []
    path = [position]
    for frame in range(frames - 1, 0, -1):
        node, is_blank = divmod(position, 2)
        step = int(steps[frame, node]) >> 2 if is_blank else int(steps[frame, node]) & 3
        is_space = node < graph.num_spaces
        if step == _FROM_BEFORE:
            position = int(entries[frame, node]) if is_space else 2 * int(graph.parents[node])
        elif is_blank:
            position = 2 * node + (step == _FROM_LETTER_OR_OWN)
        elif step == _FROM_BLANK_OR_OTHER:
            position = 2 * int(graph.parents[node]) + 1
        path.append(position)
    return total, path[::-1]


def _forward(
    graph: LetterGraph, losses: NDArray[np.float32], space_penalty: float
) -> tuple[NDArray[np.float32], NDArray[np.uint8], NDArray[np.int32]]:
    """What grammar_search.c does, in NumPy.

    Returns:
        Scores of the last frame, (2, nodes): of letters and blanks. Steps (frames, nodes). Entries (frames, spaces):
        2 · node, plus 1 for its blank, by which a space is best entered.
    """
    spaces, nodes, frames = graph.num_spaces, len(graph.labels), len(losses)
    penalty = np.float32(space_penalty)
    parents = graph.parents[spaces:]
    starts = graph.first_ends[1:-1]  # no words end before node 0
    numbers = np.arange(len(graph.ends))
    owners = np.repeat(np.arange(len(starts)), np.diff(graph.first_ends[1:]))
    letter = np.full(nodes, -np.inf, np.float32)
    blank = letter.copy()
    blank[0] = 0
    steps = np.empty((frames, nodes), np.uint8)
    entries = np.full((frames, spaces), -1, np.int32)
    before = np.empty(nodes, np.float32)
    for frame, loss in enumerate(losses):
        at_ends = np.maximum(letter, blank)[graph.ends]
        best = np.maximum.reduceat(at_ends, starts)
        first = np.minimum.reduceat(np.where(at_ends == best[owners], numbers, len(numbers)), starts)
        ends = graph.ends[first]
        entries[frame, 1:] = 2 * ends + (blank[ends] > letter[ends])
        before[0] = -np.inf
        before[1:spaces] = best
        before[spaces:] = letter[parents] + graph.barriers[spaces:]
        by_blank = blank[graph.parents]
        stay = np.maximum(letter, by_blank)
        still = np.maximum(blank, letter)
        skipped = before[:spaces] - penalty
        step = np.where(before > stay, 2, by_blank > letter)
        step_blank = 4 * (letter > blank)
        step_blank[:spaces][skipped > still[:spaces]] = 8
        steps[frame] = step | step_blank
        still[:spaces] = np.maximum(still[:spaces], skipped)
        letter = np.maximum(stay, before) + loss[graph.labels]
        blank = still + loss[BLANK_ID]
    return np.stack([letter, blank]), steps, entries


def _words(graph: LetterGraph, path: list[int], log_probs: NDArray[np.float32]) -> tuple[WordFrames, ...]:
    """The words of a path (see `_best_path`), which says of each frame what it belongs to."""
    words: list[WordFrames] = []
    letters: list[tuple[int, int, int, float]] = []  # of the word so far: label, first and last frame, best log-prob.

    def close() -> None:
        if letters:
            text = "".join(ALPHABET[label] for label, *_ in letters)
            confidence = math.exp(sum(best for *_, best in letters) / len(letters))
            words.append(WordFrames(text, letters[0][1], letters[-1][2] + 1, confidence))
            letters.clear()

    previous = -1
    for frame, position in enumerate(path):
        node, is_blank = divmod(position, 2)
        if node < graph.num_spaces:
            close()
        elif not is_blank:
            label = int(graph.labels[node])
            log_prob = float(log_probs[frame, label])
            if node == previous:
                _, start, _, best = letters.pop()
                letters.append((label, start, frame, max(best, log_prob)))
            else:
                letters.append((label, frame, frame, log_prob))
        previous = node
    close()
    return tuple(words)


@functools.cache
def _library() -> Any:
    """The function `search` of grammar_search.c; None where it cannot be had."""
    try:
        # GCC makes vectors of a choice between floats only where comparisons cannot trap: 1.3 ms in place of 3.5.
        function = ctypes.CDLL(str(compiled("grammar_search", (*FLAGS, "-fno-trapping-math")))).search
    except (NoLibraryError, OSError) as error:
        logger.info("commands: NumPy's search (%s)", error)
        return None
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [pointer, *[number] * 3, *[pointer] * 5, ctypes.c_float, *[pointer] * 3]
    function.restype = None
    return function
