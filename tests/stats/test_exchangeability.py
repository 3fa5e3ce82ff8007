"""Who takes whose place in a permutation."""

import itertools
from collections import Counter

import numpy as np
import pytest
from scipy.stats import chisquare

from dtg_ray.stats.permutation import Exchangeability, permutation_indices

SITES = np.array(["x", "y", "x", "x", "y", "x", "y", "x"])
FAMILIES = np.array(["a", "b", "a", "c", "b", "c", "d", "e"])  # three pairs and two people without a family


def whole_orders(families):
    """All orders in which families of equal size change places, their members staying in order."""
    rows = [np.flatnonzero(families == name) for name in np.unique(families)]
    sizes = sorted({len(members) for members in rows})
    same = [[members for members in rows if len(members) == size] for size in sizes]
    for orders in itertools.product(*(itertools.permutations(range(len(group))) for group in same)):
        order = np.empty(len(families), dtype=int)
        for group, of_group in zip(same, orders, strict=True):
            for members, other in zip(group, of_group, strict=True):
                order[members] = group[other]
        yield tuple(order.tolist())


def assert_uniform(orders, allowed):
    """Every allowed order, and no other, about equally often."""
    counts = Counter(tuple(order) for order in orders.tolist())
    assert set(counts) == set(allowed)
    assert chisquare(list(counts.values())).pvalue > 1e-3


class TestWithin:
    def test_everybody_stays_inside_the_own_block(self):
        orders = Exchangeability(8, 1, within=SITES).orders(0, 100)
        np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(np.arange(8), (100, 1)))
        assert (SITES[orders] == SITES).all()

    def test_all_such_orders_are_as_likely(self):
        within = np.array([0, 1, 0, 1, 0])
        allowed = [order for order in itertools.permutations(range(5)) if (within[list(order)] == within).all()]
        assert_uniform(Exchangeability(5, 3, within=within).orders(0, 2400), allowed)


class TestWhole:
    def test_families_change_places_with_those_of_as_many_members(self):
        allowed = list(whole_orders(FAMILIES))
        assert len(allowed) == 12
        assert_uniform(Exchangeability(8, 0, whole=FAMILIES).orders(0, 2400), allowed)

    def test_inside_sites_only(self):
        families = np.array(["a", "a", "b", "b", "c", "c", "d", "d"])
        sites = np.array([0, 0, 0, 0, 1, 1, 1, 1])
        orders = Exchangeability(8, 0, within=sites, whole=families).orders(0, 400)
        allowed = [order for order in whole_orders(families) if (sites[list(order)] == sites).all()]
        assert len(allowed) == 4
        assert_uniform(orders, allowed)

    def test_of_two_sites_is_refused_by_name(self):
        with pytest.raises(
            ValueError, match="got block a in two blocks of `within`, or in two folds, expected it in one"
        ):
            Exchangeability(8, 0, within=SITES, whole=np.array(["a", "a", *"bcdefg"]))


class TestInside:
    FOLDS = np.array([0, 1, 1, 0, 0, 1])
    ROWS = np.array([0, 1, 2, 4, 5, 7])

    def test_further_blocks_nobody_leaves_either(self):
        there = SITES[self.ROWS]
        allowed = [
            order
            for order in itertools.permutations(range(6))
            if (self.FOLDS[list(order)] == self.FOLDS).all() and (there[list(order)] == there).all()
        ]
        assert_uniform(Exchangeability(8, 2, within=SITES).inside(self.ROWS, self.FOLDS).orders(0, 900), allowed)

    def test_whole_families_stay_inside_them(self):
        families, folds = np.repeat(np.arange(5), [2, 2, 2, 2, 1]), np.array([0, 0, 1, 1, 0, 0, 1, 1, 0])
        allowed = [order for order in whole_orders(families) if (folds[list(order)] == folds).all()]
        assert len(allowed) == 4
        assert_uniform(Exchangeability(9, 2, whole=families).inside(np.arange(9), folds).orders(0, 400), allowed)

    def test_the_seed_stays(self):
        first, second = (Exchangeability(8, seed).inside(self.ROWS, self.FOLDS).orders(0, 20) for seed in (1, 2))
        assert (first != second).any()

    def test_one_block_is_none(self):
        orders = Exchangeability(8, 2).inside(self.ROWS, np.zeros(6)).orders(0, 4000)
        assert len(np.unique(orders, axis=0)) > 600

    def test_families_may_not_be_in_two_of_them(self):
        with pytest.raises(ValueError, match=r"got block a in .* two folds"):
            Exchangeability(8, 2, whole=FAMILIES).inside(np.arange(8), np.array([0, 0, 1, 0, 0, 0, 0, 0]))


@pytest.mark.parametrize("blocks", [{}, {"within": SITES}, {"whole": FAMILIES}])
class TestSubsets:
    ROWS = np.array([0, 1, 2, 4, 5, 7])

    def test_are_orders_of_who_is_there(self, blocks):
        orders = Exchangeability(8, 5, **blocks).orders(0, 50, self.ROWS)
        np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(np.arange(6), (50, 1)))
        if "within" in blocks:
            there = SITES[self.ROWS]
            assert (there[orders] == there).all()

    def test_all_allowed_orders_are_as_likely(self, blocks):
        rows = np.array([0, 1, 2, 4]) if blocks else np.array([0, 3, 4])
        there = {name: labels[rows] for name, labels in blocks.items()}
        allowed = itertools.permutations(range(len(rows)))
        if "within" in there:
            sites = there["within"]
            allowed = [order for order in allowed if (sites[list(order)] == sites).all()]
        elif "whole" in there:
            allowed = whole_orders(there["whole"])
        assert_uniform(Exchangeability(8, 7, **blocks).orders(0, 1200, rows), allowed)

    def test_everybody_is_the_default(self, blocks):
        exchange = Exchangeability(8, 5, **blocks)
        np.testing.assert_array_equal(exchange.orders(0, 9), exchange.orders(0, 9, np.arange(8)))

    def test_a_number_is_always_the_same_order(self, blocks):
        exchange = Exchangeability(8, 5, **blocks)
        np.testing.assert_array_equal(exchange.orders(3, 7), exchange.orders(0, 9)[3:7])
        np.testing.assert_array_equal(Exchangeability(8, 5, **blocks).orders(3, 7), exchange.orders(3, 7))
        assert (Exchangeability(8, 6, **blocks).orders(0, 20) != exchange.orders(0, 20)).any()


def test_orders_of_fewer_people_keep_whoever_takes_the_place_of_somebody_who_is_there():
    """Tests of different people stay as dependent as their data are: most places are taken by the same person."""
    exchange, rows = Exchangeability(200, 0), np.delete(np.arange(200), [3, 77])
    for everybody, fewer in zip(exchange.orders(0, 20), exchange.orders(0, 20, rows), strict=True):
        assert (everybody[rows] == rows[fewer]).sum() >= 196


def test_orders_without_a_few_families_keep_most_families_where_they_are():
    families = np.repeat(np.arange(100), [2] * 60 + [3] * 40)
    rows = np.flatnonzero(~np.isin(families, [3, 70]))
    exchange = Exchangeability(240, 0, whole=families)
    for everybody, fewer in zip(exchange.orders(0, 20), exchange.orders(0, 20, rows), strict=True):
        assert (everybody[rows] == rows[fewer]).sum() >= 235 - 3 - 2


def test_of_families_some_of_whom_are_missing_change_with_families_of_as_many_who_are_there():
    families = np.array([0, 0, 0, 1, 1, 2, 2, 3])
    rows = np.array([0, 2, 3, 4, 5, 6, 7])  # of the first family two are left
    orders = Exchangeability(8, 0, whole=families).orders(0, 600, rows)
    assert_uniform(orders, whole_orders(families[rows]))


def test_without_blocks_they_are_those_of_permutation_indices():
    np.testing.assert_array_equal(Exchangeability(9, 4).orders(0, 6), permutation_indices(9, 6, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0, "seed": 0}, "got n=0, seed=0, expected at least 1 and 0"),
        ({"n": 3, "seed": -1}, "got n=3, seed=-1, expected"),
        ({"n": 3, "seed": 0, "within": np.arange(4)}, r"got within blocks of shape \(4,\), expected \(3,\)"),
        ({"n": 3, "seed": 0, "whole": np.ones((3, 1))}, r"got whole blocks of shape \(3, 1\), expected \(3,\)"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Exchangeability(**options)
