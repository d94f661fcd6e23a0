"""Read and run Core ML packages on any system; see :mod:`levit_export.formats.mil`.

``python -m levit_export.mil PACKAGE`` lists what a package holds.
"""

import sys

from levit_export.formats.mil import *  # noqa: F403
from levit_export.formats.mil import __all__ as __all__  # noqa: PLC0414
from levit_export.formats.mil.listing import main

if __name__ == "__main__":
    sys.exit(main())
