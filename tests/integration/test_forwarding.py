"""A route without plugin: what was received goes on as it is, once to each destination, and never back."""

from __future__ import annotations

from pathlib import Path

from pydicom import dcmread

from dicom_node.lifecycle import DeliveryState, JobState
from dicom_node.records import FORWARD
from tests.integration.records_case import STUDY
from tests.integration.routing_case import SR, SmallNode, storescp

FORWARD_MR = """
[[route]]
name = "copies"
destinations = ["archive"]
start = "{start}"
[route.series]
match = [{{ keyword = "Modality", in = ["MR", "SR"] }}]
"""
BY_SERIES, BY_STUDY = FORWARD_MR.format(start="series"), FORWARD_MR.format(start="study")


def _data_sets(folder: Path) -> set[bytes]:
    """Return the bytes of each stored data set, file meta information left out."""
    found = set()
    for path in folder.iterdir():
        length = 132 + 12 + dcmread(path, specific_tags=[]).file_meta.FileMetaInformationGroupLength
        found.add(path.read_bytes()[length:])
    return found


def test_what_was_received_arrives_byte_by_byte(tmp_path: Path) -> None:
    """Images and reports alike, at a receiver that others wrote; the job and its deliveries end well."""
    with storescp(tmp_path / "archive") as port:
        node = SmallNode(tmp_path, BY_SERIES, port=port)
        sent = node.receive(1, 2, 3) + node.receive(1, series="1.2.3.9", sop_class_uid=SR)
        node.decide()
        node.dispatch()
        assert set(sent) == _data_sets(tmp_path / "archive")
    assert {(FORWARD, JobState.DONE)} == {(job.plugin, job.state) for job in node.records.jobs.list()}
    rows = node.records.deliveries.list()
    assert [("instance", DeliveryState.STORED, 0)] * 4 == [(row.kind, row.state, row.status) for row in rows]
    assert {"1.2.3.4.1", "1.2.3.4.2", "1.2.3.4.3", "1.2.3.9.1"} == {row.sop_instance_uid for row in rows}


def test_a_destination_that_is_away_gets_it_later(tmp_path: Path) -> None:
    """As with results: the delivery stays queued with its reason, and an administrator may skip or retry it."""
    node = SmallNode(tmp_path, BY_SERIES, port=1)
    node.receive(1)
    node.decide()
    node.dispatch()
    (row,) = node.records.deliveries.list()
    assert (DeliveryState.QUEUED, 1, True) == (row.state, row.attempts, bool(row.reason))
    node.records.deliveries.skip(row.id, "not wanted")
    assert JobState.DONE is node.records.jobs.list()[0].state
    node.records.deliveries.retry(row.id)
    assert JobState.DELIVERING is node.records.jobs.list()[0].state


def test_what_the_destination_sent_itself_is_not_forwarded_to_it(tmp_path: Path) -> None:
    """A PACS that sends to a node that forwards to it: no loop, and the decision says why."""
    node = SmallNode(tmp_path, BY_SERIES)
    node.receive(1, 2, calling_ae="ARCHIVE")
    node.decide()
    assert ((), ()) == (node.records.jobs.list(), node.records.deliveries.list())
    (decision,) = node.decisions.list(STUDY)
    assert ("not_applicable", "Not forwarded: all of it came from archive itself.") == (
        decision.outcome,
        decision.reason,
    )


def test_of_a_mixed_series_only_what_is_new_to_the_destination_goes(tmp_path: Path) -> None:
    """The PACS sent a part, the scanner the rest."""
    node = SmallNode(tmp_path, BY_SERIES)
    node.receive(1, calling_ae="ARCHIVE")
    node.receive(2)
    node.decide()
    assert ["1.2.3.4.2"] == [row.sop_instance_uid for row in node.records.deliveries.list()]


def test_what_comes_back_from_the_destination_starts_nothing(tmp_path: Path) -> None:
    """Identical, it is no new input; coerced, it is another's version and does not count."""
    node = SmallNode(tmp_path, BY_SERIES)
    node.receive(1)
    node.decide()
    node.receive(1, calling_ae="ARCHIVE")
    node.receive(1, calling_ae="ARCHIVE", comment="coerced")
    node.decide()
    assert (1, 1) == (len(node.records.jobs.list()), len(node.records.deliveries.list()))


def test_late_instances_alone_are_sent(tmp_path: Path) -> None:
    """What a destination was given is not sent to it again, image or not."""
    node = SmallNode(tmp_path, BY_SERIES)
    node.receive(1, 2)
    node.receive(1, series="1.2.3.9", sop_class_uid=SR)
    node.decide()
    node.receive(3)
    node.receive(2, series="1.2.3.9", sop_class_uid=SR)
    node.decide()
    rows = [row.sop_instance_uid for row in node.records.deliveries.list()]
    assert sorted(["1.2.3.4.1", "1.2.3.4.2", "1.2.3.4.3", "1.2.3.9.1", "1.2.3.9.2"]) == sorted(rows)


def test_corrected_version_takes_the_place_of_what_waits(tmp_path: Path) -> None:
    """The older version is not sent after the newer one."""
    node = SmallNode(tmp_path, BY_SERIES)
    node.receive(1)
    node.decide()
    node.receive(1, comment="corrected")
    node.decide()
    older, newer = node.records.deliveries.list()
    assert (DeliveryState.SKIPPED, DeliveryState.QUEUED) == (older.state, newer.state)
    assert [JobState.DELIVERING, JobState.DONE] == [job.state for job in node.records.jobs.list()]


def test_complete_study_is_forwarded_as_a_whole(tmp_path: Path) -> None:
    """With `start = "study"` every series that matches goes, in one job."""
    node = SmallNode(tmp_path, BY_STUDY)
    node.receive(1, 2)
    node.receive(1, series="1.2.3.9", sop_class_uid=SR)
    node.decide()
    (job,) = node.records.jobs.list()
    assert (3, None) == (len(node.records.deliveries.list()), job.series_instance_uid)


def test_reprocessing_sends_everything_again(tmp_path: Path) -> None:
    """An archive that lost its disk gets the study once more."""
    node = SmallNode(tmp_path, BY_SERIES)
    node.receive(1, 2)
    node.decide()
    node.records.jobs.reprocess_study(STUDY)
    assert 4 == len(node.records.deliveries.list())
    assert {JobState.DELIVERING} == {job.state for job in node.records.jobs.list()}


def test_cancelled_forwarding_is_taken_up_again(tmp_path: Path) -> None:
    """`jobs retry` never gives the job to a worker: there is nothing to infer."""
    node = SmallNode(tmp_path, BY_SERIES)
    node.receive(1)
    node.decide()
    node.records.jobs.cancel(1, "by hand")
    node.records.jobs.retry(1)
    assert (JobState.DELIVERING, DeliveryState.QUEUED) == (
        node.records.jobs.list()[0].state,
        node.records.deliveries.list()[0].state,
    )
    assert node.records.jobs.claim("w1", 30.0) is None
