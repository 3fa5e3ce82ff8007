"""`dtg doctor` on real things that are wrong: rights, clocks, disks, clusters, tokens. It tells, and never breaks."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dtg_ray.cli import main
from dtg_ray.errors import StudyError
from dtg_ray.stages.doctor import cluster, machine, storage
from dtg_ray.stages.doctor.findings import FAIL, HERE, OK, WARN, Finding, checked, merged
from dtg_ray.stages.doctor.visit import visit
from dtg_ray.stages.runtime import Options
from dtg_ray.store.files import Storage
from s3_faults import Faults, forget_connections
from small_disk import Disk
from stage_tools import Tools

SECRET = "wJalrXUtnFEMIsEcReT"
RIGHTS = ["storage: put", "storage: get", "storage: list", "storage: delete"]
NOBODY = "127.0.0.1:1"
"""An address at which no cluster is."""


def states(findings: list[Finding]) -> dict[str, str]:
    return {one.name: one.state for one in findings}


def named(findings: list[Finding], name: str) -> Finding:
    (one,) = [one for one in findings if one.name == name]
    return one


def says(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    """The checks that `dtg doctor --json` has printed in its one line; of several with a name the worst."""
    (line,) = done.stdout.splitlines()
    told = json.loads(line)
    assert told["state"] in {OK, WARN, FAIL}
    assert "Traceback" not in done.stderr
    return {one["name"]: one for one in reversed(told["checks"])}


class TestRights:
    def test_are_all_there_and_nothing_is_left(self, root: str) -> None:
        place = Storage(f"{root}/population/study")
        assert states(storage.rights(place)) == dict.fromkeys(RIGHTS, OK)
        assert Storage(root).names("") == []
        assert not Path(root).exists()

    def test_leave_a_study_as_it_was(self, tmp_path: Path) -> None:
        (tmp_path / "study.yaml").write_text("x")
        storage.rights(Storage(str(tmp_path)))
        assert [path.name for path in tmp_path.rglob("*")] == ["study.yaml"]

    @pytest.mark.s3
    @pytest.mark.parametrize(
        ("right", "request_", "action"),
        [
            ("get", "GET /{bucket}/root/dtg-doctor/", "s3:GetObject"),
            ("list", "list-type=2", "s3:ListBucket"),
            ("delete", "DELETE ", "s3:DeleteObject"),
        ],
    )
    def test_that_lack_are_named(self, s3: Any, faults: Faults, right: str, request_: str, action: str) -> None:
        bucket = s3()
        faults.always, faults.only = "forbidden", request_.format(bucket=bucket.removeprefix("s3://"))
        findings = storage.rights(Storage(f"{bucket}/root"))
        assert states(findings) == {name: FAIL if name.endswith(right) else OK for name in RIGHTS}
        refused = named(findings, f"storage: {right}")
        assert action in refused.advice
        assert "Access Denied" in refused.found
        faults.always = ""
        assert len(Storage(bucket).names("")) == (right == "delete")

    @pytest.mark.s3
    def test_say_that_without_put_others_cannot_be_tried(self, s3: Any, faults: Faults) -> None:
        place, faults.refused = Storage(f"{s3()}/root"), ("PUT",)
        findings = storage.rights(place)
        assert states(findings) == dict(zip(RIGHTS, (FAIL, WARN, OK, WARN), strict=True))
        assert "s3:PutObject" in findings[0].advice

    @pytest.mark.s3
    def test_of_a_store_that_does_not_answer_are_told(
        self, s3: Any, faults: Faults, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        place = Storage(f"{s3()}/root")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
        forget_connections()
        faults.always = "slow_down"
        assert states(storage.rights(place))["storage: put"] == FAIL
        assert "got no good answer in 2 attempts" in named(storage.rights(place), "storage: list").found

    @pytest.mark.s3
    def test_of_credentials_that_are_no_good_are_told_without_them(
        self, s3: Any, faults: Faults, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        root = f"{s3()}/root"
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        forget_connections()
        faults.always = "expired"
        assert main(["doctor", root, "--address", NOBODY, "--json"]) == 1
        printed = capfd.readouterr()
        assert "ExpiredToken" in printed.out
        assert SECRET not in printed.out + printed.err

    def test_of_a_full_disk_are_told(self, disk: Disk) -> None:
        disk.fill()
        put = named(storage.rights(Storage(str(disk.root / "study"))), "storage: put")
        assert put.state == FAIL
        assert "No space left on device" in put.found
        assert not (disk.root / "study").exists()


class TestTheSamePlace:
    def test_is_one_in_which_all_see_what_one_has_written(self, root: str, tmp_path: Path) -> None:
        place = Storage(root)
        with storage.marked(place) as (mark, content):
            assert storage.same_place(Storage(root), mark, content).state == OK
            other = storage.same_place(Storage(str(tmp_path / "not mounted")), mark, content)
            assert other.state == FAIL
            assert "the same for all nodes" in other.advice
        assert place.names("") == []


class TestClocks:
    @pytest.mark.s3
    @pytest.mark.parametrize(("slow", "state"), [(0, OK), (60, WARN), (-60, WARN), (1200, FAIL)])
    def test_are_compared_with_the_server(self, s3: Any, faults: Faults, slow: float, state: str) -> None:
        place, faults.clock = Storage(f"{s3()}/root"), slow
        (finding,) = checked("clock of S3", lambda: storage.server_clock(place))
        assert finding.state == state
        if slow:
            seconds, _, way = finding.found.split()  # at least so many: less the time that the request took
            assert abs(slow) / 2 < float(seconds) <= abs(slow) + 1
            assert way == ("fast" if slow > 0 else "slow")

    def test_of_nodes_are_told_by_the_worst(self) -> None:
        told = {"10.0.0.1": {"clock": (0.1, 0.2)}, "10.0.0.2": {"clock": (-90.0, 0.2)}}
        finding = cluster.clocks(told)
        assert finding.state == WARN
        assert finding.found == "10.0.0.2: 90 s fast"
        assert cluster.clocks({"a": {"clock": (30.0, 40.0)}}).state == OK


@pytest.mark.s3
def test_a_bucket_without_a_rule_for_unfinished_uploads_is_told(s3: Any) -> None:
    place = Storage(f"{s3()}/root")
    finding = storage.lifecycle(place)
    assert finding is not None
    assert finding.state == WARN
    rule = {"ID": "a", "Status": "Enabled", "Prefix": "", "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1}}
    bucket = place.root.split("/")[2]
    place.fs.call_s3("put_bucket_lifecycle_configuration", Bucket=bucket, LifecycleConfiguration={"Rules": [rule]})
    finding = storage.lifecycle(place)
    assert finding is not None
    assert finding.state == OK


class TestAMachine:
    def test_with_everything_is_fit(self, tmp_path: Path) -> None:
        found = states(machine.examine({}, {"disk": str(tmp_path)}))
        assert list(found) == ["packages", "GPU", "disk", "shared memory", "open files"]
        assert found["packages"] == OK

    def test_with_a_full_disk_is_not(self, disk: Disk) -> None:
        finding = machine.disk("disk", str(disk.root / "study"))
        assert finding.state == FAIL
        assert str(disk.root) in finding.found

    def test_whose_gpus_torch_does_not_see_is_not(self) -> None:
        import torch

        if torch.cuda.is_available():
            pytest.skip("needs a machine without a GPU")
        finding = machine.gpu(2)
        assert finding is not None
        assert finding.state == FAIL
        assert "got 0 GPUs of torch, expected 2" in finding.found

    def test_without_what_the_package_asks_for_is_not(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = ["ray==1.0", "no-such-package>=3", "numpy>=1", 'never; extra == "test"']
        monkeypatch.setattr(machine.metadata, "requires", lambda _name: asked)
        finding = machine.packages()
        assert finding.state == FAIL
        assert "ray 2.60.0, expected ==1.0; no no-such-package, expected >=3" in finding.found
        assert "never" not in finding.found

    def test_that_has_other_code_than_the_driver_is_named(self) -> None:
        same = {"versions": machine.versions()}
        other = {"versions": {**machine.versions(), "ray": "2.59.0", machine.PACKAGE: "0123456789ab"}}
        assert cluster.same_versions({"10.0.0.1": same}).state == OK
        finding = cluster.same_versions({"10.0.0.1": same, "10.0.0.2": other})
        assert finding.state == FAIL
        assert "10.0.0.2: dtg_ray 0123456789ab, ray 2.59.0" in finding.found
        assert "10.0.0.1" not in finding.found


class TestTokens:
    def test_are_asked_for_or_the_cluster_is_open_to_all(self) -> None:
        closed, opened = {"10.0.0.1": {"token": True}}, {"10.0.0.1": {"token": True}, "10.0.0.2": {"token": False}}
        assert cluster.token(closed, "10.0.0.1:6379").state == OK
        assert cluster.token(opened, "10.0.0.1:6379").state == FAIL
        assert cluster.token({"127.0.0.1": {"token": False}}, "127.0.0.1:6379").state == WARN


class TestFindings:
    def test_of_a_check_that_breaks_are_failures_that_say_what_to_do(self) -> None:
        def broken() -> Finding:
            raise StudyError(f"s3://user:{SECRET}@b/c: no\nsecond line", hint="do that")

        (finding,) = checked("disk", broken)
        assert finding == Finding("disk", FAIL, "s3://b/c: no", "do that")
        (finding,) = checked("disk", lambda: Finding("disk", OK, str(1 / 0)))
        assert finding.found == "ZeroDivisionError: division by zero"
        assert finding.advice

    def test_of_several_places_are_one_where_all_agree(self) -> None:
        good, bad = Finding("disk", OK, "room"), Finding("disk", FAIL, "full", "free some")
        assert merged({HERE: [good]}) == [good]
        assert merged({HERE: [good], "a": [good]}) == [Finding("disk", OK, "room (here, a)")]
        told = merged({HERE: [good], "a": [bad], "b": [bad]})
        assert told == [Finding("disk", FAIL, "full (a, b)", "free some"), Finding("disk", OK, "room (here)")]


class TestWithoutACluster:
    def test_nobody_at_the_address_is_told_at_once(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        assert main(["doctor", str(tmp_path / "study"), "--address", NOBODY]) == 1
        printed = capsys.readouterr()
        assert f"got no connection to {NOBODY}" in printed.out.replace("\n", "")
        assert "Traceback" not in printed.err
        assert not (tmp_path / "study").exists()

    def test_a_study_that_cannot_be_understood_is_told(self, tmp_path: Path) -> None:
        (tmp_path / "study.yaml").write_text("colour: red")
        findings = visit(str(tmp_path), Options(address=NOBODY))
        assert named(findings, "study").state == FAIL
        assert named(findings, "storage: put").state == OK

    def test_a_root_with_credentials_is_refused_without_repeating_them(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["doctor", f"s3://AKIA:{SECRET}@bucket/study", "--address", NOBODY]) == 1
        printed = capsys.readouterr()
        assert "credentials" in printed.out
        assert SECRET not in printed.out + printed.err


@pytest.fixture(scope="module")
def nodes() -> Iterator[str]:
    """A cluster with a head, and a node that says it has a GPU; both lend out little memory."""
    from ray.cluster_utils import Cluster

    few = {"object_store_memory": 10**8, "memory": 10**8}
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **few})
    try:
        made.add_node(num_cpus=1, num_gpus=1, **few)
        yield made.address
    finally:
        made.shutdown()


@pytest.mark.slow
class TestRay:
    def test_of_its_own_starts_and_everything_is_fit(self, tools: Tools, finished: Path) -> None:
        checks = says(tools.process("doctor", str(finished), "--json"))
        told = {name: one["state"] for name, one in checks.items()}
        assert FAIL not in told.values()
        names = ("study", "Ray", "nodes", "same versions", "clocks of nodes", "token", "fits", "same place", *RIGHTS)
        assert {name: told[name] for name in names} == dict.fromkeys(names, OK)
        assert not (finished / storage.FOLDER).exists()

    def test_of_several_nodes_is_looked_at_node_by_node(self, tools: Tools, nodes: str, tmp_path: Path) -> None:
        root = tools.init(str(tmp_path / "study"))
        checks = says(tools.process("doctor", root, "--json", "--address", nodes, check=1))
        assert checks["nodes"]["found"].startswith("2 alive: 2 CPU, 1 GPU")
        for name in ("same versions", "clocks of nodes", "token", "same place", "packages"):
            assert checks[name]["state"] == OK, checks[name]
        assert checks["GPU"]["state"] == FAIL
        assert "got 0 GPUs of torch, expected 1; a torch " in checks["GPU"]["found"]  # with CUDA or without
        assert checks["fits"]["state"] == FAIL
        assert "connectomes: got nodes of" in checks["fits"]["found"]
        assert "memory" in checks["fits"]["found"]

    def test_with_another_token_is_told(
        self, tools: Tools, nodes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "token").write_text("w" * 32)
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
        checks = says(tools.process("doctor", "--json", "--address", nodes, check=1))
        assert checks["Ray"]["state"] == FAIL
        assert "RAY_AUTH_TOKEN_PATH" in checks["Ray"]["advice"]

    @pytest.mark.usefixtures("s3")
    def test_that_is_something_else_is_told(self, tools: Tools) -> None:
        """The S3 server of the tests listens there, and knows nothing of Ray."""
        address = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")
        checks = says(tools.process("doctor", "--json", "--address", address, check=1))
        assert checks["Ray"]["state"] == FAIL
        assert "got no" in checks["Ray"]["found"]
