"""Files as streams, packed in every way studies ship them."""

import contextlib
import gzip
import io
import os
import urllib.request
import zipfile

import fsspec
import numpy as np
import pytest
from backports import zstd

from cohort_files import GRID, image_bytes, rest_run, write_bytes
from dtg_ray.errors import CorruptFileError, MissingFileError, StorageError, TooLargeError, UnsafePathError
from dtg_ray.imaging.series import open_series
from dtg_ray.imaging.space import read_masked
from dtg_ray.imaging.streams import archive_of, member, open_stream, read_all
from s3_faults import KINDS, SHORT

LIMIT = 2**30
INSIDE = "fMRI/rfMRI.ica/filtered_func_data_clean.nii.gz"


def zipped(path, members, method=zipfile.ZIP_DEFLATED):
    """A zip anywhere; returns its path as text."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    fs, name = fsspec.url_to_fs(str(path), use_listings_cache=False)
    fs.pipe_file(name, buffer.getvalue())
    return str(path)


def patched(data, old, new):
    assert old in data
    return data.replace(old, new)


def vectors(uri):
    with open_series(uri) as series:
        return read_masked(series, GRID)[0]


class TestPacking:
    @pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd.compress])
    @pytest.mark.parametrize("method", [None, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
    def test_an_image_is_the_same_however_it_is_packed(self, tmp_path, pack, method):
        data = pack(image_bytes(rest_run()))
        if method is None:
            path = str(tmp_path / "run.any")
            (tmp_path / "run.any").write_bytes(data)
        else:
            path = member(zipped(tmp_path / "1_20227_2_0.zip", {"other.txt": b"x", INSIDE: data}, method), INSIDE)
        np.testing.assert_array_equal(vectors(path), rest_run()[GRID.mask].T)

    @pytest.mark.s3
    def test_members_are_read_from_s3_without_a_copy(self, s3):
        archive = zipped(f"{s3()}/1_20227_2_0.zip", {INSIDE: gzip.compress(image_bytes(rest_run()))})
        np.testing.assert_array_equal(vectors(member(archive, INSIDE)), rest_run()[GRID.mask].T)

    @pytest.mark.s3
    def test_zstd_from_s3(self, s3):
        path = f"{s3()}/run.nii.zst"
        fs, name = fsspec.url_to_fs(path)
        fs.pipe_file(name, zstd.compress(image_bytes(rest_run())))
        np.testing.assert_array_equal(vectors(path), rest_run()[GRID.mask].T)

    def test_a_uri_of_a_member_is_that_of_fsspec(self, tmp_path):
        uri = member(zipped(tmp_path / "a.zip", {INSIDE: b"inside"}), INSIDE)
        with fsspec.open(uri) as file:
            assert file.read() == read_all(uri, LIMIT) == b"inside"
        assert archive_of(uri) == str(tmp_path / "a.zip")
        assert archive_of("s3://bucket/a.nii") == "s3://bucket/a.nii"


@pytest.mark.s3
def test_a_key_that_may_not_be_read_says_so(s3):
    path = f"{s3()}/run.nii"
    fs, name = fsspec.url_to_fs(path)
    fs.pipe_file(name, image_bytes(rest_run()))
    with denied(), pytest.raises(MissingFileError, match=r"run.nii: got no file that can be read \(PermissionError\)"):
        vectors(path)


@contextlib.contextmanager
def denied():
    """The S3 server knows nobody for a while."""
    ask_for_rights_after("0")
    try:
        yield
    finally:
        ask_for_rights_after("inf")


def ask_for_rights_after(requests):
    url = f"{os.environ['AWS_ENDPOINT_URL']}/moto-api/reset-auth"
    request = urllib.request.Request(url, data=requests.encode(), headers={"Content-Type": "text/plain"}, method="POST")
    urllib.request.urlopen(request, timeout=10).close()


class TestRefused:
    def refuse(self, uri, kind, message, limit=LIMIT):
        with pytest.raises(kind, match=message) as caught:
            read_all(uri, limit)
        assert type(caught.value) is kind
        assert caught.value.path == uri

    def test_a_missing_archive(self, tmp_path):
        path = str(tmp_path / "no.zip")
        with pytest.raises(MissingFileError, match=f"^{path}: got no file that can be read"):
            read_all(member(path, INSIDE), LIMIT)

    def test_a_missing_member(self, tmp_path):
        path = zipped(tmp_path / "a.zip", {"fMRI/readme.txt": b""})
        self.refuse(member(path, INSIDE), MissingFileError, f"got an archive without {INSIDE}")

    @pytest.mark.parametrize("keep", [0, 10, 100, -1, -30])
    def test_a_truncated_archive(self, tmp_path, keep):
        path = zipped(tmp_path / "a.zip", {INSIDE: image_bytes(rest_run())})
        (tmp_path / "a.zip").write_bytes((tmp_path / "a.zip").read_bytes()[:keep])
        self.refuse(member(path, INSIDE), CorruptFileError, "got an archive that cannot be read")

    def test_a_web_page_saved_as_an_archive(self, tmp_path):
        path = write_bytes(tmp_path / "a.zip", b"<html>403</html>")
        self.refuse(member(path, INSIDE), CorruptFileError, "got an archive that cannot be read .* expected a zip")

    def test_a_member_whose_checksum_does_not_hold(self, tmp_path):
        path = zipped(tmp_path / "a.zip", {INSIDE: b"x" * 5000}, zipfile.ZIP_STORED)
        (tmp_path / "a.zip").write_bytes(patched((tmp_path / "a.zip").read_bytes(), b"x" * 5000, b"x" * 4999 + b"y"))
        self.refuse(member(path, INSIDE), CorruptFileError, "Bad CRC-32")

    def test_an_encrypted_member(self, tmp_path):
        path = zipped(tmp_path / "a.zip", {INSIDE: b"secret"}, zipfile.ZIP_STORED)
        data = bytearray((tmp_path / "a.zip").read_bytes())
        data[6] |= 1
        data[data.index(b"PK\x01\x02") + 8] |= 1
        (tmp_path / "a.zip").write_bytes(bytes(data))
        self.refuse(member(path, INSIDE), CorruptFileError, "encrypted")

    def test_a_member_that_expands_beyond_the_limit(self, tmp_path):
        path = zipped(tmp_path / "bomb.zip", {INSIDE: bytes(10**7)})
        assert (tmp_path / "bomb.zip").stat().st_size < 20_000
        message = "got a member that unpacks to 10000000 bytes, expected at most 1000000"
        self.refuse(member(path, INSIDE), TooLargeError, message, 10**6)

    @pytest.mark.parametrize("pack", [gzip.compress, zstd.compress])
    def test_a_file_that_expands_beyond_the_limit(self, tmp_path, pack):
        (tmp_path / "bomb").write_bytes(pack(bytes(10**7)))
        self.refuse(str(tmp_path / "bomb"), TooLargeError, "got more than 1000000 bytes", 10**6)

    @pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/../../b.nii"])
    def test_a_member_that_leads_out_of_its_archive(self, tmp_path, name):
        path = zipped(tmp_path / "a.zip", {name: b"x"})
        self.refuse(member(path, name), UnsafePathError, "expected a name inside an archive")

    def test_a_member_without_an_archive(self):
        self.refuse("zip://a.nii", UnsafePathError, "expected a name inside an archive")

    @pytest.mark.parametrize("pack", [gzip.compress, zstd.compress])
    def test_a_damaged_file(self, tmp_path, pack):
        data = bytearray(pack(np.random.default_rng(0).bytes(10_000)))
        (tmp_path / "file").write_bytes(data[:5000])
        self.refuse(str(tmp_path / "file"), CorruptFileError, "got a damaged file")


def test_how_much_a_file_can_hold_is_known_before_it_is_read(tmp_path):
    data = image_bytes(rest_run())
    (tmp_path / "plain").write_bytes(data)
    (tmp_path / "packed").write_bytes(gzip.compress(data))
    archive = zipped(tmp_path / "a.zip", {"plain": data})
    for uri, least, most in (
        (str(tmp_path / "plain"), len(data), len(data)),
        (member(archive, "plain"), len(data), len(data)),
        (str(tmp_path / "packed"), len(data), 1032 * len(gzip.compress(data))),
    ):
        with open_stream(uri, LIMIT) as stream:
            assert least <= stream.most <= most


@pytest.mark.s3
class TestANetworkThatFails:
    """An image is read whole, or the network is at fault; never is part of an image taken for one."""

    DATA = image_bytes(rest_run())

    @pytest.fixture
    def uris(self, s3, faults):  # noqa: ARG002 - it has to be there first
        """The same image plain, packed, and in an archive."""
        bucket = s3()
        plain, packed = (write_bytes(f"{bucket}/a.{kind}", self.DATA) for kind in ("nii", "nii.gz"))
        return [plain, packed, member(zipped(f"{bucket}/a.zip", {INSIDE: gzip.compress(self.DATA)}), INSIDE)]

    def test_gives_the_same_bytes(self, uris, faults):
        for uri in uris:
            faults.forget()
            faults.script = [kind for kinds in zip(KINDS, KINDS[::-1], strict=True) for kind in (*kinds, "")]
            with open_stream(uri, LIMIT, block=5_000) as stream:
                assert stream.read(len(self.DATA) + 1) == self.DATA
            assert {kind for kind in KINDS if faults.counts[kind]} == set(KINDS)

    def test_a_short_answer_is_not_the_end_of_the_image(self, uris, faults):
        for uri in uris:
            faults.script = ["", SHORT, "", SHORT, SHORT]  # the first asks for the size
            with open_stream(uri, LIMIT, block=60_000) as stream:  # all blocks stay in memory: none is asked for twice
                assert stream.read(len(self.DATA) + 1) == self.DATA
        assert faults.counts[SHORT] == 9

    @pytest.mark.parametrize("kind", ["slow_down", "unanswered", "truncated", SHORT])
    def test_that_stays_down_is_not_the_fault_of_the_file(self, uris, faults, monkeypatch, kind):
        """Not even in an archive, of which zipfile says that it is none when it cannot be read."""
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
        faults.always, faults.only = kind, "GET "
        for uri in uris:
            with pytest.raises(StorageError, match="in 2 attempts"), open_stream(uri, LIMIT) as stream:
                stream.read(10**6)

    @pytest.mark.parametrize("kind", ["forbidden", "slow_down"])
    def test_is_told_from_files_that_may_not_be_read(self, uris, faults, monkeypatch, kind):
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
        faults.always = kind
        for uri in uris:
            faults.forget()
            with pytest.raises(MissingFileError if kind == "forbidden" else StorageError), open_stream(uri, LIMIT):
                pass
            assert len(faults.log) == (1 if kind == "forbidden" else 2)

    def test_is_told_from_files_that_are_not_there(self, uris, faults):
        faults.forget()
        with pytest.raises(MissingFileError), open_stream(f"{uris[0]}.none", LIMIT):
            pass
        assert [line.split()[0] for line in faults.log] == ["HEAD", "GET"], "the file, and a folder of that name"
