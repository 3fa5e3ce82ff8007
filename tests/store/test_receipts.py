"""Receipts: what was committed is read, what is torn counts as not done."""

import io
import logging
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from dtg_ray.store.files import Storage
from dtg_ray.store.receipts import SCHEMA, VARYING, Receipts, Row

ROWS = [
    Row(
        "sub-01",
        "done",
        "f" * 16,
        uri="s3://b/1.nii",
        size=2**40,
        etag="abc",
        seconds=1.5,
        peak_memory=2**33,
        qc={"tsnr": 50.5},
    ),
    Row("sub-02", "failed", "f" * 16, error_type="ShapeError", message="sub-02: 2.nii: got …, expected a 4-D series"),
    Row("sub-03", "excluded", "f" * 16, message="no task map", qc={"b": float("nan"), "a": 2.0}),
]


@pytest.fixture
def receipts(storage):
    return Receipts(storage, "synthesize/unet")


def commit(receipts, unit="block-00000", rows=ROWS, attempt=1):
    receipts.write(unit, rows, attempt=attempt, host="node-1")


class TestRoundTrip:
    def test_every_column_comes_back(self, receipts):
        begin = pd.Timestamp.now(tz="UTC").floor("ms")
        commit(receipts, attempt=3)
        table = receipts.read(["block-00000"])
        assert list(table.columns) == SCHEMA.names
        for row, (_, read) in zip(ROWS, table.iterrows(), strict=True):
            assert {name: read[name] for name in vars(row) if name != "qc"} == {
                name: value for name, value in vars(row).items() if name != "qc"
            }
        assert table["qc"].tolist()[:2] == [{"tsnr": 50.5}, {}]
        assert list(table["qc"][2]) == ["a", "b"]
        assert np.isnan(table["qc"][2]["b"])
        for name, value in {"stage": "synthesize/unet", "unit": "block-00000", "attempt": 3, "host": "node-1"}.items():
            assert set(table[name]) == {value}
        assert set(table["fingerprint"]) == {"f" * 16}
        assert (table["finished"] >= begin).all()

    def test_lies_where_the_design_says(self, receipts, storage):
        commit(receipts)
        assert storage.names("") == ["receipts/synthesize/unet/block-00000.parquet"]
        assert receipts.units() == ["block-00000"]

    def test_the_same_work_gives_the_same_columns_but_for_the_varying_ones(self, receipts):
        commit(receipts, "block-00000")
        commit(receipts, "block-00001", attempt=2)
        one, two = (receipts.read([unit]).drop(columns=[*VARYING, "unit"]) for unit in receipts.units())
        pd.testing.assert_frame_equal(one, two)

    def test_several_units_at_once_in_the_order_of_their_names(self, receipts):
        for number in (2, 0, 1):
            commit(receipts, f"block-{number:05d}", [Row(f"sub-{number}", "done")])
        assert receipts.read(["block-00002", "block-00000", "none"])["subject"].tolist() == ["sub-0", "sub-2"]
        assert receipts.units() == ["block-00000", "block-00001", "block-00002"]

    def test_nothing_is_an_empty_table_of_the_same_columns(self, receipts):
        for units in ([], ["none"]):
            table = receipts.read(units)
            assert len(table) == 0
            assert list(table.columns) == SCHEMA.names
        assert receipts.units() == []

    def test_stages_do_not_mix(self, storage):
        for stage in ("train", "train/unet", "train/linear"):
            commit(Receipts(storage, stage), "model", [Row(stage, "done")])
        assert Receipts(storage, "train").units() == ["model"]
        assert Receipts(storage, "train/unet").read(["model"])["subject"].tolist() == ["train/unet"]


class TestIndex:
    """One file of all receipts saves reading them, and never says anything else than they do."""

    @pytest.fixture
    def many(self, receipts, monkeypatch):
        monkeypatch.setattr("dtg_ray.store.receipts.MANY", 3)
        for number in (3, 0, 2, 1):
            commit(receipts, f"block-{number:05d}", [replace(ROWS[0], subject=f"sub-{number}"), ROWS[1]])
        return receipts

    def read(self, receipts):
        return receipts.read([f"block-{number:05d}" for number in range(5)])

    def test_says_the_same(self, many):
        before = self.read(many)
        many.index()
        pd.testing.assert_frame_equal(self.read(many), before)
        assert before["subject"].tolist() == [
            "sub-0",
            "sub-02",
            "sub-1",
            "sub-02",
            "sub-2",
            "sub-02",
            "sub-3",
            "sub-02",
        ]

    def test_is_read_in_the_place_of_receipts(self, many, monkeypatch):
        many.index()
        read = []
        one_by_one = Storage.read_many
        monkeypatch.setattr(Storage, "read_many", lambda self, names: read.extend(names) or one_by_one(self, names))
        commit(many, "block-00002", [replace(ROWS[0], subject="new")])
        assert "new" in self.read(many)["subject"].tolist()
        assert read == [many.name("block-00002")]

    def test_does_not_remember_what_is_gone(self, many, storage):
        many.index()
        storage.delete(many.name("block-00001"))
        assert set(self.read(many)["unit"]) == {"block-00000", "block-00002", "block-00003"}
        commit(many, "block-00003", [ROWS[1]])
        assert self.read(many)["subject"].tolist()[-1] == "sub-02"
        assert len(self.read(many)) == 5

    @pytest.mark.parametrize("junk", [b"", b"PAR1", b"torn" * 100])
    def test_a_torn_one_is_passed_over(self, many, storage, junk):
        before = self.read(many)
        storage.write("index/synthesize/unet.parquet", junk)
        pd.testing.assert_frame_equal(self.read(many), before)
        many.index()
        pd.testing.assert_frame_equal(self.read(many), before)

    def test_few_have_none(self, receipts, storage):
        commit(receipts)
        receipts.index()
        assert storage.names("index") == []


class TestWithdraw:
    def test_deletes_and_counts_attempts(self, receipts):
        assert receipts.withdraw("block-00000") == 1
        commit(receipts, attempt=1)
        assert receipts.withdraw("block-00000") == 2
        assert receipts.units() == []
        commit(receipts, attempt=2)
        assert receipts.withdraw("block-00000") == 3

    def test_leaves_the_others(self, receipts):
        commit(receipts, "block-00000")
        commit(receipts, "block-00001")
        receipts.withdraw("block-00000")
        assert receipts.units() == ["block-00001"]

    def test_writing_again_replaces(self, receipts):
        commit(receipts, rows=ROWS)
        commit(receipts, rows=[replace(ROWS[0], fingerprint="0" * 16)])
        table = receipts.read(["block-00000"])
        assert (len(table), set(table["fingerprint"])) == (1, {"0" * 16})

    def test_leaves_rows_that_are_kept(self, receipts):
        """A block that is done again for one subject never loses what is done for the others."""
        commit(receipts, attempt=4)
        assert receipts.withdraw("block-00000", [ROWS[0]], "node-2") == 5
        table = receipts.read(["block-00000"])
        assert table[["subject", "attempt"]].to_numpy().tolist() == [["sub-01", 4]]


def test_a_row_holds_while_its_own_fingerprint_is_todays(receipts):
    commit(receipts)
    today = {"sub-01": "f" * 16, "sub-02": "0" * 16, "sub-03": None}
    assert receipts.holding("block-00000", today) == {"sub-01": ROWS[0]}
    assert receipts.holding("none", today) == {}


def zeros(data, begin, end):
    torn = bytearray(data)
    torn[begin:end] = bytes(len(torn[begin:end]))
    return bytes(torn)


def other_columns(_):
    buffer = io.BytesIO()
    pd.DataFrame({"subject": ["sub-01"]}).to_parquet(buffer)
    return buffer.getvalue()


class TestTorn:
    """A receipt that cannot be read counts as none: its unit is done again, and the log says so."""

    @pytest.mark.parametrize(
        "tear",
        [
            lambda _: b"",
            lambda data: data[:1],
            lambda data: data[: len(data) // 2],
            lambda data: data[:-1],
            lambda data: data[1:],
            lambda data: zeros(data, 4, 40),
            lambda data: zeros(data, -200, -8),
            lambda data: zeros(data, -8, -4),
            lambda _: b"PAR1" * 100,
            lambda _: b"<html>503</html>",
            other_columns,
        ],
    )
    def test_counts_as_none(self, storage, tear, caplog):
        receipts = Receipts(storage, "connectomes")
        commit(receipts, "block-00000")
        commit(receipts, "block-00001")
        name = receipts.name("block-00000")
        storage.write(name, tear(storage.read(name)))
        with caplog.at_level(logging.WARNING):
            table = receipts.read(["block-00000", "block-00001"])
        assert set(table["unit"]) == {"block-00001"}
        assert f"{name}: not a receipt" in caplog.text
        assert "will be done again" in caplog.text

    def test_is_replaced_by_the_next_attempt(self, receipts, storage):
        storage.write(receipts.name("block-00000"), b"torn")
        assert receipts.withdraw("block-00000") == 1
        commit(receipts)
        assert len(receipts.read(["block-00000"])) == len(ROWS)


def test_receipts_are_plain_parquet(tmp_path):
    commit(Receipts(Storage(str(tmp_path)), "connectomes"))
    assert pq.read_schema(tmp_path / "receipts/connectomes/block-00000.parquet").equals(SCHEMA)
