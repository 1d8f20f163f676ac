"""The doctor: a healthy database, and others that are really sick."""

from __future__ import annotations

import json
import platform
import re
import signal

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.types.json import Jsonb
from typer.testing import CliRunner

from pgrerank.cli import app
from pgrerank.doctor import Severity, examine
from tests.helpers.workers import asking, wait_for, worker


def doctor(dsn: str) -> tuple[int, dict[str, list[dict[str, str]]]]:
    """The command's exit code, and its findings by what they are about."""
    result = CliRunner().invoke(app, ["doctor", "--dsn", dsn, "--json"])
    assert result.exit_code in (0, 1, 2), result.output
    found: dict[str, list[dict[str, str]]] = {}
    for finding in json.loads(result.stdout):
        found.setdefault(finding["about"], []).append(finding)
    return result.exit_code, found


def serious(db) -> dict[str, str]:
    """Messages above a note, by what they are about."""
    return {f.about: f.message for f in examine(db) if f.severity > Severity.NOTE}


def remedy(db, about: str) -> str:
    [finding] = [f for f in examine(db) if f.about == about and f.severity > Severity.NOTE]
    assert finding.remedy
    return finding.remedy


@pytest.fixture
def encoded(db, source):
    """A reranker all of whose documents are encoded, without a model."""
    source.create(embedding_model=None, late_interaction_model=None, cross_encoder_model=None)
    source.encode_by_hand()
    return source


def test_a_healthy_database_has_notes_at_most(dsn, db, source, tiny_models, tmp_path):
    source.models(**tiny_models)
    source.create()
    with worker(dsn, tmp_path) as process:
        wait_for(db, "pending = 0 AND compared_at IS NOT NULL")
        code, found = doctor(dsn)
        assert code == 0, found
        assert {f["severity"] for findings in found.values() for f in findings} == {"note"}
        assert found["judgements"][0]["remedy"] == "pgrerank qrels judge SET documents"
        [version] = db.execute("SELECT version FROM pgrerank.workers").fetchone()
        assert version

        db.execute("UPDATE pgrerank.announcements SET version = '0.0.9'")
        assert "is of version 0.0.9" in next(iter(serious(db).values()))
        process.signal(signal.SIGSTOP)
        db.execute("SELECT pg_sleep(5.2)")
        code, found = doctor(dsn)
        assert code == 2
        assert "reach no worker" in found["searches"][0]["message"]
        [stopped] = [about for about in found if about.startswith("worker 1 at 127.0.0.1:")]
        assert found[stopped][0]["remedy"] == "pgrerank worker --register"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="withholds instructions of x86")
def test_a_model_in_float32_may_be_faster_in_int8(dsn, db, source, tiny_models, tmp_path):
    source.models(**tiny_models)
    source.create()
    with worker(dsn, tmp_path, "--preload", environment={"ONEDNN_MAX_CPU_ISA": "AVX2"}):
        with asking(db) as ask:
            [shown] = [row for row in ask("SHOW models") if row[0] == "reranker"]
        assert shown[-2] == "float32"
        assert re.fullmatch(r"bfloat16 is 0\.\d times as fast here", shown[-1])
        [kept] = db.execute("SELECT precisions FROM pgrerank.workers").fetchone()
        assert kept["reranker"] == {"name": "float32", "why": shown[-1]}
        [finding] = [f for f in doctor(dsn)[1]["reranker documents"] if "float32" in f["message"]]
        assert finding["severity"] == "note"
        assert finding["remedy"] == "pgrerank models optimise reranker --qrels SET"

        register = "SELECT pgrerank.register_model(%s, 'cross_encoder', '/g', loader => 'onnx')"
        for name, objections in (("o'slow", ["it is slow"]), ("o'int8", [])):
            db.execute(register, (name,))
            measures = {"optimise": {"of": "reranker", "objections": objections}}
            db.execute(
                "UPDATE pgrerank.models SET measures = %s WHERE name = %s", (Jsonb(measures), name)
            )
        [finding] = [f for f in doctor(dsn)[1]["reranker documents"] if "float32" in f["message"]]
        assert "o'int8 was faster" in finding["message"]
        db.execute(finding["remedy"])
        assert not any("float32" in f.message for f in examine(db))


def test_a_database_without_pgrerank_and_one_of_another_version(empty_dsn, dsn, db):
    code, found = doctor(empty_dsn)
    assert code == 2
    name = conninfo_to_dict(empty_dsn)["dbname"]
    assert found[f"database {name}"][0]["remedy"] == "pgrerank install"
    assert found["extension vector"][0]["remedy"] == "CREATE EXTENSION vector;"

    db.execute(
        "CREATE OR REPLACE FUNCTION pgrerank.schema_version() RETURNS text LANGUAGE sql"
        " AS 'SELECT ''0.0.1'''"
    )
    code, found = doctor(dsn)
    [finding] = found[f"database {db.info.dbname}"]
    assert (code, finding["remedy"]) == (2, "pgrerank install")
    assert finding["message"].startswith("has pgrerank 0.0.1, this package is")


def test_a_schema_that_lacks_something_is_told_of_by_each_check(db, encoded):
    db.execute("DROP VIEW pgrerank.checks; DROP VIEW pgrerank.status")
    found = serious(db)
    assert found == {"schema pgrerank": found["schema pgrerank"]}
    assert "does not exist" in found["schema pgrerank"]


def test_no_worker_though_a_reranker_wants_one(db, source):
    source.create()
    source.encode_by_hand()
    assert serious(db)["searches"] == "reach no worker: no worker is known"


def test_disabled_and_missing_triggers_are_mended_by_the_line_that_is_named(db, encoded):
    db.execute("ALTER TABLE documents DISABLE TRIGGER USER")
    assert "documents has triggers that are disabled" in serious(db)["reranker documents"]
    db.execute(remedy(db, "reranker documents"))
    assert serious(db) == {}
    for (name,) in db.execute(
        "SELECT tgname FROM pg_trigger WHERE tgrelid = 'documents'::regclass AND NOT tgisinternal"
    ).fetchall():
        db.execute(f'DROP TRIGGER "{name}" ON documents')
    assert "has no trigger" in serious(db)["reranker documents"]
    db.execute(remedy(db, "reranker documents"))
    assert serious(db) == {}


def test_documents_that_failed_wait_or_are_missing(db, encoded):
    db.execute("DELETE FROM pgrerank.documents_1 WHERE key = 1")
    assert "1 of 3 documents are neither" in serious(db)["reranker documents"]
    db.execute(remedy(db, "reranker documents"))
    db.execute("UPDATE pgrerank.pending SET enqueued_at = now() - interval '2 hours'")
    assert "the oldest for 7200 s" in serious(db)["reranker documents"]
    db.execute("UPDATE pgrerank.pending SET failed_at = now(), last_error = 'no such word'")
    assert "no such word" in serious(db)["reranker documents"]
    db.execute(remedy(db, "reranker documents"))
    encoded.encode_by_hand()
    assert serious(db) == {}


def test_rerankers_that_are_set_aside_or_whose_source_has_gone(db, encoded):
    db.execute(
        "INSERT INTO pgrerank.setbacks (reranker, generation, error, until)"
        " VALUES ('documents', 1, 'the model is gone', now() + interval '1 minute')"
    )
    assert "the model is gone" in serious(db)["reranker documents"]
    db.execute("DELETE FROM pgrerank.setbacks; DROP TABLE documents")
    assert "has been dropped" in serious(db)["reranker documents"]
    db.execute(remedy(db, "reranker documents"))
    assert serious(db) == {}


def test_indexes_missing_invalid_and_bloated(db, source):
    source.create(late_interaction_model=None, cross_encoder_model=None)
    db.execute("INSERT INTO documents (title) SELECT 'title ' || n FROM generate_series(1, 5000) n")
    vectors = "(SELECT array_agg(random()) FROM generate_series(1, 32) WHERE d.id > 0)::halfvec"
    db.execute(
        "INSERT INTO pgrerank.documents_1_passages (key, passage, embedding, hash, cut_hash)"
        f" SELECT d.id, 1, {vectors}, '', '' FROM documents d"
    )
    db.execute("VACUUM (ANALYZE) pgrerank.documents_1_passages")
    assert not any("index" in about for about in serious(db))
    db.execute("DELETE FROM pgrerank.documents_1_passages WHERE key > 50")
    db.execute("SELECT pg_stat_force_next_flush()")
    assert "dead rows" in serious(db)["table pgrerank.documents_1_passages"]
    db.execute(remedy(db, "table pgrerank.documents_1_passages"))
    [index] = [about for about in serious(db) if about.startswith("index")]
    assert "would do" in serious(db)[index]
    db.execute(remedy(db, index))
    assert not any("index" in about for about in serious(db))
    name = index.removeprefix("index ")
    db.execute("UPDATE pg_index SET indisvalid = false WHERE indexrelid = %s::regclass", (name,))
    assert "is invalid" in serious(db)[index]
    db.execute(f"DROP INDEX {name}")
    assert "no HNSW index" in serious(db)["table pgrerank.documents_1_passages"]
    db.execute(remedy(db, "table pgrerank.documents_1_passages"))
    assert not any("index" in f for f in serious(db).values())


def test_a_column_of_embeddings_without_an_index(db, source):
    db.execute("ALTER TABLE documents ADD COLUMN own vector(3)")
    source.create(
        embedding_model=None,
        embedding_column="own",
        late_interaction_model=None,
        cross_encoder_model=None,
    )
    assert "table documents" not in serious(db)
    db.execute("INSERT INTO documents (own) SELECT '[1,2,3]' FROM generate_series(1, 4000)")
    db.execute("ANALYZE documents")
    assert "has no vector index on own" in serious(db)["table documents"]
    db.execute(remedy(db, "table documents"))
    assert "table documents" not in serious(db)


def test_settings_that_cost_and_tables_larger_than_memory(dsn, db, encoded):
    for setting, value in {
        "effective_cache_size": "64kB",
        "work_mem": "64kB",
        "max_parallel_maintenance_workers": "0",
    }.items():
        db.execute(f"ALTER DATABASE {db.info.dbname} SET {setting} = '{value}'")
    code, found = doctor(dsn)
    assert code == 1
    assert "searches read from disk" in found["side tables"][0]["message"]
    assert found["work_mem"][0]["remedy"].startswith("ALTER SYSTEM SET work_mem = '16MB'")
    assert "one process" in found["max_parallel_maintenance_workers"][0]["message"]


def test_workers_without_rights_on_a_source(dsn, db, encoded, make_role):
    owner = make_role()
    db.execute(f"ALTER SCHEMA pgrerank OWNER TO {owner}")
    found = [finding.remedy for finding in examine(db) if finding.severity == Severity.ERROR]
    assert f"GRANT SELECT ON documents TO {owner};" in found
    for statement in found:
        db.execute(statement)
    db.execute("ALTER TABLE documents ENABLE ROW LEVEL SECURITY")
    assert "row-level security hides" in serious(db)["reranker documents"]
    db.execute(f"REASSIGN OWNED BY {owner} TO postgres; DROP OWNED BY {owner}")


def test_a_role_without_rights_is_told_what_it_can_not_see(dsn, encoded, make_role):
    role = make_role()
    code, found = doctor(make_conninfo(dsn, user=role, password=role))
    assert code == 1
    unseen = {finding["check"]: finding for finding in found[f"role {role}"]}
    assert "permission denied for" in unseen["queue.setbacks"]["message"]
    assert all("Traceback" not in finding["message"] for finding in unseen.values())


def test_min_relevance_without_a_calibration_and_degraded_searches(db, encoded):
    db.execute("SELECT pgrerank.alter_reranker('documents', min_relevance => 0.5)")
    assert "searches fail" in serious(db)["reranker documents"]
    db.execute("SELECT pgrerank.alter_reranker('documents', min_relevance => 0)")
    db.execute(
        "INSERT INTO pgrerank.counted_searches VALUES"
        """ ('documents', '{"total": 3}', '{"total": 3}', 'unreachable')"""
    )
    assert "100% of 1 searches were degraded: unreachable 1" in serious(db)["reranker documents"]
    db.execute(remedy(db, "reranker documents"))
    assert serious(db) == {}


def test_a_database_that_can_not_be_reached_is_no_healthy_one():
    for dsn in ("host=127.0.0.1 port=1", "nonsense"):
        result = CliRunner().invoke(app, ["doctor", "--dsn", dsn])
        assert result.exit_code == 3
        assert "error:" in result.stderr


def test_findings_are_printed_with_the_line_that_mends_them(empty_dsn):
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        connection.execute("CREATE EXTENSION vector; CREATE EXTENSION dblink")
    result = CliRunner().invoke(app, ["doctor", "--dsn", empty_dsn])
    assert "error    database" in result.stdout
    assert "         pgrerank install\n" in result.stdout
    assert result.stderr == "1 error, 0 warnings, 0 notes\n"
