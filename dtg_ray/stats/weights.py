"""What a ridge model has learnt, feature by feature: its weights, and the patterns that can be interpreted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from dtg_ray.stats.adjustment import basis_of
from dtg_ray.stats.gram import Gram
from dtg_ray.stats.solvers import Factorised, centred, not_positive

Float = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class FinalFit:
    """Ridge fitted to all subjects, in terms of subjects: any features are one product away.

    Parameters
    ----------
    dual : (n, B) float64
        `X.T @ dual` are the weights of the features X (n, p), which need not be centred.
    fitted : (n, B) float64
        What the features explain of each target, less confounds: around 0.
    """

    dual: Float
    fitted: Float

    @property
    def pattern(self) -> Float:
        """`X.T @ pattern` (n, B) is the pattern of each feature: cov(x, fitted) / var(fitted).

        Weights say how to read a target out of the features, not what the target does to them; the pattern does
        (Haufe et al. 2014, doi 10.1016/j.neuroimage.2013.10.067, eq. 6). 0 where nothing was learnt.
        """
        squares = np.square(self.fitted).sum(axis=0)
        return np.asarray(self.fitted / np.where(squares > 0, squares, 1))


def final_fit(
    X: Gram | Factorised | Float, targets: Float, alpha: float, confounds: NDArray[np.floating] | None = None
) -> FinalFit:
    """Fit ridge to everybody.

    The minimum of `||y - Z b - X w||^2 + alpha ||w||^2` has w = X' a with a = S y, see `solvers.HoldOut`; for fewer
    features than subjects a = (y - X w) / alpha of what confounds leave of both. Of a matrix that is not at hand, K a
    is M a - alpha a, M a being what confounds leave of y.

    Parameters
    ----------
    X : Gram, Factorised or (n, p) float64
    targets : (n, B) float64
    alpha : float
    confounds : (n, c) float, optional

    Raises
    ------
    ValueError
        When alpha is too small for the rounding of the Gram matrix.
    """
    Z = basis_of(len(targets), confounds)  # (n, q)
    wanted = targets - Z @ (Z.T @ targets)
    try:
        if isinstance(X, Gram):
            kernel = centred(X.matrix)
            system = kernel.copy()
            system.flat[:: len(system) + 1] += alpha
            factor = cho_factor(system.T, lower=True, overwrite_a=True, check_finite=False)
            of_targets, of_confounds = (cho_solve(factor, right, check_finite=False) for right in (wanted, Z))
            dual = of_targets - of_confounds @ np.linalg.solve(Z.T @ of_confounds, Z.T @ of_targets)
            explained = kernel @ dual
        elif isinstance(X, Factorised):
            both = X.times(alpha, np.hstack([wanted, Z]))
            of_targets, of_confounds = both[:, : wanted.shape[1]], both[:, wanted.shape[1] :]
            share = np.linalg.solve(Z.T @ of_confounds, Z.T @ of_targets)
            dual = of_targets - of_confounds @ share
            explained = wanted - Z @ share - alpha * dual
        else:
            features = X - Z @ (Z.T @ X)  # (n, p)
            covariance = features.T @ features
            covariance.flat[:: len(covariance) + 1] += alpha
            factor = cho_factor(covariance, lower=True, overwrite_a=True, check_finite=False)
            explained = features @ cho_solve(factor, features.T @ wanted, check_finite=False)
            dual = (wanted - explained) / alpha
    except LinAlgError as error:
        raise not_positive(alpha) from error
    return FinalFit(dual, explained - Z @ (Z.T @ explained))
