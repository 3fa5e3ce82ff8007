"""Tables about people."""

import pandas as pd
import pytest

from cohort_files import write_bytes, write_table
from dtg_ray.cohort.phenotypes import SUBJECT_COLUMNS, empty_phenotypes, read_phenotypes, read_tables
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


class TestSeveralTables:
    def test_are_joined_by_subject(self, root):
        one = write_table(f"{root}/one.csv", [{"eid": "2", "age": 60}, {"eid": "1", "age": 50}])
        two = write_table(f"{root}/two.tsv", [{"eid": "3", "score": 3.5}, {"eid": "1", "score": 1.5}])
        table = read_tables([one, two]).set_index("subject")
        assert table["age"].dropna().to_dict() == {"1": 50, "2": 60}
        assert table["score"].dropna().to_dict() == {"1": 1.5, "3": 3.5}

    def test_of_the_same_words_count_once(self, tmp_path):
        one = write_table(tmp_path / "one.csv", [{"eid": "1", "age": 50}, {"eid": "2", "age": 60}])
        two = write_table(tmp_path / "two.tsv", [{"subject": "2", "age": 60}, {"subject": "1", "age": 50}])
        assert read_tables([one, two]).to_dict("list") == {"subject": ["1", "2"], "age": [50, 60]}

    def test_with_a_column_in_common_are_refused(self, tmp_path):
        paths = [
            write_table(tmp_path / f"{name}.csv", [{"eid": "1", name: 1, **row}])
            for name, row in (("a", {"age": 50}), ("b", {"sex": "M"}), ("c", {"age": 51, "sex": "M"}))
        ]
        with pytest.raises(ConfigError, match=r"c.csv: got columns \['age', 'sex'\] that a.csv, b.csv has as well"):
            read_tables(paths)

    def test_none_know_nobody(self):
        pd.testing.assert_frame_equal(read_tables([]), empty_phenotypes())
