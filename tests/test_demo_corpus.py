from __future__ import annotations

import sys

import pytest

from pgrerank.demo.corpus import read_corpus
from pgrerank.demo.questions import load_qrels, load_questions


@pytest.fixture(scope="module")
def corpus():
    return {entry.id: entry for entry in read_corpus()}


def test_thousands_of_entries_with_text_each_once(corpus):
    assert len(corpus) > 4000
    assert len(corpus) == len(read_corpus())
    for entry in corpus.values():
        assert len(entry.text.split()) >= 3
        assert entry.title.startswith(entry.id)
        assert "\0" not in entry.text + entry.title
        assert entry.kind in {"module", "class", "function", "method", "property"}
    texts = [(entry.id.rpartition(".")[2], entry.text) for entry in corpus.values()]
    assert len(set(texts)) == len(texts)


def test_objects_go_by_the_names_people_know(corpus):
    known = {
        "os.path.join",
        "str.split",
        "str.replace",
        "len",
        "open",
        "dict.get",
        "asyncio.gather",
    }
    known |= {"pathlib.PurePath.suffix", "random.shuffle", "collections.OrderedDict", "json.loads"}
    assert known <= corpus.keys()
    assert not [key for key in corpus if key.startswith(("posixpath.", "_", "test."))]


def test_reading_leaves_this_process_alone():
    before = set(sys.modules)
    read_corpus()
    assert not {"this", "antigravity", "idlelib"} & (set(sys.modules) - before)


def test_two_readings_are_equal(corpus):
    assert list(corpus.values()) == read_corpus()


def test_every_question_is_judged_and_every_judged_entry_exists(corpus):
    questions, qrels = load_questions(), load_qrels()
    assert len(questions) >= 60
    assert len({question.text for question in questions}) == len(questions)
    assert [question.id for question in questions] == list(qrels)
    assert sum(question.show for question in questions) == 12
    for relevant in qrels.values():
        present = relevant.keys() & corpus.keys()
        assert present if sys.version_info[:2] != (3, 11) else present == relevant.keys()
        assert set(relevant.values()) <= {1, 2}
        assert 2 in relevant.values()
