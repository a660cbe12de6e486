"""Every series of the shared data is read or refused as docs/reading.md says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.reading_table import DOCUMENT, table


@pytest.mark.data
def test_document_is_what_inspect_shows(shared_data: Path) -> None:
    """No series crashes; shapes, spacings, directions and reasons are those that a person has looked at."""
    assert DOCUMENT.read_text(encoding="utf-8").splitlines() == table(shared_data).splitlines()
