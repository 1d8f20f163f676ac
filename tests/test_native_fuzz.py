"""What reads bytes in C, against bytes from anywhere: fuzzers' corpora, and short runs of both."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.test_native_install import embedded_pg_config

FUZZ = Path(__file__).parent.parent / "native" / "fuzz"
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def run(*arguments: str) -> str:
    done = subprocess.run(
        ["make", "-s", *arguments], cwd=FUZZ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


def _compiles(compiler: str | None, flags: str, folder: Path) -> bool:
    if compiler is None:
        return False
    source = folder / "probe.c"
    source.write_text(
        "int LLVMFuzzerTestOneInput(const char *b, unsigned long n) { return b && n > 9; }\n"
        + ("" if "fuzzer" in flags else "int main(void) { return 0; }\n")
    )
    command = [compiler, *flags.split(), "-o", str(folder / "probe"), str(source)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@needs_make
def test_the_corpus_is_read_without_a_fault(tmp_path):
    compiler = shutil.which("cc")
    if not _compiles(compiler, "-fsanitize=address,undefined", tmp_path):
        pytest.skip("no C compiler with sanitizers")
    inputs = len(list((FUZZ / "corpus").iterdir()))
    assert inputs > 100
    assert f"{inputs} inputs" in run("replay-kernel", f"BUILD={tmp_path}")


@needs_make
def test_what_a_worker_may_answer_is_read_without_a_fault(tmp_path):
    if not _compiles(shutil.which("cc"), "-fsanitize=address,undefined", tmp_path):
        pytest.skip("no C compiler with sanitizers")
    assert "52 inputs" in run(
        "replay-client", f"BUILD={tmp_path}", f"PG_CONFIG={embedded_pg_config()}"
    )


@needs_make
@pytest.mark.parametrize("parser", ["kernel", "client"])
def test_a_short_run_of_the_fuzzer_finds_nothing(tmp_path, parser: str):
    names = ("clang", *(f"clang-{version}" for version in range(22, 13, -1)))
    clang = next((path for name in names if (path := shutil.which(name))), None)
    if not _compiles(clang, "-fsanitize=fuzzer", tmp_path):
        pytest.skip("no clang with libFuzzer")
    said = run(
        *(
            f"fuzz-{parser}",
            f"BUILD={tmp_path}",
            f"CLANG={clang}",
            f"PG_CONFIG={embedded_pg_config()}",
        ),
        "SECONDS=5",
    )
    assert "stat::number_of_executed_units" in said
