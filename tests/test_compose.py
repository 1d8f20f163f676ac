"""docker-compose.yml and the images' Dockerfiles, as far as they can be held to without Docker."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import typer
import yaml
from psycopg.conninfo import conninfo_to_dict

from pgrerank.cli import app
from pgrerank.install import kernel
from pgrerank.worker.observing.metrics import Live, Metrics
from pgrerank.worker.observing.statistics import Said
from tests.helpers.sources import Source
from tests.helpers.workers import WorkerProcess, wait_for
from tests.test_native_install import embedded_pg_config, needs_compiler

ROOT = Path(__file__).parents[1]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
SERVICES: dict[str, Any] = COMPOSE["services"]
DOCKERFILES = sorted((ROOT / "docker").glob("*Dockerfile"))
ADDRESS = "worker:6432"


def instructions(dockerfile: Path) -> Iterator[tuple[str, str]]:
    """Its instructions with their arguments; continued lines are joined."""
    text = re.sub(r"^#.*\n", "", dockerfile.read_text("utf-8"), flags=re.MULTILINE)
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if line.strip():
            name, _, arguments = line.partition(" ")
            yield name, arguments


def variables() -> dict[str, str]:
    """Name and value of each line of .env.example."""
    lines = (ROOT / ".env.example").read_text("utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def interpolated(text: str, values: dict[str, str]) -> str:
    """What Compose makes of ${NAME}, ${NAME:-default} and ${NAME:?message}."""
    return re.sub(
        r"\$\{(\w+)(?::-(\w+)|:\?[^}]*)?\}", lambda found: values.get(found[1]) or found[2], text
    )


def environment(service: str, values: dict[str, str]) -> dict[str, str]:
    wanted = SERVICES[service]["environment"]
    return {name: interpolated(str(value), values) for name, value in wanted.items()}


def test_each_image_is_built_from_files_that_are_there_and_not_ignored():
    built = {ROOT / s["build"]["dockerfile"] for s in SERVICES.values() if "build" in s}
    assert built == set(DOCKERFILES)
    rules = (ROOT / ".dockerignore").read_text("utf-8").split()
    for dockerfile in DOCKERFILES:
        copied = []
        for name, arguments in instructions(dockerfile):
            if name == "COPY" and "--from" not in arguments:
                copied += arguments.split()[:-1]
            copied += re.findall(r"--mount=type=bind,source=([^,\s]+)", arguments)
        assert copied
        for path in copied:
            assert (ROOT / path).exists(), f"{dockerfile.name} copies {path}"
            assert f"!{path}" in rules, f".dockerignore keeps {path} from {dockerfile.name}"


def test_secrets_come_from_the_environment_alone():
    text = (ROOT / "docker-compose.yml").read_text("utf-8")
    used = dict(re.findall(r"\$\{(\w+)(:[-?])", text))
    assert used.keys() == variables().keys()
    secrets = {name for name, form in used.items() if form == ":?"}
    assert secrets == {"POSTGRES_PASSWORD", "PGRERANK_WORKER_PASSWORD"}
    assert all(variables()[name] == "" for name in secrets)
    for name, service in SERVICES.items():
        for key, value in service.get("environment", {}).items():
            if "PASSWORD" in key:
                assert re.fullmatch(r"\$\{\w+:\?[^}]+\}", value), f"{name}: {key}"
    for dockerfile in DOCKERFILES:
        assert "PASSWORD" not in dockerfile.read_text("utf-8")


def test_only_this_machine_reaches_the_ports():
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports
    for port in ports:
        assert interpolated(port, {}).startswith("127.0.0.1:")


def test_the_images_command_is_one_of_the_command_line():
    commands = dict(instructions(ROOT / "docker" / "worker.Dockerfile"))
    program, *arguments = yaml.safe_load(commands["CMD"])
    group = typer.main.get_command(app)
    with group.make_context(program, arguments) as context:
        name, command, rest = group.resolve_command(context, arguments)
        command.make_context(name, rest)


@needs_compiler
def test_the_kernel_is_built_as_the_image_builds_it(tmp_path):
    """The Dockerfile's own line; the compiler's flags must suit this machine's compiler."""
    [line] = [
        arguments
        for name, arguments in instructions(ROOT / "docker" / "Dockerfile")
        if name == "RUN" and arguments.startswith("make ")
    ]
    pg_config = embedded_pg_config()
    source, built = tmp_path / "kernel", tmp_path / "built"
    shutil.copytree(ROOT / "native", source, ignore=shutil.ignore_patterns("*.o", "*.so", "fuzz"))
    for there, here in (
        ("/usr/lib/postgresql/$PG_MAJOR/bin/pg_config", pg_config),
        ("/kernel", source),
        ("/built", built),
    ):
        assert there in line
        line = line.replace(there, str(here))
    subprocess.run([*line.split(), *kernel._compiler(pg_config)], check=True)
    share = kernel.pg_config_value(pg_config, "--sharedir")
    library = kernel.pg_config_value(pg_config, "--pkglibdir")
    assert {f"/{path.relative_to(built)}" for path in built.rglob("*") if path.is_file()} == {
        f"{library}/pgrerank_native.so",
        f"{share}/extension/pgrerank_native.control",
        f"{share}/extension/pgrerank_native--0.1.0.sql",
    }


def metrics_named(text: str) -> set[str]:
    """Metrics of ours in expressions."""
    return set(re.findall(r"\bpgrerank_\w+|\bprocess_\w+", text))


def dashboard_expressions() -> list[str]:
    dashboard = json.loads((ROOT / "docker/grafana/dashboards/pgrerank.json").read_text("utf-8"))
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def test_the_dashboard_and_the_alerts_name_metrics_that_a_worker_has():
    metrics = Metrics()
    metrics.watch(
        Live(
            waiting=dict,
            sessions=int,
            caches={},
            weights=list,
            said=lambda: Said(time.monotonic(), [], [], [], ()),
        )
    )
    there = set()
    for name, kind in re.findall(r"^# TYPE (\w+) (\w+)$", metrics.text().decode(), re.MULTILINE):
        there |= (
            {name + end for end in ("_bucket", "_sum", "_count")} if kind == "histogram" else {name}
        )
    expressions = dashboard_expressions()
    rules = yaml.safe_load((ROOT / "docker/prometheus/alerts.yml").read_text("utf-8"))
    expressions += [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    named = set().union(*map(metrics_named, expressions))
    assert len(named) > 15
    assert named <= there


def test_what_prometheus_and_grafana_mount_is_there_and_fits_together():
    for name in ("prometheus", "grafana"):
        assert SERVICES[name]["profiles"] == ["observe"]
        for volume in SERVICES[name]["volumes"]:
            if volume.startswith("./"):
                assert (ROOT / volume.partition(":")[0]).is_dir()
    folder = ROOT / "docker" / "grafana"
    source = yaml.safe_load((folder / "provisioning/datasources/prometheus.yml").read_text("utf-8"))
    dashboard = json.loads((folder / "dashboards/pgrerank.json").read_text("utf-8"))
    used = {panel["datasource"]["uid"] for panel in dashboard["panels"]}
    assert used == {source["datasources"][0]["uid"]}
    config = yaml.safe_load((ROOT / "docker/prometheus/prometheus.yml").read_text("utf-8"))
    [job] = config["scrape_configs"]
    assert job["static_configs"][0]["targets"][0] in SERVICES["worker"]["command"]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_prometheus_takes_its_configuration_and_alerts_fire_as_they_should(tmp_path):
    rules = [{"record": f"r{n}", "expr": e} for n, e in enumerate(dashboard_expressions())]
    dashboard = tmp_path / "dashboard.yml"
    dashboard.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    for command in (
        ["check", "config", "prometheus.yml"],
        ["test", "rules", "alerts_test.yml"],
        ["check", "rules", str(dashboard)],
    ):
        done = subprocess.run(
            ["promtool", *command],
            cwd=ROOT / "docker" / "prometheus",
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def run(command: list[str], settings: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """A service's command, with this Python."""
    program, *arguments = command
    start = {"pgrerank": [sys.executable, "-m", "pgrerank"], "python": [sys.executable]}[program]
    return subprocess.run(
        [*start, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | settings,
    )


@pytest.fixture
def settings(empty_dsn) -> dict[str, str]:
    """The services' environment, with an empty database of this machine in place of their own."""
    values = {"POSTGRES_PASSWORD": "unused", "PGRERANK_WORKER_PASSWORD": "a word for the worker"}
    given = environment("worker", values)
    assert given == environment("schema", values)
    dsn = conninfo_to_dict(empty_dsn)
    for name, key in {
        "PGHOST": "host",
        "PGPORT": "port",
        "PGUSER": "user",
        "PGPASSWORD": "password",
        "PGDATABASE": "dbname",
    }.items():
        if key in dsn:
            given[name] = str(dsn[key])
    return given


@pytest.fixture
def address() -> str:
    """Where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def test_after_the_services_have_started_a_search_works(
    empty_dsn, settings, address, tiny_models, tmp_path
):
    done = run(SERVICES["schema"]["command"], settings)
    assert done.returncode == 0, done.stderr

    host, port = address.split(":")
    there = {ADDRESS: address, "worker:9187": "127.0.0.1:0"}
    listening = [there.get(word, word) for word in SERVICES["worker"]["command"]]
    assert set(there.values()) <= set(listening)
    check = SERVICES["worker"]["healthcheck"]["test"][1:]
    assert 'host="worker", port=6432' in check[-1]
    check[-1] = check[-1].replace('host="worker", port=6432', f'host="{host}", port={port}')
    assert run(check, settings).returncode != 0

    worker = WorkerProcess("", tmp_path, *listening[2:], environment=settings)
    try:
        worker.wait_until_ready()
        healthy = run(check, settings)
        assert healthy.returncode == 0, healthy.stderr
        assert run(check, {**settings, "PGRERANK_WORKER_PASSWORD": "wrong"}).returncode != 0
        with psycopg.connect(empty_dsn, autocommit=True) as db:
            source = Source(db)
            source.models(**tiny_models)
            source.create(timeout="20 s")
            wait_for(db, "pending = 0")
            found = db.execute("SELECT stage, degraded FROM pgrerank.documents_search('bread')")
            assert found.fetchall() == [("cross_encoder", False)] * 3
        assert "metrics at http://127.0.0.1:" in worker.log.read_text("utf-8")
    finally:
        worker.close()
