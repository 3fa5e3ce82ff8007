"""`dtg export`: maps as a BIDS derivatives dataset of NIfTI files, a block of subjects at a time.

An image is committed by its sidecar, which is written after it and holds a fingerprint of all that made it. What has
the right one is not written again, so that an export that was interrupted goes on, and one of a study that has changed
replaces what is outdated and removes what the study no longer has. Nothing is written into the study.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dtg_ray import ledger
from dtg_ray.errors import StudyError, UsageError
from dtg_ray.imaging import export
from dtg_ray.stages import leftovers
from dtg_ray.stages.cluster import session
from dtg_ray.stages.crews import Crew, map_units
from dtg_ray.stages.derivative import Derivative, Source, as_json, begin, claim, source_of
from dtg_ray.stages.maps import lost
from dtg_ray.stages.plan import Plan, resources_of
from dtg_ray.stages.runtime import Options, progress
from dtg_ray.stats import moments
from dtg_ray.store.arrays import read
from dtg_ray.store.files import Storage, is_remote
from dtg_ray.study import Study

REMOTE_WRITERS = 8
"""Images on their way to a bucket at once, per worker: each waits for it several times."""
STATISTICS = ("mean", "std")
SHOWN = 5


@dataclass(frozen=True)
class Request:
    """What to export.

    Parameters
    ----------
    model : str, optional
        A model of the study, or `measured`; by default the first network.
    subjects : tuple of str, optional
        Only these, as in the study or without `sub-`; by default everybody whose maps are done.
    contrasts : tuple of str, optional
        Only these.
    images : bool
        The maps of each subject.
    group : bool
        Mean and standard deviation over the subjects.
    space : str, optional
        Label of `space-`; by default what the names of the study's images say.
    """

    model: str | None = None
    subjects: tuple[str, ...] | None = None
    contrasts: tuple[str, ...] | None = None
    images: bool = True
    group: bool = False
    space: str | None = None


@dataclass
class Exported:
    """What came of it.

    Parameters
    ----------
    source : Source
    subjects : int
        With maps.
    written, kept : int
        Images that were written, and that were there already.
    removed : int
        Images of people and contrasts that the study no longer has.
    left_out : dict of str to str
        Those of the subjects asked for who have no map, and why.
    """

    source: Source
    subjects: int
    written: int = 0
    kept: int = 0
    removed: int = 0
    left_out: dict[str, str] = field(default_factory=dict)


def run(study: Study, out: str, request: Request, options: Options) -> Exported:
    """Write what is missing or outdated of a dataset.

    Parameters
    ----------
    study : Study
    out : str
        Root of the dataset: a local folder or `s3://bucket/prefix`.
    request : Request
    options : Options

    Raises
    ------
    UsageError
        For a model, contrast or subject that the study does not have, or a place that holds something else.
    StudyError
        When nobody has a map, or one is lost.
    """
    work = Work(study, request)
    people, storage = work.people, Storage(out)
    result = Exported(work.source, len(people), left_out=work.left_out())
    claim(storage, work.derivative)
    if not options.dry_run:
        result.removed = leftovers.remove(storage, work.leftovers(storage))
    if people.empty and not result.left_out:
        raise StudyError(
            f"got nobody with maps of {work.source.name}, expected somebody",
            hint=f"`dtg {work.source.stage.split('/')[0]} {study.uri}` makes them, `dtg status` says why not",
        )
    blocks = sorted(people["unit"].unique()) if request.images else []
    groups = list(work.contrasts) if request.group and len(people) else []
    todo = plan(work, len(blocks) + len(groups))
    todo.show(options)
    if options.dry_run or not (blocks or groups):
        return result
    begin(storage, work.derivative)
    resources = resources_of(todo)
    totals = {SubjectWorker: len(people), GroupWorker: len(people) * len(groups)}
    with session(options):
        for worker, units in ((SubjectWorker, blocks), (GroupWorker, groups)):
            if units:
                results = map_units([Crew(worker, (study.uri, out, request), resources)], units, options)
                for one in progress(results, totals[worker], worker.title, options):
                    result.written += int(one["written"])
                    result.kept += int(one["kept"])
                    result.removed += int(one["removed"])
    return result


def plan(work: Work, units: int) -> Plan:
    """Bytes, and the memory of a worker: the maps of a block, images on their way, and sums in double precision."""
    n_voxels, box, block = work.study.grid.n_voxels, work.study.grid.mask.size, work.study.config.cohort.block_size
    n_maps = len(work.people) * len(work.contrasts)
    n_images = n_maps * work.request.images + 2 * len(work.contrasts) * work.request.group
    return Plan(
        stage=f"export/{work.source.name}",
        units=units,
        pending=units,
        subjects=len(work.people),
        bytes_in=n_maps * n_voxels * 2 * (work.request.images + work.request.group),
        bytes_out=n_images * box * 4,
        memory=block * n_voxels * (4 + 32) + REMOTE_WRITERS * box * 10 + n_voxels * 50 + 400 * 2**20,
    )


class Work:
    """What a request comes to in a study: who, which contrasts, and where their maps are.

    Parameters
    ----------
    study : Study
    request : Request

    Raises
    ------
    UsageError
        For a model, contrast or subject that the study does not have.
    """

    def __init__(self, study: Study, request: Request) -> None:
        self.study = study
        self.request = request
        self.source = source_of(study, request.model)
        self.contrasts = _chosen_contrasts(self.source, request.contrasts)
        if request.space is not None and not request.space.isalnum():
            raise UsageError(f"got space {request.space!r}, expected letters and digits, such as MNI152NLin6Asym")
        self.derivative = Derivative(study, self.source, request.space)

    @functools.cached_property
    def wanted(self) -> list[str] | None:
        """The subjects asked for, as the study calls them; None for all."""
        if self.request.subjects is None:
            return None
        known = set(self.study.cohort["subject"])
        names = {name: name if name in known else f"sub-{name}" for name in self.request.subjects}
        if unknown := [name for name, subject in names.items() if subject not in known]:
            more = f" and {len(unknown) - SHOWN} others" if len(unknown) > SHOWN else ""
            raise UsageError(
                f"got subjects that are not in the study: {', '.join(unknown[:SHOWN])}{more}",
                hint="`Study(...).cohort` and left_out.parquet say who is and who is not",
            )
        return list(dict.fromkeys(names.values()))

    @functools.cached_property
    def rows(self) -> pd.DataFrame:
        """The receipts that hold today, a row per subject, indexed by subject."""
        return ledger.account(self.study, self.source.stage).rows.set_index("subject", drop=False)

    @property
    def gone(self) -> set[str]:
        """Those of the study who have no map now and will have none as things are."""
        return set(self.rows.index[self.rows["status"] != "done"])

    def leftovers(self, out: Storage) -> list[str]:
        """Images of a dataset that are nobody's any more; workers find those in the folders of their people."""
        images = leftovers.of_people(out, self.derivative, self.gone)
        if self.request.group:
            wanted = {self.derivative.image(name, stat=stat) for name in self.source.contrasts for stat in STATISTICS}
            images += leftovers.among(self.derivative, out.names("group"), wanted)
        return images

    @functools.cached_property
    def people(self) -> pd.DataFrame:
        """Rows of the receipts of everybody who is exported, in the order of the cohort."""
        done = self.rows[self.rows["status"] == "done"]
        wanted = set(done["subject"]) if self.wanted is None else set(self.wanted)
        order = [name for name in self.study.cohort["subject"] if name in done.index and name in wanted]
        having = [name for name in order if any(self.has(name, contrast) for contrast in self.contrasts)]
        return done.loc[having]

    def has(self, subject: str, contrast: str) -> bool:
        """Whether somebody whose maps are done has one of a contrast."""
        return self.source.has(self.study.cohort, subject, contrast)

    def left_out(self) -> dict[str, str]:
        """Who was asked for and has no map, with the reason of the receipt."""
        absent = [name for name in self.wanted or [] if name not in self.people.index]
        if not absent:
            return {}
        before = ledger.account(self.study, "connectomes").rows.set_index("subject")["message"]
        return {name: self._reason(name, before if not self.source.column else None) for name in absent}

    def _reason(self, subject: str, before: pd.Series | None) -> str:
        """Why somebody has no map; where there is no connectome either, why not."""
        if before is not None and before.get(subject):
            return str(before[subject])
        if subject not in self.rows.index:
            return f"{subject}: {self.source.stage} has not come to it yet"
        return str(self.rows["message"][subject]) or f"{subject}: none of these contrasts was acquired"

    @functools.cached_property
    def _maps(self) -> Any:
        return self.study.storage.open_array(self.source.array, "maps")

    @functools.cached_property
    def _position(self) -> dict[str, int]:
        subjects = list(self.people["subject"])
        return dict(zip(subjects, self.study.positions(subjects).tolist(), strict=True))

    def read(self, unit: str, contrast: str, subjects: Sequence[str]) -> NDArray[np.float16]:
        """Maps of some subjects of a block, (n, V) float16, from whole chunks.

        Raises
        ------
        StudyError
            When one is lost.
        """
        rows = self.study.rows(ledger.block_number(unit))
        block = read(self._maps, (self.source.contrasts.index(contrast), rows))  # (B, V)
        maps: NDArray[np.float16] = block[[self._position[subject] - rows.start for subject in subjects]]
        is_lost = np.isnan(maps).any(axis=1)
        if is_lost.any():
            raise lost(subjects[int(np.argmax(is_lost))], f"map of {contrast}", self.source.stage)
        return maps


def _chosen_contrasts(source: Source, wanted: Sequence[str] | None) -> tuple[str, ...]:
    """Some contrasts, or all, in the order of the array."""
    if unknown := [name for name in wanted or () if name not in source.contrasts]:
        raise UsageError(f"got contrast {unknown[0]!r}, expected some of {', '.join(source.contrasts)}")
    return tuple(name for name in source.contrasts if wanted is None or name in wanted)


class _Worker:
    """Writes images of one dataset. Lives in an actor; opens everything lazily there.

    Parameters
    ----------
    uri : str
        The study's.
    out : str
        The dataset's.
    request : Request
    """

    title = ""

    def __init__(self, uri: str, out: str, request: Request) -> None:
        self.work = Work(Study(uri), request)
        self.out = Storage(out)
        self.writers = REMOTE_WRITERS if is_remote(out) else 1

    def there(self, folders: Sequence[str]) -> set[str]:
        """What some folders hold."""
        return {name for folder in folders for name in self.out.names(folder)}

    def owed(self, documents: dict[str, dict[str, Any]], there: set[str]) -> dict[str, bool]:
        """Which images are not there, or not with today's fingerprint, and whether they have an old sidecar."""
        sidecars = {image: export.sidecar_name(image) for image in documents}
        written = self.out.read_many([name for name in sidecars.values() if name in there])
        return {
            image: sidecars[image] in there
            for image, document in documents.items()
            if image not in there or _fingerprint(written.get(sidecars[image], b"")) != document["Fingerprint"]
        }

    def put(
        self, image: str, vector: NDArray[Any], document: dict[str, Any], outdated: bool, intent: str = "z score"
    ) -> None:
        """Write an image and then its sidecar; an outdated one would say the wrong thing in between."""
        derivative, sidecar = self.work.derivative, export.sidecar_name(image)
        text = f"{derivative.source.desc} {document['Contrast']} ({derivative.source.name})"
        data = export.map_image(self.work.study.grid, vector, code=derivative.code, description=text, intent=intent)
        if outdated:
            self.out.delete(sidecar)
        self.out.write(image, data)
        self.out.write(sidecar, as_json(document))


class SubjectWorker(_Worker):
    """The maps of a block of subjects."""

    title = "export"

    def __call__(self, unit: str) -> dict[str, Any]:
        """Write what is owed of one block; a block and contrast is read once, or not at all."""
        people = self.work.people[self.work.people["unit"] == unit]
        having = {
            self.work.derivative.image(contrast, subject=subject): (subject, contrast)
            for subject in people["subject"]
            for contrast in self.work.source.contrasts
            if self.work.has(subject, contrast)
        }
        owners = {image: who for image, who in having.items() if who[1] in self.work.contrasts}
        documents = {
            image: self.work.derivative.sidecar(subject, contrast, _stamp(people.loc[subject]))
            for image, (subject, contrast) in owners.items()
        }
        there = self.there([self.work.derivative.folder(subject) for subject in people["subject"]])
        removed = leftovers.remove(self.out, leftovers.among(self.work.derivative, there, having))
        owed = self.owed(documents, there)
        for contrast in self.work.contrasts:
            images = {image: who for image, (who, what) in owners.items() if what == contrast and image in owed}
            if images:
                vectors = self.work.read(unit, contrast, list(images.values()))
                with ThreadPoolExecutor(self.writers) as pool:
                    told = [(documents[image], owed[image]) for image in images]
                    list(pool.map(self.put, images, vectors, *zip(*told, strict=True)))
        return {
            "unit": unit,
            "subjects": len(people),
            "failed": 0,
            "written": len(owed),
            "kept": len(documents) - len(owed),
            "removed": removed,
        }


class GroupWorker(_Worker):
    """Mean and standard deviation of one contrast over all subjects, block after block."""

    title = "export of group maps"

    def __call__(self, unit: str) -> dict[str, Any]:
        """Write what is owed of one contrast, which is what the unit is called by."""
        people = self.work.people
        people = people[[self.work.has(subject, unit) for subject in people["subject"]]]
        statistics = STATISTICS[: len(people)]  # of one map there is no standard deviation
        stamps = [_stamp(row) for _, row in people.drop_duplicates("unit").iterrows()]
        documents = {
            self.work.derivative.image(unit, stat=stat): self.work.derivative.group_sidecar(
                list(people["subject"]), unit, stat, stamps
            )
            for stat in statistics
        }
        there = self.there(["group"])
        without = [self.work.derivative.image(unit, stat=stat) for stat in STATISTICS[len(statistics) :]]
        removed = leftovers.remove(self.out, [image for image in without if image in there])
        owed = self.owed(documents, there)
        if owed:
            pooled = moments.pooled(self._blocks(unit, people), self.work.study.grid.n_voxels)
            values = dict(zip(documents, (pooled.mean, pooled.deviation), strict=False))
            for image, outdated in owed.items():
                self.put(image, values[image], documents[image], outdated, "estimate")
        counts = {"written": len(owed), "kept": len(documents) - len(owed), "removed": removed}
        return {"unit": unit, "subjects": len(people), "failed": 0, **counts}

    def _blocks(self, contrast: str, people: pd.DataFrame) -> Iterator[NDArray[np.float16]]:
        """The maps of a contrast, block by block in their order."""
        for unit, members in people.groupby("unit", sort=True):
            yield self.work.read(str(unit), contrast, list(members["subject"]))


def _stamp(row: pd.Series) -> list[str]:
    """What changes whenever the maps of a receipt are made again."""
    return [str(row["fingerprint"]), row["finished"].isoformat()]


def _fingerprint(sidecar: bytes) -> str:
    """That of a sidecar; empty where it cannot be read."""
    try:
        return str(json.loads(sidecar)["Fingerprint"])
    except (ValueError, KeyError, TypeError):
        return ""
