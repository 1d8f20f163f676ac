"""The documents that `pgrerank.claim` gives a worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pgrerank.passages import Structure


class Document(NamedTuple):
    """A claimed document.

    `prefix` is what models read in front of each of its passages, and `stored` has the passages
    that are stored: their hashes in hexadecimal by number. `is_encoded` says that nothing is to be
    done: it has gone, or is done.
    """

    key: str
    ticket: int
    content: str | None
    prefix: str | None
    content_hash: bytes
    is_encoded: bool
    stored: Mapping[str, str] | None


@dataclass(frozen=True)
class Claim:
    """Documents of one generation, and what is to be stored of them; as the SQL type `claimed`."""

    reranker: str
    generation: int
    embedding_model: str | None
    late_interaction_model: str | None
    token_precision: str
    token_dims: int | None
    token_pool: int
    token_bits: bool
    projection: str | None
    passage_size: int | None
    passage_overlap: int
    passage_structure: Structure
    keys: Sequence[str]
    tickets: Sequence[int]
    contents: Sequence[str | None]
    prefixes: Sequence[str | None]
    content_hashes: Sequence[bytes]
    are_encoded: Sequence[bool]
    stored_passages: Sequence[Mapping[str, str] | None]

    @property
    def documents(self) -> list[Document]:
        """The claimed documents."""
        columns = (
            *(self.keys, self.tickets, self.contents, self.prefixes, self.content_hashes),
            *(self.are_encoded, self.stored_passages),
        )
        return [Document(*values) for values in zip(*columns, strict=True)]

    @property
    def models(self) -> dict[str, str]:
        """The names of the models that encode them, by kind."""
        names = {
            "embedding": self.embedding_model,
            "late_interaction": self.late_interaction_model,
        }
        return {kind: name for kind, name in names.items() if name is not None}
