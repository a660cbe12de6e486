"""DIMSE in: who may call, C-ECHO and C-STORE, and bytes into filing."""

from dicom_node.receive.access import Denied, admit
from dicom_node.receive.faces import ReceiveEvents
from dicom_node.receive.listener import Listener

__all__ = ["Denied", "Listener", "ReceiveEvents", "admit"]
