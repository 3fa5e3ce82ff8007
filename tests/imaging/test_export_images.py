"""Maps as files: BIDS names that are never shared, NIfTI headers as nibabel reads them, the same bytes."""

import gzip
import re

import nibabel as nib
import numpy as np
import pytest
from nilearn.interfaces.bids import parse_bids_filename

from dtg_ray.cohort.layouts import bids
from dtg_ray.cohort.layouts.hcp import contrast_copes
from dtg_ray.imaging.export import (
    ALIGNED,
    MNI,
    contrast_labels,
    image_name,
    map_image,
    mask_image,
    sidecar_name,
    space_of,
    subject_labels,
)
from dtg_ray.imaging.grid import Grid
from dtg_ray.imaging.scan import Scan

GRID = Grid.mni152(8)
VECTOR = np.random.default_rng(0).normal(size=GRID.n_voxels).astype(np.float16)
LABEL = re.compile(r"[a-zA-Z0-9]+")
ENTITIES = {"sub": "01", "task": "EMOTION", "space": "MNI152NLin6Asym", "contrast": "FACESxSHAPES", "stat": "z"}


def opened(data):
    return nib.Nifti1Image.from_bytes(gzip.decompress(data))


class TestContrasts:
    def test_are_task_and_contrast(self):
        assert contrast_labels(["EMOTION_FACES-SHAPES", "MOTOR_LH", "WM_2BK_BODY"]) == {
            "EMOTION_FACES-SHAPES": ("EMOTION", "FACESxSHAPES"),
            "MOTOR_LH": ("MOTOR", "LH"),
            "WM_2BK_BODY": ("WM", "2BKBODY"),
        }

    def test_of_hcp_are_all_different(self):
        names = list(contrast_copes())
        labels = contrast_labels(names)
        assert len(names) == len({f"{task}_{contrast}".lower() for task, contrast in labels.values()}) == 47
        assert all(LABEL.fullmatch(task) and LABEL.fullmatch(contrast) for task, contrast in labels.values())

    @pytest.mark.parametrize(
        ("name", "labels"),
        [
            ("FACES", ("", "FACES")),
            ("FACES-SHAPES", ("", "FACESxSHAPES")),
            ("_FACES", ("", "FACES")),
            ("EMOTION_", ("", "EMOTION")),
            ("Visage émotif", ("", "Visageemotif")),
            ("face.task_A > B", ("facetask", "AB")),
        ],
    )
    def test_that_are_named_otherwise_keep_their_letters(self, name, labels):
        assert contrast_labels([name]) == {name: labels}

    @pytest.mark.parametrize(
        "names",
        [
            ["A_B-C", "A_BxC"],
            ["WM_2BK_BODY", "WM_2BKBODY"],
            ["WM_2BK", "WM_2bk"],
            ["FACES", "_FACES"],
            ["??", "!!", ""],
            ["日本", "中国"],
        ],
    )
    def test_that_would_share_a_name_are_told_apart(self, names):
        labels = contrast_labels(["MOTOR_LH", *names])
        assert labels["MOTOR_LH"] == ("MOTOR", "LH")
        assert len({f"{task}_{contrast}".lower() for task, contrast in labels.values()}) == 1 + len(names)
        assert all(LABEL.fullmatch(contrast) for _, contrast in labels.values())
        assert contrast_labels([*reversed(names), "MOTOR_LH"]) == labels, "it depends on their order"


class TestSubjects:
    def test_of_bids_do_not_have_their_prefix_twice(self):
        assert subject_labels(["sub-0001", "sub-A+1"]) == {"sub-0001": "0001", "sub-A+1": "A+1"}

    def test_that_are_numbers_stay_numbers(self):
        assert subject_labels(["1000001", "100307"]) == {"1000001": "1000001", "100307": "100307"}

    def test_hold_letters_and_digits_only(self):
        assert subject_labels(["P_01", "M-2"]) == {"P_01": "P01", "M-2": "M2"}

    @pytest.mark.parametrize("subjects", [["P_1", "P1"], ["sub-1", "1"], ["a1", "A1"]])
    def test_that_would_share_a_name_are_told_apart(self, subjects):
        labels = subject_labels(["7", *subjects])
        assert labels["7"] == "7"
        assert len({label.lower() for label in labels.values()}) == 3


class TestNames:
    def test_of_a_subject_are_read_back_by_nilearn_and_by_our_layout(self):
        name = image_name({"desc": "synthetic", **ENTITIES})
        assert name == (
            "sub-01/func/sub-01_task-EMOTION_space-MNI152NLin6Asym_contrast-FACESxSHAPES_stat-z_desc-synthetic_"
            "statmap.nii.gz"
        )
        parsed = parse_bids_filename(name)
        assert parsed["entities"] == {**ENTITIES, "desc": "synthetic"}
        assert (parsed["suffix"], parsed["extension"]) == ("statmap", "nii.gz")
        assert bids.parse(name) == ({**ENTITIES, "desc": "synthetic"}, "statmap")

    def test_of_a_group_have_no_subject(self):
        name = image_name({**ENTITIES, "sub": "", "space": "", "stat": "mean", "desc": "synthetic"})
        assert name == "group/task-EMOTION_contrast-FACESxSHAPES_stat-mean_desc-synthetic_statmap.nii.gz"

    def test_a_sidecar_goes_by_its_image(self):
        assert sidecar_name("sub-1/func/sub-1_statmap.nii.gz") == "sub-1/func/sub-1_statmap.json"


class TestSpace:
    FMRIPREP = "s3://b/sub-1/func/sub-1_task-rest_space-MNI152NLin2009cAsym_res-2_desc-preproc_bold.nii.gz"

    @pytest.mark.parametrize(
        ("scan", "space"),
        [
            (Scan(FMRIPREP), "MNI152NLin2009cAsym"),
            (Scan("s3://hcp/100307/MNINonLinear/Results/rfMRI_REST1_LR/clean.nii.gz"), "MNI152NLin6Asym"),
            (
                Scan("zip://a.nii.gz::1.zip", warp="zip://reg/example_func2standard_warp.nii.gz::1.zip"),
                "MNI152NLin6Asym",
            ),
            (Scan(FMRIPREP, warp="somewhere_warp.nii.gz"), ""),
            (Scan("rest/1.nii.gz"), ""),
        ],
    )
    def test_is_what_the_images_say(self, scan, space):
        assert space_of([scan, scan]) == space

    def test_is_not_known_where_they_disagree(self):
        assert space_of([Scan(self.FMRIPREP), Scan("1.nii.gz")]) == ""
        assert space_of([]) == ""


class TestImage:
    def test_holds_the_map_exactly_and_zeros_around_it(self):
        image = opened(map_image(GRID, VECTOR))
        assert image.get_data_dtype() == np.float32
        np.testing.assert_array_equal(np.asanyarray(image.dataobj)[GRID.mask], VECTOR)
        assert not np.asanyarray(image.dataobj)[~GRID.mask].any()

    @pytest.mark.parametrize("code", [MNI, ALIGNED])
    def test_says_where_it_lies(self, code):
        image = opened(map_image(GRID, VECTOR, code=code))
        for affine, got in (image.get_sform(coded=True), image.get_qform(coded=True)):
            np.testing.assert_array_equal(affine, GRID.affine)
            assert got == code
        assert image.header.get_xyzt_units()[0] == "mm"
        np.testing.assert_array_equal(image.header.get_zooms(), [8, 8, 8])

    def test_says_what_it_is(self):
        image = opened(map_image(GRID, VECTOR, description="synthetic EMOTION_FACES (unet)"))
        assert image.header.get_intent()[0] == "z score"
        assert image.header["descrip"].item() == b"synthetic EMOTION_FACES (unet)"
        assert opened(map_image(GRID, VECTOR, intent="estimate")).header.get_intent()[0] == "estimate"

    def test_cuts_a_description_that_is_too_long(self):
        header = opened(map_image(GRID, VECTOR, description="é" * 200)).header
        assert header["descrip"].item() == b"?" * 79

    def test_a_grid_with_a_shear_has_no_quaternion(self):
        affine = np.array([[2.0, 0.5, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]])
        grid = Grid(affine, np.ones((3, 4, 5), dtype=bool))
        image = opened(map_image(grid, np.ones(60), code=ALIGNED))
        assert image.get_qform(coded=True) == (None, 0)
        np.testing.assert_array_equal(image.affine, affine)

    def test_is_the_same_bytes_every_time(self):
        assert map_image(GRID, VECTOR) == map_image(GRID, VECTOR.astype(np.float32))

    def test_of_another_length_is_refused(self):
        with pytest.raises(ValueError, match="got vectors of shape"):
            map_image(GRID, VECTOR[1:])

    def test_the_mask_is_zeros_and_ones(self):
        image = opened(mask_image(GRID))
        assert image.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(np.asanyarray(image.dataobj), GRID.mask)
        assert Grid.from_mask(image).fingerprint == GRID.fingerprint
