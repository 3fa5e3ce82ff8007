"""One undisturbed run of everything on a small cohort, shared by all tests of stages."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dtg_ray.cohort.simulate import simulate
from stage_tools import COHORT, SETTINGS, Arrays, Tools, lasting


@pytest.fixture(scope="session")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Tools:
    folder = tmp_path_factory.mktemp("cohort")
    simulate(folder / "data", **COHORT)
    settings = folder / "settings.yaml"
    settings.write_text(yaml.safe_dump(SETTINGS))
    return Tools(folder / "data", next((folder / "data").glob("tpl-*_probseg.nii.gz")), settings)


@pytest.fixture(scope="session")
def finished(tools: Tools, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study after one undisturbed `dtg run`; not to be changed."""
    root = tmp_path_factory.mktemp("finished") / "study"
    tools.init(str(root))
    tools.dtg("run", str(root), "--quiet", "--keep-connectomes")
    return root


@pytest.fixture
def arrays() -> Arrays:
    """All that must not depend on what happened on the way: Zarr arrays, weights, histories and result tables."""

    def read(root: Path) -> dict[str, bytes]:
        kept = (".zarr/", "models/", "evaluation/", "prediction/")
        files = (path for path in root.rglob("*") if path.is_file() and not path.name.endswith(".partial"))
        names = {path.relative_to(root).as_posix(): path for path in files}
        return {
            name: lasting(name, path.read_bytes())
            for name, path in sorted(names.items())
            if any(part in name for part in kept) and not name.startswith(("train/", "receipts/"))
        }

    return read
