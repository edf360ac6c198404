"""From manifest to batch: who comes when, what is padded, what is drawn at random, and where a run goes on."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Sampler

from kvarts.alphabet import decode
from kvarts.audio import read_audio
from kvarts.datamodule import SpeechData
from kvarts.dataset import (
    Batch,
    BucketSampler,
    Draw,
    Example,
    Features,
    ShareSampler,
    SpeechDataset,
    collate,
    random_places,
)
from kvarts.errors import AudioError, ConfigError
from kvarts.feature_cache import FeatureCache
from kvarts.features import log_mel
from kvarts.frames import mel_frames, samples_of_duration
from kvarts.manifest import Utterance, read_manifest, write_manifest
from kvarts.specaugment import SpecAugment

SAMPLE = Path(__file__).resolve().parents[1] / "sample"


def epoch_of(sampler: BucketSampler) -> list[list[Draw]]:
    """A whole epoch, trained through to its end."""
    batches = list(sampler)
    for _ in batches:
        sampler.batch_done()
    return batches


def drawn(batches: Iterable[list[Draw]]) -> Counter[int]:
    return Counter(index for batch in batches for _, index in batch)


@st.composite
def jobs(draw: st.DrawFn) -> dict[str, Any]:
    """Data and settings of a job on one or several ranks."""
    world_size = draw(st.integers(1, 4))
    lengths = st.floats(0.1, 30, allow_nan=False)
    return {
        "durations_s": draw(st.lists(lengths, min_size=world_size, max_size=60)),
        "batch_size": draw(st.integers(1, 7)),
        "shuffle": draw(st.booleans()),
        "bucketing": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**32 - 1)),
        "world_size": world_size,
    }


# --------------------------------------------------------------------------------------------- order in training


@given(job=jobs())
@settings(deadline=None, max_examples=150)
def test_every_utterance_comes_once_an_epoch_on_one_of_the_ranks(job: dict[str, Any]) -> None:
    ranks = [BucketSampler(**job, rank=rank) for rank in range(job["world_size"])]
    for epoch in range(3):
        shares = [epoch_of(sampler) for sampler in ranks]
        assert sum((drawn(share) for share in shares), Counter()) == Counter(range(len(job["durations_s"])))
        assert {epoch_drawn for share in shares for batch in share for epoch_drawn, _ in batch} == {epoch}
        # A rank without a batch would leave the others waiting for it.
        assert {len(share) for share in shares} == {len(ranks[0])}
        assert all(1 <= len(batch) <= job["batch_size"] + 1 for share in shares for batch in share)


@given(job=jobs(), data=st.data())
@settings(deadline=None, max_examples=150)
def test_a_run_goes_on_where_it_stopped(job: dict[str, Any], data: st.DataObject) -> None:
    whole = BucketSampler(**job)
    wanted = [batch for _ in range(3) for batch in epoch_of(whole)]
    stop = data.draw(st.integers(0, len(wanted) - 1))
    stopped = BucketSampler(**job)
    done: list[list[Draw]] = []
    while len(done) < stop:
        for batch in itertools.islice(iter(stopped), stop - len(done)):
            done.append(batch)
            stopped.batch_done()
    resumed = BucketSampler(**job)
    resumed.load_state_dict(stopped.state_dict())
    while len(done) < len(wanted):
        done += epoch_of(resumed)
    assert done == wanted


def test_reading_ahead_does_not_move_the_place() -> None:
    sampler = BucketSampler([1.0] * 12, batch_size=2, seed=3)
    ahead = iter(sampler)
    batches = [next(ahead) for _ in range(4)]
    sampler.batch_done()
    resumed = BucketSampler([1.0] * 12, batch_size=2, seed=3)
    resumed.load_state_dict(sampler.state_dict())
    assert next(iter(resumed)) == batches[1]


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    durations_s = [1 + 0.01 * number for number in range(100)]

    def epochs(seed: int) -> list[list[list[Draw]]]:
        sampler = BucketSampler(durations_s, batch_size=4, seed=seed)
        return [epoch_of(sampler) for _ in range(3)]

    first = epochs(seed=1)
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    assert epochs(seed=1) == first
    assert epochs(seed=2) != first

    def companies(batches: list[list[Draw]]) -> set[frozenset[int]]:
        return {frozenset(index for _, index in batch) for batch in batches}

    for one, other in itertools.combinations(first, 2):
        assert not companies(one) & companies(other), "the same utterances meet in every epoch"
        assert [[i for _, i in batch] for batch in one] != [[i for _, i in batch] for batch in other]


def test_more_ranks_train_on_the_same_joint_batches() -> None:
    durations_s = [1 + number % 7 for number in range(45)]
    alone = epoch_of(BucketSampler(durations_s, batch_size=6, seed=1))
    ranks = [epoch_of(BucketSampler(durations_s, batch_size=2, seed=1, rank=r, world_size=3)) for r in range(3)]
    joint = [sorted(draw for share in shares for draw in share) for shares in zip(*ranks, strict=True)]
    assert joint == [sorted(batch) for batch in alone]


def test_without_shuffling_and_bucketing_the_manifest_is_cut_into_batches() -> None:
    sampler = BucketSampler([3, 1, 2, 5, 4], batch_size=2, shuffle=False, bucketing=False)
    for epoch in range(2):
        assert epoch_of(sampler) == [[(epoch, 0), (epoch, 1)], [(epoch, 2), (epoch, 3)], [(epoch, 4)]]


def padding_share(batches: Iterable[list[Draw]], durations_s: list[float]) -> float:
    frames = [mel_frames(samples_of_duration(duration_s)) for duration_s in durations_s]
    rows = [[frames[index] for _, index in batch] for batch in batches]
    return 1 - sum(map(sum, rows)) / sum(max(row) * len(row) for row in rows)


@pytest.fixture(scope="module")
def sample_durations_s() -> list[float]:
    return [utterance.duration_s for utterance in read_manifest(SAMPLE / "train_opus" / "manifest.jsonl")]


def test_bucketing_leaves_little_padding(sample_durations_s: list[float]) -> None:
    draw = random.Random(0)
    many = [draw.choice(sample_durations_s) * draw.uniform(0.9, 1.1) for _ in range(2000)]
    for durations_s, batch_size in (
        *((sample_durations_s, 4), (sample_durations_s, 8)),
        *((many, 4), (many, 16), (many, 32), (many, 64)),
    ):
        sampler = BucketSampler(durations_s, batch_size, seed=1)
        assert all(padding_share(epoch_of(sampler), durations_s) <= 0.05 for _ in range(5))
        at_random = BucketSampler(durations_s, batch_size, bucketing=False, seed=1)
        assert padding_share(at_random, durations_s) > 0.1
    assert padding_share(ShareSampler(sample_durations_s, 4), sample_durations_s) <= 0.05


def test_of_few_utterances_in_large_batches_little_more_is_padding_than_must_be(
    sample_durations_s: list[float],
) -> None:
    """Of 90 utterances of 4 to 10 s in six batches, sorting leaves 5.9 %: less cannot be had in batches of 16."""
    by_length = sorted(range(90), key=lambda i: sample_durations_s[i])
    least = padding_share([[(0, i) for i in by_length[k : k + 16]] for k in range(0, 90, 16)], sample_durations_s)
    assert 0.055 < least < 0.06
    sampler = BucketSampler(sample_durations_s, 16, seed=1)
    assert all(padding_share(epoch_of(sampler), sample_durations_s) <= least + 0.015 for _ in range(20))


@pytest.mark.parametrize(
    ("settings_now", "words"),
    [({"batch_size": 0}, "batch_size is 0"), ({"world_size": 4}, "3 utterances cannot be shared by 4 processes")],
)
def test_what_cannot_be_shared_out(settings_now: dict[str, int], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        BucketSampler([1, 2, 3], **{"batch_size": 2, **settings_now})


def test_a_place_in_other_data_is_refused() -> None:
    place = BucketSampler([1.0] * 10, batch_size=2).state_dict()
    for other in (BucketSampler([1.0] * 12, batch_size=2), BucketSampler([1.0] * 10, batch_size=5)):
        with pytest.raises(ConfigError, match="had 5 batches an epoch"):
            other.load_state_dict(place)


def test_loaders_made_anew_and_resumed_ones_go_on(utterances: list[Utterance]) -> None:
    manifest = str(utterances[0].manifest)

    def data() -> SpeechData:
        paths = {"train_manifest": manifest, "val_manifest": manifest, "test_manifests": {}}
        made = SpeechData(utterances[0].manifest.parent, 4, seed=1, batch_size=2, on_bad="skip", **paths)
        made.prepare()
        return made

    def lines(made: SpeechData, batches: int = 2) -> list[list[int]]:
        """Draws batches, two of which are an epoch, from a new loader and trains on them."""
        found = []
        for batch in itertools.islice(made.train_dataloader(), batches):
            found.append([utterance.line for utterance in batch.utterances])
            made.batch_done()
        return found

    whole = data()
    epochs = [lines(whole) for _ in range(6)]
    assert all(sorted(itertools.chain(*epoch)) == [2, 5, 6, 7] for epoch in epochs)
    assert len({str(epoch) for epoch in epochs}) > 1, "the same order in every epoch"
    stopped = data()
    found = lines(stopped, 2) + lines(stopped, 1)
    resumed = data()
    resumed.load_state_dict(stopped.state_dict())
    found += lines(resumed, 1) + lines(resumed, 2) + lines(resumed, 2)
    assert found == list(itertools.chain(*epochs[:4]))


# ------------------------------------------------------------------------------------------- order in evaluation


@given(
    durations_s=st.lists(st.floats(0.1, 30), min_size=4, max_size=60),
    batch_size=st.integers(1, 9),
    world_size=st.integers(1, 4),
)
@settings(deadline=None, max_examples=100)
def test_evaluation_counts_every_utterance_once(durations_s: list[float], batch_size: int, world_size: int) -> None:
    ranks = [ShareSampler(durations_s, batch_size, rank, world_size) for rank in range(world_size)]
    shares = [list(sampler) for sampler in ranks]
    assert sum((drawn(share) for share in shares), Counter()) == Counter(range(len(durations_s)))
    assert [len(sampler) for sampler in ranks] == [len(share) for share in shares]
    assert all(1 <= len(batch) <= batch_size for share in shares for batch in share)
    assert [list(sampler) for sampler in ranks] == shares, "the same every time"


def test_evaluation_cannot_be_shared_by_more_processes_than_utterances() -> None:
    with pytest.raises(ConfigError, match="2 utterances cannot be shared by 3 processes"):
        ShareSampler([1, 2], 4, rank=0, world_size=3)


# ------------------------------------------------------------------------------------------------------- subsets


def utterances_of(durations_s: Iterable[float]) -> list[Utterance]:
    path = Path("manifest.jsonl")
    return [
        Utterance(Path(f"{number}.wav"), "да", duration_s, str(number), path, number, {})
        for number, duration_s in enumerate(durations_s, start=1)
    ]


@given(durations_s=st.lists(st.floats(0.5, 20), min_size=1, max_size=50), wanted_s=st.floats(0.1, 400))
@settings(deadline=None)
def test_random_places_are_as_many_as_asked(durations_s: list[float], wanted_s: float) -> None:
    chosen = random_places(durations_s, wanted_s, seed=1)
    assert chosen == sorted(set(chosen))
    total_s = sum(durations_s[place] for place in chosen)
    if len(chosen) < len(durations_s):
        assert wanted_s <= total_s + 1e-9
    assert total_s - max(durations_s) < wanted_s + 1e-9
    assert random_places(durations_s, wanted_s, seed=1) == chosen


def test_random_places_are_drawn_from_the_whole_manifest_by_seed() -> None:
    subsets = [set(random_places([1.0] * 100, 10, seed)) for seed in range(60)]
    assert all(len(subset) == 10 for subset in subsets)
    assert len(set(map(frozenset, subsets))) == 60
    assert set.union(*subsets) == set(range(100)), "some utterances are never drawn"


# -------------------------------------------------------------------------------------------------------- batches


@pytest.fixture(scope="module")
def utterances(tmp_path_factory: pytest.TempPathFactory) -> list[Utterance]:
    """Noise of 1 sample to 0.7 s."""
    folder = tmp_path_factory.mktemp("noise")
    draw = np.random.default_rng(0)
    rows = []
    for number, samples in enumerate((1, 11_200, 159, 160, 4800, 8000, 6401)):
        noise = 0.1 * draw.standard_normal(samples)
        soundfile.write(folder / f"{number}.wav", noise.astype(np.float32), 16_000, subtype="FLOAT")
        rows.append({"audio_filepath": f"{number}.wav", "text": "да нет"[: number % 7], "duration": samples / 16_000})
    write_manifest(folder / "manifest.jsonl", rows)
    return read_manifest(folder / "manifest.jsonl")


def test_an_example_is_the_features_of_the_file_and_the_letters_of_the_text(utterances: list[Utterance]) -> None:
    dataset = SpeechDataset(utterances)
    assert len(dataset) == 7
    for index, utterance in enumerate(utterances):
        example = dataset[5, index]
        assert torch.equal(example.features, torch.from_numpy(log_mel(read_audio(utterance.audio_path))))
        assert example.features.shape == (mel_frames(samples_of_duration(utterance.duration_s)), 64)
        assert example.features.dtype == torch.float32
        assert decode(example.targets.tolist()) == utterance.text.strip()
        assert example.targets.dtype == torch.int64
        assert example.utterance is utterance


def test_foreign_letters_are_left_out_of_targets_and_stay_in_texts(utterances: list[Utterance]) -> None:
    spoken = Utterance(utterances[1].audio_path, "Ёлка №5, salut", 0.7, "x", Path("m.jsonl"), 1, {})
    example = SpeechDataset([spoken])[0, 0]
    assert decode(example.targets.tolist()).split() == ["елка"]
    assert collate([example]).texts == ["Ёлка №5, salut"]


def test_a_batch_is_padded_with_zeros_to_its_longest(utterances: list[Utterance]) -> None:
    dataset = SpeechDataset(utterances)
    examples = [dataset[0, index] for index in (4, 0, 1)]
    batch = collate(examples)
    assert batch.features.shape == (3, 71, 64)
    assert batch.feature_lengths.tolist() == [31, 1, 71]
    for row, example in zip(batch.features, examples, strict=True):
        assert torch.equal(row[: len(example.features)], example.features)
        assert not row[len(example.features) :].any()
    assert batch.target_lengths.tolist() == [4, 0, 1]
    assert torch.equal(batch.targets, torch.cat([example.targets for example in examples]))
    assert batch.texts == [utterances[index].text for index in (4, 0, 1)]
    manifest = utterances[0].manifest
    assert batch.where() == f"{manifest}:5, {manifest}:1, {manifest}:2"
    assert batch.where(torch.tensor([False, True, False])) == f"{manifest}:1"
    assert batch.to("cpu").utterances == batch.utterances
    meta = batch.to("meta")
    assert {t.device.type for t in (meta.features, meta.feature_lengths, meta.targets, meta.target_lengths)} == {"meta"}


def test_a_bad_file_is_named_by_its_line(tmp_path: Path) -> None:
    row = {"audio_filepath": "none.wav", "text": "да", "duration": 0.1}
    write_manifest(tmp_path / "manifest.jsonl", [row])
    for cache in (None, FeatureCache(tmp_path / "cache", 2**20)):
        with pytest.raises(AudioError) as caught:
            SpeechDataset(read_manifest(tmp_path / "manifest.jsonl"), cache=cache)[1, 0]
        assert str(caught.value).startswith(f"{tmp_path / 'manifest.jsonl'}:1: {tmp_path / 'none.wav'} does not exist")


# -------------------------------------------------------------------------------------------------- augmentation


class Order(Sampler[list[Draw]]):
    def __init__(self, batches: list[list[Draw]]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[list[Draw]]:
        return iter(self._batches)


def augmented(
    utterances: list[Utterance],
    batches: list[list[Draw]],
    *,
    workers: int = 0,
    cache: FeatureCache | None = None,
    seed: int = 1,
) -> dict[Draw, torch.Tensor]:
    """Features of every draw, as they come out of a loader."""
    dataset = SpeechDataset(utterances, SpecAugment(time_fraction=0.5), seed, cache)
    loader: DataLoader[Example] = DataLoader(
        dataset, batch_sampler=Order(batches), collate_fn=collate, num_workers=workers
    )
    found = {}
    for draws, batch in zip(batches, loader, strict=True):
        assert isinstance(batch, Batch)
        for draw, features, length in zip(draws, batch.features, batch.feature_lengths, strict=True):
            found[draw] = features[:length]
    return found


def same(one: dict[Draw, torch.Tensor], other: dict[Draw, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[draw], other[draw]) for draw in one)


def test_augmentation_depends_on_seed_epoch_and_utterance_alone(utterances: list[Utterance], tmp_path: Path) -> None:
    draws = [(epoch, index) for epoch in range(2) for index in range(7)]
    alone = augmented(utterances, [[draw] for draw in draws])
    in_batches = [draws[start : start + 4] for start in range(0, 14, 4)]
    assert same(alone, augmented(utterances, in_batches))
    assert same(alone, augmented(utterances, in_batches[::-1]))
    for folder in ("cold", "cold and workers"):
        for workers in (0, 2) if folder == "cold" else (2, 0):
            cache = FeatureCache(tmp_path / folder, 2**20)
            assert same(alone, augmented(utterances, in_batches, workers=workers, cache=cache))
    assert not same(alone, augmented(utterances, in_batches, seed=2))
    plain = SpeechDataset(utterances)
    for index in (1, 4, 5, 6):
        assert not torch.equal(alone[0, index], alone[1, index]), "the same masks in every epoch"
        assert not torch.equal(alone[0, index], plain[0, index].features)


def test_different_utterances_get_different_masks(utterances: list[Utterance]) -> None:
    twins = [utterances[1], utterances[1]]
    found = augmented(twins, [[(0, 0), (0, 1)]])
    assert not torch.equal(found[0, 0], found[0, 1])


@given(
    masks=st.integers(0, 3),
    width=st.integers(0, 80),
    fraction=st.floats(0, 1),
    frames=st.integers(1, 200),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None, max_examples=200)
def test_masks_are_no_wider_than_asked_and_leave_the_rest(
    masks: int, width: int, fraction: float, frames: int, seed: int
) -> None:
    # Of zeros and ones alone, so that no feature happens to be their mean, which masks are made of.
    features = np.random.default_rng(seed).integers(0, 2, (frames, 64)).astype(np.float32)
    features[0, :2] = 0, 1
    before = features.copy()
    for mask in (
        SpecAugment(masks, width, 0),
        SpecAugment(0, 0, masks, width, fraction),
        SpecAugment(masks, width, masks, width, fraction),
    ):
        masked = mask(features, np.random.default_rng(seed))
        assert (features == before).all(), "the cache would be masked too"
        assert (masked.shape, masked.dtype) == (features.shape, np.float32)
        assert np.isfinite(masked).all()
        changed = masked != features
        assert (masked[changed] == features.mean()).all()
        if not mask.time_masks:
            assert (changed == changed[0]).all(), "part of a band"
            assert changed[0].sum() <= masks * width
        if not mask.freq_masks:
            assert (changed == changed[:, :1]).all(), "part of a stretch"
            assert changed[:, 0].sum() <= masks * min(width, fraction * frames)


def test_masks_reach_every_width_and_every_edge() -> None:
    features: Features = np.random.default_rng(0).standard_normal((100, 64)).astype(np.float32)
    bands, stretches = Counter[int](), Counter[int]()
    edges = np.zeros(4, bool)
    for seed in range(1000):
        draw = np.random.default_rng(seed)
        changed = SpecAugment(1, 6, 0)(features, draw) != features
        bands[int(changed[0].sum())] += 1
        edges[:2] |= changed[0, [0, -1]]
        changed = SpecAugment(0, 0, 1, time_width=50, time_fraction=0.08)(features, draw) != features
        stretches[int(changed[:, 0].sum())] += 1
        edges[2:] |= changed[[0, -1], 0]
    assert set(bands) == set(range(7))
    assert set(stretches) == set(range(9))
    assert edges.all()


def test_the_shortest_utterance_survives() -> None:
    one = np.full((1, 64), -20.7, np.float32)
    for seed in range(50):
        assert np.isfinite(SpecAugment()(one, np.random.default_rng(seed))).all()


@pytest.mark.parametrize(
    "wrong",
    [{"freq_masks": -1}, {"freq_width": 1.5}, {"time_width": "x"}, {"time_fraction": 1.1}, {"time_fraction": "x"}],
)
def test_impossible_masks_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"augment.features.{next(iter(wrong))}="):
        SpecAugment(**wrong)
