"""float16, the type in which connectomes and maps are stored."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

LARGEST = float(np.finfo(np.float16).max)


def as_float16(values: NDArray[Any]) -> NDArray[np.float16]:
    """Values of any shape as float16; beyond its range, its largest or smallest."""
    return values.clip(-LARGEST, LARGEST).astype(np.float16)
