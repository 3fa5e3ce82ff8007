"""Native images through FNIRT warps: against fslpy's own resampling of real and of made-up warps."""

import nibabel as nib
import numpy as np
import pytest
from fsl.data.image import Image
from fsl.transform import nonlinear
from fsl.transform.affine import invert, transform
from fsl.transform.fnirt import readFnirt

from cohort_files import GRID, write_bytes
from dtg_ray.errors import CorruptFileError, MissingFileError, SpaceError, TableError
from dtg_ray.imaging.grid import Grid
from dtg_ray.imaging.scan import Scan
from dtg_ray.imaging.series import open_series, read_sampled
from dtg_ray.imaging.space import place
from dtg_ray.imaging.warps import MNI_2MM_AFFINE, MNI_2MM_BOX, fsl_coordinates, read_matrix, source_voxels
from native_files import NATIVE, displacement, native_image, write_field
from reference import DATA, needs_data

WARP = DATA / "warp"


def sampled(scan, grid, **options):
    """The vector of a native image and its sampler."""
    with open_series(scan.image) as series:
        sampler = place(series, scan, grid, **options)
        return read_sampled(series, sampler)[0], sampler


def by_fslpy(native, warp, reference, premat=None):
    """fslpy's resampling, (X, Y, Z)."""
    source, target = Image(native), Image(reference)
    field = readFnirt(warp, source, target)
    if isinstance(field, nonlinear.CoefficientField):
        field = field.asDeformationField()
    if premat is not None:
        places = nonlinear.convertDeformationType(field, "absolute").reshape(-1, 3)
        field = nonlinear.DeformationField(
            transform(places, invert(premat)).reshape(field.shape),
            header=target.header,
            src=source,
            ref=target,
            srcSpace="fsl",
            refSpace="fsl",
            defType="absolute",
        )
    return nonlinear.applyDeformation(source, field)


@needs_data
class TestRealWarps:
    @pytest.fixture
    def grid(self):
        reference = nib.load(WARP / "ref.nii.gz")
        return Grid(reference.affine, np.ones(reference.shape, dtype=bool))

    @pytest.mark.parametrize(
        ("name", "premat"),
        [("displacementfield", ""), ("coefficientfield", ""), ("displacementfield_no_premat", "src2ref.mat")],
    )
    def test_agree_with_fslpy_inside_the_field_of_view(self, grid, name, premat):
        warp, matrix = str(WARP / f"{name}.nii.gz"), str(WARP / premat) if premat else ""
        scan = Scan(str(WARP / "src.nii.gz"), warp=warp, premat=matrix, reference=str(WARP / "ref.nii.gz"))
        vector, sampler = sampled(scan, grid)
        expected = by_fslpy(
            scan.image, warp, scan.reference, np.loadtxt(matrix) if matrix else None
        ).ravel()  # all voxels are in the mask
        inside = sampler.inside
        assert sampler.coverage == pytest.approx(0.83, abs=0.02)
        assert np.corrcoef(vector[inside], expected[inside])[0, 1] > 0.99999
        np.testing.assert_allclose(vector[inside], expected[inside], atol=1e-4 * expected.std())
        assert (vector[~inside] == 0).all()

    def test_bring_the_source_to_the_reference(self, grid):
        scan = Scan(str(WARP / "src.nii.gz"), warp=str(WARP / "displacementfield.nii.gz"))
        vector, sampler = sampled(scan, grid)
        reference = nib.load(WARP / "ref.nii.gz").get_fdata().ravel()
        assert np.corrcoef(vector[sampler.inside], reference[sampler.inside])[0, 1] > 0.9


class TestMadeUpWarps:
    @pytest.mark.parametrize("flip", [False, True])
    @pytest.mark.parametrize("absolute", [False, True])
    @pytest.mark.parametrize("interpolation", ["linear", "nearest"])
    def test_agree_with_fslpy(self, tmp_path, flip, absolute, interpolation):
        native = native_image(tmp_path / "native.nii.gz", flip)
        warp = displacement(tmp_path / "warp.nii.gz", native, absolute)
        nib.Nifti1Image(np.zeros(GRID.shape, np.uint8), GRID.affine).to_filename(tmp_path / "reference.nii.gz")
        vector, sampler = sampled(Scan(native, warp=warp), GRID, interpolation=interpolation)
        source = Image(native)
        field = readFnirt(warp, source, Image(str(tmp_path / "reference.nii.gz")))
        expected = nonlinear.applyDeformation(source, field, order=1 if interpolation == "linear" else 0)[GRID.mask]
        inside = sampler.inside
        assert 0.3 < inside.mean() < 1
        agree = np.isclose(vector[inside], expected[inside], atol=1e-3)
        assert agree.mean() > 0.999  # exactly between two voxels the nearest is a matter of rounding

    def test_the_same_head_stored_with_its_x_axis_the_other_way_gives_the_same_vector(self, tmp_path):
        vectors = []
        for flip in (False, True):
            native = native_image(tmp_path / f"native{flip}.nii.gz", flip)
            warp = displacement(tmp_path / f"warp{flip}.nii.gz", native)
            vectors.append(sampled(Scan(native, warp=warp), GRID)[0])
        np.testing.assert_allclose(*vectors, atol=1e-3)

    def test_voxels_outside_the_field_of_view_of_warp_or_image_are_zero_and_counted(self, tmp_path):
        native = native_image(tmp_path / "native.nii.gz")
        warp = displacement(tmp_path / "warp.nii.gz", native)
        image = nib.load(warp)
        nib.Nifti1Image(image.get_fdata(dtype=np.float32)[:, :6], image.affine, image.header).to_filename(warp)
        vector, sampler = sampled(Scan(native, warp=warp), GRID)
        beyond = np.argwhere(GRID.mask)[:, 1] >= 6
        assert not sampler.inside[beyond].any()
        assert (vector[beyond] == 0).all()
        assert sampler.coverage == sampler.inside.mean()

    @pytest.mark.parametrize("intent", [0, 1007])
    def test_a_field_that_does_not_say_what_it_is_holds_displacements_as_for_fsl(self, tmp_path, intent):
        native = native_image(tmp_path / "native.nii.gz")
        known = displacement(tmp_path / "known.nii.gz", native)
        unknown = displacement(tmp_path / "unknown.nii.gz", native, intent=intent)
        np.testing.assert_array_equal(
            sampled(Scan(native, warp=known), GRID)[0], sampled(Scan(native, warp=unknown), GRID)[0]
        )

    def test_a_native_mask_takes_voxels_out_of_the_field_of_view(self, tmp_path):
        native = native_image(tmp_path / "native.nii.gz")
        warp = displacement(tmp_path / "warp.nii.gz", native)
        mask = np.zeros(NATIVE, dtype=np.uint8)
        mask[:6] = 1
        nib.Nifti1Image(mask, nib.load(native).affine).to_filename(tmp_path / "mask.nii.gz")
        whole, everything = sampled(Scan(native, warp=warp), GRID)
        part, sampler = sampled(Scan(native, warp=warp, mask=str(tmp_path / "mask.nii.gz")), GRID)
        assert 0 < sampler.coverage < everything.coverage
        np.testing.assert_array_equal(sampler.inside & everything.inside, sampler.inside)
        assert np.corrcoef(part[sampler.inside], whole[sampler.inside])[0, 1] > 0.9  # all but the border
        assert (part[~sampler.inside] == 0).all()

    def test_a_header_without_a_place_is_enough_where_there_is_a_warp(self, tmp_path):
        native = native_image(tmp_path / "native.nii.gz")
        warp = displacement(tmp_path / "warp.nii.gz", native)
        expected = sampled(Scan(native, warp=warp), GRID)[0]
        image = nib.load(native)
        bare = nib.Nifti1Image(image.get_fdata(dtype=np.float32), None)
        bare.header.set_zooms(image.header.get_zooms())
        bare.to_filename(tmp_path / "bare.nii.gz")
        with open_series(str(tmp_path / "bare.nii.gz")) as series:
            assert not series.header.placed
        np.testing.assert_allclose(
            sampled(Scan(str(tmp_path / "bare.nii.gz"), warp=warp), GRID)[0], expected, atol=1e-3
        )


@pytest.mark.parametrize("flip", [False, True])
def test_fsl_coordinates_are_those_of_fslpy(tmp_path, flip):
    native = native_image(tmp_path / "native.nii.gz", flip)
    with open_series(native) as series:
        np.testing.assert_allclose(fsl_coordinates(series.header), Image(native).getAffine("voxel", "fsl"), atol=1e-5)


def test_a_warp_to_standard_space_needs_no_reference(tmp_path):
    """Old fields have no sform: theirs is FSL's MNI152 at 2 mm."""
    native, grid = native_image(tmp_path / "native.nii.gz"), Grid.mni152(8)
    field = np.random.default_rng(0).normal(size=(*MNI_2MM_BOX, 3)).astype(np.float32)
    paths = [
        write_field(tmp_path / "placed.nii", field, MNI_2MM_AFFINE),
        write_field(tmp_path / "bare.nii", field, None),
    ]
    with open_series(native) as series:
        placed, bare = (source_voxels(Scan(native, warp=path), series.header, grid) for path in paths)
    np.testing.assert_allclose(bare, placed, atol=1e-6)


class TestRefused:
    @pytest.fixture
    def native(self, tmp_path):
        return native_image(tmp_path / "native.nii.gz")

    def refuse(self, scan, kind, message, path=None, **options):
        with pytest.raises(kind, match=message) as caught:
            sampled(scan, GRID, **options)
        assert caught.value.path == (path or scan.warp)

    def test_a_missing_warp(self, tmp_path, native):
        self.refuse(Scan(native, warp=str(tmp_path / "no.nii.gz")), MissingFileError, "got no file that can be read")

    def test_a_torn_warp(self, tmp_path, native):
        warp = tmp_path / "warp.nii.gz"
        displacement(warp, native)
        warp.write_bytes(warp.read_bytes()[:2000])
        self.refuse(Scan(native, warp=str(warp)), CorruptFileError, "got a damaged file")

    def test_something_that_is_no_warp(self, tmp_path, native):
        path = write_bytes(tmp_path / "warp.nii.gz", b"text" * 500)
        self.refuse(Scan(native, warp=path), CorruptFileError, "expected a NIfTI image")

    def test_an_image_in_place_of_a_warp(self, native):
        self.refuse(
            Scan(native, warp=native), SpaceError, r"got a warp of shape \(11, 13, 9\), expected \(X, Y, Z, 3\)"
        )

    def test_a_warp_full_of_nan(self, tmp_path, native):
        warp = write_field(tmp_path / "warp.nii.gz", np.full((*GRID.shape, 3), np.nan), GRID.affine)
        self.refuse(Scan(native, warp=warp), CorruptFileError, "NaN or infinite values")

    def test_a_warp_for_a_reference_that_nobody_knows(self, tmp_path, native):
        warp = displacement(tmp_path / "warp.nii.gz", native, placed=False)
        self.refuse(Scan(native, warp=warp), SpaceError, "does not place in mm, expected the reference beside it")

    def test_a_warp_that_leads_elsewhere(self, tmp_path, native):
        warp = write_field(tmp_path / "warp.nii.gz", np.full((*GRID.shape, 3), 900), GRID.affine)
        scan = Scan(native, warp=warp)
        self.refuse(scan, SpaceError, "covers 0% of the mask", path=native, minimum_coverage=0.5)

    @pytest.mark.parametrize(
        "text", ["1 0 0 0\n0 1 0 0\n", "a b c d\n" * 4, "0 0 0 0\n" * 4, "1 2\n3\n", "nan 0 0 0\n" * 4]
    )
    def test_matrices_that_are_none(self, tmp_path, native, text):
        path = tmp_path / "premat.mat"
        path.write_text(text)
        warp = displacement(tmp_path / "warp.nii.gz", native)
        self.refuse(Scan(native, warp=warp, premat=str(path)), TableError, "got a matrix", path=str(path))

    def test_a_mask_of_another_shape(self, tmp_path, native):
        nib.Nifti1Image(np.ones((3, 3, 3), np.uint8), np.eye(4)).to_filename(tmp_path / "mask.nii")
        path = str(tmp_path / "mask.nii")
        self.refuse(
            Scan(native, mask=path), SpaceError, r"got a mask of shape \(3, 3, 3\), expected that of", path=path
        )


def test_a_matrix_is_read_as_flirt_writes_it(tmp_path):
    (tmp_path / "a.mat").write_text("1 0 0 5  \n0 2 0 -1  \n0 0 1 0.5  \n0 0 0 1  \n\n")
    np.testing.assert_array_equal(
        read_matrix(str(tmp_path / "a.mat")), [[1, 0, 0, 5], [0, 2, 0, -1], [0, 0, 1, 0.5], [0, 0, 0, 1]]
    )
