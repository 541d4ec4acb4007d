"""The builder of the clip-art pictures, on drawings made here."""

from pathlib import Path

import clipart
import pytest
from PIL import Image, ImageDraw


def drawing(seed: int, stem: str) -> clipart.Drawing:
    """A picture whose hash is that of a few bars, which ``seed`` places."""
    picture = Image.new("RGB", (256, 256), clipart.WHITE)
    pen = ImageDraw.Draw(picture)
    for bar in range(8):
        left = (seed * 37 + bar * 53 * (seed + 1)) % 220
        pen.rectangle((left, 32 * bar, left + 30, 32 * bar + 31), fill="black")
    return clipart.Drawing(picture, "oc", stem, clipart.difference_hash(picture))


def test_transparent_drawings_stand_on_white_in_the_middle(tmp_path: Path) -> None:
    wide = Image.new("RGBA", (400, 100), (0, 0, 0, 0))
    ImageDraw.Draw(wide).rectangle((100, 20, 299, 69), fill=(200, 0, 0, 255))
    wide.save(tmp_path / "wide.png")
    picture = clipart.on_white(tmp_path / "wide.png")
    assert picture is not None and picture.size == (256, 256)
    # 200 x 50 of red, 224 wide: 56 rows of it around the middle.
    assert picture.getpixel((128, 128)) == (200, 0, 0)
    assert picture.getpixel((128, 90)) == (255, 255, 255)
    assert picture.getpixel((5, 128)) == (255, 255, 255)


@pytest.mark.parametrize("content", [b"no picture", b""])
def test_what_cannot_be_read_is_left_out(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.png").write_bytes(content)
    assert clipart.on_white(tmp_path / "x.png") is None


def test_near_duplicates_are_on_one_side() -> None:
    drawings = [drawing(seed, f"oc{seed}") for seed in range(30)]
    drawings += [drawing(3, "recoloured")] + [drawing(40 + n, "ocflower") for n in range(3)]
    test = clipart.test_numbers(drawings)
    assert 0 < len(test) <= round(0.3 * len(drawings))
    assert (3 in test) == (30 in test)
    assert len({number in test for number in (31, 32, 33)}) == 1


def test_a_folder_that_is_there_is_not_touched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert clipart.main([str(tmp_path)]) == 2
    assert "is there already" in capsys.readouterr().err
