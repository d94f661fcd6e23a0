"""Start Python again with the import path of this process, and no other.

``python -m`` and ``python -c`` put the current directory first on the path, so a ``random.py`` or
``onnx.py`` in a user's folder would be imported, and run, in place of the real one.
"""

from __future__ import annotations

import sys


def command(code: str, *arguments: str) -> list[str]:
    """The command line that runs ``code`` with ``sys.argv[1:]`` set to ``arguments``."""
    path = [entry for entry in sys.path if entry]
    return [sys.executable, "-c", f"import sys; sys.path[:] = {path!r}\n{code}", *arguments]
