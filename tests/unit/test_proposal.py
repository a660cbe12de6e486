"""Claims on what is proposed to a peer, and on what is made of its answer."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import UID
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ
from pynetdicom.presentation import build_context

from dicom_node import ids
from dicom_node.dimse.pdu import ProtocolError
from dicom_node.dimse.proposal import (
    MAX_PDU,
    Accepted,
    Proposed,
    agreement,
    chosen,
    contexts_of,
    rejection,
    request,
)

MR, CT, PRIVATE = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.2", "1.9.1"
IMPLICIT, EXPLICIT, JPEG, RLE = (
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.4.50",
    "1.2.840.10008.1.2.5",
)


def proposed(*contexts: tuple[str, ...]) -> list[Proposed]:
    """Return contexts given as class and syntaxes."""
    return [Proposed(sop_class_uid=uid, transfer_syntax_uids=tuple(syntaxes)) for uid, *syntaxes in contexts]


def accepting(answers: dict[int, tuple[int, str]], *, max_pdu: int = 16384) -> bytes:
    """Return an A-ASSOCIATE-AC: context -> (result, syntax)."""
    asked = A_ASSOCIATE_RQ()
    asked.decode(request(proposed((MR, EXPLICIT)), called_ae="PACS", calling_ae="NODE"))
    primitive = asked.to_primitive()
    primitive.result, primitive.result_source = 0, 1
    results = []
    for context_id, (result, syntax) in answers.items():
        context = build_context(MR, [syntax])
        context.context_id, context.result = context_id, result
        results.append(context)
    primitive.presentation_context_definition_results_list = results
    primitive.user_information[0].maximum_length_received = max_pdu
    pdu = A_ASSOCIATE_AC()
    pdu.from_primitive(primitive)
    return pdu.encode()


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([(MR, JPEG)], [(MR, JPEG), (MR, EXPLICIT, IMPLICIT)]),
        ([(MR, EXPLICIT)], [(MR, EXPLICIT), (MR, IMPLICIT)]),
        ([(MR, IMPLICIT)], [(MR, IMPLICIT), (MR, EXPLICIT)]),
        ([(MR, EXPLICIT), (MR, IMPLICIT)], [(MR, EXPLICIT), (MR, IMPLICIT)]),
        ([(MR, RLE), (MR, EXPLICIT), (MR, RLE)], [(MR, RLE), (MR, EXPLICIT), (MR, IMPLICIT)]),
        ([(MR, RLE), (CT, RLE)], [(MR, RLE), (CT, RLE), (MR, EXPLICIT, IMPLICIT), (CT, EXPLICIT, IMPLICIT)]),
        ([], []),
    ],
)
def test_what_is_at_hand_is_proposed_and_a_way_out(
    pairs: list[tuple[str, str]], expected: list[tuple[str, ...]]
) -> None:
    """One context a pair, one more a class with the plain syntaxes that are not at hand; never the two mixed."""
    assert proposed(*expected) == contexts_of(pairs)


def accepted(*contexts: tuple[str, str]) -> list[Accepted]:
    """Return accepted contexts with identifiers 1, 3, 5."""
    return [
        Accepted(context_id=2 * number + 1, sop_class_uid=uid, transfer_syntax_uid=syntax)
        for number, (uid, syntax) in enumerate(contexts)
    ]


@pytest.mark.parametrize(
    ("contexts", "pair", "expected"),
    [
        ([(MR, EXPLICIT), (MR, JPEG)], (MR, JPEG), 3),
        ([(MR, IMPLICIT), (MR, EXPLICIT)], (MR, JPEG), 3),
        ([(MR, IMPLICIT)], (MR, JPEG), 1),
        ([(MR, IMPLICIT)], (MR, EXPLICIT), 1),
        ([(CT, EXPLICIT)], (MR, JPEG), None),
        ([(MR, RLE)], (MR, JPEG), None),
        ([], (MR, EXPLICIT), None),
    ],
)
def test_an_object_goes_as_it_is_or_plain(
    contexts: list[tuple[str, str]], pair: tuple[str, str], expected: int | None
) -> None:
    """Its own syntax first, then explicit, then implicit; never another class, never another compression."""
    context = chosen(accepted(*contexts), pair)
    assert expected == (None if context is None else context.context_id)


def test_others_read_our_request() -> None:
    """Titles, contexts with odd identifiers, our maximum and who we are."""
    contexts = proposed((MR, JPEG), (PRIVATE, EXPLICIT, IMPLICIT))
    pdu = A_ASSOCIATE_RQ()
    pdu.decode(request(contexts, called_ae="PACS", calling_ae="NODE"))
    primitive = pdu.to_primitive()
    assert ("PACS", "NODE") == (primitive.called_ae_title, primitive.calling_ae_title)
    assert "1.2.840.10008.3.1.1.1" == primitive.application_context_name
    definitions = primitive.presentation_context_definition_list
    assert [(1, MR, [JPEG]), (3, PRIVATE, [EXPLICIT, IMPLICIT])] == [
        (one.context_id, one.abstract_syntax, one.transfer_syntax) for one in definitions
    ]
    assert MAX_PDU == primitive.maximum_length_received
    assert UID(ids.IMPLEMENTATION_CLASS_UID) == primitive.implementation_class_uid


def test_an_acceptance_is_understood() -> None:
    """Refused contexts, and those accepted in a syntax that was not proposed, are none; the maximum is kept."""
    contexts = proposed((MR, JPEG), (MR, RLE), (MR, EXPLICIT, IMPLICIT), (MR, RLE))
    answer = accepting({1: (4, JPEG), 3: (0, RLE), 5: (0, IMPLICIT), 7: (0, JPEG), 99: (0, RLE)}, max_pdu=4096)
    understood = agreement(answer, contexts)
    assert [(3, RLE), (5, IMPLICIT)] == [(one.context_id, one.transfer_syntax_uid) for one in understood.contexts]
    assert 4096 == understood.max_pdu


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")  # pydicom's remark on the UID that was damaged
@settings(max_examples=200)
@given(at=st.integers(6, 200), byte=st.integers(0, 255), cut=st.integers(6, 300))
def test_a_damaged_acceptance_is_a_breach_of_the_protocol(at: int, byte: int, cut: int) -> None:
    """A flipped byte, a cut: an agreement or `ProtocolError`, nothing else."""
    answer = bytearray(accepting({1: (0, EXPLICIT)}))
    answer[min(at, len(answer) - 1)] = byte
    understood = None
    with suppress(ProtocolError):
        understood = agreement(bytes(answer[:cut]), proposed((MR, EXPLICIT)))
    assert understood is None or len(understood.contexts) <= 1


@pytest.mark.parametrize(
    ("result", "source", "diagnostic", "expected"),
    [
        (1, 1, 3, (False, "it does not know our AE title")),
        (2, 3, 2, (True, "it has as many associations as it allows")),
        (1, 2, 9, (False, "it gives a reason that has no name")),
    ],
)
def test_a_rejection_has_words(result: int, source: int, diagnostic: int, expected: tuple[bool, str]) -> None:
    """PS3.8 Table 9-21."""
    assert expected == rejection(bytes([3, 0, 0, 0, 0, 4, 0, result, source, diagnostic]))
