"""The whole way of a forwarded study through a running node whose rules arrive while it runs."""

from __future__ import annotations

import signal
from pathlib import Path

from pydicom import dcmread

from dicom_node.reload import SERVING, serving
from tests import peers
from tests.acceptance.site import Site
from tests.integration.receiving import EXPLICIT, dicom_file, encode_data_set, small_data_set
from tests.integration.routing_case import storescp

RULES = """
[[peer]]
name = "archive"
ae_title = "ARCHIVE"
address = "127.0.0.1:{port}"
[[destination]]
name = "archive"
peer = "archive"
[[route]]
name = "copies"
destinations = ["archive"]
[route.complete]
quiet_s = 0.5
"""


def _data_set(path: Path) -> bytes:
    length = 132 + 12 + dcmread(path, specific_tags=[]).file_meta.FileMetaInformationGroupLength
    return path.read_bytes()[length:]


def test_a_route_that_arrives_by_hangup_forwards_byte_by_byte(tmp_path: Path) -> None:
    """A node that serves no route learns peer, destination and route; storescu sends, storescp has the same bytes."""
    sent = [encode_data_set(small_data_set(f"1.2.3.4.{number}"), EXPLICIT) for number in range(3)]
    files = [
        dicom_file(tmp_path / f"{number}.dcm", one, sop_instance_uid=f"1.2.3.4.{number}")
        for number, one in enumerate(sent)
    ]
    site = Site(tmp_path / "node", pacs_port=1, plugins=())
    with storescp(tmp_path / "archive") as port:
        site.start()
        try:
            before = {one.role: one.digest for one in serving(site.folder / "var" / SERVING)}
            site.config_file.write_text(site.config_file.read_text() + RULES.format(port=port))
            assert site._process is not None
            site._process.send_signal(signal.SIGHUP)

            def have_swapped() -> bool:
                now = {one.role: one.digest for one in serving(site.folder / "var" / SERVING)}
                return len(now) == 3 and len(set(now.values())) == 1 and set(now.values()).isdisjoint(before.values())

            site.wait_until(have_swapped, "every role serves the new rules", timeout_s=20)
            peers.storescu(files, site.port)
            site.wait_until(
                lambda: [("stored",)] * 3 == site.rows("SELECT state FROM delivery"), "three deliveries", timeout_s=30
            )
            assert sorted(sent) == sorted(_data_set(path) for path in (tmp_path / "archive").iterdir())
            (listed,) = site.jobs()
            assert ("(forward)", "done") == (listed["plugin"], listed["state"])
            assert {"instance"} == {one["kind"] for one in site.node.admin.deliveries()}
        finally:
            site.stop()
