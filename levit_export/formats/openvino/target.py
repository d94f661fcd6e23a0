"""OpenVINO IR: an ``.xml`` graph and its ``.bin`` weights, run by OpenVINO Runtime."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from levit_export.core import files, packages
from levit_export.core.errors import (
    ArtifactError,
    ExportFailedError,
    LevitExportError,
    NotRunError,
    RuntimeFailedError,
    UsageError,
)
from levit_export.core.packages import COMPUTED_IN, PRECISION_HINT, needs
from levit_export.core.precisions import GRIDS, HINTED
from levit_export.core.quiet import first_line, last_line, quiet
from levit_export.core.values import (
    Arithmetic,
    Artifact,
    Availability,
    ExportOptions,
    Prepared,
    RunOptions,
    Signature,
    Tensors,
    TensorSpec,
)
from levit_export.formats.metadata import PREFIX, inspected, metadata
from levit_export.formats.openvino import precisions as openvino_precisions
from levit_export.formats.openvino import read as openvino_read

if TYPE_CHECKING:
    import openvino

SECTION = PREFIX.rstrip(".")
"""Where in ``rt_info`` the metadata lives."""


OLDEST_RUNTIME = "OpenVINO 2023.2 and later"
"""The first that knows opset 13, whose operators are written
(https://docs.openvino.ai/2024/documentation/openvino-ir-format/operation-sets/available-opsets.html)."""


NOT_READ = (
    "a program has to pass on what the file is to be computed in: OpenVINO does not read "
    f"{PRECISION_HINT} from it"
)


class OpenvinoTarget:
    """See :class:`levit_export.core.values.Target`."""

    name = "openvino"
    suffix = ".xml"
    precisions = ("fp32", "fp16", "bf16", "int8", "w8", "w4")

    def computes_in_half(self, precision: str) -> bool:
        """No: float16 weights are computed with in float32, as parity is measured."""
        del precision
        return False

    def can_export(self) -> Availability:
        """Needs torch and openvino."""
        return needs("torch", "openvino")

    def can_run(self) -> Availability:
        """Needs openvino."""
        return needs("openvino")

    def can_time(self) -> Availability:
        """OpenVINO's CPU plug-in is what ships on every system."""
        return self.can_run()

    def refuse(self, options: ExportOptions) -> None:
        """Raise for precisions that need NNCF where it is missing, and for int8 without images."""
        openvino_precisions.refuse(options)

    def export(self, model: Prepared, path: Path, options: ExportOptions) -> Artifact:
        """Write ``path`` and the ``.bin`` beside it."""
        openvino = packages.openvino()

        try:
            with quiet("openvino"):
                graph = openvino_precisions.write(model, options)
                made_by = ("openvino", *("nncf",) * (options.precision in GRIDS))
                pairs = metadata(model, options, made_by)
                for key in sorted(pairs):
                    graph.set_rt_info(pairs[key], [SECTION, key.removeprefix(PREFIX)])
                openvino.save_model(graph, path, compress_to_fp16=False)
        except (OSError, LevitExportError):
            raise
        except Exception as error:
            raise ExportFailedError(
                f"OpenVINO could not write {model.info.name}: {first_line(error)}",
                remedy="Report the model.",
            ) from error
        return Artifact(
            self.name,
            options.precision,
            path,
            model.signature,
            notes=(NOT_READ,) * (options.precision in HINTED),
            runs_on=OLDEST_RUNTIME,
        )

    def inspect(self, path: Path) -> Artifact:
        """Signature and precision of an IR file."""
        openvino = packages.openvino()

        graph = _read(openvino.Core(), path)
        contents = openvino_read.contents(graph)
        found = inspected(self.name, path, _signature(graph), _said(graph), contents)
        asked = _hint(graph) if found.precision == "fp32" else None
        return replace(found, precision=asked or found.precision)

    def constants(self, artifact: Artifact) -> Iterator[np.ndarray]:
        """The numbers that the results depend on; see ``formats.openvino.read``."""
        openvino = packages.openvino()

        graph = _read(openvino.Core(), artifact.path)
        yield from (each.numbers for each in openvino_read.contents(graph))

    def runs(self, options: RunOptions) -> tuple[RunOptions, ...]:
        """On ``options.device``, which must be one that OpenVINO sees, in float32.

        With ``also_by_default`` once more as OpenVINO computes unless it is told, where that is
        coarser: in bfloat16 where the processor has AMX or AVX512-BF16 (openvino#28032, #27795).
        """
        exact = replace(options, also_by_default=False)
        if not self.can_run().ok:  # which its row says
            return (exact,)
        if options.device.upper() != RunOptions().device:
            _refuse_absent(packages.openvino().Core(), options.device)
        default = replace(exact, by_default=True)
        if options.also_by_default and self.arithmetic(default).type != "fp32":
            return exact, default
        return (exact,)

    def arithmetic(self, options: RunOptions) -> Arithmetic:
        """Float32, which is asked for; ``by_default`` what OpenVINO takes the device for."""
        if not options.by_default:
            return Arithmetic()
        return Arithmetic(
            _type_by_default(options.device.upper()),
            exact=replace(options, by_default=False),
            remedy=f"compile it with {PRECISION_HINT} f32",
        )

    def values(self, artifact: Artifact) -> list[str]:
        """What the operators give, by their friendly names."""
        graph = _read(packages.openvino().Core(), artifact.path)
        ends = ("Constant", "Result", "Parameter")
        nodes = graph.get_ordered_ops()
        return [n.get_friendly_name() for n in nodes if n.get_type_name() not in ends]

    def remarks(self, artifact: Artifact, options: RunOptions) -> tuple[str, ...]:
        """That OpenVINO computes in less than float32 here unless it is told, where it does."""
        del artifact
        if not options.by_default:
            return ()
        computed = self.arithmetic(options)
        return (
            f"OpenVINO computes float32 in {computed.type} here, unless you {computed.remedy}",
        )

    @contextmanager
    def open(
        self, artifact: Artifact, options: RunOptions, taps: Sequence[str] = ()
    ) -> Iterator[OpenvinoSession]:
        """Compile the file for ``options.device``.

        ``INFERENCE_PRECISION_HINT`` is float32 or what the file asks for, but for ``by_default``:
        on some processors OpenVINO would compute a float32 file in bfloat16 or float16
        (openvino#28032, #27795). Raises ``NotRunError`` where the device does not compute in what
        the file asks for: OpenVINO takes float32 then, and says nothing.
        """
        openvino = packages.openvino()

        core = openvino.Core()
        device = options.device.upper()
        _refuse_absent(core, device)
        graph = _read(core, artifact.path)
        _add_taps(graph, taps, artifact.path)
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        asked = artifact.precision if artifact.precision in HINTED else ""
        if not options.by_default:
            settings[PRECISION_HINT] = asked or "f32"
        if device == "CPU":
            settings |= {"INFERENCE_NUM_THREADS": options.threads, "NUM_STREAMS": 1}
        try:
            compiled = core.compile_model(graph, device, settings)
        except Exception as error:
            raise ArtifactError(
                f"OpenVINO cannot compile {artifact.path} for {device}: {last_line(error)}",
                remedy="Try --device CPU, or export anew.",
            ) from error
        how = device
        if asked and not options.by_default:
            _refuse_another(compiled, artifact.path, asked)
            how = f"{device}, in {asked}"
        if options.by_default:
            how = f"{device}, by default in {self.arithmetic(options).type}"
        yield OpenvinoSession(compiled, artifact.path, how, taps)


class OpenvinoSession:
    """A compiled model as :class:`levit_export.core.values.Session`."""

    def __init__(
        self, compiled: openvino.CompiledModel, path: Path, how: str, taps: Sequence[str]
    ) -> None:
        openvino = packages.openvino()

        self._request = compiled.create_infer_request()
        self._path = path
        self.runtime = f"openvino {openvino.__version__.split('-')[0]} ({how})"
        self._names = [_any_name(output) for output in compiled.outputs]
        self.signature = _signature(compiled, hidden=taps)

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """One inference call."""
        # OpenVINO would fill an absent one with whatever is in memory.
        self.signature.refuse_absent(inputs, self._path.name)
        try:
            results = self._request.infer(dict(inputs))
        except Exception as error:
            raise RuntimeFailedError(
                f"OpenVINO failed on {self._path.name}: {last_line(error)}",
                remedy="Check the input's name, shape and type against the model's.",
            ) from error
        return {name: np.array(results[i]) for i, name in enumerate(self._names)}


@cache
def _type_by_default(device: str) -> str:
    """What OpenVINO computes float32 in on a device of this machine unless it is told."""
    hint = packages.openvino().Core().get_property(device, PRECISION_HINT)
    return COMPUTED_IN.get(hint.get_type_name(), "fp32")


def _hint(graph: openvino.Model) -> str:
    """The precision of :data:`HINTED` that a graph asks for, or empty."""
    place = list(openvino_precisions.HINT)
    said = str(graph.get_rt_info(place).value) if graph.has_rt_info(place) else ""
    return said if said in HINTED else ""


def _type_of(compiled: openvino.CompiledModel) -> str:
    """What a compiled graph computes in, as OpenVINO calls it, which is bf16 for bf16."""
    return str(compiled.get_property(PRECISION_HINT).get_type_name())


def _refuse_another(compiled: openvino.CompiledModel, path: Path, asked: str) -> None:
    """Raise where a compiled graph computes in another type than ``asked``."""
    if (taken := _type_of(compiled)) != asked:
        raise NotRunError(
            f"{path.name} is to be computed in {asked}, and OpenVINO takes {taken} on this "
            "processor: how it answers there is not known",
            remedy="Check it on a processor with AMX or AVX512-BF16.",
        )


def _refuse_absent(core: openvino.Core, device: str) -> None:
    """``GPU`` means the first of ``GPU.0`` and ``GPU.1``, as OpenVINO has it."""
    present = core.available_devices
    if device.upper() not in {name for full in present for name in (full, full.split(".")[0])}:
        raise UsageError(
            f"OpenVINO sees no device {device!r} here", remedy=f"Present: {', '.join(present)}."
        )


def _said(graph: openvino.Model) -> dict[str, str]:
    """What the file says of itself, by the keys that other formats use."""
    if not graph.has_rt_info([SECTION]):
        return {}
    section = graph.get_rt_info([SECTION]).value
    return {
        PREFIX + key: str(graph.get_rt_info([SECTION, key]).value)
        for key in (section if isinstance(section, dict) else ())
    }


def _read(core: openvino.Core, path: Path) -> openvino.Model:
    """Read an IR and nothing else: ``read_model`` would take an ONNX file named ``.xml`` too."""
    numbers = path.with_suffix(".bin")
    try:
        with files.open_regular(path) as file:
            is_xml = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<")
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be read: {error.strerror}", remedy="Check the path."
        ) from error
    if not is_xml:
        raise ArtifactError(
            f"{path} is not an OpenVINO graph (it does not start as XML)",
            remedy="Give the .xml file of an OpenVINO model; ONNX files must end in .onnx.",
        )
    if not numbers.is_file():
        raise ArtifactError(
            f"{path} has no weights: {numbers.name} is missing beside it",
            remedy="Copy both files of the model.",
        )
    try:
        return core.read_model(path, numbers)
    except Exception as error:
        raise ArtifactError(
            f"OpenVINO cannot read {path}: {last_line(error)}",
            remedy="Copy the .xml and the .bin again; they must be of one export.",
        ) from error


def _add_taps(graph: openvino.Model, taps: Sequence[str], path: Path) -> None:
    """Make inner values further outputs, in memory; the file stays as it is."""
    nodes = {node.get_friendly_name(): node for node in graph.get_ops()}
    for tap in taps:
        if tap not in nodes:
            raise UsageError(
                f"{path.name} has no value {tap!r}", remedy="Take a name from its graph."
            )
        added = graph.add_outputs([nodes[tap].output(0)])
        added[0].get_tensor().set_names({tap})


def _signature(graph: Any, hidden: Sequence[str] = ()) -> Signature:
    return Signature(
        tuple(_spec(port) for port in graph.inputs),
        tuple(_spec(port) for port in graph.outputs if _any_name(port) not in hidden),
    )


def _any_name(port: Any) -> str:
    """The port's tensor name; foreign models may have none, then the node's."""
    names = port.get_names()
    return min(names) if names else str(port.get_node().get_friendly_name())


def _spec(port: Any) -> TensorSpec:
    shape = port.get_partial_shape()
    return TensorSpec(
        _any_name(port),
        tuple(d.get_length() if d.is_static else None for d in shape),
        str(port.get_element_type().to_dtype()),
    )
