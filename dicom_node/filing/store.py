"""The store of received instances in a local folder: durable at once, then shelved as immutable versions.

    incoming/    parts that are being written, and instances in files of their own that wait to be shelved
    journal/     small instances that wait to be shelved
    instances/   the shelf: every version under its content's name, until it is purged
    purging/     what is being purged (`disposal`)

Receiving begins and commits; indexing shelves, and releases once the rows are written. A start takes up what was left
between: however many versions stand on the shelf, only what waits is looked at. The store keeps no records and deletes
nothing but parts and what was shelved.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Final

from dicom_node.clock import Clock
from dicom_node.errors import NotFoundError, RefusedInputError, StorageError, UndecodableError
from dicom_node.filing import meta as file_meta
from dicom_node.filing.disposal import Disposal
from dicom_node.filing.durable import (
    Bytes,
    PartFile,
    fsync_folder,
    fsync_names,
    make_folders,
    storage_error,
    sweep_parts,
    this_process,
)
from dicom_node.filing.incoming import LARGEST_IN_MEMORY, Buffers, Incoming
from dicom_node.filing.journal import Journal, JournalFullError
from dicom_node.filing.layout import ARRIVED_SUFFIX, digest_in, is_uid, uid_hash, version_path
from dicom_node.filing.segment import Record
from dicom_node.logs import Log
from dicom_node.study import Arrival, FiledInstance, InstanceMeta

INSTANCES_FOLDER: Final = "instances"
INCOMING_FOLDER: Final = "incoming"
JOURNAL_FOLDER: Final = "journal"
_BLOCK: Final = 1 << 20
_FREE_S: Final = 0.1
"""How long is believed that there is space: the reserve is far more than comes in that time."""


class InstanceStore:
    """Received instances under `root`. Safe to use from many threads, and to shelve from another process.

    Parameters
    ----------
    root
        Folder of the store; created when missing.
    clock
        Tells when an instance was received.
    reserve_bytes
        Free space that must remain; below it nothing is accepted.
    journal_bytes
        What the journal may take; 0 files every instance on its own. It serves after `start`.
    """

    def __init__(self, root: Path, *, clock: Clock, reserve_bytes: int, journal_bytes: int = 0) -> None:
        self._root = root.resolve()
        self._instances = self._root / INSTANCES_FOLDER
        self._incoming = self._root / INCOMING_FOLDER
        self._clock = clock
        self._reserve_bytes = reserve_bytes
        self._owner = this_process()
        self._journal = Journal(self._root / JOURNAL_FOLDER, capacity_bytes=journal_bytes, boot_id=self._owner.boot_id)
        self._free_bytes = 0
        self._free_until: float | None = None
        self.buffers = Buffers()
        self._log = Log("filing")
        for folder in (self._instances, self._incoming):
            for parent in make_folders(folder):
                fsync_folder(parent)

    # Receiving

    def start(self) -> None:
        """Begin to receive: parts of dead writers are deleted, the journal is opened.

        Raises
        ------
        StorageError
            When the disk refuses the journal.
        """
        removed = sweep_parts(self._incoming)
        if removed:
            self._log.info("swept_parts", count=removed)
        self._journal.start()

    def stop(self) -> None:
        """End receiving; what waits to be shelved waits for the next start."""
        self._journal.stop()

    def begin(self, meta: InstanceMeta) -> Incoming:
        """Open a place for an instance whose bytes will follow.

        Raises
        ------
        RefusedInputError
            When a UID of `meta` has not the form of a UID.
        StorageError
            When the disk's reserve is reached.
        """
        for uid in (meta.sop_class_uid, meta.sop_instance_uid, meta.transfer_syntax_uid):
            if not is_uid(uid):
                raise RefusedInputError("a UID in the request has not the form of a UID")
        self._keep_reserve()
        return Incoming(meta, self)

    def has_room(self) -> bool:
        """Return whether an instance would be accepted now."""
        try:
            self._keep_reserve()
        except StorageError:
            return False
        return True

    @property
    def largest_in_memory(self) -> int:
        """Bytes of content up to which an instance waits in memory."""
        return min(LARGEST_IN_MEMORY, self._journal.largest_content)

    def open_part(self) -> PartFile:
        """Open a file of its own for an instance. Raises OSError."""
        return PartFile(self._incoming, self._owner)

    def publish_content(self, meta: InstanceMeta, content: tuple[Bytes, ...]) -> Arrival:
        """Make an instance durable in the journal, or, when that is full, in a file of its own."""
        received_at = self._clock.now()
        if self._journal.largest_content:  # its space is taken already; `begin` has asked for the reserve
            with suppress(JournalFullError):
                record = self._journal.append(_label(meta, received_at), content)
                return _arrival(record, meta, received_at)
        with self.open_part() as part:
            return self.publish_part(meta, part, part.write(content))

    def publish_part(self, meta: InstanceMeta, part: PartFile, content_bytes: int) -> Arrival:
        """Make a file of its own durable under the name by which a start finds it."""
        self._keep_reserve()
        path = part.path.with_suffix(ARRIVED_SUFFIX)
        part.synchronise()
        part.rename(path)
        fsync_names((self._incoming,), path)
        return Arrival(
            meta=meta,
            received_at=self._clock.now(),
            path=path,
            offset=0,
            size_bytes=content_bytes,
            record_offset=None,
        )

    # Shelving

    def leftovers(self) -> Iterator[Arrival]:
        """Give what was received and not released, as a start finds it; their associations are not known any more.

        Call it before receiving begins.
        """
        for record in self._journal.unreleased():
            meta, received_at = _labelled(record.label)
            yield _arrival(record, meta, received_at)
        for path in sorted(self._incoming.glob(f"*{ARRIVED_SUFFIX}")):
            try:
                yield _found(path)
            except (OSError, UndecodableError) as error:
                self._log.warning("unreadable_instance", file=path.name, error=type(error).__name__)

    def content(self, arrival: Arrival) -> bytes:
        """Return the bytes of an arrival as a DICOM file has them: preamble, file meta information, data set.

        Raises
        ------
        NotFoundError
            When they are not here any more.
        """
        with self._opened(arrival) as file:
            return os.pread(file, arrival.size_bytes, arrival.offset)

    @contextmanager
    def _opened(self, arrival: Arrival) -> Iterator[int]:
        try:
            descriptor = os.open(arrival.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFoundError("the instance is not where it arrived; was it shelved already?") from None
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def shelve(self, arrival: Arrival) -> FiledInstance:
        """Put an arrival on the shelf as a version; again is harmless. It is durable as long as it is not released.

        Raises
        ------
        NotFoundError
            When its bytes are not here any more.
        StorageError
            When the disk refuses.
        """
        with self._opened(arrival) as file:
            head_bytes = file_meta.HEAD_BYTES + file_meta.group_length(
                os.pread(file, file_meta.HEAD_BYTES, arrival.offset)
            )
            digest = _digest(file, arrival.offset + head_bytes, arrival.offset + arrival.size_bytes)
            target = self._instances / version_path(arrival.meta.sop_instance_uid, digest)
            try:
                is_new = not _holds(target, digest)
                if is_new:
                    self._put(arrival, file, target)
            except OSError as error:
                raise storage_error("shelving an instance", error) from error
        return FiledInstance(
            sop_instance_uid=arrival.meta.sop_instance_uid,
            sop_class_uid=arrival.meta.sop_class_uid,
            transfer_syntax_uid=arrival.meta.transfer_syntax_uid,
            digest=digest,
            path=target,
            size_bytes=arrival.size_bytes - head_bytes,
            calling_ae=arrival.meta.calling_ae,
            called_ae=arrival.meta.called_ae,
            received_at=arrival.received_at,
            association=arrival.meta.association,
            is_new=is_new,
        )

    def release(self, arrival: Arrival) -> None:
        """Give up the place where an instance arrived: it is shelved, and its row is written."""
        if arrival.record_offset is None:
            arrival.path.unlink(missing_ok=True)
        else:
            self._journal.release(_record(arrival))

    def _put(self, arrival: Arrival, file: int, target: Path) -> None:
        """Give the content its place on the shelf.

        A file of its own is linked there, durably. What is in the journal is copied, and the journal keeps it until all
        copies are on the disk.
        """
        changed = make_folders(target.parent)
        if arrival.record_offset is None:
            target.unlink(missing_ok=True)  # a damaged one
            os.link(arrival.path, target)
            fsync_names((target.parent, *changed), target)
            return
        with PartFile(self._incoming, self._owner) as part:
            part.write((os.pread(file, arrival.size_bytes, arrival.offset),))
            received = arrival.received_at.timestamp()
            os.utime(part.descriptor, (received, received))
            part.rename(target)

    # The shelf

    def open_stored(self, path: Path) -> BinaryIO:
        """Open a stored version for reading, from its preamble on.

        Raises
        ------
        NotFoundError
            When it is not here (any more), or lies outside the store.
        """
        if not path.resolve().is_relative_to(self._instances):
            raise NotFoundError("the file does not lie in the instance store")
        try:
            return path.open("rb")
        except FileNotFoundError:
            raise NotFoundError("the instance is not in the store any more; was its study purged?") from None

    def has_other_version(self, sop_instance_uid: str, digest: str) -> bool:
        """Return whether the instance is shelved with other content than `digest` tells of."""
        here = (self._instances / version_path(sop_instance_uid, digest)).parent
        others = here.glob(f"{uid_hash(sop_instance_uid)}-*")
        return any(digest_in(path.name) not in (None, digest) for path in others)

    def disposal(self) -> Disposal:
        """Return what gives up versions that were purged."""
        return Disposal(self._instances)

    def sweep(self) -> Iterator[FiledInstance]:
        """Give every version on the shelf, lazily and folder by folder.

        For a database that was lost or restored; an ordinary start does without. What cannot be read back is logged and
        left where it is.
        """
        for folder, folders, names in os.walk(self._instances):
            folders.sort()
            for name in sorted(names):
                digest, path = digest_in(name), Path(folder, name)
                if digest is None:
                    continue
                try:
                    yield _read_back(path, digest)
                except FileNotFoundError:
                    continue
                except (OSError, UndecodableError) as error:
                    self._log.warning("unreadable_instance", file=name, error=type(error).__name__)

    def _keep_reserve(self) -> None:
        now = self._clock.monotonic()
        if self._free_until is None or now >= self._free_until or self._free_bytes < self._reserve_bytes:
            try:
                space = os.statvfs(self._incoming)
            except OSError as error:
                raise storage_error("asking for free space", error) from error
            self._free_bytes, self._free_until = space.f_bavail * space.f_frsize, now + _FREE_S
        if self._free_bytes < self._reserve_bytes:
            raise StorageError("free disk space is below the reserve")


def _label(meta: InstanceMeta, received_at: datetime) -> bytes:
    """Return what a record of the journal says about its content."""
    words = (meta.sop_class_uid, meta.sop_instance_uid, meta.transfer_syntax_uid, meta.calling_ae, meta.called_ae)
    return "\n".join((*words, repr(received_at.timestamp()))).encode("ascii")


def _labelled(label: bytes) -> tuple[InstanceMeta, datetime]:
    sop_class_uid, sop_instance_uid, transfer_syntax_uid, calling_ae, called_ae, received_at = label.decode(
        "ascii"
    ).split("\n")
    meta = InstanceMeta(
        sop_class_uid=sop_class_uid,
        sop_instance_uid=sop_instance_uid,
        transfer_syntax_uid=transfer_syntax_uid,
        calling_ae=calling_ae,
        called_ae=called_ae,
        association=None,
    )
    return meta, datetime.fromtimestamp(float(received_at), UTC)


def _arrival(record: Record, meta: InstanceMeta, received_at: datetime) -> Arrival:
    return Arrival(
        meta=meta,
        received_at=received_at,
        path=record.segment,
        offset=record.content_offset,
        size_bytes=record.content_bytes,
        record_offset=record.head_offset,
    )


def _record(arrival: Arrival) -> Record:
    assert arrival.record_offset is not None
    return Record(
        segment=arrival.path,
        head_offset=arrival.record_offset,
        label=b"",
        content_offset=arrival.offset,
        content_bytes=arrival.size_bytes,
    )


def _found(path: Path) -> Arrival:
    """Return the arrival in a file of its own that an earlier process left."""
    one = _read_back(path, digest="")
    return Arrival(
        meta=InstanceMeta(
            sop_class_uid=one.sop_class_uid,
            sop_instance_uid=one.sop_instance_uid,
            transfer_syntax_uid=one.transfer_syntax_uid,
            calling_ae=one.calling_ae,
            called_ae=one.called_ae,
            association=None,
        ),
        received_at=one.received_at,
        path=path,
        offset=0,
        size_bytes=path.stat().st_size,
        record_offset=None,
    )


def _digest(file: int, first: int, end: int) -> str:
    """Return SHA-256, hexadecimal, of the bytes from `first` up to `end`, read in blocks."""
    digest = hashlib.sha256()
    for offset in range(first, end, _BLOCK):
        digest.update(os.pread(file, min(_BLOCK, end - offset), offset))
    return digest.hexdigest()


def _holds(path: Path, digest: str) -> bool:
    """Return whether the file at `path` has the data set of this digest; a damaged one has not and is replaced."""
    try:
        with path.open("rb") as stored:
            stored.seek(file_meta.HEAD_BYTES + file_meta.group_length(stored.read(file_meta.HEAD_BYTES)))
            return hashlib.file_digest(stored, "sha256").hexdigest() == digest
    except (FileNotFoundError, UndecodableError):
        return False


def _read_back(path: Path, digest: str) -> FiledInstance:
    """Return what the file meta information of a stored version tells about it.

    The association is not kept there; the time of receipt is the file's.

    Raises
    ------
    UndecodableError
        When the file meta information is damaged.
    """
    with path.open("rb") as stored:
        length = file_meta.group_length(stored.read(file_meta.HEAD_BYTES))
        values = file_meta.decoded(stored.read(length))
        status = os.fstat(stored.fileno())
    try:
        return FiledInstance(
            sop_instance_uid=values[file_meta.MEDIA_STORAGE_SOP_INSTANCE_UID],
            sop_class_uid=values[file_meta.MEDIA_STORAGE_SOP_CLASS_UID],
            transfer_syntax_uid=values[file_meta.TRANSFER_SYNTAX_UID],
            digest=digest,
            path=path,
            size_bytes=status.st_size - file_meta.HEAD_BYTES - length,
            calling_ae=values.get(file_meta.SENDING_AE_TITLE, ""),
            called_ae=values.get(file_meta.RECEIVING_AE_TITLE, ""),
            received_at=datetime.fromtimestamp(status.st_mtime, UTC),
            association=None,
            is_new=False,
        )
    except KeyError as error:
        raise UndecodableError("the file meta information lacks a UID") from error
