"""The flood guard: beyond its rate a sender's studies are received and held, never refused, never lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.config.schema import Peer
from dicom_node.errors import IllegalTransitionError
from dicom_node.routing import over_rate
from tests.integration.routing_case import PEERS, SmallNode

LIMITED = PEERS.replace('ae_title = "SCANNER"', 'ae_title = "SCANNER"\nmax_studies_per_hour = 2')
ROUTE = '[[route]]\nname = "copies"\ndestinations = ["archive"]\n'


@pytest.fixture
def node(tmp_path: Path) -> SmallNode:
    """Return a node that lets the scanner begin two studies an hour."""
    return SmallNode(tmp_path, ROUTE, peers_text=LIMITED)


def _begin(node: SmallNode, *numbers: int, calling_ae: str = "SCANNER", after_s: float = 10.0) -> None:
    for number in numbers:
        node.receive(1, study=f"1.2.{number}", series=f"1.2.{number}.1", calling_ae=calling_ae)
        node.decide(after_s)


def _states(node: SmallNode) -> dict[str, str]:
    return {row.study_instance_uid: row.state for row in node.records.studies.list()}


def test_what_exceeds_the_rate_is_held_with_its_reason(node: SmallNode) -> None:
    """The third study within an hour: its images are here, no route was asked, and the list says why."""
    _begin(node, 1, 2, 3)
    assert {"1.2.1": "complete", "1.2.2": "complete", "1.2.3": "held"} == _states(node)
    held = node.records.studies.show("1.2.3")
    assert held.reason is not None
    assert "SCANNER had begun 3 studies within an hour, more than max_studies_per_hour = 2" in held.reason
    assert (1, 0, 2) == (held.n_instances, held.decisions, len(node.records.jobs.list()))


def test_the_rate_sinks_and_new_studies_pass(node: SmallNode) -> None:
    """What is held stays held; an hour later two more may begin."""
    _begin(node, 1, 2, 3)
    node.records.clock.advance(3600)
    _begin(node, 4)
    assert ("held", "complete") == (_states(node)["1.2.3"], _states(node)["1.2.4"])


def test_others_are_not_held(node: SmallNode) -> None:
    """One sender's migration costs another nothing."""
    _begin(node, 1, 2, 3)
    _begin(node, 4, 5, 6, calling_ae="OTHER")
    assert ["complete"] * 3 == [_states(node)[f"1.2.{number}"] for number in (4, 5, 6)]


def test_released_study_is_decided_and_not_held_again(node: SmallNode) -> None:
    """Also when more of it comes, and to a worker that starts afresh."""
    _begin(node, 1, 2, 3)
    node.records.studies.release("1.2.3")
    node.decide()
    assert 3 == len(node.records.jobs.list())
    node.decision = node.new_decision()
    node.receive(2, study="1.2.3", series="1.2.3.1")
    node.decide()
    assert ("complete", None) == (_states(node)["1.2.3"], node.records.studies.show("1.2.3").reason)
    assert 4 == len(node.records.jobs.list())
    with pytest.raises(IllegalTransitionError, match="is not held"):
        node.records.studies.release("1.2.3")


def test_more_of_a_held_study_is_received_and_it_stays_held(node: SmallNode) -> None:
    """Nothing is lost: all of it is there when it is released."""
    _begin(node, 1, 2, 3)
    node.receive(2, study="1.2.3", series="1.2.3.1")
    node.decide()
    assert ("held", 2) == (_states(node)["1.2.3"], node.records.studies.show("1.2.3").n_instances)
    assert ("1.2.3",) == node.records.studies.held_for_rate("SCANNER")
    assert () == node.records.studies.held_for_rate("OTHER")


def test_late_image_of_an_older_study_is_no_new_study(node: SmallNode) -> None:
    """A study that had begun within its rate is not held because others came since."""
    _begin(node, 1, 2, 3)
    node.decision = node.new_decision()
    node.receive(2, study="1.2.1", series="1.2.1.1")
    node.decide()
    assert "complete" == _states(node)["1.2.1"]


@given(
    begun=st.dictionaries(st.sampled_from(["A", "B", "C"]), st.integers(0, 9)),
    limits=st.lists(st.tuples(st.sampled_from(["A", "B"]), st.none() | st.integers(1, 9)), max_size=4),
)
def test_a_study_is_held_exactly_when_one_limit_is_exceeded(
    begun: dict[str, int], limits: list[tuple[str, int | None]]
) -> None:
    """Of several peers with one title each limit counts; who has none is never held."""
    peers = [
        Peer(name=f"p{number}", ae_title=title, max_studies_per_hour=limit)
        for number, (title, limit) in enumerate(limits)
    ]
    expected = any(limit is not None and begun.get(title, 0) > limit for title, limit in limits)
    assert expected == (over_rate(begun, peers) is not None)
