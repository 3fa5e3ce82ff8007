"""What a training says."""

from __future__ import annotations

import pytest

from dtg_ray.stages.runtime import Options, duration
from dtg_ray.stages.training.progress import Herald, epoch_line
from dtg_ray.store.files import Storage

LINE = {"epoch": 3, "loss": 0.51234, "validation_r": 0.7, "waiting": 0.25, "ended": 0.0, "seconds": 60.0}


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.234, "0.23 s"), (9.96, "10 s"), (59.4, "59 s"), (61, "1 min 1 s"), (3599.9, "1 h 0 min"), (7890, "2 h 11 min")],
)
def test_durations_are_said_as_people_do(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_an_epoch_is_one_line_with_the_time_to_go() -> None:
    before = [{**LINE, "epoch": epoch, "ended": ended} for epoch, ended in ((1, 0.0), (2, 50.0))]
    line = epoch_line([*before, {**LINE, "ended": 120.0}], 10)
    assert line == "epoch 4/10, loss 0.5123, r 0.7, 1 min 10 s, waiting 25%, 6 min 0 s to go"
    assert epoch_line([{**LINE, "epoch": 0}], 3).endswith("1 min 0 s, waiting 25%, 2 min 0 s to go")
    assert "to go" not in epoch_line([{**LINE, "epoch": 9}], 10)


def test_a_file_that_cannot_be_written_is_said_once(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train").write_text("a file where a folder should be")
    herald = Herald("train/unet", 10, (Storage(str(tmp_path)), "train/events"), Options(quiet=True))
    for _ in range(2):
        herald({"history": [LINE]})
    assert capsys.readouterr().err.count("TensorBoard's file could not be written") == 1
