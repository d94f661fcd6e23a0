"""Fixtures for the evaluator of Core ML packages."""

from __future__ import annotations

import gc
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

# So that the test files find mil_programs.py under every import mode of pytest.
sys.path.insert(0, str(Path(__file__).parent))

# coremltools warns, when imported, about versions of torch and scikit-learn that it was not
# tested with.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    logging.getLogger("coremltools").setLevel(logging.ERROR)
    import coremltools  # noqa: F401

from mil_programs import Build, Saved, convolution_to_softmax, integer_ops, many_ops, save


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let coremltools warn: its deprecations and casts are not ours to repair."""
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.filterwarnings("ignore:::coremltools"))
            item.add_marker(pytest.mark.filterwarnings("ignore:::torch"))
            # An MLModel of coremltools leaves its temporary directory to the garbage collector.
            item.add_marker(
                pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")
            )


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Saved]:
    """A function that saves a MIL program as a package in a directory of its own."""

    def make(build: Build, *, specification: int = 7, **inputs: object) -> Saved:
        return save(tmp_path_factory.mktemp("package"), build, specification, inputs)

    return make


@pytest.fixture(scope="module", autouse=True)
def _clean() -> Iterator[None]:
    """Collect coremltools' models here, where the warning about them is expected."""
    yield
    gc.collect()


@pytest.fixture(scope="session")
def sound(saved: Callable[..., Saved]) -> Saved:
    """A package that is as it should be: convolution, linear layer, softmax."""
    return saved(convolution_to_softmax, x=np.ones((1, 3, 8, 8), np.float32))


@pytest.fixture(scope="session")
def rich(saved: Callable[..., Saved]) -> Saved:
    """A package with ops that allocate, index and repeat."""
    return saved(many_ops, x=np.ones((1, 3, 8, 8), np.float32))


@pytest.fixture(scope="session")
def whole(saved: Callable[..., Saved]) -> Saved:
    """A package with arithmetic on integers."""
    return saved(integer_ops, x=np.ones((1, 3, 8, 8), np.float32))
