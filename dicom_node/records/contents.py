"""Which versions of an instance hold the same image: a recompressed or corrected copy is no new input.

An instance that comes again with other bytes is a version of its own. Whether its pixels and geometry are others is
found out by decoding both (`reading.content_digest`), off the hot path, and kept here: one digest a version, and only
of instances that have several. Of versions with the same content the first stands for all of them in input digests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import ColumnElement, and_, exists, select, update

from dicom_node.records.database import Database
from dicom_node.records.schema import instance, study


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredVersion:
    """One version of an instance whose content is not known yet."""

    study_instance_uid: str
    sop_instance_uid: str
    digest: str
    path: Path


class Contents:
    """The aggregate of what versions hold."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def uncompared(
        self, study_uid: str | None = None, series_uid: str | None = None, *, limit: int
    ) -> tuple[StoredVersion, ...]:
        """Return versions of images that have others beside them and whose content is not known.

        Of one series, or (None) of every study that waits to be decided.
        """
        other = instance.alias("other")
        has_others = exists().where(
            other.c.study_instance_uid == instance.c.study_instance_uid,
            other.c.sop_instance_uid == instance.c.sop_instance_uid,
            other.c.digest != instance.c.digest,
        )
        wanted: ColumnElement[bool] = and_(
            instance.c.content_digest.is_(None),
            instance.c.purged_at.is_(None),
            instance.c.is_image,
            ~instance.c.made_by_us,
            has_others,
        )
        if study_uid is None:
            open_studies = select(study.c.study_instance_uid).where(study.c.state == "receiving")
            wanted &= instance.c.study_instance_uid.in_(open_studies)
        else:
            wanted &= instance.c.study_instance_uid == study_uid
        if series_uid is not None:
            wanted &= instance.c.series_instance_uid == series_uid
        with self._database.read() as connection:
            return tuple(
                StoredVersion(
                    study_instance_uid=row.study_instance_uid,
                    sop_instance_uid=row.sop_instance_uid,
                    digest=row.digest,
                    path=Path(row.path),
                )
                for row in connection.execute(select(instance).where(wanted).limit(limit))
            )

    def write(self, found: Sequence[tuple[StoredVersion, str]]) -> None:
        """Write the content digest of each version."""
        with self._database.begin() as connection:
            for one, content_digest in found:
                connection.execute(
                    update(instance)
                    .where(
                        instance.c.study_instance_uid == one.study_instance_uid,
                        instance.c.sop_instance_uid == one.sop_instance_uid,
                        instance.c.digest == one.digest,
                    )
                    .values(content_digest=content_digest)
                )

    def first_of_their_kind(self, study_uid: str, images: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
        """Return (SOP Instance UID, digest) of the earliest version that holds what each of `images` holds."""
        query = (
            select(instance.c.sop_instance_uid, instance.c.digest, instance.c.content_digest)
            .where(instance.c.study_instance_uid == study_uid, instance.c.content_digest.is_not(None))
            .order_by(instance.c.received_at, instance.c.digest)
        )
        first: dict[tuple[str, str], str] = {}
        content: dict[tuple[str, str], str] = {}
        with self._database.read() as connection:
            for row in connection.execute(query):
                first.setdefault((row.sop_instance_uid, row.content_digest), row.digest)
                content[row.sop_instance_uid, row.digest] = row.content_digest
        return tuple(
            (sop, first[sop, content[sop, digest]] if (sop, digest) in content else digest) for sop, digest in images
        )
