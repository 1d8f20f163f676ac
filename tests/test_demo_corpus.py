from __future__ import annotations

import os
import shutil
import sys
import threading

import pytest

from pgrerank.demo.corpus import read_corpus
from pgrerank.demo.questions import load_qrels, load_questions
from pgrerank.errors import PgrerankError

KNOWN = [
    "len",
    "open",
    "str.split",
    "str.strip",
    "str.replace",
    "dict.get",
    "dict.update",
    "KeyError",
    "breakpoint",
    "array.array",
    "asyncio.gather",
    "argparse.ArgumentParser.add_argument",
    "bisect.bisect_right",
    "collections.OrderedDict",
    "concurrent.futures.ThreadPoolExecutor",
    "csv",
    "datetime.datetime.strptime",
    "email.mime.text.MIMEText",
    "io.IOBase.readlines",
    "ipaddress.ip_address",
    "ipaddress.IPv4Network.hosts",
    "json.JSONEncoder.encode",
    "json.loads",
    "logging.Logger.isEnabledFor",
    "multiprocessing.Process.join",
    "os.makedirs",
    "os.path.join",
    "pathlib.Path.read_text",
    "pathlib.PurePath.suffix",
    "random.shuffle",
    "re.Pattern.sub",
    "socket.socket.recv",
    "subprocess.run",
    "unittest.main",
    "unittest.mock.patch",
    "urllib.request.urlopen",
    "xml.etree.ElementTree.parse",
]
UNKNOWN = [
    "IOError",
    "array.ArrayType",
    "bisect.bisect",
    "encodings.cp037",
    "json.decoder.JSONDecoder",
    "posixpath.join",
    "random.Random.shuffle",
    "socket.SocketType",
    "this",
    "typing.sys",
    "unittest.case.TestCase",
]


@pytest.fixture(scope="module")
def corpus():
    return {entry.id: entry for entry in read_corpus()}


def test_thousands_of_entries_with_text_each_once(corpus):
    assert len(corpus) > 5000
    for entry in corpus.values():
        assert len(entry.text.split()) >= 3
        assert entry.title.startswith(entry.id)
        assert "\0" not in entry.text + entry.title
        assert entry.kind in {"module", "class", "function", "method", "property"}
    texts = [(entry.id.rpartition(".")[2], entry.text) for entry in corpus.values()]
    assert len(set(texts)) == len(texts)


def test_objects_go_by_the_names_people_know(corpus):
    assert set(KNOWN) <= corpus.keys()
    assert corpus.keys().isdisjoint(UNKNOWN)
    assert not [key for key in corpus if key.startswith("_") or "._" in key]


def test_inherited_members_count_where_they_are_defined(corpus):
    assert "datetime.date.strftime" in corpus
    assert "datetime.datetime.strftime" not in corpus  # inherited
    assert "pathlib.Path.suffix" not in corpus
    assert "asyncio.Task.result" not in corpus  # overridden, but it says the same


def test_a_class_that_says_nothing_speaks_through_its_init(corpus):
    assert "max_workers" in corpus["concurrent.futures.ThreadPoolExecutor"].text
    assert not [key for key, entry in corpus.items() if "See help(type(self))" in entry.text]
    assert "difflib.Match" not in corpus  # what namedtuple writes is no documentation


def test_nothing_tells_of_this_machine(corpus):
    for entry in corpus.values():
        assert sys.executable not in entry.title
        assert sys.prefix not in entry.title or sys.prefix == "/usr"
        assert " at 0x" not in entry.title


def test_two_readings_are_equal_even_among_files_that_shadow_modules(corpus, tmp_path, monkeypatch):
    (tmp_path / "random.py").write_text("raise SystemExit('not the real one')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONOPTIMIZE", "2")  # without docstrings
    ids = [entry.id for entry in read_corpus()]
    assert ids == sorted(corpus)
    assert {entry.id: entry for entry in read_corpus()} == corpus


def test_reading_leaves_this_process_alone(corpus):
    modules, threads, folder = set(sys.modules), threading.active_count(), os.getcwd()
    read_corpus()
    assert set(sys.modules) == modules
    assert (threading.active_count(), os.getcwd()) == (threads, folder)


@pytest.mark.parametrize("interpreter", [shutil.which("false") or "", "/nowhere/python"])
def test_an_interpreter_that_can_not_read_is_named(interpreter, monkeypatch):
    monkeypatch.setattr(sys, "executable", interpreter)
    with pytest.raises(PgrerankError, match=interpreter):
        read_corpus()


def test_questions_are_plain_and_different():
    questions = load_questions()
    assert len(questions) >= 64
    assert len({question.id for question in questions}) == len(questions)
    assert len({question.text.casefold() for question in questions}) == len(questions)
    assert sum(question.show for question in questions) == 12


def test_every_question_is_judged_and_every_judged_entry_exists(corpus):
    questions, qrels = load_questions(), load_qrels()
    assert [question.id for question in questions] == list(qrels)
    for relevant in qrels.values():
        assert set(relevant.values()) <= {1, 2}
        assert 2 in {relevant[key] for key in relevant.keys() & corpus.keys()}
    modules = {key.partition(".")[0] for key in corpus}  # some builds lack curses, ssl, sqlite3
    judged = {key for relevant in qrels.values() for key in relevant}
    lacking = {key for key in judged - corpus.keys() if key.partition(".")[0] in modules}
    assert len(lacking) <= len(judged) / 50
    if (3, 11, 7) <= sys.version_info < (3, 12):  # the judges' own; others document more or less
        assert not lacking


def test_no_judgement_stands_twice():
    from importlib.resources import files

    lines = (files("pgrerank.demo") / "qrels.tsv").read_text("utf-8").splitlines()[1:]
    assert len(lines) == sum(map(len, load_qrels().values()))
