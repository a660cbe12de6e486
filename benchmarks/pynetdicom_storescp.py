"""Stock pynetdicom as a receiver, at its best: raw bytes, a PDU of 128 kB, and the durability that we promise.

A program of its own, `python -m benchmarks.pynetdicom_storescp FOLDER PORT`. Each object is written as it came,
the file is synchronised, then its folder, then Success is answered.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.dimse_primitives import C_STORE

SUCCESS = 0x0000
MAX_PDU_BYTES = 131072


def store(event: evt.Event, folder: Path) -> int:
    """Write one object and make it durable; return the status of the response."""
    assert isinstance(event.request, C_STORE)
    path = folder / f"{event.request.AffectedSOPInstanceUID}.dcm"
    with path.open("wb") as file:
        file.write(event.encoded_dataset())
        file.flush()
        os.fsync(file.fileno())
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return SUCCESS


def main(folder: Path, port: int) -> None:
    """Serve until killed."""
    ae = AE(ae_title="PYNETDICOM")
    ae.supported_contexts = AllStoragePresentationContexts
    ae.maximum_pdu_size = MAX_PDU_BYTES
    ae.maximum_associations = 32
    ae.start_server(("127.0.0.1", port), evt_handlers=[(evt.EVT_C_STORE, store, [folder])])


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
