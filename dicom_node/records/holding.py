"""Studies that wait for an administrator, and the identity that they wait for.

A study whose instances carry two Patient IDs is held: no job of it starts, no result of it leaves. The administrator
says that both are one patient, or which is right; then the other's instances are withdrawn. `indexing` holds,
`Jobs.claim`, `Deliveries.claim` and `Decisions.decide` look here.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import combinations
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Select, func, select, update

from dicom_node.errors import IllegalTransitionError, NotFoundError, UsageError
from dicom_node.records.schema import instance, series, study
from dicom_node.records.withdrawing import Withdrawn, withdraw

TWO_PATIENTS: Final = "its instances carry different Patient IDs; `dicom-node studies show` lists them"
"""Reason of a hold. It names no patient: reasons reach logs and screens, identifiers stay in their columns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who a study's instances say that the patient is."""

    patient_id: str
    """Without surrounding blanks."""
    issuer: str
    n_instances: int = 0


def contradicts(one: tuple[str, str], other: tuple[str, str]) -> bool:
    """Return whether two (Patient ID, issuer) cannot be one patient. Pure.

    An absent ID says nothing. The same ID of two issuers is two patients; an absent issuer says nothing.
    """
    (id_, issuer), (other_id, other_issuer) = one, other
    if not id_ or not other_id:
        return False
    return id_ != other_id or bool(issuer and other_issuer and issuer != other_issuer)


def are_two_patients(identities: Collection[tuple[str, str]], accepted: Collection[tuple[str, str]] = ()) -> bool:
    """Return whether two of the identities contradict each other, other than those accepted as one patient."""
    one = set(accepted)
    return any(contradicts(a, b) for a, b in combinations(sorted(identities), 2) if not {a, b} <= one)


def is_held(study_uid: ColumnElement[str]) -> ColumnElement[bool]:
    """Return the condition that a row belongs to a study that is held; there are few of those."""
    return study_uid.in_(select(study.c.study_instance_uid).where(study.c.state == "held"))


def identities_of(connection: Connection, study_uid: str) -> tuple[Identity, ...]:
    """Return the identities of the instances that count, ours left out, the most frequent first."""
    query = select(instance.c.patient_id, instance.c.issuer_of_patient_id, func.count().label("n"))
    query = query.where(_counts(study_uid)).group_by(instance.c.patient_id, instance.c.issuer_of_patient_id)
    rows = connection.execute(query).all()
    found = [Identity(patient_id=row.patient_id, issuer=row.issuer_of_patient_id, n_instances=row.n) for row in rows]
    return tuple(sorted(found, key=lambda one: (-one.n_instances, one.patient_id, one.issuer)))


def hold_if_two_patients(connection: Connection, study_uid: str, came: Collection[tuple[str, str]]) -> bool:
    """Hold the study when what came contradicts what was here; return whether it is held for that now, and was not.

    Nothing is compared as long as all that comes says the same as any one that is here. A hold for two patients ends by
    itself when corrections have left one: while the corrected images come, one by one, there are two.
    """
    query: Select[Any] = select(instance.c.patient_id, instance.c.issuer_of_patient_id).where(_counts(study_uid))
    some = connection.execute(query.limit(1)).first()
    row = connection.execute(select(study).where(study.c.study_instance_uid == study_uid)).one()
    is_waiting = row.state == "held" and row.reason == TWO_PATIENTS
    if some is None or (not is_waiting and set(came) <= {(some[0], some[1])}):
        return False
    found = [(one.patient_id, one.issuer) for one in identities_of(connection, study_uid)]
    accepted = {(id_, issuer) for id_, issuer in row.identities or ()}
    here = study.c.study_instance_uid == study_uid
    is_contradictory = are_two_patients(found, accepted)
    if is_waiting and not is_contradictory:
        connection.execute(update(study).where(here).values(state="receiving", reason=None))
    if row.state == "held" or not is_contradictory:
        return False
    connection.execute(update(study).where(here).values(state="held", reason=TWO_PATIENTS))
    return True


def hold_study(connection: Connection, study_uid: str, reason: str) -> None:
    """Hold a study for a reason. Raises NotFoundError; IllegalTransitionError when it is held or purged."""
    row = _row(connection, study_uid)
    if row.state in ("held", "purged"):
        raise IllegalTransitionError(f"study {study_uid} is {row.state} already")
    here = study.c.study_instance_uid == study_uid
    connection.execute(update(study).where(here).values(state="held", reason=reason))


def release_study(
    connection: Connection, study_uid: str, *, patient_id: str | None, is_same: bool, now: datetime
) -> Withdrawn:
    """Let a held study go on.

    Parameters
    ----------
    patient_id
        The right one of several; instances with another are withdrawn.
    is_same
        All that its instances carry are one patient, from now on.

    Raises
    ------
    NotFoundError
        When there is no such study.
    IllegalTransitionError
        When it is not held.
    UsageError
        When it has two patients and neither is said, or no instance carries `patient_id`.
    """
    row = _row(connection, study_uid)
    if row.state != "held":
        raise IllegalTransitionError(f"study {study_uid} is not held, it is {row.state}")
    found = identities_of(connection, study_uid)
    pairs = [(one.patient_id, one.issuer) for one in found]
    accepted = {(id_, issuer) for id_, issuer in row.identities or ()}
    done = Withdrawn()
    if patient_id is not None:
        if patient_id not in {one.patient_id for one in found}:
            raise UsageError("no instance of the study carries this Patient ID; `dicom-node studies show` lists them")
        done = _keep(connection, study_uid, patient_id, now)
        accepted |= {pair for pair in pairs if pair[0] == patient_id}  # of whatever issuer
    elif are_two_patients(pairs, accepted):
        if not is_same:
            raise UsageError("its instances carry different Patient IDs: say --patient ID for the right one, or --same")
        accepted |= set(pairs)
    here = study.c.study_instance_uid == study_uid
    fresh = connection.execute(select(study).where(here)).one()
    left = connection.execute(
        select(series.c.series_instance_uid)
        .where(series.c.study_instance_uid == study_uid, series.c.decided_revision < series.c.revision)
        .limit(1)
    ).first()
    is_open = fresh.decided_revision < fresh.revision or left is not None
    values: dict[str, Any] = {"state": "receiving" if is_open else "complete", "reason": None}
    if row.rate_guard == "held":
        values["rate_guard"] = "released"  # no rate holds it again
    if accepted:
        values["identities"] = sorted(map(list, accepted))
    connection.execute(update(study).where(here).values(**values))
    return done


def _keep(connection: Connection, study_uid: str, patient_id: str, now: datetime) -> Withdrawn:
    """Withdraw the instances of other patients."""
    counted: Sequence[Any] = connection.execute(select(instance).where(_counts(study_uid))).all()
    others = [row for row in counted if row.patient_id not in ("", patient_id)]
    here = study.c.study_instance_uid == study_uid
    connection.execute(update(study).where(here).values(patient_id=patient_id))
    sops = {row.sop_instance_uid for row in others}
    reason = "an administrator said that these images are another patient's"
    return withdraw(connection, study_uid, others, sops, reason, now, is_wrong=True)


def _counts(study_uid: str) -> ColumnElement[bool]:
    return (instance.c.study_instance_uid == study_uid) & instance.c.is_current & ~instance.c.made_by_us


def _row(connection: Connection, study_uid: str) -> Any:
    row = connection.execute(select(study).where(study.c.study_instance_uid == study_uid).with_for_update()).first()
    if row is None:
        raise NotFoundError(f"there is no study {study_uid}")
    return row
