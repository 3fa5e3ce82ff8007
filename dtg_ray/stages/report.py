"""`dtg report`: a picture of synthetic maps beside the measured ones of people no model has seen."""

from __future__ import annotations

import numpy as np
import pandas as pd

from dtg_ray import ledger
from dtg_ray.report.pictures import side_by_side
from dtg_ray.stages.evaluate import table_name
from dtg_ray.stages.maps import require_settled, usable
from dtg_ray.stages.plan import Plan
from dtg_ray.stages.runtime import Options
from dtg_ray.stages.single import settle
from dtg_ray.stats.metrics import pearson
from dtg_ray.store.receipts import Row
from dtg_ray.store.tables import read_table
from dtg_ray.study import Study

STAGE = "report"
PICTURE = "report/maps.png"
N_SUBJECTS = 2


def run(study: Study, options: Options) -> pd.DataFrame:
    """Draw the picture when the maps have changed since; returns the rows of the receipt."""
    book = ledger.Ledger(study)
    account = book.account(STAGE)
    pending = account.pending()
    needed = [f"evaluate/{name}" for name in study.config.models]
    waiting = require_settled(book, needed, "the report") if pending else ""
    todo = Plan(STAGE, 1, len(pending), N_SUBJECTS, memory=300 * 2**20, waiting=waiting)
    return settle(study, account, todo, lambda _today: _draw(book), options)


def _draw(book: ledger.Ledger) -> Row:
    """The contrast that is predicted neither best nor worst, for two people who differ most in it."""
    study = book.study
    evaluated = book.account(f"evaluate/{study.default_model}").subjects("done")
    if not evaluated:
        return Row(
            STAGE, "excluded", message="got no held-out subjects with measured maps, so there is nothing to draw"
        )
    table = read_table(study.storage, table_name(study.default_model)).sort_values("r")
    contrast = str(table["contrast"].iloc[len(table) // 2])
    measured = study.measured().sel(contrast=contrast)
    acquired = {name: contrast in maps for name, maps in study.cohort["contrasts"].items()}
    subjects = [name for name in usable(book, "test") if acquired[name]]
    subjects = _most_different(subjects, measured.sel(subject=subjects).to_numpy().astype(np.float32))
    maps = {"measured": measured.sel(subject=subjects).to_numpy().astype(np.float32)}
    predicting = [name for name in study.config.models if contrast in study.config.maps_of(name)]
    for name in sorted(predicting, key=lambda name: name != study.default_model):
        drawn = study.synthetic(name).sel(contrast=contrast, subject=subjects).to_numpy().astype(np.float32)
        if np.isfinite(drawn).all():  # few people have a second visit
            maps[name] = drawn
    title = f"{contrast}: measured and synthetic maps of two people no model has seen"
    study.storage.write(PICTURE, side_by_side(maps, subjects, study.grid, title))
    return Row(STAGE, "done")


def _most_different(subjects: list[str], maps: np.ndarray) -> list[str]:
    """The two subjects, of the first fifty, whose maps correlate least; maps are (n, V)."""
    some = maps[:50]
    matrix = np.stack([pearson(some, np.broadcast_to(one, some.shape)) for one in some])
    first, second = np.unravel_index(np.argmin(matrix), matrix.shape)
    return [subjects[number] for number in dict.fromkeys((int(first), int(second)))]
