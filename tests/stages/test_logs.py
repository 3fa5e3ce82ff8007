"""JSON logs of stages without a cluster: what a line holds, and what no line ever holds."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dtg_ray import Study
from dtg_ray.cli import main
from dtg_ray.remote import RETRIES
from dtg_ray.stages.telemetry import logs
from dtg_ray.store.files import Storage
from dtg_ray.store.receipts import Receipts
from s3_faults import Faults
from stage_tools import Tools, json_lines

SECRET = "wJalrXUtnFEMIsEcReT"


@contextmanager
def written() -> Iterator[logging.Logger]:
    """A logger whose lines are JSON, on whatever is stderr now."""
    root, mine = logging.getLogger(), logging.getLogger("dtg_ray")
    before, level = list(root.handlers), mine.level
    root.handlers = []
    try:
        logs.write_json()
        yield logging.getLogger("dtg_ray.test")
    finally:
        logging.captureWarnings(capture=False)
        root.handlers = before
        mine.setLevel(level)


def fail_with(error: Exception) -> None:
    raise error


class TestJSONLines:
    def test_are_whole_objects_with_a_time_of_utc(self, capsys: pytest.CaptureFixture[str]) -> None:
        token = logs.at_work(study="s3://bucket/a", stage="contrasts", block="block-00003", attempt=2)
        with written() as log:
            try:
                fail_with(ValueError('two\nlines and a "quote"'))
            except ValueError:
                log.exception("it broke")
            logs.back_to(token)
            log.info("later")
        first, second = json_lines(capsys.readouterr().err)
        assert first["time"].endswith("+00:00")
        assert (first["level"], first["message"]) == ("ERROR", "it broke")
        assert (first["stage"], first["block"], first["attempt"]) == ("contrasts", "block-00003", 2)
        assert 'two\nlines and a "quote"' in first["exception"]
        assert "stage" not in second

    def test_hold_no_credentials(self, capsys: pytest.CaptureFixture[str]) -> None:
        with written() as log:
            log.warning("https://user:%s@host/a and s3://b/c?X-Amz-Signature=%s", SECRET, SECRET)
            try:
                fail_with(OSError(f"s3://AKIA:{SECRET}@bucket/key"))
            except OSError:
                log.exception("no")
        err = capsys.readouterr().err
        assert len(json_lines(err)) == 2
        assert SECRET not in err

    def test_leave_out_what_other_libraries_chat(self, capsys: pytest.CaptureFixture[str]) -> None:
        with written():
            logging.getLogger("botocore.credentials").info("found some")
            logging.getLogger("botocore").warning("careful")
        assert [line["message"] for line in json_lines(capsys.readouterr().err)] == ["careful"]


def test_another_format_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("DTG_LOG", "xml")
    assert main(["status", "nowhere"]) == 2
    assert "DTG_LOG: got 'xml', expected one of text, json" in capsys.readouterr().err


def committed_inline(tools: Tools, *arguments: str) -> list[dict[str, Any]]:
    """What a stage without Ray logs of the blocks it has committed."""
    command, environment = tools.command(*arguments, "--inline", "--quiet"), {**os.environ, "DTG_LOG": "json"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return [line for line in json_lines(done.stderr) if ": committed" in line["message"]]


class TestInline:
    def test_the_lines_say_block_and_attempt_too(self, tools: Tools, tmp_path: Path) -> None:
        root = tools.init(str(tmp_path / "study"))
        committed = committed_inline(tools, "contrasts", root)
        assert [line["block"] for line in committed] == Receipts(Study(root).storage, "contrasts").units()
        assert {line["stage"] for line in committed} == {"contrasts"}
        assert not any("node" in line for line in committed)

    def test_a_block_that_is_done_again_is_another_attempt_of_those_alone(self, tools: Tools, tmp_path: Path) -> None:
        shutil.copytree(tools.data, tmp_path / "data")
        broken = next((tmp_path / "data" / "sub-0001" / "func").glob("*_bold.nii.gz"))
        whole = broken.read_bytes()
        broken.write_bytes(b"nothing")
        root = tools.init(str(tmp_path / "study"), data=tmp_path / "data")
        first = committed_inline(tools, "connectomes", root)
        assert [(line["attempt"], line["failed"]) for line in first] == [(1, 1), *[(1, 0)] * 5]
        broken.write_bytes(whole)
        (again,) = committed_inline(tools, "connectomes", root, "--retry-failed")
        assert (again["block"], again["attempt"], again["subjects"], again["failed"]) == (first[0]["block"], 2, 1, 0)

    def test_nothing_is_said_as_text_and_nothing_of_what_was_said_stays(self, tools: Tools, tmp_path: Path) -> None:
        root = tools.init(str(tmp_path / "study"))
        assert tools.dtg("contrasts", root, "--inline", "--quiet").stderr == ""
        record = logging.makeLogRecord({"msg": "x"})
        assert "stage" not in json.loads(logs.JSONLines().format(record))


@pytest.mark.s3
def test_requests_that_are_made_again_are_counted_and_logged_without_names(
    s3: Callable[[], str], faults: Faults, capsys: pytest.CaptureFixture[str]
) -> None:
    place, before = Storage(f"{s3()}/study"), RETRIES["SlowDown"]
    faults.script = ["slow_down", "slow_down"]
    with written():
        token = logs.at_work(block="block-00001")
        place.write("sub-0001/secret.txt", b"x")
        logs.back_to(token)
    assert RETRIES["SlowDown"] == before + 2
    told = json_lines(capsys.readouterr().err)
    assert [line["message"] for line in told] == [
        f"put_object: attempt {n} of 10: SlowDown; trying again" for n in (1, 2)
    ]
    assert {line["block"] for line in told} == {"block-00001"}
