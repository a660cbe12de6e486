"""The parser of PDUs: pieces of any size give the same messages, and nothing hostile is waited for."""

from __future__ import annotations

import contextlib
import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pynetdicom.pdu import A_ABORT_RQ, A_RELEASE_RP, A_RELEASE_RQ, P_DATA_TF
from pynetdicom.pdu_primitives import P_DATA

from dicom_node.dimse import pdu
from dicom_node.dimse.pdu import AbortReason, Control, Event, Fragment, Parser, PduType, ProtocolError

MAX_PDU = 1 << 14


def fed(parser: Parser, stream: bytes, cuts: list[int]) -> list[Event]:
    """Return the events of a stream that arrives in pieces, with payloads copied before the next piece comes."""
    events: list[Event] = []
    edges = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    for start, end in itertools.pairwise(edges):
        buffer = bytearray(stream[start:end])
        for event in parser.feed(memoryview(buffer)):
            if isinstance(event, Fragment):
                event = Fragment(event.context_id, event.is_command, event.is_last, memoryview(bytes(event.payload)))
            events.append(event)
        buffer[:] = bytes(len(buffer))
    return events


def joined(events: list[Event]) -> list[tuple[int, bool, bytes] | Control]:
    """Return whole messages: fragments up to the last one put together."""
    whole: list[tuple[int, bool, bytes] | Control] = []
    begun = b""
    for event in events:
        if isinstance(event, Control):
            whole.append(event)
            continue
        begun += event.payload
        if event.is_last:
            whole.append((event.context_id, event.is_command, begun))
            begun = b""
    return whole


MESSAGES = st.lists(
    st.tuples(st.sampled_from([1, 3, 255]), st.booleans(), st.binary(max_size=300)), min_size=1, max_size=6
)


@given(messages=MESSAGES, max_pdu=st.integers(7, 200), cuts=st.lists(st.integers(0, 10_000), max_size=40))
def test_a_stream_cut_anywhere_gives_the_messages_that_were_sent(
    messages: list[tuple[int, bool, bytes]], max_pdu: int, cuts: list[int]
) -> None:
    """Neither the peer's PDUs nor TCP's segments show in what comes out."""
    stream = b""
    for context_id, is_command, message in messages:
        for piece, is_last in pdu.pieces(memoryview(message), max_pdu):
            stream += pdu.data_head(context_id, len(piece), is_command=is_command, is_last=is_last) + piece
    parser = Parser(max_pdu)
    assert messages == joined(fed(parser, stream + pdu.RELEASE_RQ, cuts))[:-1]
    assert parser.is_between


@given(values=st.lists(st.tuples(st.sampled_from([1, 5]), st.binary(min_size=1, max_size=80)), min_size=1, max_size=5))
def test_several_values_in_one_pdu_are_told_apart(values: list[tuple[int, bytes]]) -> None:
    """A P-DATA-TF as pynetdicom encodes it may hold presentation data values of several contexts (PS3.8 9.3.5)."""
    primitive = P_DATA()
    primitive.presentation_data_value_list = [[context_id, b"\x02" + value] for context_id, value in values]
    encoded = P_DATA_TF()
    encoded.from_primitive(primitive)
    expected = [(context_id, False, value) for context_id, value in values]
    assert expected == joined(fed(Parser(MAX_PDU), encoded.encode(), [7, 9, 13]))


@given(junk=st.binary(min_size=1, max_size=200), cuts=st.lists(st.integers(0, 200), max_size=5))
def test_any_bytes_give_events_or_a_protocol_error(junk: bytes, cuts: list[int]) -> None:
    """Nothing else comes out, whatever goes in, and what is held back never exceeds the cap."""
    events: list[Event] = []
    with contextlib.suppress(ProtocolError):
        events = fed(Parser(MAX_PDU), junk, cuts)
    assert sum(len(event.payload) for event in events if isinstance(event, Fragment)) <= len(junk)


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (struct.pack(">BxI", 4, MAX_PDU + 1), AbortReason.INVALID_PARAMETER),
        (struct.pack(">BxI", 1, 0xFFFFFFFF), AbortReason.INVALID_PARAMETER),
        (struct.pack(">BxI", 4, 5), AbortReason.INVALID_PARAMETER),
        (struct.pack(">BxI", 5, 5), AbortReason.INVALID_PARAMETER),
        (struct.pack(">BxI", 7, 0), AbortReason.INVALID_PARAMETER),
        (struct.pack(">BxI", 8, 4), AbortReason.UNRECOGNISED_PDU),
        (struct.pack(">BxI", 0, 4), AbortReason.UNRECOGNISED_PDU),
        (struct.pack(">BxIIBB", 4, 10, 6, 1, 0), None),
        (struct.pack(">BxIIBB", 4, 10, 7, 1, 0), AbortReason.INVALID_PARAMETER),
        (struct.pack(">BxIIBB", 4, 10, 1, 1, 0), AbortReason.INVALID_PARAMETER),
        (struct.pack(">BxIIBB", 4, 10, 4, 1, 0), AbortReason.INVALID_PARAMETER),
    ],
)
def test_a_length_that_cannot_be_is_refused_before_it_is_waited_for(head: bytes, reason: AbortReason | None) -> None:
    """The header alone decides; a PDU at the limit passes."""
    parser = Parser(MAX_PDU)
    if reason is None:
        assert [] == joined(list(parser.feed(memoryview(head))))
        return
    with pytest.raises(ProtocolError) as caught:
        list(parser.feed(memoryview(head)))
    assert reason == caught.value.reason


def test_the_largest_pdu_that_we_announced_is_taken() -> None:
    """The limit itself is allowed."""
    head = pdu.data_head(1, MAX_PDU - 6, is_command=False, is_last=True)
    events = list(Parser(MAX_PDU).feed(memoryview(head + bytes(MAX_PDU - 6))))
    assert [(1, False, bytes(MAX_PDU - 6))] == joined(events)


def test_release_and_abort_are_those_of_the_standard() -> None:
    """What we write by hand, pynetdicom reads."""
    release, answer, abort = A_RELEASE_RQ(), A_RELEASE_RP(), A_ABORT_RQ()
    release.decode(pdu.RELEASE_RQ)
    answer.decode(pdu.RELEASE_RP)
    abort.decode(pdu.abort(2, AbortReason.UNEXPECTED_PDU))
    assert (release.encode(), answer.encode()) == (pdu.RELEASE_RQ, pdu.RELEASE_RP)
    assert (2, 2) == (abort.source, abort.reason_diagnostic)


def test_a_pdu_under_way_is_told_from_silence_between_pdus() -> None:
    """The deadline of a PDU begins with its first byte."""
    parser = Parser(MAX_PDU)
    assert parser.is_between
    list(parser.feed(memoryview(pdu.RELEASE_RQ[:1])))
    assert not parser.is_between
    (event,) = parser.feed(memoryview(pdu.RELEASE_RQ[1:]))
    assert isinstance(event, Control)
    assert (PduType.RELEASE_RQ, pdu.RELEASE_RQ, True) == (event.kind, event.content, parser.is_between)
