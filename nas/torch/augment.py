"""Augmentation of batches on the device: resized crops, colour jitter, RandAugment, mixup and cutmix.

Each batch's randomness comes from a generator of its own on the CPU, so that nothing here waits for a GPU, and what a
batch becomes depends on nothing before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a grey image (ITU-R BT.601)."""

STRETCH = 4 / 3
"""A resized crop is at most that many times wider than high, or higher than wide, if the image is not more so."""

LARGEST = 10.0
"""Magnitude at which an operation is at its strongest."""


# -- colours: x (N, C, H, W) in 0..1, amounts (N, 1, 1, 1) -------------------------------------------------------------


def grey(x: Tensor) -> Tensor:
    """Brightness of each pixel, (N, 1, H, W)."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    return (x * x.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)


def blend(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """`factor` of the image and the rest of the other: above 1 away from it."""
    return torch.lerp(other.expand_as(x), x, factor).clamp_(0, 1)


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Black at 0, unchanged at 1."""
    return (x * factor).clamp_(0, 1)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """The mean grey at 0, unchanged at 1."""
    return blend(x, grey(x).mean((2, 3), keepdim=True), factor)


def saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Grey at 0, unchanged at 1."""
    return blend(x, grey(x), factor)


def hue(x: Tensor, turn: Tensor) -> Tensor:
    """Colours turned on the wheel of HSV, 1 being once around; grey images stay."""
    if x.shape[1] != 3:
        return x
    red, green, blue = (x[:, i : i + 1] for i in range(3))
    highest = x.amax(1, keepdim=True)
    span = highest - x.amin(1, keepdim=True)
    one = span.clamp_min(1e-8)  # of a grey pixel, which has no hue, any will do
    sixths = torch.where(highest == green, 2 + (blue - red) / one, 4 + (red - green) / one)
    sixths = torch.where(highest == red, (green - blue) / one, sixths) + 6 * turn
    distance = (sixths + x.new_tensor([5, 3, 1]).view(1, 3, 1, 1)).remainder(6)
    return highest - span * torch.minimum(distance, 4 - distance).clamp_(0, 1)


def sharpness(x: Tensor, factor: Tensor) -> Tensor:
    """Smoothed at 0, unchanged at 1; the border stays."""
    channels = x.shape[1]
    kernel = x.new_tensor([[1.0, 1, 1], [1, 5, 1], [1, 1, 1]]).div_(13).expand(channels, 1, 3, 3)
    if min(x.shape[2:]) < 3:
        return x
    smooth = x.clone()
    smooth[:, :, 1:-1, 1:-1] = functional.conv2d(x, kernel, groups=channels)
    return blend(x, smooth, factor)


def posterize(x: Tensor, bits: Tensor) -> Tensor:
    """Only the first `bits` of each byte are kept."""
    step = 2.0 ** (8 - bits.round())
    return (x * 255).div_(step).floor_().mul_(step).div_(255)


def solarize(x: Tensor, threshold: Tensor) -> Tensor:
    """Pixels from the threshold on are inverted."""
    return torch.where(x < threshold, x, 1 - x)


def autocontrast(x: Tensor, _: Tensor) -> Tensor:
    """Each channel stretched to 0..1; a constant one stays."""
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    span = high - low
    return torch.where(span > 0, (x - low) / span.clamp_min(1e-6), x)


def equalize(x: Tensor, _: Tensor) -> Tensor:
    """Each channel's histogram made flat, as Pillow does; a constant one stays."""
    level = (x * 255).round_().long().flatten(2)
    counts = level.new_zeros(*level.shape[:2], 256).scatter_add_(2, level, torch.ones_like(level))
    highest = 255 - counts.flip(2).ne(0).int().argmax(2, keepdim=True)
    step = (counts.sum(2, keepdim=True) - counts.gather(2, highest)) // 255
    below = counts.cumsum(2) - counts
    table = ((below + step // 2) // step.clamp_min(1)).clamp_(max=255)
    flat = table.gather(2, level).to(x.dtype).div_(255).view_as(x)
    return torch.where(step.unsqueeze(3) > 0, flat, x)


# -- geometry: per image an affine map of positions, (N, 2, 3), in units of half the image -----------------------------


def _affine(
    x: Tensor, rows: tuple[tuple[Tensor | float, ...], tuple[Tensor | float, ...]], *, beyond: str = "zeros"
) -> Tensor:
    """Bilinear; `beyond` the image is black ("zeros") or as at its "border"."""
    count = len(x)
    theta = torch.stack([
        torch.stack([torch.as_tensor(v, dtype=x.dtype, device=x.device).expand(count) for v in row], 1) for row in rows
    ], 1)  # fmt: skip
    grid = functional.affine_grid(theta, list(x.shape), align_corners=False)
    return functional.grid_sample(x, grid, mode="bilinear", padding_mode=beyond, align_corners=False)


def resized_crop(x: Tensor, smallest: float, generator: torch.Generator) -> Tensor:
    """A random part of each image, stretched to the whole (Szegedy et al. 2015), bilinear.

    Arguments:
        x: (N, C, H, W).
        smallest: share of the area that the part has at least (0..1); the share is uniform from there to 1, and the
            logarithm of its width over its height within `STRETCH`, or as near to what was drawn as fits.
        generator: on the CPU.
    """
    height, width = x.shape[2:]
    share, shape, across, down = torch.rand(4, len(x), generator=generator).unbind()
    area = (smallest + (1 - smallest) * share) * height * width
    ratio = torch.clamp(STRETCH ** (2 * shape - 1), area / height**2, width**2 / area)
    wide, high = (area * ratio).sqrt() / width, (area / ratio).sqrt() / height
    left, top = (1 - wide) * (2 * across - 1), (1 - high) * (2 * down - 1)  # of the centre, in half images
    wide, high, left, top = (v.to(x.device) for v in (wide, high, left, top))
    return _affine(x, ((wide, 0.0, left), (0.0, high, top)), beyond="border")


def _rotate(x: Tensor, angle: Tensor) -> Tensor:
    a, (height, width) = angle.flatten(), x.shape[2:]
    return _affine(x, ((a.cos(), -a.sin() * height / width, 0.0), (a.sin() * width / height, a.cos(), 0.0)))


class _Operation(NamedTuple):
    """A function of images and an amount, and what the amount is at magnitudes 0 and 10; `signed`: or the opposite."""

    function: Callable[[Tensor, Tensor], Tensor]
    least: float
    most: float
    signed: bool = True


def _around_one(function: Callable[[Tensor, Tensor], Tensor]) -> _Operation:
    return _Operation(lambda x, change: function(x, 1 + change), 0.0, 0.9)


OPERATIONS: Mapping[str, _Operation] = {
    "identity": _Operation(lambda x, _: x, 0, 0),
    "shear_x": _Operation(lambda x, a: _affine(x, ((1.0, a.flatten(), 0.0), (0.0, 1.0, 0.0))), 0, 0.3),
    "shear_y": _Operation(lambda x, a: _affine(x, ((1.0, 0.0, 0.0), (a.flatten(), 1.0, 0.0))), 0, 0.3),
    "translate_x": _Operation(lambda x, a: _affine(x, ((1.0, 0.0, a.flatten()), (0.0, 1.0, 0.0))), 0, 0.66),
    "translate_y": _Operation(lambda x, a: _affine(x, ((1.0, 0.0, 0.0), (0.0, 1.0, a.flatten()))), 0, 0.66),
    "rotate": _Operation(_rotate, 0, math.radians(30)),
    "brightness": _around_one(brightness),
    "contrast": _around_one(contrast),
    "color": _around_one(saturation),
    "sharpness": _around_one(sharpness),
    "posterize": _Operation(posterize, 8, 4, signed=False),
    "solarize": _Operation(solarize, 1, 0, signed=False),
    "autocontrast": _Operation(autocontrast, 0, 0),
    "equalize": _Operation(equalize, 0, 0),
}
"""The operations of RandAugment with the ranges of its authors (translations: a third of the image)."""


def rand_augment(x: Tensor, count: int, magnitude: float, generator: torch.Generator) -> Tensor:
    """Apply `count` random operations to each image (Cubuk et al. 2020), each image its own.

    Arguments:
        x: (N, C, H, W) in 0..1.
        magnitude: 0 to 10, the same for all; its sign is random.
        generator: on the CPU.
    """
    names = list(OPERATIONS)
    share = magnitude / LARGEST
    x = x.clone()
    for _ in range(count):
        chosen = torch.randint(len(names), (len(x),), generator=generator)
        signs = torch.randint(2, (len(x),), generator=generator) * 2.0 - 1
        for index in sorted(set(chosen.tolist())):
            operation = OPERATIONS[names[index]]
            images = (chosen == index).nonzero().flatten()
            amount = operation.least + share * (operation.most - operation.least)
            amounts = amount * (signs[images] if operation.signed else torch.ones(len(images)))
            images, amounts = images.to(x.device), amounts.to(x.device, x.dtype).view(-1, 1, 1, 1)
            x[images] = operation.function(x[images], amounts)
    return x


def color_jitter(x: Tensor, strength: float, generator: torch.Generator, *, turn: float = 0.0) -> Tensor:
    """Brightness, contrast and saturation of each image times 1 - strength to 1 + strength; x in 0..1.

    `turn`: and its hue turned by up to that share of the wheel, in either direction.
    """

    def draw(most: float) -> Tensor:
        drawn = most * (2 * torch.rand(len(x), 1, 1, 1, generator=generator) - 1)
        return drawn.to(x.device, x.dtype)

    if strength:
        for function in (brightness, contrast, saturation):
            x = function(x, 1 + draw(strength))
    return hue(x, draw(turn)) if turn else x


# -- mixing two images -------------------------------------------------------------------------------------------------


def mix(
    x: Tensor, y: Tensor, classes: int, *, mixup: float, cutmix: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Mix each image of a batch with another: mixup (Zhang et al. 2018) or cutmix (Yun et al. 2019).

    Arguments:
        x: (N, C, H, W).
        y: (N,) labels.
        mixup, cutmix: parameters of the beta distributions of the share, one per batch; 0 for never. With both, either
            has half of the batches.
        generator: on the CPU.

    Returns the images and the shares of the classes, (N, classes).
    """
    uses_cutmix = cutmix > 0 and (mixup == 0 or float(torch.rand((), generator=generator)) < 0.5)
    share = _beta(cutmix if uses_cutmix else mixup, generator)
    order = torch.randperm(len(x), generator=generator).to(x.device)
    if uses_cutmix:
        height, width = x.shape[2:]
        side = math.sqrt(1 - share)
        top, left = (torch.rand(2, generator=generator) * torch.tensor([height, width])).tolist()
        rows = slice(max(0, round(top - side * height / 2)), min(height, round(top + side * height / 2)))
        columns = slice(max(0, round(left - side * width / 2)), min(width, round(left + side * width / 2)))
        x = x.clone()
        x[:, :, rows, columns] = x[order][:, :, rows, columns]
        share = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
    else:
        x = torch.lerp(x[order], x, share)
    target = functional.one_hot(y, classes).to(torch.float32)
    return x, torch.lerp(target[order], target, share)


def _beta(alpha: float, generator: torch.Generator) -> float:
    """A draw of Beta(alpha, alpha), as a ratio of gamma variables."""
    concentration = torch.full((2,), alpha, dtype=torch.float64)
    first, second = torch._standard_gamma(concentration, generator=generator).clamp_min(1e-300).tolist()
    return float(first / (first + second))
