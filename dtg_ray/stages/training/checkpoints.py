"""The state of a training in the study: whole files named by their content, so that a damaged one is known by its name.

train/<model>/training.json                              what is trained here
train/<model>/<key>/checkpoint-00012-000340-<sha256>.pt  after 12 epochs and 340 steps of the next one
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import pickle
import re
from collections.abc import Mapping, Sequence
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
        self._delete(self._names()[:-KEPT])

    def newest(self) -> dict[str, Any] | None:
        """The newest state that is whole, on the CPU; None when there is none. Damaged ones are passed over.

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
                return _load(data, self.storage.uri(name))
            log.warning("%s: damaged; going on from an older checkpoint", self.storage.uri(name))
        return None

    def position(self) -> Position:
        """How far the newest checkpoint is, by its name."""
        names = self._names()
        return _parse(names[-1])[:2] if names else (0, 0)

    def drop_after(self, position: Position) -> None:
        """Remove what is newer than a position: damaged ones, which would outlive every one that is written now."""
        self._delete([name for name in self._names() if _parse(name)[:2] > position])

    def clear(self) -> None:
        """Remove all of them."""
        self._delete(self._names())

    def _names(self) -> list[str]:
        """The checkpoints, the newest last."""
        return sorted((name for name in self.storage.names(self.folder) if NAME.search(name)), key=_parse)

    def _delete(self, names: Sequence[str]) -> None:
        """What cannot be removed stays; it is in nobody's way."""
        for name in names:
            try:
                self.storage.delete(name)
            except Exception as error:  # noqa: BLE001 - such as a role that may write but not delete
                log.warning("%s: could not be removed: %s", self.storage.uri(name), error)


@dataclass(frozen=True)
class Claim:
    """The folder of a model's training, with the checkpoints of one training in a folder of their own.

    Two trainings with other settings or of other people never see each other's checkpoints.

    Parameters
    ----------
    storage : Storage
    model : str
    settings : mapping
        Of the model, for JSON.
    key : str
        Hash of everything that the training depends on.
    """

    storage: Storage
    model: str
    settings: Mapping[str, Any]
    key: str

    @property
    def checkpoints(self) -> Checkpoints:
        """Of this training."""
        return Checkpoints(self.storage, f"train/{self.model}/{self.key}")

    def take(self, *, anew: bool = False) -> None:
        """Take the folder for this training, new or to be continued; `anew` replaces another one that is there.

        Raises
        ------
        StudyError
            When another training is there.
        """
        there = self.there()
        if there is None or there.get("key") == self.key:
            self._write()
            return
        if not anew:
            raise StudyError(
                f"{self.storage.uri(f'train/{self.model}')}: got another training there, which differs in "
                f"{differences(there.get('settings', {}), self.settings)}; it was not touched",
                hint="give the model another name in study.yaml, or start anew with --overwrite",
            )
        self.leave_alone()

    def leave_alone(self) -> None:
        """Make it this training's folder alone: remove what others left."""
        self._write()
        own = f"{self.checkpoints.folder}/"
        for name in self.storage.names(f"train/{self.model}"):
            if not name.startswith(own) and name != self._name:
                self.storage.delete(name)

    def there(self) -> dict[str, Any] | None:
        """What training.json says, None where it is absent or damaged."""
        try:
            found: dict[str, Any] = json.loads(self.storage.read(self._name))
        except MissingFileError:
            return None
        except ValueError:
            log.warning("%s: damaged; made again", self.storage.uri(self._name))
            return None
        return found

    @property
    def _name(self) -> str:
        return f"train/{self.model}/training.json"

    def _write(self) -> None:
        identity = {"settings": dict(self.settings), "key": self.key}
        if self.there() != identity:
            self.storage.write(self._name, json.dumps(identity, indent=1).encode())


def _load(data: bytes, uri: str) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
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
