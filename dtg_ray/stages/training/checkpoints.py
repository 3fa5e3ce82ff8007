"""The state of a training in the study: whole files named by their content, so that a damaged one is known by its name.

train/<model>/training.json                        what is trained here
train/<model>/checkpoint-00012-000340-<sha256>.pt  after epoch 12 and 340 steps of the next one
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from dtg_ray.errors import MissingFileError, StudyError
from dtg_ray.store.files import Storage

log = logging.getLogger(__name__)
KEPT = 2
NAME = re.compile(r"checkpoint-(\d{5})-(\d{6})-([0-9a-f]{16})\.pt$")
Position = tuple[int, int]
"""Epochs done, and steps of the epoch after them."""


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one training.

    Parameters
    ----------
    storage : Storage
        The study's.
    folder : str
        Relative to its root.
    """

    storage: Storage
    folder: str

    def claim(self, identity: Mapping[str, Any], *, overwrite: bool = False) -> None:
        """Take the folder for a training, new or to be continued.

        Parameters
        ----------
        identity : mapping
            What the training is, for JSON: `settings` and `fingerprint`.
        overwrite : bool
            Delete what another training left here.

        Raises
        ------
        StudyError
            When another training is here.
        """
        try:
            there = json.loads(self.storage.read(f"{self.folder}/training.json"))
        except MissingFileError:
            there = None
        if there is not None and there["fingerprint"] != identity["fingerprint"]:
            if not overwrite:
                raise StudyError(
                    f"{self.storage.uri(self.folder)}: got the checkpoints of another training, which differs in "
                    f"{differences(there['settings'], identity['settings'])}; they were not touched",
                    hint="give the model another name in study.yaml, or start anew with --overwrite",
                )
            self.clear()
        if there != identity:
            self.storage.write(f"{self.folder}/training.json", json.dumps(identity, indent=1).encode())

    def save(self, state: Mapping[str, Any], position: Position) -> None:
        """Write a state; only when it is there as a whole are older ones removed.

        Raises
        ------
        StudyError
            When it cannot be written; the older ones are still there.
        """
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        data = buffer.getvalue()
        epoch, step = position
        digest = hashlib.sha256(data).hexdigest()[:16]
        self.storage.write(f"{self.folder}/checkpoint-{epoch:05d}-{step:06d}-{digest}.pt", data)
        for name in self._names()[:-KEPT]:
            self.storage.delete(name)

    def newest(self, device: torch.device | str = "cpu") -> dict[str, Any] | None:
        """The newest state that is whole; None when there is none. Damaged ones are passed over, with a warning.

        Nothing is unpickled that is not a tensor or a plain value.

        Raises
        ------
        StudyError
            When there is code in it.
        """
        for name in reversed(self._names()):
            try:
                data = self.storage.read(name)
            except MissingFileError:  # another driver has just removed it
                continue
            if hashlib.sha256(data).hexdigest()[:16] == _parse(name)[2]:
                return _load(data, device, self.storage.uri(name))
            log.warning("%s: damaged; going on from an older checkpoint", self.storage.uri(name))
        return None

    def position(self) -> Position:
        """How far the newest checkpoint is, by its name."""
        names = self._names()
        return _parse(names[-1])[:2] if names else (0, 0)

    def clear(self) -> None:
        """Remove everything of a training."""
        for name in self.storage.names(self.folder):
            self.storage.delete(name)

    def _names(self) -> list[str]:
        """The checkpoints, the newest last."""
        return sorted((name for name in self.storage.names(self.folder) if NAME.search(name)), key=_parse)


def _load(data: bytes, device: torch.device | str, uri: str) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        raise StudyError(
            f"{uri}: got pickled code, expected the tensors and numbers of a checkpoint; nothing of it was run",
            hint="it is not ours: find out who wrote it, and delete it",
        ) from error
    return state


def _parse(name: str) -> tuple[int, int, str]:
    found = NAME.search(name)
    if found is None:
        raise ValueError(f"got {name!r}, expected the name of a checkpoint")
    return int(found[1]), int(found[2]), found[3]


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Which settings differ, in words; the people or their files, where no setting does."""
    flat_old, flat_new = _flat(old), _flat(new)
    changed = [key for key in sorted({**flat_old, **flat_new}) if flat_old.get(key) != flat_new.get(key)]
    words = [f"{key} ({flat_old.get(key)} there, {flat_new.get(key)} asked for)" for key in changed]
    return ", ".join(words) or "the people it is trained on, or their files"


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
