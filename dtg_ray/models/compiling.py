"""torch.compile where it works: a compiler can fail in every way, and nothing depends on it."""

from __future__ import annotations

from collections.abc import Callable


def trouble_of(trial: Callable[[], object]) -> str:
    """Run what torch.compile made for the first time, which is when it compiles.

    Returns
    -------
    str
        Empty when it works, else what was wrong, in one line.
    """
    try:
        trial()
    except Exception as error:  # noqa: BLE001 - see above
        lines = str(error).strip().splitlines() or [""]
        return f"{type(error).__name__}: {lines[0]}"
    return ""
