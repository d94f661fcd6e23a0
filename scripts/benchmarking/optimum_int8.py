"""Run in the alternatives' environment: int8 by optimum's own quantisers, on given images.

usage: optimum_int8.py TASK ANSWER, where TASK holds [format, exported folder, output folder,
calibration.npz with ``inputs`` (n, 3, H, W)]. Each quantiser has its defaults for static int8;
ONNX Runtime's for processors with AVX2.
"""

# mypy: disable-error-code="import-not-found"
from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np


def onnx(exported: str, output: str, inputs: np.ndarray) -> str:
    """``ORTQuantizer`` with ``AutoQuantizationConfig.avx2``, smallest and largest values."""
    from onnxruntime.quantization import CalibrationMethod
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig, CalibrationConfig

    quantiser = ORTQuantizer.from_pretrained(exported, file_name="model.onnx")
    config = AutoQuantizationConfig.avx2(is_static=True, per_channel=True)
    ranges = quantiser.fit(
        dataset=[{"pixel_values": image} for image in inputs],
        calibration_config=CalibrationConfig(
            dataset_name="given",
            dataset_config_name="",
            dataset_split="",
            dataset_num_samples=len(inputs),
            method=CalibrationMethod.MinMax,
        ),
        onnx_augmented_model_name=Path(output).with_name("augmented.onnx"),
        operators_to_quantize=config.operators_to_quantize,
    )
    quantiser.quantize(
        save_dir=output, calibration_tensors_range=ranges, quantization_config=config
    )
    return "model_quantized.onnx"


def openvino(exported: str, output: str, inputs: np.ndarray) -> str:
    """``OVQuantizer`` with ``OVQuantizationConfig(bits=8)``."""
    import nncf
    from optimum.intel import (
        OVConfig,
        OVModelForImageClassification,
        OVQuantizationConfig,
        OVQuantizer,
    )

    model = OVModelForImageClassification.from_pretrained(exported, compile=False)
    config = OVConfig(quantization_config=OVQuantizationConfig(bits=8, num_samples=len(inputs)))
    OVQuantizer.from_pretrained(model).quantize(
        ov_config=config,
        calibration_dataset=nncf.Dataset([{"pixel_values": image[None]} for image in inputs]),
        save_directory=output,
    )
    return "openvino_model.xml"


def main() -> None:
    """Read the task, quantise, answer."""
    given, taken = sys.argv[1:]
    form, exported, output, calibration = json.loads(Path(given).read_text(encoding="utf-8"))
    inputs = np.load(calibration)["inputs"]
    made = {"onnx": onnx, "openvino": openvino}[form](exported, output, inputs)
    Path(taken).write_text(json.dumps(made), encoding="utf-8")


if __name__ == "__main__":
    main()
