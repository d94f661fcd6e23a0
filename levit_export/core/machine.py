"""The machine a measurement was made on, and how fast it multiplies matrices."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from levit_export.core.errors import UsageError

GEMM_SIDE = 1024
FIRST_MAPS = 3
"""Times the input that a network holds at once: the input, the first convolution's output, which
in every LeViT is larger, and what its activation makes of it."""

CONTAINER_LIMITS = (
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)
INSTRUCTIONS = (
    *("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_vnni"),
    *("amx_int8", "amx_bf16", "asimddp", "i8mm"),
)
"""Those that decide how fast int8 is, and what a runtime computes float32 numbers in."""


@dataclass(frozen=True)
class Machine:
    """Processor, usable cores, memory in bytes, instruction sets that matter, system, Python."""

    processor: str
    cores: int
    memory: int
    instructions: tuple[str, ...]
    system: str
    python: str


def describe() -> Machine:
    """This machine."""
    info = _cpuinfo()
    flags = set(f"{info.get('flags', '')} {info.get('Features', '')}".split())
    return Machine(
        processor=info.get("model name") or platform.processor() or platform.machine(),
        cores=usable_cores(),
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        instructions=tuple(name for name in INSTRUCTIONS if name in flags),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
    )


def vendor() -> str:
    """The processor's maker as it names itself, such as ``GenuineIntel``; empty where unknown."""
    return _cpuinfo().get("vendor_id", "")


def usable_cores() -> int:
    """Processors this process may use, which a container can make fewer than the machine has."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def processors() -> int:
    """Logical processors of the machine: more threads than these only wait for each other."""
    return max(os.cpu_count() or 1, usable_cores())


def usable_memory() -> int:
    """Bytes that this process can have at most: of the machine, its container, and its limits."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for name in CONTAINER_LIMITS:
        with suppress(OSError, ValueError):  # no container, or "max"
            limits.append(int(Path(name).read_text(encoding="ascii")))
    if sys.platform != "win32":
        import resource

        own = resource.getrlimit(resource.RLIMIT_AS)[0]
        limits += [own] * (own != resource.RLIM_INFINITY)
    return min(limits)


def refuse_threads(given: int, option: str = "--threads") -> None:
    """Raise ``UsageError`` for more threads or processes than the machine has processors."""
    if given > processors():
        raise UsageError(
            f"{option} {given} is more than the {processors()} processors of this machine",
            remedy=f"Give 1 to {processors()}, or leave it out.",
        )


def refuse_batch(batch: int, image_size: tuple[int, int]) -> None:
    """Raise ``UsageError`` for a fixed batch whose first layers alone exceed the memory."""
    height, width = image_size
    least = batch * FIRST_MAPS * 3 * height * width * 4
    if least > (there := usable_memory()):
        raise UsageError(
            f"a batch of {batch} images of {height}x{width} pixels takes {least / 2**30:,.0f} GiB "
            f"at least, and {there / 2**30:,.0f} GiB are there",
            remedy="Give a smaller --batch, or leave it open with --dynamic.",
        )


def gemm(threads: int) -> Callable[[], object]:
    """One square float32 matrix product of ``GEMM_SIDE`` on ``threads`` threads, to be timed."""
    from threadpoolctl import ThreadpoolController

    generator = np.random.default_rng(0)
    a, b = generator.standard_normal((2, GEMM_SIDE, GEMM_SIDE), dtype=np.float32)
    out = np.empty_like(a)
    controller = ThreadpoolController()

    def multiply() -> object:
        with controller.limit(limits=threads, user_api="blas"):
            return np.matmul(a, b, out=out)

    return multiply


def gemm_operations() -> int:
    """Floating-point operations of one call of :func:`gemm`: a multiply and an add per term."""
    return 2 * GEMM_SIDE**3


def _cpuinfo() -> dict[str, str]:
    """The first processor's entry of /proc/cpuinfo, empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}
