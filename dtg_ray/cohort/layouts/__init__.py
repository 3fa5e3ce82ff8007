"""Where the files of a study's participants are. Each layout turns a root into the same `Found`."""

from __future__ import annotations

from dataclasses import dataclass, field

import pandas as pd


@dataclass
class Participant:
    """One person's files.

    Parameters
    ----------
    subject : str
    rest : list of str
        URIs of the rest runs, in order.
    contrasts : dict of str to str
        URI of the map of each contrast that was acquired.
    """

    subject: str
    rest: list[str] = field(default_factory=list)
    contrasts: dict[str, str] = field(default_factory=dict)


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
    """

    participants: list[Participant]
    left_out: dict[str, str]
    phenotypes: pd.DataFrame
