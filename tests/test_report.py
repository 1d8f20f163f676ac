"""The report of an evaluation, in a real browser; the whole chain is tests/test_evaluate.py's."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pgrerank.errors import SettingsError
from pgrerank.evaluation.report import read_evaluation, write_report
from pgrerank.evaluation.report.drawing import Scale
from pgrerank.palette import PALETTE
from tests.helpers.evaluations import (
    MALICIOUS,
    QUERIES,
    evaluation,
    improved,
    orders,
    query,
    spread,
)

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
PHONE, DESKTOP = {"width": 360, "height": 780}, {"width": 1280, "height": 900}
SECTIONS = (
    *("headline", "warnings", "quality", "depth", "hnsw", "latency", "passages", "blend"),
    *("signals", "queries"),
)


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("report")
    write_report(evaluation(), made)
    return made


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("comparison")
    write_report(evaluation(), made, other=improved())
    return made


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        pytest.skip(f"needs one of {', '.join(BROWSERS)}")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=executable, args=ARGUMENTS)
        yield started
        started.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a folder's report. In the end it asked for nothing else, and nobody complained."""
    asked: list[str] = []
    said: list[str] = []
    pages = []

    def opened(folder: Path, viewport: dict[str, int] = DESKTOP, **settings: Any) -> Any:
        page = browser.new_page(viewport=viewport, **settings)
        pages.append(page)
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto((folder / "report.html").as_uri())
        return page

    yield opened
    for page in pages:
        page.close()
    assert [url for url in asked if not url.endswith("/report.html")] == []
    assert said == []


def test_everything_is_written_and_read_again(folder):
    assert {file.name for file in folder.iterdir()} == {
        *("report.html", "evaluation.json", "stages.csv", "depth.csv", "queries.csv"),
    }
    assert read_evaluation(folder) == read_evaluation(folder / "evaluation.json") == evaluation()


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.43, 0.52, [0.44, 0.46, 0.48, 0.5, 0.52]),
        (-0.8, 0.8, [-0.5, 0, 0.5]),
        (0, 12_000, [0, 5000, 10_000]),
    ],
)
def test_a_scale_has_round_ticks_within_it(low, high, ticks):
    assert Scale(low, high, 0, 100).ticks(5) == pytest.approx(ticks)


def test_a_scale_puts_values_where_they_belong():
    scale = Scale(10, 1000, 100, 0, is_logarithmic=True)
    assert [scale(10), scale(100), scale(1000)] == pytest.approx([100, 50, 0])
    assert Scale(3, 3, 7, 9)(3) == 7


def test_tables_have_a_row_an_order_a_size_and_a_query(folder):
    assert [
        (row["order"], row["p"], row["total_ms_p95"]) for row in rows(folder / "stages.csv")
    ] == [
        ("dense, exact", "", "8.0"),
        ("dense", "0.0004", "12.0"),
        ("+ cross-encoder", "0.0004", "16.0"),
    ]
    assert len(rows(folder / "depth.csv")) == 11
    queries = rows(folder / "queries.csv")
    assert [row["id"] for row in queries] == ["q3", "q2", "q6", "q4", "q1", "q5"]  # worst first
    assert queries[0]["query"] == MALICIOUS
    assert (queries[0]["dense"], queries[0]["change"]) == ("0.9", "-0.8")


class Elements(HTMLParser):
    """All elements of a page, and their attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.attributes += attrs

    def values(self, *names: str) -> list[str]:
        return [value for name, value in self.attributes if name in names and value]


def test_a_page_loads_nothing_and_has_each_id_once(folder, comparison):
    for made in (folder, comparison):
        html = (made / "report.html").read_text(encoding="utf-8")
        page = Elements(html)
        assert not page.names & {"script", "img", "image", "iframe", "object", "embed", "form"}
        assert not [name for name, _ in page.attributes if name == "src" or name.startswith("on")]
        ids = page.values("id")
        assert len(ids) == len(set(ids)) >= 8
        links = [link for link in page.values("href", "xlink:href") if link != "data:,"]
        assert {f"#{own}" for own in ids} >= set(links) > {"#quality", "#queries"}


def test_each_colour_of_the_plots_is_the_pages_in_light_and_dark(folder):
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert set(re.findall(r"var\(--plot-([a-z]+)\)", html)) <= set(PALETTE)
    for name, shades in PALETTE.items():
        assert re.findall(rf"--plot-{name}: (#[0-9a-f]+);", html) == [*shades]
    svgs = "".join(re.findall(r"<svg.*?</svg>", html, re.DOTALL))
    assert not re.search(r"(fill|stroke): ?#", svgs)


@pytest.mark.parametrize("viewport", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_all_sections_fit_the_screen(visit, folder, comparison, viewport):
    for made in (folder, comparison):
        page = visit(made, viewport)
        page.locator("details").evaluate_all("all => all.forEach(one => { one.open = true })")
        assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
        for name in SECTIONS:
            assert page.locator(f"#{name}").is_visible(), name
        for plot in page.locator("svg.plot").all():
            box = plot.bounding_box()
            assert box["x"] >= 0
            assert 200 < box["width"] <= viewport["width"] - box["x"]
        page.close()


def test_texts_stay_within_their_plots(visit, folder, comparison):
    outside = """plots => plots.flatMap(plot => [...plot.querySelectorAll('text')]
        .filter(text => text.getBoundingClientRect().left < plot.getBoundingClientRect().left - 1
            || text.getBoundingClientRect().right > plot.getBoundingClientRect().right + 1)
        .map(text => text.textContent)).filter(text => !text.startsWith('aaa'))"""
    for made in (folder, comparison):
        assert visit(made, PHONE).locator("svg.plot").evaluate_all(outside) == []


def test_colours_follow_the_scheme(visit, folder):
    seen = {}
    for scheme in ("light", "dark"):
        page = visit(folder, color_scheme=scheme)
        seen[scheme] = page.evaluate(
            """[getComputedStyle(document.body).backgroundColor,
                getComputedStyle(document.querySelector('#quality svg text')).fill,
                getComputedStyle(document.querySelector('#quality [style*=plot-purple]')).fill]"""
        )
    assert seen["light"][:2] == ["rgb(255, 255, 255)", "rgb(28, 33, 39)"]
    assert seen["dark"][:2] == ["rgb(20, 23, 27)", "rgb(230, 233, 237)"]
    assert seen["light"][2] != seen["dark"][2]


def test_the_worst_queries_come_first_and_open_by_a_click(visit, folder):
    page = visit(folder, PHONE)
    details = page.locator("#queries details")
    assert details.locator("summary > :first-child").all_inner_texts() == [
        *("−0.800", "−0.750", "0.000", "+0.600", "+0.500", "+0.100"),
    ]
    first = details.nth(1)
    assert not first.locator(".orders").is_visible()
    first.locator("summary").click()
    assert first.locator(".orders").is_visible()
    assert first.locator("h4").all_inner_texts() == [
        *("dense, exact\n1.000", "dense\n1.000", "+ cross-encoder\n0.250"),
    ]
    last = first.locator("section").last
    assert last.locator(".mark").all_inner_texts() == ["?", "·", "○", "●"]
    assert last.locator("i").all_inner_texts() == ["▲3", "▲1", "▼1", "▼3"]


def test_texts_of_users_are_inert(visit, folder):
    page = visit(folder)
    details = page.locator("#queries details").first
    details.locator("summary").click()
    assert details.locator("summary .text").inner_text() == MALICIOUS
    assert page.locator("#queries svg").evaluate("plot => plot.textContent").count("<script>") == 1
    assert "timeout <b>" in page.locator("#warnings").inner_text()
    page.wait_for_timeout(100)
    assert page.title() == "documents · pgrerank evaluation"
    assert page.locator("script, img").count() == 0


def test_a_script_would_not_run_even_if_one_got_in(browser, folder, tmp_path):
    html = (folder / "report.html").read_text(encoding="utf-8")
    (tmp_path / "in.html").write_text(
        html.replace("</body>", "<script>document.title = 'run'</script></body>"), encoding="utf-8"
    )
    page = browser.new_page()
    page.goto((tmp_path / "in.html").as_uri())
    assert page.title() == "documents · pgrerank evaluation"
    page.close()


def test_chinese_japanese_and_korean_are_drawn_as_they_are(visit, folder):
    plot = visit(folder).locator("#queries svg")
    for text in (QUERIES["q2"][0], QUERIES["q5"][0], QUERIES["q4"][0]):
        label = plot.locator("text").filter(has_text=text)
        assert label.is_visible()
        assert label.bounding_box()["width"] > 50


def test_a_query_without_a_text_is_named_by_its_id(tmp_path):
    odd = evaluation(measures=["nDCG@10"], tuning=None)
    odd["per_query"][0]["query"] = "what is \U00013000"  # a hieroglyph
    odd["per_query"][4] |= {"query": " \x01 ", "id": "the fifth"}
    odd["per_query"][3]["query"] = "half a pair: \ud83d, and \x01"
    write_report(odd, tmp_path)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    [plot] = re.findall(r'<svg [^>]*aria-label="Gains.*?</svg>', html, re.DOTALL)
    assert ">what is \U00013000</text>" in plot
    assert ">the fifth</text>" in plot
    assert ">half a pair: , and</text>" in plot


def test_a_comparison_sets_b_against_a(visit, comparison):
    page = visit(comparison)
    assert "4 of 5 queries are better in B, 1 worse" in page.locator(".lead").inner_text()
    assert "(A has 6 and B has 5)" in page.locator("#warnings").inner_text()
    first = page.locator("#quality tbody").first.locator("tr").last.locator("th, td")
    assert first.all_inner_texts()[:4] == ["+ cross-encoder", "0.470", "0.470", "0.000"]
    assert page.locator("#queries summary").first.inner_text().endswith(QUERIES["q1"][0])
    page.locator("#queries summary").first.click()
    assert page.locator("#queries details").first.locator("h4").all_inner_texts() == [
        *("A: + cross-encoder\n1.000", "B: + cross-encoder\n0.800"),
    ]
    assert "調整 fine-tuned" in page.locator("#quality svg").evaluate("plot => plot.textContent")
    assert read_evaluation(comparison / "other.json") == improved()
    assert [row["run"] for row in rows(comparison / "stages.csv")] == [*"AAABBB"]
    worst = rows(comparison / "queries.csv")[0]
    assert (worst["A: + cross-encoder"], worst["B: + cross-encoder"], worst["change"]) == (
        *("1.0", "0.8", "-0.2"),
    )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"qrels": "clicks"}, "on the qrels by hand, .* on clicks"),
        ({"measures": ["RR@10", "nDCG@10"]}, "on the first measure nDCG@10, .* on RR@10"),
        ({"per_query": [query("q1") | {"id": "other"}]}, "share none of their 6 and 1 queries"),
    ],
)
def test_what_is_not_alike_is_not_compared(tmp_path, changed, message):
    with pytest.raises(SettingsError, match=message):
        write_report(evaluation(), tmp_path / "r", other=evaluation(**changed))
    assert not (tmp_path / "r").exists()


def test_a_report_without_depth_blend_or_hnsw_leaves_no_file_of_an_earlier_one(tmp_path, visit):
    for name in ("depth.csv", "other.json", "mine.txt"):
        (tmp_path / name).write_text("of an earlier one")
    nothing = dict.fromkeys(("tuning", "reliability", "passages"))
    bare = evaluation(**nothing, hnsw=[], warnings=[], degraded=0)
    write_report(bare, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {
        *("report.html", "evaluation.json", "stages.csv", "queries.csv", "mine.txt"),
    }
    page = visit(tmp_path, PHONE)
    shown = page.locator("main > section").evaluate_all("all => all.map(one => one.id)")
    assert shown == ["quality", "latency", "queries"]
    assert page.locator("nav a").count() == 3


def test_one_query_one_order_and_nothing_found(tmp_path, visit):
    single = evaluation(queries=1, per_query=[query("q4")], orders=orders()[:1])
    single["orders"][0] |= {
        "measures": {"nDCG@10": 0.0, "RR@10": 0.0},
        "total_ms": spread(0.0),
        "stage_ms": spread(0.0),
    }
    write_report(single, tmp_path)
    page = visit(tmp_path, PHONE)
    assert page.locator("#queries h3").inner_text() == "Lowest after dense, exact 1"
    assert page.locator("#queries summary").inner_text().startswith("0.000")


def test_thousands_of_queries_make_a_small_page(tmp_path):
    many = evaluation(
        measures=["nDCG@10"],
        tuning=None,
        per_query=[
            found | {"id": f"{found['id']}-{number}"}
            for number in range(500)
            for found in evaluation()["per_query"]
        ],
    )
    write_report(many, tmp_path)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert html.count("<details>") == 60 + 40 + 20
    assert len(html.encode()) < 2_000_000
    assert len(rows(tmp_path / "queries.csv")) == 3000


def test_the_package_imports_without_jinja2_msgspec_and_scipy():
    code = (
        "import sys, pgrerank.evaluation.report;"
        " print([name for name in ('jinja2', 'msgspec', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
