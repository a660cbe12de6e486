"""What a restart does: rows for files without one, and only then is nobody waited for any more."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import pytest

from dicom_node.config import load_config
from dicom_node.config.live import Live, Rules
from dicom_node.errors import RecordsError
from dicom_node.filing import InstanceStore
from dicom_node.gathering import ROW_LAG_S
from dicom_node.ids import ProcessIdentity
from dicom_node.indexing import CALM_S, PATIENCE_S, Reception
from dicom_node.indexing.rows import Indexing
from dicom_node.infer import PluginRegistry
from dicom_node.logs import Log
from dicom_node.pipeline import Decision
from dicom_node.records import Decisions
from dicom_node.routing.completeness import DOUBT_S
from dicom_node.study import Arrival, InstanceMeta
from tests.integration.receiving import EXPLICIT, MR, encode_data_set, small_data_set
from tests.integration.records_case import OWNER, STUDY, Records, association

CONFIG = """
[[route]]
name = "any"
plugin = "none"
start = "study"
[route.complete]
quiet_s = 5
"""


class Site:
    """A store and records, without any process."""

    def __init__(self, folder: Path) -> None:
        self.records = Records(folder / "records.sqlite")
        self.store = InstanceStore(folder / "received", clock=self.records.clock, reserve_bytes=0)
        self.log = Log("test")
        self._folder = folder

    def file(self, number: int) -> Arrival:
        """File one instance of the study, without a row."""
        uid = f"1.2.3.4.{number}"
        data_set = small_data_set()
        data_set.StudyInstanceUID, data_set.SeriesInstanceUID, data_set.SOPInstanceUID = STUDY, "1.2.3.4", uid
        incoming = self.store.begin(
            InstanceMeta(
                sop_class_uid=MR,
                sop_instance_uid=uid,
                transfer_syntax_uid=EXPLICIT,
                calling_ae="SCANNER",
                called_ae="DICOM_NODE",
                association="a1",
            )
        )
        incoming.write([encode_data_set(data_set)])
        arrival = incoming.commit()
        os.utime(arrival.path, times=(arrival.received_at.timestamp(),) * 2)
        return arrival

    def reception(self, process: ProcessIdentity = OWNER) -> Reception:
        """Return the reception of a receiver that starts now, with its indexing."""
        index = Indexing(self.store, self.records.studies, log=self.log).index
        return Reception(self.store, index, process=process, clock=self.records.clock, log=self.log)

    def recover(self) -> int:
        """Do what the next receiver does at its start; return how many instances it found waiting."""
        reception = self.reception()
        count = reception.recover()
        reception.drain()
        return count

    def decision(self) -> Decision:
        """Return the decision as a worker that starts now has it."""
        file = self._folder / "config.toml"
        file.write_text(CONFIG, encoding="utf-8")
        return Decision(
            self.records.studies,
            Decisions(self.records.database, self.records.jobs),
            rules=Live(Rules.of(load_config(file))),
            registry=PluginRegistry([], self._folder / "models"),
            clock=self.records.clock,
            log=self.log,
        )


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Return a site where a receiver died: two instances filed over a1, the first indexed, a1 still open."""
    site = Site(tmp_path)
    reception = site.reception()
    reception.opened(association("a1"))
    reception.filed("a1", site.file(1))
    reception.step()
    site.file(2)
    return site


def test_files_without_row_get_one_and_then_the_association_ends(site: Site) -> None:
    """Every file has its row afterwards, and a second look finds nothing."""
    assert 1 == site.recover()
    (study,) = site.records.studies.open_studies()
    assert (2, ()) == (study.series[0].n_images, study.associations)
    assert 0 == site.recover()


def test_rows_are_written_before_the_association_ends(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure to index leaves the association open: it still holds what has no rows."""

    def fail(*_: object, **__: object) -> None:
        raise RecordsError("disk")

    monkeypatch.setattr(site.records.studies, "index", fail)
    site.recover()
    assert 1 == len(site.records.studies.open_studies()[0].associations)


def test_rows_wait_until_the_port_is_calm(site: Site) -> None:
    """A burst has the disk for itself; after a pause, or when it lasts, rows are written and go on until all are."""
    reception = site.reception()
    reception.filed("a1", site.file(3))
    assert not reception.step_when_calm()
    site.records.clock.advance(CALM_S)
    assert reception.step_when_calm()
    written = []
    for number in range(4, 16):  # a burst that lasts
        reception.filed("a1", site.file(number))
        written.append(reception.step_when_calm())
        site.records.clock.advance(PATIENCE_S / 10)
    assert [False] * 10 + [True] + [False] == written


def test_a_dead_receivers_study_waits_until_its_files_have_rows(site: Site) -> None:
    """Quiet for long enough, but not taken up: not complete; then it broke off, and its sender may come again."""
    decision = site.decision()
    site.records.clock.advance(10)
    assert not decision.step()
    site.recover()
    assert not decision.step()
    site.records.clock.advance(DOUBT_S - ROW_LAG_S - 0.1)
    assert not decision.step()
    site.records.clock.advance(0.2)
    assert decision.step()
    assert "complete" == site.records.studies.show(STUDY).state


def test_without_another_receiver_the_wait_ends(site: Site) -> None:
    """After the longest silence of an association its study is decided with what is known."""
    decision = site.decision()
    assert not decision.step()
    site.records.clock.advance(31)
    assert decision.step()


def test_quiet_counts_afresh_after_a_restart(site: Site) -> None:
    """A study that was quiet for long when the worker starts waits its quiet time once more."""
    reception = site.reception()
    reception.closed("a1", "released")
    reception.drain()
    site.records.clock.advance(timedelta(days=1).total_seconds())
    decision = site.decision()
    assert not decision.step()
    site.records.clock.advance(4.9)
    assert not decision.step()
    site.records.clock.advance(0.2)
    assert decision.step()
