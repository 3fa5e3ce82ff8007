"""Parquet tables under a root."""

import pandas as pd
import pytest

from dtg_ray.errors import MissingFileError, StudyError
from dtg_ray.store.tables import read_table, write_table

TABLE = pd.DataFrame({"subject": ["a", "b"], "r": [0.5, None], "n": [1, 2]}, index=[7, 9])


def test_round_trip_without_the_index(storage):
    write_table(storage, "evaluation/summary.parquet", TABLE)
    pd.testing.assert_frame_equal(read_table(storage, "evaluation/summary.parquet"), TABLE.reset_index(drop=True))


def test_the_same_table_is_the_same_bytes(storage):
    write_table(storage, "one", TABLE)
    write_table(storage, "two", TABLE.reset_index(drop=True))
    assert storage.read("one") == storage.read("two")


def test_a_missing_table_is_named(storage):
    with pytest.raises(MissingFileError, match=r"none.parquet: got no such file"):
        read_table(storage, "none.parquet")


@pytest.mark.parametrize("data", [b"", b"text", b"PAR1 torn PAR1"])
def test_what_is_no_table_is_named(storage, data):
    storage.write("t.parquet", data)
    with pytest.raises(StudyError, match=r"t.parquet: not a Parquet table"):
        read_table(storage, "t.parquet")
