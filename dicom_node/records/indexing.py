"""How received instances become rows: versions, then their series, then their study, in one transaction.

The write half of `studies`. A row of an instance version is inserted once; afterwards only its `is_current` changes,
when a newer version takes its place (`versions` decides). Counts and headers of a series follow its current versions,
so that a repeat, a correction or an instance that moved to another series leaves no trace. What a batch costs depends
on the batch alone, not on what the series, or the database, holds already.

What comes again after its study was purged is new: rows of purged versions count no more as soon as anything comes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias

from sqlalchemy import Column, Connection, Row, delete, insert, select, update

from dicom_node.records.holding import hold_if_two_patients
from dicom_node.records.schema import association, association_study, instance, series, study
from dicom_node.records.study_values import planes_of
from dicom_node.records.versions import OnConflict, Version, why_kept_back
from dicom_node.records.withdrawing import forget_expired, rejections
from dicom_node.study import MOST_PAUSE_S, FiledInstance, InstanceDescription

Indexed: TypeAlias = tuple[FiledInstance, InstanceDescription]
KeptBack: TypeAlias = tuple[FiledInstance, str]

_SERIES_BEFORE: Final[tuple[Column[Any], ...]] = (
    *(series.c.series_instance_uid, series.c.header_sop_instance_uid, series.c.last_received),
    *(series.c.n_instances, series.c.n_images),
    *(series.c.last_association, series.c.n_runs, series.c.longest_pause_s),
)
"""All that a batch asks of a series; its header would have to be parsed each time."""


class _Gain(NamedTuple):
    """What a batch adds to the counts of a series; ours never count."""

    n_instances: int = 0
    n_images: int = 0

    def after(self, row: dict[str, Any], sign: int) -> _Gain:
        """Return the gain when this version, too, becomes the current one (+1), or ceases to be it (-1)."""
        counts = sign * (not row["made_by_us"])
        return _Gain(self.n_instances + counts, self.n_images + counts * row["is_image"])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    """What a batch did to one study."""

    accepted: tuple[Indexed, ...]
    """New current versions that are not ours, oldest first."""
    changed: frozenset[str]
    """UIDs of series that gained or lost an instance, or began; what a route forwards need not be an image."""
    gained: Mapping[str, _Gain]
    """What each series gained or lost, by UID: the series whose rows are to be brought up to date."""
    kept_back: tuple[KeptBack, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyIndexed:
    """What indexing did to one study."""

    is_new_input: bool
    """Routing has something new to judge."""
    kept_back: tuple[KeptBack, ...] = ()
    """(instance, reason) of each new version that does not count."""
    is_held: bool = False
    """The study has two patients since this batch, and waits for an administrator."""


def index_study(
    connection: Connection,
    study_uid: str,
    items: Sequence[Indexed],
    on_conflict: OnConflict,
    turns: frozenset[tuple[str, str]],
) -> StudyIndexed:
    """Write the rows of one study's instances; `turns` are those with which an association turned to their series."""
    forget_expired(connection, study_uid, {filed.sop_instance_uid for filed, _ in items})
    new = _without_row(connection, study_uid, items)
    find = select(study).where(study.c.study_instance_uid == study_uid).with_for_update()
    row = connection.execute(find).first()
    if row is None:
        _insert_study(connection, study_uid, new[0])
        row = connection.execute(find).one()
    _trace_associations(connection, study_uid, items)
    if not new:
        return StudyIndexed(is_new_input=False)
    _forget_purged(connection, row, new)
    before = _series_before(connection, study_uid, new)
    written = _write_versions(connection, study_uid, new, before, on_conflict)
    revision = int(row.revision) + bool(written.changed)
    for series_uid in sorted(written.gained):
        arrival = _arrival(written, series_uid, before.get(series_uid), turns)
        _refresh_series(connection, study_uid, series_uid, written, before.get(series_uid), revision, arrival)
    if written.accepted:
        _refresh_study(connection, row, written, revision)
    came = {(described.patient_id, described.issuer_of_patient_id) for _, described in written.accepted}
    is_held = hold_if_two_patients(connection, study_uid, came)
    return StudyIndexed(is_new_input=bool(written.changed), kept_back=written.kept_back, is_held=is_held)


def _without_row(connection: Connection, study_uid: str, items: Sequence[Indexed]) -> list[Indexed]:
    """Return the versions that have no row yet, or that of a purged one, oldest first, each once."""
    sops = {filed.sop_instance_uid for filed, _ in items}
    known = {
        (row.sop_instance_uid, row.digest)
        for row in connection.execute(
            select(instance.c.sop_instance_uid, instance.c.digest).where(
                instance.c.study_instance_uid == study_uid,
                instance.c.sop_instance_uid.in_(sops),
                instance.c.purged_at.is_(None),
            )
        )
    }
    new = []
    for filed, description in sorted(items, key=lambda item: item[0].received_at):
        version = (filed.sop_instance_uid, filed.digest)
        if version not in known:
            known.add(version)
            new.append((filed, description))
    return new


def _forget_purged(connection: Connection, row: Row[Any], new: Sequence[Indexed]) -> None:
    """Let what was purged count no more; the rows of versions that come again make room for new ones."""
    if row.purged_at is None:
        return
    uid = row.study_instance_uid
    if row.state == "purged":
        here = (instance.c.study_instance_uid == uid) & instance.c.purged_at.is_not(None)
        connection.execute(update(instance).where(here).values(is_current=False))
        connection.execute(update(series).where(series.c.study_instance_uid == uid).values(n_images=0, n_instances=0))
        connection.execute(update(study).where(study.c.study_instance_uid == uid).values(state="complete"))
    for filed, _ in new:
        connection.execute(
            delete(instance).where(
                instance.c.study_instance_uid == uid,
                instance.c.sop_instance_uid == filed.sop_instance_uid,
                instance.c.digest == filed.digest,
            )
        )


def _insert_study(connection: Connection, study_uid: str, first: Indexed) -> None:
    """Write a study's first row: complete at revision 0 until something comes that is not ours."""
    filed, description = first
    connection.execute(
        insert(study).values(
            study_instance_uid=study_uid,
            patient_id=description.patient_id,
            state="complete",
            first_received=filed.received_at,
            last_received=filed.received_at,
            revision=0,
            decided_revision=0,
        )
    )


def _trace_associations(connection: Connection, study_uid: str, items: Sequence[Indexed]) -> None:
    """Write when each association last moved data of the study; repeats count, the sender is still at it."""
    latest: dict[str, Any] = {}
    for filed, _ in items:
        if filed.association is not None:
            latest[filed.association] = max(filed.received_at, latest.get(filed.association, filed.received_at))
    for id_, at in latest.items():
        here = (association_study.c.association == id_) & (association_study.c.study_instance_uid == study_uid)
        if connection.execute(update(association_study).where(here).values(last_received_at=at)).rowcount == 0:
            connection.execute(
                insert(association_study).values(association=id_, study_instance_uid=study_uid, last_received_at=at)
            )


def _series_before(connection: Connection, study_uid: str, new: Sequence[Indexed]) -> dict[str, Row[Any]]:
    """Return the rows of the study's series as they were; insert an empty row for each new one."""
    rows = connection.execute(select(*_SERIES_BEFORE).where(series.c.study_instance_uid == study_uid)).all()
    before = {row.series_instance_uid: row for row in rows}
    made: set[str] = set()
    for filed, description in new:
        series_uid = description.series_instance_uid
        if series_uid not in before and series_uid not in made:
            made.add(series_uid)
            connection.execute(
                insert(series).values(
                    study_instance_uid=study_uid,
                    series_instance_uid=series_uid,
                    first_received=filed.received_at,
                    last_received=filed.received_at,
                    n_images=0,
                    n_instances=0,
                    revision=0,
                    decided_revision=0,
                    **_header_values(filed, description),
                )
            )
    return before


def _header_values(filed: FiledInstance, description: InstanceDescription) -> dict[str, Any]:
    return {
        "header": dict(description.header),
        "header_sop_instance_uid": filed.sop_instance_uid,
        "calling_ae": filed.calling_ae,
        "called_ae": filed.called_ae,
    }


def _write_versions(
    connection: Connection,
    study_uid: str,
    new: Sequence[Indexed],
    before: dict[str, Row[Any]],
    on_conflict: OnConflict,
) -> _Written:
    """Insert the versions; make the one of each instance that counts the current one."""
    rejected = rejections(connection, study_uid, {filed.sop_instance_uid for filed, _ in new})
    holders = _current_versions(connection, study_uid, {filed.sop_instance_uid for filed, _ in new})
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    changed: set[str] = set()
    gained: dict[str, _Gain] = {}
    kept_back: list[KeptBack] = []
    for filed, description in new:
        holder = holders.get(filed.sop_instance_uid)
        reason = rejected.get(filed.sop_instance_uid)
        if reason is None and holder is not None:
            reason = why_kept_back(_as_version(holder), _as_version(filed), on_conflict)
        row = _version_row(filed, description, is_current=reason is None)
        row["withdrawn"] = rejected.get(filed.sop_instance_uid)
        rows[filed.sop_instance_uid, filed.digest] = row
        if reason is not None:
            kept_back.append((filed, reason))
            continue
        holders[filed.sop_instance_uid] = row
        for one, sign in ((row, 1), (holder, -1)):
            if one is not None:
                series_uid = one["series_instance_uid"]
                gained[series_uid] = gained.get(series_uid, _Gain()).after(one, sign)
        changed |= _series_of(*(one for one in (holder, row) if one and not one["made_by_us"]))
        if holder is not None:
            holder["is_current"] = False
            _displace(connection, holder)
    connection.execute(insert(instance), list(rows.values()))
    accepted = [item for item in new if _is_accepted(rows[item[0].sop_instance_uid, item[0].digest])]
    for _, description in accepted:
        earlier = before.get(description.series_instance_uid)
        if earlier is None or earlier.n_instances == 0:
            changed.add(description.series_instance_uid)
    return _Written(
        accepted=tuple(accepted),
        changed=frozenset(changed),
        gained=gained,
        kept_back=tuple(kept_back),
    )


def _as_version(one: FiledInstance | dict[str, Any]) -> Version:
    if isinstance(one, FiledInstance):
        return Version(calling_ae=one.calling_ae, received_at=one.received_at)
    return Version(calling_ae=one["calling_ae"], received_at=one["received_at"])


def _current_versions(connection: Connection, study_uid: str, sops: Iterable[str]) -> dict[str, dict[str, Any]]:
    rows = connection.execute(
        select(instance).where(
            instance.c.study_instance_uid == study_uid, instance.c.is_current, instance.c.sop_instance_uid.in_(sops)
        )
    )
    return {row.sop_instance_uid: dict(row._mapping) for row in rows}


def _series_of(*rows: dict[str, Any] | None) -> set[str]:
    return {row["series_instance_uid"] for row in rows if row is not None}


def _is_accepted(row: dict[str, Any]) -> bool:
    return bool(row["is_current"] and not row["made_by_us"])


def _displace(connection: Connection, row: dict[str, Any]) -> None:
    """Take the mark `current` from a version; one of the same batch has no row yet, its insert will not bear it."""
    connection.execute(
        update(instance)
        .where(
            instance.c.study_instance_uid == row["study_instance_uid"],
            instance.c.sop_instance_uid == row["sop_instance_uid"],
            instance.c.digest == row["digest"],
        )
        .values(is_current=False)
    )


def _version_row(filed: FiledInstance, description: InstanceDescription, *, is_current: bool) -> dict[str, Any]:
    return {
        "study_instance_uid": description.study_instance_uid,
        "sop_instance_uid": filed.sop_instance_uid,
        "digest": filed.digest,
        "series_instance_uid": description.series_instance_uid,
        "sop_class_uid": filed.sop_class_uid,
        "transfer_syntax_uid": filed.transfer_syntax_uid,
        "path": str(filed.path),
        "size_bytes": filed.size_bytes,
        "calling_ae": filed.calling_ae,
        "called_ae": filed.called_ae,
        "association": filed.association,
        "received_at": filed.received_at,
        "is_current": is_current,
        "is_image": description.is_image,
        "made_by_us": description.made_by_us,
        "n_frames": description.n_frames,
        "planes": planes_of(description.frames),
        "patient_id": description.patient_id,
        "issuer_of_patient_id": description.issuer_of_patient_id,
    }


def _refresh_series(
    connection: Connection,
    study_uid: str,
    series_uid: str,
    written: _Written,
    before: Row[Any] | None,
    revision: int,
    arrival: Mapping[str, Any],
) -> None:
    """Bring counts, header, times and revision of one series up to date."""
    earlier = _Gain() if before is None else _Gain(before.n_instances, before.n_images)
    gain = written.gained[series_uid]
    values: dict[str, Any] = {
        "n_instances": earlier.n_instances + gain.n_instances,
        "n_images": earlier.n_images + gain.n_images,
    }
    accepted = [item for item in written.accepted if item[1].series_instance_uid == series_uid]
    if accepted:
        received = [filed.received_at for filed, _ in accepted]
        values["last_received"] = max(received if before is None else [*received, before.last_received])
        source = _header_source(accepted, before)
        if source is not None:
            values |= _header_values(*source)
        values |= arrival
    if series_uid in written.changed:
        values["revision"] = revision
    connection.execute(
        update(series)
        .where(series.c.study_instance_uid == study_uid, series.c.series_instance_uid == series_uid)
        .values(**values)
    )


def turns_in(connection: Connection, batch: Sequence[Indexed]) -> frozenset[tuple[str, str]]:
    """Return (SOP Instance UID, digest) of the instances with which an association turned to their series.

    Writes which series each association brought last.
    """
    ids = {filed.association for filed, _ in batch if filed.association is not None}
    present = {
        row.id: row.last_series
        for row in connection.execute(
            select(association.c.id, association.c.last_series).where(association.c.id.in_(ids))
        )
    }
    turns = set()
    brought: dict[str, str] = {}
    for filed, description in sorted(batch, key=lambda item: item[0].received_at):
        here = f"{description.study_instance_uid} {description.series_instance_uid}"
        if brought.get(filed.association or "", present.get(filed.association)) != here:
            turns.add((filed.sop_instance_uid, filed.digest))
        brought[filed.association or ""] = here
    for id_ in present:
        if brought[id_] != present[id_]:
            connection.execute(update(association).where(association.c.id == id_).values(last_series=brought[id_]))
    return frozenset(turns)


def _arrival(
    written: _Written, series_uid: str, before: Row[Any] | None, turns: frozenset[tuple[str, str]]
) -> dict[str, Any]:
    """Return how the series has come so far: in how many turns of associations, with which longest pause."""
    accepted = [filed for filed, description in written.accepted if description.series_instance_uid == series_uid]
    is_first = before is None or before.n_instances == 0
    last_association = None if is_first else before.last_association  # type: ignore[union-attr]
    last_received = None if is_first else before.last_received  # type: ignore[union-attr]
    n_runs = 0 if before is None else int(before.n_runs)
    longest = 0.0 if before is None else float(before.longest_pause_s)
    for filed in accepted:
        is_other = filed.association != last_association
        if is_other or n_runs == 0 or (filed.sop_instance_uid, filed.digest) in turns:
            n_runs, last_association = n_runs + 1, filed.association
        if last_received is not None:
            pause_s = (filed.received_at - last_received).total_seconds()
            longest = max(longest, pause_s) if pause_s <= MOST_PAUSE_S else longest
        last_received = filed.received_at if last_received is None else max(last_received, filed.received_at)
    return {"last_association": last_association, "n_runs": n_runs, "longest_pause_s": longest}


def _header_source(accepted: Sequence[Indexed], before: Row[Any] | None) -> Indexed | None:
    """Return the instance whose header the series takes over; None when it keeps the one it has.

    The first image gives the header, and a corrected version of that image gives it anew.
    """
    source: Indexed | None = None
    if before is None or before.n_images == 0:
        source = next((item for item in accepted if item[1].is_image), None)
        if source is None and (before is None or before.n_instances == 0):
            source = accepted[0]
    else:
        source = next((i for i in reversed(accepted) if i[0].sop_instance_uid == before.header_sop_instance_uid), None)
    return source


def _refresh_study(connection: Connection, before: Row[Any], written: _Written, revision: int) -> None:
    """Bring times, identity, revision and state of the study up to date; new input opens it again."""
    oldest, newest = written.accepted[0], written.accepted[-1]
    values: dict[str, Any] = {
        "last_received": max(before.last_received, newest[0].received_at),
        "patient_id": newest[1].patient_id,
    }
    if written.changed:
        values["revision"] = revision
        values["state"] = "held" if before.state == "held" else "receiving"
    if before.revision == 0:
        values["first_received"] = oldest[0].received_at
    connection.execute(update(study).where(study.c.study_instance_uid == before.study_instance_uid).values(**values))
