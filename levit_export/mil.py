"""Read and run Core ML packages on any system; see :mod:`levit_export.formats.mil`."""

from levit_export.formats.mil import *  # noqa: F403
from levit_export.formats.mil import __all__ as __all__  # noqa: PLC0414
