"""Checkpoints: whole or not there, damaged ones passed over, another training's left alone."""

from __future__ import annotations

import hashlib
import io
import logging
import os
from pathlib import Path

import pytest
import torch

from dtg_ray.errors import StudyError
from dtg_ray.stages.training.checkpoints import Checkpoints, Claim, differences
from dtg_ray.store.files import Storage

SETTINGS = {"train": {"epochs": 4}}


@pytest.fixture
def checkpoints(root: str) -> Checkpoints:
    return Checkpoints(Storage(root), "train/unet")


def state(epoch: int) -> dict:
    return {"epoch": epoch, "network": {"w": torch.full((3,), float(epoch))}, "history": [{"loss": 0.5}]}


def test_the_newest_comes_back_and_two_are_kept(checkpoints: Checkpoints) -> None:
    assert checkpoints.newest() is None
    assert checkpoints.position() == (0, 0)
    for epoch, step in ((0, 7), (1, 0), (1, 12), (10, 3)):
        checkpoints.save(state(epoch), (epoch, step))
    found = checkpoints.newest()
    assert found is not None
    assert found["epoch"] == 10
    assert torch.equal(found["network"]["w"], torch.full((3,), 10.0))
    assert checkpoints.position() == (10, 3)
    assert len(checkpoints.storage.names("train/unet")) == 2


def test_a_damaged_one_is_passed_over(checkpoints: Checkpoints, caplog: pytest.LogCaptureFixture) -> None:
    for epoch in (1, 2):
        checkpoints.save(state(epoch), (epoch, 0))
    newest = checkpoints.storage.names("train/unet")[-1]
    checkpoints.storage.write(newest, checkpoints.storage.read(newest)[:-1])
    with caplog.at_level(logging.WARNING):
        found = checkpoints.newest()
    assert found is not None
    assert found["epoch"] == 1
    assert "damaged" in caplog.text
    assert newest in caplog.text


def test_when_all_are_damaged_new_ones_stay(checkpoints: Checkpoints) -> None:
    for step in (1, 2):
        checkpoints.save(state(5), (5, step))
    for name in checkpoints.storage.names("train/unet"):
        checkpoints.storage.write(name, b"torn")
    assert checkpoints.newest() is None
    checkpoints.drop_after((0, 0))
    checkpoints.save(state(0), (0, 1))
    found = checkpoints.newest()
    assert found is not None
    assert found["epoch"] == 0
    assert checkpoints.position() == (0, 1)


def test_another_training_is_left_alone_until_told(root: str) -> None:
    first, second = (
        Claim(Storage(root), "unet", {"train": {"epochs": epochs}}, key) for epochs, key in ((4, "a"), (5, "b"))
    )
    first.take()
    first.checkpoints.save(state(1), (1, 0))
    first.take()
    with pytest.raises(StudyError, match=r"differs in train\.epochs \(4 there, 5 asked for\); it was not touched"):
        second.take()
    assert first.checkpoints.position() == (1, 0)
    second.take(anew=True)
    assert first.checkpoints.position() == second.checkpoints.position() == (0, 0)
    first.checkpoints.save(state(7), (7, 0))  # a driver that has not noticed
    assert second.checkpoints.newest() is None
    with pytest.raises(StudyError, match="another training"):
        first.take()


def test_the_same_settings_on_other_people_are_another_training() -> None:
    assert differences(SETTINGS, SETTINGS) == "the people it is trained on, or their files"
    assert differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 1}}) == "c (2 there, None asked for)"


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def test_code_in_a_checkpoint_is_not_run(checkpoints: Checkpoints, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"network": Bomb(tmp_path / "exploded")}, buffer)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()[:16]
    checkpoints.storage.write(f"train/unet/checkpoint-00001-000000-{digest}.pt", buffer.getvalue())
    with pytest.raises(StudyError, match=r"checkpoint-00001-000000-\w+\.pt: got pickled code"):
        checkpoints.newest()
    assert not (tmp_path / "exploded").exists()


def test_what_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    checkpoints = Checkpoints(Storage(str(tmp_path)), "train/unet")
    checkpoints.save(state(1), (1, 0))
    before = checkpoints.storage.names("train")
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(StudyError, match="could not be written: File too large"):
            checkpoints.save(state(2), (2, 0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoints.storage.names("train") == before
    assert not list(tmp_path.rglob("*.partial"))
