"""A database examined: what is wrong, how bad it is, and the line that mends it."""

from pgrerank.doctor.examine import examine
from pgrerank.doctor.finding import Finding, Severity

__all__ = ["Finding", "Severity", "examine"]
