"""Files that no connectome can be made of: each fails its own subject, by name, and nobody else."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dtg_ray import Study, ledger
from stage_tools import Tools


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def rewrite(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        image = nib.load(path)
        data = change(np.asarray(image.get_fdata(), dtype=np.float32))
        nib.save(nib.Nifti1Image(data, image.affine), path)

    return apply


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


def header(**fields: object) -> Callable[[Path], None]:
    """Other values in the header, whatever nibabel thinks of them."""

    def apply(path: Path) -> None:
        raw = gzip.decompress(path.read_bytes())
        changed = nib.Nifti1Header(raw[:348], check=False)
        for name, value in fields.items():
            changed[name] = value
        path.write_bytes(gzip.compress(changed.binaryblock + raw[348:]))

    return apply


DAMAGE: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "sub-0001": (truncate, "CorruptFileError", "ends in volume"),
    "sub-0002": (rewrite(lambda data: data[:4, :5, :6]), "SpaceError", "(4, 5, 6, 40)"),
    "sub-0003": (rewrite(lambda data: np.full_like(data, np.nan)), "ValueRangeError", "NaN"),
    "sub-0004": (Path.unlink, "MissingFileError", "no file"),
    "sub-0006": (rewrite(lambda data: data[..., :5]), "TooShortError", "5 volumes"),
    "sub-0007": (rewrite(lambda data: data[..., 0]), "ShapeError", "4-D"),
    "sub-0009": (lambda path: path.write_text("<html>404</html>"), "CorruptFileError", "web page"),
    "sub-0011": (rewrite(np.zeros_like), "ValueRangeError", "never changes"),
    "sub-0012": (flip, "CorruptFileError", "damaged file"),
    "sub-0014": (header(pixdim=[1, 8, 0, 8, 2, 1, 1, 1]), "GeometryError", "sizes above zero"),
    "sub-0015": (header(pixdim=[1, -8, 8, 8, 2, 1, 1, 1]), "GeometryError", "sizes above zero"),
    "sub-0016": (header(srow_x=[0, 0, 0, 0]), "GeometryError", "singular affine"),
    "sub-0017": (header(srow_x=[-8, 0, 0, 900]), "SpaceError", "covers 0% of the mask"),
    "sub-0018": (header(dim=[4, 30_000, 30_000, 3_000, 40, 1, 1, 1]), "TooLargeError", "promises"),
    "sub-0019": (header(sform_code=0, qform_code=0), "GeometryError", "neither sform nor qform"),
}


@pytest.fixture(scope="module")
def damaged(tools: Tools, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A cohort with damaged rest runs, and its study."""
    folder = tmp_path_factory.mktemp("damaged")
    data = folder / "data"
    shutil.copytree(tools.data, data)
    tools.init(str(folder / "study"), data=data)
    for subject, (damage, _, _) in DAMAGE.items():
        damage(next((data / subject / "func").glob("*_bold.nii.gz")))
    return data, folder / "study"


def test_bad_rest_runs_fail_by_name_and_the_others_finish(tools: Tools, damaged: tuple[Path, Path]) -> None:
    data, root = damaged
    done = tools.process("connectomes", str(root), check=3)
    rows = ledger.account(Study(str(root)), "connectomes").rows.set_index("subject")
    failed = rows[rows["status"] == "failed"]
    assert set(failed.index) == set(DAMAGE)
    assert (rows["status"] == "done").sum() == 24 - len(DAMAGE)
    for subject, (_, error, words) in DAMAGE.items():
        file = str(next(iter((data / subject / "func").glob("*_bold.nii.gz")), data / subject / "func"))
        for text in (failed.loc[subject, "message"], done.stdout):
            assert f"{subject}: " in text
            assert file in text
            assert words in text
        assert failed.loc[subject, "error_type"] == error
    listed = json.loads(tools.dtg("status", str(root), "--json").stdout)["failures"]
    assert {line["subject"] for line in listed} == set(DAMAGE)


def test_the_failed_are_nan_and_the_others_untouched(tools: Tools, damaged: tuple[Path, Path], finished: Path) -> None:
    stored = Study(str(damaged[1])).storage.open_zarr("connectomes.zarr")
    undamaged = Study(str(finished)).storage.open_zarr("connectomes.zarr")
    for row, subject in enumerate(Study(str(finished)).cohort["subject"]):
        for name in ("connectome", "roi_connectome"):
            expected = np.full_like(undamaged[name][row], np.nan) if subject in DAMAGE else undamaged[name][row]
            np.testing.assert_array_equal(stored[name][row], expected)


def test_mended_files_are_taken_by_retry_failed_alone(tools: Tools, damaged: tuple[Path, Path], finished: Path) -> None:
    data, root = damaged
    for subject in DAMAGE:
        source = next((tools.data / subject / "func").glob("*_bold.nii.gz"))
        shutil.copy(source, data / subject / "func" / source.name)
    assert "nothing to do" in tools.dtg("connectomes", str(root), "--inline", check=3).stderr
    tools.dtg("connectomes", str(root), "--inline", "--retry-failed")
    rows = ledger.account(Study(str(root)), "connectomes").rows
    assert (rows["status"] == "done").all()
    again = {ledger.block_unit((int(subject[-4:]) - 1) // 4) for subject in DAMAGE}
    assert len(again) < rows["unit"].nunique()
    assert dict(rows.groupby("unit")["attempt"].max()) == {unit: 1 + (unit in again) for unit in rows["unit"]}
    first, second = (Study(str(path)).storage.open_zarr("connectomes.zarr") for path in (root, finished))
    np.testing.assert_array_equal(first["connectome"][:], second["connectome"][:])


def test_retry_failed_keeps_who_is_done_even_when_their_files_are_gone(
    tools: Tools, finished: Path, tmp_path: Path
) -> None:
    data, root = tmp_path / "data", tmp_path / "study"
    shutil.copytree(tools.data, data)
    tools.init(str(root), data=data)
    damaged = [next((data / "sub-0003" / "func").glob(pattern)) for pattern in ("*_bold.nii.gz", "*_statmap.nii.gz")]
    for path in damaged:
        truncate(path)
    for stage in ("connectomes", "contrasts"):
        tools.dtg(stage, str(root), "--inline", check=3)
    for path in damaged:
        shutil.copy(tools.data / path.relative_to(data), path)
    for path in [*data.glob("sub-0001/func/*"), *data.glob("sub-0002/func/*")]:
        path.unlink()
    for stage in ("connectomes", "contrasts"):
        tools.dtg(stage, str(root), "--inline", "--retry-failed")
    for store, name in (("connectomes", "connectome"), ("connectomes", "roi_connectome"), ("contrasts", "maps")):
        stored, expected = (Study(str(path)).storage.open_zarr(f"{store}.zarr")[name][:] for path in (root, finished))
        np.testing.assert_array_equal(stored, expected)
    rows = ledger.account(Study(str(root)), "connectomes").rows.set_index("subject")
    assert rows.loc["sub-0001", "qc"]["volumes"] == 40


def test_an_unreadable_map_fails_its_subject(tools: Tools, tmp_path: Path) -> None:
    data, root = tmp_path / "data", tmp_path / "study"
    shutil.copytree(tools.data, data)
    truncated = next((data / "sub-0005" / "func").glob("*_statmap.nii.gz"))
    tools.init(str(root), data=data)
    truncate(truncated)
    tools.dtg("contrasts", str(root), "--inline", check=3)
    study = Study(str(root))
    failed = ledger.failures(ledger.Ledger(study))
    assert list(failed["subject"]) == ["sub-0005"]
    assert str(truncated) in failed["message"].iloc[0]
    assert np.isnan(study.measured().sel(subject="sub-0005")).all()
    assert not np.isnan(study.measured().sel(subject="sub-0008")).all()
