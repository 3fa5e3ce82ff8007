"""Participants who withdrew their consent: the study remembers them by digests alone, so that they stay out of it."""

from __future__ import annotations

import codecs
import hashlib
import re
from collections.abc import Iterable

from dtg_ray.errors import ConfigError

PREFIX = "sub-"
TELLING = 5
"""Characters of a name that means somebody wherever it stands; UK Biobank's have 7, HCP's 6."""


def bare(subject: str) -> str:
    """The name of a participant without BIDS' prefix."""
    return subject.removeprefix(PREFIX)


def digest(subject: str, salt: str) -> str:
    """What a study keeps of a name: it can be recognised, but nobody finds it by searching for it."""
    return hashlib.sha256(f"{salt}:{bare(subject)}".encode()).hexdigest()[:32]


def read_names(data: bytes, origin: str) -> list[str]:
    """Participants of a list, one per line (the first column, where there are more); a line of headings is passed over.

    Parameters
    ----------
    data : bytes
        Text in UTF-8, with or without a byte order mark, or with one in UTF-16.
    origin : str
        Named in the error.

    Raises
    ------
    ConfigError
        When there is nobody in it, or it is no text.
    """
    try:
        text = data.decode("utf-16" if data[:2] in {codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE} else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{origin}: got something that is no text ({error}), expected a participant per line"
        ) from error
    cells = (re.split(r"[,;\t ]", line.strip(), maxsplit=1)[0].strip("\"'") for line in text.splitlines())
    names = [cell for cell in cells if cell and cell.lower() not in {"eid", "subject", "participant_id"}]
    if not names:
        raise ConfigError(f"{origin}: got nobody, expected a participant per line")
    return list(dict.fromkeys(names))


def pattern(names: Iterable[str]) -> re.Pattern[str]:
    """Finds any of some participants in text, but not within longer names or numbers.

    Names are found with BIDS' prefix and, unless they are so short that they can be anything, without.
    """
    short = {bare(name) for name in names}
    words = sorted(
        {re.escape(f"{PREFIX}{name}") for name in short} | {re.escape(n) for n in short if len(n) >= TELLING}
    )
    return re.compile(rf"(?<![0-9A-Za-z])(?:{'|'.join(words)})(?![0-9A-Za-z])")
