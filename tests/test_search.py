"""The beam search against all ways through the sound, one by one; in C and in Python."""

import itertools
import logging
import math
import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kvarts import search
from kvarts.alphabet import ALPHABET, BLANK_ID, encode
from kvarts.arpa import read_arpa
from kvarts.decoding import greedy_words
from kvarts.errors import ConfigError
from kvarts.hotwords import hotwords
from kvarts.ngram import train
from kvarts.search import (
    BeamSearch,
    Hypothesis,
    Weights,
    align,
    align_words,
    label_prior,
    softened,
    word_posteriors,
)
from test_hotwords import counted
from test_spelling import log_spelling

HAS_C = search._library() is not None
needs_c = pytest.mark.skipif(not HAS_C, reason="no C compiler")
ways = pytest.mark.parametrize("is_compiled", [False, pytest.param(True, marks=needs_c)])
USED = [0, *encode("аб"), BLANK_ID]  # space, two letters and the blank
NEVER = -1e4


def sound(draw, frames, labels=USED, sharpness=2.0):
    """Log-probabilities (frames, 34) of a few labels only."""
    scores = np.full((frames, 34), NEVER)
    scores[:, labels] = draw.normal(size=(frames, len(labels))) * sharpness
    return (scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)).astype(np.float32)


def text_of(labels):
    merged = [label for label, _ in itertools.groupby(labels)]
    return " ".join("".join(ALPHABET[label] for label in merged if label != BLANK_ID).split())


def all_texts(log_probs):
    """Log-probability of every text, over all ways that give it."""
    found = {}
    for labels in itertools.product(USED, repeat=len(log_probs)):
        score = float(sum(log_probs[frame, label] for frame, label in enumerate(labels)))
        text = text_of(labels)
        found[text] = np.logaddexp(found.get(text, -np.inf), score)
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("lm") / "lm.arpa"
    sentences = [["а", "б"], ["а", "аб", "а"], ["б", "а", "а", "б"], ["аб"]]
    path.write_text("".join(train(sentences, 3).arpa()), encoding="utf-8")
    return read_arpa(path)


# Of the blank a half.
PRIOR = (*np.log(np.linspace(1, 3, 33) / 132).tolist(), math.log(0.5))
WIDE = {"beam": 10_000, "width": 1e9, "least_log_prob": NEVER / 2}


@ways
@pytest.mark.parametrize("frames", [0, 1, 2, 5])
@pytest.mark.parametrize(
    "kind",
    [
        *("nothing", "hot words", "vocabulary", "closed"),
        *("model", "model and hot words", "model and vocabulary", "closed model"),
    ],
)
def test_a_beam_that_drops_nothing_finds_what_all_ways_together_give(model, is_compiled, frames, kind):
    draw = np.random.default_rng(frames)
    log_probs = sound(draw, frames)
    hot = {"а б": 2.0, "аб*": 1.0} if "hot" in kind else {}
    language_model = model if "model" in kind else None
    is_closed = "closed" in kind
    known = {"б", "аба"} if "vocabulary" in kind or kind == "closed" else set()
    expected = {}
    lm_weight, word_bonus, unknown_penalty, spelling_weight = 0.7, 0.4, -1.0, 0.3
    decoder = BeamSearch(
        language_model=language_model,
        hotwords=hotwords(hot) if hot else None,
        vocabulary=sorted(known),
        is_closed=is_closed,
        weights=Weights(lm_weight, word_bonus, unknown_penalty, spelling_weight),
        is_compiled=is_compiled,
        **WIDE,
    )
    if language_model is not None:
        known |= {*language_model.words[3:]} | ({"а", "б"} if hot else set())
    for text, score in all_texts(log_probs).items():
        words = text.split()
        unknown = [word for word in words if word not in known] if known else []
        if is_closed and unknown:
            continue
        extra = len(unknown) * unknown_penalty + counted(text, hot)
        extra += spelling_weight * sum(log_spelling(known, word) for word in unknown)
        if language_model is not None:
            extra += lm_weight * language_model.sentence(words) + word_bonus * len(words)
        expected[text] = (score, extra)
    best = sorted(expected, key=lambda text: -sum(expected[text]))
    found = decoder.hypotheses(log_probs, 60)
    assert [path.text for path in found] == best[:60]
    for path in found:
        assert (path.sound, path.words) == pytest.approx(expected[path.text], abs=1e-4)


@given(st.integers(0, 2**32 - 1), st.integers(0, 5), st.floats(0.1, 20), st.floats(0, 3))
def test_softened_is_the_formula(seed, frames, temperature, prior_weight):
    log_probs = sound(np.random.default_rng(seed), frames, range(34), 8.0)
    found = softened(log_probs, Weights(temperature=temperature, prior_weight=prior_weight, label_prior=PRIOR))
    shares = np.exp(log_probs.astype(np.longdouble) / temperature) / np.exp(np.longdouble(PRIOR)) ** prior_weight
    np.testing.assert_allclose(found, np.log(shares / shares.sum(axis=1, keepdims=True)), rtol=1e-5, atol=1e-5)
    assert (found.dtype, found.shape) == (np.float32, (frames, 34))


def test_by_default_nothing_is_softened():
    log_probs = sound(np.random.default_rng(3), 4)
    assert softened(log_probs, Weights(label_prior=PRIOR)) is log_probs


@ways
def test_the_search_goes_by_what_is_softened_and_the_alignment_by_what_was_heard(model, is_compiled):
    log_probs = sound(np.random.default_rng(7), 9)
    weights = Weights(temperature=2.5, prior_weight=0.5, label_prior=PRIOR)
    made = {"language_model": model, "is_compiled": is_compiled}
    soft = BeamSearch(**made, weights=weights)
    plain = BeamSearch(**made)
    assert soft.hypotheses(log_probs, 9) == plain.hypotheses(softened(log_probs, weights), 9)
    assert soft.hypotheses(log_probs, 9) != plain.hypotheses(log_probs, 9)
    words = soft(log_probs)
    assert words == align_words(log_probs, soft.hypotheses(log_probs, 1)[0].labels)
    assert [word.text for word in soft.with_posteriors(log_probs)] == [word.text for word in words]


@ways
def test_what_is_softened_weighs_against_hot_words_as_before(is_compiled):
    """Half the sound and half the bonus: without a language model nothing changes, but that sums are softer."""
    draw = np.random.default_rng(5)
    wide = {**WIDE, "least_log_prob": NEVER / 10}  # above what NEVER is when softened
    for _ in range(20):
        log_probs = sound(draw, 5, sharpness=60.0)  # one way to a text makes up all its probability
        made = {"hotwords": hotwords({"аб": 40.0, "б": 11.0}), "is_compiled": is_compiled}
        hard, soft = BeamSearch(**made, **wide), BeamSearch(**made, **wide, weights=Weights(temperature=4.0))
        for other in (soft, hard.weighing(Weights(temperature=4.0))):
            found = other.hypotheses(log_probs, 1)[0]
            assert found.text == hard.hypotheses(log_probs, 1)[0].text
            assert found.words == pytest.approx(hard.hypotheses(log_probs, 1)[0].words / 4)
    again = soft.weighing(Weights(temperature=4.0)).weighing(Weights()).hypotheses(log_probs, 1)
    assert again == hard.hypotheses(log_probs, 1)


def test_the_label_prior_is_the_mean_over_all_frames():
    even, sure = np.full((3, 34), -np.log(34), np.float32), np.full((1, 34), -200, np.float32)
    sure[0, 5] = 0
    prior = label_prior([even, sure, even[:0]])
    expected = np.full(34, 3 / 4 / 34)
    expected[5] += 1 / 4
    np.testing.assert_allclose(prior, np.log(expected), atol=1e-4)
    assert label_prior([even[:0]]) == (-13.8155,) * 34  # nothing was heard
    never = label_prior([sure])  # of what never comes, not -inf
    Weights(prior_weight=1, label_prior=never).check()
    assert (never[5], set(never[:5])) == (0, {-13.8155})


@needs_c
@settings(max_examples=150, deadline=None)
@example(14, 14, 30, 2.0, -5.0, False, True, True)  # a word likelier in its place than by itself
@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 14),
    st.sampled_from([1, 2, 5, 30]),
    st.sampled_from([2.0, 8.0, 100.0]),
    st.sampled_from([-2.0, -5.0, -math.inf]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_c_and_python_find_the_same(model, seed, frames, beam, width, least, is_closed, with_model, with_hot):
    draw = np.random.default_rng(seed)
    log_probs = sound(draw, frames, [*USED, 7, 20], draw.choice([0.5, 2, 5]))
    options = {
        "language_model": model if with_model else None,
        "vocabulary": ["аб", "бб", ALPHABET[7] + "а"],
        "hotwords": hotwords({"аб": 2.0, "б а": 3.0, ALPHABET[7] + "*": 1.5}) if with_hot else None,
        "is_closed": is_closed,
        "beam": beam,
        "width": width,
        "least_log_prob": least,
    }
    in_c = BeamSearch(**options, is_compiled=True).hypotheses(log_probs, 5)
    in_python = BeamSearch(**options, is_compiled=False).hypotheses(log_probs, 5)
    assert [path.labels for path in in_c] == [path.labels for path in in_python]
    for one, other in zip(in_c, in_python, strict=True):
        assert (one.sound, one.words) == pytest.approx((other.sound, other.words), abs=1e-4)


@ways
def test_an_unfinished_word_of_a_closed_vocabulary_is_left_out(is_compiled):
    log_probs = np.full((5, 34), -20.0, np.float32)
    log_probs[np.arange(5), encode("а баб"[:5])] = 0.0
    closed = BeamSearch(vocabulary=["а", "бабб"], is_closed=True, is_compiled=is_compiled, width=15.0)
    assert [word.text for word in closed(log_probs)] == ["а"]


@ways
def test_a_hot_word_is_found_and_others_are_let_be(is_compiled):
    """«кварц» where the network hears «карц» a little better; «свет» stays."""
    log_probs = np.full((12, 34), -12.0, np.float32)
    for frame, label in enumerate(encode("к-варц свет".replace("-", ""))):
        log_probs[frame, label] = -0.1
    log_probs[1, [BLANK_ID, encode("в")[0]]] = [-0.4, -2.4]
    log_probs[10:, BLANK_ID] = -0.01
    plain = BeamSearch(is_compiled=is_compiled)
    hot = BeamSearch(hotwords=hotwords({"кварц": 4.0, "совет": 4.0}), is_compiled=is_compiled)
    assert " ".join(word.text for word in plain(log_probs)) == "карц свет"
    assert " ".join(word.text for word in hot(log_probs)) == "кварц свет"


# --- Alignment --------------------------------------------------------------------------------------------------------


def best_way(log_probs, text):
    """The best score of all ways that give a text."""
    options = [labels for labels in itertools.product(USED, repeat=len(log_probs)) if text_of(labels) == text]
    return max((sum(log_probs[frame, label] for frame, label in enumerate(labels)) for labels in options), default=None)


@ways
@pytest.mark.parametrize("text", ["", "а", "аа", "аб", "а б", "а а", "б б а"])
@pytest.mark.parametrize("frames", [0, 1, 3, 6])
def test_an_alignment_is_the_best_of_all_ways_that_give_the_text(is_compiled, text, frames):
    log_probs = sound(np.random.default_rng(len(text) + frames), frames)
    labels = np.array(encode(text), np.int32)
    found = align(log_probs, labels, search._library() if is_compiled else None)
    expected = best_way(log_probs, text)
    if expected is None:
        assert found is None
        return
    score, free = 0.0, np.maximum(log_probs[:, BLANK_ID], NEVER)
    inside = np.full(frames, -1)
    for label, start, stop in zip(labels, *found, strict=True):
        assert start < stop
        inside[start:stop] = label
    letters_seen = 0
    for frame in range(frames):
        if inside[frame] >= 0:
            score += log_probs[frame, inside[frame]]
            letters_seen = int((found[0] <= frame).sum())
        else:
            outside = letters_seen in (0, len(labels)) or labels[letters_seen - 1] == 0
            score += max(free[frame], log_probs[frame, 0]) if outside else free[frame]
    assert score == pytest.approx(expected, abs=1e-4)
    assert list(found[0][1:]) >= list(found[1][:-1])


@ways
def test_words_of_the_greedy_text_have_their_greedy_frames(is_compiled):
    draw = np.random.default_rng(3)
    for frames in (0, 1, 2, 40):
        log_probs = sound(draw, frames, range(34))
        words = greedy_words(log_probs)
        labels = encode(" ".join(word.text for word in words))
        assert align_words(log_probs, labels, search._library() if is_compiled else None) == words


def test_too_few_frames_for_a_text():
    with pytest.raises(ValueError, match="1 frames are too few for 2 labels"):
        align_words(np.zeros((1, 34), np.float32), encode("аб"))


# --- Threads, settings ------------------------------------------------------------------------------------------------


@ways
def test_one_decoder_in_several_threads(model, is_compiled):
    draw = np.random.default_rng(1)
    sounds = [sound(draw, 20, [*USED, 7]) for _ in range(8)]
    decoder = BeamSearch(language_model=model, hotwords=hotwords(["аб"]), is_compiled=is_compiled)
    alone = [decoder(log_probs) for log_probs in sounds]
    together = [None] * len(sounds)

    def work(number):
        together[number] = decoder(sounds[number])

    threads = [threading.Thread(target=work, args=[number]) for number in range(len(sounds))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"beam": 0}, "beam 0: must be from 1"),
        ({"width": 0.0}, "width 0.0: must be above 0"),
        ({"width": math.nan}, "width nan"),
        ({"weights": Weights(lm_weight=-1.0)}, "weight of the language model -1.0"),
        ({"weights": Weights(word_bonus=math.inf)}, "word bonus inf"),
        ({"weights": Weights(unknown_penalty=3.0)}, "penalty of unknown words 3.0"),
        ({"weights": Weights(spelling_weight=math.nan)}, "weight of the spelling nan"),
        ({"weights": Weights(temperature=0.0)}, "temperature 0.0: must be from 0.1"),
        ({"weights": Weights(temperature=math.nan)}, "temperature nan"),
        ({"weights": Weights(prior_weight=-0.1, label_prior=PRIOR)}, "weight of the label prior -0.1"),
        ({"weights": Weights(prior_weight=0.1)}, "label prior 0.1: no prior is known; run kvarts lm tune"),
        ({"weights": Weights(label_prior=PRIOR[1:])}, "the label prior must be 34 log-probabilities"),
        ({"weights": Weights(label_prior=(math.nan, *PRIOR[1:]))}, "the label prior must be 34"),
        ({"weights": Weights(label_prior=(0.1, *PRIOR[1:]))}, "the label prior must be 34"),
        ({"is_closed": True}, "a closed vocabulary needs words"),
    ],
)
def test_impossible_settings(options, expected):
    with pytest.raises(ConfigError, match=expected):
        BeamSearch(**options)


def test_log_probs_of_another_shape():
    for shape in [(3, 33), (34,), (1, 3, 34)]:
        with pytest.raises(ValueError, match="log_probs must be"):
            BeamSearch()(np.zeros(shape, np.float32))


def test_without_a_compiler_python_does_it_and_says_so(monkeypatch, caplog):
    monkeypatch.setenv("CC", "no-such-compiler")
    search._library.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            decoder = BeamSearch()
        assert "beam search in Python, some hundred times slower (no C compiler" in caplog.text
        assert [word.text for word in decoder(sound(np.random.default_rng(0), 9, sharpness=6.0))]
        with pytest.raises(ConfigError, match="install a C compiler"):
            BeamSearch(is_compiled=True)
    finally:
        monkeypatch.undo()
        search._library.cache_clear()


def test_labels_are_where_the_c_file_has_them():
    assert (ALPHABET.index(" "), BLANK_ID) == (0, 33)


def test_a_description_says_what_words_depend_on(model):
    options = {"language_model": model, "hotwords": hotwords(["аб"])}
    assert BeamSearch(**options).description == BeamSearch(**options).description
    others = [{}, {"beam": 7}, {"is_closed": True}, {"width": 7.0}, {"least_log_prob": -7.0}]
    others += [{"hotwords": hotwords(["ба"])}, {"hotwords": hotwords({"аб": 1.0})}, {"vocabulary": ["ббб"]}]
    others += [{"language_model": replace(model, log_probability=model.log_probability - 1)}]
    changed = [Weights(0.9), Weights(word_bonus=0.2), Weights(unknown_penalty=-1.0), Weights(spelling_weight=0.2)]
    changed += [Weights(temperature=2.0), Weights(prior_weight=0.5, label_prior=PRIOR)]
    changed += [Weights(prior_weight=0.4, label_prior=PRIOR), Weights(prior_weight=0.5, label_prior=PRIOR[::-1])]
    others += [{"weights": weights} for weights in changed]
    assert len({BeamSearch(**{**options, **other}).description for other in others}) == len(others)
    # A prior that has no weight changes no words, so a calibration made before there was one still holds.
    assert BeamSearch(weights=Weights(label_prior=PRIOR)).description == BeamSearch().description


@ways
def test_other_weights_are_as_if_made_with_them(model, is_compiled):
    log_probs = sound(np.random.default_rng(7), 9)
    weights = Weights(3.0, -1.0, -0.5, 0.1)
    once = BeamSearch(language_model=model, is_compiled=is_compiled)
    before = once.hypotheses(log_probs, 3)
    assert once.weighing(weights).hypotheses(log_probs, 3) == BeamSearch(
        language_model=model, weights=weights, is_compiled=is_compiled
    ).hypotheses(log_probs, 3)
    assert once.hypotheses(log_probs, 3) == before
    assert once.weighing(weights).hypotheses(log_probs, 3) != before


def hypothesis(text, probability):
    return Hypothesis(tuple(encode(text)), math.log(probability) - 3, 3.0)


def test_posteriors_worked_by_hand():
    found = [hypothesis("а б а", 0.4), hypothesis("а аб а", 0.2), hypothesis("б а", 0.1), hypothesis("а б а б", 0.1)]
    # «а» is missed in the third alone, «б» another word in the second; what comes behind the last does not matter.
    assert word_posteriors(found) == pytest.approx([0.7 / 0.8, 0.6 / 0.8, 1])
    assert word_posteriors([hypothesis("а б", 1e-300)]) == [1, 1]
    assert word_posteriors([hypothesis("", 0.5), hypothesis("а", 0.5)]) == []


@given(st.lists(st.tuples(st.lists(st.sampled_from("аб"), max_size=5), st.floats(1e-9, 1)), min_size=1, max_size=8))
def test_a_posterior_is_a_share(texts):
    found = [hypothesis(" ".join(words), probability) for words, probability in texts]
    posteriors = word_posteriors(found)
    total = sum(probability for _, probability in texts)
    assert len(posteriors) == len(texts[0][0])
    assert all(texts[0][1] / total - 1e-9 <= posterior <= 1 for posterior in posteriors)
    # A text without any of the words of the first takes its share from all of them.
    with_another = word_posteriors([*found, hypothesis("ааа", total)])
    assert with_another == pytest.approx([posterior / 2 for posterior in posteriors])


@ways
def test_words_with_posteriors_are_those_without(model, is_compiled):
    draw = np.random.default_rng(4)
    found = BeamSearch(language_model=model, is_compiled=is_compiled)
    doubted = 0
    for frames in (0, 3, 12, 30):
        log_probs = sound(draw, frames)
        words = found.with_posteriors(log_probs)
        assert [replace(word, posterior=1.0, is_known=True) for word in words] == found(log_probs)
        assert all(word.is_known == (word.text in model.words) for word in words)
        assert [word.posterior for word in words] == word_posteriors(found.hypotheses(log_probs, 20))[: len(words)]
        doubted += sum(word.posterior < 0.99 for word in words)
    assert doubted
    free = BeamSearch(is_compiled=is_compiled).with_posteriors(sound(draw, 20))
    assert all(word.is_known for word in free)
