"""Phenotypes of UK Biobank from raw fields, against a reference that goes person by person."""

import csv
import re

import numpy as np
import pandas as pd
import pytest

from dtg_ray.cohort.ukb_fields import RULES, derive, field_of, raw_fields, sources
from dtg_ray.errors import ConfigError
from reference import PUBLISHED

TABLE = PUBLISHED.parent / "ukb_phenotypes.tsv"
needs_table = pytest.mark.skipif(not TABLE.is_file(), reason="the table of rules is not next to this checkout")
PHQ9 = [20507, 20508, 20510, 20511, 20513, 20514, 20517, 20518, 20519]
GAD7 = [20505, 20506, 20509, 20512, 20515, 20516, 20520]
RDS4 = [2050, 2060, 2070, 2080]
CODES = {
    "21003-2.0": range(45, 82),
    "31-0.0": [0, 1],
    "20016-2.0": range(14),
    **{field: range(10, 60) for field in ("46-2.0", "47-2.0")},
    **{field: [1, 2, 3, -3] for field in ("1707-2.0", "1707-0.0")},
    "2178-2.0": [1, 2, 3, 4, -1, -3],
    "1558-2.0": [1, 2, 3, 4, 5, 6, -3],
    **{f"20002-2.{element}": [1065, 1286, 1111, 1473] for element in range(4)},
    "20127-0.0": range(13),
    **{f"{field}-0.0": [1, 2, 3, 4, 4, 4, -818] for field in (*PHQ9, *GAD7)},
    **{f"{field}-2.0": [1, 2, 3, 4, 4, 4, -1, -3] for field in RDS4},
}
"""What a cell of each field can hold beside nothing."""
UNKNOWN = (-1, -3, -818)
SPELLINGS = {
    "ukbconv csv": lambda f, i, e: f"{f}-{i}.{e}",
    "ukbconv r": lambda f, i, e: f"f.{f}.{i}.{e}",
    "underscores": lambda f, i, e: f"f{f}_{i}_{e}",
    "x": lambda f, i, e: f"x{f}_{i}_{e}",
    "Table Exporter": lambda f, i, e: f"p{f}" + (f"_i{i}" if f != 31 else "") + (f"_a{e}" if f == 20002 else ""),
    "dataset": lambda f, i, e: f"participant.p{f}_i{i}" + (f"_a{e}" if f == 20002 else ""),
}


def export(n=400, seed=0, empty=0.15):
    """A table of raw fields as ukbconv names them, some cells of which are empty or say that it is not known."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({field: rng.choice(list(codes), n).astype(float) for field, codes in CODES.items()})
    table = table.mask(rng.random(table.shape) < 0.03, rng.choice(UNKNOWN, table.shape))
    return table.mask(rng.random(table.shape) < empty)


def parts(field):
    number, rest = field.split("-")
    return (int(number), *map(int, rest.split(".")))


def of_person(row):
    """All phenotypes of one person, word for word as the table of rules says it."""

    def known(field):
        value = row[field]
        return None if np.isnan(value) or value in UNKNOWN else value

    def score(fields, visit, lowest):
        items = [known(f"{field}-{visit}.0") for field in fields]
        return None if None in items else sum(item - 1 + lowest for item in items)

    hand = known("1707-2.0") or known("1707-0.0")
    grip = {1: known("47-2.0"), 2: known("46-2.0")}.get(hand)
    illnesses = [row[f"20002-2.{element}"] for element in range(4)]
    came = not (np.isnan(row["21003-2.0"]) and all(np.isnan(illnesses)))
    return {
        "age": known("21003-2.0"),
        "sex": known("31-0.0"),
        "fluid_intelligence": known("20016-2.0"),
        "grip_strength": grip,
        "overall_health": known("2178-2.0"),
        "alcohol_frequency": known("1558-2.0"),
        "hypertension": float(1065 in illnesses) if came else None,
        "depression": float(1286 in illnesses) if came else None,
        "neuroticism": known("20127-0.0"),
        "PHQ9": score(PHQ9, 0, 0),
        "GAD7": score(GAD7, 0, 0),
        "RDS4": score(RDS4, 2, 1),
    }


def row_by_row(table):
    return pd.DataFrame([of_person(row) for _, row in table.iterrows()], index=table.index, dtype="float64")


def rules():
    """Name, kind, fields, rule and missing codes of all phenotypes."""
    with TABLE.open() as file:
        return list(csv.reader(file, delimiter="\t"))[1:]


class TestRules:
    @pytest.mark.parametrize("spelling", SPELLINGS)
    @pytest.mark.parametrize("empty", [0.02, 0.3])
    def test_agree_person_by_person_in_every_spelling(self, spelling, empty):
        table = export(empty=empty)
        expected = row_by_row(table)
        assert expected.notna().any().all()
        assert expected.isna().any().sum() >= 10
        spelt = table.rename(columns=lambda field: SPELLINGS[spelling](*parts(field)))
        pd.testing.assert_frame_equal(derive(spelt), expected, check_like=True)

    @needs_table
    def test_are_those_of_the_table_and_use_its_fields(self):
        lines = rules()
        assert {line[0] for line in lines} == set(RULES)
        for name, _, fields, *_ in lines:
            named = {word.strip("(),") for word in fields.split() if "-" in word and word[0].isdigit()}
            assert named == set(RULES[name].fields), name

    @needs_table
    def test_make_two_classes_where_the_table_has_classes_and_more_values_elsewhere(self):
        found = derive(export())
        for name, kind, *_ in rules():
            assert (set(found[name].dropna()) == {0, 1}) == (kind == "classification"), name

    def test_text_that_is_a_number_is_one(self):
        table = export(50)
        as_text = table.apply(lambda column: column.map(lambda value: "" if np.isnan(value) else f" {value:g} "))
        pd.testing.assert_frame_equal(derive(as_text), derive(table))

    def test_keep_the_index(self):
        table = export(5).set_axis(list("edcba"))
        assert derive(table).index.tolist() == list("edcba")
        as_text = pd.DataFrame({"31-0.0": ["1", None, "0"]}, index=[2, 0, 1])
        np.testing.assert_array_equal(derive(as_text)["sex"], [1, np.nan, 0])

    def test_other_codes_of_sex_are_nothing(self):
        found = derive(pd.DataFrame({"31-0.0": [0, 1, 2, -1, 9]}))
        np.testing.assert_array_equal(found["sex"], [0, 1, np.nan, np.nan, np.nan])


class TestScores:
    @pytest.mark.parametrize(
        ("name", "fields", "lowest"),
        [
            ("PHQ9", [f"{field}-0.0" for field in PHQ9], 0),
            ("GAD7", [f"{field}-0.0" for field in GAD7], 0),
            ("RDS4", [f"{field}-2.0" for field in RDS4], 1),
        ],
    )
    def test_go_from_the_lowest_to_the_highest_and_need_every_item(self, name, fields, lowest):
        n = len(fields)
        table = pd.DataFrame([[1] * n, [4] * n, [1] * (n - 1) + [3]], columns=fields, dtype="float64")
        assert derive(table)[name].tolist() == [n * lowest, n * (3 + lowest), n * lowest + 2]
        for unknown in (np.nan, *UNKNOWN):
            without = pd.DataFrame(np.where(np.eye(n), unknown, 4), columns=fields)
            assert derive(without)[name].isna().all()


class TestGrip:
    @pytest.mark.parametrize(
        ("now", "before", "expected"),
        [
            (1, 2, 40),
            (2, 1, 30),
            (np.nan, 1, 40),
            (-3, 2, 30),
            (3, 1, np.nan),
            (np.nan, 3, np.nan),
            (-3, -3, np.nan),
            (np.nan, np.nan, np.nan),
        ],
    )
    def test_is_of_the_hand_of_the_imaging_visit_or_else_of_the_first(self, now, before, expected):
        hands = {"46-2.0": [30.0], "47-2.0": [40.0], "1707-2.0": [now], "1707-0.0": [before]}
        np.testing.assert_array_equal(derive(pd.DataFrame(hands))["grip_strength"], [expected])

    def test_is_not_that_of_the_other_hand_where_one_was_not_measured(self):
        hands = {"46-2.0": [30, np.nan], "47-2.0": [np.nan, 40], "1707-2.0": [1, 2], "1707-0.0": [1, 2]}
        assert derive(pd.DataFrame(hands))["grip_strength"].isna().all()


class TestIllnesses:
    def test_of_who_reported_none_are_none_and_of_who_did_not_come_are_not_known(self):
        table = pd.DataFrame({"20002-2.0": [1065, np.nan, np.nan, 1065], "21003-2.0": [60, 61, np.nan, np.nan]})
        found = derive(table)
        np.testing.assert_array_equal(found["hypertension"], [1, 0, np.nan, 1])
        np.testing.assert_array_equal(found["depression"], [0, 0, np.nan, 0])

    def test_without_the_column_of_visits_nobody_is_known_to_have_stayed_away(self):
        found = derive(pd.DataFrame({"20002-2.0": [1286, np.nan]}))
        assert found["depression"].tolist() == [1, 0]
        assert "age" not in found

    def test_of_other_visits_do_not_count(self):
        assert "depression" not in derive(pd.DataFrame({"20002-0.0": [1286], "20002-3.0": [1286]}))

    def test_in_the_last_of_many_elements_count(self):
        table = pd.DataFrame({f"20002-2.{element}": [1065 if element == 33 else np.nan] for element in range(34)})
        assert derive(table)["hypertension"].tolist() == [1]


class TestColumns:
    @pytest.mark.parametrize(
        ("column", "field"),
        [
            ("21003-2.0", "21003-2.0"),
            ("f.20002.2.11", "20002-2.11"),
            ("f21003_2_0", "21003-2.0"),
            ("x31_0_0", "31-0.0"),
            ("p31", "31-0.0"),
            ("p21003_i2", "21003-2.0"),
            ("p20002_i2_a11", "20002-2.11"),
            ("participant.p20127_i0", "20127-0.0"),
            ("participant.p31", "31-0.0"),
            ("age", None),
            ("eid", None),
            ("participant.eid", None),
            ("f.eid", None),
            ("participant.31-0.0", None),
            ("21003-2", None),
            ("21003", None),
            ("p20002_a", None),
            ("xp31_0_0", None),
        ],
    )
    def test_are_told_by_their_spelling(self, column, field):
        assert field_of(column) == field

    def test_of_an_ordinary_table_are_what_they_say(self):
        """p3 may be an item, or a principal component."""
        assert raw_fields(["subject", "p3", "p31", "age"]) == {}
        for person in ("eid", "participant.eid", "f.eid"):
            assert raw_fields([person, "p31", "age"]) == {"p31": "31-0.0"}
        assert raw_fields(["subject", "p31", "p21003_i2"]) == {"p31": "31-0.0", "p21003_i2": "21003-2.0"}

    def test_that_are_needed_are_all_there_or_the_phenotype_is_left_out(self):
        table = export(10)
        assert set(derive(table.drop(columns="20519-0.0"))) == set(RULES) - {"PHQ9"}
        assert set(derive(table.drop(columns="1707-0.0"))) == set(RULES) - {"grip_strength"}
        assert derive(pd.DataFrame({"score": [1.0]})).shape == (1, 0)

    def test_are_those_of_the_phenotypes_that_are_asked_for(self):
        made = sources([*CODES, "99-0.0"], ["depression", "sex"])
        assert made["sex"] == ["31-0.0"]
        assert made["depression"] == ["20002-2.0", "20002-2.1", "20002-2.2", "20002-2.3", "21003-2.0"]
        assert set(made) == {"depression", "sex"}
        assert list(derive(export(5), ["sex"])) == ["sex"]

    def test_in_two_spellings_are_refused(self):
        table = pd.DataFrame({"31-0.0": [0.0], "p31": [1.0]})
        with pytest.raises(ConfigError, match=r"got field 31-0.0 in columns \['31-0.0', 'p31'\], expected it in one"):
            derive(table)
        elements = ["f.20002.2.0", "20002-2.1", "p20002_i2_a1"]
        with pytest.raises(ConfigError, match=r"got field 20002-2.1 in columns \['20002-2.1', 'p20002_i2_a1'\]"):
            sources(elements)
        assert sources([*elements, "p31"], ["sex"]) == {"sex": ["p31"]}

    def test_of_labels_are_refused_by_name(self):
        table = pd.DataFrame({"31-0.0": ["Female", "Male"], "99-0.0": ["x", "y"]})
        with pytest.raises(ConfigError, match=r"got 'Female' in column 31-0.0, expected numbers") as caught:
            derive(table)
        assert "coding option RAW" in caught.value.hint
        assert derive(table.drop(columns="31-0.0")).shape == (2, 0)

    @pytest.mark.parametrize(
        ("cells", "shown"),
        [(["3", "Prefer not to answer"], "Prefer"), (["1", "inf"], "inf"), ([True, False], "True"), ([None, "?"], "?")],
    )
    def test_of_anything_but_numbers_are_refused(self, cells, shown):
        table = pd.DataFrame({"2178-2.0": pd.Series(cells)})
        with pytest.raises(ConfigError, match=rf"got '{re.escape(shown)}.*' in column 2178-2.0, expected numbers"):
            derive(table)
