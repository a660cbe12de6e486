"""Studies as they are received: associations, instance versions, series headers, and what completeness reads.

An instance version is a row of its own and is never changed; the one that counts is `current`. Each new
version raises the study's `revision`, so that a decision made on an older one is seen to be
stale. An identical repeat is no new input. Our own results are indexed and never counted, and change no state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    ScalarSelect,
    Select,
    Table,
    bindparam,
    func,
    insert,
    select,
    update,
)

from dicom_node.errors import NotFoundError
from dicom_node.ids import ProcessIdentity
from dicom_node.records.contents import Contents
from dicom_node.records.database import Database
from dicom_node.records.evidence import end_of, evidence_of, owner_of
from dicom_node.records.holding import Identity, hold_study, identities_of, release_study
from dicom_node.records.indexing import Indexed, index_study, turns_in
from dicom_node.records.revisions import mark_decided
from dicom_node.records.schema import association, decision, instance, job, series, study
from dicom_node.records.study_values import (
    Arrived,
    SeriesLayout,
    StudyEvidence,
    StudyRow,
    slice_spacing_mm,
)
from dicom_node.records.versions import OnConflict
from dicom_node.records.withdrawing import Withdrawn, withdraw_by_note
from dicom_node.study import Association, FiledInstance, ReceivedVersion, SeriesView, SourceImage, StudyView


class Studies:
    """The aggregate of studies, series, instances and the associations that brought them."""

    def __init__(self, database: Database, *, on_conflict: OnConflict = "replace_if_same_source") -> None:
        """`on_conflict`: which version counts when an instance comes again with other content."""
        self._database = database
        self._on_conflict = on_conflict
        self._clock = database.clock
        self.contents = Contents(database)

    # Associations

    def open_association(self, opened: Association, process: ProcessIdentity) -> None:
        """Write that `process` accepted an association; again is harmless."""
        with self._database.begin() as connection:
            if connection.execute(select(association.c.id).where(association.c.id == opened.id)).first() is not None:
                return
            connection.execute(
                insert(association).values(
                    id=opened.id,
                    calling_ae=opened.calling_ae,
                    called_ae=opened.called_ae,
                    address=opened.address,
                    peer=opened.peer,
                    opened_at=opened.opened_at,
                    last_activity_at=opened.opened_at,
                    owner_boot_id=process.boot_id,
                    owner_pid=process.pid,
                    owner_start_ticks=process.start_ticks,
                )
            )

    def touch_associations(self, last_activity_at: Mapping[str, datetime]) -> None:
        """Write when each association, by its id, was last active."""
        if last_activity_at:
            touch = update(association).where(association.c.id == bindparam("touched"))
            with self._database.begin() as connection:
                connection.execute(
                    touch.values(last_activity_at=bindparam("at")),
                    [{"touched": id_, "at": at} for id_, at in last_activity_at.items()],
                )

    def release_association(self, association_id: str, at: datetime, how: str) -> None:
        """Write that an association ended (`how`: released, aborted); call it after all its instances are indexed."""
        with self._database.begin() as connection:
            _end_associations(connection, [association_id], at, how)

    def orphan_associations(self, is_alive: Callable[[ProcessIdentity], bool]) -> tuple[str, ...]:
        """End the open associations whose process is gone; return their ids."""
        with self._database.read() as connection:
            rows = connection.execute(select(association).where(association.c.released_at.is_(None))).all()
        dead = {owner for owner in {owner_of(row) for row in rows} if not is_alive(owner)}
        orphans = tuple(row.id for row in rows if owner_of(row) in dead)
        if orphans:
            with self._database.begin() as connection:
                _end_associations(connection, orphans, self._clock.now(), "orphaned")
        return orphans

    # Indexing

    def index(
        self,
        batch: Sequence[Indexed],
        *,
        on_kept_back: Callable[[FiledInstance, str], None] | None = None,
        on_held: Callable[[str], None] | None = None,
        on_withdrawn: Callable[[str, Withdrawn], None] | None = None,
    ) -> tuple[str, ...]:
        """Write the rows of `batch` in one transaction; return the UIDs of the studies that got new input.

        Idempotent: a version that has its row already changes nothing but the trace of the association that moved it.
        `on_kept_back` hears, afterwards, of each new version that does not count, with the reason; `on_held` of each
        study that is held since; `on_withdrawn` of each study of which a rejection note took something back.
        """
        by_study: dict[str, list[Indexed]] = {}
        for filed, description in batch:
            by_study.setdefault(description.study_instance_uid, []).append((filed, description))
        with self._database.begin() as connection:
            turns = turns_in(connection, batch)
            done = {
                uid: index_study(connection, uid, items, self._on_conflict, turns) for uid, items in by_study.items()
            }
            withdrawn = self._obey_notes(connection, batch)
        for instance_, reason in (kept for one in done.values() for kept in one.kept_back):
            if on_kept_back is not None:
                on_kept_back(instance_, reason)
        for uid, one in done.items():
            if one.is_held and on_held is not None:
                on_held(uid)
        for uid, taken in withdrawn:
            if on_withdrawn is not None:
                on_withdrawn(uid, taken)
        return tuple(uid for uid, one in done.items() if one.is_new_input)

    def _obey_notes(self, connection: Connection, batch: Sequence[Indexed]) -> tuple[tuple[str, Withdrawn], ...]:
        """Withdraw what the rejection notes of a batch name; return what that did, study by study."""
        done = []
        for filed, description in batch:
            if description.rejection is None or description.made_by_us:
                continue
            named: dict[str, set[str]] = {}
            for study_uid, sop_instance_uid in description.rejection.references:
                named.setdefault(study_uid, set()).add(sop_instance_uid)
            code, reason = description.rejection.code, description.rejection.reason
            for study_uid, sops in named.items():
                taken = withdraw_by_note(
                    connection, study_uid, sops, filed.sop_instance_uid, code, reason, self._clock.now()
                )
                if taken != Withdrawn():
                    done.append((study_uid, taken))
        return tuple(done)

    # Holds

    def hold(self, study_uid: str, reason: str) -> None:
        """Keep a study from being processed and its results from leaving, until it is released.

        Raises
        ------
        NotFoundError
            When there is no such study.
        IllegalTransitionError
            When it is held or purged already.
        """
        with self._database.begin() as connection:
            hold_study(connection, study_uid, reason)

    def release(self, study_uid: str, *, patient_id: str | None = None, is_same: bool = False) -> Withdrawn:
        """Let a held study go on; see `holding.release_study`."""
        with self._database.begin() as connection:
            return release_study(connection, study_uid, patient_id=patient_id, is_same=is_same, now=self._clock.now())

    def identities(self, study_uid: str) -> tuple[Identity, ...]:
        """Return who the patient is, as the study's instances say; the most frequent first."""
        with self._database.read() as connection:
            return identities_of(connection, study_uid)

    def withdrawn(self, study_uid: str) -> dict[str, int]:
        """Return how many instances of a study do not count any more, by reason."""
        query = (
            select(instance.c.withdrawn, func.count(instance.c.sop_instance_uid.distinct()))
            .where(instance.c.study_instance_uid == study_uid, instance.c.withdrawn.is_not(None))
            .group_by(instance.c.withdrawn)
        )
        with self._database.read() as connection:
            return {reason: int(count) for reason, count in connection.execute(query)}

    def is_indexed(self, sop_instance_uid: str, digest: str) -> bool:
        """Return whether this version has its row."""
        query = select(instance.c.digest).where(
            instance.c.sop_instance_uid == sop_instance_uid, instance.c.digest == digest
        )
        with self._database.read() as connection:
            return connection.execute(query.limit(1)).first() is not None

    def is_empty(self) -> bool:
        """Return whether no instance has a row."""
        with self._database.read() as connection:
            return connection.execute(select(instance.c.digest).limit(1)).first() is None

    # Completeness

    def open_studies(self) -> tuple[StudyEvidence, ...]:
        """Return what is known of each study with undecided content, oldest first."""
        with self._database.read() as connection:
            studies = connection.execute(
                select(study).where(study.c.state == "receiving").order_by(study.c.first_received)
            ).all()
            return tuple(evidence_of(connection, row) for row in studies)

    def layout(self, study_uid: str, series_uid: str) -> SeriesLayout:
        """Return where the current images of a series lie, and what its header says.

        Raises
        ------
        NotFoundError
            When there is no such series.
        """
        images = _current_images(study_uid).where(instance.c.series_instance_uid == series_uid)
        with self._database.read() as connection:
            header = connection.execute(
                select(series.c.header).where(
                    series.c.study_instance_uid == study_uid, series.c.series_instance_uid == series_uid
                )
            ).scalar()
            planes = [row.planes for row in connection.execute(images.with_only_columns(instance.c.planes))]
        if header is None:
            raise NotFoundError(f"there is no study {study_uid} with series {series_uid}")
        return SeriesLayout(n_images=len(planes), planes=tuple(one for some in planes for one in some), header=header)

    def arrivals(self, calling_ae: str, limit: int) -> tuple[Arrived, ...]:
        """Return how the latest series of a sender came, latest first: whole ones of studies that are decided."""
        query = (
            select(series.c.n_runs, series.c.longest_pause_s, series.c.last_association, association.c.how)
            .join(study, study.c.study_instance_uid == series.c.study_instance_uid)
            .join(association, association.c.id == series.c.last_association, isouter=True)
            .where(series.c.calling_ae == calling_ae, series.c.n_images > 1, study.c.state != "receiving")
            .order_by(series.c.last_received.desc())
            .limit(limit)
        )
        with self._database.read() as connection:
            return tuple(
                Arrived(
                    n_runs=row.n_runs,
                    longest_pause_s=row.longest_pause_s,
                    end=end_of(row.last_association, row.how, is_open=False),
                )
                for row in connection.execute(query)
            )

    def force_complete(self, study_uid: str) -> None:
        """Write that a study and its series are complete as they stand; what comes later opens them again.

        Raises
        ------
        NotFoundError
            When there is no such study.
        """
        here = study.c.study_instance_uid == study_uid
        with self._database.begin() as connection:
            if not connection.execute(update(study).where(here).values(forced_revision=study.c.revision)).rowcount:
                raise NotFoundError(f"there is no study {study_uid}")

    def mark_decided(self, study_uid: str, series_uid: str | None, revision: int) -> bool:
        """Write that routing has judged a series, or (None) the study, as it stood at `revision`.

        Returns whether that is still what stands; a study so judged is complete.
        """
        with self._database.begin() as connection:
            return mark_decided(connection, study_uid, series_uid, revision)

    # Rates

    def begun(self, study_uid: str, within: timedelta) -> dict[str, int]:
        """Return how many studies each sender of this one had begun within such a time when this one began, itself too.

        Empty for a study that an administrator has released, or that is not there.
        """
        with self._database.read() as connection:
            row = connection.execute(select(study).where(study.c.study_instance_uid == study_uid)).first()
            if row is None or row.rate_guard == "released":
                return {}
            titles = select(series.c.calling_ae).where(series.c.study_instance_uid == study_uid).distinct()
            rows = connection.execute(
                select(series.c.calling_ae, func.count(study.c.study_instance_uid.distinct()).label("n"))
                .join(study, study.c.study_instance_uid == series.c.study_instance_uid)
                .where(
                    study.c.first_received > row.first_received - within,
                    study.c.first_received <= row.first_received,
                    series.c.calling_ae.in_(titles),
                )
                .group_by(series.c.calling_ae)
            )
            return {one.calling_ae.strip(): one.n for one in rows}

    def hold_for_rate(self, study_uid: str, reason: str) -> None:
        """Keep a study that is being received from being decided, because its sender exceeded its rate."""
        here = (study.c.study_instance_uid == study_uid) & (study.c.state == "receiving")
        with self._database.begin() as connection:
            connection.execute(update(study).where(here).values(state="held", reason=reason, rate_guard="held"))

    def held_for_rate(self, calling_ae: str | None = None) -> tuple[str, ...]:
        """Return the studies that a rate holds, or those of one sender, oldest first."""
        query = select(study.c.study_instance_uid).where(study.c.state == "held", study.c.rate_guard == "held")
        if calling_ae is not None:
            sent = (series.c.study_instance_uid == study.c.study_instance_uid) & (series.c.calling_ae == calling_ae)
            query = query.where(select(series.c.series_instance_uid).where(sent).exists())
        with self._database.read() as connection:
            return tuple(connection.execute(query.order_by(study.c.first_received)).scalars())

    # Reading

    def view(self, study_uid: str) -> StudyView:
        """Return the study as rules see it: current versions, our own results left out.

        Raises
        ------
        NotFoundError
            When there is no such study.
        """
        with self._database.read() as connection:
            row = _study_row(connection, study_uid)
            rows = connection.execute(
                select(series)
                .where(series.c.study_instance_uid == study_uid, series.c.n_instances > 0)
                .order_by(series.c.series_instance_uid)
            ).all()
            images: dict[str, list[Row[Any]]] = {}
            for image in connection.execute(_current_instances(study_uid)):
                images.setdefault(image.series_instance_uid, []).append(image)
        return StudyView(
            study_instance_uid=study_uid,
            series=tuple(_series_view(one, images.get(one.series_instance_uid, [])) for one in rows),
            first_received=row.first_received,
            last_received=row.last_received,
        )

    def series_images(self, study_uid: str, series_uid: str) -> tuple[SourceImage, ...]:
        """Return the current version of each image of a series that is here, ordered by SOP Instance UID."""
        query = _current_images(study_uid).where(instance.c.series_instance_uid == series_uid)
        return self._sources(query.where(instance.c.purged_at.is_(None)))

    def received_files(self, study_uid: str) -> tuple[SourceImage, ...]:
        """Return the current version of each instance that is here of a study, images or not, ours left out."""
        return self._sources(_current_instances(study_uid).where(instance.c.purged_at.is_(None)))

    def _sources(self, query: Select[Any]) -> tuple[SourceImage, ...]:
        with self._database.read() as connection:
            return tuple(
                SourceImage(sop_instance_uid=row.sop_instance_uid, digest=row.digest, path=Path(row.path))
                for row in connection.execute(query)
            )

    def list(self) -> tuple[StudyRow, ...]:
        """Return every study, latest first."""
        with self._database.read() as connection:
            return tuple(map(_listed, connection.execute(_listing())))

    def history(self, since: datetime) -> tuple[StudyRow, ...]:
        """Return the studies of which something came at or after `since`, latest first; purged ones, too."""
        with self._database.read() as connection:
            return tuple(map(_listed, connection.execute(_listing().where(study.c.last_received >= since))))

    def show(self, study_uid: str) -> StudyRow:
        """Return one study.

        Raises
        ------
        NotFoundError
            When there is no such study.
        """
        with self._database.read() as connection:
            row = connection.execute(_listing().where(study.c.study_instance_uid == study_uid)).first()
        if row is None:
            raise NotFoundError(f"there is no study {study_uid}")
        return _listed(row)


def _end_associations(connection: Connection, ids: Iterable[str], at: datetime, how: str) -> None:
    for id_ in ids:
        connection.execute(
            update(association)
            .where(association.c.id == id_, association.c.released_at.is_(None))
            .values(released_at=at, how=how)
        )


def _study_row(connection: Connection, study_uid: str) -> Row[Any]:
    row = connection.execute(select(study).where(study.c.study_instance_uid == study_uid)).first()
    if row is None:
        raise NotFoundError(f"there is no study {study_uid}")
    return row


def _current_images(study_uid: str) -> Select[Any]:
    return _current_instances(study_uid).where(instance.c.is_image)


def _current_instances(study_uid: str) -> Select[Any]:
    return (
        select(instance)
        .where(instance.c.study_instance_uid == study_uid, instance.c.is_current, ~instance.c.made_by_us)
        .order_by(instance.c.sop_instance_uid)
    )


def _series_view(row: Row[Any], received: Sequence[Row[Any]]) -> SeriesView:
    images = [one for one in received if one.is_image]
    return SeriesView(
        series_instance_uid=row.series_instance_uid,
        header=row.header,
        n_images=row.n_images,
        n_instances=row.n_instances,
        calling_ae=row.calling_ae,
        called_ae=row.called_ae,
        slice_spacing_mm=slice_spacing_mm([plane for image in images for plane in image.planes]),
        image_digests=tuple((image.sop_instance_uid, image.digest) for image in images),
        received=tuple(
            ReceivedVersion(sop_instance_uid=one.sop_instance_uid, digest=one.digest, calling_ae=one.calling_ae)
            for one in received
        ),
    )


def _listing() -> Select[Any]:
    def count_of(table: Table, condition: ColumnElement[bool]) -> ScalarSelect[int]:
        return select(func.count()).select_from(table).where(condition).scalar_subquery()

    uid = study.c.study_instance_uid
    is_received = series.c.n_instances > 0
    n_instances = select(func.coalesce(func.sum(series.c.n_instances), 0)).where(series.c.study_instance_uid == uid)
    return select(
        study,
        count_of(series, (series.c.study_instance_uid == uid) & is_received).label("n_series"),
        n_instances.scalar_subquery().label("n_instances"),
        count_of(decision, decision.c.study_instance_uid == uid).label("decisions"),
        count_of(job, job.c.study_instance_uid == uid).label("jobs"),
    ).order_by(study.c.last_received.desc(), uid)


def _listed(row: Row[Any]) -> StudyRow:
    return StudyRow(
        study_instance_uid=row.study_instance_uid,
        state=row.state,
        reason=row.reason,
        n_series=row.n_series,
        n_instances=row.n_instances,
        first_received=row.first_received,
        last_received=row.last_received,
        decisions=row.decisions,
        jobs=row.jobs,
    )
