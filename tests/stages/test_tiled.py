"""Predictions from a Gram matrix in tiles: those of one piece, whatever the tiles, the scheduler and what is killed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import dask
import numpy as np
import pytest
from numpy.testing import assert_allclose

from dtg_ray.errors import DamagedError
from dtg_ray.stages.prediction import tiled
from dtg_ray.stages.prediction.scratch import Scratch, Tiled
from dtg_ray.stages.prediction.sweep import Block, Inversion, invert
from dtg_ray.stages.prediction.tiled import TiledGram
from dtg_ray.stats.folds import fold_indices
from dtg_ray.stats.gram import Gram
from dtg_ray.stats.permutation import permutation_indices
from dtg_ray.stats.ridge import OutOfFold
from dtg_ray.stats.solvers import Inverses, centred
from dtg_ray.stats.tiles import edges_of, slices
from dtg_ray.stats.weights import final_fit
from dtg_ray.store.files import Storage


def compute(tasks):
    return dask.compute(*tasks, scheduler="threads", num_workers=2)


def cut(K: np.ndarray, edges: tuple[int, ...], scratch: Scratch) -> Tiled:
    matrix, rows = Tiled(scratch, edges), slices(edges)
    for i, j in matrix.lower:
        matrix.save(i, j, K[rows[i], rows[j]])
    return matrix


def whole(matrix: Tiled) -> np.ndarray:
    return matrix.sign * np.block([[matrix.load(i, j) for j in range(matrix.count)] for i in range(matrix.count)])


@pytest.fixture
def scratch(tmp_path: Path) -> Scratch:
    return Scratch(Storage(str(tmp_path / "study")), "prediction/maps/tiles")


@pytest.fixture
def kernel() -> Gram:
    X = np.random.default_rng(0).normal(size=(61, 90)) + 2
    return Gram(X @ X.T, X.shape[1])


def gram_in_tiles(kernel: Gram, tile: int, scratch: Scratch) -> TiledGram:
    matrix = cut(kernel.matrix, edges_of(len(kernel.matrix), tile), scratch.below("gram"))
    return TiledGram(matrix, kernel.n_features, scratch, compute, tile)


ROWS = {"everybody": np.arange(61), "some": np.delete(np.arange(61), [0, 7, 30, 31, 32, 60])}


class TestRidge:
    """The solver in one piece is that of scikit-learn: see tests/stats/test_out_of_fold.py."""

    @pytest.mark.parametrize("tile", [9, 16, 60, 100])
    @pytest.mark.parametrize("who", ROWS)
    @pytest.mark.parametrize("alpha", ["features/samples", 3.0])
    def test_predictions_are_those_of_one_piece(self, kernel: Gram, scratch: Scratch, tile, who, alpha) -> None:
        rows, rng = ROWS[who], np.random.default_rng(1)
        n = len(rows)
        y, Z = rng.normal(size=n), rng.normal(size=(n, 2))
        targets = np.vstack([y, y[permutation_indices(n, 5, 0)], np.sign(y)])
        inverses = gram_in_tiles(kernel, tile, scratch).of(rows)
        for seed, confounds in ((0, None), (0, Z), (1, Z)):
            folds = fold_indices(n, 4, seed, groups=np.arange(n) // 3)
            found, expected = (OutOfFold(one, folds, alpha, confounds) for one in (inverses, Inverses(kernel, rows)))
            assert_allclose(found.added(targets), expected.added(targets), rtol=1e-9, atol=1e-11)
            assert_allclose(found.predict(targets), expected.predict(targets), rtol=1e-9, atol=1e-11)
            assert found.alphas(y).tolist() == expected.alphas(y).tolist()

    @pytest.mark.parametrize("confounds", [False, True])
    def test_weights_are_those_of_one_piece(self, kernel: Gram, scratch: Scratch, confounds) -> None:
        rows, rng = ROWS["some"], np.random.default_rng(1)
        y, Z = rng.normal(size=(len(rows), 2)), rng.normal(size=(len(rows), 2)) if confounds else None
        found = final_fit(gram_in_tiles(kernel, 16, scratch).of(rows), y, 3.0, Z)
        expected = final_fit(kernel.subset(rows), y, 3.0, Z)
        assert_allclose(found.dual, expected.dual, rtol=1e-9, atol=1e-12)
        assert_allclose(found.pattern, expected.pattern, rtol=1e-9, atol=1e-12)

    def test_a_matrix_that_alpha_does_not_make_positive_definite_is_refused(self, scratch: Scratch) -> None:
        inverses = gram_in_tiles(Gram(-np.eye(20), 5), 8, scratch).of(np.arange(20))
        with pytest.raises(ValueError, match=r"alpha 0\.1 does not make positive definite"):
            OutOfFold(inverses, fold_indices(20, 4, 0), 0.1)

    def test_several_alphas_are_refused(self, kernel: Gram, scratch: Scratch) -> None:
        with pytest.raises(ValueError, match="got 2 alphas to choose from and a Gram matrix in tiles"):
            OutOfFold(gram_in_tiles(kernel, 16, scratch).of(ROWS["some"]), fold_indices(55, 4, 0), [1.0, 2.0])

    def test_folds_that_leave_somebody_out_are_refused(self, kernel: Gram, scratch: Scratch) -> None:
        inverses = gram_in_tiles(kernel, 16, scratch).of(ROWS["everybody"])
        with pytest.raises(ValueError, match="expected everybody in its training or test rows"):
            OutOfFold(inverses, [(np.arange(10), np.arange(20, 25))], 1.0)

    def test_what_is_kept_is_of_the_last_people_and_folds(
        self, kernel: Gram, scratch: Scratch, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tiled, "LAST", 2)
        gram = gram_in_tiles(kernel, 16, scratch)
        for rows in ROWS.values():
            inverses = gram.of(rows)
            for seed in range(4):
                OutOfFold(inverses, fold_indices(len(rows), 4, seed), 1.0)
        folders = {tuple(name.split("/")[:2]) for name in scratch.names() if not name.startswith("gram")}
        assert {first for first, _ in folders} == {inverses.scratch.folder.rsplit("/", maxsplit=1)[-1]}
        assert sorted(second.split("-")[0] for _, second in folders) == ["folds", "folds", "inverse"]

    def test_folds_and_products_of_the_same_people_are_made_once(self, kernel: Gram, scratch: Scratch) -> None:
        tasks = []

        def counted(some):
            tasks.append(len(some))
            return compute(some)

        inverses = replace(gram_in_tiles(kernel, 16, scratch), compute=counted).of(ROWS["some"])
        y = np.random.default_rng(0).normal(size=(1, 55))

        def predicted():
            return [OutOfFold(inverses, fold_indices(55, 4, seed), 1.0).predict(y) for seed in range(3)]

        first, before = predicted(), len(tasks)
        np.testing.assert_array_equal(predicted(), first)
        assert len(tasks) - before == 3, "only the residuals of the folds were computed again"


class TestInversion:
    def job(self, kernel: Gram, scratch: Scratch) -> Inversion:
        n = len(kernel.matrix)
        source, none = cut(kernel.matrix, edges_of(n, 16), scratch.below("gram")), np.zeros((n, 1))
        rows = np.arange(n)
        return Inversion(scratch.below("inverse"), source.edges, Block(source, rows, rows, none, none, 2.0))

    def test_times_the_matrix_is_the_identity(self, kernel: Gram, scratch: Scratch) -> None:
        (inverse,) = invert([self.job(kernel, scratch)], compute)
        assert_allclose(whole(inverse) @ (kernel.matrix + 2 * np.eye(61)), np.eye(61), atol=1e-9)

    def test_only_the_last_tiles_are_kept(self, kernel: Gram, scratch: Scratch) -> None:
        job = self.job(kernel, scratch)
        invert([job], compute)
        assert {name.split("/")[0] for name in job.scratch.names()} == {"0004"}

    @pytest.mark.parametrize("after", range(1, 60, 6))
    def test_goes_on_wherever_it_was_interrupted(self, kernel: Gram, scratch: Scratch, after: int, monkeypatch) -> None:
        job, real, written = self.job(kernel, scratch), Scratch.save, list[str]()
        (inverse,) = invert([job], compute)
        expected = whole(inverse)
        job.scratch.remove()

        def save(self: Scratch, name: str, values: np.ndarray) -> None:
            if len(written) == after:
                written.append("killed")
                raise KeyboardInterrupt
            written.append(f"{self.folder}/{name}")
            real(self, name, values)

        monkeypatch.setattr(Scratch, "save", save)
        with pytest.raises(KeyboardInterrupt):
            invert([job], lambda tasks: dask.compute(*tasks, scheduler="synchronous"))
        invert([job], compute)
        assert len(written) == len(set(written)), "what was there was made again"
        np.testing.assert_array_equal(whole(inverse), expected)

    def test_a_tile_that_was_cut_off_is_named(self, kernel: Gram, scratch: Scratch) -> None:
        (inverse,) = invert([self.job(kernel, scratch)], compute)
        path = Path(scratch.storage.root, inverse.scratch.folder, "0001-0000.tile")
        path.write_bytes(path.read_bytes()[:-8])
        with pytest.raises(DamagedError, match=r"0001-0000.tile: got 2040 bytes, expected a matrix of \(16, 16\)"):
            inverse.load(0, 1)


def test_centring_is_of_the_subjects_alone(kernel: Gram, scratch: Scratch) -> None:
    rows = ROWS["some"]
    inverse = gram_in_tiles(kernel, 16, scratch).of(rows).of(2.0)
    expected = np.linalg.inv(centred(kernel.subset(rows).matrix) + 2 * np.eye(len(rows)))
    assert_allclose(whole(inverse), expected, rtol=1e-9, atol=1e-12)
