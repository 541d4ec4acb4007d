"""Build the pictures of recipes/compared/clipart-10: drawings and cut-out photographs, 25 classes.

They come from Debian's openclipart-png (public domain) and tuxpaint-stamps-default (GPL-2), 290 MB
that are downloaded and not kept. A class is a few folders of either package, at most 150 pictures;
three in ten are the test set. Drawings that differ in colour or number alone are on one side of the
split. The same packages give the same files.

    python benchmarks/clipart.py data/clipart    # two minutes; 1,769 JPEG files, 16 MB
"""

from __future__ import annotations

import argparse
import os
import random
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from PIL import Image, ImageChops, ImageFile
from rich.progress import track

from adafilter_dist.data.sources.debian import require_unpacked
from adafilter_dist.errors import UserError

PACKAGES = {
    "oc": ("openclipart-png", "usr/share/openclipart/png"),
    "tp": ("tuxpaint-stamps-default", "usr/share/tuxpaint/stamps"),
}
"""The package and its folder of pictures, by the prefix of our file names."""
CLASSES: dict[str, tuple[str, str]] = {
    "mammal": ("animals/mammals", "animals/mammals"),
    "bird": ("animals/birds", "animals/birds"),
    "bug": ("animals/bugs", "animals/insects"),
    "fish": ("animals/fish animals/marine", "animals/fish"),
    "fruit": ("food/fruit", "food/fruit"),
    "vegetable": ("food/vegetables", "food/vegetables"),
    "dessert": ("food/desserts", "food/dessert"),
    "beverage": ("food/beverages", ""),
    "flower": ("plants/flowers", "plants/flowers"),
    "tree": ("plants/trees", "plants/trees"),
    "music": ("recreation/music", "hobbies/music"),
    "sport": ("recreation/sports", "sports"),
    "toy": ("recreation/toys", ""),
    "road_vehicle": (
        "transportation/vehicles",
        "vehicles/auto vehicles/emergency vehicles/construction vehicles/race vehicles/masstransit",
    ),
    "boat": ("transportation/boating", "vehicles/ship"),
    "road_sign": ("transportation/roadsigns", "town/roadsigns"),
    "flag": ("signs_and_symbols/flags", "town/flags"),
    "weather": ("signs_and_symbols/weather", "naturalforces"),
    "arrow": ("shapes/arrows", ""),
    "hardware": ("computer/hardware", "household/electronics"),
    "clothing": ("people/clothing", "clothes"),
    "stickman": ("people/stickmen", ""),
    "smiley": ("people/smilies", "symbols/faces"),
    "bodypart": ("people/bodypart", "people/body_parts"),
    "house": ("buildings/homes", "town/houses"),
    "weapon": ("tools/weapons", "military/ammunition"),
    "tool": ("tools/hand_tools tools/hardware tools/hand", "household/tools"),
    "dishes": ("food/dishes containers", "household/dishes"),
}
"""Folders of each class in either package, separated by blanks."""
MOST, FEWEST = 150, 30
"""Pictures of a class; classes with fewer are left out."""
TEST_SHARE = 0.3
WHITE = (255, 255, 255)


@dataclass(frozen=True)
class Drawing:
    """A picture on white ground, 256 x 256, with what tells near-duplicates: a hash and a name."""

    picture: Image.Image
    source: str
    stem: str
    dhash: int


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="the new folder, with train/ and test/ in it")
    folder: Path = parser.parse_args(words).folder
    try:
        build(folder)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def build(folder: Path) -> None:
    """Fetch both packages and write the pictures. UserError if the folder is there already."""
    if folder.exists():
        raise UserError(f"{folder} is there already; remove it, or name another")
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, so that half a data set never has its name.
    with tempfile.TemporaryDirectory(dir=folder.absolute().parent, prefix=".clipart-") as scratch:
        roots = {}
        for source, (package, pictures) in PACKAGES.items():
            print(f"fetching {package}", flush=True)
            place = Path(scratch, package)
            place.mkdir()
            roots[source] = require_unpacked(package, place) / pictures
        split = {"train": 0, "test": 0}
        finished = Path(scratch, "finished")
        for name in track(CLASSES, "drawing", disable=not sys.stderr.isatty()):
            with _files_of_the_packages():
                drawings = drawings_of(name, roots)
            if len(drawings) < FEWEST:
                continue
            test = test_numbers(drawings)
            for number, drawing in enumerate(drawings):
                part = "test" if number in test else "train"
                split[part] += 1
                target = finished / part / name / f"{drawing.source}_{number:03d}.jpg"
                target.parent.mkdir(parents=True, exist_ok=True)
                drawing.picture.save(target, quality=88)
        os.rename(finished, folder)
    print(f"{folder}: {split['train']:,} training and {split['test']:,} test pictures")


def drawings_of(name: str, roots: dict[str, Path]) -> list[Drawing]:
    """The pictures of a class, in an order drawn once and for all."""
    files = [
        (source, path)
        for (source, root), folders in zip(roots.items(), CLASSES[name], strict=True)
        for path in sorted(_files(root, folders.split()), key=os.fspath)
    ]
    random.Random(0).shuffle(files)
    drawings: list[Drawing] = []
    for source, path in files[: 2 * MOST]:
        picture = on_white(path)
        if picture is not None:
            stem = re.split(r"[\d_]", path.name.lower())[0]
            drawings.append(Drawing(picture, source, source + stem, difference_hash(picture)))
        if len(drawings) == MOST:
            break
    return drawings


def _files(root: Path, folders: Sequence[str]) -> Iterator[Path]:
    for folder in folders:
        for path in (root / folder).rglob("*"):
            name = path.name.lower()
            if path.is_file() and name.endswith(".png") and not name.endswith("_mirror.png"):
                yield path


def on_white(path: Path) -> Image.Image | None:
    """What is drawn, at most 224 px, in the middle of 256 x 256 white; None for what is too small.

    None, too, for a file that cannot be read.
    """
    try:
        with Image.open(path) as file:
            drawn = file.convert("RGBA")
    except (OSError, ValueError, SyntaxError):  # Pillow's words for damaged PNG files
        return None
    if min(drawn.size) < 20:
        return None
    ground = Image.new("RGBA", drawn.size, (*WHITE, 255))
    ground.alpha_composite(drawn)
    picture = ground.convert("RGB")
    inked = ImageChops.difference(picture, Image.new("RGB", picture.size, WHITE)).convert("L")
    box = inked.point(lambda level: 255 * (level > 12)).getbbox()
    if box is None or min(box[2] - box[0], box[3] - box[1]) < 16:
        return None
    picture = picture.crop(box)
    scale = 224 / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    method = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC
    square = Image.new("RGB", (256, 256), WHITE)
    square.paste(picture.resize((width, height), method), ((256 - width) // 2, (256 - height) // 2))
    return square


def difference_hash(picture: Image.Image) -> int:
    """64 bits: whether each of 8 x 8 cells is brighter than its right neighbour."""
    cells = picture.convert("L").resize((9, 8), Image.Resampling.LANCZOS).tobytes()
    bits = (cells[9 * row + col] > cells[9 * row + col + 1] for row in range(8) for col in range(8))
    return sum(bit << number for number, bit in enumerate(bits))


def test_numbers(drawings: Sequence[Drawing]) -> set[int]:
    """Which of them are the test set: whole groups of near-duplicates, up to ``TEST_SHARE``.

    Two drawings are of one group where their hashes differ in at most 6 bits, or their names in
    numbers alone. Groups of more than a quarter of the class are for training.
    """
    leader = list(range(len(drawings)))

    def lead(number: int) -> int:
        while leader[number] != number:
            number = leader[number]
        return number

    for other, one in combinations(range(len(drawings)), 2):
        first, second = drawings[one], drawings[other]
        named_alike = first.stem == second.stem and len(first.stem) > 4
        if (first.dhash ^ second.dhash).bit_count() <= 6 or named_alike:
            leader[lead(one)] = lead(other)
    groups: dict[int, list[int]] = {}
    for number in range(len(drawings)):
        groups.setdefault(lead(number), []).append(number)
    small = [
        group
        for group in sorted(groups.values(), key=len, reverse=True)
        if len(group) <= len(drawings) / 4
    ]
    random.Random(1).shuffle(small)
    test: set[int] = set()
    for group in small:
        if len(test) + len(group) <= round(TEST_SHARE * len(drawings)):
            test.update(group)
    return test


@contextmanager
def _files_of_the_packages() -> Iterator[None]:
    """Inside, Pillow takes large drawings, and files that end early, of which there are a few."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
    ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = True, None
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = before


if __name__ == "__main__":
    sys.exit(main())
