"""What the tests of receiving share: a listener that remembers, small data sets, and a sender that misbehaves."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import UID
from pynetdicom import AE
from pynetdicom.association import Association as PynetdicomAssociation
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.presentation import build_context

from dicom_node.clock import Clock, SystemClock
from dicom_node.config.schema import Address, Peer, ReceiveSettings
from dicom_node.filing import InstanceMeta, InstanceStore
from dicom_node.filing.meta import encoded
from dicom_node.logs import Log
from dicom_node.receive import Listener
from dicom_node.receive.faces import Policy
from dicom_node.study import Arrival, Association, FiledInstance
from tests import peers

MR = "1.2.840.10008.5.1.4.1.1.4"
IMPLICIT, EXPLICIT, DEFLATED, BIG = (
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.2",
)
PEER = Peer(name="ct", ae_title="CT1", hosts=("127.0.0.0/8",))


@dataclass
class Events:
    """The listener's events, remembered in order."""

    log: list[tuple[str, ...]] = field(default_factory=list)
    arrivals: list[Arrival] = field(default_factory=list)
    associations: list[Association] = field(default_factory=list)
    failure: Exception | None = None
    """Raised by `opened` and `filed` when set."""
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def opened(self, association: Association) -> None:
        self._add("opened", association.id)
        self.associations.append(association)
        if self.failure is not None:
            raise self.failure

    def filed(self, association_id: str, arrival: Arrival) -> None:
        if self.failure is not None:
            raise self.failure
        self.arrivals.append(arrival)
        self._add("filed", association_id)

    def activity(self, association_id: str) -> None:
        self._add("activity", association_id)

    def closed(self, association_id: str, how: str) -> None:
        self._add("closed", association_id, how)

    def _add(self, *entry: str) -> None:
        with self._changed:
            self.log.append(entry)
            self._changed.notify_all()

    def wait_for(self, *entry: str) -> bool:
        """Wait until an event of this kind, with these details at its end, was told."""

        def came() -> bool:
            return any(line[0] == entry[0] and line[len(line) - len(entry) + 1 :] == entry[1:] for line in self.log)

        with self._changed:
            return self._changed.wait_for(came, timeout=20)


@dataclass(frozen=True, kw_only=True)
class Node:
    """A running listener with all that stands around it."""

    listener: Listener
    events: Events
    store: InstanceStore
    root: Path
    address: Address

    @property
    def filed(self) -> list[FiledInstance]:
        """What was filed, in its order, put on the shelf."""
        return [self.store.shelve(arrival) for arrival in self.events.arrivals]

    @property
    def files(self) -> list[Path]:
        """Every file below the store, parts too."""
        return sorted(path for path in self.root.rglob("*") if path.is_file())


@contextmanager
def running_node(
    root: Path,
    *,
    peers_known: tuple[Peer, ...] = (PEER,),
    reserve_bytes: int = 0,
    clock: Clock | None = None,
    policy: Policy | None = None,
    max_associations: int = 100,
    idle_timeout_s: float = 300,
) -> Iterator[Node]:
    """Run a listener on a free loopback port over a store in `root`."""
    clock = clock or SystemClock()
    events = Events()
    store = InstanceStore(root, clock=clock, reserve_bytes=reserve_bytes)
    port = peers.free_port()
    listener = Listener(
        ReceiveSettings(port=port, max_associations=max_associations, idle_timeout_s=idle_timeout_s),
        ("NODE",),
        peers_known,
        store=store,
        events=events,
        clock=clock,
        log=Log("receiver"),
        policy=policy,
    )
    listener.start()
    try:
        yield Node(
            listener=listener, events=events, store=store, root=root, address=Address(host="127.0.0.1", port=port)
        )
    finally:
        listener.stop(drain_s=0)


def small_data_set(sop_instance_uid: str = "1.2.3.4", *, n_pixels: int = 64, sop_class_uid: str = MR) -> Dataset:
    """Return an object with what filing asks for, a nested sequence and some pixels."""
    ds = Dataset()
    ds.SOPClassUID = sop_class_uid
    ds.SOPInstanceUID = sop_instance_uid
    reference = Dataset()
    reference.ReferencedSOPInstanceUID = "1.2.3.99"
    reference.PurposeOfReferenceCodeSequence = [Dataset()]
    ds.ReferencedStudySequence = [reference]
    ds.PatientID = "42"
    ds.StudyInstanceUID = "1.2.3"
    ds.SeriesInstanceUID = "1.2.3.1"
    ds.Rows, ds.Columns, ds.BitsAllocated = max(1, n_pixels // 1000), min(n_pixels, 1000), 16
    ds.PixelData = bytes(range(256)) * (n_pixels * 2 // 256) + bytes(n_pixels * 2 % 256)
    ds["PixelData"].VR = "OW"
    return ds


def encode_data_set(ds: Dataset, syntax: str = EXPLICIT, *, undefined_lengths: bool = False) -> bytes:
    """Return the data set's bytes, without file meta information."""
    uid = UID(syntax)
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = uid.is_implicit_VR, uid.is_little_endian
    if undefined_lengths:
        for element in ds.iterall():
            if element.VR == "SQ":
                element.is_undefined_length = True
    write_dataset(buffer, ds)
    if not uid.is_deflated:
        return buffer.getvalue()
    # Not the level that pydicom uses: whoever encodes anew gives other bytes.
    deflater = zlib.compressobj(1, wbits=-zlib.MAX_WBITS)
    deflated = deflater.compress(buffer.getvalue()) + deflater.flush()
    return deflated + bytes(len(deflated) % 2)  # PS3.5 A.5: padded to an even length


def dicom_file(
    path: Path,
    data_set: bytes,
    *,
    syntax: str = EXPLICIT,
    sop_instance_uid: str = "1.2.3.4",
    sop_class_uid: str = MR,
) -> Path:
    """Write a DICOM file around data set bytes."""
    meta = InstanceMeta(
        sop_class_uid=sop_class_uid,
        sop_instance_uid=sop_instance_uid,
        transfer_syntax_uid=syntax,
        calling_ae="ELSEWHERE",
        called_ae="TEST",
        association=None,
    )
    path.write_bytes(encoded(meta) + data_set)
    return path


@contextmanager
def association(
    address: Address, syntax: str = EXPLICIT, *, abstract_syntax: str = MR
) -> Iterator[PynetdicomAssociation]:
    """Open an association as CT1 for one kind of object; the caller ends it, or it is aborted."""
    ae = AE(ae_title="CT1")
    ae.dimse_timeout = ae.acse_timeout = 20
    contexts = [build_context(abstract_syntax, [syntax]), build_context("1.2.840.10008.1.1")]
    assoc = ae.associate(address.host, address.port, contexts=contexts, ae_title="NODE")
    assert assoc.is_established
    try:
        yield assoc
    finally:
        if assoc.is_established:
            assoc.abort()


def store_raw(
    assoc: PynetdicomAssociation,
    data_set: bytes,
    *,
    sop_instance_uid: str = "1.2.3.4",
    sop_class_uid: str = MR,
    pdus: int | None = None,
    max_pdu: int = 16382,
) -> int | None:
    """Send a C-STORE whose command set and bytes are what the caller says; return the status.

    With `pdus` only so many P-DATA go out, and None comes back at once.
    """
    message = C_STORE_RQ()
    command = message.command_set
    command.AffectedSOPClassUID = sop_class_uid
    command.AffectedSOPInstanceUID = sop_instance_uid
    command.MessageID, command.Priority, command.CommandField, command.CommandDataSetType = 7, 0, 1, 0
    for keyword in ("MoveOriginatorApplicationEntityTitle", "MoveOriginatorMessageID"):
        del command[keyword]
    message.data_set = BytesIO(data_set)
    context_id = next(context.context_id for context in assoc.accepted_contexts if context.abstract_syntax != VERIFY)
    assoc._reactor_checkpoint.clear()
    try:
        for number, primitive in enumerate(message.encode_msg(context_id, max_pdu)):
            if pdus is not None and number >= pdus:
                return None
            assoc.dul.send_pdu(primitive)
        _context, response = assoc.dimse.get_msg(block=True)
        return None if response is None else int(response.Status)
    finally:
        assoc._reactor_checkpoint.set()


VERIFY = "1.2.840.10008.1.1"
