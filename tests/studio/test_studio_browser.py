"""Studio in a real browser: by mouse, by keys alone, on a narrow screen, and for everybody."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from pgrerank.evaluation.traces import ask_one
from pgrerank.evaluation.variant import Variant
from tests.helpers.studio import QUERY

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
KEYS = "rows => rows.map(row => row.dataset.key)"
SHOWN = """wanted => JSON.stringify(wanted) === JSON.stringify(
    [...document.querySelectorAll('.last .row')].map(row => row.dataset.key))"""

pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=ARGUMENTS)
        yield browser
        browser.close()


def opened(browser: Browser, address: str, **options: Any) -> Page:
    """A page that has been let in; `said` has what it said on its console."""
    page = browser.new_page(**{"viewport": {"width": 1280, "height": 900}} | options)
    page.said = []  # type: ignore[attr-defined]
    page.on("console", lambda message: page.said.append(message.text))  # type: ignore[attr-defined]
    page.on("pageerror", lambda error: page.said.append(str(error)))  # type: ignore[attr-defined]
    page.goto(address)
    return page


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    page = opened(browser, address)
    yield page
    assert page.said == []  # type: ignore[attr-defined]
    page.close()


def wait_for_answer(page: Page) -> None:
    """Until the order is there, and the page's script has run, which comes after it."""
    page.wait_for_selector(".column.last")
    page.wait_for_load_state()


def ask(page: Page, query: str = QUERY) -> None:
    page.fill("#query", query)
    page.press("#query", "Enter")
    wait_for_answer(page)


def grave(page: Page) -> list[tuple[str, str]]:
    """What axe finds that keeps people out, and where."""
    found = Axe().run(page).response["violations"]
    return [
        (one["id"], one["nodes"][0]["html"])
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


def judged(connection: psycopg.Connection[Any]) -> list[Any]:
    return connection.execute(
        "SELECT qrels_set, key, relevance FROM pgrerank.qrels ORDER BY key"
    ).fetchall()


def test_a_slider_changes_the_order_at_once(
    page: Page, connection: psycopg.Connection[Any]
) -> None:
    assert "token" not in page.url
    ask(page)
    trace = ask_one(connection, Variant("documents"), QUERY)
    assert page.locator(".last .row").evaluate_all(KEYS) == trace.order("cross_encoder")[:10]
    of_columns = [
        set(page.locator(f".column:nth-of-type({n}) .row").evaluate_all(KEYS)) for n in range(1, 5)
    ]
    pairs = itertools.pairwise(of_columns)
    assert page.locator(".lines path").count() == sum(len(one | two) for one, two in pairs)
    assert page.title() == f"{QUERY} · pgrerank studio"  # the text that is a script did not run
    asked = page.locator("#orders").get_attribute("data-search")
    blend = {"dense": 1.0, "lexical": 0.14, "maxsim": 0.0, "cross_encoder": 0.3}
    page.fill("[name=weight_dense]", "1")
    page.fill("[name=weight_maxsim]", "0")
    page.fill("[name=maxsim_top]", "9")
    page.locator("[name=maxsim_top]").dispatch_event("change")
    wanted = ask_one(connection, Variant("documents", blend=blend, maxsim_top=9), QUERY)
    page.wait_for_function(SHOWN, arg=wanted.order("cross_encoder")[:10])
    assert page.locator(".column").count() == 3
    assert page.locator("#orders").get_attribute("data-search") == asked
    page.click("text=As they were")
    page.wait_for_function(SHOWN, arg=trace.order("cross_encoder")[:10])
    page.fill("[name=weight_dense]", "1")
    page.click("text=Ask again with these")
    page.wait_for_selector(f"#orders:not([data-search='{asked}'])")
    assert page.locator("#moved").inner_text().startswith("As the search answered")
    assert page.locator("[name=weight_dense]").input_value() == "1"


def test_clicks_judge_and_measures_follow(page: Page, connection: psycopg.Connection[Any]) -> None:
    for query in ("the cat", "the pool", "a number"):
        ask(page, query)
        page.fill("[name=set]", "clicked")
        page.locator(".last .judge button[data-relevance='2']").first.click()
        page.wait_for_selector(".last .row.judged-2")
    assert page.locator("#tally").inner_text() == "3 judgements of 3 questions"
    key = page.locator(".last .row").first.get_attribute("data-key")
    page.locator(".last .doc").first.click()
    page.wait_for_selector("#why[open] .answers")
    page.click("#why .judge >> text=partly")
    page.wait_for_selector(f".last .row.judged-1[data-key='{key}']")
    page.click("#why .close")
    assert [row[::2] for row in judged(connection)].count(("clicked", 1)) == 1
    page.click("nav >> text=Measure")
    page.select_option("[name=set]", "clicked")
    page.click("button:text-is('Measure')")
    page.wait_for_selector("text=Open the report", timeout=60_000)
    assert page.locator("tbody tr").count() == 5
    assert grave(page) == []
    page.click("text=Open the report")
    assert page.title() == "documents · pgrerank evaluation"


def test_keys_are_enough(page: Page, connection: psycopg.Connection[Any]) -> None:
    press = page.keyboard.press
    page.keyboard.type(QUERY)  # the question has the focus
    press("Enter")
    wait_for_answer(page)
    focused = "document.activeElement.closest('.row')?.dataset.key"
    best, next_best = page.locator(".last .row").evaluate_all(KEYS)[:2]
    assert page.evaluate("document.activeElement.tagName") == "BODY"
    press("ArrowDown")
    assert page.evaluate(focused) == best
    press("ArrowDown")
    assert page.evaluate(focused) == next_best
    press("/")
    press("ArrowDown")
    assert page.evaluate(focused) == best
    page.locator(".column .doc").first.focus()
    first, second = page.locator(".column").first.locator(".row").evaluate_all(KEYS)[:2]
    assert page.evaluate(focused) == first
    press("ArrowDown")
    assert page.evaluate(focused) == second
    press("ArrowRight")
    assert page.evaluate("document.querySelectorAll('.row.on').length") >= 1
    press("1")
    page.wait_for_selector(".row.judged-2")
    key = page.evaluate(focused)
    assert judged(connection) == [("studio", key, 2)]
    press("Enter")
    page.wait_for_selector("#why[open]")
    press("Escape")
    assert page.evaluate(focused) == key
    press("1")
    page.wait_for_selector(".row.judged-2", state="detached")
    assert judged(connection) == []
    press("/")
    assert page.evaluate("document.activeElement.id") == "query"


def test_blind_votes_by_keys(page: Page) -> None:
    page.click("nav >> text=Compare")
    page.fill("[name=b]", "documents:stages=dense")
    page.fill("[name=questions]", f"{QUERY}\nthe cat\nthe number four")
    page.click("text=Begin")
    for key in ("ArrowLeft", "ArrowDown", "ArrowRight"):
        page.wait_for_load_state()
        assert grave(page) == []
        if page.locator("#duel").count():
            duel = page.locator("[name=duel]").get_attribute("value")
            page.keyboard.press(key)
            page.wait_for_selector(f"[name=duel][value='{duel}']", state="detached")
    assert page.locator("h1").inner_text() == "No questions are left"
    assert page.locator(".tally td").all_inner_texts() != ["0", "0", "0"]


def test_status_and_backfill(page: Page) -> None:
    page.click("nav >> text=Status")
    assert page.locator("text=alive").count() == 1
    page.click("text=Backfill")
    page.wait_for_selector("text=nothing was missing")


PAGES = ("/", f"/?query={QUERY}&set=seen", "/measure", "/compare", "/status", "/jobs/none")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_pages_fit_the_screen_and_serve_everybody(
    browser: Browser, address: str, connection: Any, width: int, scheme: Any
) -> None:
    connection.execute("INSERT INTO pgrerank.queries VALUES ('seen', '1', %s)", (QUERY,))
    page = opened(
        browser,
        address,
        viewport={"width": width, "height": 800},
        color_scheme=scheme,
        reduced_motion="reduce",
    )
    for path in PAGES:
        page.goto(address.partition("/?")[0] + path)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
        if "query" in path:
            page.locator(".last .judge button").first.click()
            page.locator(".doc").first.click()
            page.wait_for_selector("#why[open]")
        assert grave(page) == [], path
    page.close()
