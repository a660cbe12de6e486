"""From durable bytes to rows: what happens at the port is noted, shelved, described, written; in a process of its own.

    receive --facts--> Reception --batches--> Indexer (process) --> rows.Indexing --> shelf and rows

`rows` is imported by the process that indexes, and where its work is done without one: it brings the database and the
readers, which the listener does without.
"""

from dicom_node.indexing.facts import Closed, Fact, Opened, Recovered
from dicom_node.indexing.process import Index, Indexer
from dicom_node.indexing.reception import CALM_S, PATIENCE_S, Reception, RejectOtherContent

__all__ = [
    "CALM_S",
    "PATIENCE_S",
    "Closed",
    "Fact",
    "Index",
    "Indexer",
    "Opened",
    "Reception",
    "Recovered",
    "RejectOtherContent",
]
