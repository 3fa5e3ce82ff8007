"""Tables of the page in a browser: sorted, filtered, cut and whole."""

import re

import numpy as np
import pandas as pd
import pytest

from dtg_ray.report.page import Table
from page_samples import contrasts, long_table


@pytest.fixture
def table(open_page, page_of):
    """The table of 47 rows."""
    return open_page(page_of(Table("contrasts", "Contrasts", "", contrasts()))).page.locator("#table_contrasts")


@pytest.fixture
def long(open_page, page_of):
    """The table of 250 rows."""
    return open_page(page_of(Table("subjects", "Subjects", "", long_table()))).page.locator("#table_subjects")


def column(table, name):
    """Texts of a column from the first row to the last."""
    place = table.locator("th").all_inner_texts().index(name)
    return table.locator(f"tbody td:nth-child({place + 1})").all_inner_texts()


def header(table, name):
    return table.locator("th").filter(has=table.page.get_by_role("button", name=name, exact=True))


def numbers(texts):
    return [float(text.replace("−", "-")) for text in texts]


def test_numbers_are_sorted_as_numbers_in_both_directions(table):
    header(table, "r").get_by_role("button").click()
    upwards = numbers(column(table, "r"))
    assert upwards == sorted(upwards)
    assert upwards[0] < 0
    header(table, "r").get_by_role("button").click()
    assert numbers(column(table, "r")) == upwards[::-1]


def test_rows_stay_whole(table):
    header(table, "r").get_by_role("button").click()
    ordered = contrasts().sort_values("r", kind="stable")
    assert column(table, "contrast") == ordered["contrast"].tolist()


def test_missing_values_come_last_in_both_directions(table):
    for _ in range(2):
        header(table, "dice").get_by_role("button").click()
        shown = column(table, "dice")
        assert shown[-2:] == ["–", "–"]
        assert "–" not in shown[:-2]


def test_words_are_sorted_with_their_numbers_counted(table):
    header(table, "contrast").get_by_role("button").click()
    names = [name for name in column(table, "contrast") if name.startswith("TASK")]
    places = [int(re.search(r"\d+$", name)[0]) for name in names]
    assert places == sorted(places)
    assert 2 in places
    assert 10 in places


def test_tiny_p_values_are_sorted_by_their_value(open_page, page_of):
    values = [3e-5, 0.2, 1e-8, np.nan, 2e-5]
    table = open_page(page_of(Table("t", "T", "", pd.DataFrame({"p": values, "n": range(5)})))).page.locator("#table_t")
    header(table, "p").get_by_role("button").click()
    assert column(table, "n") == ["2", "4", "0", "1", "3"]


def test_infinite_and_missing_numbers_have_their_places(open_page, page_of):
    data = pd.DataFrame({"x": [np.inf, 1.5, np.nan, -np.inf, 0.0], "n": range(5)})
    table = open_page(page_of(Table("t", "T", "", data))).page.locator("#table_t")
    header(table, "x").get_by_role("button").click()
    assert column(table, "n") == ["3", "4", "1", "0", "2"]


def test_sorting_by_keys_alone_says_the_direction(table):
    button = header(table, "r").get_by_role("button")
    assert header(table, "r").get_attribute("aria-sort") == "none"
    button.press("Enter")
    assert header(table, "r").get_attribute("aria-sort") == "ascending"
    button.press("Space")
    assert header(table, "r").get_attribute("aria-sort") == "descending"
    assert numbers(column(table, "r"))[0] == max(numbers(column(table, "r")))
    header(table, "p").get_by_role("button").press("Enter")
    assert header(table, "r").get_attribute("aria-sort") == "none"


def test_a_filter_takes_words_and_numbers_and_counts(table):
    count = table.get_by_role("status")
    assert count.inner_text() == "47 rows"
    table.get_by_label("Filter").fill("contrast-1")
    assert len(column(table, "contrast")) == 11
    assert count.inner_text() == "11 of 47 rows"
    header(table, "r").get_by_role("button").click()
    assert len(column(table, "contrast")) == 11
    table.get_by_label("Filter").fill("-0.")
    negative = table.locator("tbody tr").all_inner_texts()
    assert len(negative) > 5
    assert all("−0." in text for text in negative)
    table.get_by_label("Filter").fill("nobody")
    assert column(table, "contrast") == []
    table.get_by_label("Filter").fill("")
    assert len(column(table, "contrast")) == 47


@pytest.mark.parametrize(("rows", "filters"), [(15, 0), (16, 1)])
def test_short_tables_need_no_filter(open_page, page_of, rows, filters):
    page = open_page(page_of(Table("t", "T", "", pd.DataFrame({"a": range(rows)})))).page
    assert page.get_by_label("Filter").count() == filters


def test_a_long_table_is_cut_until_all_is_asked_for(long):
    assert len(column(long, "subject")) == 200
    assert long.get_by_role("status").inner_text() == "250 rows, the first 200 shown"
    long.get_by_role("button", name="Show all 250 rows").press("Enter")
    assert column(long, "subject") == long_table()["subject"].tolist()
    assert column(long, "note")[9] == "motion, or rest; with a line"
    assert not long.get_by_role("button", name="Show all").is_visible()


def test_the_rows_that_are_not_drawn_are_sorted_and_found_too(long):
    for _ in range(2):
        header(long, "subject").get_by_role("button").click()
    assert column(long, "subject")[:2] == ["sub-250", "sub-249"]
    long.get_by_label("Filter").fill("sub-24")
    assert column(long, "subject") == [*(f"sub-{number}" for number in range(249, 239, -1)), "sub-24"]


def test_numbers_stand_to_the_right_with_their_names(table):
    align = "(all) => all.map((one) => getComputedStyle(one).textAlign)"
    expected = ["left", "right", "right", "right", "right", "right"]
    assert table.locator("tbody tr").first.locator("td").evaluate_all(align) == expected
    assert table.locator("th button").evaluate_all(align) == expected


def test_a_table_without_rows_or_columns_is_no_error(open_page, page_of):
    tables = [Table("rows", "", "", pd.DataFrame({"a": []})), Table("columns", "", "", pd.DataFrame())]
    opened = open_page(page_of(*tables))
    opened.page.get_by_role("button", name="a", exact=True).click()
    assert opened.problems == []
