"""How files of the shelf are given up while the same content may arrive again at any moment.

A file is set aside first: renamed into a folder of its own, so that shelving finds it here or not, and nothing between.
Only then its row is looked at once more. When the version came again meanwhile, the file goes back; otherwise it is
deleted. Whoever shelves looks, behind the row and before the arrival is released, whether the file still stands, and
shelves anew if not. So a file is gone only if its row says so, whatever dies in between and whenever it comes again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeAlias

from dicom_node.filing.durable import fsync_folder, make_folders, storage_error
from dicom_node.filing.layout import digest_in

PURGING_FOLDER: Final = "purging"

Kept: TypeAlias = Callable[[Collection[str]], Collection[str]]
"""Which of these digests belong to versions that are to stay, as the records say now."""


class Disposal:
    """Gives up files of one shelf."""

    def __init__(self, shelf: Path) -> None:
        """`shelf`: the folder in which versions stand under `layout.version_path`."""
        self._shelf = shelf.resolve()
        self._aside = self._shelf.parent / PURGING_FOLDER

    def dispose(self, paths: Sequence[Path], kept: Kept) -> int:
        """Delete versions, except those whose digests `kept` names when they are out of the way; return how many went.

        What is not here any more is no error, and what is no version of this shelf is left alone.

        Raises
        ------
        StorageError
            When the disk refuses.
        """
        try:
            for parent in make_folders(self._aside):
                fsync_folder(parent)
            for path in paths:
                if digest_in(path.name) is not None and path == self._home(path.name):
                    with suppress(FileNotFoundError):
                        path.rename(self._aside / path.name)
            return self._end([path.name for path in paths], kept)
        except OSError as error:
            raise storage_error("purging", error) from error

    def sweep(self, kept: Kept) -> int:
        """Finish what a purge that died has set aside; return how many files went. Raises StorageError."""
        try:
            return self._end([path.name for path in self._aside.glob("*")], kept)
        except OSError as error:
            raise storage_error("purging", error) from error

    def _home(self, name: str) -> Path:
        return self._shelf / name[:2] / name[2:4] / name

    def _end(self, names: Sequence[str], kept: Kept) -> int:
        aside = {name: digest for name in names if (digest := digest_in(name)) and (self._aside / name).exists()}
        came_again = kept([*aside.values()]) if aside else ()
        count = 0
        for name, digest in aside.items():
            with suppress(FileNotFoundError):  # another purge was quicker
                if digest in came_again:
                    (self._aside / name).rename(self._home(name))
                    fsync_folder(self._home(name).parent)
                else:
                    (self._aside / name).unlink()
                    count += 1
        return count
