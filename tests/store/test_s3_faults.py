"""A root on S3 when the store throttles and the network cuts: whole data or an error, never anything else."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import zarr

from dtg_ray.config import StorageConfig
from dtg_ray.errors import MissingFileError, StorageError, StudyError
from dtg_ray.s3 import wait_after
from dtg_ray.store.arrays import ArraySpec, erase, prepare, write_rows
from dtg_ray.store.files import Storage, read
from s3_faults import HANG, KINDS, SHORT

pytestmark = pytest.mark.s3
DATA = np.random.default_rng(0).bytes(10_000)
VALUES = np.random.default_rng(1).normal(size=(6, 500)).astype(np.float16)
FATAL = [kind for kind in KINDS if kind != "delay"]


@pytest.fixture
def storage(s3, faults):
    """A root with two files and an array, before anything goes wrong."""
    storage = Storage(f"{s3()}/root")
    fill(storage, faults)
    return storage


def fill(storage, faults):
    for name in ("a/1", "a/2"):
        storage.write(name, DATA)
    storage.delete("b")
    array = prepare(storage, "x.zarr", {"x": ArraySpec((6, 500), (2, 500), ("i", "j"))}, {}, {})["x"]
    write_rows(array, 0, slice(0, 6), VALUES)
    faults.forget()


def stored(storage):
    return np.asarray(storage.open_zarr("x.zarr")["x"][:])


def storage_array(storage):
    return zarr.open_group(storage.zarr_store("x.zarr"), mode="a", zarr_format=3)["x"]


def rewrite(storage):
    write_rows(storage_array(storage), 0, slice(2, 4), VALUES[:2])
    return stored(storage)[2:4]


def erased(storage):
    erase(storage_array(storage), 0, range(2))
    return stored(storage)[:2]


OPERATIONS = {
    "read": (lambda storage: storage.read("a/1"), DATA),
    "read_many": (
        lambda storage: storage.read_many(["a/1", "none", "a/2"]),
        {"a/1": DATA, "a/2": DATA},
    ),
    "write": (lambda storage: (storage.write("b", DATA), storage.read("b"))[1], DATA),
    "overwrite": (lambda storage: (storage.write("a/1", b"new"), storage.read("a/1"))[1], b"new"),
    "exists": (lambda storage: (storage.exists("a/1"), storage.exists("a"), storage.exists("b")), (True, True, False)),
    "sizes": (lambda storage: storage.sizes("a"), {"a/1": 10_000, "a/2": 10_000}),
    "delete": (lambda storage: (storage.delete("a/1"), storage.names("a"))[1], ["a/2"]),
    "read an array": (stored, VALUES),
    "write an array": (rewrite, VALUES[:2]),
    "erase of an array": (erased, np.full((2, 500), np.nan)),
}


class TestEveryOperation:
    @pytest.mark.parametrize("name", OPERATIONS)
    def test_survives_every_fault(self, storage, faults, name):
        do, expected = OPERATIONS[name]
        for kind in FATAL:
            fill(storage, faults)
            faults.script = [kind]
            np.testing.assert_equal(do(storage), expected)
            assert sum(faults.counts[one] for one in FATAL) == 1, "the fault did not happen"

    @pytest.mark.parametrize(("share", "seed"), [(0.1, 1), (0.2, 2), (0.3, 3)])
    def test_survives_faults_by_chance(self, storage, faults, share, seed):
        faults.by_chance(share, seed)
        for _ in range(3):
            for do, expected in OPERATIONS.values():
                np.testing.assert_equal(do(storage), expected)
                storage.write("a/1", DATA)
                storage.delete("b")
                write_rows(storage_array(storage), 0, slice(0, 6), VALUES)
        assert faults.counts["requests"] > 200
        assert {kind for kind in KINDS if faults.counts[kind]} >= {"slow_down", "unheard", "unanswered", "bad_gateway"}

    @pytest.mark.parametrize(("kind", "most"), [("slow_down", 3), ("unheard", 6)])
    def test_ends_with_an_error_in_words_when_it_never_gets_better(self, storage, faults, monkeypatch, kind, most):
        """Where a connection that was used before is cut, aiohttp asks once more by itself."""
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")
        storage = Storage(storage.root)
        faults.always = kind
        for do, _ in OPERATIONS.values():
            faults.forget()
            with pytest.raises((StorageError, StudyError), match="in 3 attempts") as caught:
                do(storage)
            assert storage.root in str(caught.value)
            assert "AWS_MAX_ATTEMPTS" in caught.value.hint
            assert 3 <= max(map(faults.log.count, faults.log)) <= most


class TestWhatIsNotTriedAgain:
    def test_a_missing_file(self, storage, faults):
        with pytest.raises(MissingFileError):
            storage.read("none")
        assert len(faults.log) == 1

    def test_a_missing_bucket(self, faults):
        with pytest.raises(StudyError, match="could not be written"):
            Storage("s3://no-such-bucket").write("a", DATA)
        assert len(faults.log) == 1

    def test_what_is_forbidden(self, storage, faults):
        faults.always = "forbidden"
        with pytest.raises(PermissionError, match=storage.uri("a/1")):
            storage.read("a/1")
        with pytest.raises(StudyError, match="Access Denied"):
            storage.write("a/1", DATA)
        assert len(faults.log) == 2

    def test_credentials_that_ran_out(self, storage, faults):
        faults.always = "expired"
        with pytest.raises(StorageError, match="credentials that S3 does not take") as caught:
            storage.read("a/1")
        assert "AWS_PROFILE" in caught.value.hint
        assert len(faults.log) == 1
        with pytest.raises(StorageError, match="credentials that S3 does not take"):
            storage.exists("a/1")  # by an answer without a body


class TestWhatIsWholeOrNothing:
    def test_a_short_answer_that_claims_to_be_all_is_asked_for_again(self, storage, faults):
        for options in ({}, {"start": 100, "end": 200}, {"start": 100, "end": 20_000}):
            faults.script = [SHORT]
            part = slice(options.get("start"), options.get("end"))
            assert storage.fs.cat_file(storage.uri("a/1"), **options) == DATA[part]
        assert (faults.counts[SHORT], faults.counts["requests"]) == (3, 6)

    def test_what_a_bulk_delete_left_is_deleted_again(self, storage, faults):
        faults.script = ["half_deleted"]
        storage.fs.rm([storage.uri("a/1"), storage.uri("a/2")])
        assert storage.names("a") == []
        assert faults.counts["half_deleted"] == 1

    def test_a_large_object_is_one_request_which_leaves_no_parts_behind(self, storage, faults):
        storage.write("large", bytes(101 * 2**20))
        assert [line.split()[0] for line in faults.log] == ["PUT"]
        assert storage.sizes("large") == {"large": 101 * 2**20}
        faults.log.clear()
        array = zarr.create_array(
            storage.zarr_store("large.zarr"), shape=(101 * 2**20,), chunks=(101 * 2**20,), dtype="u1", compressors=None
        )
        array[:] = 1
        assert not [line for line in faults.log if "uploads" in line]


class TestWaiting:
    def test_for_an_answer_has_an_end(self, storage, faults, monkeypatch):
        monkeypatch.setattr("dtg_ray.remote.READ_SECONDS", 0.3)
        faults.script = [HANG]
        assert Storage(storage.root).read("a/1") == DATA
        assert faults.counts[HANG] == 1

    def test_is_random_and_gets_longer_up_to_a_limit(self):
        for attempt, longest in ((1, 0.2), (2, 0.4), (5, 3.2), (8, 20), (30, 20)):
            waits = np.array([wait_after(attempt) for _ in range(1000)]) / longest
            assert ((waits >= 0) & (waits <= 1)).all()
            assert 0.4 < waits.mean() < 0.6
            assert waits.std() > 0.2


def test_all_requests_are_few(storage, faults):
    """Each is paid for, and a hundred thousand people are many."""
    storage.read("a/1")
    storage.read_many(["a/1", "a/2"])
    storage.write("b", DATA)
    read(storage.uri("b"))
    assert len(faults.log) == 5


def test_requests_at_the_same_time_have_a_limit(s3, faults):
    storage = Storage(f"{s3()}/root", StorageConfig(concurrency=3))
    names = [f"a/{number}" for number in range(30)]
    for name in names:
        storage.write(name, b"1")
    most, now, lock = 0, 0, threading.Lock()
    wait = faults.next

    def next_request(request):
        nonlocal most, now
        with lock:
            now += 1
            most = max(most, now)
        threading.Event().wait(0.01)
        with lock:
            now -= 1
        return wait(request)

    faults.next = next_request
    assert len(storage.read_many(names)) == 30
    assert most == 3
