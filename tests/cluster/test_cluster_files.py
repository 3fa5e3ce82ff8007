"""All files in cluster/: linters find nothing, versions agree, Ray asks for its token, nothing is open or secret."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
CLUSTER = REPOSITORY / "cluster"
FILES = sorted(path for path in CLUSTER.rglob("*") if path.is_file() and not {"mine", "__pycache__"} & set(path.parts))
SCRIPTS = [path for path in FILES if path.suffix in {".sh", ".sbatch"}]
PINNED = dict(
    line.split("==")
    for line in (REPOSITORY / "constraints.txt").read_text().splitlines()
    if "==" in line and "#" not in line
)
STARTS = {
    path: path.read_text() for path in FILES if path.suffix != ".md" and re.search(r'ray"? start', path.read_text())
}
SECRET = re.compile(
    r"AKIA[0-9A-Z]{16}|-----BEGIN [A-Z ]*PRIVATE KEY|\b[0-9a-f]{40,}\b"
    r"|(?:password|secret_?(?:access_?)?key|auth_token)\s*[:=]\s*[\"']?[A-Za-z0-9/+]{16,}",
    re.IGNORECASE,
)


def linter(name: str) -> str:
    """A linter of this environment."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    assert found, f"{name} is not installed: pip install dtg_ray[test]"
    return found


def said(*command: str) -> str:
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stdout + done.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing_in(script: Path) -> None:
    assert not said(linter("shellcheck"), "--severity=style", str(script))


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    assert not said(linter("hadolint"), "--failure-threshold=style", "cluster/Dockerfile")


def test_the_linters_find_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM python\nRUN cd /tmp && pip install torch\n")
    assert "DL3006" in said(linter("hadolint"), str(tmp_path / "Dockerfile"))
    (tmp_path / "x.sh").write_text("#!/bin/bash\nrm -rf $1/x\n")
    assert "SC2086" in said(linter("shellcheck"), str(tmp_path / "x.sh"))


def test_versions_of_ray_and_python_are_those_that_are_pinned() -> None:
    cluster = yaml.safe_load((CLUSTER / "kuberay" / "raycluster.yaml").read_text())
    assert cluster["spec"]["rayVersion"] == PINNED["ray"]
    dockerfile = (CLUSTER / "Dockerfile").read_text()
    (python,) = re.findall(r"^FROM python:(\d+\.\d+)-slim", dockerfile, re.MULTILINE)
    assert f"(Python {python}," in (REPOSITORY / "constraints.txt").read_text()
    installs = re.findall(r"pip install (.*)", dockerfile)
    assert len(installs) == 2
    assert all("--constraint constraints.txt" in install for install in installs)
    assert {"torch", "boto3", "ray"} <= PINNED.keys()
    assert "{" not in dockerfile.replace("${TORCH_INDEX}", "")


def test_the_image_runs_as_somebody_who_is_not_root_and_holds_the_code_alone() -> None:
    dockerfile = (CLUSTER / "Dockerfile").read_text()
    assert re.findall(r"^USER (.*)", dockerfile, re.MULTILINE)[-1] == "1000"
    assert "RAY_AUTH_MODE=token" in dockerfile
    ignored = [line for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert ignored[0] == "*"
    taken = {line[1:] for line in ignored if line.startswith("!")}
    assert taken == {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "dtg_ray"}
    copied = {word for line in re.findall(r"^COPY (.*)", dockerfile, re.MULTILINE) for word in line.split()[:-1]}
    assert copied == taken


def test_ray_asks_for_a_token_wherever_it_is_started() -> None:
    assert {path.name for path in STARTS} >= {"cluster.yaml", "dtg.sbatch"}
    for path, text in STARTS.items():
        assert "RAY_AUTH_MODE=token" in text, path
        assert "RAY_AUTH_TOKEN_PATH=" in text, path
        assert "RAY_AUTH_TOKEN=" not in text, path
    for line in (CLUSTER / "aws" / "cluster.yaml").read_text().replace("\n        ", " ").splitlines():
        if "ray start" in line:
            assert "RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=/home/ray/token/token ray start" in line
    cluster = yaml.safe_load((CLUSTER / "kuberay" / "raycluster.yaml").read_text())
    assert cluster["spec"]["authOptions"] == {"mode": "token", "secretName": "dtg-token"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(CLUSTER).as_posix())
def test_nothing_is_open_to_all_or_secret_in(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"dashboard-host[=: ]+[\"']?(0\.0\.0\.0|::)", text)
    assert not re.search(r"RAY_AUTH_MODE[=: ]+[\"']?disabled|mode: disabled|allow-unauthenticated", text)
    assert not re.search(r"serviceType: (LoadBalancer|NodePort)|enableIngress: true|privileged: true", text)
    assert not SECRET.search(text)


@pytest.mark.parametrize(
    "leak",
    ["AKIAABCDEFGHIJKLMNOP", "-----BEGIN RSA PRIVATE KEY", "ab" * 32, "auth_token: abcdefghijklmnopqrst"],
)
def test_a_secret_would_be_seen(leak: str) -> None:
    assert SECRET.search(leak)
