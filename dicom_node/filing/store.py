"""The store of received instances in a local folder: immutable versions, addressed by their content.

Receiving begins and commits; the sweep gives every version back, so that rows can be reconciled with files. The store
keeps no records and deletes nothing but parts.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Final

from dicom_node.clock import Clock
from dicom_node.errors import NotFoundError, RefusedInputError, StorageError, UndecodableError
from dicom_node.filing import meta as file_meta
from dicom_node.filing.durable import (
    PartFile,
    fsync_folder,
    fsync_names,
    make_folders,
    storage_error,
    sweep_parts,
    this_process,
)
from dicom_node.filing.incoming import Incoming
from dicom_node.filing.layout import digest_in, is_uid, uid_hash, version_path
from dicom_node.logs import Log
from dicom_node.study import FiledInstance, InstanceMeta

INSTANCES_FOLDER: Final = "instances"
INCOMING_FOLDER: Final = "incoming"


class InstanceStore:
    """Received instances under `root`. Safe to use from many threads.

    Parameters
    ----------
    root
        Folder of the store; created when missing.
    clock
        Tells when an instance was received.
    reserve_bytes
        Free space that must remain; below it nothing is accepted.
    """

    def __init__(self, root: Path, *, clock: Clock, reserve_bytes: int) -> None:
        self._root = root.resolve()
        self._instances = self._root / INSTANCES_FOLDER
        self._incoming = self._root / INCOMING_FOLDER
        self._clock = clock
        self._reserve_bytes = reserve_bytes
        self._owner = this_process()
        self._publication = threading.Lock()
        self._log = Log("filing")
        for folder in (self._instances, self._incoming):
            for parent in make_folders(folder):
                fsync_folder(parent)

    def begin(self, meta: InstanceMeta) -> Incoming:
        """Open a place for an instance whose bytes will follow.

        Raises
        ------
        RefusedInputError
            When a UID of `meta` has not the form of a UID.
        StorageError
            When the disk refuses or its reserve is reached.
        """
        for uid in (meta.sop_class_uid, meta.sop_instance_uid, meta.transfer_syntax_uid):
            if not is_uid(uid):
                raise RefusedInputError("a UID in the request has not the form of a UID")
        self._keep_reserve()
        try:
            part = PartFile(self._incoming, self._owner)
        except OSError as error:
            raise storage_error("opening a new instance", error) from error
        return Incoming(meta, part, self._publish)

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
        """Return whether the instance is filed with other content than `digest` tells of; asked of the files alone."""
        here = (self._instances / version_path(sop_instance_uid, digest)).parent
        others = here.glob(f"{uid_hash(sop_instance_uid)}-*")
        return any(digest_in(path.name) not in (None, digest) for path in others)

    def sweep(self, known: Collection[Path] = frozenset()) -> Iterator[FiledInstance]:
        """Delete the parts of dead writers, then give every stored version, lazily and folder by folder.

        Versions at `known` paths are left out and not even opened: at a start that is nearly all. What cannot be read
        back is logged and left where it is.
        """
        removed = sweep_parts(self._incoming)
        if removed:
            self._log.info("swept_parts", count=removed)
        for folder, folders, names in os.walk(self._instances):
            folders.sort()
            for name in sorted(names):
                digest, path = digest_in(name), Path(folder, name)
                if digest is None or path in known:
                    continue
                try:
                    yield _read_back(path, digest)
                except FileNotFoundError:
                    continue
                except (OSError, UndecodableError) as error:
                    self._log.warning("unreadable_instance", file=name, error=type(error).__name__)

    def _publish(self, incoming: Incoming) -> FiledInstance:
        """Make the part durable under its final name; errors of the system go up as they are."""
        self._keep_reserve()
        part, digest = incoming.part, incoming.digest
        target = self._instances / version_path(incoming.meta.sop_instance_uid, digest)
        part.synchronise()
        changed = make_folders(target.parent)
        with self._publication:
            is_new = not (target.is_file() and _holds_data_set(target, incoming.size_bytes))
            if is_new:
                part.rename(target)
            else:
                part.discard()
        # Also for a repeat: its first writer may have died between rename and fsync.
        fsync_names((target.parent, *changed), target if is_new else None)
        return FiledInstance(
            sop_instance_uid=incoming.meta.sop_instance_uid,
            sop_class_uid=incoming.meta.sop_class_uid,
            transfer_syntax_uid=incoming.meta.transfer_syntax_uid,
            digest=digest,
            path=target,
            size_bytes=incoming.size_bytes,
            calling_ae=incoming.meta.calling_ae,
            called_ae=incoming.meta.called_ae,
            received_at=self._clock.now(),
            association=incoming.meta.association,
            is_new=is_new,
        )

    def _keep_reserve(self) -> None:
        try:
            space = os.statvfs(self._incoming)
        except OSError as error:
            raise storage_error("asking for free space", error) from error
        if space.f_bavail * space.f_frsize < self._reserve_bytes:
            raise StorageError("free disk space is below the reserve")


def _holds_data_set(path: Path, size_bytes: int) -> bool:
    """Return whether the stored file is as long as its content asks for; a shorter one was damaged and is replaced."""
    try:
        with path.open("rb") as stored:
            offset = file_meta.HEAD_BYTES + file_meta.group_length(stored.read(file_meta.HEAD_BYTES))
            return os.fstat(stored.fileno()).st_size == offset + size_bytes
    except UndecodableError:
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
