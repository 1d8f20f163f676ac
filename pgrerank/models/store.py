"""Loading models by their specs, each once."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from pgrerank.errors import ModelError
from pgrerank.models.source import locate
from pgrerank.models.spec import LOADERS, Encoder, ListwiseJudge, ModelSpec, Reranker

if TYPE_CHECKING:
    from pgrerank.models.http.model import HttpModel

Loaded = Encoder | Reranker | ListwiseJudge


class Weights(NamedTuple):
    """A model's bytes on a device, in a precision; specs of one checkpoint have one model, named by
    the first.
    """

    model: str
    device: str
    bytes: int
    precision: str


def load_encoder(spec: ModelSpec) -> Encoder:
    """Load a model of kind ``embedding`` or ``late_interaction``.

    Raises ModelError, naming model, source and remedy, if it can't be loaded or does not make what
    its kind promises.
    """
    return ModelStore().encoder(spec)


def load_reranker(spec: ModelSpec) -> Reranker:
    """Load a model of kind ``cross_encoder``; raises as :func:`load_encoder` does."""
    return ModelStore().reranker(spec)


def load_judge(spec: ModelSpec) -> ListwiseJudge:
    """Load a model of kind ``listwise``; raises as :func:`load_encoder` does."""
    return ModelStore().judge(spec)


class ModelStore:
    """Loads models when they are first asked for, and keeps them.

    Specs of one loader, source, revision and options share one object, so that an embedding and the
    token vectors of one checkpoint cost one copy in memory and one forward pass. May be used from
    several threads; models of different sources load at the same time.
    """

    def __init__(self) -> None:
        self._loaded: dict[str, Loaded] = {}
        self._names: dict[str, str] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def encoder(self, spec: ModelSpec) -> Encoder:
        """Give the encoder of ``spec``; raises as :func:`load_encoder` does."""
        _check_kind(spec, ("embedding", "late_interaction"))
        encoder = cast(Encoder, self._get(spec))
        if spec.loader == "http":  # whose kind says what it is asked for
            return encoder
        dims = encoder.embedding_dims if spec.kind == "embedding" else encoder.token_dims
        if dims is None:
            raise ModelError(
                f"model {spec.name}: source {spec.source!r} makes no vectors of kind {spec.kind};"
                " register it as another kind"
            )
        return encoder

    def reranker(self, spec: ModelSpec) -> Reranker:
        """Give the reranker of ``spec``; raises as :func:`load_reranker` does."""
        _check_kind(spec, ("cross_encoder",))
        return cast(Reranker, self._get(spec))

    def judge(self, spec: ModelSpec) -> ListwiseJudge:
        """Give the language model of ``spec``; raises as :func:`load_encoder` does."""
        _check_kind(spec, ("listwise",))
        return cast(ListwiseJudge, self._get(spec))

    def remote(self) -> list[HttpModel]:
        """The models behind endpoints that are loaded, in order of their names."""
        found = (model for model in self._loaded.values() if hasattr(model, "endpoint"))
        return sorted(cast(Iterable["HttpModel"], found), key=lambda model: model.name)

    def weights(self) -> list[Weights]:
        """What the models that run here take of which device."""
        return [
            Weights(self._names[key], device, size, cast(Any, model).precision.name)
            for key, model in sorted(self._loaded.items())
            for device, size in _sizes(model).items()
        ]

    def _get(self, spec: ModelSpec) -> Loaded:
        key = _identity(spec)
        with self._lock:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            if key not in self._loaded:
                self._names[key] = spec.name
                self._loaded[key] = _load(spec)
            return self._loaded[key]


def _sizes(model: Loaded) -> dict[str, int]:
    """By device, the bytes of a model's weights; of a graph those of its file."""
    if graph := getattr(model, "graph_bytes", 0):
        return {"cpu": graph}
    tensors = {
        tensor.data_ptr(): tensor
        for copy in getattr(model, "models", ())
        for tensor in (*copy.parameters(), *copy.buffers())
    }
    sizes: dict[str, int] = {}
    for tensor in tensors.values():
        sizes[str(tensor.device)] = sizes.get(str(tensor.device), 0) + tensor.nbytes
    return sizes


def _identity(spec: ModelSpec) -> str:
    """What specs of the same model have in common; endpoints say in their errors which it was."""
    options = json.dumps(dict(spec.options), sort_keys=True, default=repr)
    if spec.loader == "http":
        return json.dumps([spec.loader, spec.kind, spec.name, spec.source, spec.revision, options])
    source = locate(spec)
    return json.dumps([spec.loader, source.name, source.revision, options])


def _check_kind(spec: ModelSpec, wanted: tuple[str, ...]) -> None:
    if spec.kind not in wanted:
        raise ModelError(
            f"model {spec.name}: expected a model of kind {' or '.join(wanted)}, not {spec.kind}"
        )
    known = sorted({loader for loaders in LOADERS.values() for loader in loaders})
    if spec.loader not in known:
        raise ModelError(
            f"model {spec.name}: there is no loader {spec.loader!r}; there are {', '.join(known)}"
        )
    if spec.loader not in LOADERS[spec.kind]:
        raise ModelError(
            f"model {spec.name}: loader {spec.loader} makes no {spec.kind};"
            f" use {' or '.join(LOADERS[spec.kind])}"
        )


def _load(spec: ModelSpec) -> Loaded:
    loaders: dict[str, Callable[[ModelSpec], Loaded]] = {
        "sentence_transformer": _sentence_transformer,
        "multi_vector_encoder": _multi_vector_encoder,
        "cross_encoder": _cross_encoder,
        "onnx": _onnx,
        "http": _http,
    }
    try:
        return loaders[spec.loader](spec)
    except ImportError as error:
        raise ModelError(
            f"model {spec.name}: loader {spec.loader} needs {error.name or error};"
            " try: pip install 'pgrerank[worker]'"
        ) from error


# Imported where they are used: PyTorch takes seconds, and most of pgrerank works without it.


def _sentence_transformer(spec: ModelSpec) -> Encoder:
    from pgrerank.models.device import one_thread
    from pgrerank.models.encoders import SentenceTransformerEncoder

    with one_thread():
        return SentenceTransformerEncoder(spec)


def _multi_vector_encoder(spec: ModelSpec) -> Encoder:
    from pgrerank.models.device import one_thread
    from pgrerank.models.encoders import MultiVectorEncoderEncoder

    with one_thread():
        return MultiVectorEncoderEncoder(spec)


def _cross_encoder(spec: ModelSpec) -> Reranker:
    from pgrerank.models.cross_encoders import CrossEncoderReranker
    from pgrerank.models.device import one_thread

    with one_thread():
        return CrossEncoderReranker(spec)


def _onnx(spec: ModelSpec) -> Reranker:
    from pgrerank.models.onnx import OnnxReranker

    return OnnxReranker(spec)


def _http(spec: ModelSpec) -> Loaded:
    from pgrerank.models.http.listwise import HttpJudge
    from pgrerank.models.http.remote import HttpEncoder, HttpReranker

    if spec.kind == "listwise":
        return HttpJudge(spec)
    return HttpReranker(spec) if spec.kind == "cross_encoder" else HttpEncoder(spec)
