"""Claims on one association of ours: against peers that take little, that misbehave, that are slow, and over TLS."""

from __future__ import annotations

import resource
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ExplicitVRLittleEndian, RLELossless
from pynetdicom import AE, evt

from dicom_node.config.schema import Address
from dicom_node.dimse import SendResult, Verdict, echo, send_files
from dicom_node.errors import UnreachableError
from tests import peers
from tests.integration.receiving import (
    BIG,
    EXPLICIT,
    IMPLICIT,
    MR,
    dicom_file,
    encode_data_set,
    running_node,
    small_data_set,
)
from tests.peers.certificates import authority

MPEG4 = "1.2.840.10008.1.2.4.102"
RLE = str(RLELossless)


def send(paths: list[Path], port: int, *, timeout_s: float = 20, tls: ssl.SSLContext | None = None) -> list[SendResult]:
    """Send files to a peer on loopback."""
    address = Address(host="127.0.0.1", port=port)
    return list(send_files(paths, address, called_ae="PACS", calling_ae="NODE", timeout_s=timeout_s, tls=tls))


def mr_file(folder: Path, syntax: str = EXPLICIT, *, uid: str = "1.2.3.4") -> tuple[Path, bytes]:
    """Write an MR image in this syntax; return it and its pixels, uncompressed, little endian."""
    ds = small_data_set(uid, n_pixels=2000)
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 15, 0
    pixels = np.arange(2000, dtype="<u2").tobytes()
    ds.PixelData = np.arange(2000, dtype=">u2" if syntax == BIG else "<u2").tobytes()
    if syntax == RLE:
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.compress(RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
        del ds.file_meta
    elif syntax not in (EXPLICIT, IMPLICIT, BIG):
        ds.PixelData = encapsulate([b"a film"])
        ds["PixelData"].is_undefined_length = True
    encoding = syntax if syntax in (IMPLICIT, BIG) else EXPLICIT
    path = dicom_file(folder / uid, encode_data_set(ds, encoding), syntax=syntax, sop_instance_uid=uid)
    return path, pixels


@dataclass
class Got:
    """One object as a peer got it."""

    sop_instance_uid: str
    syntax: str
    encoded: bytes
    dataset: Dataset


@contextmanager
def pacs(*syntaxes: str, tls: ssl.SSLContext | None = None) -> Iterator[tuple[int, list[Got]]]:
    """Run a PACS of pynetdicom that takes MR in these syntaxes; give its port and what it got."""
    got: list[Got] = []

    def store(event: evt.Event) -> int:
        ds = event.dataset
        ds.file_meta = event.file_meta
        uid, syntax = str(event.request.AffectedSOPInstanceUID), str(event.context.transfer_syntax)
        got.append(Got(uid, syntax, event.request.DataSet.getvalue(), ds))
        return 0

    ae = AE(ae_title="PACS")
    for syntax in syntaxes:
        ae.add_supported_context(MR, syntax)
    handlers = [(evt.EVT_C_STORE, store)]
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers, ssl_context=tls)
    try:
        yield server.server_address[1], got
    finally:
        server.shutdown()


@pytest.mark.parametrize(
    ("own", "taken"),
    [(RLE, EXPLICIT), (RLE, IMPLICIT), (EXPLICIT, IMPLICIT), (IMPLICIT, EXPLICIT), (BIG, EXPLICIT), (BIG, IMPLICIT)],
)
def test_what_the_peer_refuses_is_transcoded(tmp_path: Path, own: str, taken: str) -> None:
    """The object arrives in the syntax that the peer takes, under the same UID, with the same pixels."""
    path, pixels = mr_file(tmp_path, own)
    with pacs(taken) as (port, got):
        (result,) = send([path], port)
    assert (Verdict.STORED, "1.2.3.4") == (result.verdict, result.sop_instance_uid)
    (one,) = got
    assert ("1.2.3.4", taken) == (one.sop_instance_uid, one.syntax)
    assert ("1.2.3.4", pixels) == (one.dataset.SOPInstanceUID, one.dataset.PixelData)


@pytest.mark.parametrize("own", [RLE, EXPLICIT, IMPLICIT])
def test_what_the_peer_takes_goes_as_it_lies(tmp_path: Path, own: str) -> None:
    """A peer that takes everything gets the filed bytes, also where it would like another syntax better."""
    path, _pixels = mr_file(tmp_path, own)
    with pacs(IMPLICIT, EXPLICIT, RLE) as (port, got):
        send([path], port)
    assert path.read_bytes().endswith(got[0].encoded)
    assert (own, True) == (got[0].syntax, len(got[0].encoded) > 300)


def test_dcmtk_takes_what_was_transcoded(tmp_path: Path, free_port: Callable[[], int]) -> None:
    """Storescp as shipped takes uncompressed objects alone."""
    peers.require_peer("dcmtk")
    path, pixels = mr_file(tmp_path, RLE)
    (tmp_path / "out").mkdir()
    port = free_port()
    with subprocess.Popen(["storescp", "-od", str(tmp_path / "out"), str(port)]) as program:
        try:
            assert peers.eventually(lambda: _answers(port))
            (result,) = send([path], port)
        finally:
            program.terminate()
    assert Verdict.STORED == result.verdict
    (stored,) = (tmp_path / "out").iterdir()
    ds = dcmread(stored)
    assert ("1.2.3.4", pixels, False) == (ds.SOPInstanceUID, ds.PixelData, ds.file_meta.TransferSyntaxUID.is_compressed)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_what_cannot_be_decoded_is_refused_by_name(tmp_path: Path) -> None:
    """A film that the peer does not take, and nothing decodes: its neighbours are stored all the same."""
    film, _ = mr_file(tmp_path, MPEG4, uid="1.2.1")
    plain, _ = mr_file(tmp_path, EXPLICIT, uid="1.2.2")
    with pacs(EXPLICIT) as (port, got):
        refused, stored = send([film, plain], port)
    assert (Verdict.REFUSED_FOR_GOOD, None) == (refused.verdict, refused.status)
    assert UID(MPEG4).name in refused.reason
    assert "cannot be decoded here" in refused.reason
    assert (Verdict.STORED, ["1.2.2"]) == (stored.verdict, [one.sop_instance_uid for one in got])


def test_meta_information_that_contradicts_is_overruled(tmp_path: Path) -> None:
    """A strict receiver, ours, compares the request with the data set, and takes the object."""
    data_set = encode_data_set(small_data_set("1.2.99"))
    path = dicom_file(tmp_path / "x", data_set, sop_instance_uid="1.2.1", sop_class_uid="1.2.840.10008.5.1.4.1.1.2")
    with running_node(tmp_path / "store") as node:
        (result,) = send_files([path], node.address, called_ae="NODE", calling_ae="CT1", timeout_s=20)
    assert ("1.2.99", 0) == (result.sop_instance_uid, result.status)


def two_files(folder: Path) -> list[Path]:
    """Write two small images."""
    return [mr_file(folder, uid="1.2.1")[0], mr_file(folder, uid="1.2.2")[0]]


def test_what_this_machine_lacks_is_no_fault_of_the_file(tmp_path: Path) -> None:
    """Too many open files: the object is unanswered, and may be sent another time."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with pacs(EXPLICIT) as (port, _got):
        address = Address(host="127.0.0.1", port=port)
        results = send_files(two_files(tmp_path), address, called_ae="PACS", calling_ae="NODE", timeout_s=20)
        assert Verdict.STORED == next(results).verdict
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
            second = next(results)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert [] == list(results)
    assert (Verdict.UNANSWERED, "this machine could not send it now: Too many open files") == (
        second.verdict,
        second.reason,
    )


def test_a_peer_that_does_not_verify_says_so() -> None:
    """An association without a context for C-ECHO is no answer, and no failure of the network."""
    with pacs(EXPLICIT) as (port, _got):
        result = echo(Address(host="127.0.0.1", port=port), called_ae="PACS", calling_ae="NODE", timeout_s=20)
    assert (False, None, "the peer does not offer verification (C-ECHO)") == (
        result.is_success,
        result.status,
        result.reason,
    )


def test_an_echo_is_answered(tmp_path: Path) -> None:
    """By our own receiver."""
    with running_node(tmp_path) as node:
        result = echo(node.address, called_ae="NODE", calling_ae="CT1", timeout_s=20)
    assert (True, 0) == (result.is_success, result.status)


def contexts_of(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return a server's and a client's TLS context that trust each other."""
    files = authority(folder).issue("node")
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    for context in (server, client):
        context.load_cert_chain(files.certificate, files.key)
        context.load_verify_locations(files.ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return server, client


def test_tls_carries_the_same_bytes(tmp_path: Path) -> None:
    """A large object over mutual TLS, and an answer."""
    server, client = contexts_of(tmp_path)
    data_set = encode_data_set(small_data_set(n_pixels=1_000_000))
    path = dicom_file(tmp_path / "x", data_set)
    with pacs(EXPLICIT, tls=server) as (port, got):
        (result,) = send([path], port, tls=client)
    assert Verdict.STORED == result.verdict
    assert data_set == got[0].encoded


@pytest.mark.parametrize("whose", ["ours", "theirs"])
def test_tls_that_fails_says_so(tmp_path: Path, whose: str) -> None:
    """A certificate that the other side does not trust: unreachable, with TLS named."""
    server, client = contexts_of(tmp_path)
    if whose == "ours":
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    else:
        _other, client = contexts_of(tmp_path / "other")
    path, _ = mr_file(tmp_path)
    with pacs(EXPLICIT, tls=server) as (port, _got), pytest.raises(UnreachableError, match="do not agree on TLS"):
        send([path], port, tls=client)


def test_a_peer_without_tls_is_unreachable(tmp_path: Path) -> None:
    """It does not know what it is told, and we do not wait for ever."""
    _server, client = contexts_of(tmp_path)
    path, _ = mr_file(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(UnreachableError, match="does not answer"):
        send([path], silent.getsockname()[1], timeout_s=0.5, tls=client)


@pytest.mark.data
@pytest.mark.parametrize(
    "name",
    [
        "pydicom-test_files/test_files/rtplan.dcm",
        "pydicom-test_files/test_files/rtdose_expb.dcm",
        "pydicom-test_files/charset_files/chrJapMulti.dcm",
        "nibabel/0.dcm",
        "dicom2nifti/hitachi/anatomical/001_implicit/001.dcm",
        "misc/deflate/wave_dfl",
    ],
)
def test_real_files_that_contradict_themselves_are_stored(tmp_path: Path, shared_data: Path, name: str) -> None:
    """Their meta information names another instance than their data set does, which a strict receiver would refuse."""
    path = shared_data / name
    ds = dcmread(path, specific_tags=["SOPInstanceUID"], stop_before_pixels=True)
    assert ds.file_meta.MediaStorageSOPInstanceUID != ds.SOPInstanceUID
    with running_node(tmp_path) as node:
        (result,) = send_files([path], node.address, called_ae="NODE", calling_ae="CT1", timeout_s=20)
    assert (ds.SOPInstanceUID, 0) == (result.sop_instance_uid, result.status)
