"""Files under a root, local and on S3: whole or absent, and seen as they are now."""

import errno
import os
import pickle
from pathlib import Path

import fsspec
import numpy as np
import pytest
import zarr

from dtg_ray.errors import MissingFileError, StudyError
from dtg_ray.store.files import Storage, filesystem, is_remote, local_path, normalize, read


class TestURIs:
    @pytest.mark.parametrize(
        ("uri", "written"),
        [
            ("s3://bucket/a/", "s3://bucket/a"),
            ("s3://bucket", "s3://bucket"),
            ("/data/study/", "/data/study"),
            ("file:///data/study", "/data/study"),
            ("~/study", f"{Path.home()}/study"),
        ],
    )
    def test_are_written_in_one_way(self, uri, written):
        assert normalize(uri) == written
        assert Storage(uri).root == written
        assert Storage(uri) == Storage(written)

    def test_relative_paths_become_absolute(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert Storage("study").root == str(tmp_path / "study")
        assert local_path("study") == tmp_path / "study"

    @pytest.mark.parametrize(
        ("uri", "remote"), [("s3://b/a", True), ("gs://b/a", True), ("file:///a", False), ("/a", False), ("a", False)]
    )
    def test_remote_or_not(self, uri, remote):
        assert is_remote(uri) == remote
        if not remote:
            assert filesystem(uri).protocol == ("file", "local")


class TestWhole:
    def test_what_was_written_is_read(self, storage):
        assert not storage.exists("a/b.bin")
        storage.write("a/b.bin", b"one")
        assert storage.exists("a/b.bin")
        assert storage.read("a/b.bin") == read(storage.uri("a/b.bin")) == b"one"
        storage.write("a/b.bin", b"another")
        assert storage.read("a/b.bin") == b"another"

    def test_an_empty_file_is_a_file(self, storage):
        storage.write("empty", b"")
        assert storage.exists("empty")
        assert storage.read("empty") == b""

    def test_missing_files_are_named(self, storage):
        with pytest.raises(MissingFileError, match="got no such file, expected one to read") as caught:
            storage.read("none")
        assert caught.value.path == storage.uri("none")

    def test_deleting_twice_does_no_harm(self, storage):
        storage.write("a", b"1")
        storage.delete("a")
        storage.delete("a")
        assert not storage.exists("a")

    @pytest.mark.parametrize("step", ["fsync", "replace"])
    def test_a_full_disk_leaves_nothing_half_written(self, tmp_path, monkeypatch, step):
        storage = Storage(str(tmp_path))

        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        storage.write("old", b"before")
        monkeypatch.setattr(*((os, "fsync") if step == "fsync" else (Path, "replace")), full)
        for name in ("old", "new"):
            with pytest.raises(StudyError, match=f"{name}: could not be written: No space left on device") as caught:
                storage.write(name, b"after")
            assert "free some space" in caught.value.hint
        monkeypatch.undo()
        assert storage.read("old") == b"before"
        assert [path.name for path in tmp_path.iterdir()] == ["old"]

    def test_the_file_is_complete_on_disk_before_it_gets_its_name(self, tmp_path, monkeypatch):
        """A process that is killed in between leaves the old file, and one that nobody reads."""
        storage, seen = Storage(str(tmp_path)), {}
        storage.write("file", b"before")

        def killed(aside, _):
            seen["aside"] = aside.read_bytes()
            raise KeyboardInterrupt

        monkeypatch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            storage.write("file", b"after")
        assert seen["aside"] == b"after"
        assert storage.read("file") == b"before"
        assert len(list(tmp_path.iterdir())) == 2
        assert storage.names("") == ["file"]

    def test_a_place_that_cannot_be_is_an_error_with_a_hint(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(StudyError, match=r"file/study.yaml: could not be written: ") as caught:
            Storage(str(tmp_path / "file")).write("study.yaml", b"")
        assert "choose another root" in caught.value.hint

    @pytest.mark.s3
    @pytest.mark.usefixtures("s3")
    def test_a_bucket_that_is_not_there_is_an_error_with_a_hint(self):
        with pytest.raises(StudyError, match="s3://no-such-bucket/a: could not be written") as caught:
            Storage("s3://no-such-bucket").write("a", b"")
        assert caught.value.hint


class TestPages:
    @pytest.mark.parametrize(
        ("name", "kind"),
        [("report/index.html", "text/html"), ("a/figure.svg", "image/svg+xml"), ("x.png", "image/png")],
    )
    def test_a_bucket_says_what_they_are_so_that_browsers_show_them(self, s3, name, kind):
        storage = Storage(f"{s3()}/root")
        storage.write(name, b"<html></html>")
        assert fsspec.filesystem("s3").info(f"{storage.root}/{name}")["ContentType"] == kind

    def test_of_other_files_it_says_nothing(self, s3):
        storage = Storage(f"{s3()}/root")
        storage.write("a/b.parquet", b"x")
        assert storage.read("a/b.parquet") == b"x"


class TestMany:
    def test_those_that_are_there(self, storage):
        for name in ("x/a", "x/b", "c"):
            storage.write(name, name.encode())
        assert storage.read_many(["x/b", "none", "c", "y/a"]) == {"x/b": b"x/b", "c": b"c"}
        assert storage.read_many(["none"]) == {}
        assert storage.read_many([]) == {}

    @pytest.mark.parametrize("folder", ["study[1]", "st*dy", "study?", "a b", "ä"])
    def test_names_are_no_patterns(self, root, folder):
        storage = Storage(f"{root}/{folder}")
        storage.write("a/b[0-9].bin", b"1")
        storage.write("a/b1.bin", b"2")
        assert storage.read_many(["a/b[0-9].bin"]) == {"a/b[0-9].bin": b"1"}
        assert storage.names("a") == ["a/b1.bin", "a/b[0-9].bin"]
        storage.delete("a/b[0-9].bin")
        assert storage.names("a") == ["a/b1.bin"]

    def test_only_a_missing_file_is_left_out(self, tmp_path):
        """A receipt that cannot be read for another reason is not one that was never written."""
        storage = Storage(str(tmp_path))
        storage.write("folder/file", b"")
        with pytest.raises(IsADirectoryError):
            storage.read_many(["folder"])


class TestNames:
    def test_are_relative_to_the_root_and_sorted(self, storage):
        for name in ("b/2", "b/1", "b/c/d/3", "a", "bb"):
            storage.write(name, b"")
        assert storage.names("") == ["a", "b/1", "b/2", "b/c/d/3", "bb"]
        assert storage.names("b/") == storage.names("b") == ["b/1", "b/2", "b/c/d/3"]
        assert storage.names("none") == []

    def test_leave_out_what_is_unfinished(self, storage):
        for name in ("a/.x.0123.partial", "a/x", "zarr/c/0.4567.partial"):
            storage.write(name, b"")
        assert storage.names("") == ["a/x"]

    def test_come_with_their_sizes(self, storage):
        for name, size in (("b/2", 20), ("b/1", 0), ("b/c/d/3", 3000), ("a", 1), ("b/.x.0123.partial", 5)):
            storage.write(name, bytes(size))
        assert list(storage.sizes("").items()) == [("a", 1), ("b/1", 0), ("b/2", 20), ("b/c/d/3", 3000)]
        assert storage.sizes("b") == {"b/1": 0, "b/2": 20, "b/c/d/3": 3000}
        assert storage.sizes("none") == {}

    def test_come_with_their_sizes_from_one_listing(self, storage, monkeypatch):
        storage.write("a", b"1")
        calls = []
        find = type(storage.fs).find
        monkeypatch.setattr(
            type(storage.fs), "find", lambda *args, **options: calls.append(args) or find(*args, **options)
        )
        monkeypatch.setattr(type(storage.fs), "size", None)
        monkeypatch.setattr(type(storage.fs), "sizes", None)
        assert storage.sizes("") == {"a": 1}
        assert len(calls) == 1

    def test_of_links_come_with_the_size_of_what_they_lead_to(self, tmp_path):
        (tmp_path / "file").write_bytes(b"123")
        (tmp_path / "empty").touch()
        for link, target in (("good", "file"), ("none", "empty"), ("bad", "nowhere")):
            (tmp_path / "folder").mkdir(exist_ok=True)
            (tmp_path / "folder" / link).symlink_to(tmp_path / target)
        assert Storage(str(tmp_path)).sizes("folder") == {"folder/bad": -1, "folder/good": 3, "folder/none": 0}

    def test_a_folder_is_deleted_with_all_that_is_in_it_and_nothing_else(self, storage):
        for name in ("a/1", "a/b/2", "ab/3"):
            storage.write(name, b"x")
        storage.delete_folder("a")
        assert storage.names("") == ["ab/3"]
        storage.delete_folder("a")  # nothing happens

    def test_what_others_write_and_delete_is_seen_at_once(self, storage):
        """Object stores' clients like to remember listings."""
        assert storage.names("a") == []
        assert not storage.exists("a/1")
        other = fsspec.filesystem(
            storage.root.split("://")[0] if "://" in storage.root else "file", skip_instance_cache=True
        )
        other.makedirs(storage.uri("a"), exist_ok=True)
        other.pipe_file(storage.uri("a/1"), b"1")
        assert storage.names("a") == ["a/1"]
        assert storage.exists("a/1")
        other.rm_file(storage.uri("a/1"))
        assert storage.names("a") == []
        assert not storage.exists("a/1")


def test_storage_travels_without_its_connection(storage):
    storage.write("a", b"1")
    again = pickle.loads(pickle.dumps(storage))  # noqa: S301 - what Ray does
    assert "fs" not in vars(again)
    assert again == storage
    assert again.read("a") == b"1"


class TestZarr:
    def test_a_group_is_opened_for_reading_only(self, storage):
        zarr.open_group(storage.zarr_store("x.zarr"), mode="w", zarr_format=3).create_array("a", data=np.arange(5))
        group = storage.open_zarr("x.zarr")
        np.testing.assert_array_equal(group["a"][:], np.arange(5))
        with pytest.raises(ValueError, match="read-only"):
            group["a"][0] = 1

    def test_a_missing_group_is_an_error_with_a_hint(self, storage):
        with pytest.raises(StudyError, match=r"none.zarr: not there") as caught:
            storage.open_zarr("none.zarr")
        assert "dtg status" in caught.value.hint
