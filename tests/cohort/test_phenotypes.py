"""Tables about people."""

import io
import multiprocessing
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from cohort_files import write_bytes, write_table
from dtg_ray.cohort.phenotypes import (
    BLOCK,
    REMOTE_BLOCK,
    SUBJECT_COLUMNS,
    empty_phenotypes,
    read_phenotypes,
    read_tables,
)
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

    def test_by_column_know_the_people_of_those_that_have_none_of_them(self, tmp_path):
        one = write_table(tmp_path / "one.csv", [{"eid": "01", "age": 50}])
        two = write_table(tmp_path / "two.csv", [{"eid": "02", "score": 2.5}])
        table = read_tables([one, two], ["age"])
        assert list(table.columns) == ["subject", "age"]
        assert table["subject"].tolist() == ["01", "02"]
        np.testing.assert_array_equal(table["age"], [50, np.nan])

    def test_of_uk_biobank_are_joined_with_others_by_what_is_made_of_them(self, root):
        export = write_table(f"{root}/ukb.parquet", [{"eid": 17, "21003-2.0": 61, "31-0.0": 1, "99-0.0": 5}])
        again = write_table(f"{root}/again.tsv", [{"eid": 17, "p21003_i2": 61, "p31": 1}])
        other = write_table(f"{root}/other.csv", [{"subject": "17", "site": "A", "age": 62}])
        assert read_tables([export, again, other], ["sex", "site"]).to_dict("records") == [
            {"subject": "17", "sex": 1, "site": "A"}
        ]
        with pytest.raises(ConfigError, match=r"other.csv: got columns \['age'\] that ukb.parquet has as well"):
            read_tables([export, again, other])


def peak():
    """The most memory of this process up to now, in bytes; `getrusage` would begin with that of its parent."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def read_and_measure(paths, columns):
    """The last of some tables, and how much memory it took in a process that has read the others already."""
    for path in paths[:-1]:
        read_phenotypes(path, columns)
    before, table = peak(), read_phenotypes(paths[-1], columns)
    return table, peak() - before


WIDE = [f"{number}-2.0" for number in range(50_000, 53_000)]


def write_wide(path, n):
    """A table of n people and thousands of raw fields, all the same but for the age and 50007-2.0."""
    ages, numbers = 45 + np.arange(n) % 30, np.arange(n) % 1000
    if path.endswith(".parquet"):
        same = pa.array(ages.astype(np.float64))
        columns = {"eid": pa.array(1_000_000 + np.arange(n)), **dict.fromkeys(WIDE, same)}
        columns |= {"50007-2.0": pa.array(numbers), "21003-2.0": pa.array(ages)}
        file = io.BytesIO()
        parquet.write_table(pa.table(columns), file, row_group_size=n // 8)
        return write_bytes(path, file.getvalue())
    before, after = "3," * 7, "5," * (len(WIDE) - 8)
    lines = [f"{1_000_000 + row},{before}{numbers[row]},{after}{ages[row]}" for row in range(n)]
    return write_bytes(path, "\n".join([",".join(["eid", *WIDE, "21003-2.0"]), *lines]).encode())


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
        n = 20_000
        few, many = (write_wide(str(tmp_path / f"{rows}.{extension}"), rows) for rows in (80, n))
        with multiprocessing.get_context("spawn").Pool(1) as process:
            table, taken = process.apply(read_and_measure, ([few, many], ["age", "50007-2.0"]))
        assert list(table.columns) == ["subject", "50007-2.0", "age"]
        assert table["age"].tolist() == [45 + row % 30 for row in range(n)]
        assert table["50007-2.0"].tolist() == [row % 1000 for row in range(n)]
        assert taken < 0.5 * n * len(WIDE) * 8

    def test_a_table_of_several_requests_is_whole(self, root):
        n = 4000
        path = write_wide(f"{root}/wide.csv", n)
        assert fsspec.url_to_fs(path)[0].size(path) > REMOTE_BLOCK
        table = read_phenotypes(path, ["age"])
        assert table["subject"].tolist() == [f"{1_000_000 + row}" for row in range(n)]
        assert table["age"].tolist() == [45 + row % 30 for row in range(n)]

    @pytest.mark.parametrize("column", SUBJECT_COLUMNS)
    @pytest.mark.parametrize("extension", ["csv", "tsv", "parquet"])
    def test_identifiers_keep_their_zeros_under_every_usual_name(self, tmp_path, column, extension):
        path = write_table(tmp_path / f"t.{extension}", [{"more": 1, column: "007", "age": 50}])
        assert read_phenotypes(path, ["age"]).to_dict("records") == [{"subject": "007", "age": 50}]

    def test_lines_in_cells_that_are_left_out_are_no_rows(self, tmp_path):
        """Nor are they where a block ends, wherever that is."""
        note = '"' + "a,\n" * 300 + '"'
        lines = [f"{row:06d},{note},{row}" for row in range(10_000)]
        path = write_bytes(tmp_path / "t.csv", "\n".join(["eid,note,score", *lines]).encode())
        assert Path(path).stat().st_size > 2 * BLOCK
        table = read_phenotypes(path, ["score"])
        assert table["score"].tolist() == list(range(10_000))
        assert table["subject"].tolist() == [f"{row:06d}" for row in range(10_000)]

    @pytest.mark.parametrize("columns", [["age"], []])
    @pytest.mark.parametrize("extension", ["csv", "tsv", "parquet"])
    def test_of_nobody_are_there_all_the_same(self, tmp_path, extension, columns):
        path = str(tmp_path / f"t.{extension}")
        write_table(path, pd.DataFrame(columns=["age", "eid", "more"]))
        table = read_phenotypes(path, columns)
        assert list(table.columns) == ["subject", *columns]
        assert len(table) == 0


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

    @pytest.mark.parametrize("extension", ["csv", "tsv", "parquet"])
    def test_raw_fields_that_are_named_stay(self, root, extension):
        path = write_table(f"{root}/ukb.{extension}", self.ROWS)
        table = read_phenotypes(path, ["20016-2.0", "fluid_intelligence", "sex"])
        assert list(table.columns) == ["subject", "20016-2.0", "sex", "fluid_intelligence"]
        np.testing.assert_array_equal(table["20016-2.0"], [np.nan, 7])
        np.testing.assert_array_equal(table["fluid_intelligence"], [np.nan, 7])
        assert table["sex"].tolist() == [1, 0]

    def test_what_looks_like_a_field_stays_in_an_ordinary_table(self, tmp_path):
        rows = [{"subject": "1", "p31": 0.5, "p3": 1.5}]
        assert read_phenotypes(write_table(tmp_path / "t.csv", rows)).to_dict("records") == rows

    def test_a_field_in_two_spellings_is_refused_where_it_is_needed(self, tmp_path):
        path = write_table(tmp_path / "ukb.csv", [{**row, "p31": 1} for row in self.ROWS])
        for columns in (None, ["sex"]):
            with pytest.raises(ConfigError, match=r"ukb.csv: got field 31-0.0 in columns \['31-0.0', 'p31'\]"):
                read_phenotypes(path, columns)
        assert list(read_phenotypes(path, ["age"]).columns) == ["subject", "age"]

    def test_a_column_called_like_a_phenotype_is_refused_beside_its_fields(self, tmp_path):
        path = write_table(tmp_path / "ukb.csv", [{**row, "age": 1} for row in self.ROWS])
        with pytest.raises(ConfigError, match=r"ukb.csv: got columns \['age'\] and the fields .* derived from"):
            read_phenotypes(path)
        with pytest.raises(ConfigError, match=r"ukb.csv: got columns \['age'\] and the fields .* derived from"):
            read_phenotypes(path, ["age"])
        assert list(read_phenotypes(path, ["sex"]).columns) == ["subject", "sex"]

    def test_a_column_called_like_a_phenotype_stays_without_its_fields(self, tmp_path):
        path = write_table(tmp_path / "ukb.csv", [{**row, "PHQ9": 20} for row in self.ROWS])
        assert read_phenotypes(path, ["PHQ9"])["PHQ9"].tolist() == [20, 20]

    def test_labels_in_place_of_codes_are_refused_by_file_and_column(self, tmp_path):
        path = write_table(tmp_path / "ukb.csv", [{**row, "31-0.0": "Male"} for row in self.ROWS])
        with pytest.raises(ConfigError, match=r"ukb.csv: got 'Male' in column 31-0.0, expected numbers"):
            read_phenotypes(path)
        assert list(read_phenotypes(path, ["age"]).columns) == ["subject", "age"]
