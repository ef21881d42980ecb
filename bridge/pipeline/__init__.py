"""The story of bridge, in order: receive, process, deliver.

Nothing in here knows a database or a web framework; each step is a named call, and what it decided is saved whole.
"""

from bridge.pipeline import catching_up, consenting, registering
from bridge.pipeline.access import SharedAccess
from bridge.pipeline.delivering import Push, deliver, probe
from bridge.pipeline.processing import BURST, parse, process
from bridge.pipeline.receiving import receive
from bridge.pipeline.ruling import follow

__all__ = [
    "BURST",
    "Push",
    "SharedAccess",
    "catching_up",
    "consenting",
    "deliver",
    "follow",
    "parse",
    "probe",
    "process",
    "receive",
    "registering",
]
