"""A program read from a package, and its evaluation."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from levit_export.core.constants import Constant
from levit_export.core.errors import UsageError
from levit_export.formats.mil.binding import evaluate
from levit_export.formats.mil.contents import classes, contents
from levit_export.formats.mil.elements import INT64, DeclaredType, TensorType, Value
from levit_export.formats.mil.features import (
    ArrayFeature,
    Feature,
    ImageFeature,
    feed,
    read_features,
)
from levit_export.formats.mil.graph import Graph, read_graph
from levit_export.formats.mil.package import (
    Package,
    damaged,
    open_package,
    read_model,
    unsupported,
)
from levit_export.formats.mil.rounding import round_to_half_
from levit_export.formats.mil.values import Reader


@dataclass(frozen=True, eq=False)
class Program:
    """An ML Program ready to run. Made by :func:`load`; never changes."""

    path: Path
    inputs: tuple[Feature, ...]
    """What the model description says the model takes."""
    outputs: tuple[Feature, ...]
    """What the model description says the model gives, in order."""
    metadata: Mapping[str, str]
    """User-defined metadata; ``author``, ``license``, ``version`` and ``description`` if set."""
    op_types: Counter[str]
    """How many ops of each type the program has, constants included."""
    value_names: tuple[str, ...]
    """Inputs and every tensor that an op computes, in program order: what ``taps`` may name."""
    _graph: Graph = field(repr=False)
    _dead_after: tuple[tuple[str, ...], ...] = field(repr=False)

    @property
    def contents(self) -> tuple[Constant, ...]:
        """The numbers that the outputs depend on; see :mod:`levit_export.formats.mil.contents`."""
        return contents(self._graph)

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels of a classifier's classes, in the order of its probabilities."""
        return classes(self._graph)

    @property
    def constants(self) -> Mapping[str, np.ndarray]:
        """Constant tensors by name, those of compressed weights decompressed.

        What compressed weights are stored as (packed numbers, scales, offsets, palettes) is not
        among them. A float16 tensor comes as float32 numbers that float16 can represent.
        """
        found = self._graph.constants
        return {
            name: value
            for name, value in found.items()
            if isinstance(value, np.ndarray) and name not in self._graph.parts
        }

    def run(self, inputs: Mapping[str, Any], taps: Iterable[str] = ()) -> dict[str, Any]:
        """Evaluate the program.

        ``inputs`` maps every input's name to an array of the declared shape, or what NumPy makes
        one of, with numbers that the declared type can hold; to an image, where one is declared:
        see :func:`levit_export.formats.mil.features.feed`. Returns the outputs, and the values
        that ``taps`` names, each a NumPy array of the declared element type and shape (a label
        and a dictionary of probabilities for a classifier; an output without axes comes as
        ``(1,)``, as from Core ML).

        Values are freed when no later op needs them. Raises :class:`UsageError`,
        :class:`DataError` for inputs that do not fit, :class:`UnsupportedOpError` where they make
        an op do what is not documented, :class:`PackageError` for a program that does not do what
        it declares.
        """
        wanted = self._wanted(taps)
        graph = self._graph
        values: dict[str, Value] = {**graph.constants}
        for name, array in feed(inputs, {f.name: f for f in self.inputs}, graph.inputs).items():
            if graph.inputs[name].element.is_half:
                round_to_half_(array)
            values[name] = array
        for node, dead in zip(graph.nodes, self._dead_after, strict=True):
            results = evaluate(node, values)
            values.update(zip((name for name, _ in node.outputs), results, strict=True))
            for name in dead:
                if name not in wanted:
                    del values[name]
        found = {name: _given_out(values[name], graph.types[name]) for name in wanted}
        # Core ML has no outputs without axes.
        scalars = {f.name for f in self.outputs if np.shape(found[f.name]) == ()}
        return {
            name: value.reshape(1) if name in scalars and isinstance(value, np.ndarray) else value
            for name, value in found.items()
        }

    def _wanted(self, taps: Iterable[str]) -> dict[str, None]:
        """Names to return, in order: the outputs, then ``taps``."""
        names = [taps] if isinstance(taps, str) else list(taps)
        known = set(self.value_names)
        for name in names:
            if name not in known:
                near = difflib.get_close_matches(str(name), self.value_names, n=3)
                raise UsageError(
                    f"{self.path} has no value {name!r}",
                    remedy=f"Near are {near}; Program.value_names lists all."
                    if near
                    else "Program.value_names lists all.",
                )
        return dict.fromkeys([*(feature.name for feature in self.outputs), *names])


def load(path: str | PathLike[str]) -> Program:
    """Read and check the ``.mlpackage`` at ``path``.

    Raises :class:`PackageError` for a damaged package, :class:`UnsupportedOpError` for one that
    the evaluator does not know how to run, :class:`MissingDependencyError` without coremltools.
    """
    package = open_package(Path(path))
    model = read_model(package)
    description = model.description
    functions = sorted(model.mlProgram.functions)
    if description.functions or functions != ["main"]:
        if not functions:
            raise damaged(package.root, "its program has no function")
        raise unsupported(
            package, f"it has the functions {functions}; a package with 'main' alone is evaluated"
        )
    if description.state:
        raise unsupported(package, "it keeps state between runs")
    graph = read_graph(
        model.mlProgram.functions["main"],
        Reader(package),
        specification=model.specificationVersion,
    )
    inputs = read_features(description.input, package)
    # A network that gives one tensor twice has one name for it, which coremltools lists twice
    # here and in the program; a prediction, a dictionary, has it once.
    outputs = tuple(dict.fromkeys(read_features(description.output, package)))
    _agree(package, inputs, graph.inputs, graph.types, "inputs")
    _agree(package, outputs, graph.outputs, graph.types, "outputs")
    return Program(
        package.root,
        inputs,
        outputs,
        _metadata(description.metadata),
        graph.op_types,
        _value_names(graph),
        graph,
        _dead_after(graph),
    )


def _agree(
    package: Package,
    features: tuple[Feature, ...],
    names: Iterable[str],
    types: Mapping[str, DeclaredType],
    what: str,
) -> None:
    """The description and the program must speak of the same tensors."""
    described = sorted(feature.name for feature in features)
    if described != sorted(names):
        raise damaged(
            package.root, f"it describes the {what} {described}, but has {sorted(names)}"
        )
    for feature in features:
        declared = types[feature.name]
        if isinstance(feature, ArrayFeature | ImageFeature) and not _fits(feature, declared):
            raise damaged(package.root, f"it describes {feature}, but declares {declared}")


def _fits(feature: ArrayFeature | ImageFeature, declared: DeclaredType) -> bool:
    if not isinstance(declared, TensorType):
        return False
    if isinstance(feature, ImageFeature):
        return declared.element.kind == "f" and declared.admits(feature.shape)
    if declared.element.name != feature.dtype:
        return False
    # The description may leave out an output's shape, and has no tensors without axes.
    scalar = declared.shape == () and feature.shape == (1,)
    return scalar or feature.shape == () or declared.admits(feature.shape)


def _metadata(message: Any) -> dict[str, str]:
    found = dict(message.userDefined)
    named = {
        "author": message.author,
        "license": message.license,
        "version": message.versionString,
        "description": message.shortDescription,
    }
    return {**found, **{key: value for key, value in named.items() if value}}


def _value_names(graph: Graph) -> tuple[str, ...]:
    computed = [
        name
        for node in graph.nodes
        for name, declared in node.outputs
        if isinstance(declared, TensorType) and declared.element.kind != "s"
    ]
    return (*graph.inputs, *computed)


def _dead_after(graph: Graph) -> tuple[tuple[str, ...], ...]:
    """For every op, the values that it is the last to use, or makes in vain."""
    computed = {*graph.inputs, *(name for node in graph.nodes for name, _ in node.outputs)}
    last: dict[str, int] = {}
    for index, node in enumerate(graph.nodes):
        for name in (*(name for name, _ in node.outputs), *node.names):
            if name in computed:
                last[name] = index
    dead: list[list[str]] = [[] for _ in graph.nodes]
    for name, index in last.items():
        dead[index].append(name)
    return tuple(map(tuple, dead))


def _given_out(value: Value, declared: DeclaredType) -> Any:
    """A copy for the caller, in the declared element type (sub-byte integers in whole bytes)."""
    if not isinstance(value, np.ndarray) or not isinstance(declared, TensorType):
        return value
    # Only a class label is an int64: Core ML gives it as a plain number.
    if declared.element == INT64 and value.ndim == 0:
        return int(value)
    return value.astype(np.float16 if declared.element.is_half else value.dtype)
