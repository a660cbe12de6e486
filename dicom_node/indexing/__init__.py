"""From durable bytes to rows: what happens at the port is noted, shelved, described, written; in a process of its own.

receive --facts--> Reception --batches--> Indexer (process) --> Indexing --> shelf and rows
"""

from dicom_node.indexing.facts import Closed, Fact, Opened, Recovered
from dicom_node.indexing.process import Index, Indexer
from dicom_node.indexing.reception import LARGEST_BATCH, Reception, RejectOtherContent
from dicom_node.indexing.rows import Indexing, index_files

__all__ = [
    "LARGEST_BATCH",
    "Closed",
    "Fact",
    "Index",
    "Indexer",
    "Indexing",
    "Opened",
    "Reception",
    "Recovered",
    "RejectOtherContent",
    "index_files",
]
