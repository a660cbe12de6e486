"""Studies in the records: versions, counts, headers, what is new input and what is not, who still sends."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from dicom_node.errors import NotFoundError
from dicom_node.ids import ProcessIdentity
from dicom_node.records import OnConflict, Studies
from dicom_node.records.schema import instance, series
from dicom_node.records.study_values import planes_of, slice_spacing_mm
from tests.integration.records_case import AXIAL, OWNER, SERIES, START, STUDY, Records, association, frame, image, later

OTHER = "1.2.3.5"
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)


@pytest.fixture
def records(tmp_path: Path) -> Records:
    """Return the aggregates of a fresh database."""
    return Records(tmp_path / "records.sqlite")


def _revision(records: Records) -> int:
    return records.studies.open_studies()[0].revision


def test_indexed_study_is_receiving(records: Records) -> None:
    """A study that just came is listed, counted and open."""
    assert (STUDY,) == records.studies.index([image(1), image(2), image(1, series=OTHER)])
    row = records.studies.show(STUDY)
    assert ("receiving", 2, 3, 0, 0) == (row.state, row.n_series, row.n_instances, row.decisions, row.jobs)
    assert (row,) == records.studies.list()
    assert STUDY == records.studies.open_studies()[0].study_instance_uid


def test_view_holds_current_images_in_order(records: Records) -> None:
    """Rules see sorted digests, counts, header and the spacing that positions give."""
    records.studies.index([image(n, at=later(n)) for n in (3, 1, 2)])
    view = records.studies.view(STUDY)
    (series,) = view.series
    assert tuple((filed.sop_instance_uid, filed.digest) for filed, _ in map(image, (1, 2, 3))) == series.image_digests
    assert (3, 3, 1.0) == (series.n_images, series.n_instances, series.slice_spacing_mm)
    assert "MR" == series.header["00080060"]["Value"][0]
    assert ("SCANNER", "DICOM_NODE") == (series.calling_ae, series.called_ae)
    assert (later(1), later(3)) == (view.first_received, view.last_received)


def test_identical_repeat_is_no_new_input(records: Records) -> None:
    """The same bytes again change no row and do not open a complete study."""
    records.studies.index([image(1)])
    records.studies.mark_decided(STUDY, None, _revision(records))
    before = records.studies.view(STUDY)
    assert () == records.studies.index([image(1, at=later(60))])
    assert "complete" == records.studies.show(STUDY).state
    assert (before, 1) == (records.studies.view(STUDY), records.database.counters()["instance"])


def test_repeat_within_a_batch_is_written_once(records: Records) -> None:
    """A batch may hold an instance twice."""
    records.studies.index([image(1), image(1, at=later(1))])
    assert 1 == records.database.counters()["instance"]


def test_new_version_is_new_input(records: Records) -> None:
    """A corrected image takes the place of the former, which is kept; revision and digest change, counts do not."""
    records.studies.index([image(1), image(2)])
    before, revision = records.studies.view(STUDY), _revision(records)
    records.studies.mark_decided(STUDY, None, revision)
    assert (STUDY,) == records.studies.index([image(2, version="b", at=later(1))])
    after = records.studies.view(STUDY)
    assert revision + 1 == _revision(records)
    assert 3 == records.database.counters()["instance"]
    assert 2 == after.series[0].n_images
    assert before.series[0].image_digests != after.series[0].image_digests
    assert image(2, version="b")[0].digest == records.studies.series_images(STUDY, SERIES)[1].digest


def test_two_versions_in_one_batch_leave_one_current(records: Records) -> None:
    """The later of two versions wins, also where they are indexed together and in the wrong order."""
    records.studies.index([image(1, version="b", at=later(1)), image(1, version="a")])
    (only,) = records.studies.series_images(STUDY, SERIES)
    assert image(1, version="b")[0].digest == only.digest
    assert 2 == records.database.counters()["instance"]


def test_older_version_that_is_found_late_stays_in_the_background(records: Records) -> None:
    """The sweep may find an older file after the newer one was indexed: nothing changes for rules."""
    records.studies.index([image(1, version="b", at=later(5))])
    before, revision = records.studies.view(STUDY), _revision(records)
    assert () == records.studies.index([image(1, version="a", at=later(1))])
    assert (before, revision) == (records.studies.view(STUDY), _revision(records))


@pytest.mark.parametrize(
    ("policy", "calling_ae", "counts"),
    [
        ("replace_if_same_source", "SCANNER", "b"),
        ("replace_if_same_source", "PACS", "a"),
        ("keep_first", "SCANNER", "a"),
        ("reject", "SCANNER", "a"),
    ],
)
def test_on_conflict_chooses_the_version_that_counts(
    records: Records, policy: OnConflict, calling_ae: str, counts: str
) -> None:
    """Both versions have their row; what is kept back opens nothing, changes nothing for rules, and is told of."""
    studies = Studies(records.database, on_conflict=policy)
    studies.index([image(1)])
    studies.mark_decided(STUDY, None, _revision(records))
    filed, description = image(1, version="b", at=later(1))
    heard: list[str] = []
    new_input = studies.index(
        [(replace(filed, calling_ae=calling_ae), description)], on_kept_back=lambda one, _: heard.append(one.digest)
    )
    (current,) = studies.series_images(STUDY, SERIES)
    assert image(1, version=counts)[0].digest == current.digest
    assert ((STUDY,) if counts == "b" else ()) == new_input
    assert ([] if counts == "b" else [filed.digest]) == heard
    assert ("receiving" if counts == "b" else "complete", 2) == (
        studies.show(STUDY).state,
        records.database.counters()["instance"],
    )


def test_instance_may_move_to_another_series(records: Records) -> None:
    """A corrected Series Instance UID takes the image out of the former series."""
    records.studies.index([image(1), image(2)])
    filed, description = image(2, version="b", at=later(1))
    moved = type(description)(
        **{name: getattr(description, name) for name in description.__slots__} | {"series_instance_uid": OTHER}
    )
    records.studies.index([(filed, moved)])
    view = records.studies.view(STUDY)
    assert {SERIES: 1, OTHER: 1} == {one.series_instance_uid: one.n_images for one in view.series}
    evidence = records.studies.open_studies()[0]
    assert {evidence.revision} == {one.revision for one in evidence.series}


_VERSIONS = st.tuples(
    st.integers(1, 3), st.sampled_from("abc"), st.sampled_from([SERIES, OTHER]), st.booleans(), st.booleans()
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(st.lists(_VERSIONS, min_size=1, max_size=5), min_size=1, max_size=4))
def test_counts_follow_the_current_versions(
    tmp_path: Path, batches: list[list[tuple[int, str, str, bool, bool]]]
) -> None:
    """However instances repeat, change, move, cease to be images or turn out to be ours, in one batch or in many."""
    records = Records(tmp_path / "records.sqlite")
    for seconds, batch in enumerate(batches):
        items = []
        for number, version, series_uid, is_image, made_by_us in batch:
            filed, description = image(number, version=version, at=later(seconds))
            changes = {"series_instance_uid": series_uid, "is_image": is_image, "made_by_us": made_by_us}
            items.append((filed, replace(description, **changes)))
        records.studies.index(items)
    with records.database.read() as connection:
        counted = {
            row.series_instance_uid: (row.n_instances, row.n_images)
            for row in connection.execute(select(series.c.series_instance_uid, series.c.n_instances, series.c.n_images))
        }
        current = connection.execute(select(instance).where(instance.c.is_current, ~instance.c.made_by_us)).all()
    records.database.close()
    expected = dict.fromkeys(counted, (0, 0))
    for row in current:
        n_instances, n_images = expected[row.series_instance_uid]
        expected[row.series_instance_uid] = (n_instances + 1, n_images + row.is_image)
    assert expected == counted


def test_header_comes_from_the_first_image(records: Records) -> None:
    """Not from what else travels in the series, and not from later images."""
    scout = {"0008103E": {"vr": "LO", "Value": ["protocol sheet"]}}
    first = {"0008103E": {"vr": "LO", "Value": ["T1"]}}
    records.studies.index([image(1, is_image=False, header=scout)])
    assert scout == records.studies.view(STUDY).series[0].header
    records.studies.index([image(2, at=later(1), header=first)])
    records.studies.index([image(3, at=later(2))])
    assert first == records.studies.view(STUDY).series[0].header


def test_correction_of_the_first_image_corrects_the_header(records: Records) -> None:
    """A series description that the scanner corrected by sending again is what rules read."""
    corrected = {"0008103E": {"vr": "LO", "Value": ["T1 corrected"]}}
    records.studies.index([image(1), image(2)])
    records.studies.index([image(2, version="b", at=later(1), header={"0008103E": {"vr": "LO", "Value": ["other"]}})])
    assert "0008103E" not in records.studies.view(STUDY).series[0].header
    records.studies.index([image(1, version="b", at=later(2), header=corrected)])
    assert corrected == records.studies.view(STUDY).series[0].header


def test_late_non_image_of_a_known_series_is_judged_once_more(records: Records) -> None:
    """It is counted, and a route may forward it; the images' digests stay as they were."""
    records.studies.index([image(1)])
    records.studies.mark_decided(STUDY, None, _revision(records))
    before = records.studies.view(STUDY).series[0].image_digests
    assert (STUDY,) == records.studies.index([image(2, is_image=False, at=later(1))])
    (series,) = records.studies.view(STUDY).series
    assert before == series.image_digests
    assert ("receiving", 1, 2) == (records.studies.show(STUDY).state, series.n_images, series.n_instances)


def test_late_series_without_images_is_judged_once_more(records: Records) -> None:
    """A dose report that comes late gets its row of why-not, while the images' digests stay as they were."""
    records.studies.index([image(1)])
    records.studies.mark_decided(STUDY, None, _revision(records))
    assert (STUDY,) == records.studies.index([image(1, series=OTHER, is_image=False, at=later(1))])
    assert "receiving" == records.studies.show(STUDY).state


def test_our_own_results_open_nothing(records: Records) -> None:
    """What we made and a PACS sends back is indexed, not counted, not seen by rules, and changes no state."""
    records.studies.index([image(1)])
    records.studies.mark_decided(STUDY, None, _revision(records))
    before = records.studies.view(STUDY)
    assert () == records.studies.index([image(1, series=OTHER, made_by_us=True, at=later(1))])
    assert (before, "complete") == (records.studies.view(STUDY), records.studies.show(STUDY).state)
    assert records.studies.is_indexed(*_version(image(1, series=OTHER)))


def test_study_of_our_results_alone_is_complete_until_images_come(records: Records) -> None:
    """A result that outlived its study in the PACS makes no study to judge; images do."""
    records.studies.index([image(1, series=OTHER, made_by_us=True)])
    row = records.studies.show(STUDY)
    assert ("complete", 0, 0) == (row.state, row.n_series, row.n_instances)
    assert () == records.studies.open_studies()
    records.studies.index([image(1, at=later(9))])
    row = records.studies.show(STUDY)
    assert ("receiving", later(9)) == (row.state, row.first_received)
    assert [SERIES] == [one.series_instance_uid for one in records.studies.open_studies()[0].series]


def test_decision_on_an_older_revision_is_stale(records: Records) -> None:
    """What came after the view that was judged keeps the study open."""
    records.studies.index([image(1)])
    judged = _revision(records)
    records.studies.index([image(2, at=later(1))])
    assert not records.studies.mark_decided(STUDY, None, judged)
    assert "receiving" == records.studies.show(STUDY).state
    assert records.studies.mark_decided(STUDY, None, _revision(records))
    assert "complete" == records.studies.show(STUDY).state


def test_series_is_decided_for_itself(records: Records) -> None:
    """One series may start its job while the other is still coming; a new image of it opens it alone."""
    records.studies.index([image(1), image(1, series=OTHER)])
    for one in records.studies.open_studies()[0].series:
        assert records.studies.mark_decided(STUDY, one.series_instance_uid, one.revision)
    records.studies.index([image(2, series=OTHER, at=later(1))])
    (evidence,) = records.studies.open_studies()
    assert {SERIES: True, OTHER: False} == {one.series_instance_uid: one.is_decided for one in evidence.series}


def test_live_association_is_evidence_until_released(records: Records) -> None:
    """Completeness sees who still moves data of a study, when it was last active, and where it is now."""
    records.studies.open_association(association(), OWNER)
    records.studies.index([image(1, association="a1", at=later(1))])
    records.studies.index([image(1, study="9.9", series="9.9.1", association="a1", at=later(3))])
    records.studies.touch_associations({"a1": later(4)})
    evidence = {one.study_instance_uid: one for one in records.studies.open_studies()}[STUDY]
    (live,) = evidence.associations
    assert (OWNER, later(4), later(1), "9.9") == (
        live.owner,
        live.last_activity_at,
        live.last_received_at,
        live.present_study_uid,
    )
    records.studies.release_association("a1", later(5), "released")
    assert {()} == {one.associations for one in records.studies.open_studies()}


def test_an_association_that_is_told_twice_is_written_once(records: Records) -> None:
    """Indexing is handed a fact again when it ended between the commit and its answer."""
    records.studies.open_association(association(), OWNER)
    records.studies.open_association(association(), OWNER)
    assert 1 == records.database.counters()["association"]


def test_repeat_still_shows_that_the_association_moves(records: Records) -> None:
    """A study that is sent again with a few new images is not complete between them."""
    records.studies.open_association(association(), OWNER)
    records.studies.index([image(1, association="a1")])
    records.studies.index([image(1, association="a1", at=later(8))])
    assert later(8) == records.studies.open_studies()[0].associations[0].last_received_at


def test_association_without_row_does_not_lose_its_instances(records: Records) -> None:
    """Images are indexed even if the association could not be recorded."""
    records.studies.index([image(1, association="never written")])
    assert () == records.studies.open_studies()[0].associations


def test_orphaned_association_holds_nothing(records: Records) -> None:
    """After a crash the associations of the dead receiver are ended, those of a live one are not."""
    survivor = ProcessIdentity(boot_id="boot", pid=11, start_ticks=8)
    records.studies.open_association(association("a1"), OWNER)
    records.studies.open_association(association("a2"), survivor)
    records.studies.index([image(1, association="a1"), image(2, association="a2")])
    assert ("a1",) == records.studies.orphan_associations(lambda owner: owner == survivor)
    assert ["a2"] == [one.id for one in records.studies.open_studies()[0].associations]
    assert () == records.studies.orphan_associations(lambda owner: owner == survivor)


def _version(item: object) -> tuple[str, str]:
    filed = item[0]  # type: ignore[index]
    return filed.sop_instance_uid, filed.digest


def test_sweep_knows_what_has_a_row(records: Records) -> None:
    """Each version is found by its path, and by instance and digest."""
    records.studies.index([image(1), image(1, version="b", at=later(1))])
    assert records.studies.is_indexed(*_version(image(1)))
    assert not records.studies.is_indexed(*_version(image(1, version="c")))


def test_failed_batch_leaves_nothing(records: Records) -> None:
    """A batch is indexed whole or not at all, so that it can be tried again."""
    with pytest.raises(Exception, match="aware"):
        records.studies.index([image(1), image(2, study="9.9", at=START.replace(tzinfo=None))])
    assert () == records.studies.list()


def test_unknown_study_is_not_found(records: Records) -> None:
    """The error that faces turn into exit code 3."""
    for ask in (records.studies.view, records.studies.show):
        with pytest.raises(NotFoundError):
            ask("7.7")
    with pytest.raises(NotFoundError):
        records.studies.mark_decided("7.7", None, 1)


@given(st.permutations(range(8)), st.floats(0.3, 10.0), st.sampled_from([AXIAL, SAGITTAL]))
def test_spacing_does_not_depend_on_order(order: list[int], spacing_mm: float, orientation: tuple[float, ...]) -> None:
    """Positions are projected on the normal and sorted; repeats and planes of another orientation do not count."""
    along = 2 if orientation == AXIAL else 0
    planes = [
        [[n * spacing_mm if axis == along else 0.0 for axis in range(3)], list(orientation)] for n in (*order, order[0])
    ]
    across = SAGITTAL if orientation == AXIAL else AXIAL
    assert pytest.approx(spacing_mm, abs=1e-3) == slice_spacing_mm([*planes, [[1.7, 1.7, 1.7], list(across)]])


@pytest.mark.parametrize("heights", [[], [5.0], [5.0, 5.0]])
def test_spacing_needs_two_positions(heights: list[float]) -> None:
    """None where there is nothing to measure."""
    assert slice_spacing_mm(planes_of([frame("1.2", z) for z in heights])) is None


def test_spacing_is_the_median(records: Records) -> None:
    """One gap does not change it."""
    assert 2.0 == slice_spacing_mm(planes_of([frame("1.2", z) for z in (0.0, 2.0, 4.0, 14.0)]))
