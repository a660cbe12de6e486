"""The store of our own results: filed once, durably, and only ever re-sent (ARCHITECTURE, decision 4)."""

from __future__ import annotations

import hashlib
from pathlib import Path

from dicom_node.errors import NotFoundError
from dicom_node.filing.disposal import Disposal
from dicom_node.filing.durable import (
    PartFile,
    fsync_folder,
    fsync_names,
    make_folders,
    storage_error,
    sweep_parts,
    this_process,
)
from dicom_node.filing.layout import version_path


class ResultStore:
    """Result objects under `root`, whole DICOM files; immutable versions, addressed by their content.

    What counts is the version that the row of the result names: that row is written once for a SOP Instance UID, so
    one UID never leaves with two contents. A file without a row was left by a job that was cut off, and blocks nobody.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        self._results = self._root / "results"
        self._incoming = self._root / "incoming"
        self._owner = this_process()
        for folder in (self._results, self._incoming):
            for parent in make_folders(folder):
                fsync_folder(parent)

    def file(self, content: bytes, sop_instance_uid: str) -> tuple[Path, str]:
        """File a result durably and return its path and the SHA-256 of `content`, hexadecimal.

        The same bytes again are no change: a job that was cut off after filing may file once more.

        Parameters
        ----------
        content
            A whole DICOM file: preamble, file meta information and data set.

        Raises
        ------
        StorageError
            When the disk refuses.
        """
        digest = hashlib.sha256(content).hexdigest()
        target = self._results / version_path(sop_instance_uid, digest)
        try:
            changed = make_folders(target.parent)
            is_new = not (target.is_file() and target.stat().st_size == len(content))
            if is_new:
                with PartFile(self._incoming, self._owner) as part:
                    part.write((content,))
                    part.synchronise()
                    part.rename(target)
            fsync_names((target.parent, *changed), target if is_new else None)
        except OSError as error:
            raise storage_error("filing a result", error) from error
        return target, digest

    def read(self, path: Path) -> bytes:
        """Return the bytes of a filed result.

        Raises
        ------
        NotFoundError
            When it is not here (any more), or lies outside the store.
        """
        if not path.resolve().is_relative_to(self._results):
            raise NotFoundError("the file does not lie in the result store")
        try:
            return path.read_bytes()
        except FileNotFoundError:
            raise NotFoundError("the result is not in the store any more; was its study purged?") from None

    def disposal(self) -> Disposal:
        """Return what gives up results that were purged."""
        return Disposal(self._results)

    def sweep(self) -> int:
        """Delete the parts of dead writers; return how many."""
        return sweep_parts(self._incoming)
