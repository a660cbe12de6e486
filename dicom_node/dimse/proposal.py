"""The negotiation of an association that we ask for: what is proposed, and what the peer made of it. Pure.

Of each pair of SOP class and transfer syntax at hand one presentation context is proposed, and nothing else, since
receivers differ in what they take; and of each class one more with the plain little endian syntaxes that are not at
hand, for the peer that refuses a pair: its objects are transcoded then. Each context stands by itself, so that a peer
never chooses a syntax that we would have to transcode to while it would have taken the object as it is.

pynetdicom's PDU classes encode and decode; its threads and sockets are not used.
Sources: DICOM PS3.8 9.3.2 (A-ASSOCIATE-RQ), 9.3.3 (AC), 9.3.4 (RJ), Table 9-21 (reasons), D.1 (maximum length).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from pydicom.uid import UID
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.presentation import build_context

from dicom_node.dimse.contexts import (
    APPLICATION_CONTEXT,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    user_information,
)
from dicom_node.dimse.pdu import AbortReason, ProtocolError

Pair: TypeAlias = tuple[str, str]
"""SOP class and transfer syntax."""

MOST_CONTEXTS: Final = 128
"""Identifiers are odd and have one byte (PS3.8 9.3.2.2)."""
MAX_PDU: Final = 131072
"""Bytes that we take in one PDU, and the most that we send in one."""

_PLAIN: Final = (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN)
_ACCEPTED: Final = 0
_MALFORMED: Final = (
    *(AssertionError, AttributeError, LookupError, NotImplementedError, TypeError, ValueError),
    struct.error,
)
"""What pynetdicom raises while it decodes an A-ASSOCIATE-AC that is none."""

_REJECTIONS: Final[dict[tuple[int, int], str]] = {
    # (source, diagnostic) of A-ASSOCIATE-RJ, PS3.8 Table 9-21
    (1, 1): "it gives no reason",
    (1, 2): "it does not know the DICOM application context",
    (1, 3): "it does not know our AE title",
    (1, 7): "it does not answer to the AE title that we called",
    (2, 1): "it gives no reason",
    (2, 2): "it does not support this protocol version",
    (3, 1): "it is congested for now",
    (3, 2): "it has as many associations as it allows",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposed:
    """One presentation context of a request: a class in one of some transfer syntaxes."""

    sop_class_uid: str
    transfer_syntax_uids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """One presentation context that the peer accepts."""

    context_id: int
    sop_class_uid: str
    transfer_syntax_uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """What the peer answered to a proposal."""

    contexts: tuple[Accepted, ...]
    max_pdu: int
    """Bytes that the peer takes in one P-DATA-TF; 0 for no limit."""


def contexts_of(pairs: Iterable[Pair]) -> list[Proposed]:
    """Return the contexts to propose for objects of these kinds: the pairs, then what they may be transcoded to."""
    syntaxes: dict[str, list[str]] = {}
    for sop_class_uid, transfer_syntax_uid in dict.fromkeys(pairs):
        syntaxes.setdefault(sop_class_uid, []).append(transfer_syntax_uid)
    own = [Proposed(sop_class_uid=uid, transfer_syntax_uids=(one,)) for uid, some in syntaxes.items() for one in some]
    plain = {uid: tuple(syntax for syntax in _PLAIN if syntax not in some) for uid, some in syntaxes.items()}
    return own + [Proposed(sop_class_uid=uid, transfer_syntax_uids=some) for uid, some in plain.items() if some]


def chosen(contexts: Sequence[Accepted], pair: Pair) -> Accepted | None:
    """Return the context in which an object of this kind goes: as it is, else transcoded; None when there is none."""
    sop_class_uid, own = pair
    by_syntax = {one.transfer_syntax_uid: one for one in contexts if one.sop_class_uid == sop_class_uid}
    return next((by_syntax[syntax] for syntax in (own, *_PLAIN) if syntax in by_syntax), None)


def request(contexts: Sequence[Proposed], *, called_ae: str, calling_ae: str) -> bytes:
    """Return the A-ASSOCIATE-RQ that proposes `contexts` in their order.

    Raises
    ------
    ValueError
        When an AE title is none.
    """
    primitive = A_ASSOCIATE()
    primitive.application_context_name = UID(APPLICATION_CONTEXT)
    primitive.calling_ae_title, primitive.called_ae_title = calling_ae, called_ae
    definitions = []
    for number, context in enumerate(contexts):
        definition = build_context(context.sop_class_uid, list(context.transfer_syntax_uids))
        definition.context_id = _context_id(number)
        definitions.append(definition)
    primitive.presentation_context_definition_list = definitions
    primitive.user_information = list(user_information(MAX_PDU))
    pdu = A_ASSOCIATE_RQ()
    pdu.from_primitive(primitive)
    return pdu.encode()


def agreement(answer: bytes, contexts: Sequence[Proposed]) -> Agreement:
    """Return what an A-ASSOCIATE-AC says to the proposed `contexts`.

    Raises
    ------
    ProtocolError
        When it cannot be read.
    """
    pdu = A_ASSOCIATE_AC()
    try:
        pdu.decode(answer)
        user_information = pdu.user_information
        max_pdu = user_information.maximum_length if user_information is not None else None
        results = {item.context_id: item for item in pdu.presentation_context if item.result == _ACCEPTED}
        accepted = []
        for number, context in enumerate(contexts):
            item = results.get(_context_id(number))
            # A peer that accepts in a syntax that was not proposed has not understood: as if it had refused.
            if item is not None and (syntax := str(item.transfer_syntax)) in context.transfer_syntax_uids:
                one = Accepted(
                    context_id=_context_id(number), sop_class_uid=context.sop_class_uid, transfer_syntax_uid=syntax
                )
                accepted.append(one)
    except _MALFORMED as error:
        words = f"the A-ASSOCIATE-AC cannot be read ({type(error).__name__})"
        raise ProtocolError(AbortReason.INVALID_PARAMETER, words) from error
    return Agreement(contexts=tuple(accepted), max_pdu=max_pdu or 0)


def rejection(answer: bytes) -> tuple[bool, str]:
    """Return whether an A-ASSOCIATE-RJ is transient, and its reason in words."""
    result, source, diagnostic = answer[7:10]
    return result == 2, _REJECTIONS.get((source, diagnostic), "it gives a reason that has no name")


def _context_id(number: int) -> int:
    return 2 * number + 1
