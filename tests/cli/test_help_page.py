"""The documentation of the command line is what the command line says."""

from __future__ import annotations

from pathlib import Path

from levit_export.cli.help_page import page

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cli-reference.md"


def test_the_reference_page_is_what_help_prints() -> None:
    """docs/cli-reference.md was regenerated after the last change of an option."""
    assert PAGE.read_text(encoding="utf-8") == page(), "run scripts/cli-reference"
