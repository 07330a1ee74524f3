"""Every weight matmul of the code base: Dense, Einsum and Conv, with room for a low-rank term.

Parameters are float32; `dtype` is the compute dtype, an argument from the first layer. When a
``lora`` collection holds ``<path of the layer>/{a, b}``, the layer adds ``(x·a)·b`` (LoRA, Hu et
al. 2021). It is added inside the layer, on the activations: merging a·b into stacked weights before
a scan would cost the memory that LoRA saves. Without that collection nothing changes, neither the
tree of parameters nor the program. `a` has the kernel's contracted axes and then the rank r; `b`
has r and then the kernel's output axes:

    Dense  [D, F]                          a [D, r]      b [r, F]
    Einsum "BLD,DNH->BLNH"  [D, N, H]      a [D, r]      b [r, N, H]
    Einsum "BLNH,NHD->BLD"  [N, H, D]      a [N, H, r]   b [r, D]
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Init = Callable[..., jax.Array]
DEVIATION_FLOOR = 1e-5  # added to a deviation before dividing by it


def _default_init(in_axes: Sequence[int], out_axes: Sequence[int]) -> Init:
    """Lecun normal whose fan-in counts every contracted axis of the kernel."""
    return nn.initializers.variance_scaling(
        1.0, "fan_in", "truncated_normal", in_axis=tuple(in_axes), out_axis=tuple(out_axes)
    )


def xavier(in_axes: Sequence[int], out_axes: Sequence[int]) -> Init:
    """Xavier uniform over every contracted and free axis of the kernel (Glorot & Bengio 2010)."""
    return nn.initializers.variance_scaling(
        1.0, "fan_avg", "uniform", in_axis=tuple(in_axes), out_axis=tuple(out_axes)
    )


class Dense(nn.Module):
    """[..., D] → [..., features] in `dtype`."""

    features: int
    use_bias: bool = True
    dtype: Any = jnp.float32
    kernel_init: Init = _default_init((0,), (1,))
    bias_init: Init = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        x = x.astype(self.dtype)
        y = x @ kernel.astype(self.dtype)
        if self.has_variable("lora", "a"):
            y = y + low_rank(self, x, "...D,Dr->...r", "...r,rF->...F")
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,), jnp.float32)
            y = y + _spread(bias.astype(self.dtype), y.ndim)
        return y


class Einsum(nn.Module):
    """``einsum(equation, x, kernel)`` in `dtype`, e.g. "BLD,DNH->BLNH" with a kernel [D, N, H].

    `bias_shape`, if given, is the shape of a bias on the trailing axes of the result. Raises
    ValueError when an axis stands in x, kernel and result (a batched kernel has no low-rank form).
    """

    equation: str
    shape: tuple[int, ...]
    dtype: Any = jnp.float32
    bias_shape: tuple[int, ...] | None = None
    kernel_init: Init | None = None
    bias_init: Init = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        contracted, free, down, up = _low_rank_equations(self.equation)
        init = self.kernel_init or _default_init(contracted, free)
        kernel = self.param("kernel", init, tuple(self.shape), jnp.float32)
        x = x.astype(self.dtype)
        y = jnp.einsum(self.equation, x, kernel.astype(self.dtype))
        if self.has_variable("lora", "a"):
            y = y + low_rank(self, x, down, up)
        if self.bias_shape is not None:
            bias = self.param("bias", self.bias_init, tuple(self.bias_shape), jnp.float32)
            y = y + _spread(bias.astype(self.dtype), y.ndim)
        return y


class Conv(nn.Module):
    """2D convolution, [..., height, width, D] → [..., height', width', features] in `dtype`.

    `padding` as in `jax.lax.conv_general_dilated`. Leading axes are folded into one. With
    `standardize` each output feature's weights are brought to mean 0 and deviation 1 before use
    (weight standardization, Qiao et al. 2019; the ResNets of ViT, Octo); the parameter stays as is.
    """

    features: int
    kernel_size: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (1, 1)
    padding: Any = "SAME"
    dtype: Any = jnp.float32
    use_bias: bool = True
    kernel_init: Init = _default_init((0, 1, 2), (3,))
    standardize: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        if self.standardize:
            kernel = kernel - jnp.mean(kernel, axis=(0, 1, 2), keepdims=True)
            kernel = kernel / (jnp.std(kernel, axis=(0, 1, 2), keepdims=True) + DEVIATION_FLOOR)
        lead = x.shape[:-3]
        y = jax.lax.conv_general_dilated(
            x.reshape(-1, *x.shape[-3:]).astype(self.dtype),
            kernel.astype(self.dtype),
            tuple(self.strides),
            self.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        y = y.reshape(*lead, *y.shape[1:])
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32)
            y = y + _spread(bias.astype(self.dtype), y.ndim)
        return y


def low_rank(layer: nn.Module, x: jax.Array, down: str, up: str) -> jax.Array:
    """The layer's low-rank term (x·a)·b from its ``lora`` collection, in x's dtype."""
    a, b = layer.get_variable("lora", "a"), layer.get_variable("lora", "b")
    return jnp.einsum(up, jnp.einsum(down, x, a.astype(x.dtype)), b.astype(x.dtype))


@functools.cache
def _low_rank_equations(equation: str) -> tuple[tuple[int, ...], tuple[int, ...], str, str]:
    """(contracted kernel axes, free kernel axes, equation of x·a, equation of (x·a)·b)."""
    operands, result = equation.replace(" ", "").split("->")
    x, kernel = operands.split(",")
    if set(kernel) & set(x) & set(result):
        raise ValueError(
            f"nn.linear.Einsum: {equation!r} keeps a kernel axis that x has too; "
            "every kernel axis is either contracted or new"
        )
    contracted = "".join(letter for letter in kernel if letter in x)
    free = "".join(letter for letter in kernel if letter not in x)
    rank = next(letter for letter in "rzyxwvu" if letter not in equation)
    kept = "".join(letter for letter in result if letter not in free)
    down = f"{x},{contracted}{rank}->{kept}{rank}"
    up = f"{kept}{rank},{rank}{free}->{result}"
    return (
        tuple(kernel.index(letter) for letter in contracted),
        tuple(kernel.index(letter) for letter in free),
        down,
        up,
    )


def _spread(bias: jax.Array, ndim: int) -> jax.Array:
    """The bias with leading axes of size 1, so that no rank is promoted silently."""
    return bias.reshape((1,) * (ndim - bias.ndim) + bias.shape)
