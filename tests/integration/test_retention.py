"""Retention: what is given up, what never is, and that no crash or re-send loses an image or leaves one behind."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset
from sqlalchemy import select, text, update

from dicom_node.config.schema import StorageSettings
from dicom_node.errors import IllegalTransitionError, NotFoundError
from dicom_node.filing import InstanceStore, ResultStore
from dicom_node.indexing import Recovered
from dicom_node.indexing.rows import Indexing
from dicom_node.logs import Log
from dicom_node.records import Purges
from dicom_node.records.schema import instance, study
from dicom_node.retention import BATCH, Retention, purge_before
from dicom_node.study import Arrival, InstanceMeta
from tests.integration.receiving import EXPLICIT, MR, encode_data_set, small_data_set
from tests.integration.records_case import SERIES, START, STUDY, Records, new_job, results_of

DAYS = 86400.0
SETTINGS = StorageSettings(retention_days=30, keep_hours=24, result_retention_days=90, high_water_percent=90)


class Site:
    """A store, records and retention in one folder, without any process; `used` is how full the disk says it is."""

    def __init__(self, folder: Path, records: Records | None = None) -> None:
        self.records = records or Records(folder / "records.sqlite")
        self.clock = self.records.clock
        self.store = InstanceStore(folder / "received", clock=self.clock, reserve_bytes=0)
        self.results = ResultStore(folder / "results")
        self.purges = Purges(self.records.database)
        self.indexing = Indexing(self.store, self.records.studies, log=Log("test"))
        self.used = 10.0

    def retention(self, **settings: Any) -> Retention:
        return Retention(
            self.purges,
            received=self.store.disposal(),
            results=self.results.disposal(),
            settings=SETTINGS.model_copy(update=settings),
            used_percent=lambda: self.used,
            clock=self.clock,
            log=Log("test"),
        )

    def purge(self, **settings: Any) -> None:
        """Do all that there is to do."""
        retention = self.retention(**settings)
        while retention.step():
            pass

    def arrive(self, number: int, *, study_uid: str = STUDY, change: dict[str, str] | None = None) -> Arrival:
        """Take an instance in, durable and without a row."""
        ds: Dataset = small_data_set()
        series_uid = f"{study_uid}.4"
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID = study_uid, series_uid, f"{series_uid}.{number}"
        for keyword, value in (change or {}).items():
            setattr(ds, keyword, value)
        meta = InstanceMeta(
            sop_class_uid=MR,
            sop_instance_uid=ds.SOPInstanceUID,
            transfer_syntax_uid=EXPLICIT,
            calling_ae="SCANNER",
            called_ae="DICOM_NODE",
            association=None,
        )
        incoming = self.store.begin(meta)
        incoming.write([encode_data_set(ds)])
        return incoming.commit()

    def index(self, *arrivals: Arrival) -> None:
        assert len(arrivals) == self.indexing.index(arrivals, {})
        for arrival in arrivals:
            self.store.release(arrival)

    def receive(self, n: int = 3, *, study_uid: str = STUDY, decided: bool = True) -> None:
        """Receive a study of `n` images, and let routing have judged it."""
        self.index(*(self.arrive(number, study_uid=study_uid) for number in range(n)))
        if decided:
            (evidence,) = [one for one in self.records.studies.open_studies() if one.study_instance_uid == study_uid]
            assert self.records.studies.mark_decided(study_uid, None, evidence.revision)

    def files(self) -> list[Path]:
        """Return every file of the shelf, and what was set aside."""
        return [path for path in (self.store._root).rglob("*") if path.is_file()]

    def rows(self, column: Any, **where: Any) -> list[Any]:
        query = select(column).select_from(instance).order_by(instance.c.sop_instance_uid)
        with self.records.database.read() as connection:
            return list(connection.execute(query).scalars())

    def state(self, study_uid: str = STUDY) -> str:
        return self.records.studies.show(study_uid).state

    def job(self) -> tuple[int, dict[str, str]]:
        """Queue a job on the study's series; return its id and result UIDs."""
        job_id, _ = self.records.jobs.enqueue(new_job(self.records, series=SERIES))
        return job_id, dict(self.records.jobs.show(job_id).result_uids)

    def done(self) -> int:
        """Do a job up to its filed results; return its id."""
        job_id, _ = self.job()
        claimed = self.records.jobs.claim("w", 30)
        assert claimed is not None
        filed = []
        for one in results_of(claimed.result_uids):
            path, digest = self.results.file(one.kind.encode(), one.sop_instance_uid)
            filed.append(type(one)(**{**_fields(one), "path": path, "digest": digest}))
        self.records.jobs.file_results(job_id, claimed.token, filed, outcome="result", engine="e", duration_s=1.0)
        return job_id

    def deliver(self) -> None:
        while (claimed := self.records.deliveries.claim("pacs", "s", 30)) is not None:
            self.records.deliveries.stored(claimed.id, claimed.token, 0)


def _fields(one: Any) -> dict[str, Any]:
    return {name: getattr(one, name) for name in one.__dataclass_fields__}


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Return a site without anything."""
    return Site(tmp_path)


NOW = START + timedelta(days=100)


@pytest.mark.parametrize(
    ("settings", "received_gb", "used", "days", "words"),
    [
        ({}, 0, 50, 30, "30 days"),
        ({"retention_days": 0}, 0, 50, None, ""),
        ({"retention_days": 0.5}, 0, 50, 1, "0.5 days"),
        ({"quota_gb": 10}, 9.9, 50, 30, "30 days"),
        ({"quota_gb": 10}, 10.1, 50, 1, "10 GB"),
        ({"retention_days": 0, "quota_gb": 10}, 10.1, 50, 1, "10 GB"),
        ({}, 0, 90.5, 1, "90 % full"),
        ({"high_water_percent": 0}, 0, 99, 30, "30 days"),
        ({"keep_hours": 0}, 0, 95, 0, "90 % full"),
    ],
)
def test_limits(settings, received_gb, used, days, words):
    """By age; above quota or high-water mark whatever is older than keep_hours; each with its reason."""
    limit, reason = purge_before(NOW, SETTINGS.model_copy(update=settings), int(received_gb * 1e9), used)
    assert (None if days is None else NOW - timedelta(days=days)) == limit
    assert words in reason


def test_an_old_study_is_purged_and_its_rows_stay(site: Site) -> None:
    """After 30 days no file is left; state, counts, header and decisions are; rules can still be replayed."""
    site.receive(BATCH + 3)
    before = site.records.studies.view(STUDY)
    site.purge()
    assert ("complete", BATCH + 3) == (site.state(), len(site.files()))
    site.clock.advance(30 * DAYS)
    site.clock.advance(1)
    site.purge()
    assert ("purged", []) == (site.state(), site.files())
    assert BATCH + 3 == len([at for at in site.rows(instance.c.purged_at) if at is not None])
    assert before == site.records.studies.view(STUDY)
    assert BATCH + 3 == site.records.studies.show(STUDY).n_instances
    assert () == site.purges.unlinking()
    assert () == site.records.studies.series_images(STUDY, SERIES)


def test_the_oldest_goes_first_above_the_mark_and_nothing_young(site: Site) -> None:
    """The disk is full: one study after the other, oldest first, until it is not; the youngest day stays."""
    for number in (2, 1, 3):
        site.receive(1, study_uid=f"1.2.{number}")
        site.clock.advance(2 * DAYS)
    site.receive(1, study_uid="1.2.4")
    site.used = 95
    retention = site.retention()
    assert retention.step()
    assert ["purged", "complete", "complete", "complete"] == [site.state(f"1.2.{n}") for n in (2, 1, 3, 4)]
    site.purge()
    assert ["purged", "purged", "purged", "complete"] == [site.state(f"1.2.{n}") for n in (2, 1, 3, 4)]


def test_quota_stops_where_it_is_met(site: Site) -> None:
    """Of three studies only as many go as the quota asks for."""
    for number in (1, 2, 3):
        site.receive(1, study_uid=f"1.2.{number}")
        site.clock.advance(2 * DAYS)
    one = site.purges.received_bytes() / 3
    site.purge(quota_gb=2.5 * one / 1e9)
    assert ["purged", "complete", "complete"] == [site.state(f"1.2.{n}") for n in (1, 2, 3)]


def test_what_is_under_way_is_never_purged(site: Site) -> None:
    """Neither a study that is received or held, nor one with an open job or an open delivery; by hand neither."""
    site.receive(1, decided=False)
    site.clock.advance(100 * DAYS)

    def assert_kept(words: str) -> None:
        site.used = 99
        site.purge(result_retention_days=1)
        assert 1 == len([path for path in site.files() if path.suffix == ".dcm"])
        with pytest.raises(IllegalTransitionError, match=words):
            site.retention().purge(STUDY)

    assert_kept("being received")
    (evidence,) = site.records.studies.open_studies()
    site.records.studies.mark_decided(STUDY, None, evidence.revision)
    with site.records.database.begin() as connection:
        connection.execute(update(study).values(state="held"))
    assert_kept("held")
    with site.records.database.begin() as connection:
        connection.execute(update(study).values(state="complete"))
    job_id = site.done()
    assert_kept(f"job {job_id} is delivering")
    claimed = site.records.deliveries.claim("pacs", "s", 30)
    site.records.jobs.cancel(job_id, "enough")
    assert claimed is not None
    assert_kept(f"delivery {claimed.id} is sending")
    site.records.deliveries.stored(claimed.id, claimed.token, 0)
    site.purge()
    assert "purged" == site.state()


def test_an_identical_repeat_keeps_a_study(site: Site) -> None:
    """Who sends the same again wants it here: retention counts from then, though no row of it is new."""
    site.receive(1)
    site.clock.advance(29 * DAYS)
    with site.records.database.begin() as connection:
        connection.execute(
            text("INSERT INTO association_study VALUES ('a9', :uid, :at)"),
            {"uid": STUDY, "at": f"{site.clock.now():%Y-%m-%d %H:%M:%S.%f}"},
        )
    site.clock.advance(2 * DAYS)
    site.purge()
    assert "complete" == site.state()
    site.clock.advance(29 * DAYS)
    site.purge()
    assert "purged" == site.state()


def test_a_resend_after_a_purge_is_new(site: Site) -> None:
    """Two of three images come again: they are filed, counted alone, and judged anew; then they are purged again."""
    site.receive(3)
    revision = _study_row(site).revision
    site.retention().purge(STUDY)
    site.index(site.arrive(0), site.arrive(1))
    shown = site.records.studies.show(STUDY)
    assert ("receiving", 1, 2) == (shown.state, shown.n_series, shown.n_instances)
    assert revision < _study_row(site).revision
    assert 2 == len(site.records.studies.series_images(STUDY, SERIES))
    assert all(image.path.exists() for image in site.records.studies.series_images(STUDY, SERIES))
    (series,) = site.records.studies.view(STUDY).series
    assert (2, 2) == (series.n_images, len(series.image_digests))
    (evidence,) = site.records.studies.open_studies()
    site.records.studies.mark_decided(STUDY, None, evidence.revision)
    assert 2 == site.retention().purge(STUDY)
    assert [] == site.files()


def test_a_resend_between_mark_and_unlink_keeps_its_file(site: Site) -> None:
    """The row says purged, the file still stands, the same bytes come: shelving trusts it, and so does the purge."""
    site.receive(2)
    assert 2 == site.purges.mark_study(STUDY)
    site.index(site.arrive(0))
    site.purge()
    (image,) = site.records.studies.series_images(STUDY, SERIES)
    assert ([image.path], "receiving") == (site.files(), site.state())


@pytest.mark.parametrize("moment", ["before it is described", "before its row"])
def test_an_unlink_between_shelf_and_row_loses_nothing(
    site: Site, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Shelving finds the file, the purge takes it away, the row comes: what arrived is shelved once more."""
    site.receive(1)
    site.purges.mark_study(STUDY)
    again = site.arrive(0)
    shelve, index = site.store.shelve, site.records.studies.index

    def then_purge(arrival: Arrival) -> Any:
        filed = shelve(arrival)
        monkeypatch.setattr(site.store, "shelve", shelve)
        site.purge()
        assert not filed.path.exists()
        return filed

    def first_purge(*given: Any, **named: Any) -> Any:
        monkeypatch.setattr(site.records.studies, "index", index)
        site.purge()
        return index(*given, **named)

    if moment == "before its row":
        monkeypatch.setattr(site.records.studies, "index", first_purge)
    else:
        monkeypatch.setattr(site.store, "shelve", then_purge)
        assert 0 == site.indexing.index([again], {})
    site.index(again)
    (image,) = site.records.studies.series_images(STUDY, SERIES)
    assert [image.path] == site.files()


def test_what_a_dead_purge_set_aside_goes_back_or_away(site: Site) -> None:
    """A purge dies with two files aside; one of them came again meanwhile and stands on the shelf afterwards."""
    site.receive(2)
    site.purges.mark_study(STUDY)
    aside = site.store._root / "purging"
    aside.mkdir()
    paths = sorted(site.files())
    for path in paths:
        path.rename(aside / path.name)
    site.index(site.arrive(0))
    (image,) = site.records.studies.series_images(STUDY, SERIES)
    content = image.path.read_bytes()
    image.path.unlink()  # and had not reached the disk when the power went
    site.purge()
    assert [image.path] == site.files()
    assert content == image.path.read_bytes()


def test_a_purged_study_does_not_come_back_at_a_start(site: Site) -> None:
    """The next receiver adopts nothing and reports nothing lost."""
    site.receive(3)
    site.retention().purge(STUDY)
    assert [] == list(site.store.leftovers())
    site.indexing.index([Recovered()], {})
    assert ("purged", 3) == (site.state(), len(site.rows(instance.c.purged_at)))


def test_purged_images_cannot_be_reprocessed_until_they_come_again(site: Site) -> None:
    """`reprocess` and `jobs retry` say why, and what to do; afterwards they work, with the same pinned versions."""
    site.receive(2)
    job_id = site.done()
    site.deliver()
    refused, _ = site.records.jobs.enqueue(new_job(site.records, series=SERIES, plugin="other"))
    claimed = site.records.jobs.claim("w", 30)
    assert claimed is not None
    site.records.jobs.refuse(refused, claimed.token, "no")
    site.retention().purge(STUDY)
    with pytest.raises(
        IllegalTransitionError, match=r"2 of the 2 images .* purged on 2026-01-01; send the study again"
    ):
        site.records.jobs.reprocess(job_id)
    with pytest.raises(IllegalTransitionError, match="send the study again"):
        site.records.jobs.retry(refused)
    site.index(site.arrive(0), site.arrive(1))
    again = site.records.jobs.show(site.records.jobs.reprocess(job_id))
    assert all(image.path.exists() for images in again.input.roles.values() for image in images)


def test_results_stay_until_they_arrived(site: Site) -> None:
    """A result that a destination refused is kept for ever; skipped or stored it goes after its time, its row stays."""
    site.receive(1)
    job_id = site.done()
    stored = site.records.deliveries.claim("pacs", "s", 30)
    refused = site.records.deliveries.claim("pacs", "s", 30)
    assert stored is not None
    assert refused is not None
    site.records.deliveries.stored(stored.id, stored.token, 0)
    site.records.deliveries.refuse(refused.id, refused.token, "never")
    site.clock.advance(100 * DAYS)
    site.purge()
    assert [True, True] == [one.path.exists() for one in site.records.jobs.show(job_id).results]
    site.records.deliveries.skip(refused.id, "done without")
    site.clock.advance(89 * DAYS)
    site.purge()
    assert [True, True] == [one.path.exists() for one in site.records.jobs.show(job_id).results]
    site.clock.advance(2 * DAYS)
    site.purge()
    assert [False, False] == [one.path.exists() for one in site.records.jobs.show(job_id).results]
    assert 2 == site.records.database.counters()["result"]
    with pytest.raises(IllegalTransitionError, match="purged"):
        site.records.deliveries.retry(refused.id)
    with pytest.raises(IllegalTransitionError, match="purged"):
        site.records.jobs.retry(job_id)


def test_a_study_that_is_not_there(site: Site) -> None:
    """By hand, a wrong UID is told."""
    with pytest.raises(NotFoundError):
        site.retention().purge("9.9")


_PURGER = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.integration.records_case import Records
from tests.integration.test_retention import Site
site = Site(Path(sys.argv[1]), Records(Path(sys.argv[1]) / "records.sqlite", is_new=False))
retention = site.retention()
print("ready", flush=True)
sys.stdin.readline()
for number in range(20):
    retention.purge(f"1.2.{{number}}")
    print(number, flush=True)
"""


@pytest.mark.parametrize("seed", [1, pytest.param(range(2, 22), marks=pytest.mark.long)], ids=str)
def test_a_killed_purge_loses_and_leaves_nothing(tmp_path: Path, seed: Any) -> None:
    """SIGKILL in the middle: what is not purged by its row has its file; the next run removes every other file."""
    for one in [seed] if isinstance(seed, int) else seed:
        _kill_a_purge(tmp_path / str(one), one)


def _kill_a_purge(folder: Path, seed: int) -> None:
    folder.mkdir()
    site = Site(folder)
    for number in range(20):
        site.receive(2, study_uid=f"1.2.{number}")
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", _PURGER.format(root=root), str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as purger:
        assert purger.stdout is not None
        assert purger.stdin is not None
        assert "ready\n" == purger.stdout.readline()
        purger.stdin.write("go\n")
        purger.stdin.flush()
        draw = random.Random(seed)
        for _ in range(draw.randint(1, 8)):
            purger.stdout.readline()
        time.sleep(draw.uniform(0, 0.01))  # the drawn moment within one study is what is tested
        os.kill(purger.pid, signal.SIGKILL)
    with site.records.database.read() as connection:
        rows = connection.execute(select(instance.c.path, instance.c.purged_at)).all()
    assert 0 < len([row for row in rows if row.purged_at is not None]) < 40
    assert [] == [row.path for row in rows if row.purged_at is None and not Path(row.path).exists()]
    site.purge(retention_days=0)
    assert sorted(row.path for row in rows if row.purged_at is None) == sorted(map(str, site.files()))
    assert () == site.purges.unlinking()


def _study_row(site: Site) -> Any:
    with site.records.database.read() as connection:
        return connection.execute(select(study)).one()
