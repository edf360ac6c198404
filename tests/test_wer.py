"""Error counts against jiwer, and the metric that sums them over batches and processes."""

from __future__ import annotations

from pathlib import Path

import jiwer
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.model_summary import ModelSummary
from torch import distributed, multiprocessing

from kvarts.error_counts import ErrorCounts, char_errors, word_errors
from kvarts.wer import WER

words = st.lists(st.sampled_from(["а", "б", "да", "нет", "дом"]), max_size=8).map(" ".join)
characters = st.text(alphabet="абв ", max_size=12).map(lambda text: " ".join(text.split()))


def from_jiwer(output: jiwer.WordOutput | jiwer.CharacterOutput) -> tuple[int, int, int, int]:
    return (
        output.substitutions,
        output.deletions,
        output.insertions,
        output.hits + output.substitutions + output.deletions,
    )


def as_tuple(counts: ErrorCounts) -> tuple[int, int, int, int]:
    return counts.substitutions, counts.deletions, counts.insertions, counts.reference_length


@settings(deadline=None, max_examples=300)
@given(reference=words, hypothesis=words)
def test_word_errors_are_jiwers(reference: str, hypothesis: str) -> None:
    counts = word_errors(reference, hypothesis)
    expected = jiwer.process_words(reference, hypothesis)
    assert as_tuple(counts) == from_jiwer(expected)
    assert counts.rate == expected.wer


@settings(deadline=None, max_examples=300)
@given(reference=characters, hypothesis=characters)
def test_character_errors_are_jiwers(reference: str, hypothesis: str) -> None:
    counts = char_errors(reference, hypothesis)
    expected = jiwer.process_characters(reference, hypothesis)
    assert as_tuple(counts) == from_jiwer(expected)
    assert counts.rate == expected.cer


@settings(deadline=None)
@given(st.lists(st.tuples(words.filter(bool), words), min_size=1, max_size=6))
def test_sums_over_utterances_are_jiwers(pairs: list[tuple[str, str]]) -> None:
    total = sum((word_errors(*pair) for pair in pairs), ErrorCounts())
    expected = jiwer.process_words([pair[0] for pair in pairs], [pair[1] for pair in pairs])
    assert as_tuple(total) == from_jiwer(expected)
    assert total.rate == expected.wer


def test_both_sides_are_normalised() -> None:
    assert word_errors("Ёлка — зел+ёная!", "елка зеленая") == ErrorCounts(reference_length=2)
    assert word_errors("салют", "САЛЮТ.").errors == 0


def test_a_character_outside_the_alphabet_counts() -> None:
    assert word_errors("дом 5", "дом") == ErrorCounts(deletions=1, reference_length=2)
    assert word_errors("дом 5", "дом пять") == ErrorCounts(substitutions=1, reference_length=2)
    assert word_errors("c нами", "с нами").errors == 1  # Latin against Cyrillic
    assert char_errors("окno", "окно") == ErrorCounts(substitutions=2, reference_length=4)


def test_rates_without_a_reference() -> None:
    assert word_errors("", "").rate == 0
    assert word_errors("?", "").rate == 0
    assert word_errors("", "два слова").rate == 2


def test_the_metric_adds_up_over_updates() -> None:
    metric = WER()
    metric.update(["один два три четыре"], ["один два три"])
    metric.update(["да", "дом 5"], ["нет", "дом"])
    # 3 errors in 7 words; a mean over batches would be (1/4 + 2/3) / 2, over utterances (1/4 + 1 + 1/2) / 3.
    assert metric.compute().item() == pytest.approx(3 / 7)
    metric.reset()
    metric.update(["да"], ["да нет"])
    assert metric.compute().item() == 1.0


def test_the_metric_without_words_is_zero_and_unequal_lists_are_refused() -> None:
    metric = WER()
    metric.update([""], [""])
    assert metric.compute().item() == 0.0
    with pytest.raises(ValueError, match="zip"):
        metric.update(["да"], [])


class WithMetric(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.wer = WER()


def test_the_metric_is_a_row_of_the_summary_and_nothing_of_a_checkpoint() -> None:
    module = WithMetric()
    summary = ModelSummary(module)
    assert (summary.layer_names, summary.layer_types, summary.param_nums) == (["wer"], ["WER"], [0])
    module.wer.update(["да"], ["нет"])
    assert module.state_dict() == {}


def test_the_metric_counts_whole_numbers_without_limit() -> None:
    metric = WER()
    metric.update(["да"], ["нет"])
    metric.errors += 2**24
    metric.update(["да"], ["нет"])
    assert metric.errors.item() == 2**24 + 2


REFERENCES = ["один два", "три", "четыре пять шесть", "семь 8", "девять"]
HYPOTHESES = ["один", "три три", "четыре пять шесть", "семь", "нет"]


def _evaluate_share(rank: int, folder: str) -> None:
    distributed.init_process_group("gloo", f"file://{folder}/meeting", world_size=2, rank=rank)
    metric = WER()
    # Uneven shares: one utterance for the first process, four for the second.
    share = slice(0, 1) if rank == 0 else slice(1, None)
    metric.update(REFERENCES[share], HYPOTHESES[share])
    torch.save(metric.compute(), Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_give_the_value_of_one(tmp_path: Path) -> None:
    alone = WER()
    alone.update(REFERENCES, HYPOTHESES)
    multiprocessing.spawn(_evaluate_share, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt", weights_only=True).item() == alone.compute().item()
