"""A study: everything under one root URI."""

from __future__ import annotations

import functools
import io
from collections.abc import Collection, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dtg_ray.config import StudyConfig, fingerprint, parse_saved
from dtg_ray.errors import DamagedError, MissingFileError, StudyError, UsageError
from dtg_ray.imaging.grid import Grid
from dtg_ray.imaging.rois import Rois
from dtg_ray.imaging.scan import Scan
from dtg_ray.store.arrays import read
from dtg_ray.store.files import Storage
from dtg_ray.store.tables import in_memory, read_table

if TYPE_CHECKING:
    import xarray as xr
    from nibabel.nifti1 import Nifti1Image

    from dtg_ray.plots import Plots

CONFIG, COHORT, PHENOTYPES, ROIS = "study.yaml", "cohort.parquet", "phenotypes.parquet", "rois.zarr"
DAMAGED = "part of it was lost or changed: put it back, or make a new study with `dtg init`"
"""What to do about rois.zarr."""
PEOPLE, PEOPLE_LEFT_OUT = "prediction/people.parquet", "prediction/left_out.parquet"
"""Columns of `prediction.tables` as they were when last read; who is in these alone, or in the study alone."""
LEFT_OUT = "left_out.parquet"
"""Who was found but does not take part, and why."""
WITHDRAWN = "withdrawn.parquet"
"""Digests of participants who withdrew."""
NOBODY = ""
"""The subject of a line of the manifest whose participant withdrew: the row stays, and stays empty."""
SCAN = pa.struct([(field.name, pa.string()) for field in fields(Scan)])
COHORT_SCHEMA = pa.schema(
    [
        ("subject", pa.string()),
        ("row", pa.int32()),
        ("block", pa.int32()),
        ("split", pa.string()),
        ("group", pa.string()),
        ("rest", pa.list_(SCAN)),
        ("contrasts", pa.map_(pa.string(), SCAN)),
        ("retest", pa.map_(pa.string(), SCAN)),
        ("rest_bytes", pa.int64()),
    ]
)
MAPS = ("contrasts", "retest")
"""Columns of task maps: of the first visit and of the second."""


class Study:
    """A study on disk or in a bucket.

    Parameters
    ----------
    uri : str
        Its root: a local folder or `s3://bucket/prefix`.
    config : StudyConfig, optional
        Of a study that is being made; by default study.yaml says it.

    Raises
    ------
    StudyError
        By the properties, when the study has not been initialised.
    """

    def __init__(self, uri: str, config: StudyConfig | None = None) -> None:
        self._root = Storage(uri)
        if config is not None:
            self.config = config

    def __repr__(self) -> str:
        """Where it is."""
        return f"Study({self.uri!r})"

    @property
    def uri(self) -> str:
        """Root of the study."""
        return self._root.root

    @functools.cached_property
    def storage(self) -> Storage:
        """All its files, kept as study.yaml says, which is therefore read first."""
        return Storage(self.uri, self.config.storage)

    @functools.cached_property
    def config(self) -> StudyConfig:
        """study.yaml, validated."""
        return parse_saved(self._read(CONFIG), self._root.uri(CONFIG))

    @functools.cached_property
    def manifest(self) -> pd.DataFrame:
        """cohort.parquet as it is, in the order of rows, with the lines of nobody.

        Raises
        ------
        StudyError
            When blocks are not those of study.yaml: rows would be somebody else's.
        """
        table, size = _read_cohort(self._read(COHORT)), self.config.cohort.block_size
        if (table["row"] // size != table["block"]).any():
            raise StudyError(
                f"{self.uri}: got cohort.block_size {size}, expected what the study was made with",
                hint="change it back in study.yaml; for other blocks make a new study",
            )
        return table

    @functools.cached_property
    def cohort(self) -> pd.DataFrame:
        """Everybody, by subject: row, block, split, group, rest, contrasts, retest, rest_bytes."""
        return self.manifest[self.manifest["subject"] != NOBODY]

    def without(self, subjects: Collection[str]) -> Study:
        """The same study as it would be if some subjects had never been in it."""
        fewer = Study(self.uri)
        fewer.__dict__["cohort"] = self.cohort[~self.cohort["subject"].isin(list(subjects))]
        return fewer

    @functools.cached_property
    def phenotypes(self) -> pd.DataFrame:
        """What is known about the people, in the order of the cohort, indexed by subject."""
        table = read_table(self.storage, PHENOTYPES).set_index("subject")
        return table.reindex(self.cohort.index)

    @functools.cached_property
    def people(self) -> pd.DataFrame:
        """Phenotypes, with the columns that `dtg predict` read from `prediction.tables` over them, and `group`."""
        table = self.phenotypes
        if self.config.prediction.tables and self.storage.exists(PEOPLE):
            more = read_table(self.storage, PEOPLE).set_index("subject").reindex(table.index)
            table = more.combine_first(table[table.columns.difference(more.columns)])
        return table if "group" in table else table.assign(group=self.cohort["group"])

    @functools.cached_property
    def _rois_group(self) -> Any:
        return self.storage.open_zarr(ROIS)

    def _of_rois(self, key: str) -> Any:
        return read(self.storage.open_array(ROIS, key), slice(None))

    @functools.cached_property
    def grid(self) -> Grid:
        """The space of all arrays."""
        try:
            return Grid(np.asarray(self._rois_group.attrs["affine"]), np.asarray(self._of_rois("mask"), dtype=bool))
        except (KeyError, ValueError) as error:
            raise DamagedError(f"{self.storage.uri(ROIS)}: {error}", hint=DAMAGED) from error

    @property
    def rois(self) -> NDArray[np.float32]:
        """ROI maps on the grid, (K, V); of a label atlas one where a voxel belongs to a region."""
        return self.roi_set.maps

    @functools.cached_property
    def roi_set(self) -> Rois:
        """The ROIs with their names and how their series are made.

        Raises
        ------
        DamagedError
            When they are not those that the study was made with: a chunk that is lost reads as zeros.
        """
        names = tuple(str(name) for name in self._of_rois("roi"))
        rois = Rois(self._of_rois("rois"), names, self._rois_group.attrs["kind"])
        if (found := space_hash(self.grid, rois)) != self.space_fingerprint:
            raise DamagedError(
                f"{self.storage.uri(ROIS)}: got grid and ROI maps {found}, expected {self.space_fingerprint}",
                hint=DAMAGED,
            )
        return rois

    @functools.cached_property
    def grey_matter(self) -> NDArray[np.bool_]:
        """Which voxels are grey matter, (V,)."""
        return np.asarray(self._of_rois("grey_matter"), dtype=bool)

    @property
    def n_rois(self) -> int:
        """Number of ROIs."""
        return int(self.storage.open_array(ROIS, "rois").shape[0])

    @property
    def space_fingerprint(self) -> str:
        """Hash of grid and ROI maps."""
        return str(self._rois_group.attrs["fingerprint"])

    @property
    def n_rows(self) -> int:
        """Length of the subject axis of all arrays; a row may be nobody's."""
        return int(self.manifest["row"].max()) + 1

    @property
    def row_names(self) -> NDArray[Any]:
        """Who the rows of the arrays belong to, (n_rows,) strings; empty for nobody's."""
        names = np.full(self.n_rows, "", dtype=np.dtypes.StringDType())
        names[self.cohort["row"].to_numpy()] = self.cohort["subject"].to_numpy()
        return names

    def blocks(self) -> list[int]:
        """Numbers of all blocks, in order."""
        return sorted(int(block) for block in self.cohort["block"].unique())

    def block(self, number: int) -> pd.DataFrame:
        """The rows of one block."""
        return self.cohort[self.cohort["block"] == number]

    def positions(self, subjects: Sequence[str]) -> NDArray[np.int64]:
        """Rows of some subjects in the arrays."""
        return self.cohort.loc[list(subjects), "row"].to_numpy(dtype=np.int64)

    def rows(self, block: int) -> slice:
        """Which rows of the arrays belong to a block: whole chunks, though some rows may be nobody's."""
        size = self.config.cohort.block_size
        return slice(block * size, min((block + 1) * size, self.n_rows))

    def synthetic(self, model: str) -> xr.DataArray:
        """Synthesized maps of a model as a lazy xarray: (contrast, subject, voxel) float16; NaN where not done."""
        return self._open_xarray(f"synthetic/{model}.zarr", "maps")

    def measured(self) -> xr.DataArray:
        """Measured maps as a lazy xarray: (contrast, subject, voxel) float16; NaN where not acquired."""
        return self._open_xarray("contrasts.zarr", "maps")

    def map(self, subject: str, contrast: str, model: str | None = None) -> Nifti1Image:
        """One map as an image.

        Parameters
        ----------
        subject, contrast : str
            As in the cohort and in study.yaml.
        model : str, optional
            Whose synthetic map; `"measured"` for the measured one; by default the first network's.

        Raises
        ------
        UsageError
            When there is no such subject or contrast.
        StudyError
            When the map has not been made, or was not acquired.
        """
        name = model or self.default_model
        contrasts = self.config.contrasts if name == "measured" else self.config.maps_of(name)
        for value, known, what in (
            (subject, list(self.cohort.index), "subject"),
            (contrast, list(contrasts), "contrast"),
        ):
            if value not in known:
                raise UsageError(f"got {what} {value!r}, expected one of {', '.join(known[:8])} ...")
        maps = self.measured() if name == "measured" else self.synthetic(name)
        vector = maps.sel(contrast=contrast, subject=subject).to_numpy()
        if np.isnan(vector).all():
            raise StudyError(f"{subject}: {contrast} of {name} has not been made", hint="`dtg status` says why")
        return self.grid.image(vector)

    @property
    def default_model(self) -> str:
        """The first network, or the first model where there is no network."""
        return self.config.default_model

    @property
    def plot(self) -> Plots:
        """Figures of the results for notebooks, see `dtg_ray.plots.Plots`."""
        from dtg_ray.plots import Plots

        return Plots(self)

    def status(self) -> pd.DataFrame:
        """Counts per stage, from the receipts alone: a row per stage, see `dtg_ray.ledger.status`."""
        from dtg_ray.ledger import Ledger, status

        return status(Ledger(self))

    def _open_xarray(self, name: str, array: str) -> xr.DataArray:
        import xarray as xr

        self.storage.open_array(name, array)
        dataset = xr.open_zarr(
            self.storage.zarr_store(name, read_only=True),
            consolidated=False,
            zarr_format=3,
            chunks=None,
            mask_and_scale=False,
        )
        return dataset[array].isel(subject=np.flatnonzero(dataset["subject"].to_numpy() != ""))

    def _read(self, name: str) -> bytes:
        try:
            return self._root.read(name)
        except MissingFileError as error:
            raise StudyError(
                f"{self.uri}: got no {name}, expected a study",
                hint="make one with `dtg init`, or check the URI",
            ) from error


def cohort_bytes(cohort: pd.DataFrame) -> bytes:
    """The manifest as a Parquet file, the same bytes for the same table."""
    plain = cohort.assign(rest=pd.Series([[run.entry() for run in runs] for runs in cohort["rest"]], cohort.index))
    for column in MAPS:
        maps = [[(name, scan.entry()) for name, scan in entry.items()] for entry in cohort[column]]
        plain[column] = pd.Series(maps, cohort.index)
    table = pa.Table.from_pandas(plain, schema=COHORT_SCHEMA, preserve_index=False)
    table = table.replace_schema_metadata(None)  # it names the versions of pandas and pyarrow
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def _read_cohort(data: bytes) -> pd.DataFrame:
    """The manifest from its file, with scans as they were."""
    try:
        stored = pq.read_table(in_memory(data))
    except (pa.ArrowException, ValueError, OSError) as error:
        hint = "put it back as it was; the arrays and receipts are still good"
        raise StudyError(f"{COHORT}: got no Parquet table ({error}), expected the manifest", hint=hint) from error
    if not stored.schema.equals(COHORT_SCHEMA):
        raise StudyError(f"{COHORT} is of an older version of dtg_ray", hint="make the study again with `dtg init`")
    table = stored.to_pandas(maps_as_pydicts="strict").set_index("subject", drop=False)
    table["rest"] = [[Scan.of(entry) for entry in runs] for runs in table["rest"]]
    for column in MAPS:
        table[column] = [{name: Scan.of(entry) for name, entry in maps.items()} for maps in table[column]]
    return table


def space_hash(grid: Grid, rois: Rois) -> str:
    """Hash of grid and ROIs."""
    import hashlib

    return fingerprint(
        grid.fingerprint, hashlib.sha256(np.ascontiguousarray(rois.maps).tobytes()).hexdigest(), rois.kind
    )
