"""An existing Dask cluster: reach it, make sure that its workers are as we are, hand out calls.

A call is a function of this package, its arguments, and parcels: files that travel by their
content. A parcel is sent once, kept once by each worker that needs it, and made anew from what the
scheduler holds when its worker dies. So is a call: its key is a digest of everything that
determines its result, and it may be run again. No shared file system is needed.
"""

from __future__ import annotations

from levit_export.workflows.cluster.calls import Call, Cluster, Outcome, connected
from levit_export.workflows.cluster.identity import identity
from levit_export.workflows.cluster.parcels import Parcel, checkpoint_files, parcel

__all__ = [
    "Call",
    "Cluster",
    "Outcome",
    "Parcel",
    "checkpoint_files",
    "connected",
    "identity",
    "parcel",
]
