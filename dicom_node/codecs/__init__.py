"""Codecs: one frame as it lies in a file -> its stored values. Knows codestreams; no data sets, no volumes.

Stands below `reading`, and imports little, because helper processes that only decode load it again: most codecs hold
the interpreter lock while they work, so threads gain nothing where processes do (`pool`).
"""

from dicom_node.codecs.frame import ENCAPSULATED, FrameForm, Stored, decode_frame

__all__ = ["ENCAPSULATED", "FrameForm", "Stored", "decode_frame"]
