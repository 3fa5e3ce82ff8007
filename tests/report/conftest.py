"""The sample page on the disk, written once for each module."""

import pytest

from dtg_ray.report.page import Section, render
from page_samples import sample_sections

TITLE = "Report of a study"


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """The sample page: a file in a folder of its own, with nothing beside it."""
    path = tmp_path_factory.mktemp("page") / "index.html"
    path.write_text(render(TITLE, "160 people, 47 contrasts, seed 1", sample_sections(), "dtg_ray 0.1.0"))
    return path


@pytest.fixture
def page_of(tmp_path):
    """Call it with parts to get a page of one section."""

    def written(*parts):
        path = tmp_path / "one.html"
        path.write_text(render(TITLE, "", [Section("one", "One", parts)], ""))
        return path

    return written
