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
class Op:
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

OPS: dict[str, Op] = {
    # Arithmetic
    "add": Op(elementwise.add, _PAIR, "fi"),
    "sub": Op(elementwise.sub, _PAIR, "fi"),
    "mul": Op(elementwise.mul, _PAIR, "fi"),
    "real_div": Op(elementwise.real_div, _PAIR),
    "floor_div": Op(elementwise.floor_div, _PAIR, "fi"),
    "mod": Op(elementwise.mod, _PAIR, "fi"),
    "maximum": Op(elementwise.maximum, _PAIR, "fi", exact=True),
    "minimum": Op(elementwise.minimum, _PAIR, "fi", exact=True),
    "pow": Op(elementwise.power, _PAIR),
    "square": Op(elementwise.square, kinds="fi"),
    "abs": Op(elementwise.absolute, kinds="fi", exact=True),
    "sign": Op(elementwise.sign, kinds="fi", exact=True),
    "ceil": Op(elementwise.ceil, exact=True),
    "floor": Op(elementwise.floor, exact=True),
    "round": Op(elementwise.nearest, exact=True),
    "exp": Op(elementwise.exp),
    "exp2": Op(elementwise.exp2),
    "log": Op(elementwise.log, ("x", "epsilon")),
    "sqrt": Op(elementwise.sqrt),
    "rsqrt": Op(elementwise.rsqrt, ("x", "epsilon")),
    "inverse": Op(elementwise.inverse, ("x", "epsilon")),
    "clip": Op(elementwise.clip, ("x", "alpha", "beta"), exact=True),
    "threshold": Op(elementwise.threshold, ("x", "alpha"), "fi", exact=True),
    "erf": Op(elementwise.erf),
    "sin": Op(elementwise.sin),
    "cos": Op(elementwise.cos),
    "tan": Op(elementwise.tan),
    "asin": Op(elementwise.asin),
    "acos": Op(elementwise.acos),
    "atan": Op(elementwise.atan),
    "sinh": Op(elementwise.sinh),
    "cosh": Op(elementwise.cosh),
    "atanh": Op(elementwise.atanh),
    "cast": Op(elementwise.cast, kinds=_ALL, results=(Named("dtype"),), choices={"dtype": _CAST}),
    # Comparisons and logic
    "equal": Op(elementwise.equal, _PAIR, _ALL, results=(BOOL,)),
    "not_equal": Op(elementwise.not_equal, _PAIR, _ALL, results=(BOOL,)),
    "greater": Op(elementwise.greater, _PAIR, "fi", results=(BOOL,)),
    "greater_equal": Op(elementwise.greater_equal, _PAIR, "fi", results=(BOOL,)),
    "less": Op(elementwise.less, _PAIR, "fi", results=(BOOL,)),
    "less_equal": Op(elementwise.less_equal, _PAIR, "fi", results=(BOOL,)),
    "logical_and": Op(elementwise.logical_and, _PAIR, "b"),
    "logical_or": Op(elementwise.logical_or, _PAIR, "b"),
    "logical_xor": Op(elementwise.logical_xor, _PAIR, "b"),
    "logical_not": Op(elementwise.logical_not, kinds="b"),
    # Activation functions
    "relu": Op(elementwise.relu, exact=True),
    "relu6": Op(elementwise.relu6, exact=True),
    "leaky_relu": Op(elementwise.leaky_relu, ("x", "alpha")),
    "prelu": Op(elementwise.prelu, ("x", "alpha")),
    "thresholded_relu": Op(elementwise.thresholded_relu, ("x", "alpha"), exact=True),
    "clamped_relu": Op(elementwise.clamped_relu, ("x", "alpha", "beta")),
    "elu": Op(elementwise.elu, ("x", "alpha")),
    "linear_activation": Op(elementwise.linear_activation, ("x", "alpha", "beta")),
    "sigmoid_hard": Op(elementwise.sigmoid_hard, ("x", "alpha", "beta")),
    "sigmoid": Op(elementwise.sigmoid),
    "silu": Op(elementwise.silu),
    "softplus": Op(elementwise.softplus),
    "softplus_parametric": Op(elementwise.softplus_parametric, ("x", "alpha", "beta")),
    "softsign": Op(elementwise.softsign),
    "tanh": Op(elementwise.tanh),
    "scaled_tanh": Op(elementwise.scaled_tanh, ("x", "alpha", "beta")),
    "gelu": Op(
        elementwise.gelu,
        choices={"mode": frozenset({"EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION"})},
    ),
    # Matrix products
    "linear": Op(linear.linear, ("x", "weight", "bias")),
    "matmul": Op(linear.matmul, _PAIR, results=(Variable(_PAIR),)),
    "einsum": Op(
        linear.einsum,
        ("values",),
        strings=frozenset({"equation"}),
        variadic=frozenset({"values"}),
    ),
    "scaled_dot_product_attention": Op(
        linear.scaled_dot_product_attention, ("query", "key", "value")
    ),
    "conv": Op(convolution.conv, ("x", "weight", "bias"), choices={"pad_type": _PADDING}),
    "conv_transpose": Op(
        convolution.conv_transpose,
        ("x", "weight", "bias"),
        choices={"pad_type": _PADDING - {"same_lower"}},
    ),
    # Reductions and order
    "softmax": Op(reduce.softmax),
    "reduce_mean": Op(reduce.reduce_mean),
    "reduce_sum": Op(reduce.reduce_sum, kinds="fi"),
    "reduce_prod": Op(reduce.reduce_prod, kinds="fi"),
    "reduce_max": Op(reduce.reduce_max, kinds="fi", exact=True),
    "reduce_min": Op(reduce.reduce_min, kinds="fi", exact=True),
    "reduce_sum_square": Op(reduce.reduce_sum_square, kinds="fi"),
    "reduce_l1_norm": Op(reduce.reduce_l1_norm, kinds="fi"),
    "reduce_l2_norm": Op(reduce.reduce_l2_norm),
    "reduce_log_sum": Op(reduce.reduce_log_sum),
    "reduce_log_sum_exp": Op(reduce.reduce_log_sum_exp),
    "reduce_argmax": Op(
        reduce.reduce_argmax,
        kinds="fi",
        results=(Named("output_dtype", "int32"),),
        choices={"output_dtype": _INDEX},
    ),
    "reduce_argmin": Op(
        reduce.reduce_argmin,
        kinds="fi",
        results=(Named("output_dtype", "int32"),),
        choices={"output_dtype": _INDEX},
    ),
    "cumsum": Op(reduce.cumsum, kinds="fi"),
    "argsort": Op(reduce.argsort, kinds="fi", results=(INT32,)),
    "topk": Op(
        reduce.topk,
        kinds="fi",
        results=(Like(), Named("output_indices_dtype", "int32")),
        exact=True,
        choices={"output_indices_dtype": _INDEX},
    ),
    # Normalisation
    "batch_norm": Op(normalization.batch_norm, (*_NORMALISED, "mean", "variance")),
    "instance_norm": Op(normalization.instance_norm, _NORMALISED),
    "layer_norm": Op(normalization.layer_norm, _NORMALISED),
    "l2_norm": Op(normalization.l2_norm, ("x", "epsilon")),
    "local_response_norm": Op(normalization.local_response_norm, ("x", "alpha", "beta", "k")),
    # Pooling
    "avg_pool": Op(pooling.avg_pool, choices={"pad_type": _PADDING}),
    "max_pool": Op(pooling.max_pool, exact=True, choices={"pad_type": _PADDING}),
    "l2_pool": Op(pooling.l2_pool, choices={"pad_type": _PADDING}),
    # Images
    "upsample_nearest_neighbor": Op(resizing.upsample_nearest_neighbor, exact=True),
    "resize_nearest_neighbor": Op(resizing.resize_nearest_neighbor, exact=True),
    "upsample_bilinear": Op(resizing.upsample_bilinear),
    "resize_bilinear": Op(resizing.resize_bilinear, choices={"sampling_mode": resizing.SAMPLING}),
    "resize": Op(
        resizing.resize,
        kinds="fi",
        choices={
            "interpolation_mode": frozenset({"LINEAR", "NEAREST_NEIGHBOR"}),
            "sampling_mode": resizing.SAMPLING,
        },
    ),
    "crop": Op(resizing.crop, exact=True),
    "crop_resize": Op(
        resizing.crop_resize,
        ("x", "pad_value"),
        choices={
            "box_coordinate_mode": resizing.BOXES,
            "sampling_mode": resizing.SAMPLING,
        },
    ),
    "affine": Op(
        resizing.affine,
        ("x", "transform_matrix", "padding_value"),
        choices={
            "sampling_mode": frozenset({"bilinear"}),
            "padding_mode": frozenset({"constant"}),
            "coordinates_mode": frozenset({"normalized_minus_one_to_one"}),
        },
    ),
    "resample": Op(
        resizing.resample,
        ("x", "padding_value"),
        choices={
            "sampling_mode": frozenset({"bilinear", "nearest"}),
            "padding_mode": resizing.PADDING,
            "coordinates_mode": resizing.COORDINATES,
        },
    ),
    # Moving values
    "identity": Op(shape.identity, kinds=_ALL, exact=True),
    "reshape": Op(shape.reshape, kinds=_ALL, exact=True),
    "reshape_like": Op(
        shape.reshape_like,
        kinds=_ALL,
        exact=True,
        variadic=frozenset({"ref_tensors", "begins", "ends", "end_masks"}),
    ),
    "flatten2d": Op(shape.flatten2d, kinds=_ALL, exact=True),
    "transpose": Op(shape.transpose, kinds=_ALL, exact=True),
    "expand_dims": Op(shape.expand_dims, kinds=_ALL, exact=True),
    "squeeze": Op(shape.squeeze, kinds=_ALL, exact=True),
    "slice_by_index": Op(shape.slice_by_index, kinds=_ALL, exact=True),
    "slice_by_size": Op(shape.slice_by_size, kinds=_ALL, exact=True),
    "slice_update": Op(shape.slice_update, ("x", "update"), _ALL, exact=True),
    "split": Op(shape.split, kinds=_ALL, exact=True),
    "concat": Op(shape.concat, ("values",), _ALL, exact=True, variadic=frozenset({"values"})),
    "stack": Op(shape.stack, ("values",), _ALL, exact=True, variadic=frozenset({"values"})),
    "reverse": Op(shape.reverse, kinds=_ALL, exact=True),
    "reverse_sequence": Op(shape.reverse_sequence, kinds=_ALL, exact=True),
    "sliding_windows": Op(shape.sliding_windows, kinds=_ALL, exact=True),
    "depth_to_space": Op(shape.depth_to_space, exact=True),
    "space_to_depth": Op(shape.space_to_depth, exact=True),
    "pixel_shuffle": Op(shape.pixel_shuffle, exact=True),
    "pixel_unshuffle": Op(shape.pixel_unshuffle, exact=True),
    "batch_to_space": Op(shape.batch_to_space, exact=True),
    "space_to_batch": Op(shape.space_to_batch, exact=True),
    "band_part": Op(shape.band_part, kinds=_ALL, exact=True),
    "tile": Op(shape.tile, kinds=_ALL, exact=True),
    "fill": Op(shape.fill, ("value",), _ALL, exact=True),
    "fill_like": Op(shape.fill_like, ("value",), _ALL, exact=True),
    "range_1d": Op(shape.range_1d, ("start", "end", "step"), "fi"),
    "pad": Op(
        shape.pad,
        ("x", "constant_val"),
        exact=True,
        choices={"mode": frozenset({"constant", "reflect", "replicate"})},
    ),
    "shape": Op(shape.shape, kinds=_ALL, results=(INT32,)),
    # Values at places that a tensor holds
    "gather": Op(indexing.gather, kinds=_ALL, exact=True),
    "gather_along_axis": Op(indexing.gather_along_axis, kinds=_ALL, exact=True),
    "gather_nd": Op(indexing.gather_nd, kinds=_ALL, exact=True),
    "scatter": Op(indexing.scatter, _SCATTERED, "fi", choices={"mode": frozenset(indexing.MODES)}),
    "scatter_along_axis": Op(
        indexing.scatter_along_axis,
        _SCATTERED,
        "fi",
        choices={"mode": frozenset(indexing.MODES)},
    ),
    "scatter_nd": Op(
        indexing.scatter_nd, _SCATTERED, "fi", choices={"mode": frozenset(indexing.MODES)}
    ),
    "select": Op(indexing.select, ("a", "b"), _ALL, exact=True),
    "non_zero": Op(indexing.non_zero, kinds=_ALL, results=(INT32,)),
    "one_hot": Op(indexing.one_hot, ("on_value", "off_value"), _ALL, exact=True),
    # Quantised activations
    "quantize": Op(
        compression.quantize,
        ("input", "scale"),
        results=(Named("output_dtype"),),
        choices={"output_dtype": frozenset({"int8", "uint8"})},
    ),
    "dequantize": Op(compression.dequantize, ("scale",)),
    # Compressed weights
    "constexpr_affine_dequantize": Op(compression.constexpr_affine_dequantize, ("scale",)),
    "constexpr_blockwise_shift_scale": Op(compression.constexpr_blockwise_shift_scale, ("scale",)),
    "constexpr_cast": Op(
        compression.constexpr_cast,
        ("source_val",),
        results=(Named("output_dtype"),),
        choices={"output_dtype": frozenset({"fp32"})},
    ),
    "constexpr_lut_to_dense": Op(compression.constexpr_lut_to_dense, ("lut",), "fi", exact=True),
    "constexpr_sparse_to_dense": Op(
        compression.constexpr_sparse_to_dense, ("nonzero_data",), "fi", exact=True
    ),
    "constexpr_lut_to_sparse": Op(
        compression.constexpr_lut_to_sparse,
        ("lut",),
        "fi",
        results=(Like("indices_mask"), Like("lut")),
    ),
    "constexpr_sparse_blockwise_shift_scale": Op(
        compression.constexpr_sparse_blockwise_shift_scale,
        ("scale",),
        results=(Like("data_mask"), Like("scale")),
    ),
    # Classifiers
    "classify": Op(reduce.classify, ("probabilities",), results=(), labels="classes"),
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
