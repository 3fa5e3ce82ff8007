"""Tables about people."""

import multiprocessing
import resource

import numpy as np
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

    def test_by_column_have_what_any_of_them_has(self, tmp_path):
        one = write_table(tmp_path / "one.csv", [{"eid": "1", "age": 50, "more": 1}])
        two = write_table(tmp_path / "two.csv", [{"eid": "1", "score": 2.5, "more": 2}])
        assert read_tables([one, two], ["age", "score"]).to_dict("records") == [
            {"subject": "1", "age": 50, "score": 2.5}
        ]


def read_and_measure(path, columns):
    """The most memory of this process before and after reading a table, in bytes."""
    before, table = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, read_phenotypes(path, columns)
    return 1024 * before, table, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class TestByColumn:
    @pytest.mark.parametrize("extension", ["csv", "tsv", "parquet"])
    def test_only_what_is_named_is_read_in_the_order_of_the_table(self, root, extension):
        path = write_table(f"{root}/people.{extension}", ROWS)
        table = read_phenotypes(path, ["site", "age", "nothing"])
        assert list(table.columns) == ["subject", "age", "site"]
        pd.testing.assert_frame_equal(table, read_phenotypes(path)[["subject", "age", "site"]])

    def test_cells_keep_their_commas_quotes_and_lines(self, tmp_path):
        rows = [{"eid": "01", "note": 'a "b", c\nd', "age": 50}, {"eid": "02", "note": "", "age": 60}]
        path = write_table(tmp_path / "t.csv", rows)
        pd.testing.assert_frame_equal(read_phenotypes(path, ["note"]), read_phenotypes(path)[["subject", "note"]])
        assert read_phenotypes(path, ["note"])["note"][0] == rows[0]["note"]

    def test_a_column_has_one_type_however_long_it_is(self, tmp_path):
        """Whole numbers, and at the very end something else."""
        lines = "".join(f"{number},{number},x\n" for number in range(300_000))
        path = write_bytes(tmp_path / "t.csv", f"eid,mixed,word\n{lines}300000,end,x\n".encode())
        column = read_phenotypes(path, ["mixed"])["mixed"]
        assert column.map(type).unique().tolist() == [str]

    @pytest.mark.parametrize("line", ["3,4", "3,4,5,6"])
    def test_rows_of_another_length_are_refused(self, tmp_path, line):
        path = write_bytes(tmp_path / "t.csv", f"eid,age,more\n1,2,3\n{line}\n".encode())
        with pytest.raises(ConfigError, match=r"t.csv: not a table: .*3"):
            read_phenotypes(path, ["age"])

    @pytest.mark.parametrize("extension", ["csv", "parquet"])
    def test_of_thousands_of_columns_the_others_are_never_in_memory(self, tmp_path, extension):
        n, columns = 4000, 3000
        rng = np.random.default_rng(0)
        values = rng.integers(0, 1000, (n, columns)).astype(np.float32)
        wide = pd.DataFrame(values, columns=[f"{number}-2.0" for number in range(50_000, 50_000 + columns)])
        wide.insert(0, "eid", [f"{1_000_000 + number}" for number in range(n)])
        wide["21003-2.0"] = rng.integers(45, 80, n)
        path = str(tmp_path / f"wide.{extension}")
        if extension == "csv":
            wide.to_csv(path, index=False)
        else:
            wide.to_parquet(path, index=False, row_group_size=500)
        with multiprocessing.get_context("spawn").Pool(1) as process:
            before, table, after = process.apply(read_and_measure, (path, ["age", "50007-2.0"]))
        assert list(table.columns) == ["subject", "50007-2.0", "age"]
        assert table["age"].tolist() == wide["21003-2.0"].tolist()
        assert table["50007-2.0"].tolist() == wide["50007-2.0"].tolist()
        assert after - before < 0.5 * n * columns * 8


class TestUkBiobank:
    ROWS = (
        {"eid": 1000017, "21003-2.0": 61, "31-0.0": 1, "20016-2.0": None, "note": "a"},
        {"eid": 1000025, "21003-2.0": 55, "31-0.0": 0, "20016-2.0": 7, "note": "b"},
    )

    @pytest.mark.parametrize("extension", ["csv", "tsv", "parquet"])
    def test_phenotypes_take_the_place_of_raw_fields(self, root, extension):
        table = read_phenotypes(write_table(f"{root}/ukb.{extension}", self.ROWS))
        assert list(table.columns) == ["subject", "note", "age", "sex", "fluid_intelligence"]
        assert table["subject"].tolist() == ["1000017", "1000025"]
        np.testing.assert_array_equal(table["fluid_intelligence"], [np.nan, 7])

    def test_raw_fields_that_are_named_stay(self, tmp_path):
        path = write_table(tmp_path / "ukb.csv", self.ROWS)
        assert list(read_phenotypes(path, ["20016-2.0", "sex"]).columns) == ["subject", "20016-2.0", "sex"]

    def test_a_column_called_like_a_phenotype_is_refused_beside_its_fields(self, tmp_path):
        path = write_table(tmp_path / "ukb.csv", [{**row, "age": 1} for row in self.ROWS])
        with pytest.raises(ConfigError, match=r"ukb.csv: got columns \['age'\] and the fields .* derived from"):
            read_phenotypes(path)
        assert list(read_phenotypes(path, ["sex"]).columns) == ["subject", "sex"]

    def test_labels_in_place_of_codes_are_refused_by_file_and_column(self, tmp_path):
        path = write_table(tmp_path / "ukb.csv", [{**row, "31-0.0": "Male"} for row in self.ROWS])
        with pytest.raises(ConfigError, match=r"ukb.csv: got 'Male' in column 31-0.0, expected numbers"):
            read_phenotypes(path)
        assert list(read_phenotypes(path, ["age"]).columns) == ["subject", "age"]
