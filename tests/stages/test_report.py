"""The report of a real study in a real browser, whole and with pieces missing; its files; figures for notebooks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml
from matplotlib.figure import Figure

from browser import DESKTOP, PHONE, Opened
from dtg_ray import Study
from dtg_ray.errors import StudyError
from dtg_ray.results import Results
from dtg_ray.stages import pipeline, report
from dtg_ray.stages.report import PAGE
from dtg_ray.stages.runtime import Options
from dtg_ray.store.receipts import Receipts, Row
from dtg_ray.store.tables import write_table

QUIET = Options(quiet=True)
WHOLE = ["summary", "cohort", "training", "reconstruction", "identification", "maps", "space", "phenotypes"]
ALWAYS = ["resources", "methods"]
Open = Callable[..., Opened]


def copy(finished: Path, folder: Path, *without: str) -> Study:
    """A copy of the finished study without its report and other parts."""
    shutil.copytree(finished, folder / "study", ignore=shutil.ignore_patterns("report", "report.parquet", *without))
    return Study(str(folder / "study"))


def change(study: Study, **sections: object) -> Study:
    path = Path(study.uri) / "study.yaml"
    document = yaml.safe_load(path.read_text()) | sections
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return Study(study.uri)


def shown(opened: Opened) -> list[str]:
    """Names of all sections, in order."""
    return [str(one.get_attribute("id")) for one in opened.page.query_selector_all("main section[id]")]


class TestPage:
    @pytest.mark.parametrize(("name", "size"), [("desktop", DESKTOP), ("phone", PHONE)])
    def test_opens_from_disk_with_every_section_and_picture(
        self, finished: Path, open_page: Open, screenshots: Path, name: str, size: tuple[int, int]
    ) -> None:
        opened = open_page(finished / PAGE, size)
        opened.page.wait_for_load_state()
        assert opened.problems == []
        assert opened.foreign == []
        assert shown(opened) == WHOLE + ALWAYS
        drawn = opened.page.eval_on_selector_all(
            "figure img", "images => images.map(one => one.complete && one.naturalWidth > 50)"
        )
        assert len(drawn) > 8
        assert all(drawn)
        wide = opened.page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
        assert not wide, "the page scrolls sideways"
        opened.page.screenshot(path=screenshots / f"report-{name}.png", full_page=True)
        assert (finished / PAGE).stat().st_size < 15 * 2**20

    def test_the_slice_viewer_moves(self, finished: Path, open_page: Open) -> None:
        opened = open_page(finished / PAGE)
        slider = opened.page.locator("#maps input[type=range]").first
        canvases = opened.page.locator("#maps canvas")
        before = [canvases.nth(one).evaluate("canvas => canvas.toDataURL()") for one in range(canvases.count())]
        slider.focus()
        for _ in range(3):
            opened.page.keyboard.press("ArrowRight")
        opened.page.wait_for_timeout(200)
        after = [canvases.nth(one).evaluate("canvas => canvas.toDataURL()") for one in range(canvases.count())]
        assert before != after
        assert opened.problems == []

    def test_tables_sort(self, finished: Path, open_page: Open) -> None:
        opened = open_page(finished / PAGE)
        table = opened.page.locator("table:has(th:has-text('gain_r'))").first
        header = table.locator("th", has_text="gain_r").first
        place = header.evaluate("cell => cell.cellIndex")
        header.locator("button").click()
        cells = table.locator("tbody tr").evaluate_all(
            "(rows, place) => rows.map(row => row.cells[place].innerText)", place
        )
        numbers = [float(text.replace("−", "-")) for text in cells if text != "–"]
        expected = Results(Study(str(finished))).contrasts["gain_r"].dropna().sort_values().tolist()
        assert numbers in (sorted(numbers), sorted(numbers, reverse=True))
        assert sorted(numbers) == pytest.approx(expected, abs=0.1)


class TestFiles:
    def test_figures_and_tables_lie_beside_the_page(self, finished: Path) -> None:
        folder = finished / "report"
        names = {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")}
        assert {"index.html", "figures/boxes-r.svg", "figures/boxes-r.csv", "figures/people.png"} <= names
        assert {"tables/contrasts.csv", "tables/scores.csv", "tables/model-comparisons.csv"} <= names
        results = Results(Study(str(finished)))
        table = pd.read_csv(folder / "tables/contrasts.csv")
        pd.testing.assert_frame_equal(table, results.contrasts, check_dtype=False)
        boxes = pd.read_csv(folder / "figures/boxes-r.csv")
        held_out = results.subjects("unet").query("split == 'test'")
        assert boxes.query("model == 'unet'")["r"].sum() == pytest.approx(held_out["r"].sum())

    def test_the_same_study_gives_the_same_files(self, finished: Path, tmp_path: Path) -> None:
        study = copy(finished, tmp_path)
        report.run(study, QUIET)
        other = study.uri.encode()
        for name in (finished / "report").rglob("*.*"):
            again = (Path(study.uri) / "report" / name.relative_to(finished / "report")).read_bytes()
            assert again.replace(other, b"") == name.read_bytes().replace(str(finished).encode(), b""), name

    def test_is_made_again_only_when_a_result_has_changed(self, finished: Path, tmp_path: Path) -> None:
        study = copy(finished, tmp_path)
        report.run(study, QUIET)
        stale = Path(study.uri) / "report/figures/old.svg"
        stale.write_text("of a model that is gone")
        before = study.storage.stamps("report")
        report.run(Study(study.uri), QUIET)
        assert Study(study.uri).storage.stamps("report") == before
        shutil.rmtree(Path(study.uri) / "receipts/scores")
        report.run(Study(study.uri), QUIET)
        assert not stale.exists()


class TestMorePieces:
    def test_what_was_interpreted_is_told(self, tools, finished: Path, tmp_path: Path, open_page: Open) -> None:
        study = copy(finished, tmp_path)
        contrast = study.config.contrasts[0]
        tools.dtg("interpret", study.uri, "--contrast", contrast, "--subjects", "2", "--inline", "--quiet")
        report.run(Study(study.uri), QUIET)
        opened = open_page(Path(study.uri) / PAGE)
        assert opened.problems == []
        assert shown(opened) == [*WHOLE[:-1], "phenotypes", "interpretation", *ALWAYS]
        (first,) = Results(study).attributions("unet").query("rank == 1")["roi"]
        assert first in opened.page.locator("#interpretation table").inner_text()

    def test_transfer_curves_are_drawn(self, finished: Path, tmp_path: Path, open_page: Open) -> None:
        study = copy(finished, tmp_path)
        lines = [
            {"way": way, "subjects": n, "seed": seed, "r": 0.1 * n, "identification": 0.2}
            for way in ("finetuned", "scratch")
            for n in (3, 6)
            for seed in range(2)
        ]
        write_table(study.storage, "transfer/tuned-unet.parquet", pd.DataFrame(lines))
        report.run(Study(study.uri), QUIET)
        assert "transfer" in shown(open_page(Path(study.uri) / PAGE))


class TestMissingPieces:
    """A shorter report, not a traceback."""

    def made(self, study: Study, open_page: Open) -> list[str]:
        rows = report.run(Study(study.uri), QUIET)
        assert rows["status"].tolist() == ["done"]
        opened = open_page(Path(study.uri) / PAGE)
        assert opened.problems == []
        return shown(opened)

    def test_no_phenotypes(self, finished: Path, tmp_path: Path, open_page: Open) -> None:
        study = copy(finished, tmp_path, "prediction", "predict", "scores")
        assert self.made(study, open_page) == [name for name in WHOLE if name != "phenotypes"] + ALWAYS

    def test_one_model(self, finished: Path, tmp_path: Path, open_page: Open) -> None:
        study = copy(finished, tmp_path, "prediction", "predict", "scores", "evaluation", "evaluate", "comparison")
        prediction = {"features": ["synthetic:linear"], "folds": 3, "permutations": 20}
        study = change(study, models={"linear": {"kind": "linear"}}, prediction=prediction)
        pipeline.run(study, Options(quiet=True, inline=True))
        assert self.made(study, open_page) == [name for name in WHOLE if name != "training"] + ALWAYS

    def test_nothing_but_connectomes(self, finished: Path, tmp_path: Path, open_page: Open) -> None:
        later = ("prediction", "predict", "scores", "evaluation", "evaluate", "comparison", "models", "train")
        study = copy(finished, tmp_path, *later, "synthetic", "synthesize", "contrasts")
        assert self.made(study, open_page) == ["summary", "cohort", *ALWAYS]

    def test_one_subject(self, tools, tmp_path: Path, open_page: Open) -> None:
        cohort = tmp_path / "data"
        people = sorted(tools.data.glob("sub-*"))
        cohort.mkdir()
        for path in tools.data.iterdir():
            if path not in people[1:]:
                (cohort / path.name).symlink_to(path)
        settings = tmp_path / "settings.yaml"
        settings.write_text(yaml.safe_dump({"grid": {"resolution": 8}, "models": {"again": {"kind": "group_mean"}}}))
        root = str(tmp_path / "study")
        tools.dtg("init", root, "--bids", str(cohort), "--rois", str(tools.rois), "--config", str(settings))
        tools.dtg("connectomes", root, "--inline", "--quiet")
        tools.dtg("report", root, "--inline", "--quiet")
        assert "1 people take part" not in (Path(root) / PAGE).read_text()
        assert self.made(Study(root), open_page) == ["summary", "cohort", *ALWAYS]

    def test_who_failed_is_told(self, finished: Path, tmp_path: Path, open_page: Open) -> None:
        study = copy(finished, tmp_path)
        assert "Nobody failed" in (finished / PAGE).read_text()
        receipts = Receipts(study.storage, "connectomes")
        rows = receipts.read(["block-00000"])
        lost = [
            Row(who, "failed", one, "ScanError", f"{who}: x.nii: got rubbish")
            for who, one in zip(rows["subject"], rows["fingerprint"], strict=True)
        ]
        receipts.write("block-00000", lost, attempt=2, host="")
        self.made(study, open_page)
        text = (Path(study.uri) / PAGE).read_text()
        assert f"{len(rows)} failed" in text
        assert f"{rows['subject'][0]}: x.nii: got rubbish" in text

    def test_results_of_an_earlier_state_are_told_to_be_that(self, finished: Path, tmp_path: Path) -> None:
        study = copy(finished, tmp_path)
        assert "of an earlier state" not in (finished / PAGE).read_text()
        told = json.loads(study.storage.read("models/unet/model.json"))
        study.storage.write("models/unet/model.json", json.dumps({**told, "sha256": "another"}).encode())
        report.run(study, QUIET)
        text = (Path(study.uri) / PAGE).read_text()
        assert "This may be of an earlier state: evaluate/unet, comparison" in text

    def test_what_was_not_computed_yet_is_not_called_impossible(self, finished: Path, tmp_path: Path) -> None:
        study = copy(finished, tmp_path, "evaluation", "evaluate", "comparison")
        report.run(study, QUIET)
        text = (Path(study.uri) / PAGE).read_text()
        assert "were not compared with measured ones yet" in text

    @pytest.mark.parametrize("gone", ["evaluation/unet", "synthetic/linear.zarr", "evaluation/unet/maps"])
    def test_what_was_taken_away_is_left_out(self, finished: Path, tmp_path: Path, open_page: Open, gone: str) -> None:
        study = copy(finished, tmp_path)
        shutil.rmtree(Path(study.uri) / gone)
        assert self.made(study, open_page)

    def test_no_password_or_signature_is_shown(self, finished: Path, tmp_path: Path) -> None:
        study = copy(finished, tmp_path)
        table = "https://somewhere/table.csv?X-Amz-Signature=SECRET"
        study = change(study, prediction={**study.config.prediction.model_dump(mode="json"), "tables": [table]})
        report.run(study, QUIET)
        text = (Path(study.uri) / PAGE).read_text()
        assert "somewhere/table.csv" in text
        assert "SECRET" not in text


class TestNotebooks:
    def test_every_figure_is_one_of_matplotlib(self, finished: Path) -> None:
        study = Study(str(finished))
        contrast = study.config.contrasts[0]
        subjects = Results(study).subjects("unet").query("split == 'test' and contrast == @contrast")["subject"]
        for figure in (
            study.plot.reconstruction("diagonality"),
            study.plot.identification(contrast),
            study.plot.training(),
            study.plot.space(),
            study.plot.group(contrast),
            study.plot.maps(list(subjects[:2]), contrast, ["unet"]),
            study.plot.phenotypes("r"),
            study.plot.nulls(),
        ):
            assert isinstance(figure, Figure)
            assert figure.axes

    def test_what_is_not_there_is_told_with_its_verb(self, finished: Path, tmp_path: Path) -> None:
        study = copy(finished, tmp_path, "evaluation", "prediction")
        for draw, verb in (
            (study.plot.reconstruction, "evaluate"),
            (study.plot.space, "evaluate"),
            (study.plot.phenotypes, "predict"),
            (study.plot.nulls, "predict"),
        ):
            with pytest.raises(StudyError) as error:
                draw()
            assert verb in str(error.value.hint)
