"""What a run says of itself: JSON logs of driver and workers, and figures that a real Prometheus reads."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from dtg_ray import Study
from dtg_ray.stages.cluster import session
from dtg_ray.stages.runtime import Options
from dtg_ray.stages.telemetry import watch
from dtg_ray.stages.telemetry.metrics import CATALOGUE, Board
from dtg_ray.store.receipts import Receipts
from ray_head import Head, free_port, ray_head
from stage_tools import Tools, json_lines

MONITORING = Path(__file__).parents[2] / "cluster" / "monitoring"
STAGES = ("connectomes", "contrasts", "train", "synthesize")
SAMPLE = re.compile(r"^(\w+)\{(.*)\} (\S+)$", re.MULTILINE)
Samples = list[tuple[str, dict[str, str], float]]


@dataclass(frozen=True)
class Watched:
    """A study, the cluster on which its stages ran, and what they wrote to stderr."""

    root: str
    head: Head
    said: dict[str, str]
    broken: str


@pytest.fixture(scope="module")
def watched(tools: Tools, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Stages on a cluster: one subject cannot be read, and maps are made by workers with a GPU, or so Ray is told."""
    folder = tmp_path_factory.mktemp("watched")
    shutil.copytree(tools.data, folder / "data")
    next((folder / "data" / "sub-0001" / "func").glob("*_bold.nii.gz")).write_bytes(b"nothing")
    settings = yaml.safe_load(tools.settings.read_text())
    settings["models"] = {"group_mean": {"kind": "group_mean"}}
    settings["synthesis"] |= {"gpus_per_actor": 1}
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
    root = Tools(folder / "data", tools.rois, folder / "settings.yaml").init(str(folder / "study"))
    environment = {**os.environ, "DTG_LOG": "json"}
    with ray_head(folder / "head.log", gpus=1) as head:
        said = {}
        for stage in STAGES:
            done = subprocess.run(
                tools.command(stage, root, "--quiet", "--address", head.address),
                env=environment,
                capture_output=True,
                text=True,
                timeout=200,
                check=False,
            )
            assert done.returncode in {0, 3}, done.stderr
            said[stage] = done.stderr
        yield Watched(root, head, said, "sub-0001")


def samples(text: str) -> Samples:
    """Figures by name and labels."""
    found = SAMPLE.findall(text)
    return [(name, dict(re.findall(r'(\w+)="([^"]*)"', labels)), float(value)) for name, labels, value in found]


def by_stage(head: Head, name: str) -> dict[str, float]:
    """The values of a figure of ours."""
    return {labels["stage"]: value for one, labels, value in samples(head.scrape()) if one == name}


def of_workers(head: Head) -> list[dict[str, Any]]:
    """What all workers of a cluster have logged."""
    files = (head.folder / "session_latest" / "logs").glob("worker-*.err")
    return [line for file in files for line in json_lines(file.read_text())]


@pytest.mark.slow
class TestFigures:
    def test_agree_with_the_receipts(self, watched: Watched) -> None:
        study, told = Study(watched.root), Counter[tuple[str, str]]()
        for name, labels, value in samples(watched.head.scrape()):
            if name == "ray_dtg_subjects_total":
                assert labels["study"] == study.uri
                told[labels["stage"], labels["status"]] += round(value)
        written: Counter[tuple[str, str]] = Counter()
        for stage in ("connectomes", "contrasts", "synthesize/group_mean"):
            receipts = Receipts(study.storage, stage)
            written.update((stage, status) for status in receipts.read(receipts.units())["status"])
        assert told == written
        assert written["connectomes", "failed"] == 1

    def test_are_of_each_block_once(self, watched: Watched) -> None:
        blocks = by_stage(watched.head, "ray_dtg_blocks_total")
        study = Study(watched.root)
        for stage in ("connectomes", "contrasts", "synthesize/group_mean"):
            assert blocks[stage] == len(Receipts(study.storage, stage).units())

    def test_say_how_long_gpus_waited(self, watched: Watched) -> None:
        for name in ("busy", "wait"):
            told = by_stage(watched.head, f"ray_dtg_gpu_{name}_seconds_total")
            assert told.keys() == {"synthesize"}
            assert told["synthesize"] > 0

    def test_say_how_long_stages_took(self, watched: Watched) -> None:
        told = by_stage(watched.head, "ray_dtg_stage_seconds_total")
        assert set(told) == {"connectomes", "contrasts", "train/group_mean", "synthesize"}
        for stage, said in watched.said.items():
            (ended,) = [line for line in json_lines(said) if line["message"].endswith(": ended")]
            assert told[ended["stage"]] == pytest.approx(ended["seconds"], rel=0.5), stage  # not twice what it was


def queries() -> list[str]:
    """All that the dashboard asks Prometheus."""
    board = json.loads((MONITORING / "grafana-dashboard.json").read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    for variable, value in (("$__rate_interval", "1m"), ("$study", ".*"), ("$stage", ".*")):
        asked = [expression.replace(variable, value) for expression in asked]
    return asked


def names_in(expressions: list[str]) -> set[str]:
    return set(re.findall(r"\bray_\w+", " ".join(expressions)))


class TestTheDashboard:
    def test_has_what_grafana_needs(self) -> None:
        board = json.loads((MONITORING / "grafana-dashboard.json").read_text())
        assert {"uid", "title", "schemaVersion", "panels", "templating", "time"} <= board.keys()
        variables = {variable["name"]: variable["type"] for variable in board["templating"]["list"]}
        assert variables == {"datasource": "datasource", "study": "query", "stage": "query"}
        ids, places = [panel["id"] for panel in board["panels"]], [panel["gridPos"] for panel in board["panels"]]
        assert len(set(ids)) == len(ids)
        cells = [(x, y) for p in places for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])]
        assert len(set(cells)) == len(cells), "panels lie on each other"
        assert max(x for x, _ in cells) < 24
        for panel in board["panels"]:
            if panel["type"] != "row":
                assert panel["datasource"]["uid"] == "${datasource}"
                assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])

    def test_shows_all_figures_there_are(self) -> None:
        shown = {
            name.removeprefix("ray_").removesuffix("_bucket").removesuffix("_count") for name in names_in(queries())
        }
        assert CATALOGUE.keys() - shown <= {"dtg_blocks_total"}
        assert {name for name in shown if name.startswith("dtg_")} <= CATALOGUE.keys()

    @pytest.mark.slow
    def test_asks_for_nothing_that_does_not_exist(self, watched: Watched) -> None:
        """Figures of GPUs and retries, and gauges once the driver has ended, are not there now: they are looked up."""
        import ray

        there = {name for name, _, _ in samples(watched.head.scrape())}
        source = (Path(ray.__file__).parent / "dashboard/modules/reporter/reporter_agent.py").read_text()
        for name in names_in(queries()) - there:
            assert name.removeprefix("ray_") in CATALOGUE or f'"{name.removeprefix("ray_")}"' in source, name


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool: apt-get install prometheus")
class TestPrometheus:
    @pytest.mark.parametrize("name", ["prometheus.yaml", "prometheus-kuberay.yaml"])
    def test_takes_the_configuration(self, tmp_path: Path, name: str) -> None:
        """Debian builds it without Kubernetes: all of that file but the way in which pods are found is checked."""
        text = (MONITORING / name).read_text()
        pods = "kubernetes_sd_configs:\n      - role: pod"
        without = text.replace(pods, 'static_configs:\n      - targets: ["127.0.0.1:1"]')
        (tmp_path / name).write_text(without)
        command = ["promtool", "check", "config", str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    @pytest.mark.slow
    def test_finds_the_cluster_and_answers_what_the_dashboard_asks(self, watched: Watched, tmp_path: Path) -> None:
        found = watched.head.folder / "prom_metrics_service_discovery.json"
        text = (MONITORING / "prometheus.yaml").read_text()
        config = re.sub(r"(?<=\[)/\S+json", str(found), text).replace("15s", "1s")
        assert str(found) in config
        (tmp_path / "prometheus.yaml").write_text(config)
        with prometheus(tmp_path) as ask:
            wanted = sum(value for name, _, value in samples(watched.head.scrape()) if name == "ray_dtg_subjects_total")
            until(lambda: sum(values(ask("ray_dtg_subjects_total"))) == wanted)
            until(lambda: bool(values(ask("rate(ray_dtg_subjects_total[1m])"))))
            for expression in queries():
                assert ask(expression)["status"] == "success", expression
            done = values(ask(queries()[0]))
            assert done
            assert sum(done) == wanted - sum(values(ask('ray_dtg_subjects_total{status!="done"}')))


@contextmanager
def prometheus(folder: Path) -> Iterator[Any]:
    """A Prometheus of this machine alone; yields a function that asks it."""
    port = free_port()
    command = ["prometheus", f"--config.file={folder / 'prometheus.yaml'}", f"--storage.tsdb.path={folder / 'data'}"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)

    def ask(expression: str) -> dict[str, Any]:
        query = urllib.parse.urlencode({"query": expression})
        try:
            answer: dict[str, Any] = json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/query?{query}"))
        except urllib.error.HTTPError as error:
            return {"status": error.read().decode(), "data": {"result": []}}
        except OSError:
            return {"status": "down", "data": {"result": []}}
        return answer

    try:
        yield ask
    finally:
        process.terminate()
        process.wait(30)


def values(answer: dict[str, Any]) -> list[float]:
    return [float(series["value"][1]) for series in answer["data"]["result"]]


def until(holds: Any) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.5)


@pytest.mark.slow
class TestLogsOfACluster:
    def test_say_stage_block_and_attempt_wherever_work_is_done(self, watched: Watched) -> None:
        study = Study(watched.root)
        committed = [line for line in of_workers(watched.head) if ": committed" in line["message"]]
        for stage in ("connectomes", "contrasts", "synthesize/group_mean"):
            mine = [line for line in committed if line["stage"] == stage]
            assert sorted(line["block"] for line in mine) == Receipts(study.storage, stage).units()
            assert {line["attempt"] for line in mine} == {1}
            assert {line["study"] for line in mine} == {study.uri}
            assert all(line["job"] and line["node"] and line["actor"] for line in mine)
        counts = sum(line["failed"] for line in committed if line["stage"] == "connectomes")
        assert counts == 1

    def test_say_when_stages_began_and_ended(self, watched: Watched) -> None:
        for stage, said in watched.said.items():
            messages = [line["message"] for line in json_lines(said) if line["stage"].startswith(stage)]
            assert messages[0].endswith(": began")
            assert messages[-1].endswith(": ended")

    def test_name_no_subject_who_is_all_right(self, watched: Watched) -> None:
        everything = json.dumps([*of_workers(watched.head), *watched.said.values()])
        assert set(re.findall(r"sub-\d{4}", everything)) <= {watched.broken}


@pytest.mark.slow
def test_figures_that_cannot_be_told_stop_nothing(caplog: pytest.LogCaptureFixture) -> None:
    board = Board()
    board.tell("dtg_blocks_total", 1, study="a", stage="b")  # nobody is there to be told
    with session(Options(cpus=1)):
        board.tell("dtg_blocks_total", 1, colour="a label that it does not have")
        board.tell("dtg_blocks_total", 1, study="a", stage="b")
    assert caplog.text.count("there will be none of this run") == 1


@pytest.mark.slow
def test_the_waiting_of_a_training_is_counted_for_each_of_its_gpus() -> None:
    """Of two GPUs for 8 seconds, a quarter of which they waited. A Ray of its own offers figures as any other."""
    import ray

    with session(Options(cpus=1)):
        (node,) = ray.nodes()
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        head = Head(address="", dashboard="", metrics=url, folder=Path())
        with watch.stage("s3://bucket/study", "train/unet"):
            watch.epoch({"seconds": 8.0, "waiting": 0.25}, 2)
            watch.epoch({"seconds": 8.0, "waiting": 0.0}, 0)
            until(lambda: by_stage(head, "ray_dtg_gpu_wait_seconds_total") == {"train/unet": 4})
            assert by_stage(head, "ray_dtg_gpu_busy_seconds_total") == {"train/unet": 12}
