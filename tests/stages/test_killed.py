"""SIGKILL at any stage costs only what was under way: the next run ends in the same bytes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from stage_tools import Arrays, Tools, wait_for

pytestmark = pytest.mark.slow


def kill_when(tools: Tools, root: Path, pattern: str) -> dict[Path, bytes]:
    """Run everything, SIGKILL the driver as soon as a file appears; returns the receipts written until then."""
    process = tools.start("run", str(root), "--quiet", "--keep-connectomes")
    try:
        wait_for(root, pattern)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    time.sleep(1)  # its workers notice that they are alone
    return {path: path.read_bytes() for path in (root / "receipts").rglob("*.parquet")}


def test_killed_at_three_stages_ends_in_the_same_bytes(
    tools: Tools, finished: Path, tmp_path: Path, arrays: Arrays
) -> None:
    root = tmp_path / "study"
    tools.init(str(root))
    before = {}
    for number, pattern in enumerate(
        (
            "receipts/connectomes/block-*.parquet",
            "train/unet/*/checkpoint-*.pt",
            "receipts/synthesize/linear/block-*.parquet",
        )
    ):
        kept = kill_when(tools, root, pattern)
        assert before.items() <= kept.items(), "a committed receipt was lost or written again"
        before = kept
        assert not (root / "receipts" / "predict").exists(), f"kill {number} came too late to interrupt anything"
    assert (root / "models" / "unet" / "model.json").exists()
    tools.process("run", str(root), "--quiet", "--keep-connectomes")
    after = {path: path.read_bytes() for path in (root / "receipts").rglob("*.parquet")}
    assert before.items() <= after.items()
    assert arrays(root) == arrays(finished)


def test_two_drivers_at_once_end_in_the_same_bytes(
    tools: Tools, finished: Path, tmp_path: Path, arrays: Arrays
) -> None:
    root = tmp_path / "study"
    tools.init(str(root))
    drivers = [tools.start("connectomes", str(root), "--inline") for _ in range(2)]
    assert [driver.wait(timeout=240) for driver in drivers] == [0, 0]
    tools.dtg("contrasts", str(root), "--inline")
    made = arrays(root)
    assert made == {name: data for name, data in arrays(finished).items() if name in made}
    assert any(name.startswith("connectomes.zarr/") for name in made)
