"""A real BOLD run and real group-ICA maps through `dtg connectomes`."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from nilearn.image import resample_to_img
from numpy.testing import assert_allclose

from dtg_ray import Study, ledger
from dtg_ray.imaging.rois import natural_order
from reference import DATA, needs_data
from stage_tools import Tools

BOLD = DATA / "bold" / "real_data_vol_4_regions_BOLD.nii.gz"
MASK = DATA / "bold" / "real_data_vol_4_regions_mask.nii.gz"
ROIS = DATA / "ica32"


@needs_data
def test_connectomes_of_a_real_run_agree_with_plain_numpy(tools: Tools, tmp_path: Path) -> None:
    table, root = tmp_path / "paths.csv", tmp_path / "study"
    # the map only makes the study complete; connectomes do not look at it
    table.write_text(f"subject,rest,contrast:ANY\nreal-01,{BOLD},{MASK}\n")
    tools.dtg("init", str(root), "--table", str(table), "--rois", str(ROIS), "--mask", str(MASK), "--tr", "2.4")
    tools.dtg("connectomes", str(root), "--inline")
    study = Study(str(root))

    inside = nib.load(MASK).get_fdata() != 0
    bold = nib.load(BOLD).get_fdata()[inside].T  # (T, V)
    files = natural_order([str(path) for path in ROIS.glob("*.nii.gz")])
    maps = [
        resample_to_img(path, nib.load(MASK), "linear", force_resample=True, copy_header=True).get_fdata()[inside]
        for path in files
    ]
    rois = np.stack(maps) - np.mean(maps, axis=1, keepdims=True)  # (K, V)
    series = (bold - bold.mean(axis=0)) @ np.linalg.pinv(rois)  # (T, K)
    expected = np.corrcoef(series.T, bold.T)[: len(rois), len(rois) :]

    stored = study.storage.open_zarr("connectomes.zarr")["connectome"]
    assert stored.shape == (1, 1, 32, int(inside.sum())) == (1, 1, 32, 6443)
    assert_allclose(stored[0, 0], expected, atol=1e-3)
    (row,) = ledger.account(study, "connectomes").rows.to_dict("records")
    assert row["status"] == "done"
    assert row["qc"]["tr"] == 2.4
    assert row["qc"]["volumes"] == 128
    assert row["qc"]["coverage"] == 1
