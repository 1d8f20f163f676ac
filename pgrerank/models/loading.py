"""Loading a sentence-transformers model: quietly, of the right kind, in the right precision."""

from __future__ import annotations

import copy
import json
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import huggingface_hub
import torch
from sentence_transformers import CrossEncoder, MultiVectorEncoder, SentenceTransformer
from sentence_transformers.util import get_device_name, load_file_path
from tokenizers import Tokenizer
from transformers.utils import logging as transformers_logging

from pgrerank.errors import ModelError
from pgrerank.models import device
from pgrerank.models.options import Options
from pgrerank.models.precision import choose
from pgrerank.models.source import Source, locate
from pgrerank.models.spec import ModelSpec, Precision
from pgrerank.models.windows import LARGEST_WINDOW, Cutter

Model = SentenceTransformer | MultiVectorEncoder | CrossEncoder
M = TypeVar("M", SentenceTransformer, MultiVectorEncoder, CrossEncoder)

# Where sentence-transformers keeps downloads; None stands for the hub's own cache.
_CACHE = os.environ.get("SENTENCE_TRANSFORMERS_HOME")
_CLASSIFIER = "ForSequenceClassification"
_COLBERT = ("HF_ColBERT", "ForRetrieval")
_log = logging.getLogger("pgrerank.models")
_quietening = threading.Lock()


def load(kind: type[M], spec: ModelSpec, options: Options) -> M:
    """Load ``spec`` as a sentence-transformers object; raises ModelError naming what to do.

    From a folder nothing is fetched. Code that comes with a model is never run.
    """
    source = locate(spec)
    try:
        with quiet():
            arguments = _arguments(source, options)
            _refuse_another_kind(spec, source, arguments["revision"])
            model: M = kind(source.name, **arguments)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"model {spec.name}: source {spec.source!r} can't be loaded by {spec.loader}:"
            f" {type(error).__name__}: {error}; {_remedy(source)}"
        ) from error
    model.eval()
    return model


def _arguments(source: Source, options: Options) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "device": _device(options),
        "revision": source.revision if source.is_local else _commit(source),
        "cache_folder": _CACHE,
        "local_files_only": source.is_local,
        "prompts": options.prompts(),
    }
    dtype = getattr(torch, precision(options).name, None)
    return arguments | ({} if dtype is None else {"model_kwargs": {"dtype": dtype}})


def _device(options: Options) -> str:
    return options.devices()[0] if options.devices() else str(get_device_name())


def precision(options: Options) -> Precision:
    """The precision that a model of these options is loaded in."""
    return choose(_device(options), options)


def _commit(source: Source) -> str | None:
    """Resolve a hub name's revision to a commit, from the cache if there is no network.

    All files then come from one commit; and without network or cache this fails at once, where each
    file would be tried again for half a minute.
    """
    # Early releases of huggingface_hub 1 can't.
    resolve = getattr(huggingface_hub, "resolve_revision", None)
    if resolve is None:
        return source.revision
    return str(resolve(source.name, revision=source.revision, cache_dir=_CACHE))


def _remedy(source: Source) -> str:
    if source.is_local:
        return "check that the folder holds a complete model of this kind"
    return "check the name and the network, or give a folder that holds the model"


def batch_tokens(model: Model, options: Options) -> int:
    """Tokens of one forward pass, padding included."""
    own = device.CPU_BATCH_TOKENS if model.device.type == "cpu" else device.GPU_BATCH_TOKENS
    return options.count("batch_tokens") or own


def copies(model: M, options: Options) -> list[M]:
    """The model, and a copy of it for each further device: those named, or all GPUs."""
    names: list[str] = options.devices()
    if not names and model.device.type == "cuda":
        names = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    found = [model]
    for name in names[1:]:
        found.append(copy.deepcopy(model))
        found[-1].to(name)
    return found


def at_once(models: Sequence[Model]) -> int:
    """Forward passes that are worth having under way."""
    return sum(device.AT_ONCE if model.device.type == "cuda" else 1 for model in models)


def cutter(model: Model, spec: ModelSpec) -> Cutter:
    """Make the cutter that cuts as this model's tokenizer counts."""
    tokenizer = model.tokenizer
    found = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not isinstance(found, Tokenizer):
        raise ModelError(
            f"model {spec.name}: its tokenizer {type(tokenizer).__name__} does not say where in the"
            " text a token stands, without which long texts can't be cut; it needs a tokenizer.json"
        )
    return Cutter(found)


def window_of(model: Model, options: Options) -> int:
    """Tokens that the model reads at once, special ones included."""
    limits: list[Any] = [model.max_seq_length, getattr(model.config, "max_position_embeddings", 0)]
    own = min((limit for limit in limits if limit), default=LARGEST_WINDOW)
    asked = options.count("max_tokens") or LARGEST_WINDOW
    return int(min(own, asked))


def _refuse_another_kind(spec: ModelSpec, source: Source, revision: str | None) -> None:
    """Refuse a checkpoint of another kind: the library would add layers of random weights to it."""
    names = ("config_sentence_transformers.json", "modules.json", "config.json")
    config, modules, backbone = (_json(source, revision, name) for name in names)
    saved = (config or {}).get("model_type")
    if saved is None and modules is not None:
        saved = "SentenceTransformer"  # as before that key existed
    architecture = ((backbone or {}).get("architectures") or [""])[0]
    fits = {
        "sentence_transformer": saved == "SentenceTransformer"
        or (saved is None and not architecture.endswith((*_COLBERT, _CLASSIFIER))),
        "multi_vector_encoder": saved in {"MultiVectorEncoder", "ColBERT"}
        or architecture.endswith(_COLBERT),
        "cross_encoder": saved == "CrossEncoder"
        or (saved is None and architecture.endswith((_CLASSIFIER, "ForCausalLM"))),
    }[spec.loader]
    if not fits:
        raise ModelError(
            f"model {spec.name}: source {spec.source!r} holds a {saved or architecture or 'model'}"
            f" that loader {spec.loader} can't read; choose the loader that fits it"
        )


def _json(source: Source, revision: str | None, file: str) -> Any:
    path = load_file_path(
        source.name,
        file,
        cache_folder=_CACHE,
        revision=revision,
        local_files_only=source.is_local,
    )
    return None if path is None else json.loads(Path(path).read_text("utf-8"))


class _Relay(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _log.debug("%s: %s", record.name, record.getMessage())


@contextmanager
def quiet() -> Iterator[None]:
    """Send what the libraries print to our logger (at DEBUG), and hide their progress bars.

    They report each weight that the checkpoint has too many, which says nothing about its use.
    Everything is put back as it was.
    """
    with _quietening:
        loggers = [logging.getLogger(name) for name in ("transformers", "sentence_transformers")]
        kept = [(logger, logger.handlers[:], logger.propagate) for logger in loggers]
        # Early releases of transformers 5 have no such hook; there a bar is shown.
        set_hook = getattr(transformers_logging, "set_tqdm_hook", lambda _hook: None)
        hook = set_hook(_no_bar)
        for logger in loggers:
            logger.handlers, logger.propagate = [_Relay()], False
        try:
            yield
        finally:
            set_hook(hook)
            for logger, handlers, propagate in kept:
                logger.handlers, logger.propagate = handlers, propagate


def _no_bar(factory: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return factory(*args, **{**kwargs, "disable": True})
