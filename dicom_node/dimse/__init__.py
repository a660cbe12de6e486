"""What receiving and sending have in common: presentation contexts, statuses, and the sender.

Questions to a PACS are asked by `dicom_node.dimse.find`, which reads data sets: a receiver does without it.

pynetdicom keeps a setting in a module; this is the one place that sets it, once, when it is imported.
"""

from pynetdicom import _config

from dicom_node.dimse.contexts import TRANSFER_SYNTAXES, acceptable_contexts, is_storage_class
from dicom_node.dimse.requestor import RejectedAssociationError
from dicom_node.dimse.scu import EchoResult, SendResult, echo, send_files
from dicom_node.dimse.status import Verdict, classify, meaning

# Its default handlers format every PDU and message even when nobody listens, and print identifiers when somebody does.
_config.LOG_HANDLER_LEVEL = "none"

__all__ = [
    "TRANSFER_SYNTAXES",
    "EchoResult",
    "RejectedAssociationError",
    "SendResult",
    "Verdict",
    "acceptable_contexts",
    "classify",
    "echo",
    "is_storage_class",
    "meaning",
    "send_files",
]
