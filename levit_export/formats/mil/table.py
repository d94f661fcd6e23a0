"""Every op that the evaluator knows, by its MIL name.

An op that is not here is refused when a package is loaded. To add one, write its function in
``ops/`` and its row below.
"""

from __future__ import annotations

from levit_export.formats.mil.elements import INT32
from levit_export.formats.mil.operation import Like, Named, Op
from levit_export.formats.mil.ops import (
    classification,
    constexpr,
    convolution,
    elementwise,
    linear,
    normalization,
    pooling,
    quantization,
    reduce,
    shape,
)

_PADDING = frozenset({"valid", "same", "same_lower", "custom"})
_CAST = frozenset({"fp16", "fp32", "bool", "int32", "int8", "uint8", "int16", "uint16"})
_PAIR = ("x", "y")
_NORMALISED = ("x", "gamma", "beta", "epsilon")
_ALL = "fib"

OPS: dict[str, Op] = {
    # Arithmetic
    "add": Op(elementwise.add, _PAIR, "fi"),
    "sub": Op(elementwise.sub, _PAIR, "fi"),
    "mul": Op(elementwise.mul, _PAIR, "fi"),
    "real_div": Op(elementwise.real_div, _PAIR),
    "maximum": Op(elementwise.maximum, _PAIR, "fi"),
    "minimum": Op(elementwise.minimum, _PAIR, "fi"),
    "pow": Op(elementwise.power, _PAIR),
    "square": Op(elementwise.square, kinds="fi"),
    "abs": Op(elementwise.absolute, kinds="fi"),
    "exp": Op(elementwise.exp),
    "log": Op(elementwise.log, ("x", "epsilon")),
    "sqrt": Op(elementwise.sqrt),
    "rsqrt": Op(elementwise.rsqrt, ("x", "epsilon")),
    "inverse": Op(elementwise.inverse, ("x", "epsilon")),
    "clip": Op(elementwise.clip, ("x", "alpha", "beta")),
    "erf": Op(elementwise.erf),
    "cast": Op(elementwise.cast, kinds=_ALL, result=Named("dtype"), choices={"dtype": _CAST}),
    # Activation functions
    "relu": Op(elementwise.relu),
    "relu6": Op(elementwise.relu6),
    "leaky_relu": Op(elementwise.leaky_relu, ("x", "alpha")),
    "prelu": Op(elementwise.prelu, ("x", "alpha")),
    "thresholded_relu": Op(elementwise.thresholded_relu, ("x", "alpha")),
    "elu": Op(elementwise.elu, ("x", "alpha")),
    "linear_activation": Op(elementwise.linear_activation, ("x", "alpha", "beta")),
    "sigmoid_hard": Op(elementwise.sigmoid_hard, ("x", "alpha", "beta")),
    "sigmoid": Op(elementwise.sigmoid),
    "silu": Op(elementwise.silu),
    "softplus": Op(elementwise.softplus),
    "tanh": Op(elementwise.tanh),
    "gelu": Op(
        elementwise.gelu,
        choices={"mode": frozenset({"EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION"})},
    ),
    # Matrix products
    "linear": Op(linear.linear, ("x", "weight", "bias")),
    "matmul": Op(linear.matmul, _PAIR),
    "scaled_dot_product_attention": Op(
        linear.scaled_dot_product_attention, ("query", "key", "value")
    ),
    "conv": Op(convolution.conv, ("x", "weight", "bias"), choices={"pad_type": _PADDING}),
    # Reductions
    "softmax": Op(reduce.softmax),
    "reduce_mean": Op(reduce.reduce_mean),
    "reduce_sum": Op(reduce.reduce_sum, kinds="fi"),
    "reduce_max": Op(reduce.reduce_max, kinds="fi"),
    "reduce_min": Op(reduce.reduce_min, kinds="fi"),
    # Normalisation
    "batch_norm": Op(normalization.batch_norm, (*_NORMALISED, "mean", "variance")),
    "instance_norm": Op(normalization.instance_norm, _NORMALISED),
    "layer_norm": Op(normalization.layer_norm, _NORMALISED),
    # Pooling
    "avg_pool": Op(pooling.avg_pool, choices={"pad_type": _PADDING}),
    "max_pool": Op(pooling.max_pool, choices={"pad_type": _PADDING}),
    # Moving values
    "identity": Op(shape.identity, kinds=_ALL, moves=True),
    "reshape": Op(shape.reshape, kinds=_ALL, moves=True),
    "transpose": Op(shape.transpose, kinds=_ALL, moves=True),
    "expand_dims": Op(shape.expand_dims, kinds=_ALL, moves=True),
    "squeeze": Op(shape.squeeze, kinds=_ALL, moves=True),
    "slice_by_index": Op(shape.slice_by_index, kinds=_ALL, moves=True),
    "slice_by_size": Op(shape.slice_by_size, kinds=_ALL, moves=True),
    "split": Op(shape.split, kinds=_ALL, moves=True),
    "concat": Op(shape.concat, ("values",), _ALL, moves=True, variadic="values"),
    "stack": Op(shape.stack, ("values",), _ALL, moves=True, variadic="values"),
    "gather": Op(shape.gather, kinds=_ALL, moves=True),
    "gather_along_axis": Op(shape.gather_along_axis, kinds=_ALL, moves=True),
    "tile": Op(shape.tile, kinds=_ALL, moves=True),
    "fill": Op(shape.fill, ("value",), _ALL, moves=True),
    "pad": Op(
        shape.pad,
        ("x", "constant_val"),
        choices={"mode": frozenset({"constant", "reflect", "replicate"})},
    ),
    "shape": Op(shape.shape, kinds=_ALL, result=INT32),
    # Quantised activations
    "quantize": Op(
        quantization.quantize,
        ("input", "scale"),
        result=Named("output_dtype"),
        choices={"output_dtype": frozenset({"int8", "uint8"})},
    ),
    "dequantize": Op(quantization.dequantize, ("scale",)),
    # Compressed weights
    "constexpr_affine_dequantize": Op(constexpr.constexpr_affine_dequantize, ("scale",)),
    "constexpr_blockwise_shift_scale": Op(constexpr.constexpr_blockwise_shift_scale, ("scale",)),
    "constexpr_cast": Op(
        constexpr.constexpr_cast,
        ("source_val",),
        result=Named("output_dtype"),
        choices={"output_dtype": frozenset({"fp32"})},
    ),
    "constexpr_lut_to_dense": Op(constexpr.constexpr_lut_to_dense, ("lut",), "fi", moves=True),
    "constexpr_sparse_to_dense": Op(
        constexpr.constexpr_sparse_to_dense, ("nonzero_data",), "fi", moves=True
    ),
    "constexpr_lut_to_sparse": Op(
        constexpr.constexpr_lut_to_sparse, ("lut",), "fi", result=Like(("indices_mask", "lut"))
    ),
    "constexpr_sparse_blockwise_shift_scale": Op(
        constexpr.constexpr_sparse_blockwise_shift_scale,
        ("scale",),
        result=Like(("data_mask", "scale")),
    ),
    # Classifiers
    "classify": Op(classification.classify, ("probabilities",), result=None, labels="classes"),
}
