"""Claims on the gate: its limits hold whatever the order, and silent strangers cost an honest sender nothing."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from dicom_node.receive.access import NO_ROOM, Denied
from dicom_node.receive.gate import NO_ROOM_FOR_ADDRESS, Gate


@dataclass(frozen=True, eq=False)
class Caller:
    """A connection, as the gate sees it; each is itself."""

    address: str


def gate(*, max_pending: int = 4, max_associations: int = 4, max_per_address: int = 4) -> Gate:
    """Return a gate with small limits."""
    return Gate(max_pending=max_pending, max_associations=max_associations, max_per_address=max_per_address)


LIMITS = st.integers(1, 4)
STEPS = st.lists(
    st.tuples(st.sampled_from(["enter", "associate", "release", "leave"]), st.integers(0, 30)), max_size=120
)


@given(steps=STEPS, max_pending=LIMITS, max_associations=LIMITS, max_per_address=LIMITS)
def test_limits_hold_in_every_order(
    steps: list[tuple[str, int]], max_pending: int, max_associations: int, max_per_address: int
) -> None:
    """A walk beside a model: the gate answers what its counts say, and they never exceed what is allowed."""
    tried = gate(max_pending=max_pending, max_associations=max_associations, max_per_address=max_per_address)
    callers = [Caller(f"10.0.0.{number % 3}") for number in range(31)]
    pending: list[Caller] = []
    associated: list[Caller] = []
    for action, number in steps:
        caller = callers[number]
        here = sum(one.address == caller.address for one in associated)
        is_new = action == "enter" and caller not in pending + associated
        is_over = action == "release" and caller in associated
        if is_new or is_over:
            associated = [one for one in associated if one is not caller]
            leaving = tried.enter(caller) if is_new else tried.release(caller)
            assert (leaving is not None) == (len(pending) == max_pending)
            if isinstance(leaving, Caller):
                counts = Counter(one.address for one in pending)
                assert max(counts.values()) == counts[leaving.address]
                assert leaving is next(one for one in pending if one.address == leaving.address)
                pending.remove(leaving)
            pending.append(caller)
        elif action == "associate" and caller in pending:
            expected = NO_ROOM_FOR_ADDRESS if here >= max_per_address else None
            expected = NO_ROOM if len(associated) >= max_associations else expected
            assert expected == tried.associate(caller)
            if expected is None:
                pending.remove(caller)
                associated.append(caller)
        elif action == "release":
            assert tried.release(caller) is None
        elif action == "leave":
            tried.leave(caller)
            pending, associated = ([one for one in group if one is not caller] for group in (pending, associated))
        assert len(pending) <= max_pending
        assert len(associated) <= max_associations
        assert all(count <= max_per_address for count in Counter(one.address for one in associated).values())


def test_silent_strangers_go_before_an_honest_sender() -> None:
    """However many connect from one address, the one that waits at another keeps its place."""
    tried = gate(max_pending=4)
    honest = Caller("10.0.0.1")
    assert tried.enter(honest) is None
    gone = [tried.enter(Caller("10.6.6.6")) for _ in range(1000)]
    assert honest not in gone
    assert 997 == sum(one is not None for one in gone)
    assert tried.associate(honest) is None


def test_pending_connections_cost_no_association() -> None:
    """Those that never say who they are do not count against those that do."""
    tried = gate(max_pending=4, max_associations=1)
    for _ in range(100):
        tried.enter(Caller("10.6.6.6"))
    assert tried.associate(Caller("10.0.0.1")) is None


def test_limits_are_answered_transiently() -> None:
    """Result 2: senders come back; the log tells the two limits apart."""
    tried = gate(max_associations=2, max_per_address=1)
    assert tried.associate(Caller("10.0.0.1")) is None
    assert tried.associate(Caller("10.0.0.1")) is NO_ROOM_FOR_ADDRESS
    assert tried.associate(Caller("10.0.0.2")) is None
    assert tried.associate(Caller("10.0.0.3")) is NO_ROOM
    assert {2} == {NO_ROOM.result, NO_ROOM_FOR_ADDRESS.result}
    assert NO_ROOM.reason != NO_ROOM_FOR_ADDRESS.reason


def test_leaving_twice_is_harmless_and_makes_room() -> None:
    """The place of an association is free again, once."""
    tried = gate(max_associations=1)
    first = Caller("10.0.0.1")
    tried.enter(first)
    assert tried.associate(first) is None
    tried.leave(first)
    tried.leave(first)
    assert tried.associate(Caller("10.0.0.2")) is None
    assert tried.associate(Caller("10.0.0.3")) is NO_ROOM


def test_many_threads_get_as_many_places_as_there_are() -> None:
    """Ten that associate at once, each while the others look on: four places, never five."""

    class Dawdler(Caller):
        """One whose address takes a while to tell, so that threads meet inside the gate."""

        def __getattribute__(self, name: str) -> object:
            if name == "address":
                time.sleep(0.002)
            return super().__getattribute__(name)

    tried = gate(max_associations=4, max_per_address=10)
    answers: list[Denied | None] = []
    threads = [threading.Thread(target=lambda: answers.append(tried.associate(Dawdler("10.0.0.1")))) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (10, 4) == (len(answers), answers.count(None))
