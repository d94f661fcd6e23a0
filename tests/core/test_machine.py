"""What is said of the machine, and its rate of matrix products."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from levit_export.core import machine


def test_description() -> None:
    """This machine has a processor, cores, memory, and a Python that is the running one."""
    found = machine.describe()
    assert found.processor
    assert 1 <= found.cores <= (os.cpu_count() or 1)
    assert found.memory > 2**28
    assert found.python == ".".join(map(str, __import__("sys").version_info[:3]))
    assert set(found.instructions) <= set(machine.INSTRUCTIONS)


def test_cores_are_those_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is pinned to one core has one, whatever the machine has."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5}, raising=False)
    assert machine.usable_cores() == 1
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert machine.usable_cores() == 7


def test_description_without_procfs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no /proc the description has no instruction sets, and is not empty."""

    def absent(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", absent)
    found = machine.describe()
    assert found.instructions == ()
    assert found.processor


def test_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Instruction sets are read from the first processor, x86's flags and Arm's features alike."""
    texts = {
        "model name\t: A CPU\nflags\t\t: fpu avx2 avx512f\n\nflags\t: i8mm\n": ("avx2", "avx512f"),
        "Features\t: fp asimddp i8mm\n": ("asimddp", "i8mm"),
    }
    for text, expected in texts.items():
        monkeypatch.setattr(Path, "read_text", lambda *_, text=text, **__: text)
        assert machine.describe().instructions == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("vendor_id\t: AuthenticAMD\n\nvendor_id\t: other\n", "AuthenticAMD"),
        ("Features\t: fp\n", ""),
    ],
)
def test_vendor(monkeypatch: pytest.MonkeyPatch, text: str, expected: str) -> None:
    """The maker is that of the first processor, and empty where none is named."""
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: text)
    assert machine.vendor() == expected


def test_product() -> None:
    """The product that is timed is a square float32 product of the stated side."""
    product = machine.gemm(1)()
    assert isinstance(product, np.ndarray)
    assert (product.shape, product.dtype) == ((machine.GEMM_SIDE,) * 2, np.float32)
    a, b = np.random.default_rng(0).standard_normal((2, *product.shape), dtype=np.float32)
    np.testing.assert_allclose(product[7], a[7].astype(np.float64) @ b, rtol=0, atol=1e-3)
    assert machine.gemm_operations() == 2 * machine.GEMM_SIDE**3


def test_product_puts_the_thread_count_back() -> None:
    """The thread count of the BLAS is limited for the call only."""
    before = [(pool["filepath"], pool["num_threads"]) for pool in threadpool_info()]
    machine.gemm(1)()
    assert [(pool["filepath"], pool["num_threads"]) for pool in threadpool_info()] == before
