"""What can go wrong between a name and its file.

::

    LevitExportError
    └── DownloadError       published weights that cannot be had
        └── WrongHashError  a file whose content is not what was published
"""

from __future__ import annotations

from levit_export.errors import LevitExportError


class DownloadError(LevitExportError):
    """Published weights that cannot be had: no network, no such file, not in the cache."""


class WrongHashError(DownloadError):
    """A file whose SHA-256 is not the published one."""


def reason(error: BaseException) -> str:
    """The innermost cause in a line; what HTTP libraries wrap around it repeats the address."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
