"""What is learned of a picture while it is stored."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from PIL import Image

from adafilter_dist.data.prepare.read_pictures import PictureReader, Read, content_hash
from adafilter_dist.data.sources.listing import Sample
from tests.pictures.odd_pictures import encoded, odd_pictures

# What an older version read otherwise: its prepared pictures are not these.
READ_ANEW = {"gray16-key.png", "ink-plain.jpg"}


@pytest.fixture
def strip(tmp_path: Path) -> Sample:
    path = tmp_path / "strip.png"
    path.write_bytes(encoded(Image.new("RGB", (50, 1)), "PNG"))
    return Sample(path.name, 0, tmp_path)


def test_a_source_has_one_hash_and_another_where_it_is_read_anew(tmp_path: Path) -> None:
    for name, content in odd_pictures():
        path = tmp_path / name
        path.write_bytes(content)
        sample = Sample(name, 0, tmp_path)
        reader = PictureReader([sample], 32)
        assert reader[0]() is not None
        learned = reader.take(0)
        assert isinstance(learned, Read), learned
        assert learned.content == content_hash(sample), name
        plain = hashlib.sha256(content).digest()
        assert (learned.content != plain) == (name in READ_ANEW), name


def test_a_pipe_named_like_a_picture_is_bad_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    samples = [Sample(name, 0, tmp_path) for name in ("pipe.jpg", "zero.jpg")]
    reader = PictureReader(samples, 32)
    for position in range(2):
        assert reader[position]() is None
        assert reader.take(position) == "a pipe or a device, and no file"


def test_a_strip_that_a_jpeg_cannot_hold_is_bad(strip: Sample) -> None:
    reader = PictureReader([strip], 2048)
    assert reader[0]() is None
    assert "50x1 px: 102,400 px long" in str(reader.take(0))


def test_a_picture_that_a_raw_record_cannot_hold_is_bad(strip: Sample) -> None:
    reader = PictureReader([strip], 700, "raw")
    assert reader[0]() is None
    assert reader.take(0) == (
        "35,000x700 px once stored, 73,500,000 bytes of at most 67,108,864; lower "
        "data.stored_size or use data.stored_format=jpg"
    )
