"""ONNX files: written through ``torch.onnx``, simplified, checked, and run by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from levit_export import naming
from levit_export.core import (
    CALIBRATED,
    Artifact,
    Availability,
    ExportOptions,
    Prepared,
    RunOptions,
    Signature,
    Tensors,
    TensorSpec,
)
from levit_export.errors import (
    ArtifactError,
    ExportFailedError,
    MissingDependencyError,
    RuntimeFailedError,
    UsageError,
)
from levit_export.samples import seeded
from levit_export.targets import lowering, onnx_precision, onnx_weights
from levit_export.targets.availability import needs
from levit_export.targets.metadata import PREFIX, metadata, passes_in, refuse_precision
from levit_export.targets.quiet import first_line, quiet

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, ValueInfoProto
    from onnxruntime import InferenceSession

OPSETS = range(18, 22)
"""What ``torch.onnx`` writes (18) and converts to; it does not go down. Each is tested."""

INT8_OPSETS = range(18, 21)
"""From opset 21 on, versions of ONNX Runtime differ in what they quantise with calibration."""

ONE_FILE_LIMIT = 2 * 1024**3
"""Protobuf cannot hold a message of 2 GiB; above it ONNX needs external data."""


class OnnxTarget:
    """See :class:`levit_export.core.Target`."""

    name = "onnx"
    suffix = ".onnx"
    precisions = ("fp32", "fp16", "int8", "w8")

    def computes_in_half(self, precision: str) -> bool:
        """Only where it was asked for."""
        return precision == "fp16"

    def can_export(self) -> Availability:
        """Needs torch, onnx and onnxscript."""
        return needs("torch", "onnx", "onnxscript")

    def can_run(self) -> Availability:
        """Needs onnxruntime."""
        return needs("onnxruntime")

    def can_time(self) -> Availability:
        """ONNX Runtime's CPU provider is what ships, on every system."""
        return self.can_run()

    def refuse(self, options: ExportOptions) -> None:
        """Opsets that the exporter or the quantiser cannot write, and int8 without images."""
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
        proto, note = _graph(model, options)
        notes = (*filter(None, (note,)), *onnx_precision.apply(proto, model, options))
        _finish(proto, model, options.precision)
        _check(proto)
        path.write_bytes(proto.SerializeToString(deterministic=True))
        return Artifact(self.name, options.precision, path, model.signature, notes)

    def inspect(self, path: Path) -> Artifact:
        """Signature and precision of an ONNX file."""
        import onnx
        from google.protobuf.message import DecodeError

        try:
            proto = onnx.load(path)
        except (DecodeError, OSError, ValueError) as error:
            raise ArtifactError(
                f"{path} cannot be read as ONNX: {error}", remedy="Give a whole .onnx file."
            ) from error
        if not proto.graph.node:
            raise ArtifactError(f"{path} holds no ONNX graph", remedy="Give a whole .onnx file.")
        weights = {t.name for t in proto.graph.initializer}
        signature = Signature(
            tuple(_spec(v) for v in proto.graph.input if v.name not in weights),
            tuple(_spec(v) for v in proto.graph.output),
        )
        said = {p.key: p.value for p in proto.metadata_props}
        precision = said.get(PREFIX + "precision", onnx_precision.found(proto.graph))
        refuse_precision(precision, self.precisions, path)
        return Artifact(self.name, precision, path, signature, passes=passes_in(said))

    def constants(self, artifact: Artifact) -> Iterator[np.ndarray]:
        """Initializers and the tensors of Constant nodes, dequantised.

        ONNX Runtime does not give them out.
        """
        try:
            import onnx
        except ImportError as error:
            raise MissingDependencyError(
                "reading the weights of an .onnx file needs the onnx package",
                remedy="pip install onnx",
            ) from error

        yield from onnx_weights.stored(onnx.load(artifact.path).graph)

    def runs(self, options: RunOptions) -> tuple[RunOptions, ...]:
        """Once, on the CPU."""
        return (options,)

    def remarks(self, artifact: Artifact, options: RunOptions) -> tuple[str, ...]:
        """What ONNX Runtime's CPU kernels do otherwise than the file says."""
        del options
        return onnx_precision.REMARKS.get(artifact.precision, ())

    @contextmanager
    def open(
        self, artifact: Artifact, options: RunOptions, taps: Sequence[str] = ()
    ) -> Iterator[OnnxSession]:
        """Load the file into ONNX Runtime on the CPU with exactly ``options.threads`` threads."""
        yield OnnxSession(_load(artifact.path, options, taps), artifact.path, taps)


class OnnxSession:
    """An ONNX Runtime session as :class:`levit_export.core.Session`."""

    def __init__(self, session: InferenceSession, path: Path, taps: Sequence[str] = ()) -> None:
        import onnxruntime

        self._session = session
        self._path = path
        self._runtime = f"onnxruntime {onnxruntime.__version__} (CPU)"
        self._signature = Signature(
            tuple(_runtime_spec(v) for v in session.get_inputs()),
            tuple(_runtime_spec(v) for v in session.get_outputs() if v.name not in taps),
        )

    @property
    def signature(self) -> Signature:
        """As ONNX Runtime read it from the file."""
        return self._signature

    @property
    def runtime(self) -> str:
        """``onnxruntime 1.31.1 (CPU)``."""
        return self._runtime

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


def _example(signature: Signature) -> dict[str, np.ndarray]:
    """A seeded input of the smallest batch that the signature allows."""
    return {spec.name: seeded(spec) for spec in signature.inputs}


def _graph(model: Prepared, options: ExportOptions) -> tuple[ModelProto, str]:
    """The graph, and a note where it could not be simplified.

    Before onnxsim the optimiser of torch.onnx is left out, which comes to the same graph: half of
    the time that the conversion takes.
    """
    if not options.simplify:
        return _convert(model, options.opset), ""
    from levit_export.targets.onnx_simplify import simplify

    is_open = model.signature.batch is None
    raw = _convert(model, options.opset, optimize=is_open)
    simplified = simplify(raw, _example(model.signature))
    if simplified.note and not is_open:
        return _convert(model, options.opset), simplified.note
    return simplified.model, simplified.note


def _split(x: Any, sizes: Sequence[int], axis: int = 0) -> Any:
    """``split_with_sizes``; what torch.onnx has for it needs its optimiser to become a Split."""
    from onnxscript import opset18

    parts = opset18.Constant(value_ints=sizes)
    return opset18.Split(x, parts, axis=axis, num_outputs=len(sizes))


def _without_counts(proto: ModelProto) -> None:
    """A Split has sizes or a number of outputs; torch.onnx needs the number while it builds."""
    for node in proto.graph.node:
        if node.op_type == "Split" and len(node.input) > 1:
            kept = [each for each in node.attribute if each.name != "num_outputs"]
            del node.attribute[:]
            node.attribute.extend(kept)


def _convert(model: Prepared, opset: int, *, optimize: bool = True) -> ModelProto:
    import torch

    own: dict[Any, Any] = {torch.ops.aten.split_with_sizes.default: _split}
    try:
        with quiet("torch.onnx", "onnxscript"), lowering.as_captured():
            program = torch.onnx.export(
                model.program,
                input_names=[spec.name for spec in model.signature.inputs],
                output_names=[spec.name for spec in model.signature.outputs],
                opset_version=opset,
                optimize=optimize,
                custom_translation_table={} if optimize else own,
                verbose=False,
            )
    except Exception as error:
        raise ExportFailedError(
            f"torch.onnx could not convert {model.info.name}: {first_line(error)}",
            remedy="Try --opset 18, or report the model.",
        ) from error
    proto: ModelProto = program.model_proto  # type: ignore[union-attr]
    _without_counts(proto)
    # The program as torch.onnx lowered it: its values' names are those of the graph.
    _rename(proto, naming.names(program.exported_program.graph.nodes, model.blocks).values)  # type: ignore[union-attr]
    written = {o.domain: o.version for o in proto.opset_import}[""]
    if written != opset:
        raise ExportFailedError(
            f"torch.onnx wrote opset {written} when asked for {opset}",
            remedy=f"Use --opset {written}.",
        )
    return proto


def _rename(proto: ModelProto, values: Mapping[str, str]) -> None:
    """Give inner values the names that say where in the network they are; nodes follow theirs."""
    kept = {value.name for value in (*proto.graph.input, *proto.graph.output)}
    new = {old: name for old, name in values.items() if old not in kept}
    new |= _names_of_parts(proto.graph, new, kept)
    for node in proto.graph.node:
        node.input[:] = [new.get(name, name) for name in node.input]
        node.output[:] = [new.get(name, name) for name in node.output]
        node.name = f"node_{node.output[0]}"
    for value in (*proto.graph.value_info, *proto.graph.initializer):
        value.name = new.get(value.name, value.name)


def _names_of_parts(
    graph: GraphProto, named: Mapping[str, str], kept: Collection[str]
) -> dict[str, str]:
    """Names for values that the exporter made within an operator, such as a layer's product.

    They follow the value that they go into: the product of ``…_linear`` is ``…_linear_matmul``.
    """
    found: dict[str, str] = {}
    taken = {*named.values(), *kept}
    known = {**named, **dict.fromkeys(kept)}
    goes_into: dict[str, str] = {}
    for node in reversed(graph.node):
        for name in node.output:
            if name not in known and name in goes_into:
                base = goes_into[name]
                base = f"{found.get(base) or named.get(base, base)}_{node.op_type.lower()}"
                found[name] = base if base not in taken else f"{base}_{len(taken)}"
                taken.add(found[name])
        goes_into |= dict.fromkeys(node.input, node.output[0])
    return found


def _finish(proto: ModelProto, model: Prepared, precision: str) -> None:
    """Names, metadata and nothing that depends on this machine: traces hold source paths."""
    for parts in (proto.graph.node, proto.graph.value_info, proto.graph.initializer):
        for part in parts:
            del part.metadata_props[:]
            part.doc_string = ""
    for value in (*proto.graph.input, *proto.graph.output):
        del value.metadata_props[:]
    _name_batch(proto)
    proto.graph.name = model.info.name
    del proto.metadata_props[:], proto.graph.metadata_props[:]
    pairs = metadata(model, precision, ("onnx", "onnxscript", "onnxsim"))
    for key in sorted(pairs):
        proto.metadata_props.add(key=key, value=pairs[key])


def _name_batch(proto: ModelProto) -> None:
    """Call the open dimension ``batch``; the exporter gives it an invented symbol."""
    symbol = proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if symbol and dimension.dim_param == symbol:
                dimension.dim_param = "batch"


def _check(proto: ModelProto) -> None:
    import onnx

    if (size := proto.ByteSize()) >= ONE_FILE_LIMIT:
        raise ExportFailedError(
            f"the model takes {size / 1e9:.1f} GB, one ONNX file holds 2 GiB",
            remedy="Export a smaller model.",
        )
    try:
        onnx.checker.check_model(proto, full_check=True)
    except Exception as error:
        raise ExportFailedError(
            f"the exported graph is not valid ONNX: {first_line(error)}",
            remedy="Try --no-simplify, and report the model.",
        ) from error


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


def _load(path: Path, options: RunOptions, taps: Sequence[str]) -> InferenceSession:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = 3
    # Threads that go on spinning after a call would slow the next session of an interleaved run.
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    source = _with_taps(path, taps) if taps else str(path)
    try:
        return onnxruntime.InferenceSession(source, settings, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ArtifactError(
            f"ONNX Runtime cannot load {path}: {first_line(error)}",
            remedy="Give a whole .onnx file of an opset this ONNX Runtime knows.",
        ) from error


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
