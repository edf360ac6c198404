"""Every mistake a user can make has a name here.

A message says what is wrong, where (``file:line`` for manifests), and what to do about it. The command line
prints it as one line and exits with code 2; a program can catch `KvartsError` or the name it cares about.
"""

from __future__ import annotations

from collections.abc import Sequence

_LISTED = 10


class KvartsError(Exception):
    """Base of all errors that Kvarts raises on purpose."""


class ManifestError(KvartsError):
    """A manifest is missing, empty, or has a line that is not a valid utterance."""


class AudioError(KvartsError):
    """An audio file is missing, empty, truncated, or not audio."""


class TextError(KvartsError):
    """A text holds characters outside the alphabet, or nothing at all."""


class TrainingDataError(KvartsError):
    """Utterances that cannot be trained on: foreign letters, too short for their text, wrong duration."""


class CheckpointError(KvartsError):
    """A checkpoint is missing, damaged, unsafe, or could not be written."""


class ArchitectureMismatchError(CheckpointError):
    """A checkpoint holds the weights of another network."""


class ModelFolderError(KvartsError):
    """A folder is no exported model, or a file of it is missing or was altered."""


class ExportError(KvartsError):
    """An exported model does not compute what the checkpoint does."""


class LanguageModelError(KvartsError):
    """A language model is missing, empty, damaged or of other letters, or there is no text to make one of."""


class HotwordError(KvartsError):
    """A list of hot words has a line that is no word, or a weight that is none."""


class GrammarError(KvartsError):
    """A grammar has a line that says nothing, a rule that leads to itself, or a slot without words."""


class StreamError(KvartsError):
    """A stream got no samples, samples that are not finite, or anything after its end."""


class CalibrationError(KvartsError):
    """A calibration is missing, damaged or of another decoder, or there is too little to calibrate on."""


class ConfigError(KvartsError):
    """A setting is unknown or has an impossible value."""


class NonFiniteLossError(KvartsError):
    """Training met a loss, gradient or weight that is not a finite number."""


class DownloadError(KvartsError):
    """A download failed: no network, quota used up, or the wrong size or hash."""


class ArchiveError(KvartsError):
    """An archive is damaged, or one of its members would be written outside the target folder."""


class OutputError(KvartsError):
    """A result could not be written: disk full, folder not writable, or a folder where a file should be."""


def listing(what: str, offenders: Sequence[str]) -> str:
    """A message about offenders: one stands alone, of more the number and the first ten, a line each."""
    if len(offenders) == 1:
        return offenders[0]
    more = [f"… and {len(offenders) - _LISTED} more"] if len(offenders) > _LISTED else []
    return "\n".join([f"{what} ({len(offenders)}):", *offenders[:_LISTED], *more])
