from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pgrerank
from pgrerank.install.scripts import SCRIPTS

ROOT = Path(__file__).parents[1]
HEAVY = (
    *("torch", "sentence_transformers", "transformers", "onnxruntime", "sqlalchemy", "alembic"),
    *("jinja2", "scipy", "ir_measures", "mteb", "datasets", "peft"),
    *("django", "mcp", "haystack", "langchain_core", "llama_index"),
)


def test_a_wheel_carries_the_sql_and_the_demos_questions(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    [wheel] = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {f"pgrerank/sql/{path.name}" for path in (ROOT / "sql").glob("*.sql")}
    wanted |= {f"pgrerank/sql/upgrades/{p.name}" for p in (ROOT / "sql/upgrades").glob("*.sql")}
    wanted |= {
        f"pgrerank/migrations/{path.relative_to(ROOT / 'migrations')}"
        for path in (ROOT / "migrations").rglob("*.py")
    }
    native = ROOT / "native"
    for path in (*native.glob("*.[chs]*"), *native.glob("kernels/*"), native / "Makefile"):
        wanted.add(f"pgrerank/kernel_source/{path.relative_to(native)}")
    wanted |= {"pgrerank/py.typed", "pgrerank/demo/questions.tsv", "pgrerank/demo/qrels.tsv"}
    wanted |= {str(path.relative_to(ROOT)) for path in (ROOT / "pgrerank").rglob("*.jinja")}
    wanted.add("pgrerank/studio/static/studio.js")
    wanted = {name for name in wanted if not name.endswith((".o", ".so"))}
    assert wanted <= names
    assert not [name for name in names if "fuzz" in name]
    assert {file.name for file in SCRIPTS.numbered()} <= {Path(name).name for name in wanted}


def test_the_core_imports_without_the_optional_packages():
    program = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({HEAVY!r}))\n"  # None makes an import fail
        "import pgrerank, pgrerank.install.schema, pgrerank.tokens, pgrerank.models, pgrerank.cli\n"
        "import pgrerank.embedded, pgrerank.evaluation, pgrerank.worker.process\n"
        "import pgrerank.install.extension, pgrerank.testing.plugin\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_public_names_are_those_of_all():
    public = {
        name
        for name, value in vars(pgrerank).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("pgrerank")
    }
    assert public | {"__version__"} == set(pgrerank.__all__)
