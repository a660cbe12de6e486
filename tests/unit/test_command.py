"""Command sets by hand equal those of pydicom and pynetdicom, and broken ones are told."""

from __future__ import annotations

import contextlib
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import UID
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import decode, encode

from dicom_node.dimse import command
from dicom_node.dimse.pdu import ProtocolError

UIDS = st.from_regex(r"1\.[1-9][0-9]{0,8}(\.[1-9][0-9]{0,5}){1,6}", fullmatch=True)


def foreign(message: bytes) -> dict[str, object]:
    """Return what pydicom reads from a command set."""
    dataset = decode(BytesIO(message), True, True)
    return {element.keyword: element.value for element in dataset if element.keyword != "CommandGroupLength"}


@given(sop_class=UIDS, instance=UIDS, message_id=st.integers(0, 0xFFFF))
def test_a_request_that_we_write_is_what_others_read(sop_class: str, instance: str, message_id: int) -> None:
    """C-STORE-RQ of PS3.7 9.3.1.1."""
    expected = {
        "AffectedSOPClassUID": UID(sop_class),
        "CommandField": 1,
        "MessageID": message_id,
        "Priority": 0,
        "CommandDataSetType": 1,
        "AffectedSOPInstanceUID": UID(instance),
    }
    assert expected == foreign(command.store_request(message_id, sop_class, instance))


@given(sop_class=UIDS, instance=UIDS, message_id=st.integers(0, 0xFFFF), status=st.integers(0, 0xFFFF))
def test_a_response_names_the_request_that_it_answers(
    sop_class: str, instance: str, message_id: int, status: int
) -> None:
    """C-STORE-RSP of PS3.7 9.3.1.2, with the reason as Error Comment."""
    request = command.decoded(command.store_request(message_id, sop_class, instance))
    answer = command.response(request, status, "no space left while filing")
    expected = {
        "AffectedSOPClassUID": UID(sop_class),
        "CommandField": 0x8001,
        "MessageIDBeingRespondedTo": message_id,
        "CommandDataSetType": 0x0101,
        "Status": status,
        "ErrorComment": "no space left while filing",
        "AffectedSOPInstanceUID": UID(instance),
    }
    assert expected == foreign(answer)
    back = command.decoded(answer)
    assert (status, message_id, True) == (back.status, back.message_id_responded_to, back.is_response)


def test_an_echo_request_is_what_others_read() -> None:
    """C-ECHO-RQ of PS3.7 9.3.5.1: no data set, no instance."""
    expected = {
        "AffectedSOPClassUID": UID("1.2.840.10008.1.1"),
        "CommandField": 0x30,
        "MessageID": 9,
        "CommandDataSetType": 0x0101,
    }
    assert expected == foreign(command.echo_request(9))


def test_a_request_that_pynetdicom_writes_is_read() -> None:
    """Elements that we do not know are kept and harmless."""
    primitive = C_STORE()
    primitive.MessageID = 7
    primitive.AffectedSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.2")
    primitive.AffectedSOPInstanceUID = UID("1.2.3")
    primitive.Priority = 2
    primitive.DataSet = BytesIO(b"\x00")
    primitive.MoveOriginatorApplicationEntityTitle = "MOVER"
    message = C_STORE_RQ()
    message.primitive_to_message(primitive)
    content = encode(message.command_set, True, True)
    assert content is not None
    read = command.decoded(content)
    expected = (command.C_STORE_RQ, 7, "1.2.840.10008.5.1.4.1.1.2", "1.2.3", True)
    assert expected == (
        read.command_field,
        read.message_id,
        read.sop_class_uid,
        read.sop_instance_uid,
        read.has_data_set,
    )


@given(junk=st.binary(max_size=120))
def test_any_bytes_are_a_command_or_a_protocol_error(junk: bytes) -> None:
    """A command set comes from the wire."""
    read = None
    with contextlib.suppress(ProtocolError):
        read = command.decoded(junk)
    assert read is None or sum(map(len, read.elements.values())) <= len(junk)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00\x00\x00\x01",
        command.store_request(1, "1.2", "1.3")[:-1],
        b"\x08\x00\x16\x00\x02\x00\x00\x001\x00" + command.store_request(1, "1.2", "1.3"),
        command.store_request(1, "1.2", "1.3") + b"\x00\x00\x00\x01\x04\x00\x00\x00\x01\x00\x00\x00",
    ],
    ids=["empty", "cut short", "value cut short", "another group", "a number of four bytes"],
)
def test_what_is_no_command_set_is_refused(content: bytes) -> None:
    """The association is aborted then: nothing after it could be trusted."""
    with pytest.raises(ProtocolError):
        command.decoded(content)
