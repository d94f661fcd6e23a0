"""What the values of taps are called in a shipped file."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from levit_export import lean, naming
from levit_export.core import Artifact, Target
from levit_export.targets import target

SUFFIXES = ("", "_cast_fp16", "_cast", "_to_fp16", "_DequantizeLinear_Output")
"""What converters and quantisers append to the name of the float value."""


def resolve(artifact: Artifact, taps: Iterable[str]) -> dict[str, str]:
    """For every tap that the file still has, the name of its value; others are left out."""
    kind = target(artifact.format)
    wanted = {tap: naming.tap_value(tap) for tap in taps}
    resolver: Any = getattr(kind, "taps", None)
    found: Mapping[str, str | None] = resolver(artifact, wanted) if callable(resolver) else {}
    known = set(_values(kind, artifact)) if not found or None in found.values() else set()
    names = {tap: found.get(tap) or _among(known, value) for tap, value in wanted.items()}
    return {tap: name for tap, name in names.items() if name is not None}


def _among(known: Collection[str], value: str) -> str | None:
    return next((value + suffix for suffix in SUFFIXES if value + suffix in known), None)


def _values(kind: Target, artifact: Artifact) -> Iterable[str]:
    """The names of a file's inner values."""
    lister: Any = getattr(kind, "values", None)
    if callable(lister):
        return tuple(lister(artifact))
    if artifact.format == "onnx":
        import onnx

        graph = onnx.load(artifact.path).graph
        return [name for node in graph.node for name in node.output]
    if artifact.format == "openvino":
        openvino = lean.openvino()

        graph = openvino.Core().read_model(artifact.path)
        constants = ("Constant", "Result", "Parameter")
        return [
            op.get_friendly_name() for op in graph.get_ops() if op.get_type_name() not in constants
        ]
    return ()
