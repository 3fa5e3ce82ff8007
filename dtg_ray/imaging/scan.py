"""An image and the files that belong to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Scan:
    """Where one run, or one contrast map, and what goes with it are. Only `image` has to be there.

    Each is a local path or a URI that fsspec knows, such as `s3://bucket/key`; a member of a zip is written
    `zip://MEMBER::ARCHIVE`, as fsspec writes it.

    Parameters
    ----------
    image : str
        NIfTI.
    warp : str
        FNIRT displacement field or coefficient file from the study's space to the image's.
    premat : str
        FLIRT matrix (text) from the image to the space the warp leads to, where the warp does not hold it.
    reference : str
        The image that the warp was made for, where it does not say so itself.
    mask : str
        Brain mask on the voxels of the image; voxels outside it count as outside the field of view.
    confounds : str
        fMRIPrep's `desc-confounds_timeseries.tsv`.
    motion : str
        Text file with the mean displacement between volumes, or one value per volume, mm.
    """

    image: str
    warp: str = ""
    premat: str = ""
    reference: str = ""
    mask: str = ""
    confounds: str = ""
    motion: str = ""

    @classmethod
    def of(cls, entry: Mapping[str, str | None]) -> Scan:
        """From an entry of the manifest."""
        return cls(**{key: value or "" for key, value in entry.items()})

    @property
    def lost_companion(self) -> str:
        """A companion that means nothing without a warp where there is none; empty otherwise."""
        return "" if self.warp else "a premat" if self.premat else "a reference" if self.reference else ""

    def entry(self) -> dict[str, str]:
        """As the manifest holds it: only the files that are there."""
        return {name: value for name in NAMES if (value := getattr(self, name))}


NAMES = tuple(field.name for field in fields(Scan))
