"""The demonstration: a real node, a stand-in PACS and a study, over real associations on loopback.

    site      the node (`serve`, all roles, SQLite) and the stand-in PACS, our own listener with a store of its own
    compare   what was found beside what is there: pure
    table     the outcome for people and for `--json`
    story     what happens, in order

What is printed is read back from the SEG that the PACS received.
"""

from dicom_node.demo.compare import Found, Row, TrueObject, compare
from dicom_node.demo.story import DemoFailedError, run_demo
from dicom_node.demo.table import Report, lines

__all__ = ["DemoFailedError", "Found", "Report", "Row", "TrueObject", "compare", "lines", "run_demo"]
