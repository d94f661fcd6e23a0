"""Why a transfer failed, in words."""

from __future__ import annotations


def reason(error: BaseException) -> str:
    """The innermost cause in a line; what HTTP libraries wrap around it repeats the address."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
