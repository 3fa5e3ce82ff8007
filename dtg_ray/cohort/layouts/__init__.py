"""Where the files of a study's participants are. Each layout turns a root into the same `Found`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import pandas as pd

from dtg_ray.errors import ConfigError
from dtg_ray.imaging.scan import Scan
from dtg_ray.imaging.streams import archive_of
from dtg_ray.store.files import Storage, is_remote

WITHOUT_IMAGES = "in the tables, but without any image"
Needed = Literal["rest", "contrasts"]
"""What somebody has to have to be found: for a study a rest run, for a second visit a task map."""
NEEDED: dict[Needed, str] = {"rest": "rest run", "contrasts": "task map"}


@dataclass
class Participant:
    """One person's files.

    Parameters
    ----------
    subject : str
    rest : list of Scan
        The rest runs, in order.
    contrasts : dict of str to Scan
        The map of each contrast that was acquired.
    retest : dict of str to Scan
        The map of each contrast that was acquired again, on a second visit.
    """

    subject: str
    rest: list[Scan] = field(default_factory=list)
    contrasts: dict[str, Scan] = field(default_factory=dict)
    retest: dict[str, Scan] = field(default_factory=dict)

    def has(self, needed: Needed) -> bool:
        """Whether there is a rest run, or a map of any contrast."""
        return bool(self.rest if needed == "rest" else self.contrasts)


@dataclass
class Found:
    """What a layout found.

    Parameters
    ----------
    participants : list of Participant
        Those that can take part, sorted by subject.
    left_out : dict of str to str
        Subject (or file) and why it does not take part.
    phenotypes : DataFrame
        A column `subject` and anything known about the people.
    sizes : dict of str to int
        Bytes of the files whose size came with the listing, by URI.
    only_retest : int
        How many were found on the second visit alone.
    """

    participants: list[Participant]
    left_out: dict[str, str]
    phenotypes: pd.DataFrame
    sizes: dict[str, int] = field(default_factory=dict)
    only_retest: int = 0


def gather(
    participants: Iterable[Participant],
    left_out: Mapping[str, str],
    phenotypes: pd.DataFrame,
    listed: Mapping[str, int],
) -> Found:
    """What was found, in order: whom only the tables know is left out, sizes are those of the participants' images."""
    people = sorted(participants, key=lambda person: person.subject)
    absent = set(phenotypes["subject"]) - {person.subject for person in people}
    reasons = dict.fromkeys(absent, WITHOUT_IMAGES) | dict(left_out)
    scans = (scan for person in people for scan in (*person.rest, *person.contrasts.values()))
    sizes = {uri: listed[uri] for scan in scans if (uri := archive_of(scan.image)) in listed}
    return Found(people, dict(sorted(reasons.items())), phenotypes, sizes)


def with_retest(found: Found, again: Found) -> Found:
    """The same people, with the task maps of their second visit.

    Parameters
    ----------
    found : Found
        On the first visit.
    again : Found
        On the second. Of those who were not found on the first no more than their number is kept.

    Raises
    ------
    ConfigError
        When nobody was found twice, or an image is a map of both visits.
    """
    maps = {person.subject: person.contrasts for person in again.participants}
    twice = [person.subject for person in found.participants if person.subject in maps]
    if not twice:
        names = ", ".join(list(maps)[:3])
        raise ConfigError(
            f"got a second visit of {len(maps)} people ({names}), nobody of whom is in the study, expected some",
            hint="people have to have the same names on both visits",
        )
    first = {scan.image: person.subject for person in found.participants for scan in person.contrasts.values()}
    if same := [scan.image for name in twice for scan in maps[name].values() if scan.image in first]:
        raise ConfigError(
            f"got {same[0]} as a map of both visits of {first[same[0]]}, expected it of one",
            hint="give --retest the folder of the second visit, or --retest-select what tells its files, as ses=2",
        )
    people = [replace(person, retest=maps.get(person.subject, {})) for person in found.participants]
    return replace(found, participants=people, only_retest=len(maps) - len(twice))


def listing(storage: Storage, folder: re.Pattern[str]) -> dict[str, int]:
    """Bytes of all files below a root, by URI. Links to folders are followed where their name is that of a `folder`."""
    sizes = storage.sizes("")
    if not is_remote(storage.root):
        for link in [name for name in sizes if folder.fullmatch(name.rsplit("/", 1)[-1])]:
            sizes |= storage.sizes(link)
    return {storage.uri(name): size for name, size in sizes.items()}
