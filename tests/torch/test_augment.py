"""Augmentation: each operation against Pillow's, and what may not change."""

from __future__ import annotations

import colorsys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from nas.torch import augment
from nas.torch.augment import OPERATIONS, STRETCH, color_jitter, mix, rand_augment, resized_crop
from nas.torch.data import Split
from nas.torch.loader import Augment, Batches
from nas.torch.recipe import Recipe


def pictures(count: int = 3, channels: int = 3, size: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(20, 230, (count, channels, size, size), generator=generator, dtype=torch.uint8)


def by_pillow(images: Tensor, function: Callable[[Image.Image], Image.Image]) -> Tensor:
    done = [np.asarray(function(Image.fromarray(x.permute(1, 2, 0).numpy()))) for x in images]
    return torch.from_numpy(np.stack(done)).permute(0, 3, 1, 2)


def by_us(images: Tensor, function: Callable[[Tensor, Tensor], Tensor], amount: float) -> Tensor:
    return 255 * function(images.float() / 255, torch.full((len(images), 1, 1, 1), amount))


@pytest.mark.parametrize(
    ("ours", "amount", "theirs"),
    [
        (augment.brightness, 1.4, lambda image: ImageEnhance.Brightness(image).enhance(1.4)),
        (augment.contrast, 0.4, lambda image: ImageEnhance.Contrast(image).enhance(0.4)),
        (augment.saturation, 1.7, lambda image: ImageEnhance.Color(image).enhance(1.7)),
        (augment.sharpness, 0.3, lambda image: ImageEnhance.Sharpness(image).enhance(0.3)),
        (augment.posterize, 3, lambda image: ImageOps.posterize(image, 3)),
        (augment.solarize, 100 / 255, lambda image: ImageOps.solarize(image, 100)),
        (augment.autocontrast, 0, ImageOps.autocontrast),
        (augment.equalize, 0, ImageOps.equalize),
    ],
)
def test_operations_are_pillows(
    ours: Callable[[Tensor, Tensor], Tensor], amount: float, theirs: Callable[[Image.Image], Image.Image]
) -> None:
    images = pictures()
    found, expected = by_us(images, ours, amount), by_pillow(images, theirs).float()
    assert not torch.equal(expected, images.float())
    assert float((found - expected).abs().max()) < 1.6  # Pillow rounds in between


def test_a_constant_picture_survives_all_operations() -> None:
    grey = torch.full((1, 3, 8, 8), 0.5)
    for name in ("autocontrast", "equalize", "contrast", "color", "sharpness"):
        assert torch.allclose(OPERATIONS[name].function(grey, torch.full((1, 1, 1, 1), 0.3)), grey, atol=1e-6), name


def test_geometry_moves_each_image_by_its_own_amount() -> None:
    x = torch.zeros(2, 1, 5, 5)
    x[:, :, 2, 4] = 1
    moved = OPERATIONS["translate_x"].function(x, torch.tensor([0.0, 0.4]).view(-1, 1, 1, 1))
    assert torch.allclose(moved[0], x[0], atol=1e-5)
    assert float(moved[1, 0, 2, 3]) == pytest.approx(1, abs=1e-5)
    turned = OPERATIONS["rotate"].function(x, torch.full((2, 1, 1, 1), torch.pi / 2))
    assert float(turned[0, 0, :, 2].sum()) == pytest.approx(1, abs=1e-4)
    wide = torch.zeros(1, 1, 5, 9)
    wide[0, 0, 2, 6] = 1  # two pixels from the centre stay two pixels from it
    assert float(OPERATIONS["rotate"].function(wide, torch.full((1, 1, 1, 1), torch.pi / 2))[0, 0, :, 4].sum()) > 0.99


def test_rand_augment_is_seeded_bounded_and_of_every_kind() -> None:
    x = pictures(200).float() / 255

    def once(seed: int) -> Tensor:
        return rand_augment(x, 1, 9, torch.Generator().manual_seed(seed))

    first = once(0)
    assert torch.equal(first, once(0))
    assert not torch.equal(first, once(1))
    assert float(first.min()) >= 0
    assert float(first.max()) <= 1
    same = (first - x).flatten(1).abs().amax(1) < 1e-6
    assert 1 / 28 < float(same.float().mean()) < 1 / 7  # the identity is one of fourteen


def test_a_resized_crop_is_a_part_of_its_size_stretched() -> None:
    height, width = 24, 40
    down, across = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    x = torch.stack([across, down]).expand(400, 2, height, width)  # each pixel says where it is
    done = resized_crop(x, 0.25, torch.Generator().manual_seed(0))
    assert torch.equal(done, resized_crop(x, 0.25, torch.Generator().manual_seed(0)))
    step = done[:, 0, 0, 20] - done[:, 0, 0, 19]  # pixels of the image per pixel of the result
    rise = done[:, 1, 12, 0] - done[:, 1, 11, 0]
    straight = done[:, 0, :, 1:-1].diff(dim=2)[:, :, 8:-8]
    assert torch.allclose(straight, step.view(-1, 1, 1).expand_as(straight), atol=1e-3)
    area, ratio = step * rise, step * width / (rise * height)
    assert float(area.min()) == pytest.approx(0.25, abs=0.02)
    assert float(area.max()) == pytest.approx(1, abs=0.02)
    assert float(area.mean()) == pytest.approx(0.625, abs=0.03)
    fits = (step < 0.999) & (rise < 0.999)
    assert 0.2 < float(fits.float().mean()) < 0.9
    assert float(ratio[fits].max()) <= STRETCH + 1e-2
    assert float(ratio[fits].min()) >= 1 / STRETCH - 1e-2
    assert float(ratio.max()) <= width / height + 1e-2  # a higher part of that area there is none
    centre = done[:, :, 11:13, 19:21].mean((2, 3))
    room = torch.stack([(1 - step) * width / 2, (1 - rise) * height / 2], 1)
    place = ((centre - torch.tensor([width / 2, height / 2])) / room.clamp_min(1e-3))[fits]
    assert float(place.abs().max()) <= 1.01
    assert float(place.abs().mean()) == pytest.approx(0.5, abs=0.05)  # uniform within what fits


def test_a_resized_crop_of_the_recipe_replaces_the_shifts() -> None:
    assert Augment.of(Recipe(augment=True, resized_crop=0.5), (3, 16, 16)) == Augment(0, True, resized_crop=0.5)
    split = Split(pictures(8), torch.arange(8))
    common = {"mean": [0.0] * 3, "std": [1 / 255] * 3, "batch": 8, "seed": 3}
    ((plain, order),) = Batches(split, **common, augment=Augment(0, False)).epoch(0)  # type: ignore[arg-type]
    ((x, y),) = Batches(split, **common, augment=Augment(0, False, resized_crop=0.3)).epoch(0)  # type: ignore[arg-type]
    assert torch.equal(y, order)
    assert (x - plain).flatten(1).abs().amax(1).min() > 10


def test_jitter_of_nothing_changes_nothing() -> None:
    x = pictures().float() / 255
    generator = torch.Generator().manual_seed(0)
    assert torch.allclose(color_jitter(x, 0.0, generator), x, atol=1e-6)
    assert not torch.allclose(color_jitter(x, 0.5, generator), x, atol=0.05)


def test_hue_turns_colours_as_colorsys_does() -> None:
    x = torch.cat([pictures(2, size=4).float() / 255, torch.full((1, 3, 4, 4), 0.3)])
    turned = augment.hue(x, torch.tensor([0.2, -0.35, 0.5]).view(3, 1, 1, 1))
    for image, result, turn in zip(x, turned, (0.2, -0.35, 0.5), strict=True):
        for pixel, found in zip(image.flatten(1).T.tolist(), result.flatten(1).T.tolist(), strict=True):
            h, s, v = colorsys.rgb_to_hsv(*pixel)
            assert found == pytest.approx(colorsys.hsv_to_rgb((h + turn) % 1, s, v), abs=1e-5)
    grey = x[:, :1]
    assert augment.hue(grey, torch.full((3, 1, 1, 1), 0.3)) is grey


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_targets_are_the_shares_of_the_pixels(kind: str) -> None:
    y = torch.arange(4)
    x = y.float().view(4, 1, 1, 1).expand(4, 3, 8, 8).contiguous()
    shares, blended = [], False
    for seed in range(20):
        options = {"mixup": 0.0, "cutmix": 0.0, kind: 1.0}
        mixed, target = mix(x, y, 5, **options, generator=torch.Generator().manual_seed(seed))
        assert torch.allclose(target.sum(1), torch.ones(4))
        assert torch.allclose(mixed.mean((1, 2, 3)), target @ torch.arange(5.0), atol=1e-5)
        shares.append(float(target[0, 0]))
        blended |= not torch.equal(mixed, mixed.round())
    assert blended is (kind == "mixup")
    assert len(set(shares)) > 5


def test_batches_repeat_an_epoch_whatever_came_before() -> None:
    split = Split(pictures(12), torch.arange(12) % 3)
    recipe = Recipe(augment=True, jitter=0.4, hue=0.1, randaugment=2, mixup=0.3, cutmix=1.0)
    options = {"mean": [0.4] * 3, "std": [0.2] * 3, "batch": 4, "augment": Augment.of(recipe, (3, 16, 16))}
    one, other = (Batches(split, **options, classes=3, seed=1) for _ in range(2))  # type: ignore[arg-type]
    list(other.epoch(0))
    for (x, y), (a, b) in zip(one.epoch(1), other.epoch(1), strict=True):
        assert torch.equal(x, a)
        assert torch.equal(y, b)
        assert y.shape == (4, 3)
        assert torch.isfinite(x).all()


def test_mixing_leaves_order_and_crops_alone() -> None:
    """What was drawn before these augmentations were there is drawn still."""
    split = Split(pictures(8), torch.arange(8) % 4)
    common = {"mean": [0.4] * 3, "std": [0.2] * 3, "batch": 4, "seed": 3}
    plain = Batches(split, **common, augment=Augment(2, True))  # type: ignore[arg-type]
    faint = Batches(split, **common, augment=Augment(2, True, jitter=1e-6))  # type: ignore[arg-type]
    for (x, y), (a, b) in zip(plain.epoch(0), faint.epoch(0), strict=True):
        assert torch.equal(y, b)
        assert torch.allclose(x, a, atol=1e-3)
