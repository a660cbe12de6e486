"""Claims on sending and delivering: against dcmtk's receiver, against ours, and against peers that fail."""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.dsutils import split_dataset

from dicom_node.config.schema import Address, Peer
from dicom_node.deliver import Outcome, Parcel, deliver_batch
from dicom_node.dimse import RejectedAssociationError, Verdict, echo, send_files
from dicom_node.errors import RejectedDeliveryError, TransientDeliveryError, UnreachableError, UsageError
from tests import peers
from tests.integration.receiving import (
    BIG,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    MR,
    dicom_file,
    encode_data_set,
    running_node,
    small_data_set,
)

JPEG = "1.2.840.10008.1.2.4.50"


def peer_at(port: int, ae_title: str = "PACS") -> Peer:
    """Return a destination's peer on loopback."""
    return Peer(name="pacs", ae_title=ae_title, address=f"127.0.0.1:{port}")


def result_files(folder: Path, count: int, *, n_pixels: int = 64) -> list[Path]:
    """Write small objects of one class and syntax."""
    uids = [f"1.2.{number}" for number in range(count)]
    return [
        dicom_file(folder / uid, encode_data_set(small_data_set(uid, n_pixels=n_pixels)), sop_instance_uid=uid)
        for uid in uids
    ]


def deliver(paths: list[Path], port: int, *, timeout_s: float = 20) -> list[Outcome]:
    """Deliver files as deliveries 0, 1, 2 and so on."""
    parcels = [Parcel(delivery_id=number, path=path) for number, path in enumerate(paths)]
    outcomes = deliver_batch(parcels, peer_at(port), calling_ae="NODE", timeout_s=timeout_s)
    assert list(range(len(paths))) == [outcome.delivery_id for outcome in outcomes]
    return outcomes


@contextmanager
def receiver(
    answer: Callable[[int], int | Dataset | None], *, syntaxes: tuple[str, ...] = (EXPLICIT,)
) -> Iterator[tuple[int, list[str]]]:
    """Run a PACS that answers the n-th object as told (None: it aborts); give its port and what it got."""
    got: list[str] = []

    def store(event: evt.Event) -> int | Dataset:
        status = answer(len(got))
        got.append(str(event.request.AffectedSOPInstanceUID))
        if status is None:
            event.assoc.abort()
            return 0xC000
        return status

    ae = AE(ae_title="PACS")
    ae.require_called_aet = True
    ae.add_supported_context(MR, list(syntaxes))
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    try:
        yield server.server_address[1], got
    finally:
        server.shutdown()


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG, DEFLATED, JPEG])
@pytest.mark.parametrize("max_pdu", [4096, 131072])
def test_dcmtk_gets_the_bytes_as_filed(tmp_path: Path, free_port: Callable[[], int], syntax: str, max_pdu: int) -> None:
    """Storescp in bit-preserving mode holds the same data set, whatever the syntax and the size of its PDUs."""
    peers.require_peer("dcmtk")
    encoding = syntax if syntax in {IMPLICIT, BIG, DEFLATED} else EXPLICIT
    data_set = encode_data_set(small_data_set(n_pixels=20_000), encoding)
    path = dicom_file(tmp_path / "x.dcm", data_set, syntax=syntax)
    (tmp_path / "pacs").mkdir()
    port = free_port()
    options = ["--bit-preserving", "+xa", "-pdu", str(max_pdu), "-aet", "PACS", "-od", str(tmp_path / "pacs")]
    with subprocess.Popen(["storescp", *options, str(port)]) as pacs:
        try:
            assert peers.eventually(lambda: _answers(port))
            (outcome,) = deliver([path], port)
        finally:
            pacs.terminate()
    assert (True, 0x0000) == (outcome.is_stored, outcome.status)
    (stored,) = (tmp_path / "pacs").iterdir()
    _meta, offset = split_dataset(stored)
    assert data_set == stored.read_bytes()[offset:]


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_warning_is_stored_and_kept(tmp_path: Path) -> None:
    """Success and B-warnings are stored, with the warning's words and the peer's comment; failures are not."""
    warning = Dataset()
    warning.Status, warning.ErrorComment = 0xB006, "private group removed"
    with receiver(lambda n: [0x0000, warning, 0xA700, 0x0122, 0x0111][n]) as (port, _got):
        outcomes = deliver(result_files(tmp_path, 5), port)
    assert [True, True, False, False, False] == [outcome.is_stored for outcome in outcomes]
    assert [0x0000, 0xB006, 0xA700, 0x0122, 0x0111] == [outcome.status for outcome in outcomes]
    assert "stored, but data elements were discarded (0xB006): private group removed" == outcomes[1].reason
    kinds = [TransientDeliveryError, RejectedDeliveryError, TransientDeliveryError]
    assert kinds == [type(outcome.error) for outcome in outcomes[2:]]


def test_a_batch_goes_over_one_association(tmp_path: Path) -> None:
    """Many results, one association."""
    with running_node(tmp_path / "store") as node:
        paths = result_files(tmp_path, 10)
        results = list(send_files(paths, node.address, called_ae="NODE", calling_ae="CT1", timeout_s=20))
        assert [Verdict.STORED] * 10 == [result.verdict for result in results]
        assert 1 == len(node.events.associations)


def test_more_contexts_than_one_association_takes(tmp_path: Path) -> None:
    """100 kinds of objects, two contexts each: a second association carries the rest; every file has its result."""
    paths = []
    for number in range(100):
        uid, sop_class_uid = f"1.2.{number}", f"1.9.{number}"  # private classes, all taken
        data_set = encode_data_set(small_data_set(uid, sop_class_uid=sop_class_uid))
        path = dicom_file(tmp_path / uid, data_set, sop_instance_uid=uid, sop_class_uid=sop_class_uid)
        paths.append(path)
    with running_node(tmp_path / "store") as node:
        results = list(send_files(paths, node.address, called_ae="NODE", calling_ae="CT1", timeout_s=20))
        assert [(path, 0) for path in paths] == [(result.path, result.status) for result in results]
        assert 2 == len(node.events.associations)


def test_a_rejected_context_is_refused_for_good(tmp_path: Path) -> None:
    """A syntax that the peer does not take: no status, never again; the other object of the batch is stored."""
    plain, jpeg = (
        result_files(tmp_path, 1)[0],
        dicom_file(tmp_path / "jpeg", encode_data_set(small_data_set("1.2.9")), syntax=JPEG, sop_instance_uid="1.2.9"),
    )
    with receiver(lambda _n: 0) as (port, got):
        outcomes = deliver([jpeg, plain], port)
    assert [False, True] == [outcome.is_stored for outcome in outcomes]
    assert isinstance(outcomes[0].error, RejectedDeliveryError)
    assert outcomes[0].status is None
    assert ["1.2.0"] == got


def test_no_context_at_all_is_refused_for_good(tmp_path: Path) -> None:
    """A peer that takes nothing of the batch accepts the association all the same."""
    with receiver(lambda _n: 0, syntaxes=(JPEG,)) as (port, _got):
        (outcome,) = deliver(result_files(tmp_path, 1), port)
    assert isinstance(outcome.error, RejectedDeliveryError)


def test_an_abort_leaves_the_rest_unanswered(tmp_path: Path) -> None:
    """What was answered before counts; what came after is sent again another time."""
    with receiver(lambda n: None if n == 1 else 0) as (port, got):
        outcomes = deliver(result_files(tmp_path, 4), port)
    assert [True, False, False, False] == [outcome.is_stored for outcome in outcomes]
    assert [TransientDeliveryError] * 3 == [type(outcome.error) for outcome in outcomes[1:]]
    assert [None] * 3 == [outcome.status for outcome in outcomes[1:]]
    assert "no response; the association ended" == outcomes[1].reason
    assert {"the association ended before this object was sent"} == {outcome.reason for outcome in outcomes[2:]}
    assert 2 == len(got)


def test_a_peer_that_is_away_is_unreachable(tmp_path: Path, free_port: Callable[[], int]) -> None:
    """Every delivery of the batch gets the reason, with where it went."""
    outcomes = deliver(result_files(tmp_path, 2), free_port())
    assert [UnreachableError, UnreachableError] == [type(outcome.error) for outcome in outcomes]
    assert "PACS at 127.0.0.1" in outcomes[0].reason
    assert "does not answer" in outcomes[0].reason


def test_a_peer_that_keeps_silent_is_unreachable(tmp_path: Path) -> None:
    """It takes the connection and says nothing: the time limit ends it."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        (outcome,) = deliver(result_files(tmp_path, 1), silent.getsockname()[1], timeout_s=0.5)
    assert isinstance(outcome.error, UnreachableError)
    assert "does not answer the association request" in outcome.reason


@pytest.mark.parametrize(
    ("called", "calling", "words"),
    [("NODE", "STRANGER", "does not know our AE title"), ("OTHER", "CT1", "does not answer to the AE title")],
)
def test_a_rejection_says_why(tmp_path: Path, called: str, calling: str, words: str) -> None:
    """The reason of the A-ASSOCIATE-RJ in words: an administrator knows which title to correct."""
    with running_node(tmp_path) as node:
        with pytest.raises(RejectedAssociationError, match=words) as caught:
            echo(node.address, called_ae=called, calling_ae=calling, timeout_s=20)
        assert not caught.value.is_transient


def test_a_full_peer_rejects_for_now(tmp_path: Path) -> None:
    """A transient rejection is told apart, and is a reason to try again."""
    with running_node(tmp_path, max_associations=1) as node:
        node.listener._draining = True
        with pytest.raises(RejectedAssociationError, match="congested") as caught:
            echo(node.address, called_ae="NODE", calling_ae="CT1", timeout_s=20)
    assert caught.value.is_transient
    assert caught.value.retryable


def test_an_unreadable_file_stops_nobody(tmp_path: Path) -> None:
    """A file that is gone, or is none, is refused for good; its neighbours are stored."""
    good = result_files(tmp_path, 2)
    junk = tmp_path / "junk"
    junk.write_bytes(b"no DICOM")
    with receiver(lambda _n: 0) as (port, _got):
        outcomes = deliver([good[0], tmp_path / "gone", junk, good[1]], port)
    assert [True, False, False, True] == [outcome.is_stored for outcome in outcomes]
    assert isinstance(outcomes[1].error, RejectedDeliveryError)


def test_nothing_readable_needs_no_association(tmp_path: Path, free_port: Callable[[], int]) -> None:
    """A batch of nothing but missing files does not even call."""
    (outcome,) = deliver([tmp_path / "gone"], free_port())
    assert isinstance(outcome.error, RejectedDeliveryError)


def test_a_host_name_that_is_none_is_unreachable() -> None:
    """A name that does not resolve is said to be one."""
    with pytest.raises(UnreachableError, match="no-such-host"):
        echo(Address(host="no-such-host.invalid", port=104), called_ae="A", calling_ae="B", timeout_s=5)


def test_a_peer_without_address_is_a_mistake_of_ours(tmp_path: Path) -> None:
    """Configuration prevents it; a caller hears it as wrong usage."""
    with pytest.raises(UsageError):
        deliver_batch(
            [Parcel(delivery_id=1, path=tmp_path)], Peer(name="x", ae_title="X"), calling_ae="NODE", timeout_s=1
        )


def test_no_thread_is_left_behind(tmp_path: Path) -> None:
    """After success, abort and rejection the sender's threads are gone."""
    before = threading.active_count()
    with receiver(lambda n: None if n else 0) as (port, _got):
        deliver(result_files(tmp_path, 3), port)
    assert peers.eventually(lambda: threading.active_count() <= before, timeout_s=20)
