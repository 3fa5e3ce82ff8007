"""A plain table of paths."""

from pathlib import Path

import pytest

from cohort_files import write_bytes, write_table
from dtg_ray.cohort.layouts import table
from dtg_ray.errors import ConfigError

ROWS = [
    {"subject": "002", "rest": "b.nii.gz", "contrast:LH": "maps/b.nii", "age": 60},
    {"subject": "001", "rest": "a1.nii.gz; a2.nii.gz", "contrast:LH": None, "age": 50},
    {"subject": "003", "rest": None, "contrast:LH": "c.nii", "age": 70},
]


@pytest.mark.parametrize("extension", ["csv", "tsv", "parquet"])
def test_every_kind_of_table_says_the_same(tmp_path, extension):
    found = table.find(write_table(tmp_path / f"people.{extension}", ROWS))
    one, two = found.participants
    assert (one.subject, one.rest, one.contrasts) == ("001", [f"{tmp_path}/a1.nii.gz", f"{tmp_path}/a2.nii.gz"], {})
    assert (two.subject, two.rest) == ("002", [f"{tmp_path}/b.nii.gz"])
    assert two.contrasts == {"LH": f"{tmp_path}/maps/b.nii"}
    assert found.left_out == {"003": "no rest run in the table"}
    assert found.phenotypes.to_dict("list") == {"subject": ["002", "001", "003"], "age": [60, 50, 70]}


def test_relative_paths_are_meant_from_the_folder_of_the_table(root):
    found = table.find(write_table(f"{root}/lists/people.csv", ROWS[:1]))
    assert found.participants[0].rest == [f"{root}/lists/b.nii.gz"]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("/data/a.nii", "/data/a.nii"),
        ("file:///data/a.nii", "/data/a.nii"),
        ("~/a.nii", f"{Path.home()}/a.nii"),
        ("s3://bucket/a.nii", "s3://bucket/a.nii"),
    ],
)
def test_other_paths_are_kept(tmp_path, given, meant):
    path = write_table(tmp_path / "people.csv", [{"subject": "1", "rest": given, "contrast:LH": given}])
    (person,) = table.find(path).participants
    assert person.rest == [meant]
    assert person.contrasts == {"LH": meant}


def test_a_table_may_be_named_relative_to_the_working_folder(tmp_path, monkeypatch):
    write_table(tmp_path / "people.csv", ROWS[:1])
    monkeypatch.chdir(tmp_path)
    assert table.find("people.csv").participants[0].rest == [f"{tmp_path}/b.nii.gz"]


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

    def test_the_same_subject_twice(self, tmp_path):
        rows = [{"subject": name, "rest": "a.nii"} for name in ("01", "02", "01")]
        self.refuse(tmp_path / "t.tsv", rows, "t.tsv: got subjects more than once: 01")

    def test_nobody_with_a_rest_run(self, tmp_path):
        self.refuse(tmp_path / "t.csv", ROWS[2:], "got no row with a rest run")

    def test_no_such_file(self, tmp_path):
        with pytest.raises(ConfigError, match=r"none.csv: got no such file"):
            table.find(str(tmp_path / "none.csv"))

    def test_not_a_table(self, tmp_path):
        with pytest.raises(ConfigError, match=r"t.parquet: not a table"):
            table.find(write_bytes(tmp_path / "t.parquet", b"text"))
