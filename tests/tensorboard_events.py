"""What TensorBoard would read from an event file: records of (length, checksum, data, checksum)."""

from __future__ import annotations

import struct
from collections import defaultdict
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Tag -> step -> value, of the one event file of a folder."""
    (file,) = folder.iterdir()
    data, found = file.read_bytes(), defaultdict(dict)
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + length])
        for value in event.summary.value:
            found[value.tag][event.step] = value.simple_value
        data = data[12 + length + 4 :]
    return found
