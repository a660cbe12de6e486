"""Association requests and their answers: pynetdicom's PDUs and its negotiation, and nothing else of it.

A request becomes a `Proposal`; the answer is made of bytes that the connection sends. Its threads, queues, timers and
state machine are not used: they poll every millisecond, copy each byte six times and trust lengths that a peer names.
Its decoder takes 15 microseconds for an item, so a request is asked for its titles first, and its items are counted.

Sources: DICOM PS3.8 9.3.2 to 9.3.4 (PDUs), 7.1.1 (parameters); PS3.7 Annex D (user information).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final, TypeAlias

from pydicom import config
from pydicom.uid import UID
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RJ, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.presentation import PresentationContext, negotiate_as_acceptor

from dicom_node.dimse.contexts import APPLICATION_CONTEXT, acceptable_contexts, user_information
from dicom_node.dimse.pdu import AbortReason, ProtocolError
from dicom_node.receive.access import Denied

_ACCEPTED: Final = 0
MOST_CONTEXTS: Final = 128
"""Their identifiers are the odd numbers of one byte (PS3.8 9.3.2.2)."""
MOST_ITEMS: Final = 1 << 13
"""Of a request, those inside others counted too: 128 contexts of 60 transfer syntaxes have fewer."""
_TITLES: Final = struct.Struct(">10x16s16s")
"""Called and calling AE title, behind PDU header, version and two reserved bytes (PS3.8 Table 9-11)."""
_ITEMS_START: Final = 74
_ITEM: Final = struct.Struct(">BxH")
_PRESENTATION_CONTEXT: Final = 0x20
_USER_INFORMATION: Final = 0x50
_CONTEXT_HEAD_BYTES: Final = 4
_REMEMBERED: Final = 32
"""Requests whose answers are kept; a scanner sends the same bytes with each association."""

# pydicom would show what strangers write into UIDs as warnings on our standard error; its switch is process-wide.
config.settings.reading_validation_mode = config.IGNORE

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


def titles(content: bytes) -> tuple[str, str]:
    """Return the calling and the called AE title of an A-ASSOCIATE-RQ, whatever else it holds.

    Raises
    ------
    ProtocolError
        When the bytes end before them.
    """
    if len(content) < _ITEMS_START:
        raise ProtocolError(AbortReason.INVALID_PARAMETER, "an association request that is cut short")
    called, calling = _TITLES.unpack_from(content)
    return _title(calling), _title(called)


def proposal(content: bytes) -> Proposal:
    """Return what an A-ASSOCIATE-RQ asks for.

    Raises
    ------
    ProtocolError
        When the bytes are none, or hold more items or contexts than a request can need.
    """
    calling_ae, called_ae = titles(content)
    _check_counts(content)
    try:
        request = A_ASSOCIATE_RQ()
        request.decode(content)
        primitive = request.to_primitive()
        contexts = tuple(primitive.presentation_context_definition_list)
        asked = Proposal(
            calling_ae=calling_ae,
            called_ae=called_ae,
            application_context=str(primitive.application_context_name),
            max_pdu=int(primitive.maximum_length_received or 0),
            contexts=contexts,
        )
    except Exception as error:  # boundary: bytes from strangers in a foreign decoder
        words = f"the association request cannot be read ({type(error).__name__})"
        raise ProtocolError(AbortReason.INVALID_PARAMETER, words) from error
    if not all(context.abstract_syntax and context.transfer_syntax for context in contexts):
        raise ProtocolError(AbortReason.INVALID_PARAMETER, "a presentation context without its syntaxes")
    if len({context.context_id for context in contexts}) < len(contexts):
        raise ProtocolError(AbortReason.INVALID_PARAMETER, "two presentation contexts with one identifier")
    return asked


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


@lru_cache(maxsize=_REMEMBERED)
def negotiated(content: bytes, *, max_pdu: int, takes_other_classes: bool) -> tuple[Proposal, bytes, Contexts]:
    """Return what an A-ASSOCIATE-RQ asks for, without its contexts, and what `accepted` gives for it.

    A request of 128 contexts costs 15 ms under the interpreter's lock, in which nothing else is received.

    Raises
    ------
    ProtocolError
        As `proposal`.
    """
    asked = proposal(content)
    answer, contexts = accepted(asked, max_pdu=max_pdu, takes_other_classes=takes_other_classes)
    return replace(asked, contexts=()), answer, contexts


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
    primitive: Any = A_ASSOCIATE()
    primitive.application_context_name = UID(APPLICATION_CONTEXT)
    primitive.calling_ae_title = asked.calling_ae
    primitive.called_ae_title = asked.called_ae
    primitive.result = _ACCEPTED
    primitive.result_source = 1
    primitive.presentation_context_definition_results_list = list(results)
    primitive.user_information = list(user_information(max_pdu))
    return primitive  # type: ignore[no-any-return]  # its attributes are declared narrower than their setters


def _title(padded: bytes) -> str:
    return padded.decode("ascii", "replace").strip()


def _check_counts(content: bytes) -> None:
    """Refuse a request that would take long to decode, before that is tried."""
    n_items = n_contexts = 0
    for kind, start, length in _items(content, _ITEMS_START, len(content)):
        n_items += 1
        n_contexts += kind == _PRESENTATION_CONTEXT
        if kind in (_PRESENTATION_CONTEXT, _USER_INFORMATION):
            head = _CONTEXT_HEAD_BYTES if kind == _PRESENTATION_CONTEXT else 0
            n_items += sum(1 for _item in _items(content, start + head, start + length))
        if n_contexts > MOST_CONTEXTS or n_items > MOST_ITEMS:
            raise ProtocolError(AbortReason.INVALID_PARAMETER, "an association request with too many items")


def _items(content: bytes, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Give type, start and length of the items between `position` and `end`, as far as they can be told."""
    end = min(end, len(content))
    while position + _ITEM.size <= end:
        kind, length = _ITEM.unpack_from(content, position)
        position += _ITEM.size
        yield kind, position, length
        position += length


@lru_cache(maxsize=512)
def _acceptable(uid: str, takes_other_classes: bool) -> Sequence[PresentationContext]:
    """Return our context of a class, made once: it is read and never changed."""
    return tuple(acceptable_contexts([uid], takes_other_classes=takes_other_classes))
