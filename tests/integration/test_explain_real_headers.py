"""Explain and replay on the headers of real scanners: golden texts, as an administrator reads them.

`python -m tests.integration.test_explain_real_headers` writes them anew; read the difference before it is committed.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import pytest

from dicom_node.admin.inspection import study_views
from dicom_node.app import Node, open_draft
from dicom_node.clock import ManualClock
from dicom_node.config import Config, load_config, parse_toml
from dicom_node.config.live import Live, Rules
from dicom_node.decision import Decision, origins
from dicom_node.errors import UndecodableError
from dicom_node.infer import PluginRegistry
from dicom_node.logs import Log
from dicom_node.reading import describe, find_files
from dicom_node.records import Decisions
from dicom_node.routing import apply_routes, lines
from dicom_node.study import FiledInstance

pytestmark = pytest.mark.data

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).parent / "golden"
COLLECTIONS = ("dcm_qa_enh", "dcm_qa_toshiba", "dcm_qa_uih", "highdicom")
NOW = datetime(2026, 3, 10, 12, tzinfo=UTC)
START = "[[peer]]\nname = 'a'\nae_title = 'ARCHIVE'\naddress = 'h:104'\n[[destination]]\nname = 'archive'\npeer = 'a'\n"
RULES = (
    START
    + """
[[route]]
name = "brain"
plugin = "brain_mask"
[route.complete]
quiet_s = 0
[[route]]
name = "qa"
plugin = "qa_phantom"
start = "study"
max_study_age_days = 3650
[route.complete]
quiet_s = 0
[[route]]
name = "diffusion"
destinations = ["archive"]
[route.complete]
quiet_s = 0
[route.study]
match = [{ keyword = "Modality", equals = "MR" }]
[route.series]
match = [
  { any = [
    { keyword = "SeriesDescription", matches = "(?i)d[tw]i" },
    { keyword = "ImageType", equals = "DIFFUSION" },
    { tag = "(0065,xx09)", private_creator = "Image Private Header", exists = true },
  ] },
  { keyword = "Manufacturer", in = ["TOSHIBA", "UIH", "Philips"] },
  { keyword = "SliceThickness", at_least = 1.5, at_most = 3.0 },
]
prefer = ["thinnest", "most_slices"]
"""
)
DRAFT = RULES.replace('in = ["TOSHIBA", "UIH", "Philips"]', 'contains = "UIH"').replace(
    "at_least = 1.5, at_most = 3.0", "at_least = 1.5, missing = true"
)


def _requirements() -> PluginRegistry:
    return PluginRegistry([ROOT / "plugins"], ROOT / "absent")


def explained(data: Path) -> str:
    """Return the page for every study of the collections."""
    config = parse_toml(RULES, Path("config.toml"), Config)
    requirements = {plugin.id: plugin.manifest.input_series[0] for plugin in _requirements()}
    page = []
    for name in COLLECTIONS:
        for view in sorted(study_views(data / name, NOW), key=lambda one: one.study_instance_uid):
            page.append(f"\n{name}, study {view.study_instance_uid}")
            answers = apply_routes(view, config.route, requirements, NOW, origins=origins(config))
            page += lines(sorted(answers, key=lambda one: (one.route, one.series_instance_uid or "")))
    return "\n".join(page).strip() + "\n"


def _receive(node: Node, data: Path) -> None:
    """Write the rows of every file, as if it had just come."""
    batch = []
    for path in sorted(file for name in COLLECTIONS for file in find_files(data / name)):
        try:
            description = describe(path)
        except UndecodableError:
            continue
        filed = FiledInstance(
            sop_instance_uid=description.sop_instance_uid,
            sop_class_uid=description.sop_class_uid,
            transfer_syntax_uid=description.transfer_syntax_uid,
            digest=sha256(path.read_bytes()).hexdigest(),
            path=path,
            size_bytes=path.stat().st_size,
            calling_ae="SCANNER",
            called_ae="DICOM_NODE",
            received_at=NOW,
            association=None,
        )
        batch.append((filed, description))
    node.studies.index(batch)


def replayed(data: Path, folder: Path) -> str:
    """Return what the draft changes for the collections, once they were received and decided."""
    file, draft = folder / "config.toml", folder / "draft.toml"
    file.write_text(RULES)
    draft.write_text(DRAFT)
    node = Node(file)
    _receive(node, data)
    clock = ManualClock(node.clock.now())
    decision = Decision(
        node.studies,
        Decisions(node.database, node.jobs),
        rules=Live(Rules.of(load_config(file))),
        registry=_requirements(),
        clock=clock,
        log=Log("test"),
    )
    decision.step()
    clock.advance(3600)
    while decision.step():
        pass
    found = open_draft(draft).admin.replay((node.clock.now() - NOW).total_seconds() / 86400 + 1)
    page = [f"{found['studies']} studies, {found['undecided']} undecided"]
    for one in sorted(found["changes"], key=lambda one: (one["route"], one["study_instance_uid"])):
        page.append(
            f"{one['study_instance_uid']} {one['route']}: {one['old_outcome']} -> {one['new_outcome']} "
            f"({one['effect']})\n  {one['new_reason']}"
        )
    page += [str(one) for one in found["totals"]]
    return "\n".join(page) + "\n"


@pytest.mark.parametrize("name", ["explain", "replay"])
def test_real_headers_give_the_golden_text(shared_data: Path, tmp_path: Path, name: str) -> None:
    """Every route, series and condition with what was found; and what a draft would change."""
    made: dict[str, Callable[[], str]] = {
        "explain": lambda: explained(shared_data),
        "replay": lambda: replayed(shared_data, tmp_path),
    }
    assert (GOLDEN / f"{name}_real_headers.txt").read_text(encoding="utf-8") == made[name]()


if __name__ == "__main__":
    shared = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT.parent / "shared" / "data"
    (GOLDEN / "explain_real_headers.txt").write_text(explained(shared), encoding="utf-8")
    with tempfile.TemporaryDirectory() as made_in:
        (GOLDEN / "replay_real_headers.txt").write_text(replayed(shared, Path(made_in)), encoding="utf-8")
