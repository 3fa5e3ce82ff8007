"""What one check has found, in words; a check that fails itself is a finding, too."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from dtg_ray.errors import DTGError
from dtg_ray.remote import without_credentials

State = Literal["ok", "warn", "fail"]
OK: State = "ok"
WARN: State = "warn"
FAIL: State = "fail"
HERE = "here"
"""The machine of whoever asks."""
SHOWN = 3
"""Places that are named."""


@dataclass(frozen=True)
class Finding:
    """The outcome of a check.

    Parameters
    ----------
    name : str
        Of the check.
    state : "ok", "warn" or "fail"
    found : str
    advice : str
        What to do, where it is not ok.
    """

    name: str
    state: State
    found: str
    advice: str = ""


def checked(name: str, check: Callable[[], Finding | None], advice: str = "") -> list[Finding]:
    """What a check finds, in a list; nothing where it does not apply, and a failure where it raises anything.

    Parameters
    ----------
    name : str
    check : callable
    advice : str
        What to do when it raises something that does not say.
    """
    try:
        finding = check()
    except Exception as error:  # noqa: BLE001 - the doctor tells, whatever it is
        return [failed(name, error, advice)]
    return [] if finding is None else [finding]


def failed(name: str, error: BaseException, advice: str = "") -> Finding:
    """An error as a finding: its first line, without credentials."""
    words = str(error).strip().splitlines()
    found = words[0] if words else ""
    hint = error.hint if isinstance(error, DTGError) else ""
    told = found if isinstance(error, DTGError) else f"{type(error).__name__}: {found}"
    return Finding(name, FAIL, without_credentials(told), advice or hint or "DTG_LOG=json and DTG_TRACEBACK=1 say more")


def merged(by_place: Mapping[str, Iterable[Finding]]) -> list[Finding]:
    """The findings of the same checks in several places: per check one of each state, the worst first."""
    by_name: dict[str, dict[str, Finding]] = {}
    for place, findings in by_place.items():
        for finding in findings:
            by_name.setdefault(finding.name, {})[place] = finding
    return [finding for places in by_name.values() for finding in _by_state(places)]


def _by_state(places: Mapping[str, Finding]) -> list[Finding]:
    result = []
    for state in (FAIL, WARN, OK):
        mine = {place: finding for place, finding in places.items() if finding.state == state}
        if not mine:
            continue
        first, where = next(iter(mine.values())), shortened(list(mine))
        if len({finding.found for finding in mine.values()}) == 1:
            found = first.found if list(places) == [HERE] else f"{first.found} ({where})"
        else:
            found = shortened([f"{place}: {finding.found}" for place, finding in mine.items()], "; ")
        result.append(replace(first, found=found))
    return result


def shortened(names: Sequence[str], between: str = ", ") -> str:
    """The first of many names."""
    return between.join(names[:SHOWN]) + (f"{between}and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
