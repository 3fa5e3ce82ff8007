"""How training data come: the same chunks, in the same order, whoever reads them and however often."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from dtg_ray import Study
from dtg_ray.errors import StudyError
from dtg_ray.ledger import Ledger
from dtg_ray.stages.maps import SubjectReader, usable
from dtg_ray.stages.training import data
from dtg_ray.stages.training.data import MAPS, Boxes, Chunks, Feed, epoch_batches, random_window

SUBJECTS = [f"sub-{number:02d}" for number in range(11)]


class TestBatches:
    def test_workers_share_each_batch_of_one_worker(self) -> None:
        alone = list(epoch_batches(SUBJECTS, 4, seed=1, epoch=3, rank=0, world=1))
        first, second = (list(epoch_batches(SUBJECTS, 4, seed=1, epoch=3, rank=rank, world=2)) for rank in (0, 1))
        assert [set(a) | set(b) for a, b in zip(first, second, strict=True)] == [set(batch) for batch in alone]
        assert all(not set(a) & set(b) for a, b in zip(first, second, strict=True))

    def test_an_epoch_shows_nobody_twice_and_drops_less_than_a_batch(self) -> None:
        seen = [subject for batch in epoch_batches(SUBJECTS, 4, 0, 0, 0, 1) for subject in batch]
        assert len(seen) == len(set(seen)) == 8

    def test_order_depends_on_seed_and_epoch_alone(self) -> None:
        def order(seed: int, epoch: int) -> list[list[str]]:
            return list(epoch_batches(SUBJECTS, 4, seed, epoch, 0, 1))

        assert order(1, 2) == order(1, 2)
        assert order(1, 2) != order(1, 3)
        assert order(1, 2) != order(2, 2)

    def test_a_cohort_smaller_than_a_batch_is_one_batch(self) -> None:
        assert [len(batch) for batch in epoch_batches(SUBJECTS[:3], 10, 0, 0, 0, 1)] == [3]

    def test_every_window_is_shown_in_the_end(self) -> None:
        shown = [random_window(0, epoch, 5, 4) for epoch in range(60)]
        assert set(shown) == {0, 1, 2, 3}
        assert shown == [random_window(0, epoch, 5, 4) for epoch in range(60)]
        assert shown != [random_window(0, epoch, 6, 4) for epoch in range(60)]


@pytest.fixture(scope="module")
def study(finished: Path) -> Study:
    return Study(str(finished))


@pytest.fixture(scope="module")
def batches(study: Study) -> list[list[tuple[str, int]]]:
    subjects = usable(Ledger(study), "train")[:4]
    return [[(subject, MAPS), (subject, 0)] for subject in subjects]


def feed(study: Study, **settings: int) -> Feed:
    item = study.n_rois * study.grid.n_voxels * 2
    return Feed(Chunks(study.uri, [2, 0]), total_bytes=8 * item, item_bytes=item, **settings)


class TestFeed:
    @pytest.mark.parametrize(
        "settings", [{}, {"cache_bytes": 2**30}, {"cache_bytes": 60_000}, {"readers": 2, "ahead": 3}]
    )
    def test_brings_what_is_stored_twice_in_a_row(self, study: Study, batches: list, settings: dict) -> None:
        reader, fed = SubjectReader(study), feed(study, **settings)
        for order in (batches, batches[::-1]):
            for batch, (maps, window) in zip(order, fed(order), strict=True):
                subject = batch[0][0]
                np.testing.assert_array_equal(maps.numpy(), reader.stored_maps(subject)[[2, 0]])
                np.testing.assert_array_equal(window.numpy().astype(np.float32), reader.connectomes(subject, 1)[0])
        assert maps.dtype == window.dtype == torch.float16

    def test_what_fits_is_read_once(self, study: Study, batches: list, tmp_path: Path) -> None:
        root = tmp_path / "study"
        shutil.copytree(study.uri, root)
        fed = feed(Study(str(root)), cache_bytes=2**30)
        first = list(fed([*batches, *batches]))
        shutil.rmtree(root / "connectomes.zarr")
        for before, after in zip(first, [*fed(batches), *fed(batches)], strict=True):
            for old, new in zip(before, after, strict=True):
                np.testing.assert_array_equal(old, new)

    def test_waiting_is_measured(self, study: Study, batches: list) -> None:
        fed = feed(study)
        list(fed(batches))
        assert 0 < fed.waited < 60

    def test_readers_stay_away_where_shared_memory_is_small(
        self, study: Study, caplog: pytest.LogCaptureFixture
    ) -> None:
        fed = Feed(Chunks(study.uri, [0]), total_bytes=2**60, item_bytes=2**50, readers=2, ahead=4)
        assert fed.readers == 0
        assert data.SHARED_MEMORY in caplog.text

    def test_a_lost_chunk_is_an_error_that_names_the_subject(self, study: Study, batches: list, tmp_path: Path) -> None:
        root = tmp_path / "study"
        shutil.copytree(study.uri, root)
        shutil.rmtree(root / "connectomes.zarr" / "connectome" / "c")
        with pytest.raises(StudyError, match=f"{batches[0][0][0]}: got no connectome.*its chunk was lost"):
            list(feed(Study(str(root)))(batches))


def test_boxes_hold_what_the_mask_shows(study: Study) -> None:
    rng = np.random.default_rng(0)
    window = torch.from_numpy(rng.standard_normal((5, study.grid.n_voxels)).astype(np.float16))
    shown = study.grey_matter
    boxes = Boxes(study.grid, study.grey_matter, shown, torch.device("cpu"))
    box = boxes.inputs([window, 2 * window])
    assert box.shape == (2, 5, *study.grid.shape)
    assert box.is_contiguous(memory_format=torch.channels_last_3d)
    np.testing.assert_array_equal(study.grid.vectorize(box[0, 3].numpy()), np.where(shown, window[3], 0))
    np.testing.assert_array_equal(boxes.grey(box)[1, 2], 2 * window[2, shown])
    assert float(box.abs().sum()) == pytest.approx(3 * float(window[:, shown].float().abs().sum()), rel=1e-5)
