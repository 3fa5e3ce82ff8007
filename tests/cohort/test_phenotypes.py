"""Tables about people."""

import pandas as pd
import pytest

from cohort_files import write_bytes, write_table
from dtg_ray.cohort.phenotypes import SUBJECT_COLUMNS, empty_phenotypes, read_phenotypes
from dtg_ray.errors import ConfigError

ROWS = [
    {"age": 50, "subject": "0010", "score": 1.5, "site": "A"},
    {"age": 60, "subject": "0002", "score": None, "site": None},
]


@pytest.mark.parametrize("extension", ["csv", "tsv", "parquet"])
def test_every_kind_of_table_says_the_same(root, extension):
    table = read_phenotypes(write_table(f"{root}/people.{extension}", ROWS))
    assert list(table.columns) == ["subject", "age", "score", "site"]
    assert table["subject"].tolist() == ["0010", "0002"]
    assert table["age"].tolist() == [50, 60]
    assert table["score"].isna().tolist() == [False, True]
    assert table["site"].isna().tolist() == [False, True]


@pytest.mark.parametrize("column", SUBJECT_COLUMNS)
@pytest.mark.parametrize("extension", ["csv", "tsv", "parquet"])
def test_identifiers_stay_text_under_every_usual_name(tmp_path, column, extension):
    table = read_phenotypes(write_table(tmp_path / f"t.{extension}", [{column: "007", "age": 1}]))
    assert table.to_dict("records") == [{"subject": "007", "age": 1}]


def test_numbers_as_identifiers_become_text(tmp_path):
    table = read_phenotypes(write_table(tmp_path / "t.parquet", [{"eid": 1000017}]))
    assert table["subject"].tolist() == ["1000017"]


def test_nobody():
    table = empty_phenotypes()
    assert len(table) == 0
    assert pd.api.types.is_string_dtype(table["subject"])


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("t.csv", b"who,age\n1,2\n", r"t.csv: got columns \['who', 'age'\], expected one of"),
        ("t.tsv", b"subject\tage\n1\t2\n2\t3\n1\t4\n", "t.tsv: got subjects more than once: 1"),
        ("t.csv", b"subject,age\n1,2\n,3\nn/a,4\n", "t.csv: got 2 rows without a subject, expected none"),
        ("t.csv", b"", "t.csv: not a table: No columns"),
        ("t.csv", b'subject,age\n"1,2\n', "t.csv: not a table"),
        ("t.csv", b"subject\n\xff\xfe\n", "t.csv: not a table"),
        ("t.parquet", b"subject,age\n1,2\n", "t.parquet: not a table"),
    ],
)
def test_what_is_not_such_a_table_is_refused(tmp_path, name, data, message):
    with pytest.raises(ConfigError, match=message):
        read_phenotypes(write_bytes(tmp_path / name, data))


def test_a_missing_table_is_refused(root):
    with pytest.raises(ConfigError, match=r"none.tsv: got no such file"):
        read_phenotypes(f"{root}/none.tsv")
