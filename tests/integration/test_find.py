"""Claims on queries: what a real PACS says of a study comes back, and a peer that breaks the rules is told apart."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.dsutils import encode

from dicom_node.app import Node
from dicom_node.config.schema import Address, Peer
from dicom_node.dimse import pdu
from dicom_node.dimse.command import Command, decoded, find_request
from dicom_node.dimse.find import STUDY_ROOT_FIND, count_instances, find
from dicom_node.errors import QueryError, UnreachableError, UsageError
from tests import peers
from tests.integration.receiving import IMPLICIT
from tests.integration.scripted_peer import Script, Wire, scripted
from tests.integration.test_send import mr_file, send

STUDY_KEYS = {"StudyInstanceUID": "1.2.3", "PatientID": "", "NumberOfStudyRelatedInstances": ""}


def ask(port: int, level: Any = "STUDY", keys: Any = STUDY_KEYS, *, timeout_s: float = 20) -> list[Dataset]:
    """Ask a peer on loopback."""
    peer = Peer(name="pacs", ae_title="PACS", address=Address(host="127.0.0.1", port=port))
    return find(peer, level, keys, calling_ae="NODE", timeout_s=timeout_s)


def test_pacs_tells_how_many_instances_it_holds(tmp_path: Path, orthanc: Callable[..., peers.Orthanc]) -> None:
    """Orthanc answers at each level; an unknown study has no answer."""
    pacs = orthanc()
    paths = []
    for number in (1, 2, 3):
        path, _ = mr_file(tmp_path, uid=f"1.2.3.4.{number}")
        paths.append(path.rename(tmp_path / f"{number}.dcm"))
    assert all(sent.status == 0 for sent in send(paths, pacs.dicom_port))
    (stored,) = pacs.rest("/studies?expand")
    study_uid = stored["MainDicomTags"]["StudyInstanceUID"]
    (study,) = ask(pacs.dicom_port, keys={**STUDY_KEYS, "StudyInstanceUID": study_uid})
    assert 3 == int(study.NumberOfStudyRelatedInstances)
    assert stored["PatientMainDicomTags"]["PatientID"] == study.PatientID
    series = ask(
        pacs.dicom_port,
        "SERIES",
        {"StudyInstanceUID": study_uid, "SeriesInstanceUID": "", "NumberOfSeriesRelatedInstances": None},
    )
    assert [3] == [int(one.NumberOfSeriesRelatedInstances) for one in series]
    keys = {"StudyInstanceUID": study_uid, "SeriesInstanceUID": series[0].SeriesInstanceUID, "SOPInstanceUID": ""}
    images = ask(pacs.dicom_port, "IMAGE", keys)
    assert ["1.2.3.4.1", "1.2.3.4.2", "1.2.3.4.3"] == sorted(one.SOPInstanceUID for one in images)
    assert [] == ask(pacs.dicom_port, keys={**STUDY_KEYS, "StudyInstanceUID": "9.9.9"})
    config = tmp_path / "config.toml"
    config.write_text(
        f'[[peer]]\nname = "pacs"\nae_title = "ORTHANC"\naddress = "127.0.0.1:{pacs.dicom_port}"\n', encoding="utf-8"
    )
    assert {series[0].SeriesInstanceUID: 3} == Node(config)._held_by("pacs", study_uid)


@contextmanager
def answering(answers: list[tuple[int, Dataset | None]], syntax: str = IMPLICIT) -> Iterator[tuple[int, list[Dataset]]]:
    """Run a peer that answers every query so, in one transfer syntax; give its port and what it was asked."""
    asked: list[Dataset] = []

    def handle(event: evt.Event) -> Iterator[tuple[int, Dataset | None]]:
        asked.append(event.identifier)
        yield from answers

    ae = AE(ae_title="PACS")
    ae.add_supported_context(STUDY_ROOT_FIND, syntax)
    port = peers.free_port()
    server = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_FIND, handle)])
    assert server is not None
    try:
        yield port, asked
    finally:
        server.shutdown()


def described(name: str) -> Dataset:
    """Return an answer in UTF-8."""
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.PatientName = name
    ds.StudyInstanceUID = "1.2.3"
    return ds


@pytest.mark.parametrize("syntax", [IMPLICIT, "1.2.840.10008.1.2.1"])
def test_answers_come_in_order_and_in_their_character_set(syntax: str) -> None:
    """Both plain syntaxes; FF01 is pending too."""
    with answering([(0xFF00, described("Müller^A")), (0xFF01, described("Zoë^B"))], syntax) as (port, asked):
        assert ["Müller^A", "Zoë^B"] == [str(one.PatientName) for one in ask(port)]
    (query,) = asked
    assert ("STUDY", "1.2.3", "") == (query.QueryRetrieveLevel, query.StudyInstanceUID, query.PatientID)


@pytest.mark.parametrize("status", [0xA700, 0xA900, 0xC001, 0xFE00])
def test_refused_query_is_no_empty_answer(status: int) -> None:
    """A PACS that may not be asked, or is short of something, has not said that it holds nothing."""
    with answering([(0xFF00, described("A")), (status, None)]) as (port, _), pytest.raises(QueryError, match="refuses"):
        ask(port)


def test_a_pacs_that_does_not_count_is_asked_for_the_instances() -> None:
    """A series without the optional count is asked for its instances; reports and what has no UID are left out."""
    told, silent, report, nameless = Dataset(), Dataset(), Dataset(), Dataset()
    told.SeriesInstanceUID, told.Modality, told.NumberOfSeriesRelatedInstances = "1.2.3.1", "CT", 7
    silent.SeriesInstanceUID, silent.Modality = "1.2.3.2", "CT"
    report.SeriesInstanceUID, report.Modality, report.NumberOfSeriesRelatedInstances = "1.2.3.3", "SR", 1
    nameless.Modality, nameless.NumberOfSeriesRelatedInstances = "CT", 5
    with answering([*((0xFF00, one) for one in (told, silent, report, nameless)), (0x0000, None)]) as (port, asked):
        peer = Peer(name="pacs", ae_title="PACS", address=Address(host="127.0.0.1", port=port))
        counts = count_instances(peer, "1.2.3", calling_ae="NODE", timeout_s=20)
    assert {"1.2.3.1": 7, "1.2.3.2": 4} == counts  # this peer answers every question with the same four
    assert ["SERIES", "IMAGE"] == [one.QueryRetrieveLevel for one in asked]
    assert "1.2.3.2" == asked[1].SeriesInstanceUID


def test_peer_without_queries_is_told() -> None:
    """No presentation context was accepted."""
    ae = AE(ae_title="PACS")
    ae.add_supported_context("1.2.840.10008.1.1")
    port = peers.free_port()
    server = ae.start_server(("127.0.0.1", port), block=False)
    assert server is not None
    try:
        with pytest.raises((QueryError, UnreachableError), match="offers no queries|rejects"):
            ask(port)
    finally:
        server.shutdown()


def pending(request: Command, *, status: int = 0xFF00) -> bytes:
    """Return the PDUs of a pending answer's command set."""
    command_set = bytearray(find_request(1, STUDY_ROOT_FIND))
    fields = decoded(bytes(command_set))
    assert fields.message_id == request.message_id
    values = [
        (0x0002, STUDY_ROOT_FIND.encode() + b"\x00" * (len(STUDY_ROOT_FIND) % 2)),
        (0x0100, (0x8020).to_bytes(2, "little")),
        (0x0120, (request.message_id or 0).to_bytes(2, "little")),
        (0x0800, (1).to_bytes(2, "little")),
        (0x0900, status.to_bytes(2, "little")),
    ]
    content = b"".join(
        bytes(2) + tag.to_bytes(2, "little") + len(value).to_bytes(4, "little") + value for tag, value in values
    )
    head = bytes(4) + (4).to_bytes(4, "little") + len(content).to_bytes(4, "little")
    return pdu.command_pdus(1, head + content, 0)


def _asked(wire: Wire) -> Command:
    request = wire.message()
    assert request is not None
    return request


def data(content: bytes, *, is_last: bool = True) -> bytes:
    """Return the PDU of an answer's data set."""
    return pdu.data_head(1, len(content), is_command=False, is_last=is_last) + content


def hangs_up(wire: Wire) -> None:
    """Give one answer, and go."""
    identifier = encode(described("A"), is_implicit_vr=False, is_little_endian=True)
    assert identifier is not None
    wire.stream.sendall(pending(_asked(wire)) + data(identifier))


def keeps_data_back(wire: Wire) -> None:
    """Announce a data set and send the next command set instead."""
    request = _asked(wire)
    wire.stream.sendall(pending(request) + pending(request))
    wire.message()


def endless(wire: Wire) -> None:
    """Send a data set that does not end."""
    wire.stream.sendall(pending(_asked(wire)))
    for _ in range(9):
        wire.stream.sendall(data(bytes(32_000), is_last=False))
    wire.message()


def silent(wire: Wire) -> None:
    """Never answer."""
    wire.message()
    threading.Event().wait(0.6)


def nonsense(wire: Wire) -> None:
    """Answer with a data set that is none."""
    wire.stream.sendall(pending(_asked(wire)) + data(b"\x08\x00\x05\x00ZZ\xff\xff" * 3))
    wire.message()


@pytest.mark.parametrize("script", [hangs_up, keeps_data_back, endless, silent, nonsense])
def test_broken_answers_are_no_answer(script: Script) -> None:
    """Whatever breaks off, grows or stays away is an error: half of an answer would be taken for all of it."""
    with scripted(script) as (port, _), pytest.raises(QueryError):
        ask(port, timeout_s=0.4)


def test_what_is_no_keyword_is_refused_before_anybody_is_called() -> None:
    """A misspelt key would match everything."""
    with pytest.raises(UsageError, match="StudyInstanceUid"):
        ask(1, keys={"StudyInstanceUid": "1.2.3"})


def test_peer_that_is_away_is_unreachable() -> None:
    """Not an empty answer either."""
    with pytest.raises(UnreachableError):
        ask(peers.free_port())
