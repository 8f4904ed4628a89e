"""A folder of class folders of images, decoded by a pool of threads when they are asked for."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from nas.errors import DataError
from nas.torch.data.parts import Bytes, Indices, Part, Raw, first_line

if TYPE_CHECKING:
    from PIL.Image import Image

S = TypeVar("S")
T = TypeVar("T")

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
SPLITS = {"train": "train", "test": "test"} | dict.fromkeys(("val", "valid", "validation"), "validation")
LARGEST = 224  # pixels: the longer side of what is kept, unless a size is asked for
GREY_MODES = ("1", "L", "LA", "I;16", "I;16L", "I;16B", "I;16N")
ORIENTATION = 0x0112  # the EXIF tag of how the camera was held; from 5 on, height and width are exchanged
CHUNK = 64  # files per task of the pool


class Header(NamedTuple):
    """What a file says about itself before its pixels are decoded."""

    grey: bool
    height: int
    width: int


@dataclass(frozen=True, eq=False)
class Files:
    """Images on the disk; indexing decodes them."""

    paths: Sequence[str]
    grey: bool
    height: int
    width: int

    def __getitem__(self, indices: Indices, /) -> Bytes:
        """Decode the files at `indices`: (len(indices), 1 or 3, height, width)."""
        images = np.empty((len(indices), self.height, self.width, 1 if self.grey else 3), np.uint8)

        def decode(job: tuple[int, int]) -> None:
            place, index = job
            images[place] = _open(self.paths[index], self._pixels)

        _in_threads(decode, list(enumerate(indices.tolist())))
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2))

    def _pixels(self, image: Image) -> Bytes:
        from PIL import Image, ImageOps

        size = self.width, self.height
        image.draft(None, (2 * max(size), 2 * max(size)))  # a large JPEG is decoded at a fraction of its size
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):  # Pillow would clip 16 bits at 255
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        elif image.mode in ("I", "F"):
            raise ValueError("32 bits per pixel; save it with 8")
        if "transparency" in image.info:
            image = image.convert("RGBA")
        image = image.convert("L" if self.grey else "RGB")
        if image.size != size:
            image = image.resize(size, Image.Resampling.BILINEAR)
        return np.asarray(image).reshape(self.height, self.width, -1)


def read_folder(root: Path, size: int | None) -> Raw:
    """Find the images, read their headers, and settle one size and colour for all of them.

    A class is a folder; its images may lie in folders of their own. With train/, these parts are kept,
    and a class is a folder of train/. Images of several sizes are stretched to the median height and
    width of all, shrunk if needed to `LARGEST`; with `size`, to size x size. If any image has colour,
    all are read as RGB. Hidden files and files that are no images are skipped.
    """
    folders = _subfolders(root)
    parts = {"train": root}
    if "train" in folders and _subfolders(root / "train"):
        parts = {SPLITS[name]: root / name for name in folders if name in SPLITS}
    elif folders and set(folders) <= set(SPLITS):
        raise DataError(f"{root}: expected a train folder with a folder of images per class, found {folders}")
    class_names = _subfolders(parts["train"])
    if not class_names:
        raise DataError(f"{root}: expected a folder of images per class, found no folders")
    label_of = {name: label for label, name in enumerate(class_names)}
    found = {part: _images(folder, label_of) for part, folder in parts.items()}
    counts = np.bincount(found["train"][1], minlength=len(class_names))
    for name in np.array(class_names)[counts == 0][:1]:
        raise DataError(f"{parts['train'] / name}: expected images ({' '.join(SUFFIXES)}), found none")
    for part, (paths, _) in found.items():
        if not paths:
            raise DataError(f"{parts[part]}: found no images in folders named like the training classes")

    headers = _in_threads(_header, [path for paths, _ in found.values() for path in paths])
    grey = all(header.grey for header in headers)
    height, width, note = _common_size(headers, size)
    if not grey and any(header.grey for header in headers):
        note += ("; " if note else "") + "grey images read as RGB among the others"
    ready = {part: Part(Files(paths, grey, height, width), labels) for part, (paths, labels) in found.items()}
    return Raw(tuple(class_names), **ready, note=note)


def _subfolders(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _images(folder: Path, label_of: Mapping[str, int]) -> tuple[list[str], NDArray[np.int64]]:
    paths, labels = [], []
    for name in _subfolders(folder):
        if name not in label_of:
            raise DataError(f"{folder / name}: labels out of range: no class of that name in training")
        for parent, folders, files in os.walk(folder / name, onerror=_raise):
            # the order of the walk decides the splits: it must not be the file system's
            folders[:] = sorted(child for child in folders if child[0] != ".")
            chosen = sorted(file for file in files if file.lower().endswith(SUFFIXES) and file[0] != ".")
            paths += [os.path.join(parent, file) for file in chosen]
            labels += [label_of[name]] * len(chosen)
    return paths, np.array(labels, np.int64)


def _raise(error: OSError) -> NoReturn:
    raise error


def _common_size(headers: Sequence[Header], size: int | None) -> tuple[int, int, str]:
    """Return height, width, and what has to be done for it, in words."""
    shapes = np.array([(header.height, header.width) for header in headers])
    height, width = np.sort(shapes, axis=0)[len(shapes) // 2].tolist()
    if size is not None:
        height = width = size
    elif max(height, width) > LARGEST:
        scale = LARGEST / max(height, width)
        height, width = max(1, round(height * scale)), max(1, round(width * scale))
    if (shapes == (height, width)).all():
        return height, width, ""
    least, most = shapes.min(axis=0), shapes.max(axis=0)
    span = f"{least[0]}x{least[1]}" + (f" to {most[0]}x{most[1]}" if (least != most).any() else "")
    return height, width, f"images of {span} resized to {height}x{width}"


def _header(path: str) -> Header:
    def read(image: Image) -> Header:
        width, height = image.size
        # looking for a tag where none was announced would decode a PNG, and a TIFF is turned by Pillow
        if "exif" in image.info and image.getexif().get(ORIENTATION, 1) >= 5:
            width, height = height, width
        return Header(image.mode in GREY_MODES, height, width)

    return _open(path, read)


def _open(path: str, read: Callable[[Image], T]) -> T:
    from PIL import Image

    try:
        # not by its path: Pillow would map an uncompressed TIFF, and misread one taken upright
        with open(path, "rb") as file, Image.open(file) as image:
            return read(image)
    except Exception as error:  # decoders of damaged files raise anything
        raise DataError(f"cannot read image {path}: {first_line(error)}; repair or remove it") from error


def _in_threads(function: Callable[[S], T], items: Sequence[S]) -> list[T]:
    """Map in order; the first error by order is raised, so that it is the same every time."""
    chunks = [items[start : start + CHUNK] for start in range(0, len(items), CHUNK)]
    with ThreadPoolExecutor() as pool:
        results = pool.map(lambda chunk: [function(item) for item in chunk], chunks)
        return [result for chunk in results for result in chunk]
