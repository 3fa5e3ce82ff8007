"""Images of an earlier export that the study no longer has: of people who withdrew or fail, of contrasts dropped."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from dtg_ray.imaging.export import sidecar_name
from dtg_ray.stages.derivative import Derivative, top
from dtg_ray.store.files import Storage


def of_people(out: Storage, derivative: Derivative, gone: Collection[str]) -> list[str]:
    """Images of whoever is not in the study, or is among those gone: who is still to be done keeps theirs.

    Parameters
    ----------
    out : Storage
        The dataset's.
    derivative : Derivative
    gone : collection of str
        Subjects of the study whose maps failed, or who have none by a rule.
    """
    known = {derivative.folder(name).split("/")[0] for name in derivative.study.cohort["subject"] if name not in gone}
    folders = sorted(name for name in top(out) if name.startswith("sub-") and name not in known)
    return [image for folder in folders for image in among(derivative, out.names(f"{folder}/func"))]


def among(derivative: Derivative, names: Iterable[str], wanted: Collection[str] = ()) -> list[str]:
    """Of some files the images that an export like this one has made, but for those wanted."""
    end = f"_desc-{derivative.source.desc}_statmap.nii.gz"
    return [name for name in names if name.endswith(end) and name not in wanted]


def remove(out: Storage, images: Sequence[str]) -> int:
    """Remove images, each after the sidecar that commits it; returns how many."""
    for image in images:
        out.delete(sidecar_name(image))
        out.delete(image)
    return len(images)
