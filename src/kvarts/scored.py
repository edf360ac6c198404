"""Utterances with what was recognised in them and what is wrong with it: what every evaluation is made of."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from kvarts.error_counts import ErrorCounts, align_letters, align_words, normalised_errors
from kvarts.errors import ManifestError, listing
from kvarts.manifest import LineError, Utterance, field_of, read_lines
from kvarts.text import normalise

__all__ = ["Scored", "align_letters", "align_words", "predicted_row", "read_predictions", "scored"]

_PLAIN: Final = re.compile("(?:[а-я]+ )*[а-я]+")


@dataclass(frozen=True)
class Scored:
    """One utterance, recognised and scored.

    Attributes:
        fields: the row of the predictions file: the manifest's, with an absolute path and `pred_text`.
        where: to be shown to people: ``path/crowd_pred.jsonl:12``.
        reference, text: what was said and what was recognised, both normalised.
        words, characters: errors of the one against the other.
    """

    fields: dict[str, Any] = field(hash=False, repr=False)
    where: str
    audio_path: Path  # not checked to exist
    duration_s: float
    reference: str
    text: str
    words: ErrorCounts
    characters: ErrorCounts

    @property
    def utterance_id(self) -> str:
        """The manifest's id; the name of the audio file without its ending where it has none."""
        given = self.fields.get("id")
        return self.audio_path.stem if given is None else str(given)

    @property
    def is_exact(self) -> bool:
        """Whether the text is right to the letter."""
        return self.reference == self.text


def predicted_row(utterance: Utterance, text: str) -> dict[str, Any]:
    """The manifest's row with the text that was recognised, to be read from any folder."""
    return {**utterance.fields, "audio_filepath": str(utterance.audio_path.absolute()), "pred_text": text}


def scored(utterances: Sequence[Utterance], texts: Sequence[str]) -> list[Scored]:
    """Scores the texts that were recognised in utterances, in their order."""
    return [_scored(one, predicted_row(one, text)) for one, text in zip(utterances, texts, strict=True)]


def read_predictions(path: Path) -> list[Scored]:
    """The utterances of a ``NAME_pred.jsonl`` that `kvarts evaluate --output` wrote, scored, in its order.

    Raises:
        ManifestError: it cannot be read, is empty, or has lines that are no utterance with a text in `pred_text`; every
            bad line is found, and the first few are listed.
    """
    found: list[Scored] = []
    offenders: list[str] = []
    for line in read_lines(path):
        if line.utterance is None:
            offenders.append(f"{path}:{line.number}: {line.error}")
            continue
        try:
            field_of(line.utterance.fields, "pred_text", str, "a string, as kvarts evaluate --output writes it")
        except LineError as error:
            offenders.append(f"{line.utterance.where}: {error}")
        else:
            found.append(_scored(line.utterance, line.utterance.fields))
    if offenders:
        raise ManifestError(listing(f"{path}: bad lines", offenders))
    return found


def _scored(utterance: Utterance, fields: dict[str, Any]) -> Scored:
    reference, text = _normalised(utterance.text), _normalised(fields["pred_text"])
    words, characters = normalised_errors(reference, text)
    return Scored(
        fields, utterance.where, utterance.audio_path, utterance.duration_s, reference, text, words, characters
    )


def _normalised(text: str) -> str:
    # What the recogniser gives is normalised, and so are most manifests: a look is cheaper than to do it again.
    return text if _PLAIN.fullmatch(text) else normalise(text)
