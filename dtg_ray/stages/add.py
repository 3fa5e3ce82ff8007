"""`dtg init --add`: people who came later, as new blocks of a study; what is there is not touched."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import pandas as pd

from dtg_ray.cohort import manifest
from dtg_ray.cohort.layouts import Found, Participant
from dtg_ray.cohort.withdrawal import digest
from dtg_ray.errors import ConfigError, MissingFileError, StudyError
from dtg_ray.stages.init import with_contrasts
from dtg_ray.store.tables import read_table, write_table
from dtg_ray.study import COHORT, LEFT_OUT, PHENOTYPES, WITHDRAWN, Study, cohort_bytes


@dataclass(frozen=True)
class Added:
    """What `dtg init --add` did.

    Parameters
    ----------
    study : Study
        As it is now.
    new : list of str
        Who was added.
    known : int
        How many were in the study already.
    changed : list of str
        Of those the ones whose files are others now; they stay as they are.
    withdrawn : int
        How many were found but have withdrawn.
    left_out : dict of str to str
    """

    study: Study
    new: list[str]
    known: int
    changed: list[str]
    withdrawn: int
    left_out: dict[str, str]


def add(study: Study, found: Found) -> Added:
    """Append people to a study.

    Parameters
    ----------
    study : Study
    found : Found
        From a layout; those whom the study has already are passed over.

    Raises
    ------
    ConfigError
        When tables or names cannot be used.
    StudyError
        When somebody else changed the study at the same time.
    """
    chosen, config = with_contrasts(found, study.config.contrasts), study.config
    gone = read_withdrawn(study)
    of_study = study.cohort.index
    known = [person for person in chosen.participants if person.subject in of_study]
    withdrawn = [person.subject for person in chosen.participants if gone.has(person.subject)]
    new = [person for person in chosen.participants if person.subject not in {*of_study, *withdrawn}]
    changed = [person.subject for person in known if _differs(study, person)]
    left_out = {name: why for name, why in found.left_out.items() if name not in of_study and not gone.has(name)}
    if new:
        longer = manifest.extend(study.manifest, replace(chosen, participants=new), config.cohort)
        names = [person.subject for person in new]
        _write(study, longer, _phenotypes(study, found, names), left_out)
    return Added(Study(study.uri), [person.subject for person in new], len(known), changed, len(withdrawn), left_out)


@dataclass(frozen=True)
class Withdrawn:
    """Who withdrew, by digests.

    Parameters
    ----------
    table : DataFrame
        digest, salt, date.
    """

    table: pd.DataFrame

    def has(self, subject: str) -> bool:
        """Whether somebody withdrew."""
        return any(digest(subject, salt) in digests for salt, digests in self._by_salt.items())

    @functools.cached_property
    def _by_salt(self) -> dict[str, set[str]]:
        return {str(salt): set(rows["digest"]) for salt, rows in self.table.groupby("salt")}


def read_withdrawn(study: Study) -> Withdrawn:
    """Who withdrew from a study."""
    try:
        return Withdrawn(read_table(study.storage, WITHDRAWN))
    except MissingFileError:
        return Withdrawn(pd.DataFrame(columns=["digest", "salt", "date"], dtype="str"))


def _differs(study: Study, person: Participant) -> bool:
    """Whether the study has other files of somebody."""
    line = study.cohort.loc[person.subject]
    return bool(line["rest"] != person.rest or line["contrasts"] != dict(sorted(person.contrasts.items())))


def _phenotypes(study: Study, found: Found, new: list[str]) -> pd.DataFrame:
    """What is known about everybody; of those who were there before what was known then."""
    before = read_table(study.storage, PHENOTYPES)
    more = found.phenotypes.set_index("subject").reindex(new).rename_axis("subject").reset_index()
    for name in before.columns.intersection(more.columns):
        numeric = [pd.api.types.is_numeric_dtype(table[name]) for table in (before, more)]
        if numeric[0] != numeric[1] and more[name].notna().any() and before[name].notna().any():
            kinds = ["numbers" if one else "text" for one in numeric]
            raise ConfigError(f"{name}: got {kinds[1]} for the new people, expected {kinds[0]} as of those before")
    return pd.concat([before[~before["subject"].isin(new)], more], ignore_index=True)


def _write(study: Study, longer: pd.DataFrame, phenotypes: pd.DataFrame, left_out: dict[str, str]) -> None:
    """Write the tables, and the manifest last: until then nothing has changed."""
    reasons = pd.DataFrame({"subject": list(left_out), "reason": list(left_out.values())}, dtype="str")
    before = read_table(study.storage, LEFT_OUT)
    kept = before[~before["subject"].isin([*left_out, *longer["subject"]])]
    write_table(study.storage, PHENOTYPES, phenotypes)
    write_table(study.storage, LEFT_OUT, pd.concat([kept, reasons], ignore_index=True))
    if cohort_bytes(Study(study.uri).manifest) != cohort_bytes(study.manifest):
        raise StudyError(
            f"{study.uri}: got another manifest than a moment ago, expected nobody else to change it",
            hint="run the same command again",
        )
    study.storage.write(COHORT, cohort_bytes(longer))


def describe(added: Added) -> list[str]:
    """What was added, in words."""
    study = added.study
    splits = study.cohort.loc[added.new, "split"].value_counts()
    shares = ", ".join(f"{count} {name}" for name, count in splits.items())
    blocks = study.cohort.loc[added.new, "block"].nunique()
    lines = [
        f"{study.uri}: {len(added.new)} subjects added in {blocks} new blocks" + (f" ({shares})" if shares else ""),
        f"  {added.known} of those found were in the study already; it has {len(study.cohort)} subjects now",
    ]
    if added.changed:
        names = ", ".join(added.changed[:3])
        lines.append(f"  {len(added.changed)} of them have other files now ({names} ...): they stay as they are")
    if added.withdrawn:
        lines.append(f"  {added.withdrawn} have withdrawn and stay out")
    if added.left_out:
        lines.append(f"  {len(added.left_out)} left out, see {study.storage.uri(LEFT_OUT)}")
    return lines
