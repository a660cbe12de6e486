"""At which revision a study or series stands, and which one routing has judged.

Each new version that is not ours raises the revision, so that a decision made on an older one is seen to be stale.
"""

from __future__ import annotations

from sqlalchemy import Connection, select, update

from dicom_node.errors import NotFoundError
from dicom_node.records.schema import series, study


def mark_decided(connection: Connection, study_uid: str, series_uid: str | None, revision: int) -> bool:
    """Write in a given transaction what `Studies.mark_decided` writes.

    Raises
    ------
    NotFoundError
        When there is no such study or series.
    """
    table = study if series_uid is None else series
    here = table.c.study_instance_uid == study_uid
    if series_uid is not None:
        here &= series.c.series_instance_uid == series_uid
    row = connection.execute(select(table).where(here).with_for_update()).first()
    if row is None:
        raise NotFoundError(f"there is no study {study_uid}" + (f" with series {series_uid}" if series_uid else ""))
    decided = max(revision, int(row.decided_revision))
    connection.execute(update(table).where(here).values(decided_revision=decided))
    is_current = decided >= int(row.revision)
    if series_uid is None and is_current:
        connection.execute(update(study).where(here, study.c.state == "receiving").values(state="complete"))
    return is_current


def revision_of(connection: Connection, study_uid: str, series_uid: str | None) -> int:
    """Return the revision at which a study or series stands.

    Raises
    ------
    NotFoundError
        When there is no such study or series.
    """
    query = select(study.c.revision).where(study.c.study_instance_uid == study_uid)
    if series_uid is not None:
        query = select(series.c.revision).where(
            series.c.study_instance_uid == study_uid, series.c.series_instance_uid == series_uid
        )
    revision = connection.execute(query.with_for_update()).scalar()
    if revision is None:
        raise NotFoundError(f"there is no study {study_uid}" + (f" with series {series_uid}" if series_uid else ""))
    return int(revision)


def state_of(connection: Connection, study_uid: str) -> str:
    """Return the state of a study, empty when there is none; its row stays as it is until the transaction ends."""
    here = select(study.c.state).where(study.c.study_instance_uid == study_uid)
    return str(connection.execute(here.with_for_update()).scalar() or "")
