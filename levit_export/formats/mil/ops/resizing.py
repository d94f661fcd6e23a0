"""Images resized, cropped, and sampled at given places.

Source: coremltools, MIL op set ``image_resizing``. Height and width are the last two axes of
``x``. Along an axis every output position ``i`` has a place in the input, a real number; bilinear
interpolation weighs the two elements around it, nearest-neighbour takes the element at its floor:
that of ``i n / m`` where a factor is given, and of ``(i + 1/2) n / m`` where a size is given.
coremltools' tests of ``resize`` exclude the former for a size, but admit other rules than the
latter. Its TensorFlow frontend decides: it writes the ops of a size for ``half_pixel_centers``.
"""

from __future__ import annotations

import numpy as np

from levit_export.formats.mil.elements import Array
from levit_export.formats.mil.ops.bounds import bounded, flag, integer, integers

SAMPLING = frozenset(
    {"STRICT_ALIGN_CORNERS", "ALIGN_CORNERS", "DEFAULT", "OFFSET_CORNERS", "UNALIGN_CORNERS"}
)
"""Rules for the places of an axis's output positions; see :func:`_places`."""
PADDING = frozenset({"constant", "border", "reflection", "symmetric"})
COORDINATES = frozenset({"unnormalized", "normalized_minus_one_to_one", "normalized_zero_to_one"})
_SLACK = 4 * 2.0**-23
"""How far rounding moves a coordinate of a box at most, in parts of the image's last place.

Four units in the last place of float32: of the coordinate, of a centre and a size, of
``spatial_scale``."""
BOXES = frozenset(
    {
        "CORNERS_HEIGHT_FIRST",
        "CORNERS_WIDTH_FIRST",
        "CENTER_SIZE_HEIGHT_FIRST",
        "CENTER_SIZE_WIDTH_FIRST",
    }
)


def upsample_nearest_neighbor(
    x: Array,
    *,
    scale_factor_height: Array | None = None,
    scale_factor_width: Array | None = None,
) -> Array:
    """``y[i] = x[floor(i * n / m)]`` on both axes, ``m = floor(n * scale_factor)``."""
    height, width = _scaled(x, scale_factor_height, scale_factor_width)
    return _nearest(_nearest(x, x.ndim - 2, height, 0), x.ndim - 1, width, 0)


def resize_nearest_neighbor(
    x: Array, target_size_height: Array, target_size_width: Array
) -> Array:
    """``y[i] = x[floor((i + 1/2) * n / m)]`` on both axes, ``m`` the target size."""
    rows = _nearest(x, x.ndim - 2, integer(target_size_height), 1)
    return _nearest(rows, x.ndim - 1, integer(target_size_width), 1)


def upsample_bilinear(
    x: Array,
    *,
    scale_factor_height: Array | None = None,
    scale_factor_width: Array | None = None,
    align_corners: Array | None = None,
    half_pixel_centers: Array | None = None,
) -> Array:
    """Bilinear interpolation to ``m = floor(n * scale_factor)`` places on both axes.

    They are those of ``STRICT_ALIGN_CORNERS`` if ``align_corners`` (the default), else those of
    ``UNALIGN_CORNERS``, or of ``DEFAULT`` where ``half_pixel_centers`` (since iOS 16) is false;
    the scale is ``n / m``, not the given factor.
    """
    aligned = align_corners is None or flag(align_corners)
    half = not aligned if half_pixel_centers is None else flag(half_pixel_centers)
    if aligned and half:
        raise NotImplementedError("align_corners together with half_pixel_centers")
    mode = "STRICT_ALIGN_CORNERS" if aligned else "UNALIGN_CORNERS" if half else "DEFAULT"
    height, width = _scaled(x, scale_factor_height, scale_factor_width)
    rows = _linear(x, x.ndim - 2, height, mode)
    return _linear(rows, x.ndim - 1, width, mode)


def resize_bilinear(
    x: Array,
    *,
    target_size_height: Array | None = None,
    target_size_width: Array | None = None,
    sampling_mode: str = "DEFAULT",
) -> Array:
    """Bilinear interpolation at the places that ``sampling_mode`` sets on both axes."""
    height = 1 if target_size_height is None else integer(target_size_height)
    width = 1 if target_size_width is None else integer(target_size_width)
    rows = _linear(x, x.ndim - 2, height, sampling_mode)
    return _linear(rows, x.ndim - 1, width, sampling_mode)


def resize(
    x: Array,
    shape: Array,
    resized_dims: Array,
    *,
    interpolation_mode: str = "LINEAR",
    sampling_mode: str = "DEFAULT",
) -> Array:
    """The last ``resized_dims`` axes of ``x`` at the last sizes of ``shape``.

    A size of 0 keeps that of ``x``. For ``NEAREST_NEIGHBOR`` only ``DEFAULT`` has a documented
    result.
    """
    sizes, many = integers(shape), integer(resized_dims)
    if not 0 <= many <= min(len(sizes), x.ndim):
        raise ValueError(f"{many} axes of shape {list(sizes)} do not fit rank {x.ndim}")
    if interpolation_mode == "NEAREST_NEIGHBOR" and sampling_mode != "DEFAULT":
        raise NotImplementedError(f"nearest neighbours with sampling mode {sampling_mode}")
    for back in range(1, many + 1):
        axis, size = x.ndim - back, sizes[-back] or x.shape[-back]
        if interpolation_mode == "NEAREST_NEIGHBOR":
            x = _nearest(x, axis, size, 1)
        else:
            x = _linear(x, axis, size, sampling_mode)
    return np.array(x)


def crop(x: Array, crop_height: Array, crop_width: Array) -> Array:
    """``x`` without the given numbers of rows and columns at either side."""
    (top, bottom), (left, right) = integers(crop_height), integers(crop_width)
    height, width = x.shape[-2:]
    if min(top, bottom, left, right) < 0 or top + bottom > height or left + right > width:
        raise ValueError(f"cannot crop {top}+{bottom} of {height} and {left}+{right} of {width}")
    return x[..., top : height - bottom, left : width - right]


def affine(  # noqa: PLR0917 - the op needs all of its parameters
    x: Array,
    transform_matrix: Array,
    output_height: Array,
    output_width: Array,
    sampling_mode: str,
    padding_mode: str,
    padding_value: Array,
    coordinates_mode: str,
    align_corners: Array,
) -> Array:
    """``y[h, w] = x(h', w')``, ``w' = a0 w + a1 h + a2``, ``h' = b0 w + b1 h + b2``, bilinear.

    ``transform_matrix[b] = (a0, a1, a2, b0, b1, b2)``, one for all images or one for each. All
    coordinates run from -1 to 1, the centres of the first and the last pixel.
    """
    if not flag(align_corners):
        raise NotImplementedError("affine without align_corners")
    if transform_matrix.ndim != 2 or transform_matrix.shape[1] != 6:
        raise ValueError(f"transform_matrix {list(transform_matrix.shape)} should be [B, 6]")
    height, width = bounded((integer(output_height), integer(output_width)))
    grid_h, grid_w = np.meshgrid(
        np.linspace(-1.0, 1.0, height), np.linspace(-1.0, 1.0, width), indexing="ij"
    )
    m = transform_matrix.astype(np.float64)[:, :, np.newaxis, np.newaxis]
    places = np.stack(
        [
            m[:, 0] * grid_w + m[:, 1] * grid_h + m[:, 2],
            m[:, 3] * grid_w + m[:, 4] * grid_h + m[:, 5],
        ],
        axis=-1,
    )
    places = np.broadcast_to(places, (x.shape[0], height, width, 2))
    return resample(
        x, places, sampling_mode, padding_mode, padding_value, coordinates_mode, align_corners
    )


def resample(  # noqa: PLR0917 - the op needs all of its parameters
    x: Array,
    coordinates: Array,
    sampling_mode: str,
    padding_mode: str,
    padding_value: Array,
    coordinates_mode: str,
    align_corners: Array,
) -> Array:
    """``y[b, c, i, j] = x[b, c](h, w)`` with ``(w, h) = coordinates[b, i, j]``.

    Normalised coordinates span the centres of the first and the last pixel if ``align_corners``,
    else their outer edges. Around the image lies ``padding_value`` (``constant``), its edge
    (``border``), or its mirror image without (``reflection``) or with (``symmetric``) the edge.
    The ``nearest`` pixel is looked for after a place was mirrored, with ties to even numbers.
    """
    if x.ndim != 4 or coordinates.ndim != 4 or coordinates.shape[3] != 2:
        raise ValueError(f"x {list(x.shape)} and coordinates {list(coordinates.shape)} do not fit")
    if coordinates.shape[0] != x.shape[0]:
        raise ValueError(f"{coordinates.shape[0]} sets of coordinates for {x.shape[0]} images")
    w, h = (
        _pixels(coordinates[..., i].astype(np.float64), n, coordinates_mode, flag(align_corners))
        for i, n in ((0, x.shape[3]), (1, x.shape[2]))
    )
    if not np.isfinite(w).all() or not np.isfinite(h).all():
        raise NotImplementedError("a pixel at infinity, or at NaN,")
    bounded((*x.shape[:2], *h.shape[1:]))
    filler = padding_value if padding_mode == "constant" else None
    rule = padding_mode
    if sampling_mode == "nearest":
        return _taken(x, h, w, rule, filler)
    return _bilinear(x, h, w, rule, filler)


def crop_resize(
    x: Array,
    *,
    specification: int,
    roi: Array | None = None,
    boxes: Array | None = None,
    box_indices: Array | None = None,
    target_height: Array | None = None,
    target_width: Array | None = None,
    normalized_coordinates: Array | None = None,
    spatial_scale: Array | None = None,
    box_coordinate_mode: str = "CORNERS_HEIGHT_FIRST",
    sampling_mode: str = "DEFAULT",
    pad_value: Array | None = None,
) -> Array:
    """Bilinear interpolation inside boxes ``[start, end]``, on both axes.

    Up to iOS 16 ``roi[n, 0, :, 0, 0]`` holds a box that is cut from every image, or the number of
    an image and a box, and ``y`` is ``[N, B, C, h, w]``; since iOS 17 ``boxes[n]`` is cut from
    image ``box_indices[n]`` and ``y`` is ``[N, C, h, w]``. Places in a box are those of
    :func:`resize_bilinear` for ``n = end - start + 1`` elements, kept inside the box as there.
    Those beyond the image are ``pad_value`` since iOS 16; boxes of iOS 15 must be inside. A
    coordinate that only rounding puts beyond the image counts as its edge. A box that ends before
    it starts is mirrored where corners are aligned, and has no documented result elsewhere.
    """
    if (roi is None) == (boxes is None):
        raise ValueError("either roi (to iOS 16) or boxes (since iOS 17) must be given")
    if roi is not None:
        found = roi.reshape(roi.shape[0], -1).astype(np.float64)
        images = found[:, 0].astype(np.int64) if found.shape[1] == 5 else None
        found = found[:, -4:]
    else:
        found = np.asarray(boxes).astype(np.float64)
        images = np.arange(len(found)) if box_indices is None else box_indices.astype(np.int64)
    if images is not None and images.size and not 0 <= images.min() <= images.max() < x.shape[0]:
        raise NotImplementedError(
            f"a box of an image outside [0, {x.shape[0]}) (they are {images.tolist()})"
        )
    height = 1 if target_height is None else integer(target_height)
    width = 1 if target_width is None else integer(target_width)
    bounded((len(found), x.shape[0], x.shape[1], height, width))
    bounded((height, width))
    corners = _corners(found, box_coordinate_mode)
    if spatial_scale is not None:
        corners *= float(spatial_scale)
    if flag(normalized_coordinates):
        corners *= np.array([x.shape[2] - 1, x.shape[3] - 1] * 2, dtype=np.float64)
    for side in range(4):
        corners[:, side] = _snapped(corners[:, side], x.shape[2 + side % 2] - 1)
    _check_boxes(corners, x, sampling_mode, specification)
    cut = []
    for n, (top, left, bottom, right) in enumerate(corners):
        image = x if images is None else x[images[n] : images[n] + 1]
        h = _snapped(_places_between(top, bottom, height, sampling_mode), x.shape[2] - 1)
        w = _snapped(_places_between(left, right, width, sampling_mode), x.shape[3] - 1)
        grid_h, grid_w = (
            np.broadcast_to(g, (image.shape[0], height, width))
            for g in np.meshgrid(h, w, indexing="ij")
        )
        outside = (grid_h < 0) | (grid_h > x.shape[2] - 1)
        outside |= (grid_w < 0) | (grid_w > x.shape[3] - 1)
        y = _bilinear(image, grid_h, grid_w, "border", None)
        y[np.broadcast_to(outside[:, np.newaxis], y.shape)] = 0 if pad_value is None else pad_value
        cut.append(y if images is None else y[0])
    shape = (*(x.shape[:2] if images is None else x.shape[1:2]), height, width)
    if roi is not None and images is not None:
        return np.stack(cut).reshape(len(cut), 1, *shape)
    return np.stack(cut) if cut else np.empty((0, *shape), x.dtype)


def _check_boxes(corners: Array, x: Array, mode: str, specification: int) -> None:
    inside = (corners >= 0) & (corners <= [x.shape[2] - 1, x.shape[3] - 1] * 2)
    if specification < 7 and not inside.all():
        raise NotImplementedError("a box beyond the image, before iOS 16,")
    backwards = (corners[:, 2:] < corners[:, :2]).any()
    if backwards and mode not in {"STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"}:
        raise NotImplementedError(f"a box that ends before it starts, in mode {mode},")


def _corners(boxes: Array, mode: str) -> Array:
    """Boxes as ``[top, left, bottom, right]``."""
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not np.isfinite(boxes).all():
        raise ValueError(f"boxes {list(boxes.shape)} should be finite numbers [N, 4]")
    if mode.endswith("WIDTH_FIRST"):
        boxes = boxes[:, [1, 0, 3, 2]]
    if mode.startswith("CENTER"):
        half = boxes[:, 2:] / 2
        boxes = np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)
    return np.asarray(boxes.copy())


def _scaled(x: Array, height: Array | None, width: Array | None) -> tuple[int, int]:
    """Sizes of the last two axes of ``x``, times a factor each, rounded down."""
    if x.ndim < 3:
        raise ValueError(f"x {list(x.shape)} needs rank 3 or more")
    factors = [1.0 if f is None else float(f) for f in (height, width)]
    if not all(0 < f < 2**20 for f in factors):
        raise ValueError(f"scale factors {factors} should be positive")
    rows, columns = (int(np.floor(n * f)) for n, f in zip(x.shape[-2:], factors, strict=True))
    return rows, columns


def _places(n: float, m: int, mode: str) -> Array:
    """Where ``m`` positions lie on an axis of ``n`` elements, as coremltools documents it.

    - ``STRICT_ALIGN_CORNERS``: ``i (n - 1) / (m - 1)``; ``ALIGN_CORNERS`` the same, but the
      middle for ``m = 1``.
    - ``DEFAULT``: ``i n / m``. ``UNALIGN_CORNERS``: ``(i + 1/2) n / m - 1/2``.
    - ``OFFSET_CORNERS``: ``(i + 1/2) max(1, n - 1) / m``.
    """
    i = np.arange(m, dtype=np.float64)
    if mode == "STRICT_ALIGN_CORNERS" or (mode == "ALIGN_CORNERS" and m > 1):
        return i * ((n - 1) / max(m - 1, 1))
    if mode == "ALIGN_CORNERS":
        return i + (n - 1) / 2
    if mode == "DEFAULT":
        return i * (n / m)
    if mode == "OFFSET_CORNERS":
        return (i + 0.5) * (max(1.0, n - 1) / m)
    if mode == "UNALIGN_CORNERS":
        return (i + 0.5) * (n / m) - 0.5
    raise NotImplementedError(f"sampling mode {mode!r}")


def _places_between(start: float, end: float, m: int, mode: str) -> Array:
    """Where ``m`` positions lie on an axis, all between ``start`` and ``end``."""
    places = start + _places(end - start + 1, m, mode)
    return np.clip(places, min(start, end), max(start, end))


def _snapped(places: Array, last: int) -> Array:
    """``places``, with 0 or ``last`` for those that rounding may have put beyond them."""
    kept = np.clip(places, 0, last)
    return np.where(np.abs(places - kept) <= _SLACK * max(last, 1), kept, places)


def _nearest(x: Array, axis: int, size: int, halves: int) -> Array:
    """``y[i] = x[floor((i + halves / 2) * n / size)]`` along one axis."""
    n = x.shape[axis]
    bounded((*x.shape[:axis], size, *x.shape[axis + 1 :]))
    bounded((size,))  # also of an axis of nothing
    if n == 0 or size < 1:
        raise ValueError(f"an axis of {n} cannot be resized to {size}")
    return np.asarray(np.take(x, (2 * np.arange(size) + halves) * n // (2 * size), axis=axis))


def _linear(x: Array, axis: int, size: int, mode: str) -> Array:
    """Linear interpolation along one axis, at places kept inside it."""
    n = x.shape[axis]
    bounded((*x.shape[:axis], size, *x.shape[axis + 1 :]))
    bounded((size,))  # also of an axis of nothing
    if n == 0 or size < 1:
        raise ValueError(f"an axis of {n} cannot be resized to {size}")
    places = _places_between(0, n - 1, size, mode)
    below = np.floor(places).astype(np.int64)
    above = np.minimum(below + 1, n - 1)
    part = (places - below).astype(np.float32).reshape(-1, *(1,) * (x.ndim - axis - 1))
    low, high = np.take(x, below, axis=axis), np.take(x, above, axis=axis)
    if x.dtype.kind != "f":
        raise NotImplementedError("linear interpolation of integers")
    return np.asarray(low + (high - low) * part)


def _pixels(c: Array, n: int, mode: str, aligned: bool) -> Array:  # noqa: FBT001
    """Coordinates on an axis of ``n`` pixels, in pixels."""
    if mode == "unnormalized":
        return c
    unit = (c + 1) / 2 if mode == "normalized_minus_one_to_one" else c
    return unit * (n - 1) if aligned else unit * n - 0.5


def _bilinear(x: Array, h: Array, w: Array, rule: str, filler: Array | None) -> Array:
    """``x[b, c]`` at places ``h[b, i, j]``, ``w[b, i, j]``."""
    top, left = np.floor(h), np.floor(w)
    down, right = ((p - q).astype(np.float32)[:, np.newaxis] for p, q in ((h, top), (w, left)))
    y = np.zeros((*x.shape[:2], *h.shape[1:]), dtype=x.dtype)
    for row, row_part in ((top, 1 - down), (top + 1, down)):
        for column, column_part in ((left, 1 - right), (left + 1, right)):
            y += _taken(x, row, column, rule, filler) * (row_part * column_part)
    return y


def _taken(x: Array, h: Array, w: Array, rule: str, filler: Array | None) -> Array:
    """``x[b, c]`` at the nearest whole places, or what lies around the image by ``rule``."""
    row, column = np.rint(h), np.rint(w)
    inside = (row >= 0) & (row < x.shape[2]) & (column >= 0) & (column < x.shape[3])
    rows, columns = _folded(h, x.shape[2], rule), _folded(w, x.shape[3], rule)
    image = np.arange(x.shape[0]).reshape(-1, 1, 1, 1)
    channel = np.arange(x.shape[1]).reshape(1, -1, 1, 1)
    y = x[image, channel, rows[:, np.newaxis], columns[:, np.newaxis]]
    if filler is not None:
        y = np.where(inside[:, np.newaxis], y, filler)
    return np.asarray(y)


def _folded(places: Array, n: int, rule: str) -> Array:
    """Places brought into an axis of ``n``, and then the nearest whole ones."""
    if n < 1:
        raise ValueError("an image without pixels cannot be sampled")
    if rule == "reflection" and n > 1:
        period = 2.0 * (n - 1)
        places = np.mod(places, period)
        places = np.minimum(places, period - places)
    elif rule == "symmetric":
        from_edge = np.mod(places + 0.5, 2.0 * n)
        places = np.minimum(from_edge, 2.0 * n - from_edge) - 0.5
    return np.asarray(np.rint(np.clip(places, 0, n - 1)), dtype=np.int64)
