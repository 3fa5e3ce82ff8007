"""The manifest: order, blocks, splits, and the sizes of files."""

import random

import numpy as np
import pandas as pd
import pytest

from cohort_files import write_bytes
from dtg_ray.cohort.layouts import Found, Participant
from dtg_ray.cohort.manifest import SPLITS, UNSPLIT, assign_splits, build, extend
from dtg_ray.cohort.phenotypes import empty_phenotypes
from dtg_ray.config import CohortConfig
from dtg_ray.errors import ConfigError
from dtg_ray.imaging.scan import Scan
from dtg_ray.imaging.streams import member


def people(count, maps=True):
    return [Participant(f"sub-{number:04d}", [], {"LH": Scan("z.nii")} if maps else {}) for number in range(count)]


def about(participants, **columns):
    return pd.DataFrame({"subject": [person.subject for person in participants], **columns})


def manifest(participants, phenotypes=None, config=None, sizes=None):
    table = empty_phenotypes() if phenotypes is None else phenotypes
    return build(Found(participants, {}, table, sizes or {}), config or CohortConfig())


def cohort(count, config=None, **columns):
    everybody = people(count)
    return manifest(everybody, about(everybody, **columns), config)


def sizes_of(runs, sizes=None):
    return manifest([Participant("sub-1", [Scan(run) for run in runs])], sizes=sizes)["rest_bytes"].tolist()


class TestOrder:
    def test_does_not_depend_on_the_order_of_the_files(self):
        everybody = people(50)
        table = about(everybody, sex=["M", "F"] * 25)
        shuffled = random.Random(0).sample(everybody, 50)
        expected = manifest(everybody, table)
        pd.testing.assert_frame_equal(manifest(shuffled, table.sample(frac=1, random_state=0)), expected)
        assert expected["subject"].is_monotonic_increasing

    @pytest.mark.parametrize(("count", "size", "blocks"), [(10, 4, [4, 4, 2]), (8, 4, [4, 4]), (3, 16, [3])])
    def test_blocks_are_filled_one_after_the_other(self, count, size, blocks):
        table = cohort(count, CohortConfig(block_size=size))
        assert table["block"].tolist() == np.repeat(range(len(blocks)), blocks).tolist()

    def test_files_are_listed(self):
        rest = [Scan("b.nii", mask="m.nii"), Scan("a.nii")]
        maps = {"RH": Scan("r.nii"), "LH": Scan("l.nii", warp="w.nii")}
        row = manifest([Participant("sub-1", rest, maps)]).iloc[0]
        assert row["rest"] == rest
        assert list(row["contrasts"].items()) == [("LH", maps["LH"]), ("RH", maps["RH"])]

    def test_a_subject_that_occurs_twice_is_refused(self):
        with pytest.raises(ConfigError, match="got 1 subjects more than once"):
            manifest([*people(3), Participant("sub-0001")])


class TestSizes:
    def test_of_all_runs_are_added(self, root):
        runs = [write_bytes(f"{root}/{number}.nii", bytes(number)) for number in (100, 20, 3)]
        assert sizes_of(runs) == [123]

    def test_that_came_with_the_listing_are_not_asked_for_again(self, tmp_path):
        run = write_bytes(tmp_path / "a.nii", bytes(20))
        assert sizes_of(["s3://no-such-bucket/b.nii", run], {"s3://no-such-bucket/b.nii": 100}) == [120]

    def test_of_what_was_listed_but_is_not_there_are_minus_one(self, tmp_path):
        run = write_bytes(tmp_path / "a.nii", bytes(20))
        assert sizes_of([run, "/annex/b.nii"], {"/annex/b.nii": -1}) == [-1]

    def test_of_members_are_those_of_their_archives(self, root):
        packed = [write_bytes(f"{root}/{number}.zip", bytes(number)) for number in (100, 20)]
        runs = [member(archive, "fMRI/a.nii") for archive in packed]
        assert sizes_of(runs) == [120]
        assert sizes_of(runs, {packed[0]: 1000}) == [1020]

    def test_a_file_uri_is_a_path(self, tmp_path):
        assert sizes_of(["file://" + write_bytes(tmp_path / "a.nii", b"123")]) == [3]

    @pytest.mark.parametrize("name", ["none.nii", "a.nii/none.nii"])
    def test_are_minus_one_where_a_file_is_not_there(self, root, name):
        runs = [Scan(write_bytes(f"{root}/a.nii", b"123")), Scan(f"{root}/{name}")]
        other = [Scan(write_bytes(f"{root}/b.nii", b"123"))]
        table = manifest([Participant("sub-1", runs), Participant("sub-2", other)])
        assert table["rest_bytes"].tolist() == [-1, 3]

    def test_a_link_that_leads_nowhere_is_no_file(self, tmp_path):
        (tmp_path / "a.nii").symlink_to("nowhere")
        assert sizes_of([f"{tmp_path}/a.nii"]) == [-1]


class TestSplits:
    @pytest.mark.parametrize(("validation", "test"), [(0.1, 0.2), (0, 0.5), (0.25, 0), (0, 0), (0.3, 0.3)])
    @pytest.mark.parametrize("count", [10, 40, 333])
    def test_have_their_shares(self, count, validation, test):
        table = cohort(count, CohortConfig(validation=validation, test=test))
        counts = table["split"].value_counts()
        for split, share in zip(SPLITS, (1 - validation - test, validation, test), strict=True):
            assert abs(counts.get(split, 0) - share * count) <= 1

    def test_strata_are_balanced(self):
        sexes = np.random.default_rng(0).choice(["M", "F"], 300, p=[0.8, 0.2])
        ages = np.random.default_rng(1).choice(["old", "young"], 300)
        config = CohortConfig(stratify_by=("sex", "age"), validation=0.2, test=0.2)
        table = cohort(300, config, sex=sexes, age=ages)
        counts = pd.crosstab([sexes, ages], table["split"])[list(SPLITS)].to_numpy()
        np.testing.assert_allclose(counts, counts.sum(axis=1, keepdims=True) * [0.6, 0.2, 0.2], atol=1.5)

    def test_families_never_cross_splits(self):
        rng = np.random.default_rng(0)
        families = rng.integers(0, 90, 250).astype(str)
        sexes = rng.choice(["M", "F"], 250)
        table = cohort(250, family=families, sex=sexes)
        assert table.drop_duplicates(["group", "split"])["group"].is_unique
        shares = table["split"].value_counts(normalize=True)
        np.testing.assert_allclose(shares[list(SPLITS)], [0.7, 0.1, 0.2], atol=0.03)

    def test_groups_of_several_columns_are_told_apart(self):
        config = CohortConfig(group_by=("site", "family"))
        table = cohort(4, config, site=["A", "A", "B", "B"], family=[1, 1, 1, 2])
        assert table["group"].tolist() == ["A/1", "A/1", "B/1", "B/2"]

    def test_people_without_a_family_stand_alone_and_without_a_sex_in_a_stratum_of_their_own(self):
        families = [1, 1, None, None, 2, 2] * 10
        table = cohort(60, family=families, sex=["M", None, "F", None, "M", "F"] * 10)
        assert table["group"].nunique() == 2 + 20
        assert table.loc[2, "group"] == "sub-0002"

    def test_people_of_whom_the_tables_know_nothing_take_part(self):
        everybody = people(10)
        table = manifest(everybody, about(everybody[:4], sex=["M"] * 4, family=["f"] * 4))
        assert table["group"].tolist() == ["f"] * 4 + [person.subject for person in everybody[4:]]

    def test_columns_that_are_not_there_are_not_used(self):
        table = manifest(people(20), config=CohortConfig(stratify_by=("sex",), group_by=("family",)))
        assert table["group"].tolist() == table["subject"].tolist()

    def test_people_without_maps_are_not_split_and_do_not_count(self):
        everybody = [*people(100), *(Participant(f"tub-{number:04d}") for number in range(300))]
        table = manifest(everybody, config=CohortConfig(validation=0.1, test=0.2))
        assert (table.loc[100:, "split"] == UNSPLIT).all()
        assert table.loc[:99, "split"].value_counts().to_dict() == {"train": 70, "test": 20, "validation": 10}

    def test_come_from_the_seed_alone(self):
        first, again, other = (cohort(100, CohortConfig(seed=seed))["split"] for seed in (1, 1, 2))
        assert first.equals(again)
        assert not first.equals(other)

    def test_are_those_of_today_in_a_year(self):
        """Studies are compared by their manifest: the same seed must not give other splits after an update."""
        nobody = np.zeros(12, dtype=bool)
        splits = assign_splits([str(n) for n in range(12)], ["M", "F"] * 6, ~nobody, nobody, CohortConfig())
        expected = "test train train train train test validation train train train train validation"
        assert " ".join(splits) == expected


class TestRetest:
    def people(self, count, twice, maps=True):
        """Some people, the last of whom have a second visit."""
        everybody = people(count, maps)
        for person in everybody[count - twice :]:
            person.retest = {"RH": Scan("r2.nii"), "LH": Scan("l2.nii", warp="w.nii")}
        return everybody

    def test_files_are_listed(self):
        table = manifest(self.people(3, 1))
        assert table["retest"].tolist()[:2] == [{}, {}]
        assert list(table["retest"][2].items()) == [("LH", Scan("l2.nii", warp="w.nii")), ("RH", Scan("r2.nii"))]

    @pytest.mark.parametrize(("validation", "test"), [(0.1, 0.2), (0.2, 0), (0, 0.5)])
    def test_people_are_in_the_test_split_and_the_others_share_the_rest(self, validation, test):
        everybody = self.people(200, 20)
        table = manifest(everybody, config=CohortConfig(validation=validation, test=test))
        assert (table["split"][180:] == "test").all()
        counts = table["split"].value_counts()
        assert counts["test"] == max(20, 200 * test)
        expected = (200 - counts["test"]) * validation / (1 - test)
        assert abs(counts.get("validation", 0) - expected) <= 1

    def test_families_come_with_them(self):
        everybody = self.people(100, 10)
        families = [str(number % 50) for number in range(100)]  # the last ten are siblings of numbers 40 to 49
        table = manifest(everybody, about(everybody, family=families), CohortConfig(test=0.1))
        assert table.index[table["split"] == "test"].tolist() == [*range(40, 50), *range(90, 100)]

    def test_of_nobody_changes_no_split(self):
        assert manifest(self.people(90, 0))["split"].equals(cohort(90)["split"])

    def test_without_a_first_visit_is_not_split(self):
        assert (manifest(self.people(5, 5, maps=False))["split"] == UNSPLIT).all()


@pytest.mark.parametrize("image", ["/data/x.nii.gz", member("/data/x.zip", "x.nii.gz")])
def test_a_run_of_two_subjects_is_refused(image):
    """Whatever goes with it: it would be trained and tested on."""
    people = [Participant("a", [Scan(image)]), Participant("b", [Scan(image, mask="/data/m.nii.gz")])]
    with pytest.raises(ConfigError, match=r"x.nii.gz.* as a rest run of a and of b"):
        manifest(people, pd.DataFrame({"subject": ["a", "b"]}))


class TestExtend:
    """People who come later get blocks of their own; nothing of the lines before changes."""

    def people(self, first, last, maps=True):
        return [
            Participant(f"sub-{n:02d}", [Scan(f"{n}.nii")], {"LH": Scan(f"{n}_lh.nii")} if maps else {})
            for n in range(first, last)
        ]

    def found(self, people, **columns):
        table = pd.DataFrame({"subject": [person.subject for person in people], **columns})
        return Found(people, {}, table)

    def test_appends_whole_blocks(self):
        config = CohortConfig(block_size=4)
        before = build(self.found(self.people(0, 6)), config).set_index("subject", drop=False)
        after = extend(before, self.found(self.people(6, 12)), config)
        pd.testing.assert_frame_equal(after.iloc[:6], before)
        assert after["block"].tolist()[6:] == [2, 2, 2, 2, 3, 3]
        assert after["row"].tolist()[6:] == [8, 9, 10, 11, 12, 13]
        assert set(after["split"][6:]) == {"test"}

    def test_who_did_no_task_is_to_be_synthesized(self):
        config = CohortConfig(block_size=4)
        before = build(self.found(self.people(0, 6)), config).set_index("subject", drop=False)
        after = extend(before, self.found(self.people(6, 8, maps=False)), config)
        assert set(after["split"][6:]) == {UNSPLIT}

    def test_a_rest_run_of_somebody_there_is_refused(self):
        config = CohortConfig(block_size=4)
        before = build(self.found(self.people(0, 6)), config).set_index("subject", drop=False)
        again = [Participant("sub-99", [Scan("3.nii")])]
        with pytest.raises(ConfigError, match=r"got 3.nii as a rest run of sub-03 and of sub-99"):
            extend(before, self.found(again), config)
