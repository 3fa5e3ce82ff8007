"""The page in a browser: what is on it, what it asks for, how it looks, and that it is safe from what it shows."""

import base64
import functools
import re
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pandas as pd
import pytest

from browser import DESKTOP, PHONE, until
from dtg_ray.imaging.grid import Grid
from dtg_ray.report.page import Facts, Figure, Section, Table, Viewer, Words, files, render
from dtg_ray.report.page_tables import csv_text
from page_samples import HOSTILE, N_MAPS, funnel_figure, loss_figure, sample_sections

SECTIONS = ["summary", "cohort", "training", "reconstruction", "maps", "phenotypes", "reproduce"]
LARGEST_PAGE = 15_000_000
FOCUSABLE = "a[href], button, input, select, [tabindex='0']"


def test_every_part_is_drawn_without_a_complaint_or_a_request(open_page, sample):
    opened = open_page(sample)
    page = opened.page
    assert page.title() == "Report of a study"
    assert page.evaluate("Array.from(document.querySelectorAll('main > section'), (one) => one.id)") == SECTIONS
    links = page.eval_on_selector_all("nav a", "all => all.map((link) => link.hash.slice(1))")
    assert links == SECTIONS  # a section without parts is in neither
    for image in page.locator("main img").all():
        assert image.evaluate("(image) => image.decode().then(() => image.naturalWidth)") > 100
        assert image.get_attribute("alt")
    assert page.locator("main img").count() == 3
    assert page.locator(".facts dd").all_inner_texts() == ["160", "40", "47", "0.772", "5 min 12 s"]
    assert page.locator("[data-viewer] select").first.locator("option").count() == N_MAPS
    assert all(page.locator(".slice canvas").evaluate_all("all => all.map((one) => one.width > 100)"))
    assert page.locator("table").count() == 3
    assert "The seed is 1." in page.locator(".words p").all_inner_texts()
    page.mouse.wheel(0, 20_000)
    page.wait_for_timeout(300)
    assert opened.problems == []
    assert opened.foreign == []


def test_the_page_opens_from_a_web_server_as_from_the_disk(open_page, sample):
    handler = functools.partial(_Quiet, directory=sample.parent)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        opened = open_page(f"http://127.0.0.1:{server.server_port}/index.html")
        opened.page.wait_for_timeout(300)
        server.shutdown()
    assert opened.problems == []
    assert opened.foreign == []
    assert server.asked == ["/index.html"]


class _Quiet(SimpleHTTPRequestHandler):
    """Keeps what was asked for instead of printing it."""

    def log_request(self, *_):
        self.server.asked = [*getattr(self.server, "asked", []), self.path]


def test_the_page_is_small_enough_and_the_same_again(sample):
    again = render("Report of a study", "160 people, 47 contrasts, seed 1", sample_sections(), "dtg_ray 0.1.0")
    assert sample.read_text() == again
    assert 4_000_000 < sample.stat().st_size < LARGEST_PAGE


def test_without_scripts_the_words_tables_and_figures_are_there(open_page, sample):
    page = open_page(sample, PHONE, java_script_enabled=False).page
    assert page.locator("nav a").first.is_visible()
    assert page.locator("#table_contrasts tbody tr").count() == 47
    assert page.locator("#figure_loss img").is_visible()
    assert page.get_by_text("The slice viewer needs JavaScript").is_visible()
    assert not any(one.is_visible() for one in page.locator(".tools button, input").all())  # they would do nothing


def test_hostile_names_are_shown_and_not_obeyed(open_page, page_of):
    grid = Grid(np.diag([4.0, 4, 4, 1]), np.ones((4, 4, 4), bool))
    maps = {HOSTILE: np.arange(64.0), "</script>": -np.arange(64.0)}
    table = pd.DataFrame({HOSTILE: [HOSTILE, "</script><b>"] * 120, "<!--<script>": "</style>"})
    path = page_of(
        Facts({HOSTILE: HOSTILE}),
        Words(HOSTILE, HOSTILE),
        Table("table", HOSTILE, HOSTILE, table),
        Figure("figure", HOSTILE, HOSTILE, HOSTILE, loss_figure().data, "svg", table),
        Viewer("viewer", HOSTILE, HOSTILE, grid, maps, HOSTILE),
    )
    opened = open_page(path)
    page = opened.page
    page.get_by_role("button", name="Show all 240 rows").click()
    assert page.locator("td").first.inner_text() == HOSTILE
    assert page.locator("th button").first.inner_text() == HOSTILE
    assert page.locator("tbody tr").count() == 240
    assert page.locator("tr").last.locator("td").first.inner_text() == "</script><b>"
    assert page.locator("#figure_figure img").get_attribute("alt") == HOSTILE
    assert page.locator("option").first.inner_text() == HOSTILE
    assert HOSTILE in page.locator("[data-readout]").inner_text()
    assert page.title() == "Report of a study"
    assert page.locator("main img").count() == 1
    assert page.locator("script").count() == 4  # three with data, one that runs
    assert opened.problems == []


def test_the_policy_forbids_whatever_is_not_the_page_s_own(open_page, sample):
    opened = open_page(sample)
    opened.page.evaluate("""() => {
        const script = document.createElement("script");
        script.textContent = "document.title = 'taken'";
        document.body.append(script);
        const image = "<img src=http://127.0.0.1:9/a.png onerror=\\"document.title = 'taken'\\">";
        document.body.insertAdjacentHTML("beforeend", image);
    }""")
    opened.page.wait_for_timeout(300)
    assert opened.page.title() == "Report of a study"
    assert len(opened.problems) >= 2
    assert all("Content Security Policy" in problem for problem in opened.problems)


@pytest.mark.parametrize("name", ["correlations", "loss"])
def test_figures_and_their_numbers_are_saved_from_the_page(open_page, sample, name):
    written = files(sample_sections())
    page = open_page(sample).page
    for label in ("SVG", "CSV"):
        file, content = _saved(page, page.locator(f"#figure_{name}").get_by_text(label, exact=True))
        assert file == f"{name}.{label.lower()}"
        assert content == written[f"figures/{file}"]


def test_tables_are_saved_whole_and_in_full_precision(open_page, sample):
    written = files(sample_sections())
    page = open_page(sample).page
    page.locator("#table_subjects [data-filter]").fill("sub-7")
    for name in ("subjects", "contrasts"):
        file, content = _saved(page, page.locator(f"#table_{name}").get_by_text("CSV", exact=True))
        assert file == f"{name}.csv"
        assert content == written[f"tables/{file}"]


def _saved(page, button):
    with page.expect_download() as download:
        button.click()
    with open(download.value.path(), "rb") as file:  # noqa: PTH123
        return download.value.suggested_filename, file.read()


def test_a_figure_is_enlarged_and_closed_by_keys(open_page, sample):
    page = open_page(sample).page
    page.locator("#figure_loss [data-enlarge]").press("Enter")
    assert (
        page.locator("dialog img").bounding_box()["width"]
        > 1.5 * page.locator("#figure_loss img").bounding_box()["width"]
    )
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible()
    assert page.evaluate("document.activeElement.dataset.enlarge") == "figure_loss"


def test_code_is_copied(open_page, sample):
    opened = open_page(sample, permissions=["clipboard-read", "clipboard-write"])
    opened.page.locator("[data-copy]").click()
    opened.page.get_by_role("button", name="Copied").wait_for()
    assert opened.page.evaluate("navigator.clipboard.readText()").startswith("pip install dtg_ray==0.1.0\ndtg init")


def test_a_phone_scrolls_up_and_down_only_and_has_a_menu(open_page, sample):
    page = open_page(sample, PHONE, has_touch=True, is_mobile=True).page
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE[0]
    too_wide = """all => all
        .filter((one) => !one.closest(".scroll, pre") && one.getBoundingClientRect().right > innerWidth + 1)
        .map((one) => one.outerHTML.slice(0, 100))"""
    assert page.eval_on_selector_all("main *, nav *", too_wide) == []
    link = page.get_by_role("link", name="Phenotypes")
    assert not link.is_visible()
    page.get_by_role("button", name="Contents").tap()
    link.tap()
    until(lambda: abs(page.locator("#phenotypes").bounding_box()["y"]) < 100)
    assert not link.is_visible()
    assert page.locator("nav .menu").is_visible()  # it stays on top


def test_on_paper_there_are_all_rows_and_no_controls(open_page, sample):
    page = open_page(sample).page
    page.locator("#table_subjects [data-filter]").fill("sub-7")
    assert page.locator("#table_subjects tbody tr").count() == 11
    page.emulate_media(media="print")
    rows = page.locator("#table_subjects tbody tr")
    until(lambda: rows.count() == 250)
    for hidden in ("nav", ".skip", ".tools button", ".filter", ".sliders", "[data-peak]", "[data-copy]"):
        assert not any(one.is_visible() for one in page.locator(hidden).all()), hidden
    assert page.locator("#table_subjects .scroll").evaluate("(one) => one.scrollHeight <= one.clientHeight + 1")
    assert page.locator("#figure_loss").evaluate("(one) => getComputedStyle(one).breakInside") == "avoid"
    assert page.locator("#table_phenotypes tr").first.evaluate("(one) => getComputedStyle(one).breakInside") == "avoid"
    # a button of a header would be drawn on the first page of its table only
    assert page.locator("th button").first.evaluate("(one) => getComputedStyle(one).display") == "contents"
    assert page.pdf().startswith(b"%PDF")
    page.emulate_media(media="screen")
    until(lambda: rows.count() == 11)


def test_everything_is_reached_by_tab_and_seen_to_have_the_focus(open_page, sample):
    page = open_page(sample).page
    visible = f'Array.from(document.querySelectorAll("{FOCUSABLE}")).filter((one) => one.checkVisibility())'
    expected = page.evaluate(f"{visible}.length")
    page.evaluate(f"{visible}.forEach((one, number) => (one.dataset.number = number))")
    reached = []
    for _ in range(expected):
        page.keyboard.press("Tab")
        number, outline = page.evaluate(
            "[Number(document.activeElement.dataset.number), getComputedStyle(document.activeElement).outlineStyle]"
        )
        assert outline == "solid"
        reached.append(number)
    assert reached == list(range(expected))
    assert expected > 50


def test_the_first_key_leads_past_the_contents(open_page, sample):
    page = open_page(sample).page
    page.keyboard.press("Tab")
    assert page.locator(".skip").bounding_box()["x"] >= 0
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('#page_main') !== null")


def test_the_contents_tell_what_is_being_read(open_page, sample):
    page = open_page(sample).page
    for name in ("training", "maps"):
        page.locator(f"nav a[href='#{name}']").click()
        page.wait_for_selector(f"nav a[href='#{name}'][aria-current]")
        assert page.locator("nav a[aria-current]").count() == 1


def test_landmarks_and_headings_are_in_order(open_page, sample):
    page = open_page(sample).page
    for role in ("navigation", "main", "banner", "contentinfo"):
        assert page.get_by_role(role).count() == 1, role
    levels = page.eval_on_selector_all("h1, h2, h3, h4", "all => all.map((one) => Number(one.tagName[1]))")
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip([0, *levels], levels, strict=False))
    unnamed = "all => all.filter((one) => !one.labels.length && !one.ariaLabel).length"
    assert page.eval_on_selector_all("input, select", unnamed) == 0
    ids = page.eval_on_selector_all("[id]", "all => all.map((one) => one.id)")
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(open_page, sample, scheme):
    page = open_page(sample, color_scheme=scheme).page
    ratios = page.evaluate(CONTRAST)
    assert len(ratios) > 100
    assert min(ratios.values()) >= 4.5, min(ratios.items(), key=lambda item: item[1])


CONTRAST = """() => {
    const channels = (text) => text.match(/[\\d.]+/g).map(Number);
    const light = (rgb) => rgb.slice(0, 3).map((one) => one / 255)
        .map((one) => (one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4))
        .reduce((sum, one, place) => sum + one * [0.2126, 0.7152, 0.0722][place], 0);
    const ground = (one) => {
        for (let up = one; up; up = up.parentElement) {
            const colour = channels(getComputedStyle(up).backgroundColor);
            if (colour.length === 3 || colour[3] > 0) return colour;
        }
    };
    const ratios = {};
    for (const one of document.querySelectorAll("body *")) {
        const text = Array.from(one.childNodes).some((node) => node.nodeType === 3 && node.data.trim());
        if (!text || !one.checkVisibility()) continue;
        const pair = [light(channels(getComputedStyle(one).color)), light(ground(one))].sort((a, b) => b - a);
        ratios[`${one.tagName} ${one.className} ${Object.keys(ratios).length}`] = (pair[0] + 0.05) / (pair[1] + 0.05);
    }
    return ratios;
}"""


def test_the_page_jumps_where_gliding_is_not_wanted(open_page, sample):
    page = open_page(sample, reduced_motion="reduce").page
    assert page.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == "auto"


@pytest.mark.parametrize(
    ("name", "size", "options"),
    [
        ("desktop", DESKTOP, {}),
        ("dark", DESKTOP, {"color_scheme": "dark"}),
        ("phone", PHONE, {"is_mobile": True, "has_touch": True, "device_scale_factor": 2}),
    ],
)
def test_pictures_are_kept_to_be_looked_at(open_page, sample, screenshots, name, size, options):
    page = open_page(sample, size, **options).page
    page.screenshot(path=screenshots / f"page-{name}.png", full_page=True)
    for section in ("summary", "cohort", "maps", "phenotypes"):
        page.evaluate(f"document.getElementById('{section}').scrollIntoView({{behavior: 'instant'}})")
        page.screenshot(path=screenshots / f"page-{name}-{section}.png")
    assert (screenshots / f"page-{name}.png").stat().st_size > 50_000


def test_long_numbers_behind_a_figure_are_linked_instead(page_of):
    figure = loss_figure()
    numbers = pd.DataFrame({"r": np.random.default_rng(0).random(20_000)})
    path = page_of(Figure("loss", "Loss", "", "Loss", figure.data, "svg", numbers))
    html = path.read_text()
    assert '<a href="figures/loss.csv" download>' in html
    assert 'id="numbers_loss"' not in html


def test_a_png_has_the_size_it_was_drawn_for(page_of):
    width = re.search(r'width="(\d+)"', page_of(funnel_figure()).read_text())
    assert int(width[1]) == round(5.2 * 96)  # inches


def test_files_are_those_of_the_parts():
    written = files(sample_sections())
    assert sorted(written) == [
        "figures/correlations.csv",
        "figures/correlations.svg",
        "figures/funnel.png",
        "figures/loss.csv",
        "figures/loss.svg",
        "tables/contrasts.csv",
        "tables/phenotypes.csv",
        "tables/subjects.csv",
    ]
    assert written["figures/loss.svg"] == loss_figure().data
    assert written["figures/loss.csv"] == csv_text(loss_figure().numbers).encode()


def test_images_are_inside_of_the_page(sample):
    assert (
        '<link rel="icon" href="data:,">' in sample.read_text()
    )  # browsers ask a server for one, headless ones do not
    assert base64.b64encode(loss_figure().data).decode() in sample.read_text()


@pytest.mark.parametrize("name", ["", "Über", "a b", "../a", "a--b", "a_b"])
def test_names_that_are_no_names_of_files_are_refused(name):
    table = pd.DataFrame({"a": [1]})
    with pytest.raises(ValueError, match="expected lower-case letters, digits and single hyphens"):
        Table(name, "", "", table)
    with pytest.raises(ValueError, match="got the section name"):
        Section(name, "", [])


def test_names_stand_once():
    table = Table("a", "", "", pd.DataFrame({"a": [1]}))
    sections = [Section("one", "", [table, Facts({}), Words("x"), Words("x")]), Section("two", "", [table])]
    for make in (lambda: render("", "", sections, ""), lambda: files(sections)):
        with pytest.raises(ValueError, match="got table a more than once, expected every name once"):
            make()


def test_parts_that_cannot_be_drawn_are_refused():
    grid = Grid(np.eye(4), np.ones((2, 2, 2), bool))
    with pytest.raises(ValueError, match=r"viewer v: got m of shape \(7,\), expected \(8,\)"):
        Viewer("v", "", "", grid, {"m": np.zeros(7)})
    with pytest.raises(ValueError, match=r"viewer v: got background of shape \(3,\), expected \(8,\)"):
        Viewer("v", "", "", grid, {"m": np.zeros(8)}, background=np.zeros(3))
    with pytest.raises(ValueError, match="viewer v: got no maps"):
        Viewer("v", "", "", grid, {})
    with pytest.raises(ValueError, match="figure f: got the kind 'gif', expected svg or png"):
        Figure("f", "", "", "", b"", "gif")


def test_a_table_of_everybody_is_linked_beside_the_page():
    everybody = pd.DataFrame({"subject": [f"sub-{number:05d}" for number in range(5000)], "r": 0.5})
    sections = [Section("people", "People", [Table("people", "People", "", everybody)])]
    document = render("T", "", sections, "")
    assert "Here are the first 2000 of 5000 rows" in document
    assert 'href="tables/people.csv"' in document
    assert "sub-01999" in document
    assert "sub-02000" not in document
    assert files(sections)["tables/people.csv"].count(b"\n") == 5001
