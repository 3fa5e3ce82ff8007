"""Connectomes and measured maps of single subjects, as training and synthesis read them from a study."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dtg_ray import ledger
from dtg_ray.errors import DamagedError, StudyError, UsageError
from dtg_ray.ledger import Ledger
from dtg_ray.store.arrays import read
from dtg_ray.study import Study


class SubjectReader:
    """Reads one subject at a time; opens the arrays in the process that uses it.

    Parameters
    ----------
    study : Study
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        self.position = study.cohort["row"].astype(int).to_dict()

    @functools.cached_property
    def _connectomes(self) -> Any:
        return self.study.storage.open_array("connectomes.zarr", "connectome")

    @functools.cached_property
    def _maps(self) -> Any:
        return self.study.storage.open_array("contrasts.zarr", "maps")

    @functools.cached_property
    def _acquired(self) -> dict[str, set[str]]:
        cohort = self.study.cohort
        return {subject: set(maps) for subject, maps in zip(cohort["subject"], cohort["contrasts"], strict=True)}

    def connectomes(self, subject: str, expected: int) -> NDArray[np.float32]:
        """All windows of a subject, (W, K, V) float32, see `stored_windows`."""
        return self.stored_windows(subject, expected).astype(np.float32)

    def stored_windows(self, subject: str, expected: int) -> NDArray[np.float16]:
        """All windows of a subject, (W, K, V) float16, as many as its receipt says; those not recorded are left out.

        Raises
        ------
        StudyError
            When there are not as many as expected.
        """
        windows = recorded_windows(_of(subject, self._connectomes, self.position[subject]))
        if len(windows) != expected:
            raise lost(subject)
        return windows

    def stored_window(self, subject: str, number: int) -> NDArray[np.float16]:
        """One window of a subject, (K, V) float16; windows that were recorded come first.

        Raises
        ------
        StudyError
            When it is not there.
        """
        window = _of(subject, self._connectomes, (self.position[subject], number))
        if np.isnan(window[0, 0]):
            raise lost(subject)
        return window

    def maps(self, subject: str) -> NDArray[np.float32]:
        """Measured maps of a subject, (C, V) float32; NaN where not acquired."""
        return self.stored_maps(subject).astype(np.float32)

    def stored_maps(self, subject: str) -> NDArray[np.float16]:
        """Measured maps of a subject as they are stored, (C, V) float16; NaN where not acquired.

        Raises
        ------
        StudyError
            When one is lost that was acquired.
        """
        maps = _of(subject, self._maps, (slice(None), self.position[subject]), "contrasts")
        acquired = self._acquired[subject]
        for name, one in zip(self.study.config.contrasts, maps, strict=True):
            if name in acquired and np.isnan(one).any():
                raise lost(subject, f"map of {name}", "contrasts")
        return maps


def _of(subject: str, array: Any, index: Any, stage: str = "connectomes") -> NDArray[np.float16]:
    """A part of an array that belongs to a subject, whose name an error tells."""
    try:
        return read(array, index)
    except DamagedError as error:
        raise DamagedError(f"{subject}: {error}", hint=_again(stage)) from error


def lost(subject: str, what: str = "connectome", stage: str = "connectomes") -> StudyError:
    """What to say of somebody whose results are not where a receipt says they are."""
    return StudyError(
        f"{subject}: got no {what}, expected one: its chunk was lost after its receipt was written",
        hint=_again(stage),
    )


def _again(stage: str) -> str:
    return f"delete the receipt of its block below receipts/{stage}/ and run `dtg {stage.split('/', maxsplit=1)[0]}`"


def recorded_windows(values: NDArray[np.float16]) -> NDArray[np.float16]:
    """Of the windows (W, K, V) of a subject those that were recorded; they come first, unless one was lost."""
    recorded = ~np.isnan(values[:, 0, 0])
    count = int(recorded.sum())
    return values[:count] if recorded[:count].all() else values[recorded]


def usable(book: Ledger, split: str, contrasts: Sequence[str] | None = None) -> list[str]:
    """Subjects of a split with a connectome and a measured map, by default of any contrast, in the cohort's order."""
    study = book.study
    done = [set(book.account(stage).subjects("done")) for stage in ("connectomes", "contrasts")]
    members = study.cohort[study.cohort["split"] == split]
    wanted = set(study.config.contrasts if contrasts is None else contrasts)
    return [
        subject
        for subject, maps in zip(members["subject"], members["contrasts"], strict=True)
        if all(subject in these for these in done) and wanted & set(maps)
    ]


def window_counts(book: Ledger, subjects: Sequence[str]) -> dict[str, int]:
    """How many windows some subjects have, by the receipts of their connectomes."""
    rows = book.account("connectomes").rows.set_index("subject")["qc"]
    return {subject: int(rows[subject]["windows"]) for subject in subjects}


def chosen_models(study: Study, model: str | None) -> list[str]:
    """One model of a study, or all.

    Raises
    ------
    UsageError
        When the study has no such model.
    """
    names = list(study.config.models)
    if model is not None and model not in names:
        raise UsageError(f"got model {model!r}, expected one of {', '.join(names)}")
    return [model] if model else names


def require_settled(book: Ledger, stages: Sequence[str], what: str) -> str:
    """The first of some stages that is unfinished, in words for a plan; empty when all are done."""
    for stage in stages:
        account = book.account(stage)
        if pending := account.pending():
            return f"{stage} ({len(pending)} of {len(account.owed)} units open), before {what}"
    return ""


def require_stored(book: Ledger, splits: Sequence[str], what: str) -> str:
    """What is unfinished before something reads the connectomes and maps of some splits, in words; empty when done."""
    account = book.account("connectomes")
    if pending := unstored(book.study, account, splits):
        return f"connectomes ({len(pending)} of {len(account.owed)} units open), before {what}"
    return require_settled(book, ["contrasts"], what)


def unstored(study: Study, account: ledger.Account, splits: Sequence[str] | None) -> list[str]:
    """Units with somebody, of some splits or all, whose connectome was not made yet, or made but not stored."""
    there = ledger.stored(account) | set(account.subjects("failed")) | set(account.subjects("excluded"))
    wanted = study.cohort if splits is None else study.cohort[study.cohort["split"].isin(splits)]
    blocks = wanted.loc[[subject not in there for subject in wanted["subject"]], "block"]
    return [ledger.block_unit(block) for block in sorted(set(blocks))]
