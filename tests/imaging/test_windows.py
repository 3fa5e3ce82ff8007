"""How runs are cut into windows."""

import numpy as np
import pytest

from dtg_ray.imaging.windows import cut, share_windows


class TestCut:
    @pytest.mark.parametrize(("volumes", "count", "length"), [(160, 4, 40), (163, 4, 40), (10, 5, 2), (7, 1, 7)])
    def test_windows_follow_each_other_and_are_equally_long(self, volumes, count, length):
        parts = [list(range(volumes))[part] for part in cut(volumes, count)]
        assert len(parts) == count
        assert {len(part) for part in parts} == {length}
        assert [volume for part in parts for volume in part] == list(range(count * length))

    @pytest.mark.parametrize(
        ("volumes", "count", "length", "found"), [(100, 9, 30, 3), (100, 2, 30, 2), (29, 9, 30, 0), (30, 1, 30, 1)]
    )
    def test_windows_of_a_fixed_length_are_as_many_as_fit_and_no_more_than_wanted(self, volumes, count, length, found):
        parts = cut(volumes, count, length)
        assert len(parts) == found
        assert all(part.stop - part.start == length and part.stop <= volumes for part in parts)

    @pytest.mark.parametrize(("count", "length"), [(4, None), (9, 25), (9, 0)])
    def test_windows_shorter_than_wanted_are_refused(self, count, length):
        with pytest.raises(ValueError, match="expected at least 30 in each"):
            cut(100, count, length, minimum=30)

    @pytest.mark.parametrize(("volumes", "count"), [(9, 5), (1, 1), (0, 2)])
    def test_windows_of_fewer_than_two_volumes_are_refused(self, volumes, count):
        with pytest.raises(ValueError, match=f"got windows of {volumes // count} volumes"):
            cut(volumes, count)


class TestShare:
    @pytest.mark.parametrize(
        ("lengths", "n_windows", "counts"),
        [
            ([1200] * 4, 8, [2, 2, 2, 2]),  # as published
            ([490], 1, [1]),
            ([490], 5, [5]),
            ([300, 900], 4, [1, 3]),
            ([300, 900], 2, [1, 1]),
            ([100, 1000], 3, [1, 2]),
        ],
    )
    def test_every_run_gets_windows_by_its_length(self, lengths, n_windows, counts):
        shares = share_windows(lengths, n_windows)
        assert [share.count for share in shares] == counts
        assert [share.first for share in shares] == (np.cumsum(counts) - counts).tolist()
        assert all(share.closes for share in shares)

    @pytest.mark.parametrize(
        ("runs", "n_windows", "groups"), [(4, 1, [4]), (4, 2, [2, 2]), (5, 2, [3, 2]), (3, 2, [2, 1])]
    )
    def test_with_fewer_windows_than_runs_consecutive_whole_runs_share_one(self, runs, n_windows, groups):
        shares = share_windows([600.0] * runs, n_windows)
        assert [share.first for share in shares] == np.repeat(np.arange(n_windows), groups).tolist()
        assert all(share.count == 1 for share in shares)
        assert [number for number, share in enumerate(shares) if share.closes] == (np.cumsum(groups) - 1).tolist()

    @pytest.mark.parametrize("runs", range(1, 6))
    @pytest.mark.parametrize("n_windows", range(1, 9))
    def test_every_window_is_filled_once(self, runs, n_windows):
        shares = share_windows(np.random.default_rng(0).uniform(100, 2000, runs).tolist(), n_windows)
        closed = [
            window for share in shares if share.closes for window in range(share.first, share.first + share.count)
        ]
        assert closed == list(range(n_windows))
