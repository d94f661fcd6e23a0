"""Fixtures for the passes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# So that the test files find pass_networks.py under every import mode of pytest.
sys.path.insert(0, str(Path(__file__).parent))

from pass_networks import NETWORKS, SMALL, Network, build

from levit_export.models.architectures.levit import Levit
from levit_export.models.architectures.random_weights import randomize_


@pytest.fixture(scope="session", params=NETWORKS)
def network(request: pytest.FixtureRequest) -> Network:
    """Each of ``NETWORKS``; a test must not change it."""
    return build(request.param)


@pytest.fixture
def small() -> Levit:
    """A small randomised model that a test may change."""
    return randomize_(Levit(SMALL), seed=5).eval()
