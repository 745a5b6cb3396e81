"""The confusion matrix: counted record by record, and differentially private with its noise."""

import math
import random
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

pytest.importorskip("safetensors")
from jaxdp.datasets.records import Part, Records
from jaxdp.dpsgd.discrete_laplace import discrete_laplace
from jaxdp.trainer.release import confusion
from jaxdp.trainer.release.confusion import Confusion

FALSE_ALARM = 1e-6  # of each statistical test; the bits are seeded, so a pass stays a pass
COUNTS = np.array([[5, 1, 0], [2, 6, 0], [0, 0, 0]])


class Release:
    """Predicts the class that a record's input names."""

    def __init__(self):
        self.sizes = []

    def predict(self, inputs):
        self.sizes.append(len(inputs))
        return {"class": inputs.astype(np.int32), "scores": np.zeros((len(inputs), 3))}


def records(predicted, labels):
    return Records((np.array(predicted, np.uint8), np.array(labels, np.int32)))


PREDICTED, LABELS = [0, 1, 1, 2, 0, 9, 1], [0, 1, 0, 2, 0, 1, 7]  # 9 and 7 are no classes


@pytest.mark.parametrize("each_alone", [True, False])
def test_every_record_is_in_its_cell_and_others_in_none(each_alone):
    release = Release()
    found = confusion.count(release, records(PREDICTED, LABELS), 3, each_alone=each_alone)
    np.testing.assert_array_equal(found.counts, [[2, 1, 0], [0, 1, 0], [0, 0, 1]])
    assert release.sizes == ([1] * 7 if each_alone else [7])


def test_a_record_changes_one_cell_by_one():
    whole = confusion.count(Release(), records(PREDICTED, LABELS), 3, each_alone=True).counts
    for i in range(len(LABELS)):
        rest = records(np.delete(PREDICTED, i), np.delete(LABELS, i))
        moved = whole - confusion.count(Release(), rest, 3, each_alone=True).counts
        assert moved.min() == 0
        assert moved.sum() in ((1,) if PREDICTED[i] < 9 and LABELS[i] < 7 else (0,))


def test_records_that_can_t_be_used_are_in_no_cell():
    good = np.arange(len(LABELS)) != 2
    whole = records(PREDICTED, LABELS)
    marked = Records.of_parts([Part(whole.only_rows(), range(len(whole)))], bad=~good)
    rest = records(np.asarray(PREDICTED)[good], np.asarray(LABELS)[good])
    for alone in (True, False):
        found = [confusion.count(Release(), r, 3, each_alone=alone).counts for r in (marked, rest)]
        np.testing.assert_array_equal(*found)


def test_the_classes_are_those_of_the_models_shape():
    assert confusion.num_classes(Release(), records([0], [0])) == 3


@pytest.mark.parametrize("wrong", ["logits", "words", "no pair", "no label"])
def test_what_is_no_classifier_is_refused(wrong):
    release, some = Release(), records([0, 1], [0, 1])
    if wrong == "logits":
        release.predict = lambda inputs: np.zeros((len(inputs), 3))
    if wrong == "words":  # a class for every place of a text
        release.predict = lambda inputs: {
            "class": np.zeros((1, 8), int),
            "scores": np.zeros((1, 3)),
        }
    if wrong == "no pair":
        some = Records(np.zeros(3, np.uint8))
    if wrong == "no label":
        some = Records((np.zeros(3, np.uint8), np.zeros((3, 4), np.int32)))
    with pytest.raises(ValueError, match="confusion is for classifiers") as error:
        confusion.num_classes(release, some)
    assert len(str(error.value).splitlines()) == 1


def test_the_scores_are_those_of_the_counts():
    found = Confusion(COUNTS)
    np.testing.assert_array_equal(found.support, [6, 8, 0])
    np.testing.assert_allclose(found.recall, [5 / 6, 6 / 8, math.nan])
    np.testing.assert_allclose(found.precision, [5 / 7, 6 / 7, math.nan])
    assert found.accuracy == 11 / 14


def test_noisy_scores_stay_between_0_and_1():
    found = Confusion(np.array([[9, -4], [-7, 2]]))
    np.testing.assert_array_equal(found.support, [5, 0])
    np.testing.assert_allclose(found.recall, [1, math.nan])
    np.testing.assert_allclose(found.precision, [1, math.nan])
    assert Confusion(np.array([[9, -4], [-6, 2]])).accuracy == 1
    assert Confusion(np.array([[-3, 4], [0, 0]])).accuracy == 0
    assert math.isnan(Confusion(np.array([[-1]])).accuracy)


@pytest.mark.parametrize("epsilon", [Fraction(1, 2), Fraction(2)])
def test_a_record_more_changes_the_odds_of_a_matrix_by_e_to_the_epsilon_at_most(epsilon):
    """A test by a threshold on the cell that differs: its power bounds ε from below.

    The bound is Clopper and Pearson's, and is above ε in `FALSE_ALARM` of all cases. It also comes
    close to ε, so that noise that is far too large is found.
    """
    source, trials = random.Random(0), 30_000
    noise = lambda e: discrete_laplace(e, source.randrange)

    def released(count):
        exact = Confusion(np.array([[count]]))
        return np.array([exact.with_noise(epsilon, noise).counts[0, 0] for _ in range(trials)])

    with_record, without = released(8), released(7)
    bounds = []
    for threshold in range(5, 11):
        hits, misses = np.sum(with_record >= threshold), np.sum(without >= threshold)
        low = stats.beta.ppf(FALSE_ALARM / 2, hits, trials - hits + 1)
        high = stats.beta.ppf(1 - FALSE_ALARM / 2, misses + 1, trials - misses)
        bounds.append(math.log(low / high))
    assert 0.8 * epsilon < max(bounds) <= epsilon


def test_every_cell_has_noise_of_its_own():
    exact = Confusion(np.zeros((40, 40), np.int64))
    first, second = (exact.with_noise(Fraction(1, 100)).counts for _ in range(2))
    assert len(np.unique(first)) > 100
    assert np.sum(first == second) < 40
    assert abs(np.corrcoef(first[:-1].ravel(), first[1:].ravel())[0, 1]) < 0.2


def test_the_tables():
    found = Confusion(COUNTS - np.array([[0, 0, 3], [0, 0, 0], [0, 0, 0]]))
    assert confusion.class_table(found)[:2] == [
        "class  support  recall  precision",
        "    0        3  1.0000     0.7143",
    ]
    assert confusion.class_table(found)[3] == "    2        0    none       none"
    assert confusion.matrix_table(found, 80) == [
        "true  0  1  2",
        "   0  5  1  0",
        "   1  2  6  0",
        "   2  0  0  0",
    ]


def test_a_wide_matrix_is_shown_in_blocks():
    counts = np.arange(900).reshape(30, 30) + 12345
    lines = confusion.matrix_table(Confusion(counts), 60)
    assert max(map(len, lines)) <= 60
    shown = " ".join(lines).split()
    assert all(str(number) in shown for number in counts.ravel())
    assert shown.count("true") == lines.count("") + 1 > 1
