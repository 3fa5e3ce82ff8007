"""Receipts: what was done for whom, by which configuration. A block without a valid receipt has not been done.

A receipt is a small Parquet file with a row per subject, `receipts/<stage>/<unit>.parquet`, written last. Only receipts
say what is done; whether a chunk exists says nothing, since a chunk equal to its fill value is not stored at all.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Literal

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dtg_ray.store.files import Storage

log = logging.getLogger(__name__)

Status = Literal["done", "failed", "excluded"]
SCHEMA = pa.schema(
    [
        ("subject", pa.string()),
        ("stage", pa.string()),
        ("unit", pa.string()),
        ("status", pa.string()),
        ("error_type", pa.string()),
        ("message", pa.string()),
        ("attempt", pa.int32()),
        ("uri", pa.string()),
        ("size", pa.int64()),
        ("etag", pa.string()),
        ("fingerprint", pa.string()),
        ("seconds", pa.float64()),
        ("peak_memory", pa.int64()),
        ("host", pa.string()),
        ("finished", pa.timestamp("ms", tz="UTC")),
        ("qc", pa.map_(pa.string(), pa.float64())),
    ]
)
VARYING = ("attempt", "seconds", "peak_memory", "host", "finished")
"""Columns that may differ between two runs of the same work."""


@dataclass
class Row:
    """What happened to one subject (or model, or feature set) in one stage.

    Parameters
    ----------
    subject : str
    status : "done", "failed" or "excluded"
    fingerprint : str
        Of all that the result depends on.
    error_type, message : str
        Why not, where not.
    uri, size, etag
        The input that was read, its size in bytes and the store's tag of its content.
    seconds : float
        Wall time.
    peak_memory : int
        Largest resident set of the process so far, bytes.
    qc : dict of str to float
        Quality figures, by name.
    """

    subject: str
    status: Status
    fingerprint: str = ""
    error_type: str = ""
    message: str = ""
    uri: str = ""
    size: int = 0
    etag: str = ""
    seconds: float = 0.0
    peak_memory: int = 0
    qc: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Receipts:
    """The receipts of one stage.

    Parameters
    ----------
    storage : Storage
        The study's.
    stage : str
        For example `connectomes` or `synthesize/unet`.
    """

    storage: Storage
    stage: str

    def name(self, unit: str) -> str:
        """Where the receipt of a unit is, relative to the root."""
        return f"receipts/{self.stage}/{unit}.parquet"

    def write(self, unit: str, rows: Iterable[Row], *, attempt: int, host: str) -> None:
        """Commit a unit: from here on its work counts as done."""
        finished = pd.Timestamp.now(tz="UTC").floor("ms")
        shared = {
            "stage": self.stage,
            "unit": unit,
            "attempt": attempt,
            "host": host,
            "finished": finished.to_pydatetime(),
        }
        records = [{**asdict(row), "qc": sorted(row.qc.items()), **shared} for row in rows]
        self.storage.write(self.name(unit), _bytes_of(pa.Table.from_pylist(records, schema=SCHEMA)))

    def withdraw(self, unit: str, kept: Iterable[Row] = (), host: str = "") -> int:
        """Take back the receipt of a unit that is about to be done again, but for rows that stay as they are.

        Returns the number of this attempt.
        """
        table, kept = self._table([unit]), list(kept)
        attempt = max(table["attempt"].to_pylist(), default=0)
        if kept:
            self.write(unit, kept, attempt=attempt, host=host)
        elif len(table):
            self.storage.delete(self.name(unit))
        return attempt + 1

    def erase(self, unit: str, subjects: Collection[str]) -> None:
        """Take the rows of some subjects out of a receipt; all others stay as they are, to the time."""
        name = self.name(unit)
        table = pq.read_table(io.BytesIO(self.storage.read(name)))
        fewer = table.filter(pc.invert(pc.is_in(table["subject"], pa.array(list(subjects), pa.string()))))
        if not len(fewer):
            self.storage.delete(name)
        elif len(fewer) < len(table):
            self.storage.write(name, _bytes_of(fewer))

    def holding(self, unit: str, today: Mapping[str, str | None]) -> dict[str, Row]:
        """The rows of a unit that hold today, by subject, given everybody's fingerprint."""
        records = self._table([unit]).select([item.name for item in fields(Row)]).to_pylist(maps_as_pydicts="strict")
        rows = [Row(**record) for record in records]
        return {row.subject: row for row in rows if row.fingerprint == today.get(row.subject, "")}

    def read(self, units: Iterable[str]) -> pd.DataFrame:
        """The rows of several units; units without a readable receipt have none."""
        return self._table(units).to_pandas(maps_as_pydicts="strict")

    def _table(self, units: Iterable[str]) -> pa.Table:
        found = self.storage.read_many([self.name(unit) for unit in units])
        tables = [table for name, data in sorted(found.items()) if (table := _parse(name, data)) is not None]
        return pa.concat_tables(tables) if tables else SCHEMA.empty_table()

    def units(self) -> list[str]:
        """Names of all units that have a receipt, valid or not, sorted."""
        folder = f"receipts/{self.stage}/"
        names = (name.removeprefix(folder) for name in self.storage.names(folder))
        return [name.removesuffix(".parquet") for name in names if name.endswith(".parquet") and "/" not in name]


def _bytes_of(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, use_dictionary=False, write_statistics=False)  # reads faster, of few rows
    return buffer.getvalue()


def _parse(name: str, data: bytes) -> pa.Table | None:
    """A receipt, or None when it cannot be read: the unit is then simply done again."""
    try:
        table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)  # a third of the time of read_table
        return table if table.schema.equals(SCHEMA) else table.cast(SCHEMA)
    except (pa.ArrowException, ValueError, OSError) as error:
        log.warning("%s: not a receipt (%s); its unit will be done again", name, error)
        return None
