"""Cells of tables: digits, p-values, missing values; CSV in full precision."""

import io

import numpy as np
import pandas as pd
import pytest

from dtg_ray.report.page_tables import csv_text, is_number, texts


def shown(values, name="r"):
    return [row[0] for row in texts(pd.DataFrame({name: values}))]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.12345, -0.5, 1.0], ["0.123", "−0.500", "1.000"]),
        ([12.3456, 1.0], ["12.35", "1.00"]),
        ([1234.56, 0.004], ["1234.6", "0.004"]),
        ([0.00012345, 0.002], ["0.00012", "0.00200"]),
        ([1e-9, 0.5], ["1e−09", "0.500"]),
        ([1e-17, 0.5], ["0.000", "0.500"]),
        ([-1e-17, 0.5], ["0.000", "0.500"]),
        ([3.0, 100.0], ["3", "100"]),
        ([np.nan, 0.25, np.inf, -np.inf], ["–", "0.250", "∞", "−∞"]),
        ([np.nan, np.nan], ["–", "–"]),
    ],
)
def test_floats_have_the_same_decimals_in_the_whole_column(values, expected):
    assert shown(values) == expected


@pytest.mark.parametrize("name", ["p", "family-wise p", "p_family", "P (one-sided)"])
def test_p_values_have_four_decimals_or_a_bound(name):
    assert shown([0.00004, 0.0001, 0.04849, 1.0, np.nan], name) == ["< 0.0001", "0.0001", "0.0485", "1.0000", "–"]


@pytest.mark.parametrize("name", ["phenotype score", "map", "steps"])
def test_columns_with_a_p_in_their_name_are_no_p_values(name):
    assert shown([0.00004, 0.5], name)[1] == "0.500"


def test_whole_numbers_keep_their_digits_as_they_may_be_names():
    assert shown(pd.array([1000001, None, -2], dtype="Int64")) == ["1000001", "–", "−2"]
    assert shown([2**62 + 1]) == [str(2**62 + 1)]


def test_words_dates_and_truths():
    assert shown([True, False]) == ["yes", "no"]
    assert shown(["a", None, np.nan, 0.123456, np.bool_(True)]) == ["a", "–", "–", "0.1235", "yes"]
    assert shown([pd.Timestamp("2026-01-02"), pd.NaT]) == ["2026-01-02 00:00:00", "–"]
    assert shown([["FACES", "WM"]]) == ["['FACES', 'WM']"]


def test_columns_of_the_same_name_stay_apart():
    table = pd.DataFrame([[0.5, "x"]], columns=["a", "a"])
    assert texts(table) == [["0.500", "x"]]
    assert [is_number(table.iloc[:, place]) for place in (0, 1)] == [True, False]
    assert not is_number(pd.Series([True]))


def test_a_table_without_rows_has_no_cells():
    assert texts(pd.DataFrame({"a": []})) == []


def test_csv_gives_every_number_back():
    table = pd.DataFrame({"r": [1 / 3, np.nan, 1e-300], "who, or what": ['a "b"', "line\nbreak", ""]})
    back = pd.read_csv(io.StringIO(csv_text(table)), keep_default_na=False, na_values={"r": [""]})
    pd.testing.assert_frame_equal(back, table)
