"""`dtg submit` and `dtg jobs` on a real Ray cluster that is protected by a token."""

from __future__ import annotations

import io
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import dtg_ray
from dtg_ray import Study
from dtg_ray.stages.jobs import cluster as contact
from dtg_ray.stages.jobs import request
from dtg_ray.stages.jobs.cluster import Cluster, Patience, UnreachableError
from dtg_ray.stages.jobs.following import Screen, exit_code, follow, wait
from ray_head import ray_head
from stage_tools import Tools
from wire import Wire, tls, wire

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a head's dashboard."""
    with ray_head(tmp_path_factory.mktemp("cluster") / "head.log") as head:
        yield head.dashboard


@pytest.fixture
def line(url: str) -> Iterator[Wire]:
    """The way there, which can be cut."""
    with wire(url) as proxy:
        yield proxy


def python(url: str, script: str, **metadata: str) -> str:
    """Submit a script of Python; the job's id."""
    name = request.new_id("script")
    command = shlex.join(["python", "-c", script])
    Cluster(url).submit(submission_id=name, entrypoint=command, metadata={"stage": "script", "study": "s", **metadata})
    return name


def patient(said: list[str] | None = None, seconds: float = 60) -> Patience:
    return Patience(seconds, (said if said is not None else []).append)


def whole_log(url: str, job: str) -> str:
    return str(Cluster(url)._client.get_job_logs(job))


@pytest.fixture(scope="module")
def study(url: str, tools: Tools, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A study of which one subject has no images any more."""
    folder = tmp_path_factory.mktemp("submitted")
    shutil.copytree(tools.data, folder / "data")
    root = tools.init(str(folder / "study"), data=folder / "data")
    next((folder / "data" / "sub-0001" / "func").glob("*_bold.nii.gz")).unlink()
    return root


class TestAStage:
    def test_runs_there_and_is_followed_here_to_its_exit_code(
        self, url: str, study: str, tools: Tools, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(Path(study).parent)
        done = tools.dtg("submit", "connectomes", "study", "--address", url, "--json", check=3)
        lines = done.stdout.splitlines()
        last = json.loads(lines[-1])
        assert last == {"id": last["id"], "status": "FAILED", "exit_code": 3}
        assert f"python -m dtg_ray.cli connectomes {study} --json" in done.stdout
        assert any(line.startswith("connectomes: 100%|") for line in lines)
        assert sum("sub-0001: " in line for line in lines) == 1
        assert (Study(study).status().set_index("stage").loc["connectomes", ["pending", "failed"]] == [0, 1]).all()
        assert f"{last['id']} is submitted to {url}" in done.stderr

    def test_that_refuses_its_options_there_says_so(self, url: str, study: str, tools: Tools) -> None:
        done = tools.dtg("submit", "train", study, "--address", url, "--model", "nobody", check=2)
        assert "nobody" in done.stdout

    def test_goes_on_after_ctrl_c_and_is_followed_again(self, url: str, study: str, tools: Tools) -> None:
        listens = ("env", "--default-signal=INT")  # tests that run in the background do not
        command = [*listens, *tools.command("submit", "contrasts", study, "--address", url)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None
        first = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        rest, said = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "Traceback" not in said
        job = said.split()[1]
        assert f"dtg jobs --address {url} --follow {job}" in said
        assert f"dtg jobs --address {url} --stop {job}" in said
        done = tools.dtg("jobs", "--address", url, "--follow", job)
        assert done.stdout.startswith(first + rest[:-1])
        assert "contrasts: 100%|" in done.stdout

    def test_is_not_started_twice(self, url: str, study: str, tools: Tools) -> None:
        job = python(url, "import time; time.sleep(600)", stage="report", study=study)
        done = tools.dtg("submit", "report", study, "--address", url, check=2)
        assert job in done.stderr
        assert f"--follow {job}" in done.stderr
        tools.dtg("submit", "report", study, "--address", url, "--dry-run")
        beside = tools.dtg("submit", "report", study, "--address", url, "--beside", "--no-follow").stdout.strip()
        assert beside in {other.submission_id for other in Cluster(url).jobs()}
        tools.dtg("jobs", "--address", url, "--stop", job)

    def test_of_files_that_other_machines_have_not_is_refused(
        self, url: str, study: str, tools: Tools, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("socket.gethostname", lambda: "laptop")
        done = tools.dtg("submit", "report", study, "--address", url, check=2)
        assert "--shared-filesystem" in done.stderr
        tools.dtg("submit", "report", study, "--address", url, "--shared-filesystem", "--no-follow", "--dry-run")
        tools.dtg("submit", "report", "s3://bucket/study", "--address", url, "--no-follow", "--dry-run")

    def test_that_reserves_more_than_there_is_waits(self, url: str, tools: Tools) -> None:
        options = ("--driver-cpus", "1", "--driver-memory", "8000GB", "--no-follow", "--dry-run")
        job = tools.dtg("submit", "report", "s3://b/waits", "--address", url, *options).stdout.strip()
        assert "waiting for resources" in Cluster(url).info(job).message
        done = tools.dtg("jobs", "--address", url, "--stop", job, "--patience", "0.03", check=1)
        assert f"{job} is told to stop, but is pending still" in done.stderr


class TestWhatTravels:
    def test_is_the_code_alone_and_the_workers_have_it_too(
        self, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "participants.csv").write_text("1000001,61,F")
        (tmp_path / "dtg_ray").mkdir()
        (tmp_path / "dtg_ray" / "notes.txt").write_text("1000001 withdrew")
        monkeypatch.chdir(tmp_path)
        script = (
            "import json, os, pathlib, ray\n"
            "def look():\n"
            "    import dtg_ray\n"
            "    files = [str(p) for p in pathlib.Path('.').rglob('*') if p.is_file() and p.suffix != '.pyc']\n"
            "    return [files, dtg_ray.__file__, os.environ.get('DTG_PROBE')]\n"
            "ray.init()\n"
            "print(json.dumps([look(), ray.get(ray.remote(num_cpus=1)(look).remote())]))\n"
        )
        name, environment = request.new_id("script"), request.environment(["DTG_PROBE=yes"], {})
        with request.code() as folder:
            Cluster(url).submit(
                submission_id=name,
                entrypoint=shlex.join(["python", "-c", script]),
                runtime_env={"working_dir": str(folder), "env_vars": environment},
            )
        assert exit_code(wait(Cluster(url), name, patient())) == 0
        package = Path(dtg_ray.__file__).parent
        expected = {str(path.relative_to(package.parent)) for path in package.rglob("*") if path.is_file()}
        (said,) = [line for line in whole_log(url, name).splitlines() if line.startswith("[[")]  # Ray speaks, too
        for files, where, variable in json.loads(said):
            assert set(files) == {path for path in expected if "__pycache__" not in path}
            assert "runtime_resources" in where
            assert variable == "yes"

    def test_says_no_secret_of_this_machine(self, url: str, tools: Tools, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-hidden")
        monkeypatch.setenv("DTG_SECRET", "very-hidden")
        job = tools.dtg("submit", "report", "s3://b/s", "--address", url, "--no-follow", "--dry-run").stdout.strip()
        info = Cluster(url).info(job)
        assert "hidden" not in str(info)
        assert Path(os.environ["RAY_AUTH_TOKEN_PATH"]).read_text() not in str(info)
        assert info.metadata == {"stage": "report", "study": "s3://b/s", "version": dtg_ray.__version__}


class TestTheExitCode:
    def test_is_that_of_the_stage(self, url: str, tools: Tools) -> None:
        ends = {code: f"raise SystemExit({code})" for code in (0, 1, 2, 3)}
        ends[137] = "import os; os.kill(os.getpid(), 9)"
        started = {code: python(url, script) for code, script in ends.items()}
        for code, job in started.items():
            done = tools.dtg("jobs", "--address", url, "--follow", job, "--json", check=code)
            assert json.loads(done.stdout.splitlines()[-1])["exit_code"] == code

    def test_of_a_job_that_never_began_is_1_and_says_why(self, url: str, tools: Tools) -> None:
        name = request.new_id("script")
        environment = {"working_dir": "https://127.0.0.1:1/nothing.zip"}
        Cluster(url).submit(submission_id=name, entrypoint="true", runtime_env=environment)
        done = tools.dtg("jobs", "--address", url, "--follow", name, check=1)
        assert "runtime_env" in done.stderr

    def test_of_a_stopped_job_is_130(self, url: str, tools: Tools) -> None:
        job = python(url, "import time; print('begun'); time.sleep(600)")
        while "begun" not in whole_log(url, job):
            time.sleep(0.2)
        tools.dtg("jobs", "--address", url, "--stop", job)
        assert str(Cluster(url).info(job).status) == "STOPPED"
        tools.dtg("jobs", "--address", url, "--follow", job, check=130)
        assert "ended before" in tools.dtg("jobs", "--address", url, "--stop", job).stderr


class TestTheList:
    def test_has_the_jobs_of_dtg(self, url: str, tools: Tools) -> None:
        job = python(url, "raise SystemExit(3)", stage="predict", study="s3://b/listed")
        wait(Cluster(url), job, patient())
        rows = json.loads(tools.dtg("jobs", "--address", url, "--json").stdout)["jobs"]
        row = next(row for row in rows if row["id"] == job)
        expected = {"id": job, "stage": "predict", "study": "s3://b/listed", "status": "FAILED", "exit_code": 3}
        assert expected.items() <= row.items()
        assert any(
            job in line and "s3://b/listed" in line for line in tools.dtg("jobs", "--address", url).stdout.splitlines()
        )

    @pytest.mark.parametrize("verb", ["--follow", "--stop"])
    def test_helps_who_got_a_name_wrong(self, url: str, tools: Tools, verb: str) -> None:
        job = python(url, "pass")
        done = tools.dtg("jobs", "--address", url, verb, "dtg-nothing", check=2)
        assert "dtg-nothing" in done.stderr
        assert job in done.stderr


class TestALostConnection:
    SCRIPT = (
        "import sys, time\n"
        "for number in range(400):\n"
        "    sys.stdout.write(f'line {number} é' + 'x' * (number % 90) + ('\\r\\n' if number % 7 else '\\n\\n'))\n"
        "    sys.stdout.flush()\n"
        "    if number % 40 == 0:\n"
        "        sys.stdout.write('half')\n"
        "        sys.stdout.flush()\n"
        "        time.sleep(1.2)\n"
    )

    def test_loses_nothing_of_the_log_and_repeats_nothing(self, url: str, line: Wire) -> None:
        chance = random.Random(4)
        line.only, line.budgets = b"/logs/tail", sorted(chance.randint(100, 20_000) for _ in range(8))
        job, out, said = python(url, self.SCRIPT), io.StringIO(), []
        info = follow(Cluster(line.url), job, Screen(out), patient(said))
        assert exit_code(info) == 0
        assert line.cuts >= 4
        assert out.getvalue() == whole_log(url, job)
        assert sum("trying again" in text for text in said) == sum(text == "connected again" for text in said) > 0

    def test_is_said_once_while_the_cluster_is_away(self, url: str, line: Wire) -> None:
        job, out, said = python(url, self.SCRIPT), io.StringIO(), []

        def interrupt() -> None:
            while "line 100" not in out.getvalue():
                time.sleep(0.05)
            line.broken = True
            line.cut()
            time.sleep(4)
            line.broken = False

        thread = threading.Thread(target=interrupt, daemon=True)
        thread.start()
        follow(Cluster(line.url), job, Screen(out), patient(said))
        thread.join()
        assert [text.rsplit(";", 1)[-1].strip() for text in said] == ["trying again for 1 min 0 s", "connected again"]
        assert out.getvalue() == whole_log(url, job)

    def test_that_nobody_tells_of_is_found(self, url: str, line: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(contact, "SILENT_SECONDS", 0.5)
        monkeypatch.setattr(contact, "ANSWER_SECONDS", 1)
        job, out, said = (
            python(url, "import time; print('begun', flush=True); time.sleep(8); print('end')"),
            io.StringIO(),
            [],
        )

        def freeze() -> None:
            while "begun" not in out.getvalue():
                time.sleep(0.05)
            line.frozen = True
            while not said:
                time.sleep(0.05)
            line.cut()
            line.frozen = False

        thread = threading.Thread(target=freeze, daemon=True)
        thread.start()
        follow(Cluster(line.url), job, Screen(out), patient(said))
        thread.join()
        assert said[-1] == "connected again"
        assert out.getvalue() == whole_log(url, job)

    def test_that_lasts_too_long_ends_with_1_and_says_how_to_go_on(self, url: str, line: Wire, tools: Tools) -> None:
        job = python(url, "import time; print('begun', flush=True); time.sleep(600)")
        command = tools.command("jobs", "--address", line.url, "--follow", job, "--patience", "0.05")
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None
        while "begun" not in process.stdout.readline():
            pass
        line.broken = True
        line.cut()
        _, said = process.communicate(timeout=60)
        assert process.returncode == 1
        assert (
            f"the job may go on; once the cluster answers again: dtg jobs --address {line.url} --follow {job}" in said
        )
        assert "Traceback" not in said
        tools.dtg("jobs", "--address", url, "--stop", job)

    def test_while_a_job_is_handed_in_does_not_hand_it_in_twice(self, url: str, line: Wire) -> None:
        cluster, name, said = Cluster(line.url), request.new_id("script"), []
        line.only, line.budgets = b"POST /api/jobs/", [1]
        command = {"submission_id": name, "entrypoint": "true", "metadata": {"stage": "script"}}
        patient(said).insist(lambda: cluster.submit(**command))
        assert line.cuts == 1
        assert len(said) == 2
        assert [job.submission_id for job in Cluster(url).jobs()].count(name) == 1


class TestWhoIsThere:
    def test_nobody_is_an_error_with_a_hint(self, tools: Tools) -> None:
        done = tools.dtg("submit", "report", "s3://b/s", "--address", "http://127.0.0.1:9", check=1)
        assert "http://127.0.0.1:9: no answer (refused)" in done.stderr
        assert "ssh -L" in done.stderr

    @pytest.mark.usefixtures("s3")
    def test_somebody_else_is_an_error(self, tools: Tools) -> None:
        done = tools.dtg("jobs", "--address", os.environ["AWS_ENDPOINT_URL"], check=1)
        assert "Traceback" not in done.stderr

    @pytest.mark.parametrize("token", ["wrong" * 8, None])
    def test_a_stranger_is_refused(self, url: str, tools: Tools, tmp_path: Path, token: str | None) -> None:
        environment = {**os.environ, "RAY_AUTH_MODE": "token" if token else "disabled"}
        if token:
            (tmp_path / "token").write_text(token)
            environment["RAY_AUTH_TOKEN_PATH"] = str(tmp_path / "token")
        command = tools.command("submit", "report", "s3://b/s", "--address", url)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 1
        assert "RAY_AUTH_TOKEN_PATH" in done.stderr
        assert "Traceback" not in done.stderr

    @pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl for a certificate")
    def test_somebody_with_a_certificate_is_believed_when_that_is_known(
        self, url: str, tools: Tools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job = python(url, "print('over TLS')")
        with tls(url, tmp_path) as (secure, certificate):
            assert "REQUESTS_CA_BUNDLE" in tools.dtg("jobs", "--address", secure, check=1).stderr
            monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
            assert "over TLS\n" in tools.dtg("jobs", "--address", secure, "--follow", job).stdout

    def test_the_address_that_was_given_is_asked(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:9")
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
        assert Cluster(url).hosts()
        with pytest.raises(UnreachableError):
            Cluster("http://127.0.0.1:9")


def test_help_does_not_load_ray() -> None:
    script = "import sys, dtg_ray.arguments as a; a.parser(); print('ray' in sys.modules, 'pandas' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
