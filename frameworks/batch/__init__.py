"""The batch framework: map and reduce over files, as tasks of a Meseta cluster.

Job files import `counter` from here; everything else is the framework's own.
"""

from frameworks.batch.counters import counter

__all__ = ["counter"]
