"""Foreign programs that the tests talk to: a PACS, a sender, validators and readers that others wrote.

Each is asked for through `require_peer`, so that an absent one is a failure in CI and a skip with its reason elsewhere.
`install.sh` beside this file installs them.
"""

from tests.peers.dcmqi import segimage2itkimage
from tests.peers.dcmtk import SendReport, storescu
from tests.peers.orthanc import Orthanc
from tests.peers.ports import free_port
from tests.peers.require import require_peer
from tests.peers.validators import dciodvfy, pixelmed_sr_errors
from tests.peers.waiting import eventually

__all__ = [
    "Orthanc",
    "SendReport",
    "dciodvfy",
    "eventually",
    "free_port",
    "pixelmed_sr_errors",
    "require_peer",
    "segimage2itkimage",
    "storescu",
]
