"""The queue of each destination: one row per result and destination, tried until it ended well or was given up.

A sender claims, sends, and writes the answer under the token of its claim. Destinations do not wait for one another.
The change that leaves nothing open ends the job in the same transaction. Never opens an association.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, func, insert, literal, null, or_, select, update

from dicom_node.errors import LeaseLostError
from dicom_node.lifecycle import DeliveryEvent, DeliveryState, JobEvent, JobState, next_delivery_state
from dicom_node.records.database import Database
from dicom_node.records.holding import is_held
from dicom_node.records.job_reading import claimed_delivery, delivery_listing, delivery_row
from dicom_node.records.job_values import (
    FORWARD,
    FORWARDED_KIND,
    ClaimedDelivery,
    DeliveryRow,
    NewResult,
    destinations_from_json,
    result_values,
)
from dicom_node.records.pauses import read_pauses
from dicom_node.records.schema import delivery, instance, job, pause, result
from dicom_node.records.transitions import (
    NODE,
    add_event,
    advance_delivery,
    advance_job,
    close_delivered_job,
    find_delivery,
    find_job,
    queue_deliveries,
)


class Deliveries:
    """The aggregate of deliveries."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._clock = database.clock

    # Sending

    def due(self) -> tuple[str, ...]:
        """Return the destinations for which something is to be sent now."""
        query = select(delivery.c.destination).where(_is_due(self._clock.now())).distinct()
        with self._database.read() as connection:
            return tuple(sorted(connection.execute(query).scalars()))

    def claim(self, destination: str | None, sender: str, lease_s: float) -> ClaimedDelivery | None:
        """Take the oldest delivery that is due, to one destination or (None) to any; None when there is none.

        Nothing is due to a destination that is paused.
        """
        now = self._clock.now()
        chosen = select(delivery.c.id).where(_is_due(now)).order_by(delivery.c.id).limit(1)
        if destination is not None:
            chosen = chosen.where(delivery.c.destination == destination)
        take = update(delivery).where(
            delivery.c.id == chosen.with_for_update(skip_locked=True).scalar_subquery(),
            delivery.c.state == DeliveryState.QUEUED,
        )
        with self._database.begin() as connection:
            row = connection.execute(
                take.values(
                    state=next_delivery_state(DeliveryState.QUEUED, DeliveryEvent.CLAIM),
                    token=delivery.c.token + 1,
                    attempts=delivery.c.attempts + 1,
                    sender=sender,
                    lease_s=lease_s,
                    leased_until=now + timedelta(seconds=lease_s),
                    not_before=None,
                ).returning(delivery)
            ).first()
            if row is None:
                return None
            return _claimed(connection, row)

    def heartbeat(self, delivery_id: int, token: int) -> None:
        """Renew the lease.

        Raises
        ------
        LeaseLostError
            When another sender has the delivery.
        """
        mine = (delivery.c.id == delivery_id) & (delivery.c.token == token)
        mine &= delivery.c.state == DeliveryState.SENDING
        with self._database.begin() as connection:
            lease_s = connection.execute(select(delivery.c.lease_s).where(mine).with_for_update()).scalar()
            if lease_s is None:
                raise LeaseLostError(f"delivery {delivery_id} is no longer this sender's")
            until = self._clock.now() + timedelta(seconds=lease_s)
            connection.execute(update(delivery).where(mine).values(leased_until=until))

    def stored(self, delivery_id: int, token: int, status: int, comment: str | None = None) -> DeliveryState:
        """Write that the destination took the result: status 0x0000, or a warning with its comment."""
        return self._end(delivery_id, token, DeliveryEvent.STORE, status=status, reason=comment)

    def retry_later(
        self, delivery_id: int, token: int, reason: str, status: int | None, not_before: datetime
    ) -> DeliveryState:
        """Put the delivery back; `status` is the destination's answer, None when it gave none."""
        counted = {} if status is None else {"refusals": delivery.c.refusals + 1}
        return self._end(
            delivery_id,
            token,
            DeliveryEvent.RETRY_LATER,
            status=status,
            reason=reason,
            not_before=not_before,
            **counted,
        )

    def refuse(self, delivery_id: int, token: int, reason: str, status: int | None = None) -> DeliveryState:
        """Write that the destination never takes this kind of object."""
        return self._end(delivery_id, token, DeliveryEvent.REFUSE, status=status, reason=reason)

    def fail(self, delivery_id: int, token: int, reason: str, status: int | None = None) -> DeliveryState:
        """Write that the destination answers, but not with success, again and again."""
        return self._end(delivery_id, token, DeliveryEvent.FAIL, status=status, reason=reason)

    def set_aside(self, delivery_id: int, token: int, reason: str) -> DeliveryState:
        """Hold a claimed delivery for an administrator, with the reason."""
        return self._end(delivery_id, token, DeliveryEvent.SET_ASIDE, reason=reason)

    # Variants

    def own_uids(self, job_id: int) -> tuple[str, ...]:
        """Return the SOP and Series Instance UIDs of what a job has filed, variants left out."""
        query = select(result).where(result.c.job_id == job_id, result.c.variant_of.is_(None)).order_by(result.c.id)
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return tuple(uid for row in rows for uid in (row.sop_instance_uid, row.series_instance_uid))

    def adopt(self, delivery_id: int, token: int, variant: NewResult) -> ClaimedDelivery:
        """Let a claimed delivery send a variant of its result, whose bytes are durable; return it as it is now.

        A variant that has its row already is what is sent: one UID never gets two contents.

        Raises
        ------
        LeaseLostError
            When another sender has the delivery.
        """
        now = self._clock.now()
        with self._database.begin() as connection:
            row = find_delivery(connection, delivery_id)
            if row.token != token or row.state != DeliveryState.SENDING:
                raise LeaseLostError(f"delivery {delivery_id} is no longer this sender's")
            here = result.c.sop_instance_uid == variant.sop_instance_uid
            variant_id = connection.execute(select(result.c.id).where(here)).scalar()
            if variant_id is None:
                values = result_values(row.job_id, variant, now)
                values |= {"destination": row.destination, "variant_of": row.result_id}
                variant_id = connection.execute(insert(result).values(**values).returning(result.c.id)).scalar_one()
            mine = (delivery.c.id == delivery_id) & (delivery.c.token == token)
            connection.execute(update(delivery).where(mine).values(result_id=variant_id))
            return _claimed(connection, find_delivery(connection, delivery_id))

    # Upkeep

    def reap(self, is_alive: Callable[[str], bool] | None = None) -> tuple[int, ...]:
        """Take the deliveries from senders whose lease has run out, or whose process is gone; return their ids."""
        with self._database.read() as connection:
            sending = connection.execute(select(delivery).where(delivery.c.state == DeliveryState.SENDING)).all()
        now = self._clock.now()
        senders = {row.sender for row in sending}
        dead = {sender for sender in senders if is_alive is not None and not is_alive(sender)}
        suspects = [row for row in sending if row.sender in dead or row.leased_until <= now]
        return tuple(row.id for row in suspects if self._take_back(row, row.sender in dead, now))

    # The administrator

    def retry(self, delivery_id: int, *, actor: str = NODE, comment: str | None = None) -> DeliveryState:
        """Send a delivery that ended without success, was held, or waits for its back-off, as soon as may be."""
        return self._administer(delivery_id, DeliveryEvent.RETRY, actor, comment, not_before=None, refusals=0)

    def hold(self, delivery_id: int, reason: str, *, actor: str = NODE) -> DeliveryState:
        """Keep a delivery from being sent."""
        return self._administer(delivery_id, DeliveryEvent.HOLD, actor, reason, reason=reason)

    def skip(self, delivery_id: int, reason: str, *, actor: str = NODE) -> DeliveryState:
        """Do without a delivery."""
        return self._administer(delivery_id, DeliveryEvent.SKIP, actor, reason, reason=reason)

    # Reading

    def list(self, *, job_id: int | None = None, state: DeliveryState | None = None) -> tuple[DeliveryRow, ...]:
        """Return the deliveries, oldest first."""
        query = delivery_listing()
        if job_id is not None:
            query = query.where(delivery.c.job_id == job_id)
        if state is not None:
            query = query.where(delivery.c.state == state)
        with self._database.read() as connection:
            pauses = read_pauses(connection)
            return tuple(delivery_row(row, pauses) for row in connection.execute(query))

    def counts(self) -> dict[DeliveryState, int]:
        """Return how many deliveries stand in each state."""
        with self._database.read() as connection:
            rows = connection.execute(select(delivery.c.state, func.count()).group_by(delivery.c.state)).all()
        return dict.fromkeys(DeliveryState, 0) | {DeliveryState(state): n for state, n in rows}

    def _end(self, delivery_id: int, token: int, event: DeliveryEvent, **values: Any) -> DeliveryState:
        now = self._clock.now()
        with self._database.begin() as connection:
            state = advance_delivery(connection, delivery_id, event, now, token=token, **values)
            close_delivered_job(connection, find_delivery(connection, delivery_id).job_id, now)
        return state

    def _take_back(self, seen: Row[Any], is_dead: bool, now: datetime) -> bool:
        """Take a delivery from its sender, unless a heartbeat or another reaper came first."""
        with self._database.begin() as connection:
            row = find_delivery(connection, seen.id)
            if row.token != seen.token or row.state != DeliveryState.SENDING:
                return False
            if not is_dead and row.leased_until > now:
                return False
            advance_delivery(connection, seen.id, DeliveryEvent.LEASE_EXPIRED, now, reason="its sender died or stalled")
        return True

    def _administer(
        self, delivery_id: int, event: DeliveryEvent, actor: str, comment: str | None, **values: Any
    ) -> DeliveryState:
        """Apply an administrator's event, and tell it in the job's story.

        A job that had ended because of this delivery is judged anew.
        """
        now = self._clock.now()
        with self._database.begin() as connection:
            state = advance_delivery(connection, delivery_id, event, now, **values)
            row = find_delivery(connection, delivery_id)
            job_id = row.job_id
            owner = find_job(connection, job_id)
            job_state = owner.state
            said = "; ".join(filter(None, (f"delivery {delivery_id} to {row.destination}", comment)))
            add_event(connection, job_id, f"delivery_{event}", job_state, job_state, now, actor=actor, reason=said)
            reopens = event is DeliveryEvent.RETRY and job_state in (JobState.DONE, JobState.CANCELLED)
            if reopens or job_state == JobState.FAILED:
                advance_job(connection, job_id, JobEvent.REDELIVER, now)
                queue_deliveries(connection, job_id, destinations_from_json(owner.destinations), now)
            close_delivered_job(connection, job_id, now)
        return state


def _claimed(connection: Connection, row: Row[Any]) -> ClaimedDelivery:
    filed = connection.execute(_what_is_sent(row)).one()
    study_uid = connection.execute(select(job.c.study_instance_uid).where(job.c.id == row.job_id)).scalar_one()
    return claimed_delivery(row, filed, study_uid)


def _what_is_sent(row: Row[Any]) -> Select[Any]:
    """Return the query for the file behind a delivery: a result of ours, or an instance that is forwarded."""
    if row.result_id is not None:
        return select(result).where(result.c.id == row.result_id)
    return (
        select(instance, literal(FORWARDED_KIND).label("kind"), null().label("variant_of"))
        .join(job, job.c.study_instance_uid == instance.c.study_instance_uid)
        .where(
            job.c.id == row.job_id,
            instance.c.sop_instance_uid == row.instance_sop_uid,
            instance.c.digest == row.instance_digest,
        )
    )


def _is_due(now: datetime) -> ColumnElement[bool]:
    """Return the condition of being sent now: queued, back-off over, its job not cancelled, no pause and no hold."""
    paused = select(pause.c.name).where(pause.c.kind == "destination", pause.c.name == delivery.c.destination)
    paused_routes = select(pause.c.name).where(pause.c.kind == "route")
    delivering = select(job.c.id).where(
        job.c.id == delivery.c.job_id,
        job.c.state == JobState.DELIVERING,
        ~is_held(job.c.study_instance_uid),
        # What was inferred goes out; a route that forwards has nothing but its deliveries to pause.
        or_(job.c.plugin != FORWARD, job.c.route.not_in(paused_routes)),
    )
    return (
        (delivery.c.state == DeliveryState.QUEUED)
        & or_(delivery.c.not_before.is_(None), delivery.c.not_before <= now)
        & delivering.exists()
        & ~paused.exists()
    )
