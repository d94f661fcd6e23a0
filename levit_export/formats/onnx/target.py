"""ONNX files: written from the network, judged, checked, and run by ONNX Runtime."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from levit_export.core.errors import (
    ArtifactError,
    ExportFailedError,
    LevitExportError,
    MissingDependencyError,
    RuntimeFailedError,
    UsageError,
)
from levit_export.core.packages import PRECISION_HINT, needs
from levit_export.core.precisions import CALIBRATED, UNIT_ROUNDOFF
from levit_export.core.quiet import first_line
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
from levit_export.formats.metadata import inspected, metadata
from levit_export.formats.onnx import precisions as onnx_precisions
from levit_export.formats.onnx import providers
from levit_export.formats.onnx import read as onnx_read
from levit_export.formats.onnx import simplify as onnx_simplify
from levit_export.formats.onnx.providers import Provider
from levit_export.formats.onnx.write import Written
from levit_export.inputs.samples import seeded

if TYPE_CHECKING:
    from onnx import GraphProto, ValueInfoProto
    from onnxruntime import InferenceSession

OPSETS = range(18, 27)
"""What is written; each is tested."""

OLDEST_RUNTIME = {
    18: "1.14",
    19: "1.16",
    20: "1.17",
    21: "1.18",
    22: "1.21",
    23: "1.23",
    24: "1.24",
    25: "1.24",
    26: "1.25",
}
"""The first ONNX Runtime that can read an opset, and the IR version that is written with it.

Up to 21 as https://onnxruntime.ai/docs/reference/compatibility.html says; from 22 on as the
releases 1.20.1 to 1.28.0 did with a file of the bundled model.
"""

INT8_OPSETS = range(18, 21)
"""From opset 21 on, versions of ONNX Runtime differ in what they quantise with calibration."""


def newest_opset(runtime: str, known: range = OPSETS) -> int:
    """The newest of the opsets ``known`` that an ONNX Runtime of version ``runtime`` can read.

    Raises ``UsageError`` for what is not a version, and for one that can read none.
    """
    if not re.fullmatch(r"\d+\.\d+(\.\d+)*", runtime):
        raise UsageError(
            f"{runtime!r} is not a version of ONNX Runtime", remedy="Give one such as 1.16."
        )

    def release(version: str) -> tuple[int, ...]:
        return tuple(map(int, version.split(".")[:2]))

    readable = [o for o in known if release(OLDEST_RUNTIME[o]) <= release(runtime)]
    if not readable:
        raise UsageError(
            f"ONNX Runtime {runtime} can read none of the opsets that are written here: opset "
            f"{known.start} needs {OLDEST_RUNTIME[known.start]}",
            remedy=f"Give --ort-min {OLDEST_RUNTIME[known.start]} or a later one.",
        )
    return readable[-1]


ONE_FILE_LIMIT = 2 * 1024**3
"""Protobuf cannot hold a message of 2 GiB; above it ONNX needs external data."""


class OnnxTarget:
    """See :class:`levit_export.core.values.Target`."""

    name = "onnx"
    suffix = ".onnx"
    precisions = ("fp32", "fp16", "int8", "w8")

    def computes_in_half(self, precision: str) -> bool:
        """Only where it was asked for."""
        return precision == "fp16"

    def can_export(self) -> Availability:
        """Needs torch and onnx."""
        return needs("torch", "onnx")

    def can_run(self) -> Availability:
        """Needs onnxruntime."""
        return needs("onnxruntime")

    def can_time(self) -> Availability:
        """ONNX Runtime's CPU provider is what ships, on every system."""
        return self.can_run()

    def refuse(self, options: ExportOptions) -> None:
        """Raise for opsets that are not written or not quantised, and for int8 without images."""
        if options.opset not in OPSETS:
            raise UsageError(
                f"opset {options.opset} is not supported",
                remedy=f"Use {OPSETS.start} to {OPSETS.stop - 1}; 18 is the default.",
            )
        if options.precision == "int8" and options.opset not in INT8_OPSETS:
            raise UsageError(
                f"int8 at opset {options.opset} is not supported: not every version of ONNX "
                f"Runtime quantises beyond opset {INT8_OPSETS.stop - 1}",
                remedy=f"Use --opset {OPSETS.start}, or --precision w8.",
            )
        if options.precision in CALIBRATED and options.calibration is None:
            raise UsageError(
                f"{options.precision} needs real images to fit its activations to",
                remedy="Give them with --data DIR; a hundred or more.",
            )

    def export(self, model: Prepared, path: Path, options: ExportOptions) -> Artifact:
        """Write one ``.onnx`` file with names ``input`` and ``logits`` and no external data."""
        self.refuse(options)
        written = onnx_precisions.write(model, options)
        notes = onnx_precisions.NOTES.get(options.precision, ())
        known = model.network.constants
        # Whether an optimiser would make other constants of those that an operator reads.
        is_open = any(
            op.kind == "batch_norm" or all(name in known for name in op.inputs)
            for op in model.network.ops
        )
        if is_open and options.simplify:
            notes = (*notes, "not given to onnxsim, which would do what --skip-pass left out")
        if is_open or not options.simplify:
            path.write_bytes(_content(written, model, options))
            return _artifact(model, path, options, notes)
        unit = UNIT_ROUNDOFF["fp16" if options.precision == "fp16" else "fp32"]
        example = {spec.name: seeded(spec) for spec in model.signature.inputs}
        with onnx_simplify.judged(written.model, example, unit) as verdict:
            content = _content(written, model, options)
            found = verdict()
        if found.leaner is not None:
            content = _content(replace(written, model=found.leaner), model, options)
        path.write_bytes(content)
        notes = (*filter(None, (found.note,)), *notes)
        return _artifact(model, path, options, notes)

    def inspect(self, path: Path) -> Artifact:
        """Signature and precision of an ONNX file."""
        onnx = _onnx()
        from google.protobuf.message import DecodeError

        try:
            proto = onnx.load(path, load_external_data=False)
            beside = _external_data(proto.graph, path.parent)
            onnx.load_external_data_for_model(proto, str(path.parent))
        except onnx.checker.ValidationError as error:
            raise ArtifactError(
                f"{path} keeps tensors in another file that cannot be read: {error}",
                remedy="Put the file with its external data beside it, or save it as one file.",
            ) from error
        except (DecodeError, OSError, ValueError) as error:
            raise ArtifactError(
                f"{path} cannot be read as ONNX: {error}", remedy="Give a whole .onnx file."
            ) from error
        if not proto.graph.node:
            raise ArtifactError(f"{path} holds no ONNX graph", remedy="Give a whole .onnx file.")
        initial = {t.name for t in proto.graph.initializer}
        signature = Signature(
            tuple(_spec(v) for v in proto.graph.input if v.name not in initial),
            tuple(_spec(v) for v in proto.graph.output),
        )
        said = {p.key: p.value for p in proto.metadata_props}
        return inspected(
            self.name, path, signature, said, onnx_read.contents(proto), beside=beside
        )

    def constants(self, artifact: Artifact) -> Iterator[np.ndarray]:
        """The numbers that the outputs depend on; see :mod:`levit_export.formats.onnx.read`.

        ONNX Runtime does not give them out.
        """
        onnx = _onnx()
        yield from (each.numbers for each in onnx_read.contents(onnx.load(artifact.path)))

    def runs(self, options: RunOptions) -> tuple[RunOptions, ...]:
        """Once for each execution provider."""
        for text in options.providers:
            providers.parse(text)
        return tuple(replace(options, providers=(text,)) for text in options.providers)

    def arithmetic(self, options: RunOptions) -> Arithmetic:
        """Float32, but for OpenVINO's provider on processors that are faster in less."""
        (text,) = options.providers
        provider = providers.parse(text)
        hint = f"{PRECISION_HINT}=f32"
        return Arithmetic(
            providers.arithmetic(provider),
            is_accepted=providers.is_told(provider),
            exact=replace(options, providers=(f"{text},{hint}",)),
            remedy=f"give {hint} behind the provider's name",
        )

    def values(self, artifact: Artifact) -> list[str]:
        """What the nodes give."""
        import onnx

        graph = onnx.load(artifact.path, load_external_data=False).graph
        return [name for node in graph.node for name in node.output]

    def remarks(self, artifact: Artifact, options: RunOptions) -> tuple[str, ...]:
        """What kernels do otherwise than the file says, and OpenVINO unless it is told."""
        (text,) = options.providers
        if providers.parse(text).name == providers.CPU:
            return onnx_precisions.REMARKS.get(artifact.precision, ())
        computed = self.arithmetic(options)
        if computed.type == "fp32" or computed.is_accepted:
            return ()
        return (f"{text} computes float32 in {computed.type} here, unless you {computed.remedy}",)

    @contextmanager
    def open(
        self, artifact: Artifact, options: RunOptions, taps: Sequence[str] = ()
    ) -> Iterator[OnnxSession]:
        """Load the file into ONNX Runtime with exactly ``options.threads`` threads.

        Raises ``NotRunError`` where the provider does not start or does not execute every node.
        """
        provider = providers.parse(options.providers[0])
        session = _load(artifact.path, options, provider, taps)
        yield OnnxSession(session, artifact.path, provider, taps)


def _artifact(
    model: Prepared, path: Path, options: ExportOptions, notes: tuple[str, ...]
) -> Artifact:
    runs_on = f"ONNX Runtime {OLDEST_RUNTIME[options.opset]} and later"
    return Artifact(
        OnnxTarget.name, options.precision, path, model.signature, notes, runs_on=runs_on
    )


class OnnxSession:
    """An ONNX Runtime session as :class:`levit_export.core.values.Session`."""

    def __init__(
        self,
        session: InferenceSession,
        path: Path,
        provider: Provider,
        taps: Sequence[str] = (),
    ) -> None:
        import onnxruntime

        self._session = session
        self._path = path
        self.runtime = f"onnxruntime {onnxruntime.__version__} ({provider.label})"
        self.signature = Signature(
            tuple(_runtime_spec(v) for v in session.get_inputs()),
            tuple(_runtime_spec(v) for v in session.get_outputs() if v.name not in taps),
        )

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        """One inference call."""
        try:
            outputs = self._session.run(None, dict(inputs))
        except Exception as error:
            raise RuntimeFailedError(
                f"ONNX Runtime failed on {self._path.name}: {first_line(error)}",
                remedy="Check the input's name, shape and type against the model's.",
            ) from error
        names = (output.name for output in self._session.get_outputs())
        return dict(zip(names, outputs, strict=True))


def _onnx() -> Any:
    """The ``onnx`` package, without which files run and cannot be looked into."""
    try:
        import onnx
    except ImportError as error:
        raise MissingDependencyError(
            "reading the weights of an .onnx file needs the onnx package",
            remedy="pip install onnx",
        ) from error
    return onnx


def _content(written: Written, model: Prepared, options: ExportOptions) -> bytes:
    """The file: the graph in its precision with metadata, checked. Same inputs, same bytes."""
    import onnx

    proto = onnx_precisions.quantize(written, model, options)
    pairs = metadata(model, options, ("onnx", "onnxsim"))
    del proto.metadata_props[:]
    for key in sorted(pairs):
        proto.metadata_props.add(key=key, value=pairs[key])
    # Once: protobuf serialises a message to say how large it is, and the checker to check it.
    content = bytes(proto.SerializeToString(deterministic=True))
    if len(content) >= ONE_FILE_LIMIT:
        raise ExportFailedError(
            f"the model takes {len(content) / 1e9:.1f} GB, one ONNX file holds 2 GiB",
            remedy="Export a smaller model.",
        )
    try:
        onnx.checker.check_model(content, full_check=True)
    except Exception as error:
        raise ExportFailedError(
            f"the exported graph is not valid ONNX: {first_line(error)}",
            remedy="Try --no-simplify, and report the model.",
        ) from error
    return content


def _spec(value: ValueInfoProto) -> TensorSpec:
    import onnx

    tensor = value.type.tensor_type
    shape = tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
    return TensorSpec(
        value.name, shape, str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    )


_RUNTIME_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(uint8)": "uint8",
    "tensor(int64)": "int64",
}


def _runtime_spec(value: Any) -> TensorSpec:
    shape = tuple(d if isinstance(d, int) else None for d in value.shape)
    if value.type not in _RUNTIME_TYPES:
        raise ArtifactError(
            f"{value.name} is {value.type}, which this toolchain does not feed or compare",
            remedy=f"Known are {', '.join(_RUNTIME_TYPES)}.",
        )
    return TensorSpec(value.name, shape, _RUNTIME_TYPES[value.type])


def _load(
    path: Path, options: RunOptions, provider: Provider, taps: Sequence[str]
) -> InferenceSession:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 3
    # Threads that go on spinning after a call would slow the next session of an interleaved run.
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    source = _with_taps(path, taps) if taps else str(path)
    try:
        return providers.load(source, settings, provider)
    except LevitExportError:
        raise
    except Exception as error:
        raise ArtifactError(
            f"ONNX Runtime cannot load {path}: {first_line(error)}",
            remedy="Give a whole .onnx file of an opset this ONNX Runtime knows.",
        ) from error


def _external_data(graph: GraphProto, folder: Path) -> tuple[Path, ...]:
    """The files beside a model in which its tensors lie."""
    attributes = (attribute for node in graph.node for attribute in node.attribute)
    tensors = (*graph.initializer, *(each.t for each in attributes if each.HasField("t")))
    names = {
        entry.value
        for tensor in tensors
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return tuple(folder / name for name in sorted(names))


def _with_taps(path: Path, taps: Sequence[str]) -> bytes:
    """The file's graph with ``taps`` as further outputs; the file itself stays as it is."""
    import onnx

    proto = onnx.load(path)
    known = {name for node in proto.graph.node for name in node.output}
    for tap in taps:
        if tap not in known:
            raise UsageError(
                f"{path.name} has no value {tap!r}", remedy="Take a name from its graph."
            )
        proto.graph.output.add(name=tap)
    return bytes(proto.SerializeToString())
