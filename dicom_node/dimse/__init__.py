"""What receiving and sending have in common: presentation contexts, statuses, and the sender.

pynetdicom keeps two of its settings in a module; this is the one place that sets them, once, when it is imported.
"""

from pynetdicom import _config

from dicom_node.dimse.contexts import TRANSFER_SYNTAXES, acceptable_contexts, is_storage_class
from dicom_node.dimse.scu import EchoResult, RejectedAssociationError, SendResult, echo, send_files
from dicom_node.dimse.status import Verdict, classify, meaning

# Its default handlers format every PDU and message even when nobody listens, and print identifiers when somebody does.
_config.LOG_HANDLER_LEVEL = "none"
# A file given by its path is sent as it lies on the disk, piece by piece: no decoding, no encoding, flat memory.
_config.STORE_SEND_CHUNKED_DATASET = True

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
