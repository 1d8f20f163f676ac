"""From judged queries to a better model: triples, hard negatives, fine-tuning, the gate.

Importing this does not import PyTorch; training does.
"""

from pgrerank.training.triples import Triple, read_beir, read_triples, split, write_triples

__all__ = ["Triple", "read_beir", "read_triples", "split", "write_triples"]
