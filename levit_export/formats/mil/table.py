"""Every op that the evaluator knows, by its MIL name, and what it knows besides its formula.

An op that is not here is refused when a package is loaded. To add one, write its function in
``ops/`` and its row below.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from levit_export.formats.mil.elements import BOOL, INT32, Element, Value
from levit_export.formats.mil.ops import (
    compression,
    convolution,
    elementwise,
    indexing,
    linear,
    normalization,
    pooling,
    reduce,
    resizing,
    shape,
)

CONTEXT = frozenset({"specification"})
"""Arguments that the evaluator passes by itself, and that no op of a program may carry."""


@dataclass(frozen=True)
class Like:
    """An output has the element type of a parameter (the first operand if none is named)."""

    name: str = ""


@dataclass(frozen=True)
class Named:
    """An output has the element type that a parameter of type string names, or the default."""

    parameter: str
    default: str = ""


@dataclass(frozen=True)
class Variable:
    """An output has the element type of those of these operands that are not constant.

    Since iOS 17 a constant may have another element type than the operand it is joined with.
    """

    names: tuple[str, ...]


Result = Like | Named | Variable | Element


@dataclass(frozen=True)
class OpRow:
    """A row of :data:`OPS`."""

    function: Callable[..., object]
    operands: tuple[str, ...] = ("x",)
    """Parameters that must be of the kinds below; all of one kind."""
    kinds: str = "f"
    """Kinds of element that ``operands`` may have: ``f`` float, ``i`` integer, ``b`` boolean."""
    results: tuple[Result, ...] = (Like(),)
    """Element types of the outputs, the last for all that remain (empty: any)."""
    exact: bool = False
    """True if outputs are numbers that the type of the operands holds, and need no rounding.

    Ops that only move values are such; their outputs may be views of an operand."""
    choices: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """The values that a parameter of type string may have; a string parameter must be here."""
    strings: frozenset[str] = frozenset()
    """Parameters of type string whose values the formula judges by itself."""
    variadic: frozenset[str] = frozenset()
    """Parameters that take any number of tensors."""
    labels: str = ""
    """The parameter that takes a list of class labels, if there is one."""

    def unknown(self, given: frozenset[str]) -> frozenset[str]:
        """Parameters among ``given`` that the formula does not know."""
        return given - self._parameters[0]

    def missing(self, given: frozenset[str]) -> frozenset[str]:
        """Parameters that the formula needs and ``given`` lacks."""
        return self._parameters[1] - given

    @property
    def context(self) -> frozenset[str]:
        """Those of :data:`CONTEXT` that the formula takes."""
        return self._parameters[2]

    @property
    def _parameters(self) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
        return _signature(self.function)


@functools.cache
def _signature(
    function: Callable[..., object],
) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """Known parameters, required ones, and context arguments of an op's function."""
    parameters = inspect.signature(function).parameters.values()
    known = frozenset(p.name for p in parameters) - CONTEXT
    required = frozenset(p.name for p in parameters if p.default is p.empty) - CONTEXT
    return known, required, frozenset(p.name for p in parameters) & CONTEXT


Arguments = dict[str, Value | list[Value]]
"""Parameter name to value; a list of tensors for a variadic parameter."""

_PADDING = frozenset({"valid", "same", "same_lower", "custom"})
_CAST = frozenset({"fp16", "fp32", "bool", "int32", "int8", "uint8", "int16", "uint16"})
_INDEX = frozenset({"int32", "uint16"})
_PAIR = ("x", "y")
_NORMALISED = ("x", "gamma", "beta", "epsilon")
_SCATTERED = ("data", "updates")
_ALL = "fib"

OPS: dict[str, OpRow] = {
    # Arithmetic
    "add": OpRow(elementwise.add, _PAIR, "fi"),
    "sub": OpRow(elementwise.sub, _PAIR, "fi"),
    "mul": OpRow(elementwise.mul, _PAIR, "fi"),
    "real_div": OpRow(elementwise.real_div, _PAIR, "fi"),
    "floor_div": OpRow(elementwise.floor_div, _PAIR, "fi"),
    "mod": OpRow(elementwise.mod, _PAIR, "fi"),
    "maximum": OpRow(elementwise.maximum, _PAIR, "fi", exact=True),
    "minimum": OpRow(elementwise.minimum, _PAIR, "fi", exact=True),
    "pow": OpRow(elementwise.power, _PAIR, "fi"),
    "square": OpRow(elementwise.square, kinds="fi"),
    "abs": OpRow(elementwise.absolute, kinds="fi", exact=True),
    "sign": OpRow(elementwise.sign, kinds="fi", exact=True),
    "ceil": OpRow(elementwise.ceil, exact=True),
    "floor": OpRow(elementwise.floor, exact=True),
    "round": OpRow(elementwise.nearest, exact=True),
    "exp": OpRow(elementwise.exp),
    "exp2": OpRow(elementwise.exp2),
    "log": OpRow(elementwise.log, ("x", "epsilon")),
    "sqrt": OpRow(elementwise.sqrt),
    "rsqrt": OpRow(elementwise.rsqrt, ("x", "epsilon")),
    "inverse": OpRow(elementwise.inverse, ("x", "epsilon")),
    "clip": OpRow(elementwise.clip, ("x", "alpha", "beta"), exact=True),
    "threshold": OpRow(elementwise.threshold, ("x", "alpha"), "fi", exact=True),
    "erf": OpRow(elementwise.erf),
    "sin": OpRow(elementwise.sin),
    "cos": OpRow(elementwise.cos),
    "tan": OpRow(elementwise.tan),
    "asin": OpRow(elementwise.asin),
    "acos": OpRow(elementwise.acos),
    "atan": OpRow(elementwise.atan),
    "sinh": OpRow(elementwise.sinh),
    "cosh": OpRow(elementwise.cosh),
    "atanh": OpRow(elementwise.atanh),
    "cast": OpRow(
        elementwise.cast, kinds=_ALL, results=(Named("dtype"),), choices={"dtype": _CAST}
    ),
    # Comparisons and logic
    "equal": OpRow(elementwise.equal, _PAIR, _ALL, results=(BOOL,)),
    "not_equal": OpRow(elementwise.not_equal, _PAIR, _ALL, results=(BOOL,)),
    "greater": OpRow(elementwise.greater, _PAIR, "fi", results=(BOOL,)),
    "greater_equal": OpRow(elementwise.greater_equal, _PAIR, "fi", results=(BOOL,)),
    "less": OpRow(elementwise.less, _PAIR, "fi", results=(BOOL,)),
    "less_equal": OpRow(elementwise.less_equal, _PAIR, "fi", results=(BOOL,)),
    "logical_and": OpRow(elementwise.logical_and, _PAIR, "b"),
    "logical_or": OpRow(elementwise.logical_or, _PAIR, "b"),
    "logical_xor": OpRow(elementwise.logical_xor, _PAIR, "b"),
    "logical_not": OpRow(elementwise.logical_not, kinds="b"),
    # Activation functions
    "relu": OpRow(elementwise.relu, exact=True),
    "relu6": OpRow(elementwise.relu6, exact=True),
    "leaky_relu": OpRow(elementwise.leaky_relu, ("x", "alpha")),
    "prelu": OpRow(elementwise.prelu, ("x", "alpha")),
    "thresholded_relu": OpRow(elementwise.thresholded_relu, ("x", "alpha"), exact=True),
    "clamped_relu": OpRow(elementwise.clamped_relu, ("x", "alpha", "beta")),
    "elu": OpRow(elementwise.elu, ("x", "alpha")),
    "linear_activation": OpRow(elementwise.linear_activation, ("x", "alpha", "beta")),
    "sigmoid_hard": OpRow(elementwise.sigmoid_hard, ("x", "alpha", "beta")),
    "sigmoid": OpRow(elementwise.sigmoid),
    "silu": OpRow(elementwise.silu),
    "softplus": OpRow(elementwise.softplus),
    "softplus_parametric": OpRow(elementwise.softplus_parametric, ("x", "alpha", "beta")),
    "softsign": OpRow(elementwise.softsign),
    "tanh": OpRow(elementwise.tanh),
    "scaled_tanh": OpRow(elementwise.scaled_tanh, ("x", "alpha", "beta")),
    "gelu": OpRow(
        elementwise.gelu,
        choices={"mode": frozenset({"EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION"})},
    ),
    # Matrix products
    "linear": OpRow(linear.linear, ("x", "weight", "bias")),
    "matmul": OpRow(linear.matmul, _PAIR, "fi", results=(Variable(_PAIR),)),
    "einsum": OpRow(
        linear.einsum,
        ("values",),
        strings=frozenset({"equation"}),
        variadic=frozenset({"values"}),
    ),
    "scaled_dot_product_attention": OpRow(
        linear.scaled_dot_product_attention, ("query", "key", "value")
    ),
    "conv": OpRow(convolution.conv, ("x", "weight", "bias"), choices={"pad_type": _PADDING}),
    "conv_transpose": OpRow(
        convolution.conv_transpose,
        ("x", "weight", "bias"),
        choices={"pad_type": _PADDING - {"same_lower"}},
    ),
    # Reductions and order
    "softmax": OpRow(reduce.softmax),
    "reduce_mean": OpRow(reduce.reduce_mean),
    "reduce_sum": OpRow(reduce.reduce_sum, kinds="fi"),
    "reduce_prod": OpRow(reduce.reduce_prod, kinds="fi"),
    "reduce_max": OpRow(reduce.reduce_max, kinds="fi", exact=True),
    "reduce_min": OpRow(reduce.reduce_min, kinds="fi", exact=True),
    "reduce_sum_square": OpRow(reduce.reduce_sum_square, kinds="fi"),
    "reduce_l1_norm": OpRow(reduce.reduce_l1_norm, kinds="fi"),
    "reduce_l2_norm": OpRow(reduce.reduce_l2_norm),
    "reduce_log_sum": OpRow(reduce.reduce_log_sum),
    "reduce_log_sum_exp": OpRow(reduce.reduce_log_sum_exp),
    "reduce_argmax": OpRow(
        reduce.reduce_argmax,
        kinds="fi",
        results=(Named("output_dtype", "int32"),),
        choices={"output_dtype": _INDEX},
    ),
    "reduce_argmin": OpRow(
        reduce.reduce_argmin,
        kinds="fi",
        results=(Named("output_dtype", "int32"),),
        choices={"output_dtype": _INDEX},
    ),
    "cumsum": OpRow(reduce.cumsum, kinds="fi"),
    "argsort": OpRow(reduce.argsort, kinds="fi", results=(INT32,)),
    "topk": OpRow(
        reduce.topk,
        kinds="fi",
        results=(Like(), Named("output_indices_dtype", "int32")),
        exact=True,
        choices={"output_indices_dtype": _INDEX},
    ),
    # Normalisation
    "batch_norm": OpRow(normalization.batch_norm, (*_NORMALISED, "mean", "variance")),
    "instance_norm": OpRow(normalization.instance_norm, _NORMALISED),
    "layer_norm": OpRow(normalization.layer_norm, _NORMALISED),
    "l2_norm": OpRow(normalization.l2_norm, ("x", "epsilon")),
    "local_response_norm": OpRow(normalization.local_response_norm, ("x", "alpha", "beta", "k")),
    # Pooling
    "avg_pool": OpRow(pooling.avg_pool, choices={"pad_type": _PADDING}),
    "max_pool": OpRow(pooling.max_pool, exact=True, choices={"pad_type": _PADDING}),
    "l2_pool": OpRow(pooling.l2_pool, choices={"pad_type": _PADDING}),
    # Images
    "upsample_nearest_neighbor": OpRow(resizing.upsample_nearest_neighbor, exact=True),
    "resize_nearest_neighbor": OpRow(resizing.resize_nearest_neighbor, exact=True),
    "upsample_bilinear": OpRow(resizing.upsample_bilinear),
    "resize_bilinear": OpRow(
        resizing.resize_bilinear, choices={"sampling_mode": resizing.SAMPLING}
    ),
    "resize": OpRow(
        resizing.resize,
        kinds="fi",
        choices={
            "interpolation_mode": frozenset({"LINEAR", "NEAREST_NEIGHBOR"}),
            "sampling_mode": resizing.SAMPLING,
        },
    ),
    "crop": OpRow(resizing.crop, exact=True),
    "crop_resize": OpRow(
        resizing.crop_resize,
        ("x", "pad_value"),
        choices={
            "box_coordinate_mode": resizing.BOXES,
            "sampling_mode": resizing.SAMPLING,
        },
    ),
    "affine": OpRow(
        resizing.affine,
        ("x", "transform_matrix", "padding_value"),
        choices={
            "sampling_mode": frozenset({"bilinear"}),
            "padding_mode": frozenset({"constant"}),
            "coordinates_mode": frozenset({"normalized_minus_one_to_one"}),
        },
    ),
    "resample": OpRow(
        resizing.resample,
        ("x", "padding_value"),
        choices={
            "sampling_mode": frozenset({"bilinear", "nearest"}),
            "padding_mode": resizing.PADDING,
            "coordinates_mode": resizing.COORDINATES,
        },
    ),
    # Moving values
    "identity": OpRow(shape.identity, kinds=_ALL, exact=True),
    "reshape": OpRow(shape.reshape, kinds=_ALL, exact=True),
    "reshape_like": OpRow(
        shape.reshape_like,
        kinds=_ALL,
        exact=True,
        variadic=frozenset({"ref_tensors", "begins", "ends", "end_masks"}),
    ),
    "flatten2d": OpRow(shape.flatten2d, kinds=_ALL, exact=True),
    "transpose": OpRow(shape.transpose, kinds=_ALL, exact=True),
    "expand_dims": OpRow(shape.expand_dims, kinds=_ALL, exact=True),
    "squeeze": OpRow(shape.squeeze, kinds=_ALL, exact=True),
    "slice_by_index": OpRow(shape.slice_by_index, kinds=_ALL, exact=True),
    "slice_by_size": OpRow(shape.slice_by_size, kinds=_ALL, exact=True),
    "slice_update": OpRow(shape.slice_update, ("x", "update"), _ALL, exact=True),
    "split": OpRow(shape.split, kinds=_ALL, exact=True),
    "concat": OpRow(shape.concat, ("values",), _ALL, exact=True, variadic=frozenset({"values"})),
    "stack": OpRow(shape.stack, ("values",), _ALL, exact=True, variadic=frozenset({"values"})),
    "reverse": OpRow(shape.reverse, kinds=_ALL, exact=True),
    "reverse_sequence": OpRow(shape.reverse_sequence, kinds=_ALL, exact=True),
    "sliding_windows": OpRow(shape.sliding_windows, kinds=_ALL, exact=True),
    "depth_to_space": OpRow(shape.depth_to_space, exact=True),
    "space_to_depth": OpRow(shape.space_to_depth, exact=True),
    "pixel_shuffle": OpRow(shape.pixel_shuffle, exact=True),
    "pixel_unshuffle": OpRow(shape.pixel_unshuffle, exact=True),
    "batch_to_space": OpRow(shape.batch_to_space, exact=True),
    "space_to_batch": OpRow(shape.space_to_batch, exact=True),
    "band_part": OpRow(shape.band_part, kinds=_ALL, exact=True),
    "tile": OpRow(shape.tile, kinds=_ALL, exact=True),
    "fill": OpRow(shape.fill, ("value",), _ALL, exact=True),
    "fill_like": OpRow(shape.fill_like, ("value",), _ALL, exact=True),
    "range_1d": OpRow(shape.range_1d, ("start", "end", "step"), "fi"),
    "pad": OpRow(
        shape.pad,
        ("x", "constant_val"),
        exact=True,
        choices={"mode": frozenset({"constant", "reflect", "replicate"})},
    ),
    "shape": OpRow(shape.shape, kinds=_ALL, results=(INT32,)),
    # Values at places that a tensor holds
    "gather": OpRow(indexing.gather, kinds=_ALL, exact=True),
    "gather_along_axis": OpRow(indexing.gather_along_axis, kinds=_ALL, exact=True),
    "gather_nd": OpRow(indexing.gather_nd, kinds=_ALL, exact=True),
    "scatter": OpRow(
        indexing.scatter, _SCATTERED, "fi", choices={"mode": frozenset(indexing.MODES)}
    ),
    "scatter_along_axis": OpRow(
        indexing.scatter_along_axis,
        _SCATTERED,
        "fi",
        choices={"mode": frozenset(indexing.MODES)},
    ),
    "scatter_nd": OpRow(
        indexing.scatter_nd, _SCATTERED, "fi", choices={"mode": frozenset(indexing.MODES)}
    ),
    "select": OpRow(indexing.select, ("a", "b"), _ALL, exact=True),
    "non_zero": OpRow(indexing.non_zero, kinds=_ALL, results=(INT32,)),
    "one_hot": OpRow(indexing.one_hot, ("on_value", "off_value"), _ALL, exact=True),
    # Quantised activations
    "quantize": OpRow(
        compression.quantize,
        ("input", "scale"),
        results=(Named("output_dtype"),),
        choices={"output_dtype": frozenset({"int8", "uint8"})},
    ),
    "dequantize": OpRow(compression.dequantize, ("scale",)),
    # Compressed weights
    "constexpr_affine_dequantize": OpRow(compression.constexpr_affine_dequantize, ("scale",)),
    "constexpr_blockwise_shift_scale": OpRow(
        compression.constexpr_blockwise_shift_scale, ("scale",)
    ),
    "constexpr_cast": OpRow(
        compression.constexpr_cast,
        ("source_val",),
        results=(Named("output_dtype"),),
        choices={"output_dtype": frozenset({"fp32"})},
    ),
    "constexpr_lut_to_dense": OpRow(
        compression.constexpr_lut_to_dense, ("lut",), "fi", exact=True
    ),
    "constexpr_sparse_to_dense": OpRow(
        compression.constexpr_sparse_to_dense, ("nonzero_data",), "fi", exact=True
    ),
    "constexpr_lut_to_sparse": OpRow(
        compression.constexpr_lut_to_sparse,
        ("lut",),
        "fi",
        results=(Like("indices_mask"), Like("lut")),
    ),
    "constexpr_sparse_blockwise_shift_scale": OpRow(
        compression.constexpr_sparse_blockwise_shift_scale,
        ("scale",),
        results=(Like("data_mask"), Like("scale")),
    ),
    # Classifiers
    "classify": OpRow(reduce.classify, ("probabilities",), results=(), labels="classes"),
}

LEFT_OUT: dict[str, str] = {
    **dict.fromkeys(
        ("lstm", "gru", "rnn"), "recurrent layers are not what image networks are made of"
    ),
    **dict.fromkeys(
        ("cond", "while_loop"), "a program with control flow has blocks within blocks"
    ),
    **dict.fromkeys(
        ("make_list", "list_read", "list_write", "list_gather", "list_scatter", "list_length"),
        "lists of tensors serve loops, which are left out",
    ),
    **dict.fromkeys(
        ("read_state", "coreml_update_state", "write_state"),
        "a program with state gives another answer at every call",
    ),
    **dict.fromkeys(
        ("random_bernoulli", "random_categorical", "random_normal", "random_uniform"),
        "Core ML does not document its random numbers, so that there is nothing to hold against",
    ),
    "non_maximum_suppression": "which of equal boxes stays, and what fills the rest, is not "
    "documented",
    "conv_quantized": "coremltools writes it into no ML Program",
}
"""Ops of MIL that are not evaluated, each with the reason."""
