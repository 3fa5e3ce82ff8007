"""How a subject's runs are cut into windows, each of which gives one connectome.

No window is cut across the border of a run: it is a piece of one run or, where there are fewer windows than runs, made
of several whole runs, each demeaned by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Share:
    """What one run gives to the windows of a subject.

    Parameters
    ----------
    first : int
        Its first window.
    count : int
        How many windows it is cut into; 1 where the run belongs to a window as a whole.
    closes : bool
        Whether its last window is complete with it; False where the next run goes on with that window.
    """

    first: int
    count: int
    closes: bool


def share_windows(lengths: Sequence[float], n_windows: int) -> list[Share]:
    """Share a number of windows among runs.

    With at least as many windows as runs, every run gets one, and the longer ones more, so that windows are as equal in
    length as whole numbers allow. With fewer windows than runs, a window is made of consecutive whole runs.

    Parameters
    ----------
    lengths : sequence of float
        Duration of each run.
    n_windows : int

    Returns
    -------
    list of Share
        One per run.

    >>> share_windows([600, 1200], 3)
    [Share(first=0, count=1, closes=True), Share(first=1, count=2, closes=True)]
    >>> [share.first for share in share_windows([600, 600, 600, 600], 2)]
    [0, 0, 1, 1]
    """
    if n_windows < len(lengths):
        groups = np.array_split(np.arange(len(lengths)), n_windows)
        return [Share(number, 1, run == group[-1]) for number, group in enumerate(groups) for run in group]
    counts = np.ones(len(lengths), dtype=np.int64)
    for _ in range(n_windows - len(lengths)):
        counts[np.argmax(np.asarray(lengths) / counts)] += 1  # cut the run whose windows are longest
    firsts = np.cumsum(counts) - counts
    return [Share(int(first), int(count), closes=True) for first, count in zip(firsts, counts, strict=True)]


def cut(n_volumes: int, count: int, length: int | None = None, minimum: int = 2) -> list[slice]:
    """Cut a run into consecutive windows of equal length; volumes that are left over at the end are not used.

    Parameters
    ----------
    n_volumes : int
    count : int
        Number of windows; the largest number where `length` is given.
    length : int, optional
        Volumes per window, where windows have a fixed duration. There may be fewer windows then, even none.
    minimum : int
        Volumes a window has to have.

    Raises
    ------
    ValueError
        When windows would be shorter.
    """
    if length is None:
        length = n_volumes // count
    if length < minimum:
        raise ValueError(
            f"got windows of {length} volumes ({count} in {n_volumes}), expected at least {minimum} in each"
        )
    count = min(count, n_volumes // length)
    return [slice(start * length, (start + 1) * length) for start in range(count)]
