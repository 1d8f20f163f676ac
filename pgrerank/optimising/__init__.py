"""Makes a registered cross-encoder faster on CPUs: an int8 graph, compared with the original."""

from pgrerank.optimising.folder import default_folder
from pgrerank.optimising.groups import users_of
from pgrerank.optimising.optimise import Settings, optimise
from pgrerank.optimising.verdict import Verdict

__all__ = ["Settings", "Verdict", "default_folder", "optimise", "users_of"]
