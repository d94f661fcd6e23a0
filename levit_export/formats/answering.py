"""Answer inputs with a runtime of another version. Run as a program, never imported.

``python -I answering.py RUNTIME FILE THREADS``: the interpreter belongs to an environment that
holds the runtime, NumPy and what those need, so nothing else may be imported here. Messages on
standard input and output are a length in eight bytes and so many bytes. The first answer is a
description in JSON: ``version`` and ``python``, then ``inputs`` and ``outputs`` as [name, shape,
type], or ``absent`` where the runtime cannot be imported, or ``refused`` where it does not take
the file. From then on arrays come in the order of the inputs, as an .npz archive, and two messages
go back: JSON with ``failed``, empty where the runtime answered, and the outputs as an archive.
"""

from __future__ import annotations

import io
import json
import os
import platform
import sys
from typing import IO, Any

import numpy as np

TYPES = {"float": "float32", "double": "float64"}
"""ONNX Runtime's names of types that NumPy calls otherwise."""


class OnnxRuntime:
    """A file loaded into ONNX Runtime's CPU provider."""

    def __init__(self, file: str, threads: int) -> None:
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        settings.inter_op_num_threads = 1
        settings.log_severity_level = 3
        given = ["CPUExecutionProvider"]
        self._session = onnxruntime.InferenceSession(file, settings, providers=given)

    def ports(self) -> list[list[list[Any]]]:
        """Inputs and outputs as [name, shape, type]."""
        sides = (self._session.get_inputs(), self._session.get_outputs())
        return [
            [
                [
                    port.name,
                    [side if isinstance(side, int) else None for side in port.shape],
                    TYPES.get(port.type[7:-1], port.type[7:-1]),  # of tensor(float)
                ]
                for port in ports
            ]
            for ports in sides
        ]

    def answer(self, arrays: list[Any]) -> list[Any]:
        """The outputs of one call."""
        names = [port.name for port in self._session.get_inputs()]
        return list(self._session.run(None, dict(zip(names, arrays, strict=True))))


class UnableError(Exception):
    """This machine cannot do what a file asks for."""


class OpenVino:
    """A graph compiled by OpenVINO for the CPU, in what it asks for, else in float32.

    Raises ``UnableError`` where this processor does not compute in what it asks for.
    """

    def __init__(self, file: str, threads: int) -> None:
        import openvino

        core, hint = openvino.Core(), "INFERENCE_PRECISION_HINT"
        graph, place = core.read_model(file), ["runtime_options", hint]
        is_hinted = graph.has_rt_info(place) and graph.get_rt_info(place).value == "bf16"
        asked = "bf16" if is_hinted else "f32"  # other words there are not ours
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            hint: asked,
            "INFERENCE_NUM_THREADS": str(threads),
            "NUM_STREAMS": "1",
        }
        self._compiled = core.compile_model(graph, "CPU", settings)
        taken = self._compiled.get_property(hint).get_type_name()
        if taken != asked != "f32":
            raise UnableError(f"the file asks for {asked}, this processor takes {taken}")
        self._request = self._compiled.create_infer_request()

    def ports(self) -> list[list[list[Any]]]:
        """Inputs and outputs as [name, shape, type]."""
        sides = (self._compiled.inputs, self._compiled.outputs)
        return [
            [
                [
                    min(port.get_names()),
                    [side.get_length() if side.is_static else None for side in shape],
                    np.dtype(port.get_element_type().to_dtype()).name,
                ]
                for port in ports
                for shape in (port.get_partial_shape(),)
            ]
            for ports in sides
        ]

    def answer(self, arrays: list[Any]) -> list[Any]:
        """The outputs of one call."""
        results = self._request.infer(dict(enumerate(arrays)))
        return [np.array(results[port]) for port in self._compiled.outputs]


RUNTIMES: dict[str, type[OnnxRuntime | OpenVino]] = {
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
}


def main(runtime: str, file: str, threads: str) -> None:
    """Describe the file, then answer until nothing more is asked."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what runtimes print would get between the answers
    # ``import openvino`` would tell Google Analytics of what is done.
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        module = __import__(runtime)
    except Exception as error:  # a library that does not load raises whatever it likes
        _send(answers, json.dumps({"absent": _said(error)}).encode())
        return
    try:
        session: OnnxRuntime | OpenVino = RUNTIMES[runtime](file, int(threads))
        inputs, outputs = session.ports()
    except ImportError as error:
        _send(answers, json.dumps({"absent": _said(error)}).encode())
        return
    except UnableError as error:
        _send(answers, json.dumps({"unable": _said(error)}).encode())
        return
    except Exception as error:
        _send(answers, json.dumps({"refused": _said(error)}).encode())
        return
    described = {
        "version": module.__version__.split("-")[0],
        "python": platform.python_version(),
        "inputs": inputs,
        "outputs": outputs,
    }
    _send(answers, json.dumps(described).encode())
    while head := requests.read(8):
        with np.load(io.BytesIO(requests.read(int.from_bytes(head, "little")))) as given:
            arrays = [given[name] for name in given.files]
        packed, failed = io.BytesIO(), ""
        try:
            np.savez(packed, *session.answer(arrays))
        except Exception as error:
            failed = _said(error)
        _send(answers, json.dumps({"failed": failed}).encode())
        _send(answers, packed.getvalue())


def _send(stream: IO[bytes], message: bytes) -> None:
    stream.write(len(message).to_bytes(8, "little") + message)
    stream.flush()


def _said(error: Exception) -> str:
    """The last line of an error, which runtimes put their cause into, or its name."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:400] if lines else type(error).__name__


if __name__ == "__main__":
    main(*sys.argv[1:])
