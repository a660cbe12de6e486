"""Documents say what the code does: diagrams, commands and names are compared with their source."""

from pathlib import Path

import pytest

from dicom_node.lifecycle import DELIVERY_TRANSITIONS, JOB_TRANSITIONS, state_diagram

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("table", [JOB_TRANSITIONS, DELIVERY_TRANSITIONS], ids=["job", "delivery"])
def test_architecture_shows_the_state_diagrams_of_the_code(table):
    """The Mermaid diagrams are the tables of lifecycle.py, line by line."""
    assert state_diagram(table) in (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
