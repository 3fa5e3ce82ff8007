"""Images of an earlier export that the study no longer has: of people who withdrew or fail, of contrasts dropped."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterable, Sequence

from dtg_ray.imaging.export import sidecar_name
from dtg_ray.stages.derivative import Derivative, top
from dtg_ray.store.files import Storage, is_remote


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
    there = {name for name in derivative.study.cohort["subject"] if name not in gone}
    known = {derivative.folder(name).split("/")[0] for name in there}
    folders = sorted(name for name in top(out) if name.startswith("sub-") and name not in known)
    images = [image for folder in folders for image in among(derivative, out.names(f"{folder}/func"))]
    owners = out.read_many([sidecar_name(image) for image in images])
    # whose label changed is still there
    return [image for image in images if _subject(owners.get(sidecar_name(image), b"{}")) not in there]


def among(derivative: Derivative, names: Iterable[str], wanted: Collection[str] = ()) -> list[str]:
    """Of some files the images that an export like this one has made, but for those wanted."""
    end = f"_desc-{derivative.source.desc}_statmap"
    stems = dict.fromkeys(name.removesuffix(".nii.gz").removesuffix(".json") for name in names)
    return [f"{stem}.nii.gz" for stem in stems if stem.endswith(end) and f"{stem}.nii.gz" not in wanted]


def _subject(sidecar: bytes) -> str:
    """Whose image it is, by its sidecar; empty where that does not say it."""
    try:
        return str(json.loads(sidecar)["Subject"])
    except (ValueError, KeyError, TypeError):
        return ""


def remove(out: Storage, images: Sequence[str]) -> int:
    """Remove images, each after the sidecar that commits it, and folders that are empty then; returns how many."""
    for image in images:
        out.delete(sidecar_name(image))
        out.delete(image)
    for folder in sorted({folder for image in images for folder in _parents(image)}, reverse=True):
        if not is_remote(out.root):
            with contextlib.suppress(OSError):
                out.fs.rmdir(out.uri(folder))
    return len(images)


def _parents(image: str) -> list[str]:
    """The folders of an image within its dataset."""
    parts = image.split("/")[:-1]
    return ["/".join(parts[: number + 1]) for number in range(len(parts))]
