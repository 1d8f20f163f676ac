"""Studio over HTTP: who is let in, what the pages show, what they write."""

from __future__ import annotations

import json
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from typer.testing import CliRunner

from pgrerank.cli import app
from pgrerank.evaluation.traces import ask_one
from pgrerank.evaluation.variant import Variant, parse_variant
from pgrerank.studio.blind import Contest, sign_test
from tests.helpers.studio import QUERY, Client, columns, set_up, studio
from tests.helpers.workers import wait_for, worker


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[Client]:
    with Client(address) as client:
        yield client


@pytest.fixture
def other(dsn: str, tmp_path: Path) -> Iterator[Client]:
    """Studio over a database of the test's own, where no worker runs."""
    with studio(dsn, tmp_path) as address, Client(address) as client:
        yield client


def searched(client: Client, **given: Any) -> tuple[str, str]:
    """The page of a search, and the search's identifier."""
    page = client.get("/", params={"query": QUERY, "set": "mine"} | given)
    assert page.status_code == 200, page.text
    [identifier] = re.findall(r'data-search="([^"]+)"', page.text)
    return page.text, identifier


def test_only_the_whole_address_lets_in(address: str) -> None:
    base, _, token = address.partition("/?")
    with httpx.Client(base_url=base) as browser:
        for path in ("/", "/status", "/studio.js", "/?token=", "/?token=wrong", "/?token=é"):
            refused = browser.get(path)
            assert refused.status_code == 403
            assert "token" in refused.text
        browser.cookies.set(f"pgrerank-studio-{base.rpartition(':')[2]}", "guessed")
        assert browser.get("/").status_code == 403
        browser.cookies.clear()
        let_in = browser.get(f"/?query=a+b&{token}")
        assert (let_in.status_code, let_in.headers["location"]) == (303, "/?query=a+b")
        cookie = let_in.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert token.removeprefix("token=") not in cookie
        page = browser.get("/")
        assert page.status_code == 200
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
        assert "unsafe" not in policy
        assert not re.search(r"<script(?! src=)|style=|\son\w+=", page.text)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *(("evil.example", 421), ("127.0.0.1.evil.example", 421), ("", 421), ("[::1", 421)),
        *(("localhost:1", 200), ("[::1]:9", 200)),
    ],
)
def test_another_name_that_leads_here_is_refused(client: Client, host: str, status: int) -> None:
    assert client.get("/status", headers={"Host": host}).status_code == status


def test_a_write_wants_a_page_of_ours(client: Client, connection: psycopg.Connection[Any]) -> None:
    form = {"set": "mine", "query": QUERY, "key": "1", "relevance": "2"}
    ours = {"X-CSRF-Token": client.csrf}
    for headers in (
        {},
        {"X-CSRF-Token": "wrong"},
        ours | {"Origin": "http://evil.example"},
        ours | {"Origin": "null"},
    ):
        assert client.post("/judge", data=form, headers=headers).status_code == 403
    assert client.get("/judge").status_code == 405
    assert client.post("/judge", data={"set": "x" * 100_000}, headers=ours).status_code == 413
    assert connection.execute("SELECT count(*) FROM pgrerank.qrels").fetchone() == (0,)
    origin = {"Origin": str(client.base_url).rstrip("/")}
    assert client.post("/judge", data=form, headers=ours | origin).status_code == 200
    assert connection.execute("SELECT count(*) FROM pgrerank.qrels").fetchone() == (1,)


def test_the_columns_are_the_orders_of_the_search(
    client: Client, connection: psycopg.Connection[Any]
) -> None:
    page, _ = searched(client, shown="20")
    trace = ask_one(connection, Variant("documents"), QUERY)
    assert columns(page) == [trace.order(stage) for stage in trace.stages]
    assert trace.stages == ["dense", "lexical", "maxsim", "cross_encoder"]
    assert "As the search answered." in page
    assert re.search(r"<b>[\d.]+ ms</b> in all", page)
    for score in trace.scores["cross_encoder"][:4]:
        assert f'<span class="score">{score:.3f}</span>' in page


SIZES = [{"maxsim_top": 2}, {"candidates": 10}, {"candidates": 12, "maxsim_top": 8}]
BLENDS = [
    {"dense": 1.0, "lexical": 0.0, "maxsim": 0.2, "cross_encoder": 0.9},
    {"dense": 0.05, "lexical": 0.9, "maxsim": 0.0, "cross_encoder": 0.1},
    {},
]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("blend", BLENDS)
def test_moved_sliders_order_as_a_search_by_them_would(
    client: Client, connection: psycopg.Connection[Any], sizes: Any, blend: Any
) -> None:
    _, identifier = searched(client)
    stages = ["dense", "lexical", "maxsim", "cross_encoder"]
    knobs = {"knobs": 1, "stage": stages, "search": identifier, "shown": 20, "complete": 1}
    knobs |= {f"weight_{stage}": weight for stage, weight in blend.items()} | sizes
    if not blend:
        knobs["overrule"] = "on"
    page = client.get("/orders", params=knobs)
    assert page.status_code == 200, page.text
    assert "Computed from the scores" in page.text
    wanted = ask_one(connection, Variant("documents", blend=blend, **sizes), QUERY)
    assert columns(page.text) == [wanted.order(stage) for stage in wanted.stages]
    again = client.get("/", params=knobs | {"query": QUERY, "reranker": "documents"})
    assert columns(again.text) == columns(page.text)


def test_it_says_what_only_another_search_can_tell(client: Client) -> None:
    _, identifier = searched(client, knobs=1, stage=["dense", "cross_encoder"], candidates=10)
    knobs = {"knobs": 1, "search": identifier, "stage": ["dense", "maxsim", "cross_encoder"]}
    page = client.get("/orders", params=knobs | {"candidates": 50, "maxsim_top": 9}).text
    assert "recall found 10 candidates, not 50" in page
    assert "MaxSim has not run" in page
    assert "has not read 5 of the documents" in page  # of nine it has read four
    knobs["stage"] = ["cross_encoder"]
    assert "not run" not in client.get("/orders", params=knobs | {"candidates": 10}).text


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"knobs": 1, "candidates": "many"}, "candidates is &#39;many&#39;, expected a number"),
        ({"knobs": 1, "weight_dense": "nan"}, "weight_dense is &#39;nan&#39;"),
        ({"shown": "-1"}, "shown is &#39;-1&#39;, expected a number from 1 to 50"),
        ({"reranker": "none"}, "There are: documents."),
        ({"knobs": 1, "stage": "dense", "candidates": "0"}, "candidates"),
        ({"knobs": 1, "stage": "dense", "weight_dense": "0"}, "blend"),
        ({"query": "a\0b"}, "NUL"),
    ],
)
def test_wrong_input_is_answered_with_what_is_wanted(
    client: Client, given: Any, wanted: str
) -> None:
    page = client.get("/", params={"query": QUERY} | given)
    assert page.status_code == 422
    assert 'role="alert"' in page.text
    assert wanted in page.text


def test_texts_are_texts(client: Client) -> None:
    page, identifier = searched(client, query="<i>no</i> connection 连接池")
    assert "&lt;script&gt;document" in page
    assert "<script>document" not in page
    assert "<i>no" not in page
    assert "中文" in page
    why = client.get("/why", params={"search": identifier, "key": "3", "set": "mine"}).text
    assert "&lt;script&gt;" in why
    assert "<script>" not in why


def test_why_says_what_each_stage_and_word_adds(
    client: Client, connection: psycopg.Connection[Any]
) -> None:
    _, identifier = searched(client)
    trace = ask_one(connection, Variant("documents"), QUERY)
    key = trace.order("cross_encoder")[0]
    why = client.get("/why", params={"search": identifier, "key": key}).text
    ranks = re.findall(r'<th scope="row">[^<]+</th><td class="n">(\d+)</td>', why)
    assert ranks == [str(trace.order(stage).index(key) + 1) for stage in trace.stages]
    [total] = re.findall(r'together</th><td class="n">([-+.\d]+)', why)
    [(_, score)] = connection.execute(
        "SELECT id, score FROM pgrerank.documents_search(%s, top_k => 1)", (QUERY,)
    ).fetchall()
    assert float(total) == pytest.approx(score, abs=2e-3)
    assert '<ol class="answers"' in why
    assert re.search(r'<span class="t h\d f\d+ best', why)
    gone = client.get("/why", params={"search": "gone", "key": key})
    assert (gone.status_code, "ask again" in gone.text) == (422, True)


def test_a_judgement_is_written_changed_and_taken_back(
    client: Client, connection: psycopg.Connection[Any]
) -> None:
    def judged() -> list[Any]:
        return connection.execute(
            "SELECT q.query, r.key, r.relevance FROM pgrerank.queries q"
            " LEFT JOIN pgrerank.qrels r ON (r.qrels_set, r.query_id) = (q.qrels_set, q.id)"
            " WHERE q.qrels_set = 'mine' ORDER BY r.key"
        ).fetchall()

    of = {"set": "mine", "query": QUERY}
    answer = client.write("/judge", **of, key="1", relevance="2").json()
    assert answer == {"relevance": 2, "queries": 1, "judgements": 1}
    client.write("/judge", **of, key="1", relevance="1")
    client.write("/judge", set="mine", query=QUERY.upper(), key="2", relevance="0")
    assert judged() == [(QUERY, "1", 1), (QUERY, "2", 0)]
    page, _ = searched(client)
    assert re.search(r'class="row judged-1" data-key="1"', page)
    assert 'aria-pressed="true" title="partly' in page
    assert "2 judgements of 1 question<" in page
    assert 'class="row judged-1"' in client.get("/", params={"query": QUERY}).text  # the first set
    client.write("/judge", **of, key="1", relevance="")
    client.write("/judge", **of, key="2", relevance="")
    assert judged() == []
    for wrong in ({"relevance": "9"}, {"relevance": "2", "set": " "}):
        assert client.write("/judge", **of | {"key": "1"} | wrong).status_code == 422


def test_it_measures_tunes_and_reports(client: Client, connection: psycopg.Connection[Any]) -> None:
    for number in range(12):
        query = f"the number of the cat {number}"
        for key in (number + 5, 1):
            client.write(
                *("/judge",), set="mine", query=query, key=str(key), relevance=str(2 * (key > 1))
            )
    started = client.write("/jobs", set="mine", variant="documents", work="tune")
    assert client.wait(started)["state"] == "done"
    page = client.get(started.url.path).text
    assert "What tuning says" in page
    assert re.search(r"\+ cross-encoder</th><td class=\"n\">[01]\.\d{3}", page)
    report = client.get(f"{started.url.path}/report")
    assert "pgrerank evaluation" in report.text
    assert "script-src" not in report.headers["content-security-policy"]
    client.write(f"{started.url.path}/apply")
    assert "written" in client.get(started.url.path).text or "chance" in page
    for wrong in ({"set": "none"}, {"variant": "documents:sizes=1"}, {"work": "guess"}):
        fields = {"set": "mine", "variant": "documents", "work": "measure"} | wrong
        assert client.write("/jobs", **fields).status_code == 422
    assert client.get("/jobs/none").status_code == 404


def test_a_job_can_be_stopped_and_says_why_it_failed(
    client: Client, connection: psycopg.Connection[Any]
) -> None:
    for number in range(40):
        client.write("/judge", set="mine", query=f"cat {number}", key="2", relevance="2")
    started = client.write("/jobs", set="mine", variant="documents", work="tune")
    client.write(f"{started.url.path}/stop")
    assert client.wait(started)["state"] == "stopped"
    failed = client.write("/jobs", set="mine", variant="documents@7", work="measure")
    now = client.wait(failed)
    assert now["state"] == "failed"
    assert "7" in str(now["message"])


def test_blind_votes_count_for_whom_chance_has_put_there(client: Client) -> None:
    questions = "\n".join([QUERY, "the cat", "bread and water", "number of the pool"])
    page = client.write(
        "/compare/start", a="documents:stages=dense", b="documents", questions=questions
    )
    assert "documents:stages" not in page.text.split("<details")[0]  # it is not told whose they are
    path, votes = page.url.path, 0
    while duel := re.search(r'name="duel" value="([^"]+)"', page.text):
        page = client.write(f"{path}/vote", duel=duel[1], vote=("left", "right", "same")[votes % 3])
        votes += 1
    assert votes >= 2
    counts = [int(n) for n in re.findall(r'</th><td class="n">(\d+)</td>', page.text)]
    assert sum(counts) == votes
    assert client.write(f"{path}/vote", duel="over", vote="left").url.path == path
    same = {"a": "documents", "b": "documents", "questions": "x"}
    assert "both sides are the same" in client.write("/compare/start", **same).text
    nothing = client.write("/compare/start", a="documents", b="documents:candidates=5").text
    assert "the log has no searches" in nothing


def test_a_vote_for_a_side_is_one_for_its_setting() -> None:
    contest = Contest(Variant("a"), Variant("b"), [str(number) for number in range(40)])
    sides = set()
    while contest.questions:
        duel = contest.ask()
        sides.add(duel.left)
        assert contest.vote(duel.identifier, "left" if duel.left == "a" else "right")
        assert not contest.vote(duel.identifier, "left")
    assert sides == {"a", "b"}
    assert contest.counts == {"a": 40}
    assert contest.p < 1e-9
    assert sign_test(0, 0) == 1
    assert sign_test(5, 0) == pytest.approx(0.0625)
    assert sign_test(8, 2) == pytest.approx(0.109375)


def test_status_tells_of_all_and_backfill_has_workers_encode(
    client: Client, connection: psycopg.Connection[Any]
) -> None:
    connection.execute("SELECT pgrerank.alter_reranker('documents', log_sample => 1)")
    connection.execute("SELECT * FROM pgrerank.documents_search('a <b>logged</b> cat')")
    page = client.get("/status").text
    assert "alive" in page
    assert "a &lt;b&gt;logged&lt;/b&gt; cat" in page
    for name in ("embedding", "tokens", "reranker", "in use", "late_interaction"):
        assert name in page
    now = client.wait(client.write("/backfill", reranker="documents"))
    assert (now["state"], now["message"]) == ("done", "nothing was missing")
    connection.execute("SELECT pgrerank.alter_reranker('documents', log_sample => 0)")
    assert client.write("/backfill", reranker="none").status_code == 422


def test_connections_that_are_lost_are_made_again(
    client: Client, connection: psycopg.Connection[Any]
) -> None:
    client.get("/status")
    [lost] = connection.execute(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
        " WHERE application_name = 'pgrerank studio' AND datname = current_database()"
    ).fetchone()
    assert lost > 0
    while connection.execute(
        "SELECT FROM pg_stat_activity"
        " WHERE application_name = 'pgrerank studio' AND datname = current_database()"
    ).fetchall():
        time.sleep(0.01)
    assert client.get("/status").status_code == 200


def test_a_role_without_rights_is_told_so_and_the_rest_works(
    encoded_dsn: str, connection: psycopg.Connection[Any], make_role: Any, tmp_path: Path
) -> None:
    role = make_role()
    connection.execute(f"GRANT USAGE ON SCHEMA pgrerank TO {role}")
    dsn = make_conninfo(encoded_dsn, user=role, password=role)
    with studio(dsn, tmp_path) as address, Client(address) as client:
        page = client.get("/", params={"query": QUERY})
        assert page.status_code == 422
        assert "permission denied" in page.text
        status = client.get("/status").text
        assert f"as</span> {role}" in status
        assert "permission denied" in status
        assert "alive" in status
        connection.execute(f"GRANT SELECT ON documents TO {role}")
        page, _ = searched(client)
        trace = ask_one(connection, Variant("documents"), QUERY)
        assert columns(page)[-1] == trace.order("cross_encoder")[:10]
        refused = client.write("/judge", set="a", query="b", key="1", relevance="2")
        assert refused.status_code == 422
        assert f"TO &#34;{role}&#34;;" in refused.text
        assert f"TO &#34;{role}&#34;;" in client.get("/measure").text
        connection.execute(f"GRANT ALL ON pgrerank.queries, pgrerank.qrels TO {role}")
        assert client.write("/judge", set="a", query="b", key="1", relevance="2").json()
    connection.execute(f"DROP OWNED BY {role}")


def test_without_a_worker_it_shows_what_is_left_and_why(
    db: psycopg.Connection[Any], dsn: str, other: Client, tiny_models: Any, tmp_path: Path
) -> None:
    page = other.get("/").text
    assert "There is no reranker yet" in page
    [command] = re.findall("<pre><code>pgrerank (.*)</code></pre>", page)
    told = CliRunner().invoke(app, [*command.split(), "--dsn", dsn])
    assert 'relation "documents" does not exist' in told.output
    set_up(db, tiny_models, [])
    page = other.get("/", params={"query": "pool"}).text
    assert "No document was found" in page
    db.execute("INSERT INTO documents (title, body) VALUES ('Pools', 'the pool')")
    page = other.get("/", params={"query": "pool"}).text
    assert "Degraded:" in page
    assert "MaxSim" in page.split("Left out:")[1]
    started = other.write("/backfill", reranker="documents")
    progress = other.get(f"{started.url.path}/progress").json()
    while progress["phase"] == "starting":
        progress = other.get(f"{started.url.path}/progress").json()
    assert progress["phase"].startswith("waiting for a worker: run pgrerank worker")
    other.write(f"{started.url.path}/stop")
    assert other.wait(started)["state"] == "stopped"
    other.write("/judge", set="mine", query="pool", key="1", relevance="2")
    failed = other.wait(other.write("/jobs", set="mine", variant="documents", work="measure"))
    assert "no worker is known" in failed["message"]
    with worker(dsn, tmp_path) as running:
        wait_for(db, "pending = 0 AND encoded = source_rows")
        page = other.get("/", params={"query": "pool"}).text
        assert (len(columns(page)), "Degraded:" in page) == (4, False)
        running.signal(signal.SIGKILL)
        page = other.get("/", params={"query": "pool"}).text
        assert (len(columns(page)), "Degraded:" in page) == (1, True)
        fields = {"a": "documents", "b": "documents:candidates=20", "questions": "pool"}
        assert "while searches are degraded" in other.write("/compare/start", **fields).text


def test_the_command_says_what_stands_in_its_way(empty_dsn: str, dsn: str) -> None:
    run = CliRunner().invoke
    result = run(app, ["studio", "--dsn", empty_dsn, "--no-open"])
    assert (result.exit_code, "has no pgrerank: run pgrerank install" in result.stderr) == (1, True)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = run(app, ["studio", "--dsn", dsn, "--port", port, "--no-open"])
    assert result.exit_code == 1
    assert f"port {port} on 127.0.0.1 can't be had: Address already in use" in result.stderr


@pytest.mark.parametrize(
    "variant",
    [
        Variant("documents"),
        Variant("documents", 3, candidates=50, stages=["dense", "maxsim"], timeout="5 min"),
        Variant("documents", blend={"dense": 0.5, "maxsim": 2}, early_exit=0.1),
    ],
)
def test_a_variant_is_told_as_it_is_parsed(variant: Variant) -> None:
    assert parse_variant(variant.text) == variant
    assert json.dumps(variant.text)


def test_bits_and_signals_and_words_alone(
    client: Client, connection: psycopg.Connection[Any]
) -> None:
    """Rerankers of other stages: one that looks at bits, one with signals, one without models."""
    connection.execute(
        "SELECT pgrerank.create_reranker('bits', 'documents', '{title,body}', embedding_model =>"
        " 'embedding', late_interaction_model => 'tokens', maxsim_bit_top => 4),"
        " pgrerank.create_reranker('words', 'documents', '{body}',"
        """ signals => '{"id": {"log": true, "weight": 0.5}}')"""
    )
    wait_for(connection, "pending = 0 AND encoded = source_rows")
    page, identifier = searched(client, reranker="bits", shown="20")
    trace = ask_one(connection, Variant("bits"), QUERY)
    assert columns(page) == [trace.order(stage) for stage in trace.stages]
    assert trace.stages == ["dense", "lexical", "maxsim_bit", "maxsim"]
    knobs = {"knobs": 1, "search": identifier, "stage": trace.stages, "shown": 20}
    moved = client.get("/orders", params=knobs | {"maxsim_bit_top": 2, "weight_maxsim": 0.9})
    blend = {"dense": 0.28, "lexical": 0.14, "maxsim": 0.9}
    wanted = ask_one(connection, Variant("bits", maxsim_bit_top=2, blend=blend), QUERY)
    assert columns(moved.text) == [wanted.order(stage) for stage in wanted.stages]
    more = client.get("/orders", params=knobs | {"maxsim_bit_top": 9}).text
    assert "MaxSim scored 4, not 9" in more
    page, identifier = searched(client, reranker="words")
    assert len(columns(page)) == 1
    moved = client.get("/orders", params={"knobs": 1, "search": identifier, "candidates": 11}).text
    assert "Signals, groups and diversity join when you ask again" in moved
    key = columns(page)[0][0]
    why = client.get("/why", params={"search": identifier, "key": key}).text
    assert re.search(r"Signals add <b>[-+]\d\.\d+</b>", why)
    assert "no late-interaction model" in why
    connection.execute("SELECT pgrerank.drop_reranker('bits'), pgrerank.drop_reranker('words')")
