"""Figures of classes against scikit-learn."""

import numpy as np
import pytest
from sklearn import metrics

from dtg_ray.stats.classification import auc, class_figures, predicted_classes

SCORES = {"f1": metrics.f1_score, "precision": metrics.precision_score, "recall": metrics.recall_score}


def draw(n_classes, rows=5, n=80, seed=0):
    rng = np.random.default_rng(seed)
    actual = rng.integers(0, n_classes, (rows, n))
    actual[:, :n_classes] = np.arange(n_classes)  # every class is there
    decisions = rng.normal(size=(rows, n, n_classes)) + 1.0 * np.eye(n_classes)[actual]
    return actual, decisions


class TestFigures:
    @pytest.mark.parametrize("n_classes", [2, 3, 5])
    def test_are_those_of_scikit_learn_row_by_row(self, n_classes):
        actual, decisions = draw(n_classes)
        predicted = predicted_classes(decisions)
        found = class_figures(actual, predicted, n_classes)
        average = "binary" if n_classes == 2 else "macro"
        for row, (a, b) in enumerate(zip(actual, predicted, strict=True)):
            assert found["accuracy"][row] == pytest.approx(metrics.accuracy_score(a, b))
            assert found["balanced_accuracy"][row] == pytest.approx(metrics.balanced_accuracy_score(a, b))
            for name, score in SCORES.items():
                assert found[name][row] == pytest.approx(score(a, b, average=average))

    @pytest.mark.parametrize("n_classes", [2, 3])
    def test_a_class_that_is_never_found_counts_as_nothing(self, n_classes):
        actual, predicted = np.arange(12) % n_classes, np.zeros(12, dtype=int)
        found = class_figures(actual, predicted, n_classes)
        average = "binary" if n_classes == 2 else "macro"
        for name, score in SCORES.items():
            assert found[name] == pytest.approx(score(actual, predicted, average=average, zero_division=0))

    def test_a_class_that_nobody_has_does_not_weigh_in_balanced_accuracy(self):
        actual, predicted = np.array([0, 0, 1, 1]), np.array([0, 0, 1, 2])
        assert class_figures(actual, predicted, 3)["balanced_accuracy"] == 0.75

    def test_a_class_that_nobody_has_is_a_share_of_nothing_as_in_scikit_learn(self):
        actual, predicted = np.array([0, 0, 1, 1, 1]), np.array([0, 1, 1, 2, 1])
        found = class_figures(actual, predicted, 4)
        for name, score in SCORES.items():
            expected = score(actual, predicted, labels=range(4), average="macro", zero_division=0)
            assert found[name] == pytest.approx(expected)

    def test_one_target_serves_many_predictions(self):
        actual, decisions = draw(3)
        predicted = predicted_classes(decisions)
        one = class_figures(actual[0], predicted, 3)
        many = class_figures(np.tile(actual[0], (5, 1)), predicted, 3)
        for name, values in one.items():
            np.testing.assert_array_equal(values, many[name])

    @pytest.mark.parametrize(("a", "b", "n_classes"), [([0, 1], [0, 1, 1], 2), ([0, 0], [0, 0], 1), (0, 0, 2)])
    def test_of_other_shapes_are_refused(self, a, b, n_classes):
        with pytest.raises(ValueError, match="got classes of shapes"):
            class_figures(a, b, n_classes)


class TestAuc:
    @pytest.mark.parametrize("ties", [False, True])
    def test_of_two_classes_is_that_of_scikit_learn(self, ties):
        actual, decisions = draw(2)
        decisions = np.round(decisions) if ties else decisions
        expected = [metrics.roc_auc_score(a, d[:, 1]) for a, d in zip(actual, decisions, strict=True)]
        np.testing.assert_allclose(auc(actual, decisions), expected)

    @pytest.mark.parametrize("ties", [False, True])
    def test_of_more_is_the_mean_of_each_against_the_rest(self, ties):
        actual, decisions = draw(4)
        decisions = np.round(decisions) if ties else decisions
        expected = [
            np.mean([metrics.roc_auc_score(a == one, d[:, one]) for one in range(4)])
            for a, d in zip(actual, decisions, strict=True)
        ]
        np.testing.assert_allclose(auc(actual, decisions), expected)

    def test_keeps_all_leading_axes(self):
        actual, decisions = draw(3, rows=6)
        found = auc(actual.reshape(2, 3, -1), decisions.reshape(2, 3, -1, 3))
        np.testing.assert_array_equal(found, auc(actual, decisions).reshape(2, 3))
        one = auc(actual[0], decisions)
        np.testing.assert_array_equal(one, [auc(actual[0], row) for row in decisions])

    def test_of_a_constant_decision_is_half(self):
        assert auc(np.array([0, 1, 1]), np.zeros((3, 2))) == 0.5

    def test_without_members_is_not_known(self):
        assert np.isnan(auc(np.zeros(4, dtype=int), np.zeros((4, 2))))
        found = auc(np.array([[0, 0, 0], [0, 1, 0]]), np.zeros((3, 2)))
        np.testing.assert_array_equal(np.isnan(found), [True, False])
        assert np.isnan(auc(np.array([0, 1, 0, 1]), np.eye(3)[[0, 1, 0, 1]]))  # nobody has the third


def test_the_class_with_the_highest_decision_is_predicted_and_of_equals_the_first():
    assert predicted_classes([[0.1, 0.2, 0.0], [0.5, 0.5, 0.1]]).tolist() == [1, 0]
