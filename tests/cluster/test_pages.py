"""The pages of cluster/: every command of ours on them is one, and every file they name is there."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from dtg_ray.arguments import parser

CLUSTER = Path(__file__).parents[2] / "cluster"
PAGES = [CLUSTER / "README.md", *(CLUSTER / name / "README.md" for name in ("aws", "kuberay", "slurm"))]
OURS = re.compile(r"(?:^|/|')dtg |dtg\.sbatch |manifests\.py |setup\.py ")


def commands(page: Path) -> list[list[str]]:
    """The indented commands of a page that call something of ours, as words."""
    lines = page.read_text().replace("\\\n", " ").splitlines()
    shown = [line.split(" #")[0].split("|")[0].strip() for line in lines if line.startswith("    ")]
    return [shlex.split(line.replace("'", " ")) for line in shown if OURS.search(line)]


def parsed(words: list[str]) -> object:
    """What the program that is called makes of its arguments; exits where they are wrong."""
    script = next((word for word in words if word.endswith(("manifests.py", "setup.py"))), None)
    if not script:
        start = next(number for number, word in enumerate(words) if word.endswith(("dtg", "dtg.sbatch")))
        return parser().parse_args(words[start + 1 :])
    specification = importlib.util.spec_from_file_location("script", CLUSTER.parent / script)
    assert specification
    assert specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.parser().parse_args(words[words.index(script) + 1 :])


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.parent.name)
def test_its_commands_are_what_dtg_takes(page: Path) -> None:
    found = commands(page)
    assert len(found) >= 5
    for words in found:
        assert parsed(words), words


def test_a_command_that_is_none_would_be_seen() -> None:
    for wrong in (["dtg", "sythesize", "study"], ["sbatch", "dtg.sbatch", "run"], ["python", "cluster/aws/setup.py"]):
        with pytest.raises(SystemExit):
            parsed(wrong)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_what_it_links_to_is_there(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(#[^)]*)?\)", page.read_text()):
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)", file.read_text(), re.MULTILINE)
            names = {"#" + re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in names
