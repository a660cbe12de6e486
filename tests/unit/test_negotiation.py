"""Claims on negotiation: requestors accept how they are answered, and a stranger's bytes cost little."""

from __future__ import annotations

import inspect
import itertools
import socket
import struct
import threading
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import UID
from pynetdicom import AE, pdu, pdu_primitives, presentation
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RJ, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    AsynchronousOperationsWindowNegotiation,
    ImplementationClassUIDNotification,
    MaximumLengthNotification,
    SCP_SCU_RoleSelectionNegotiation,
    SOPClassCommonExtendedNegotiation,
    SOPClassExtendedNegotiation,
    UserIdentityNegotiation,
)
from pynetdicom.presentation import PresentationContext, build_context, negotiate_as_requestor

from dicom_node import ids
from dicom_node.dimse.contexts import (
    APPLICATION_CONTEXT,
    LOSSLESS,
    LOSSY,
    STORAGE_CLASSES,
    TRANSFER_SYNTAXES,
    UNCOMPRESSED,
    VERIFICATION,
)
from dicom_node.dimse.pdu import LARGEST_CONTROL_BYTES, ProtocolError
from dicom_node.receive import negotiation
from dicom_node.receive.access import NO_ROOM
from dicom_node.receive.negotiation import (
    MOST_CONTEXTS,
    MOST_ITEMS,
    Contexts,
    accepted,
    negotiated,
    proposal,
    rejected,
    titles,
)

MR = "1.2.840.10008.5.1.4.1.1.4"
PRIVATE = "1.3.12.2.1107.5.9.1"
IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
JPEG, JPEG_LOSSLESS = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.70"
JPIP = ("1.2.840.10008.1.2.4.94", "1.2.840.10008.1.2.4.95")
SMPTE = tuple(f"1.2.840.10008.1.2.7.{number}" for number in (1, 2, 3))
ABSTRACT, TRANSFER, CONTEXT, USER = 0x30, 0x40, 0x20, 0x50

Proposed = Sequence[tuple[str, Sequence[str]]]
"""Abstract syntax and its transfer syntaxes, one a context."""


def request(contexts: Proposed, *, more: Iterable[Any] = ()) -> bytes:
    """Return the A-ASSOCIATE-RQ that pynetdicom's own requestor would send; `more`: items of user information."""
    length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    length.maximum_length_received = 16382
    implementation.implementation_class_uid = UID("1.2.3")
    primitive = A_ASSOCIATE()
    primitive.application_context_name = UID(APPLICATION_CONTEXT)
    primitive.calling_ae_title, primitive.called_ae_title = "CT1", "NODE"
    primitive.presentation_context_definition_list = built(contexts)
    primitive.user_information = [length, implementation, *more]
    encoded = A_ASSOCIATE_RQ()
    encoded.from_primitive(primitive)
    return encoded.encode()


def built(contexts: Proposed) -> list[PresentationContext]:
    """Return the contexts with their identifiers."""
    made = [build_context(abstract, list(transfers)) for abstract, transfers in contexts]
    for number, context in enumerate(made):
        context.context_id = 2 * number + 1
    return made


def answered(contexts: Proposed, *, takes_other_classes: bool = True) -> tuple[bytes, Contexts]:
    """Return the A-ASSOCIATE-AC to a proposal, and the contexts."""
    return accepted(proposal(request(contexts)), max_pdu=131072, takes_other_classes=takes_other_classes)


def item(kind: int, content: bytes = b"") -> bytes:
    """Return an item of an association request (PS3.8 9.3.2)."""
    return struct.pack(">BxH", kind, len(content)) + content


def hand_made(*items: bytes, calling: str = "CT1", called: str = "NODE") -> bytes:
    """Return an A-ASSOCIATE-RQ around items that no library would write."""
    content = struct.pack(">H2x", 1) + f"{called:<16}{calling:<16}".encode("ascii") + bytes(32) + b"".join(items)
    return struct.pack(">BxI", 1, len(content)) + content


APPLICATION = item(0x10, APPLICATION_CONTEXT.encode("ascii"))
SYNTAXES = item(ABSTRACT, MR.encode("ascii")) + item(TRANSFER, EXPLICIT.encode("ascii"))


def context_item(context_id: int, syntaxes: bytes = SYNTAXES) -> bytes:
    """Return a presentation context item."""
    return item(CONTEXT, bytes((context_id, 0, 0, 0)) + syntaxes)


# Answers


CLASSES = st.sampled_from([VERIFICATION, PRIVATE, "1.2.840.10008.5.1.4.1.2.2.1", *sorted(STORAGE_CLASSES)])
SYNTAX_LISTS = st.lists(st.sampled_from([*TRANSFER_SYNTAXES, *JPIP, "1.2.3.4"]), min_size=1, max_size=8, unique=True)


@given(contexts=st.lists(st.tuples(CLASSES, SYNTAX_LISTS), min_size=1, max_size=MOST_CONTEXTS), takes=st.booleans())
def test_pynetdicoms_requestor_agrees_with_the_answer(contexts: Proposed, takes: bool) -> None:
    """Its own reading of our A-ASSOCIATE-AC has the contexts that we hold for accepted, and every one is answered."""
    answer, ours = answered(contexts, takes_other_classes=takes)
    decoded = A_ASSOCIATE_AC()
    decoded.decode(answer)
    primitive = decoded.to_primitive()
    theirs = negotiate_as_requestor(built(contexts), primitive.presentation_context_definition_results_list)
    assert len(contexts) == len(theirs)
    assert {number: (one.abstract_syntax, one.transfer_syntax) for number, one in ours.items()} == {
        context.context_id: (str(context.abstract_syntax), str(context.transfer_syntax[0]))
        for context in theirs
        if context.result == 0
    }
    assert all(one.transfer_syntax in contexts[number // 2][1] for number, one in ours.items())


def test_the_answer_says_who_we_are_and_what_we_take() -> None:
    """Our implementation, our maximum length, the peer's titles; no operations window: one at a time."""
    decoded = A_ASSOCIATE_AC()
    decoded.decode(answered([(MR, [EXPLICIT])])[0])
    primitive = decoded.to_primitive()
    assert ("CT1", "NODE") == (primitive.calling_ae_title, primitive.called_ae_title)
    assert 131072 == primitive.maximum_length_received
    assert ids.IMPLEMENTATION_CLASS_UID == primitive.implementation_class_uid
    assert 3 == len(primitive.user_information)


@pytest.mark.parametrize(
    ("offered", "taken"),
    [
        ([JPEG, JPEG_LOSSLESS, IMPLICIT, EXPLICIT], EXPLICIT),
        ([JPEG, JPEG_LOSSLESS, IMPLICIT], IMPLICIT),
        ([JPEG, JPEG_LOSSLESS], JPEG_LOSSLESS),
        ([JPEG], JPEG),
        ([*JPIP, *SMPTE, JPEG], JPEG),
    ],
)
def test_of_several_syntaxes_the_best_is_taken(offered: list[str], taken: str) -> None:
    """Uncompressed before lossless before lossy, in whatever order the peer offers them."""
    for order in itertools.permutations(offered):
        assert taken == answered([(MR, order)])[1][1].transfer_syntax


@given(offered=SYNTAX_LISTS)
def test_nothing_lossy_is_taken_where_better_is_offered(offered: list[str]) -> None:
    """The kind of what is taken is the best kind of what was offered."""
    kinds = (UNCOMPRESSED, LOSSLESS, LOSSY)
    best = [kind for kind in kinds if set(kind) & set(offered)][:1]
    contexts = answered([(MR, offered)])[1]
    assert best == [kind for kind in kinds for one in contexts.values() if one.transfer_syntax in kind]


@pytest.mark.parametrize("syntax", [*JPIP, *SMPTE, "1.2.840.10008.1.2.6.1", "1.2.3.4"])
def test_what_holds_no_pixels_is_never_accepted(syntax: str) -> None:
    """JPIP is a URL, SMPTE ST 2110 a stream, the others are nothing that we know; result 4 (PS3.8 Table 9-18)."""
    answer, contexts = answered([(MR, [syntax])])
    decoded = A_ASSOCIATE_AC()
    decoded.decode(answer)
    assert ({}, [4]) == (contexts, [context.result for context in decoded.presentation_context])


@pytest.mark.parametrize(("takes", "ids_taken"), [(True, [1, 3]), (False, [1])])
def test_private_classes_are_a_setting(takes: bool, ids_taken: list[int]) -> None:
    """Filed or rejected, one context at a time; a service of the standard that we lack is never taken."""
    proposed = [(MR, [EXPLICIT]), (PRIVATE, [EXPLICIT]), ("1.2.840.10008.5.1.4.1.2.2.1", [EXPLICIT])]
    assert ids_taken == sorted(answered(proposed, takes_other_classes=takes)[1])


def test_128_contexts_are_answered() -> None:
    """As many as there can be, several of one class among them."""
    classes = [*sorted(STORAGE_CLASSES)[:100], *[MR] * 28]
    contexts = answered([(uid, [IMPLICIT, EXPLICIT]) for uid in classes])[1]
    assert list(range(1, 256, 2)) == sorted(contexts)
    assert {EXPLICIT} == {context.transfer_syntax for context in contexts.values()}


def test_a_request_with_everything_on_it_is_understood() -> None:
    """User identity, asynchronous window, extended and common extended negotiation and roles change nothing."""
    identity, window, role = (
        UserIdentityNegotiation(),
        AsynchronousOperationsWindowNegotiation(),
        SCP_SCU_RoleSelectionNegotiation(),
    )
    identity.user_identity_type, identity.primary_field = 1, b"somebody"
    window.maximum_number_operations_invoked, window.maximum_number_operations_performed = 8, 8
    role.sop_class_uid, role.scu_role, role.scp_role = UID(MR), True, True
    extended, common = SOPClassExtendedNegotiation(), SOPClassCommonExtendedNegotiation()
    extended.sop_class_uid, extended.service_class_application_information = UID(MR), b"\x02\x00"
    common.sop_class_uid, common.service_class_uid = UID(MR), UID("1.2.840.10008.4.2")
    asked = proposal(request([(MR, [EXPLICIT])], more=[identity, window, role, extended, common]))
    assert ("CT1", "NODE", 16382) == (asked.calling_ae, asked.called_ae, asked.max_pdu)
    assert [1] == list(accepted(asked, max_pdu=16384, takes_other_classes=True)[1])


def test_a_rejection_carries_its_codes() -> None:
    """Result, source and reason stand where PS3.8 Table 9-21 has them."""
    decoded = A_ASSOCIATE_RJ()
    decoded.decode(rejected(NO_ROOM))
    assert (2, 3, 2) == (decoded.result, decoded.source, decoded.reason_diagnostic)


# Requests of strangers


def test_titles_are_read_without_the_rest() -> None:
    """A request whose items are junk still says who calls."""
    assert ("WHO", "NODE") == titles(hand_made(b"\xff" * 100, calling="WHO"))


def test_a_request_without_titles_is_none() -> None:
    """Cut short anywhere before its first item, it breaks the protocol."""
    whole = hand_made()
    assert ("CT1", "NODE") == titles(whole)
    for length in range(6, len(whole)):
        with pytest.raises(ProtocolError):
            titles(whole[:length])


@pytest.mark.parametrize(
    "items",
    [
        [context_item(1, item(TRANSFER, b"1.2.3"))],
        [context_item(1, item(ABSTRACT, b"1.2.3"))],
        [context_item(1, b"")],
        [context_item(1), context_item(1)],
        [context_item(1), context_item(3), context_item(1, SYNTAXES.replace(b".1.4", b".1.2"))],
        [context_item(2)],
        [b"\x20\x00\xff\xff"],
        [b"\x77" * 40],
        [context_item(1, SYNTAXES)[:-1]],
    ],
)
def test_broken_contexts_break_the_protocol(items: list[bytes]) -> None:
    """Without a syntax, with one identifier twice, even identifiers, lengths beyond the end: an abort, no surprise."""
    with pytest.raises(ProtocolError):
        proposal(hand_made(APPLICATION, *items))


@given(
    edits=st.lists(st.tuples(st.integers(6, 10_000), st.sampled_from("sdi"), st.binary(min_size=1, max_size=8))),
    takes=st.booleans(),
)
def test_whatever_a_request_holds_is_answered_or_a_breach(edits: list[tuple[int, str, bytes]], takes: bool) -> None:
    """Bytes replaced, taken out or put in anywhere: an answer that decodes, or ProtocolError, and no warning."""
    content = bytearray(request([(MR, [EXPLICIT, JPEG]), (PRIVATE, [IMPLICIT]), (VERIFICATION, [IMPLICIT])]))
    for place, kind, value in edits:
        at = 6 + place % (len(content) - 6)
        content[at : at + (0 if kind == "i" else len(value))] = b"" if kind == "d" else value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            asked = proposal(bytes(content))
        except ProtocolError:
            return
        if (asked.calling_ae, asked.called_ae) == ("CT1", "NODE"):
            A_ASSOCIATE_AC().decode(accepted(asked, max_pdu=16384, takes_other_classes=takes)[0])


def test_a_strange_uid_is_no_warning() -> None:
    """pydicom's would show a stranger's bytes on our standard error; here warnings are errors."""
    strange = item(ABSTRACT, b"1.2.840..1\x1b[2J") + item(TRANSFER, EXPLICIT.encode("ascii"))
    asked = proposal(hand_made(APPLICATION, context_item(1, strange)))
    assert "1.2.840..1\x1b[2J" == asked.contexts[0].abstract_syntax


LARGEST = LARGEST_CONTROL_BYTES - 68 - len(APPLICATION)
"""Bytes of items that fit into the largest request that the parser lets through."""


@pytest.mark.parametrize(
    "unit",
    [
        context_item(1),
        item(CONTEXT),
        item(CONTEXT, bytes((1, 0, 0, 0)) + item(TRANSFER, b"1.2") * 9000),
        item(USER, item(0x51, bytes(4)) * 8000),
        item(USER, item(0x56, b"\x00\x011\x00") * 8000),
        item(USER),
        APPLICATION,
    ],
    ids=["contexts", "empty contexts", "transfer syntaxes", "lengths", "extended", "empty", "application contexts"],
)
def test_a_request_full_of_items_is_refused_before_it_is_decoded(unit: bytes) -> None:
    """Decoding it would hold the interpreter for half a second, each time; counting its items takes milliseconds."""
    content = hand_made(APPLICATION, unit * (LARGEST // len(unit)))
    began_at = time.thread_time()
    with pytest.raises(ProtocolError, match="too many items"):
        proposal(content)
    assert 0.05 > time.thread_time() - began_at


def test_the_largest_honest_request_is_decoded() -> None:
    """128 contexts with every transfer syntax that we know are below the limit of items."""
    asked = proposal(request([(uid, TRANSFER_SYNTAXES) for uid in sorted(STORAGE_CLASSES)[:MOST_CONTEXTS]]))
    assert MOST_CONTEXTS == len(asked.contexts)
    assert MOST_CONTEXTS * (2 + len(TRANSFER_SYNTAXES)) + 10 < MOST_ITEMS


# What of pynetdicom this leans on

PARAMETERS: Mapping[str, Sequence[str]] = {
    "negotiate_as_acceptor": ("rq_contexts", "ac_contexts", "roles"),
    "build_context": ("abstract_syntax", "transfer_syntax"),
}


def test_the_pinned_version_of_pynetdicom_is_installed() -> None:
    """The names below are inner ones of this series: another one is judged first."""
    pins = (Path(__file__).parents[2] / "constraints.txt").read_text(encoding="utf-8")
    assert f"pynetdicom=={version('pynetdicom')}\n" in pins
    assert version("pynetdicom").startswith("3.0.")


@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_functions_of_pynetdicom_take_what_we_give(name: str) -> None:
    """The parameters of the functions that negotiation calls."""
    assert PARAMETERS[name] == tuple(inspect.signature(getattr(presentation, name)).parameters)


@pytest.mark.parametrize("name", ["A_ASSOCIATE_AC", "A_ASSOCIATE_RJ", "A_ASSOCIATE_RQ"])
def test_pdus_of_pynetdicom_turn_bytes_into_primitives(name: str) -> None:
    """`decode`, `encode`, `from_primitive` and `to_primitive` are there, with the one argument that we give."""
    made = getattr(pdu, name)()
    assert ["bytestream"] == list(inspect.signature(made.decode).parameters)
    assert ["primitive"] == list(inspect.signature(made.from_primitive).parameters)
    assert [[], []] == [list(inspect.signature(call).parameters) for call in (made.encode, made.to_primitive)]


def test_attributes_of_pynetdicom_mean_what_we_take_them_for() -> None:
    """Every attribute that negotiation reads or sets, with its type; results are 0 for accepted, 3 and 4 for not."""
    request_pdu = A_ASSOCIATE_RQ()
    request_pdu.decode(request([(MR, [EXPLICIT])]))
    primitive = request_pdu.to_primitive()
    assert 16382 == primitive.maximum_length_received
    assert APPLICATION_CONTEXT == primitive.application_context_name
    (context,) = primitive.presentation_context_definition_list
    assert (1, MR, [EXPLICIT]) == (context.context_id, context.abstract_syntax, context.transfer_syntax)
    settable = ["result", "result_source", "diagnostic", "user_information", "application_context_name"]
    settable += ["calling_ae_title", "called_ae_title", "presentation_context_definition_results_list"]
    assert [] == [name for name in settable if not hasattr(A_ASSOCIATE(), name)]
    assert hasattr(pdu_primitives.ImplementationVersionNameNotification(), "implementation_version_name")
    proposed = built([(MR, [EXPLICIT]), (MR, [JPIP[0]]), (PRIVATE, [EXPLICIT])])
    results, roles = presentation.negotiate_as_acceptor(proposed, [build_context(MR, [EXPLICIT])])
    assert ([0, 4, 3], []) == ([one.result for one in results], roles)


def test_what_an_application_entity_sends_is_understood() -> None:
    """The bytes that AE.associate puts on the wire are answered for every context that it asked for."""
    ae = AE(ae_title="CT1")
    for uid in sorted(STORAGE_CLASSES)[:20]:
        ae.add_requested_context(uid)
    came: list[bytes] = []

    def take_one(listening: socket.socket) -> None:
        connection, _address = listening.accept()
        with connection, connection.makefile("rb") as stream:
            head = stream.read(6)
            came.append(head + stream.read(int.from_bytes(head[2:], "big")))

    with socket.create_server(("127.0.0.1", 0)) as listening:
        taking = threading.Thread(target=take_one, args=(listening,))
        taking.start()
        assert not ae.associate(*listening.getsockname(), ae_title="NODE").is_established
        taking.join()
    _answer, contexts = accepted(proposal(came[0]), max_pdu=16384, takes_other_classes=True)
    assert sorted(STORAGE_CLASSES)[:20] == [one.abstract_syntax for _number, one in sorted(contexts.items())]


def test_a_repeated_request_is_negotiated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bytes get the same answer without being decoded again; other bytes or settings do not share it."""
    negotiated.cache_clear()
    decoded: list[bytes] = []
    monkeypatch.setattr(negotiation, "proposal", lambda content: decoded.append(content) or proposal(content))
    first, other = request([(MR, [EXPLICIT])]), request([(MR, [IMPLICIT]), (PRIVATE, [EXPLICIT])])
    for content in (first, other, first):
        for takes in (True, False):
            asked, answer, contexts = negotiated(content, max_pdu=16384, takes_other_classes=takes)
            assert ("CT1", 16382, ()) == (asked.calling_ae, asked.max_pdu, asked.contexts)
            assert (answer, contexts) == accepted(proposal(content), max_pdu=16384, takes_other_classes=takes)
    assert [first, first, other, other] == decoded


def test_a_broken_request_is_not_remembered() -> None:
    """What cannot be read is refused each time."""
    for _ in range(2):
        with pytest.raises(ProtocolError):
            negotiated(request([(MR, [EXPLICIT])])[:90], max_pdu=16384, takes_other_classes=True)
