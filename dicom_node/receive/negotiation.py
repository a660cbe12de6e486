"""Association requests and their answers: pynetdicom's PDUs and its negotiation, and nothing else of it.

A request becomes a `Proposal`; the answer is made of bytes that the connection sends. Its threads, queues, timers and
state machine are not used: they poll every millisecond, copy each byte six times and trust lengths that a peer names.

Sources: DICOM PS3.8 9.3.2 to 9.3.4 (PDUs), 7.1.1 (parameters); PS3.7 Annex D (user information).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, TypeAlias

from pydicom.uid import UID
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RJ, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
)
from pynetdicom.presentation import PresentationContext, negotiate_as_acceptor

from dicom_node import ids
from dicom_node.dimse import acceptable_contexts
from dicom_node.dimse.pdu import AbortReason, ProtocolError
from dicom_node.receive.access import Denied

APPLICATION_CONTEXT: Final = "1.2.840.10008.3.1.1.1"
"""PS3.7 A.2.1: the only one there is."""
_ACCEPTED: Final = 0

Contexts: TypeAlias = Mapping[int, "AcceptedContext"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptedContext:
    """What may be sent under a presentation context."""

    abstract_syntax: str
    transfer_syntax: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Proposal:
    """An association request."""

    calling_ae: str
    called_ae: str
    application_context: str
    max_pdu: int
    """Bytes that the peer takes in one P-DATA-TF; 0: no limit."""
    contexts: Sequence[PresentationContext]


def proposal(content: bytes) -> Proposal:
    """Return what an A-ASSOCIATE-RQ asks for.

    Raises
    ------
    ProtocolError
        When the bytes are none.
    """
    try:
        request = A_ASSOCIATE_RQ()
        request.decode(content)
        primitive = request.to_primitive()
        return Proposal(
            calling_ae=str(primitive.calling_ae_title).strip(),
            called_ae=str(primitive.called_ae_title).strip(),
            application_context=str(primitive.application_context_name),
            max_pdu=int(primitive.maximum_length_received or 0),
            contexts=tuple(primitive.presentation_context_definition_list),
        )
    except Exception as error:  # boundary: bytes from strangers in a foreign decoder
        words = f"the association request cannot be read ({type(error).__name__})"
        raise ProtocolError(AbortReason.INVALID_PARAMETER, words) from error


def accepted(asked: Proposal, *, max_pdu: int, takes_other_classes: bool) -> tuple[bytes, Contexts]:
    """Return the A-ASSOCIATE-AC for a request, and the contexts by their identifier.

    Of several transfer syntaxes the one that stands first in our list is taken, not in the peer's.

    Parameters
    ----------
    max_pdu
        Bytes that we take in one P-DATA-TF.
    takes_other_classes
        Whether private and unknown storage classes are taken as well.
    """
    classes = {str(context.abstract_syntax) for context in asked.contexts}
    ours = [context for uid in sorted(classes) for context in _acceptable(uid, takes_other_classes)]
    results, _roles = negotiate_as_acceptor(list(asked.contexts), ours)
    answer = A_ASSOCIATE_AC()
    answer.from_primitive(_answer(asked, results, max_pdu))
    contexts = {
        context.context_id: AcceptedContext(
            abstract_syntax=str(context.abstract_syntax), transfer_syntax=str(context.transfer_syntax[0])
        )
        for context in results
        if context.result == _ACCEPTED and context.context_id is not None
    }
    return answer.encode(), contexts


def rejected(denied: Denied) -> bytes:
    """Return the A-ASSOCIATE-RJ."""
    primitive = A_ASSOCIATE()
    primitive.result = denied.result
    primitive.result_source = denied.source
    primitive.diagnostic = denied.diagnostic
    answer = A_ASSOCIATE_RJ()
    answer.from_primitive(primitive)
    return bytes(answer.encode())


def _answer(asked: Proposal, results: Sequence[PresentationContext], max_pdu: int) -> A_ASSOCIATE:
    length, implementation, version = (
        MaximumLengthNotification(),
        ImplementationClassUIDNotification(),
        ImplementationVersionNameNotification(),
    )
    length.maximum_length_received = max_pdu
    implementation.implementation_class_uid = UID(ids.IMPLEMENTATION_CLASS_UID)
    version.implementation_version_name = ids.IMPLEMENTATION_VERSION_NAME
    primitive: Any = A_ASSOCIATE()
    primitive.application_context_name = UID(APPLICATION_CONTEXT)
    primitive.calling_ae_title = asked.calling_ae
    primitive.called_ae_title = asked.called_ae
    primitive.result = _ACCEPTED
    primitive.result_source = 1
    primitive.presentation_context_definition_results_list = list(results)
    primitive.user_information = [length, implementation, version]
    return primitive  # type: ignore[no-any-return]  # its attributes are declared narrower than their setters


@lru_cache(maxsize=512)
def _acceptable(uid: str, takes_other_classes: bool) -> Sequence[PresentationContext]:
    """Return our context of a class, made once: it is read and never changed."""
    return tuple(acceptable_contexts([uid], takes_other_classes=takes_other_classes))
