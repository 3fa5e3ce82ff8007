"""How well classes are predicted: a figure per row, so that all permutations are one call.

Functions take classes as numbers 0 .. C-1, `actual` (..., n) and `predicted` (..., n), or decision values (..., n, C),
and return (...) float64. With two classes, figures of a class are those of class 1; with more, they are means over
classes (scikit-learn's "macro"). A share of nobody counts as 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

Float = NDArray[np.float64]
Classes = NDArray[np.int64]


def predicted_classes(decisions: ArrayLike) -> Classes:
    """The class with the highest decision value: (..., n, C) -> (..., n); ties go to the first."""
    return np.asarray(np.argmax(np.asarray(decisions), axis=-1))


def class_figures(actual: ArrayLike, predicted: ArrayLike, n_classes: int) -> dict[str, Float]:
    """accuracy, balanced_accuracy, f1, precision and recall.

    Parameters
    ----------
    actual, predicted : (..., n) int
        From 0 to `n_classes` - 1; leading axes broadcast.
    n_classes : int

    Raises
    ------
    ValueError
        When there are fewer than two classes, or the last axes differ.
    """
    a, b = np.asarray(actual), np.asarray(predicted)
    if n_classes < 2 or a.ndim < 1 or b.ndim < 1 or a.shape[-1] != b.shape[-1]:
        raise ValueError(
            f"got classes of shapes {a.shape} and {b.shape} of {n_classes} kinds, expected (..., n) of at least two"
        )
    hits, found, there = np.moveaxis(_counts(a, b, n_classes), 0, -1)  # (..., C) each
    recall, precision = _share(hits, there), _share(hits, found)  # (..., C)
    f1 = _share(2 * hits, there + found)
    present = there > 0
    balanced = np.where(present, recall, 0).sum(axis=-1) / present.sum(axis=-1)
    chosen = slice(1, None) if n_classes == 2 else slice(None)
    return {
        "accuracy": (a == b).mean(axis=-1),
        "balanced_accuracy": balanced,
        "f1": f1[..., chosen].mean(axis=-1),
        "precision": precision[..., chosen].mean(axis=-1),
        "recall": recall[..., chosen].mean(axis=-1),
    }


def auc(actual: ArrayLike, decisions: ArrayLike) -> Float:
    """Area under the ROC curve: of class 1 for two classes, otherwise the mean over classes, each against the rest.

    The share of pairs of a member and a non-member in which the member has the higher decision value, ties being half
    (Mann and Whitney 1947); NaN without members or non-members of a class.

    Parameters
    ----------
    actual : (..., n) int
        From 0 to C - 1; leading axes broadcast.
    decisions : (..., n, C) float
    """
    a, d = np.asarray(actual), np.asarray(decisions, dtype=np.float64)
    classes = [1] if d.shape[-1] == 2 else range(d.shape[-1])
    return np.asarray(np.mean([_binary_auc(a == one, d[..., one]) for one in classes], axis=0))


def _binary_auc(member: NDArray[np.bool_], decision: Float) -> Float:
    n = decision.shape[-1]
    members = member.sum(axis=-1)
    ranks = rankdata(decision, axis=-1)
    above = np.where(member, ranks, 0).sum(axis=-1) - members * (members + 1) / 2
    pairs = members * (n - members)
    return np.divide(above, pairs, out=np.full(np.broadcast_shapes(above.shape, pairs.shape), np.nan), where=pairs > 0)


def _counts(a: Classes, b: Classes, n_classes: int) -> Float:
    """How many of each class were rightly found, found, and there: (C, 3, ...)."""
    parts = [((a == one) & (b == one), b == one, a == one) for one in range(n_classes)]
    shape = np.broadcast_shapes(a.shape, b.shape)[:-1]
    return np.array([[np.broadcast_to(part.sum(axis=-1), shape) for part in three] for three in parts], dtype=float)


def _share(part: Float, whole: Float) -> Float:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
