"""oneDNN's convolutions, through torch's operators: every call of them is here, with what they compute rightly.

These operators are internal to torch and take much on trust; and oneDNN 3.12, in torch 2.13, has faults of its own.
tests/fuzz/fuzz.py finds them.

| what is handed over                                      | what happens                                             |
|----------------------------------------------------------|----------------------------------------------------------|
| a vector with a stride                                   | is read as if it had none                                |
| any stride along an axis of length 1                     | decides about the layout, or raises                      |
| one input channel in a channels_last map or weight       | wrong with a stride; with a residual raises in 16 bits   |
| output columns whose windows lie outside the map         | the process ends, if all of a tile are (oneDNN 5942)     |
| to the gradients, a dilation of a kernel of length 1     | wrong, or writes elsewhere                               |
| to the gradient to a 1x1 weight, a stride                | writes elsewhere with few channels, where threads are    |
| to the gradient to a weight in bfloat16, taps that reach | memory that nothing was written to                       |
| no input, or channels that are no multiple of 16         |                                                          |
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from deeplab_fast._conv_arguments import Epilogue, Geometry, every_tap_meets, every_window_meets, format_of, output_size

LAST = torch.channels_last


def canonical(tensor: Tensor, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
    """`tensor` in a memory format, with its strides also along axes of length 1, where torch allows any."""
    tensor = tensor.contiguous(memory_format=memory_format)
    axes = (0, 2, 3, 1) if memory_format == LAST else range(tensor.ndim)
    strides, step = [0] * tensor.ndim, 1
    for axis in reversed(axes):
        strides[axis] = step
        step *= tensor.shape[axis]
    return tensor if list(tensor.stride()) == strides else tensor.as_strided(tensor.shape, strides)


def vector(values: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """One number a channel as internal operators take them, torch's and our own."""
    return None if values is None else canonical(values.to(dtype))


def pad_where_windows_miss(x: Tensor, weight: Tensor, geometry: Geometry) -> tuple[Tensor, Geometry] | None:
    """x and geometry as `convolution` takes them: where an output sees nothing but padding, x has it written out.

    None if that were vast: such a convolution is not for oneDNN.
    """
    if every_window_meets(x, weight, geometry):
        return x, geometry
    padding = geometry.padding
    height, width = output_size(x, weight, geometry)
    pixels = (x.shape[2] + 2 * padding[0]) * (x.shape[3] + 2 * padding[1])
    if pixels > 4 * max(height * width, x.shape[2] * x.shape[3]):
        return None
    return pad(x, (padding[1], padding[1], padding[0], padding[0])), geometry._replace(padding=(0, 0))


def pack(weight: Tensor, x: Tensor, geometry: Geometry) -> Tensor:
    """A weight as `convolution` takes it with the same geometry, for maps of the dtype of the weight.

    Any size of map can use it: oneDNN changes the layout where another is better than that for the size of x.
    """
    weight = canonical(_with_two_channels(weight), LAST)
    if weight.dtype == torch.float32:  # oneDNN's own layout gains at most 2 % there
        return weight
    size = [x.shape[0], weight.shape[1], *x.shape[2:]]
    return torch.ops.mkldnn._reorder_convolution_weight(weight, *_in_order_of_torch(geometry), size)


def convolution(x: Tensor, packed: Tensor, geometry: Geometry, epilogue: Epilogue) -> Tensor:
    """relu(conv2d(x, weight) + bias + residual), packed being `pack(weight, …)`; in the dtype of x and the weight.

    The scale of the epilogue is for the weight: it is not looked at.
    """
    x = canonical(_with_two_channels(x), LAST)
    bias, numbers = vector(epilogue.bias, x.dtype), _in_order_of_torch(geometry)
    convolve = torch.ops.mkldnn._convolution_pointwise
    if epilogue.residual is None:
        return convolve(x, packed, bias, *numbers, "relu" if epilogue.relu else "none", [], "")
    residual = canonical(epilogue.residual.to(x.dtype), LAST)
    then = "relu" if epilogue.relu else None
    return convolve.binary(x, residual, packed, bias, *numbers, "add", 1.0, then, [], None)


def weight_gradient_is_right(x: Tensor, weight: Tensor, geometry: Geometry, in_bfloat16: bool) -> bool:
    """Whether `convolution_backward` computes the gradient to this weight."""
    if weight.shape[2] == weight.shape[3] == 1 or not every_window_meets(x, weight, geometry):
        return False
    return not in_bfloat16 or (x.shape[1] % 16 == 0 and every_tap_meets(x, weight, geometry))


def convolution_backward(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, need_x: bool, need_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Of conv2d(x, weight): the gradients to x and to the weight, where needed."""
    channels, memory_format = x.shape[1], format_of(x)
    x, weight = (canonical(_with_two_channels(tensor), memory_format) for tensor in (x, weight))
    stride, padding, dilation = geometry
    dilation = [rate if length > 1 else 1 for rate, length in zip(dilation, weight.shape[2:], strict=True)]
    to_x, to_weight, _ = torch.ops.aten.convolution_backward(
        canonical(grad, memory_format), x, weight, None, stride, padding, dilation, False, [0, 0], 1,
        [need_x, need_weight, False],
    )  # fmt: skip
    to_x, to_weight = (None if gradient is None else gradient[:, :channels] for gradient in (to_x, to_weight))
    return to_x, to_weight


def _in_order_of_torch(geometry: Geometry) -> tuple[list[int], list[int], list[int], int]:
    """Padding, stride, dilation and groups, as the internal operators take them."""
    return list(geometry.padding), list(geometry.stride), list(geometry.dilation), 1


def _with_two_channels(maps: Tensor) -> Tensor:
    """Maps, or a weight; with a second input channel of zeros if there is one: from two on layouts differ."""
    return pad(maps, (0, 0, 0, 0, 0, 1)) if maps.shape[1] == 1 else maps
