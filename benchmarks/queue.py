"""`python benchmarks/queue.py`: the measurements stand in job_queue.py.

Python puts the folder of a driver first in its path, so that this name hides the standard library's `queue` from every
driver of the folder. Whoever imports that gets it from here.
"""

import importlib
import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != _HERE]

if __name__ == "queue":
    del sys.modules["queue"]
    sys.modules["queue"] = importlib.import_module("queue")
elif __name__ == "__main__":
    from benchmarks.job_queue import main

    sys.exit(main())
