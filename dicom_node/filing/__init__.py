"""Durable bytes: received instances and our own results as immutable files, addressed by their content."""

from dicom_node.filing.disposal import Disposal
from dicom_node.filing.incoming import Incoming
from dicom_node.filing.objects import ResultStore
from dicom_node.filing.store import InstanceStore
from dicom_node.study import InstanceMeta

__all__ = ["Disposal", "Incoming", "InstanceMeta", "InstanceStore", "ResultStore"]
