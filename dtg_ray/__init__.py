"""DeepTaskGen at population scale: rest fMRI in, synthetic task-contrast maps and phenotype predictions out."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dtg_ray.study import Study

__version__ = "0.1.0"
__all__ = ["Study"]


def __getattr__(name: str) -> object:
    """Import `Study` on first use, so that `dtg --help` does not wait for pandas and zarr."""
    if name == "Study":
        from dtg_ray.study import Study

        return Study
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
