"""Lines of manifests that are the same, or nearly: by digests, 5-grams of letters and fingerprints of sound.

Of a line 8 bytes of each digest are kept, and no text; two different ones agree by chance once in 37 million manifests
of a million lines.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from kvarts.lint_sound import FINGERPRINT_BYTES

NEAR_TEXT: Final = 0.7  # Jaccard index of the 5-grams
NEAR_FINGERPRINT: Final = 64  # of 256 bits
NEAR_DURATION_S: Final = 0.1  # what coders pad a file by

_GRAM = 5
_BANDS, _ROWS = 20, 4  # at a Jaccard index of 0.7 one pair in 240 is missed, of 0.8 one in 30,000
_PRIME = np.uint64(0x9E3779B97F4A7C15)


def digest(content: str) -> int:
    """8 bytes of a hash (BLAKE2b), never 0, which stands for none."""
    return int.from_bytes(hashlib.blake2b(content.encode(), digest_size=8).digest(), "big") or 1


def repeats(digests: NDArray[np.uint64]) -> list[tuple[int, int]]:
    """(place, first place of the same digest) of all but the first, in order of the places; 0 is none."""
    order = np.argsort(digests, kind="stable")
    ordered = digests[order]
    is_first = np.diff(ordered, prepend=~ordered[:1]) != 0
    firsts = order[np.flatnonzero(is_first)[np.cumsum(is_first) - 1]]
    again = np.flatnonzero(~is_first & (ordered != 0))
    return sorted(zip(order[again].tolist(), firsts[again].tolist(), strict=True))


def near_fingerprints(prints: bytes | bytearray, durations_s: NDArray[np.float32]) -> list[tuple[int, int, int]]:
    """(place, an earlier place, bits that differ) of recordings that sound the same, the earliest one of each.

    Compared are recordings whose durations differ by 0.1 s at most. The same sound in another format, at another bit
    rate (opus of 20 kbit/s, G.711), level or sample rate down to 8 kHz, or up to 30 ms later, is found; with much noise
    added, in another room, cut, or at another speed it is not.

    Args:
        prints: 32 bytes each, of `lint_sound.fingerprint`.
        durations_s: (recordings,); those with NaN are left out.
    """
    bits = np.frombuffer(prints, np.uint8).reshape(-1, FINGERPRINT_BYTES)
    order = np.argsort(durations_s, kind="stable")
    order = order[: np.count_nonzero(~np.isnan(durations_s))]  # NaN comes last
    durations = durations_s[order].astype(np.float64)
    ends = np.searchsorted(durations, durations + NEAR_DURATION_S + 1e-6, "right")
    earliest: dict[int, tuple[int, int]] = {}
    rows, columns = 512, 8192
    for start in range(0, len(order), rows):
        own = order[start : start + rows]
        own_signs = _signs(bits[own])
        last = int(ends[min(start + rows, len(order)) - 1])
        for left in range(start, last, columns):
            others = order[left : min(left + columns, last)]
            distance = (8 * FINGERPRINT_BYTES - own_signs @ _signs(bits[others]).T) / 2
            place, other = np.nonzero(distance <= NEAR_FINGERPRINT)
            is_near = (left + other > start + place) & (left + other < ends[start + place])
            for row, column in zip(place[is_near].tolist(), other[is_near].tolist(), strict=True):
                first, second = sorted((int(own[row]), int(others[column])))
                if second not in earliest or first < earliest[second][0]:
                    earliest[second] = first, int(distance[row, column])
    return sorted((second, first, apart) for second, (first, apart) in earliest.items())


def _signs(bits: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(n, bytes) to (n, bits) of ±1, whose products BLAS can add up."""
    return np.unpackbits(bits, axis=1).astype(np.float32) * 2 - 1


class NearTexts:
    """Texts of which those are found that share most of their 5-grams of letters with another.

    The Jaccard index of the sets of 5-grams, 0.7 or more, is computed exactly, of candidates by MinHash (A. Broder,
    "On the resemblance and containment of documents", 1997) in 20 bands of 4. A letter or a short word more, less or
    another in a sentence is found; the same words in another order are not always, and a text within a longer one is
    not. Kept are 5-grams and 80 hashes of each text, 0.6 kB of a sentence.
    """

    def __init__(self) -> None:
        self._grams: list[NDArray[np.uint32]] = []
        self._signatures: list[NDArray[np.uint32]] = []
        self._keys: list[NDArray[np.uint64]] = []
        self._sorted: tuple[NDArray[np.uint32], list[tuple[NDArray[np.uint64], NDArray[np.int64]]]] | None = None
        random = np.random.default_rng(5)
        self._factors = random.integers(1, 2**63, _BANDS * _ROWS, np.uint64) * np.uint64(2) + np.uint64(1)

    def __len__(self) -> int:
        return len(self._grams)

    def add(self, texts: Sequence[str]) -> None:
        """Keeps normalised texts, which `nearest` numbers in the order they came in."""
        if texts:
            grams, signatures, keys = self._hashed(texts)
            self._grams += map(np.unique, grams)
            self._signatures.append(signatures)
            self._keys.append(keys)
            self._sorted = None

    def nearest(self, texts: Sequence[str]) -> list[tuple[int, float] | None]:
        """For each text the number of the nearest one that was added, and their Jaccard index; None: none is near."""
        if not len(self) or not texts:
            return [None] * len(texts)
        if self._sorted is None:
            keys = np.concatenate(self._keys)
            orders = [np.argsort(keys[:, band], kind="stable") for band in range(_BANDS)]
            in_order = [(keys[order, band], order) for band, order in enumerate(orders)]
            self._sorted = np.concatenate(self._signatures), in_order
        known, bands = self._sorted
        grams, signatures, keys = self._hashed(texts)
        lefts, rights = (
            np.stack([np.searchsorted(bands[n][0], keys[:, n], side) for n in range(_BANDS)], axis=1)
            for side in ("left", "right")
        )
        found: list[tuple[int, float] | None] = [None] * len(texts)
        for row in np.flatnonzero((rights > lefts).any(axis=1)).tolist():
            spans = [bands[n][1][lefts[row, n] : rights[row, n]] for n in range(_BANDS)]
            candidates = np.unique(np.concatenate(spans))
            agreement = (known[candidates] == signatures[row]).mean(axis=1)
            likely = np.argsort(-agreement, kind="stable")[:3]
            # Four standard deviations of an estimate from 80 hashes below the bound.
            likely = likely[agreement[likely] >= NEAR_TEXT - 0.2]
            own = np.unique(grams[row])
            best = max(((_jaccard(own, self._grams[n]), -n) for n in candidates[likely].tolist()), default=None)
            if best is not None and best[0] >= NEAR_TEXT:
                found[row] = -best[1], best[0]
        return found

    def _hashed(self, texts: Sequence[str]) -> tuple[list[NDArray[np.uint32]], NDArray[np.uint32], NDArray[np.uint64]]:
        """Of each text its 5-grams, hashed; (texts, 80) their MinHash; and (texts, 20) a key of each band."""
        padded = [f" {text} ".ljust(_GRAM) for text in texts]
        letters = np.frombuffer("".join(padded).encode("utf-32-le"), np.uint32).astype(np.uint64)
        lengths = np.array([len(text) for text in padded])
        ends = np.cumsum(lengths)
        windows = len(letters) - _GRAM + 1
        grams = np.zeros(windows, np.uint64)
        for place in range(_GRAM):
            grams = _mixed(grams * np.uint64(31) + letters[place : place + windows])
        # Windows that reach into the next text belong to none.
        inside = np.ones(windows, np.bool_)
        for back in range(1, _GRAM):
            inside[ends[:-1] - back] = False
        grams = grams[inside]
        counts = lengths - _GRAM + 1
        starts = np.cumsum(counts) - counts
        hashes = np.empty((len(texts), len(self._factors)), np.uint64)
        for column, factor in enumerate(self._factors):
            hashes[:, column] = np.minimum.reduceat(grams * factor, starts)
        signatures = (hashes >> np.uint64(32)).astype(np.uint32)
        keys = np.zeros((len(texts), _BANDS), np.uint64)
        for row in range(_ROWS):
            keys = _mixed(keys + hashes[:, row * _BANDS : (row + 1) * _BANDS])
        return np.split((grams >> np.uint64(32)).astype(np.uint32), starts[1:]), signatures, keys


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    numbers = (numbers ^ (numbers >> np.uint64(29))) * _PRIME
    return numbers ^ (numbers >> np.uint64(32))


def _jaccard(one: NDArray[np.uint32], other: NDArray[np.uint32]) -> float:
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common / (len(one) + len(other) - common)
