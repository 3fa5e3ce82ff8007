"""Raw fields of UK Biobank: how exports spell their columns, and the phenotypes that are computed from them.

A field is written as UK Biobank's own tools do, field-instance.element: `21003-2.0` is the age at the first imaging
visit. All codes of what is not known (-1, -3, -818 ...) are negative, as no answer or measurement used here is.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np
import numpy.typing as npt
import pandas as pd

from dtg_ray.errors import ConfigError

Values = npt.NDArray[np.float64]
"""(N,) values of one field, NaN where a cell is empty."""

PERSON = ("eid", "participant.eid", "f.eid")
"""What exports call the column of identifiers."""
SPELLINGS = (
    re.compile(r"([0-9]+)-([0-9]+)\.([0-9]+)"),  # ukbconv csv
    re.compile(r"f\.([0-9]+)\.([0-9]+)\.([0-9]+)"),  # ukbconv r
    re.compile(r"[fx]([0-9]+)_([0-9]+)_([0-9]+)"),  # the same, where a name has to be one
    re.compile(r"(?:participant\.)?p([0-9]+)(?:_i([0-9]+))?(?:_a([0-9]+))?"),  # Research Analysis Platform
)
BARE = re.compile(r"p[0-9]+")
"""A spelling that other tables use as well, for items or principal components."""
VISIT, ILLNESSES = "21003-2.0", "20002-2.*"
"""Filled for everybody who came to the first imaging visit; the illnesses reported there, an array."""
RIGHT, LEFT = 1, 2
"""Codes of 1707."""
PHQ9 = tuple(f"{field}-0.0" for field in (20507, 20508, 20510, 20511, 20513, 20514, 20517, 20518, 20519))
GAD7 = tuple(f"{field}-0.0" for field in (20505, 20506, 20509, 20512, 20515, 20516, 20520))
RDS4 = tuple(f"{field}-2.0" for field in (2050, 2060, 2070, 2080))


@dataclass(frozen=True)
class Rule:
    """How a phenotype comes about.

    Parameters
    ----------
    fields : tuple of str
        All it is computed from; `*` is any element, of which one has to be there.
    compute : callable
        From the values of these by field to those of the phenotype.
    beside : tuple of str
        Used where it is there.
    """

    fields: tuple[str, ...]
    compute: Callable[[Mapping[str, Values]], Values]
    beside: tuple[str, ...] = ()


def _known(values: Values) -> Values:
    """(N,) NaN where a code says that it is not known."""
    return np.where(values < 0, np.nan, values)


def _as_is(values: Mapping[str, Values]) -> Values:
    (one,) = values.values()
    return _known(one)


def _zero_or_one(values: Mapping[str, Values]) -> Values:
    (one,) = values.values()
    return np.where(np.isin(one, (0, 1)), one, np.nan)


def _sum(values: Mapping[str, Values], lowest: int) -> Values:
    """(N,) sum of items coded 1..4, counted from `lowest`; NaN if any is."""
    return np.sum([_known(item) - 1 + lowest for item in values.values()], axis=0)


def _grip(values: Mapping[str, Values]) -> Values:
    """(N,) kg of the dominant hand, that of the imaging visit where it is known, otherwise that of the first visit."""
    now, before = _known(values["1707-2.0"]), _known(values["1707-0.0"])
    hand = np.where(np.isnan(now), before, now)
    right, left = _known(values["47-2.0"]), _known(values["46-2.0"])
    return np.select([hand == RIGHT, hand == LEFT], [right, left], np.nan)


def _illness(values: Mapping[str, Values], code: int) -> Values:
    """(N,) 1 for those with the code in any element, NaN for those without any who did not come, 0 for all others."""
    elements = [one for field, one in values.items() if field != VISIT]
    ill = np.any([one == code for one in elements], axis=0)
    silent = np.all([np.isnan(one) for one in elements], axis=0)
    absent = np.isnan(values[VISIT]) if VISIT in values else np.zeros(len(ill), dtype=bool)
    return np.where(silent & absent, np.nan, ill.astype(np.float64))


RULES: dict[str, Rule] = {
    "age": Rule((VISIT,), _as_is),
    "sex": Rule(("31-0.0",), _zero_or_one),
    "fluid_intelligence": Rule(("20016-2.0",), _as_is),
    "grip_strength": Rule(("46-2.0", "47-2.0", "1707-2.0", "1707-0.0"), _grip),
    "overall_health": Rule(("2178-2.0",), _as_is),
    "alcohol_frequency": Rule(("1558-2.0",), _as_is),
    "hypertension": Rule((ILLNESSES,), partial(_illness, code=1065), beside=(VISIT,)),
    "depression": Rule((ILLNESSES,), partial(_illness, code=1286), beside=(VISIT,)),
    "neuroticism": Rule(("20127-0.0",), _as_is),
    "PHQ9": Rule(PHQ9, partial(_sum, lowest=0)),
    "GAD7": Rule(GAD7, partial(_sum, lowest=0)),
    "RDS4": Rule(RDS4, partial(_sum, lowest=1)),
}


def field_of(column: str) -> str | None:
    """The field that a column of an export holds, None for any other column.

    A spelling without an instance or an element, as the Research Analysis Platform has them, means 0.

    >>> field_of("participant.p20002_i2_a11")
    '20002-2.11'
    """
    match = next((match for spelling in SPELLINGS if (match := spelling.fullmatch(column))), None)
    if match is None:
        return None
    field, instance, element = (int(number or 0) for number in match.groups())
    return f"{field}-{instance}.{element}"


def raw_fields(columns: Iterable[str]) -> dict[str, str]:
    """Field by column, of the columns of an export; none where the table is no export.

    It is one by its column of identifiers, or by a field whose spelling is no ordinary name: of other tables a `p3` is
    what they say it is.
    """
    columns = list(columns)
    fields = {column: field for column in columns if (field := field_of(column))}
    certain = any(name in PERSON for name in columns) or not all(BARE.fullmatch(name) for name in fields)
    return fields if certain else {}


def sources(columns: Iterable[str], phenotypes: Collection[str] | None = None) -> dict[str, list[str]]:
    """Columns that each phenotype is computed from, of the phenotypes whose fields are all there.

    Parameters
    ----------
    columns : iterable of str
        All columns of an export.
    phenotypes : collection of str, optional
        Only these.

    Raises
    ------
    ConfigError
        When one of the fields is there in two spellings.
    """
    found = defaultdict(list)
    for column in columns:
        if field := field_of(column):
            found[field].append(column)
    made = {}
    for name, rule in RULES.items():
        needed = [_present(field, found) for field in rule.fields]
        if (phenotypes is None or name in phenotypes) and all(needed):
            beside = [field for field in rule.beside if field in found]
            made[name] = [_only(field, found) for field in [*chain(*needed), *beside]]
    return made


def derive(table: pd.DataFrame, phenotypes: Collection[str] | None = None) -> pd.DataFrame:
    """The phenotypes of `RULES` whose fields are all there; the others are left out.

    Parameters
    ----------
    table : DataFrame
        (N rows) raw fields as codes, in any of the spellings.
    phenotypes : collection of str, optional
        Only these.

    Returns
    -------
    DataFrame
        (N rows) float64, the index of `table`; NaN where not known. `age` in years, `grip_strength` in kg of the
        dominant hand; `sex` (1 male), `hypertension` and `depression` are 0 or 1. All elements of the array of
        illnesses are empty for a person who reported none, which is 0, and for a person who did not come to the
        imaging visit, which is NaN: nobody without 21003-2.0 did, where this column is there; where it is not, both
        are 0.

    Raises
    ------
    ConfigError
        When a needed field holds text instead of codes, or is there twice.
    """
    made = sources(table.columns, phenotypes)
    needed = dict.fromkeys(column for columns in made.values() for column in columns)
    values = {column: _numbers(table[column]) for column in needed}
    computed = {
        name: RULES[name].compute({str(field_of(column)): values[column] for column in columns})
        for name, columns in made.items()
    }
    return pd.DataFrame(computed, index=table.index, dtype="float64")


def _present(field: str, found: Collection[str]) -> list[str]:
    """The field itself, or all elements that are there; nothing where it is not there."""
    if not field.endswith("*"):
        return [field] if field in found else []
    return [one for one in found if one.startswith(field.removesuffix("*"))]


def _only(field: str, found: Mapping[str, list[str]]) -> str:
    """The column of a field."""
    columns = found[field]
    if len(columns) > 1:
        raise ConfigError(f"got field {field} in columns {columns}, expected it in one")
    return columns[0]


def _numbers(column: pd.Series) -> Values:
    """(N,) codes or measurements; text that is a number is taken for one."""
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        return np.asarray(column.to_numpy("float64", na_value=np.nan), dtype=np.float64)
    text = column.reset_index(drop=True).dropna().astype("str").str.strip()
    text = text[text != ""]
    numbers = pd.to_numeric(text, errors="coerce").astype("float64")
    if labels := text[~np.isfinite(numbers)].tolist():
        raise ConfigError(
            f"got {labels[0]!r} in column {column.name}, expected numbers",
            hint='export the coded ("raw") values, not their labels: in the Table Exporter, coding option RAW',
        )
    return np.asarray(numbers.reindex(range(len(column))), dtype=np.float64)
