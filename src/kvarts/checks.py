"""Checks of utterances before any work starts: that the audio is there, that the text can be learnt."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from kvarts.alphabet import encode, foreign_characters, min_ctc_frames
from kvarts.audio import audio_duration_s
from kvarts.errors import AudioError
from kvarts.frames import SAMPLE_RATE, WIN_LENGTH, encoded_frames_of_duration, too_short
from kvarts.manifest import Utterance
from kvarts.progress import progress_bar, run_ahead
from kvarts.text import normalise

# How far a manifest's duration may lie from the file's own. Encoders pad a file by up to some 0.1 s and
# manifests round; what this is to catch (another file, a cut file, a wrong sample rate) is off by far more
# than 2 %.
DURATION_TOLERANCE_S = 0.1
DURATION_TOLERANCE_RATIO = 0.02


@dataclass(frozen=True)
class Problem:
    """Something about an utterance that its user has to change."""

    utterance: Utterance
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.utterance.where}: {self.what}; {self.remedy}"


def check_audio(utterances: Sequence[Utterance]) -> list[Problem]:
    """Utterances whose file is missing or no audio, or is not as long as the manifest says, in manifest
    order.

    Only headers are read, by several threads. A duration may differ by 0.1 s or by 2 % of the file's,
    whichever is more.
    """
    problems: list[Problem] = []
    workers = min(16, 4 * (os.cpu_count() or 1))  # the disk is waited for, not the processor
    with progress_bar("checking audio", len(utterances)) as advance:
        for problem in run_ahead(_audio_problem, utterances, workers=workers, ahead=256):
            advance(1)
            if problem is not None:
                problems.append(problem)
    return problems


def _audio_problem(utterance: Utterance) -> Problem | None:
    try:
        actual_s = audio_duration_s(utterance.audio_path)
    except AudioError as error:
        return Problem(utterance, str(error), "correct audio_filepath or take the line out")
    if round(actual_s * SAMPLE_RATE) < WIN_LENGTH:
        what = f"{utterance.audio_path} has {too_short(actual_s)}"
        return Problem(utterance, what, "correct audio_filepath or take the line out")
    difference_s = abs(actual_s - utterance.duration_s)
    if difference_s > max(DURATION_TOLERANCE_S, DURATION_TOLERANCE_RATIO * actual_s):
        what = f"duration is {utterance.duration_s:g} s but {utterance.audio_path} has {actual_s:.3f} s"
        return Problem(utterance, what, "correct the duration or the file")
    return None


def target_problem(utterance: Utterance, stride: int) -> Problem | None:
    """Why CTC cannot be trained on an utterance, if so; looks at text and duration only.

    Its normalised text is empty, has characters outside the alphabet, or needs more frames than the encoder of this
    `stride` (mel frames for each encoded frame) gives for the manifest's duration: one for every character and one
    more between two equal neighbours.
    """
    text = normalise(utterance.text)
    if not text:
        return Problem(utterance, "text is empty", "write what is said or take the line out")
    foreign = foreign_characters(text)
    if foreign:
        # With their names, for a Latin c in a Russian word looks right.
        named = ", ".join(f"{character} ({unicodedata.name(character, 'unnamed')})" for character in foreign)
        what = f"text has characters outside the alphabet: {named}"
        if any(character.isdigit() for character in foreign):
            return Problem(utterance, what, "write numbers as words, as they are spoken")
        return Problem(utterance, what, "spell it in Russian letters, as it is spoken")
    needed = min_ctc_frames(encode(text))
    available = encoded_frames_of_duration(utterance.duration_s, stride)
    if available < needed:
        what = f"{utterance.duration_s:g} s give {available} encoded frames, the text needs {needed}"
        return Problem(utterance, what, "check that text and audio belong together")
    return None
