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

from dtg_ray.errors import MissingFileError
from dtg_ray.store.files import Storage
from dtg_ray.store.tables import in_memory

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
INDEX_SCHEMA = SCHEMA.append(pa.field("stamp", pa.string()))
INDEX = "index"
MANY = 100
"""Receipts that are put into an index."""
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
        table = pq.read_table(in_memory(self.storage.read(name)))
        fewer = table.filter(pc.invert(pc.is_in(table["subject"], pa.array(list(subjects), pa.string()))))
        if not len(fewer):
            self.storage.delete(name)
        elif len(fewer) < len(table):
            self.storage.write(name, _bytes_of(fewer))

    def holding(self, unit: str, today: Mapping[str, str | None]) -> dict[str, Row]:
        """The rows of a unit that hold today, by subject, given everybody's fingerprint."""
        records = self._table([unit]).select([item.name for item in fields(Row)]).to_pylist(maps_as_pydicts="strict")
        rows = [Row(**record) for record in records]
        return {row.subject: row for row in rows if row.fingerprint and row.fingerprint == today.get(row.subject)}

    def read(self, units: Iterable[str]) -> pd.DataFrame:
        """The rows of several units; units without a readable receipt have none."""
        return self._table(units).to_pandas(maps_as_pydicts="strict")

    def index(self) -> None:
        """Put all receipts of a stage with many into one file, which only saves reading them: they alone count."""
        stamps = self._stamps()
        before = self._indexed(stamps)
        if len(stamps) - pc.count_distinct(before["unit"]).as_py() < MANY:
            return
        table = self._table(stamps)
        column = pa.array([stamps[unit] for unit in table["unit"].to_pylist()], pa.string())
        self.storage.write(self._index, _bytes_of(table.append_column("stamp", column)))

    def _table(self, units: Iterable[str]) -> pa.Table:
        """The rows of several units, in the order of their names."""
        wanted = set(units)
        if len(wanted) < MANY:
            return _merged(self.storage.read_many([self.name(unit) for unit in sorted(wanted)]))
        stamps = {unit: stamp for unit, stamp in self._stamps().items() if unit in wanted}
        known = self._indexed(stamps)
        new = stamps.keys() - set(known["unit"].to_pylist())
        table = pa.concat_tables([known, _merged(self.storage.read_many([self.name(unit) for unit in sorted(new)]))])
        return table.take(pc.sort_indices(table, [("unit", "ascending")]))  # which is stable

    def _stamps(self) -> dict[str, str]:
        """All units that have a receipt, and what changes when it does."""
        stamps = self.storage.stamps(f"receipts/{self.stage}")
        return {unit: stamps[name] for name in stamps if (unit := self._unit(name))}

    def _indexed(self, stamps: Mapping[str, str]) -> pa.Table:
        """Of the index the rows of receipts that are still as they were when it was made."""
        try:
            index = _parse(self._index, self.storage.read(self._index), INDEX_SCHEMA)
        except MissingFileError:
            index = None
        if index is None:
            return SCHEMA.empty_table()
        pairs = index.select(["unit", "stamp"]).group_by(["unit", "stamp"]).aggregate([]).to_pylist()
        valid = [pair["unit"] for pair in pairs if stamps.get(pair["unit"]) == pair["stamp"]]
        return index.filter(pc.is_in(index["unit"], pa.array(valid, pa.string()))).drop_columns(["stamp"])

    @property
    def _index(self) -> str:
        """Where the index is."""
        return f"{INDEX}/{self.stage}.parquet"

    def units(self) -> list[str]:
        """Names of all units that have a receipt, valid or not, sorted."""
        return [unit for name in self.storage.names(f"receipts/{self.stage}") if (unit := self._unit(name))]

    def _unit(self, name: str) -> str:
        """The unit of a receipt by its name; empty for what is none of this stage's."""
        rest = name.removeprefix(f"receipts/{self.stage}/")
        return rest.removesuffix(".parquet") if rest.endswith(".parquet") and "/" not in rest else ""


def _bytes_of(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, use_dictionary=False, write_statistics=False)  # reads faster, of few rows
    return buffer.getvalue()


def _merged(found: Mapping[str, bytes]) -> pa.Table:
    """The rows of receipts by the names of their files, of all that can be read."""
    tables = [table for name, data in sorted(found.items()) if (table := _parse(name, data)) is not None]
    return pa.concat_tables(tables) if tables else SCHEMA.empty_table()


def _parse(name: str, data: bytes, schema: pa.Schema = SCHEMA) -> pa.Table | None:
    """A receipt, or None when it cannot be read: the unit is then simply done again."""
    try:
        table = pq.ParquetFile(in_memory(data)).read(use_threads=False)  # a third of the time of read_table
        return table if table.schema.equals(schema) else table.cast(schema)
    except (pa.ArrowException, ValueError, OSError) as error:
        log.warning("%s: not a receipt (%s); its unit will be done again", name, error)
        return None
