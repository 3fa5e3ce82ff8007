"""A plain table of paths."""

import re
from pathlib import Path

import pytest

from cohort_files import write_bytes, write_table
from dtg_ray.cohort.layouts import table
from dtg_ray.errors import ConfigError
from dtg_ray.imaging.scan import Scan

ROWS = [
    {"subject": "002", "rest": "b.nii.gz", "contrast:LH": "maps/b.nii", "age": 60},
    {"subject": "001", "rest": "a1.nii.gz; a2.nii.gz", "contrast:LH": None, "age": 50},
    {"subject": "003", "rest": None, "contrast:LH": "c.nii", "age": 70},
]


@pytest.mark.parametrize("extension", ["csv", "tsv", "parquet"])
def test_every_kind_of_table_says_the_same(tmp_path, extension):
    found = table.find(write_table(tmp_path / f"people.{extension}", ROWS))
    one, two = found.participants
    assert (one.subject, one.contrasts) == ("001", {})
    assert one.rest == [Scan(f"{tmp_path}/a1.nii.gz"), Scan(f"{tmp_path}/a2.nii.gz")]
    assert (two.subject, two.rest) == ("002", [Scan(f"{tmp_path}/b.nii.gz")])
    assert two.contrasts == {"LH": Scan(f"{tmp_path}/maps/b.nii")}
    assert found.left_out == {"003": "no rest run in the table"}
    assert found.phenotypes.to_dict("list") == {"subject": ["002", "001", "003"], "age": [60, 50, 70]}


def test_relative_paths_are_meant_from_the_folder_of_the_table(root):
    found = table.find(write_table(f"{root}/lists/people.csv", ROWS[:1]))
    assert found.participants[0].rest == [Scan(f"{root}/lists/b.nii.gz")]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("/data/a.nii", "/data/a.nii"),
        ("file:///data/a.nii", "/data/a.nii"),
        ("~/a.nii", f"{Path.home()}/a.nii"),
        ("s3://bucket/a.nii", "s3://bucket/a.nii"),
        ("/data/lists/../a.nii", "/data/lists/../a.nii"),
        ("zip://x/a.nii::/data/a.zip", "zip://x/a.nii::/data/a.zip"),
        ("zip://x/a.nii::s3://bucket/a.zip", "zip://x/a.nii::s3://bucket/a.zip"),
        ("zip://x/a.nii::~/a.zip", f"zip://x/a.nii::{Path.home()}/a.zip"),
    ],
)
def test_other_paths_are_kept(tmp_path, given, meant):
    path = write_table(tmp_path / "people.csv", [{"subject": "1", "rest": given, "contrast:LH": given}])
    (person,) = table.find(path).participants
    assert person.rest == [Scan(meant)]
    assert person.contrasts == {"LH": Scan(meant)}


def test_a_table_may_be_named_relative_to_the_working_folder(tmp_path, monkeypatch):
    write_table(tmp_path / "people.csv", ROWS[:1])
    monkeypatch.chdir(tmp_path)
    assert table.find("people.csv").participants[0].rest == [Scan(f"{tmp_path}/b.nii.gz")]


class TestCompanions:
    def person(self, folder, **columns):
        (person,) = table.find(write_table(f"{folder}/t.csv", [{"subject": "1", **columns}])).participants
        return person

    def test_of_one_run(self, root):
        names = ("warp", "premat", "reference", "mask", "confounds", "motion")
        columns = {f"rest_{name}": f"{name}.x" for name in names}
        assert self.person(root, rest="a.nii", **columns).rest == [
            Scan(f"{root}/a.nii", **{name: f"{root}/{name}.x" for name in names})
        ]

    def test_are_one_per_run_or_one_for_all(self, tmp_path):
        columns = {"rest_mask": "m1.nii ;m2.nii;m3.nii", "rest_warp": "w.nii", "rest_motion": "x.txt;;/y.txt"}
        assert self.person(tmp_path, rest="a.nii;b.nii;c.nii", **columns).rest == [
            Scan(f"{tmp_path}/a.nii", f"{tmp_path}/w.nii", mask=f"{tmp_path}/m1.nii", motion=f"{tmp_path}/x.txt"),
            Scan(f"{tmp_path}/b.nii", f"{tmp_path}/w.nii", mask=f"{tmp_path}/m2.nii"),
            Scan(f"{tmp_path}/c.nii", f"{tmp_path}/w.nii", mask=f"{tmp_path}/m3.nii", motion="/y.txt"),
        ]

    def test_of_contrasts(self, tmp_path):
        columns = {"contrast:LH": "l.nii", "contrast:R;H": "r.nii", "contrast:RF": None, "warp:RF": "w.nii"}
        columns |= {f"{name}:R;H": f"{name}.x" for name in ("warp", "premat", "reference", "mask")}
        names = {name: f"{tmp_path}/{name}.x" for name in ("warp", "premat", "reference", "mask")}
        assert self.person(tmp_path, rest="a.nii", **columns).contrasts == {
            "LH": Scan(f"{tmp_path}/l.nii"),
            "R;H": Scan(f"{tmp_path}/r.nii", **names),
        }

    def test_are_no_phenotypes(self, tmp_path):
        columns = {"rest_mask": "m.nii", "contrast:LH": "l.nii", "warp:LH": "w.nii", "resting_hr": 60, "mask": "yes"}
        rows = [{"subject": "1", "rest": "a.nii", **columns}]
        found = table.find(write_table(tmp_path / "t.csv", rows))
        assert list(found.phenotypes.columns) == ["subject", "resting_hr", "mask"]

    @pytest.mark.parametrize(("runs", "given"), [("a.nii;b.nii;c.nii", "x;y"), ("a.nii", "x;y"), ("a.nii", "x;")])
    def test_that_fit_neither_count_leave_the_subject_out(self, tmp_path, runs, given):
        rows = [{"subject": "1", "rest": runs, "rest_mask": given}, {"subject": "2", "rest": "d.nii"}]
        found = table.find(write_table(tmp_path / "t.csv", rows))
        count = runs.count(";") + 1
        assert [person.subject for person in found.participants] == ["2"]
        assert found.left_out == {"1": f"got 2 values of rest_mask for {count} rest runs, expected 1 or {count}"}


class TestMembers:
    def test_of_archives_named_relative_to_the_table(self, root):
        rows = [{"subject": "1", "rest": "zip://fMRI/a.nii.gz::zips/1.zip", "contrast:LH": "zip://l.nii::./2.zip"}]
        (person,) = table.find(write_table(f"{root}/t.csv", rows)).participants
        assert person.rest == [Scan(f"zip://fMRI/a.nii.gz::{root}/zips/1.zip")]
        assert person.contrasts == {"LH": Scan(f"zip://l.nii::{root}/2.zip")}


class TestLeftOut:
    def test_paths_that_lead_out_of_the_folder_of_the_table(self, root):
        columns = ("rest", "rest_mask", "contrast:LH", "warp:LH")
        fine = dict.fromkeys(columns, "a.nii")
        rows = [{"subject": str(row), **fine, name: "x/../../a.nii"} for row, name in enumerate(columns)]
        found = table.find(write_table(f"{root}/lists/t.csv", [*rows, {"subject": "4", **fine, "rest": "y/../b.nii"}]))
        assert [person.rest[0].image for person in found.participants] == [f"{root}/lists/b.nii"]
        why = f"got x/../../a.nii, which leads out of {root}/lists, expected a path below it or an absolute one"
        assert found.left_out == {str(row): why for row in range(4)}

    @pytest.mark.parametrize(
        ("path", "named"),
        [
            ("zip://a.nii::../a.zip", "got ../a.zip, which leads out of"),
            ("zip://../a.nii::a.zip", "got member '../a.nii'"),
            ("zip:///a.nii::a.zip", "got member '/a.nii'"),
            ("..", "got .., which leads out of"),
        ],
    )
    def test_archives_and_members_that_lead_out_too(self, tmp_path, path, named):
        rows = [{"subject": "1", "rest": path}, {"subject": "2", "rest": "..a/a..nii"}]
        found = table.find(write_table(tmp_path / "t.csv", rows))
        assert [person.rest for person in found.participants] == [[Scan(f"{tmp_path}/..a/a..nii")]]
        assert named in found.left_out["1"]

    @pytest.mark.parametrize("extension", ["csv", "parquet"])
    def test_subjects_in_several_rows(self, tmp_path, extension):
        rows = [{"subject": name, "rest": f"{n}.nii", "age": n} for n, name in enumerate(("01", "02", "01", "03"))]
        found = table.find(write_table(tmp_path / f"t.{extension}", rows))
        assert [person.subject for person in found.participants] == ["02", "03"]
        assert found.left_out == {"01": "in several rows of the table, expected one"}
        assert found.phenotypes.to_dict("list") == {"subject": ["02", "03"], "age": [1, 3]}

    def test_have_the_right_reason_when_there_is_no_run(self, tmp_path):
        rows = [{"subject": "1", "rest": " ; ", "rest_mask": "x;y"}, {"subject": "2", "rest": "a.nii"}]
        found = table.find(write_table(tmp_path / "t.csv", rows))
        assert found.left_out == {"1": "no rest run in the table"}


class TestMapsAlone:
    def test_need_no_column_of_rest_runs(self, tmp_path):
        rows = [{"subject": "1", "contrast:LH": "a.nii"}, {"subject": "2", "contrast:LH": None}]
        found = table.find(write_table(tmp_path / "t.csv", rows), needed="contrasts")
        (person,) = found.participants
        assert (person.subject, person.rest) == ("1", [])
        assert person.contrasts == {"LH": Scan(f"{tmp_path}/a.nii")}
        assert found.left_out == {"2": "no task map in the table"}

    def test_of_nobody_are_an_error(self, tmp_path):
        path = write_table(tmp_path / "t.csv", [{"subject": "1", "rest": "a.nii"}])
        with pytest.raises(ConfigError, match="got no row with a task map that can be used"):
            table.find(path, needed="contrasts")


class TestRefused:
    def refuse(self, path, rows, message):
        with pytest.raises(ConfigError, match=message):
            table.find(write_table(path, rows))

    def test_no_column_of_rest_runs(self, tmp_path):
        rows = [{"subject": "1", "bold": "a.nii"}]
        self.refuse(tmp_path / "t.csv", rows, r"t.csv: got columns \['subject', 'bold'\], expected one called 'rest'")

    def test_no_column_of_subjects(self, tmp_path):
        self.refuse(
            tmp_path / "t.csv", [{"who": "1", "rest": "a.nii"}], r"expected one of \['subject', 'participant_id'"
        )

    @pytest.mark.parametrize(
        "columns", [["rest_wrap"], ["rest_masks", "rest_foo"], ["warp:RH"], ["mask:"], ["contrast:"]]
    )
    def test_columns_that_belong_to_nothing(self, tmp_path, columns):
        rows = [{**ROWS[0], **dict.fromkeys(columns, "x.nii")}]
        self.refuse(tmp_path / "t.csv", rows, rf"t.csv: got columns {re.escape(str(columns))}, expected rest_warp, ")

    def test_every_row(self, tmp_path):
        rows = [{"subject": "1", "rest": "../a.nii"}, {"subject": "2", "rest": None}]
        with pytest.raises(ConfigError, match="got no row with a rest run that can be used") as caught:
            table.find(write_table(tmp_path / "t.csv", rows))
        assert caught.value.hint.startswith("1: got ../a.nii, which leads out of")
        assert caught.value.hint.endswith("2: no rest run in the table")

    def test_nobody_with_a_rest_run(self, tmp_path):
        self.refuse(tmp_path / "t.csv", ROWS[2:], "got no row with a rest run")

    def test_no_such_file(self, tmp_path):
        with pytest.raises(ConfigError, match=r"none.csv: got no such file"):
            table.find(str(tmp_path / "none.csv"))

    def test_not_a_table(self, tmp_path):
        with pytest.raises(ConfigError, match=r"t.parquet: not a table"):
            table.find(write_bytes(tmp_path / "t.parquet", b"text"))
