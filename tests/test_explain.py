"""Why this rank: in SQL, in the terminal, and as a heat map in a browser."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from playwright.sync_api import Browser, Page, sync_playwright
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row
from typer.testing import CliRunner

from pgrerank.cli import app
from pgrerank.explain.explanation import Explanation, explanation
from pgrerank.explain.heat_map import heat_map
from pgrerank.explain.stretches import Stretch, stretches
from pgrerank.stages import STAGES
from tests.helpers.workers import wait_for, worker

QUERY = "no connection in the pool"
ROWS = [
    ("Pools", "The connection pool is exhausted when no connection is given back.", 1),
    ("Cats", "A cat sleeps most of the day.", 1),
    ("Markup", "<script>document.title = 'owned'</script> no <b>pool</b> & \"connection\"", 1),
    ("中文", "连接池用完了。🙂\n\n\x1b[31m no connection", 2),
    ("Long", "the number of the cat is one two three four " * 20, 2),
    ("Bread", "Flour, water, salt and time make bread.", 2),
]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]


@pytest.fixture(scope="module")
def explained_dsn(
    make_database: Any, pgrerank_template: str, tiny_models: Any, tmp_path_factory: Any
) -> Iterator[str]:
    """Six documents in two generations, the first of title and body, the second of the body."""
    dsn = make_database(pgrerank_template)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "CREATE TABLE documents (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,"
            " title text, body text, tenant int)"
        )
        with connection.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO documents (title, body, tenant) VALUES (%s, %s, %s)", ROWS
            )
        models = [
            ("embedding", "embedding", "embedding", "sentence_transformer", 32),
            ("tokens", "late_interaction", "tokens", "sentence_transformer", 32),
            ("reranker", "cross_encoder", "reranker", "cross_encoder", None),
        ]
        for name, kind, folder, loader, dims in models:
            connection.execute(
                "SELECT pgrerank.register_model(%s, %s, %s, %s, %s)",
                (name, kind, tiny_models[folder], dims, loader),
            )
        connection.execute(
            "SELECT pgrerank.create_reranker('documents', 'documents', '{title,body}',"
            " embedding_model => 'embedding', late_interaction_model => 'tokens',"
            " cross_encoder_model => 'reranker', maxsim_top => 4, timeout => '20 s')"
        )
        with worker(dsn, tmp_path_factory.mktemp("worker")):
            wait_for(connection, "pending = 0 AND encoded = source_rows")
            connection.execute(
                "SELECT pgrerank.alter_reranker('documents', text_columns => '{body}')"
            )
            wait_for(connection, "pending = 0 AND next_generation IS NULL")
            yield dsn


@pytest.fixture
def connection(explained_dsn: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(explained_dsn, autocommit=True, row_factory=dict_row) as connection:
        yield connection


def _explain(connection: psycopg.Connection[Any], **arguments: Any) -> list[dict[str, Any]]:
    arguments = {"reranker": "documents", "query": QUERY, "strict": True, **arguments}
    named = ", ".join(f"{name} => %({name})s" for name in arguments)
    return connection.execute(
        f"SELECT * FROM pgrerank.explain_search({named})", arguments
    ).fetchall()


def _align(connection: psycopg.Connection[Any], query: str, *documents: str) -> Any:
    request = {"call": "align", "model": "tokens", "query": query, "documents": documents}
    [row] = connection.execute(
        "SELECT pgrerank._ask_worker(%s, clock_timestamp() + '20 s') AS answer",
        (json.dumps(request),),
    ).fetchall()
    return row["answer"]


def test_it_has_the_ranks_and_scores_of_the_search(connection: psycopg.Connection[Any]) -> None:
    found = _explain(connection)
    searched = connection.execute(
        "SELECT * FROM pgrerank.documents_search(%s, strict => true)", (QUERY,)
    ).fetchall()
    assert len(searched) == 6
    for row, wanted in zip(found, searched, strict=True):
        assert row["key"] == str(wanted.pop("id"))
        for name, value in wanted.items():
            close = pytest.approx(value, rel=1e-4) if isinstance(value, float) else value
            assert row[name] == close, name
    assert [row["stage"] for row in found] == ["cross_encoder"] * 4 + ["maxsim"] * 2


def test_the_stages_times_are_nearly_the_whole(connection: psycopg.Connection[Any]) -> None:
    _explain(connection)
    times = _explain(connection)[0]["times"]
    total = times.pop("total")
    assert set(times) == {"encode_query", "dense", "lexical", "maxsim", "cross_encoder", "passages"}
    assert all(ms > 0 for ms in times.values())
    assert total / 2 < sum(times.values()) <= total


def test_an_alignment_adds_up_to_the_stored_maxsim(connection: psycopg.Connection[Any]) -> None:
    texts = {str(at): row[1] for at, row in enumerate(ROWS, 1)}
    for row in _explain(connection):
        found = row["alignment"]
        assert found["query"] == QUERY.split()
        for names in (("query", "best", "scores"), ("tokens", "spans", "heat", "heat_from")):
            assert len({len(found[name]) for name in names}) == 1
        for token, (begin, end) in zip(found["tokens"], found["spans"], strict=True):
            assert texts[row["key"]][begin:end] == token
        assert sum(found["scores"]) == pytest.approx(row["maxsim_score"], abs=0.02)
        for asked, (best, score) in enumerate(zip(found["best"], found["scores"], strict=True)):
            assert found["heat"][best] >= score
            closest = zip(found["heat"], found["heat_from"], strict=True)
            assert all(heat <= score for heat, of in closest if of == asked)


def test_a_document_with_the_query_s_words_is_answered_by_them(
    connection: psycopg.Connection[Any],
) -> None:
    answer = _align(connection, "cat bread", "cat bread", "", "the cat")
    assert answer["query"] == ["cat", "bread"]
    same, empty, other = answer["documents"]
    assert same["best"] == [0, 1]
    assert same["scores"] == pytest.approx([1, 1], abs=0.02)
    assert same["heat_from"] == [0, 1]
    assert set(map(len, empty.values())) == {0}
    assert other["tokens"] == ["the", "cat"]


def test_what_can_t_be_aligned_is_refused(connection: psycopg.Connection[Any]) -> None:
    for request, message in (
        ({"model": "embedding", "query": "", "documents": []}, "of kind late_interaction"),
        (
            {"model": "tokens", "query": "", "documents": [1]},
            r"got `int` - at `\$\.request\.documents\[0\]`",
        ),
        ({"model": "tokens", "documents": []}, "missing required field `query`"),
    ):
        with pytest.raises(psycopg.Error, match=message):
            connection.execute(
                "SELECT pgrerank._ask_worker(%s, clock_timestamp() + '20 s')",
                (json.dumps({"call": "align", **request}),),
            )
    assert _align(connection, "cat")["documents"] == []


def test_alignments_may_be_left_out(connection: psycopg.Connection[Any]) -> None:
    assert {row["alignment"] is None for row in _explain(connection, alignments=False)} == {True}
    recalled = _explain(connection, stages=["dense"], keys=["2", "1"])
    assert [row["key"] for row in recalled] == ["2", "1"]
    assert recalled[0]["alignment"]["tokens"][:2] == ["A", "cat"]


def test_a_generation_that_is_kept_can_be_explained(connection: psycopg.Connection[Any]) -> None:
    before, now = (_explain(connection, generation=number, keys=["2"])[0] for number in (1, 2))
    assert before["alignment"]["tokens"][-2:] == now["alignment"]["tokens"][-2:] == ["day", "."]
    assert len(before["alignment"]["tokens"]) > len(now["alignment"]["tokens"])
    for row in (before, now):
        assert sum(row["alignment"]["scores"]) == pytest.approx(row["maxsim_score"], abs=0.02)
    with pytest.raises(psycopg.Error, match='reranker "documents" has no generation 9'):
        _explain(connection, generation=9)


def test_nobody_is_explained_what_they_can_t_see(explained_dsn: str, make_role: Any) -> None:
    reader = make_role()
    with psycopg.connect(explained_dsn, autocommit=True) as admin:
        admin.execute(f"GRANT SELECT ON documents TO {reader}")
        admin.execute("ALTER TABLE documents ENABLE ROW LEVEL SECURITY")
        admin.execute(f"CREATE POLICY own ON documents FOR SELECT TO {reader} USING (tenant = 2)")
    dsn = make_conninfo(explained_dsn, user=reader, password=reader)
    with psycopg.connect(dsn, autocommit=True, row_factory=dict_row) as connection:
        assert {row["key"] for row in _explain(connection)} == {"4", "5", "6"}
        rows = _explain(connection, keys=["1", "2", "4"])
        assert [row["key"] for row in rows] == ["4"]
        found = explanation(connection, "documents", QUERY, None, [rows[0] | {"key": "1"}, *rows])
        assert [bool(document["text"]) for document in found["documents"]] == [False, True]
    asked = json.loads(_ok(dsn, "--json"))
    assert {document["key"] for document in asked["documents"]} == {"4", "5", "6"}


def _run(dsn: str, *options: str) -> Any:
    return CliRunner().invoke(app, ["explain", "documents", QUERY, "--dsn", dsn, *options])


def _ok(dsn: str, *options: str) -> str:
    result = _run(dsn, *options)
    assert result.exit_code == 0, result.output
    return str(result.stdout)


def test_the_command_prints_times_ranks_and_answers(explained_dsn: str) -> None:
    printed = _ok(explained_dsn, "--strict", "--aligned", "2")
    times, *lines = printed.splitlines()
    assert times.startswith("encoding the query ")
    assert " + cross-encoder " in times
    headers = ["#", "key", "dense", "lexical", "MaxSim", "cross-encoder", "text"]
    [header] = [at for at, line in enumerate(lines) if line.split() == headers]
    ranks = lines[header + 1 : header + 7]
    assert [line.split()[0] for line in ranks] == list("123456")
    assert sum("–" in line for line in ranks) == 2
    assert printed.count("answered by") == 2
    for token in QUERY.split():
        assert len(re.findall(rf"^{token} +\S+ +-?\d\.\d{{4}}$", printed, re.MULTILINE)) == 2
    assert "\x1b" not in printed
    assert "answered by" not in _ok(explained_dsn, "--aligned", "0")


def test_the_arrows_say_how_far_a_stage_moved_a_document(explained_dsn: str) -> None:
    found = json.loads(_ok(explained_dsn, "--json", "--stages", "dense,maxsim"))
    printed = _ok(explained_dsn, "--stages", "dense,maxsim", "--aligned", "0")
    for document in found["documents"]:
        change = document["ranks"]["dense"] - document["ranks"]["maxsim"]
        arrow = f" {'▲' if change > 0 else '▼'}{abs(change)}" if change else ""
        [line] = [li for li in printed.splitlines() if f"{document['scores']['maxsim']:.4f}" in li]
        assert f"{document['ranks']['maxsim']}{arrow} " in line
        assert change or not {"▲", "▼"} & set(line)


def test_the_command_s_options_are_those_of_the_call(explained_dsn: str) -> None:
    def keys(*options: str) -> list[str]:
        return [
            row["key"] for row in json.loads(_ok(explained_dsn, "--json", *options))["documents"]
        ]

    assert len(keys("--top-k", "2", "--exact", "--candidates", "5", "--maxsim-top", "1")) == 2
    assert keys("--filter", '{"tenant": 2}', "--keys", "1, 4", "--stages", "dense") == ["4"]
    assert "key  as given " in _ok(explained_dsn, "--keys", "1,4")
    first = json.loads(_ok(explained_dsn, "--json", "--generation", "1"))
    assert first["generation"] == 1
    assert {row["key"]: row["text"] for row in first["documents"]}["2"].startswith("Cats")
    assert first["documents"][0]["alignment"]["query"] == QUERY.split()
    blended = json.loads(_ok(explained_dsn, "--json", "--blend", '{"dense": 1}'))
    ranks = [document["ranks"] for document in blended["documents"]]
    recalled = [rank["dense"] for rank in ranks if rank["cross_encoder"]]
    assert recalled == sorted(recalled)
    refused = _run(explained_dsn, "--generation", "9")
    assert refused.exit_code == 1
    assert "error:" in refused.stderr
    assert "no generation 9" in refused.stderr


def test_a_degraded_search_says_so(db: Any, dsn: str, source: Any) -> None:
    source.create()
    source.encode_by_hand()
    printed = _ok_of(dsn, "bread of flour")
    assert "degraded: no worker is known" in printed
    assert "lexical" in printed
    assert "no document was found" in _ok_of(dsn, "zebra", "--no-strict")
    html = heat_map(json.loads(_ok_of(dsn, "bread of flour", "--json")))
    assert "<strong>Degraded:</strong> no worker is known" in html
    assert "No tokens were aligned" in html
    assert "No document was found." in heat_map(
        json.loads(_ok_of(dsn, "zebra", "--json", "--no-strict"))
    )


def test_tokens_that_only_an_endpoint_knows_are_not_asked_for(
    db: Any, dsn: str, source: Any
) -> None:
    source.create()
    source.encode_by_hand()
    command = ["explain", "documents", "bread", "--dsn", dsn, "--stages", "lexical"]
    for loader, is_told in (("sentence_transformer", True), ("http", False)):
        db.execute("UPDATE pgrerank.models SET loader = %s WHERE name = 'tokens'", (loader,))
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
        assert ("tokens are not aligned" in result.stderr) == is_told


def _ok_of(dsn: str, query: str, *options: str) -> str:
    result = CliRunner().invoke(app, ["explain", "documents", query, "--dsn", dsn, *options])
    assert result.exit_code == 0, result.output
    return str(result.stdout)


def test_a_terminal_sees_colours_and_no_commands_of_a_text(explained_dsn: str) -> None:
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "pgrerank", "explain", "documents", QUERY, "--keys", "1,4"]
    with subprocess.Popen(
        [*command, "--dsn", explained_dsn],
        stdout=follower,
        env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "100", "COLORTERM": "truecolor"},
    ) as process:
        os.close(follower)
        seen = b""
        while chunk := _chunk(leader):
            seen += chunk
        assert process.wait() == 0
    os.close(leader)
    assert "\x1b[1;37;48;2;200;100;0m" in seen.decode()  # the hottest
    assert "�[31" in seen.decode()
    assert max(map(len, seen.decode().splitlines())) < 600


def _chunk(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # the other end is closed
        return b""


def _alignment(**lists: Any) -> Any:
    tokens = lists["spans"]
    whole = {"query": ["q"], "tokens": ["?"] * len(tokens), "best": [0], "scores": [0.9]}
    return whole | {"heat_from": [0] * len(tokens)} | lists


def test_a_text_is_whole_in_its_stretches() -> None:
    text = "a 🙂 bc."
    spans = [None, [0, 1], [2, 3], [2, 3], [4, 6], [5, 6]]
    found = stretches(text, _alignment(spans=spans, heat=[0, 0.1, 0.2, 0.7, 0.5, 0.4], best=[3]))
    assert "".join(stretch.text for stretch in found) == text
    assert found == [
        Stretch("a", 0.1),
        Stretch(" "),
        Stretch("🙂", 0.7, 0, (0,)),
        Stretch(" "),
        Stretch("bc", 0.5),
        Stretch("."),
    ]
    assert stretches("bare", _alignment(spans=[], heat=[])) == [Stretch("bare")]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if BROWSER is None:
        pytest.skip("there is no Chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def html_file(explained_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The heat map of a search with strange texts."""
    file: Path = tmp_path_factory.mktemp("heat") / "why.html"
    result = _run(explained_dsn, "--html", str(file), "--strict")
    assert result.exit_code == 0, result.output
    assert "the heat map is in" in result.stderr
    assert result.stdout == ""
    return file


def _open(browser: Browser, file: Path, width: int, **options: Any) -> Page:
    page = browser.new_page(viewport={"width": width, "height": 800}, **options)
    page.said = []  # type: ignore[attr-defined]
    page.on("console", lambda message: page.said.append(message.text))  # type: ignore[attr-defined]
    page.goto(file.as_uri())
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1100])
def test_the_heat_map_fits_any_screen_and_runs_no_script(
    browser: Browser, html_file: Path, width: int, scheme: Any
) -> None:
    page = _open(browser, html_file, width, color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.title() == f"Why this rank: {QUERY}"
    assert page.locator("script").count() == 0
    assert page.said == []  # type: ignore[attr-defined]  # the policy let the style through
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 29)"}[scheme]
    hottest = page.locator(".document .h9").first
    assert "0.75" in hottest.evaluate("one => getComputedStyle(one).backgroundColor")
    page.close()


def test_the_heat_map_shows_each_passage_whole(browser: Browser, html_file: Path) -> None:
    page = _open(browser, html_file, 1100)
    shown = page.locator(".document").evaluate_all("all => all.map(one => one.textContent)")
    bodies = [body for _, body, _ in ROWS]
    parts = [text for text in shown if text not in bodies]
    assert len(shown) == len(bodies)
    [part] = parts  # of the text that is longer than the model reads
    assert [part in body for body in bodies].count(True) == 1
    place = page.locator("summary small").all_inner_texts()
    assert len(place) == 1
    begin, end = (int(number) for number in re.findall(r"\d+", place[0]))
    assert end - begin == len(part)
    headers = page.locator("th").all_inner_texts()
    assert headers == [
        "#",
        "key, text",
        *(s.label for s in STAGES.values() if s.name not in ("maxsim_bit", "listwise")),
    ]
    assert page.locator("tbody tr").count() == len(ROWS)
    assert page.locator(".legend li").last.inner_text().startswith("total ")
    page.close()


def test_pointing_at_a_token_tells_what_it_answers(browser: Browser, html_file: Path) -> None:
    page = _open(browser, html_file, 360, has_touch=True, is_mobile=True)
    details = page.locator("details").first
    token = details.locator(".document .best").first
    [asked] = [name for name in token.get_attribute("class").split() if name.startswith("f")]
    token.tap()
    told = "getComputedStyle(one, '::after').content"
    tip = token.evaluate(f"one => {told}")
    assert token.inner_text() in tip
    assert " answers “" in tip
    chip = details.locator(f".q{asked[1:]}")
    assert chip.evaluate("one => getComputedStyle(one).outlineStyle") == "solid"
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    answered = [name[1:] for name in token.get_attribute("class").split() if name[0] == "a"]
    details.locator(f".q{answered[0]}").tap()
    assert token.evaluate("one => getComputedStyle(one).outlineStyle") == "solid"
    page.close()


def test_words_between_a_text_s_pieces_are_joined(browser: Browser, html_file: Path) -> None:
    page = _open(browser, html_file, 1100)
    details = page.locator("details", has_text="owned")
    details.evaluate("one => one.open = true")
    owned = details.locator(".document").inner_text()
    assert "<script>document.title = 'owned'</script>" in owned
    first = details.locator(".document .t", has_text="d").first
    gap = first.evaluate(
        "one => one.nextElementSibling.getBoundingClientRect().left"
        " - one.getBoundingClientRect().right"
    )
    assert abs(gap) < 0.5
    page.close()


def test_special_tokens_stand_beside_the_text() -> None:
    found: Explanation = {
        "reranker": "documents",
        "generation": 1,
        "query": "q & <q>",
        "times": {"total": 12.5, "dense": 12.5},
        "degraded": False,
        "reason": None,
        "documents": [
            {
                "scores": dict.fromkeys(STAGES),
                "ranks": dict.fromkeys(STAGES) | {"dense": 1},
                "key": "a\"b'<i>",
                "text": "cat",
                "passage": None,
                "score": None,
                "signals_score": -0.25,
                "relevance": 0.734,
                "rank": 1,
                "stage": "dense",
                "alignment": _alignment(
                    spans=[None, [0, 3]], tokens=["[CLS]", "cat"], heat=[0.5, 0.9], best=[1]
                ),
            }
        ],
    }
    html = heat_map(found)
    assert "Not in the text, but read with it" in html
    assert ">[CLS]</span>" in html
    assert "q &amp; &lt;q&gt;" in html
    assert ">0.73<" in html
    assert ">-0.2500<" in html
    found["documents"][0] |= {"signals_score": None, "relevance": None}
    html = heat_map(found)
    assert "<th>relevance</th>" not in html
    assert "<th>signals</th>" not in html
    assert "<i>" not in html.replace("<i aria-label", "")
