"""What each backend gives: order, pixels, and what happens when something goes wrong."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adafilter_dist.data.loading.batch import MicroBatch
from adafilter_dist.data.loading.choose import choose_backend
from adafilter_dist.data.loading.crop import crop_boxes, flips
from adafilter_dist.data.loading.loader import EvalLoader, TrainLoader
from adafilter_dist.data.loading.order import epoch_order
from adafilter_dist.data.loading.resize import resize_box
from adafilter_dist.data.stored.prepared import Prepared
from adafilter_dist.data.stored.store import Store
from adafilter_dist.errors import UserError
from tests.data.conftest import (
    PREPROCESS,
    SAMPLES,
    needs_ffcv,
    needs_torchcodec,
    recipe,
    stored,
    train_loader,
)

STEPS, PER_STEP, M = SAMPLES // 12, 3, 4


def read(loader: TrainLoader, epoch: int = 0, first_step: int = 0) -> list[MicroBatch]:
    with loader.epoch(epoch, first_step) as batches:
        return list(batches)


def same(found: list[MicroBatch], wanted: list[MicroBatch]) -> bool:
    """Whether samples, labels and pixels are equal, bit for bit."""
    return len(found) == len(wanted) and all(
        torch.equal(a.index, b.index)
        and torch.equal(a.labels, b.labels)
        and torch.equal(a.images, b.images)
        for a, b in zip(found, wanted, strict=True)
    )


@pytest.fixture(scope="module")
def loaders(jpg: Prepared, raw: Prepared) -> dict[tuple[str, str], TrainLoader]:
    """Made when first asked for, then kept: FFCV's take a while."""

    class Made(dict[tuple[str, str], TrainLoader]):
        def __missing__(self, key: tuple[str, str]) -> TrainLoader:
            self[key] = train_loader({"jpg": jpg, "raw": raw}[key[1]], key[0])
            return self[key]

    return Made()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """More pictures than FFCV's ring of buffers holds."""
    return stored(tmp_path_factory.mktemp("large"), "jpg", 1000)


LARGE = {"train": {"global_batch": 60, "micro_batch": 30}}


@pytest.fixture(params=["jpg", "raw"])
def format(request: pytest.FixtureRequest) -> str:
    """How pictures are stored."""
    return str(request.param)


Loaders = dict[tuple[str, str], TrainLoader]


def test_what_a_micro_batch_is(kind: str, loaders: Loaders) -> None:
    loader = loaders[kind, "jpg"]
    assert loader.kind == kind and loader.notice is None
    assert loader.steps_per_epoch == STEPS
    found = read(loader, 1)
    assert len(found) == STEPS * PER_STEP
    order = torch.cat([batch.index for batch in found]).numpy()
    assert np.array_equal(order, epoch_order(0, 1, SAMPLES)[: STEPS * 12])
    for batch in found:
        assert batch.images.shape == (M, 3, 48, 48) and batch.images.dtype == torch.uint8
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(batch.labels, batch.index % 7)


@pytest.mark.parametrize(
    ("kind", "format"),
    [
        ("nvjpeg", "jpg"),
        *itertools.product(["numba", "torchvision"], ["jpg", "raw"]),
        pytest.param("ffcv", "jpg", marks=pytest.mark.slow),
        pytest.param("ffcv", "raw", marks=pytest.mark.slow),
    ],
)
def test_pixels_are_those_of_the_box(kind: str, format: str, loaders: Loaders) -> None:
    if kind == "ffcv":
        needs_ffcv()
    if kind == "nvjpeg":
        needs_torchcodec()
    loader = loaders[kind, format]
    found = read(loader)
    store, worst = Store(loader._store.path), 0
    mirrored = 0
    for batch in found:
        which = batch.index.numpy()
        sides = store.heights[which], store.widths[which]
        crops = crop_boxes(0, 0, which, *sides, (0.08, 1.0), (3 / 4, 4 / 3))
        boxes = np.column_stack([crops, flips(0, 0, which, 0.5)])
        for image, index, box in zip(batch.images, batch.index, boxes, strict=True):
            wanted = resize_box(store.read(int(index)), box[:4], 48, mirrored=bool(box[4]))
            pixels = image.permute(1, 2, 0).numpy().astype(int)
            worst = max(worst, int(np.abs(pixels - wanted).max()))
            mirrored += int(box[4])
    assert worst <= (0 if kind == "torchvision" else 1)
    assert 0 < mirrored < STEPS * 12


@pytest.mark.slow
def test_numba_gives_the_pixels_of_ffcv(format: str, loaders: Loaders) -> None:
    needs_ffcv()
    assert same(read(loaders["numba", format], 2), read(loaders["ffcv", format], 2))


def test_the_code_of_a_gpu_gives_the_pixels_of_numba_on_a_cpu(loaders: Loaders) -> None:
    needs_torchcodec()
    assert same(read(loaders["nvjpeg", "jpg"], 2), read(loaders["numba", "jpg"], 2))


def test_torchvision_gives_nearly_the_same_pixels(format: str, loaders: Loaders) -> None:
    for a, b in zip(
        read(loaders["numba", format], 2), read(loaders["torchvision", format], 2), strict=True
    ):
        assert torch.equal(a.index, b.index) and torch.equal(a.labels, b.labels)
        difference = (a.images.int() - b.images.int()).abs()
        assert difference.max() <= 1 and difference.double().mean() < 0.3


@pytest.mark.parametrize("micro_batch", [5, 80])
def test_threads_share_large_micro_batches_and_take_several_small_ones(
    micro_batch: int, large: Prepared
) -> None:
    sizes = {"global_batch": 2 * micro_batch, "micro_batch": micro_batch}
    found = read(train_loader(large, "numba", train=sizes), 1)
    assert {len(batch.images) for batch in found} == {micro_batch}
    pictures = torch.cat([batch.images for batch in found])
    others = torch.cat([b.images for b in read(train_loader(large, "numba", **LARGE), 1)])
    assert len(pictures) == 1000 // (2 * micro_batch) * 2 * micro_batch
    count = min(len(pictures), len(others))
    assert torch.equal(pictures[:count], others[:count])


def test_epochs_and_seeds_differ_and_repeat(kind: str, loaders: Loaders) -> None:
    loader = loaders[kind, "jpg"]
    assert same(read(loader, 3), read(loader, 3))
    assert not same(read(loader, 3), read(loader, 4))


def test_resuming_within_an_epoch_reads_only_the_rest(kind: str, loaders: Loaders) -> None:
    loader = loaders[kind, "jpg"]
    whole = read(loader, 5)
    drawn: list[int] = []
    original = loader._boxes
    try:
        loader._boxes = lambda epoch, index: (drawn.extend(index), original(epoch, index))[1]
        for first_step in range(STEPS + 1):
            drawn.clear()
            rest = whole[first_step * PER_STEP :]
            assert same(read(loader, 5, first_step), rest)
            # Worker threads draw the boxes of several micro-batches at once, in any order.
            assert sorted(drawn) == sorted(int(k) for batch in rest for k in batch.index)
    finally:
        del loader._boxes


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_read_what_one_process_reads(
    kind: str, world_size: int, jpg: Prepared, loaders: Loaders
) -> None:
    ranks = [
        read(train_loader(jpg, kind, rank=rank, world_size=world_size, workers=1))
        for rank in range(world_size)
    ]
    shares = [len(batches) // STEPS for batches in ranks]
    together = [
        ranks[rank][step * shares[rank] + k]
        for step in range(STEPS)
        for rank in range(world_size)
        for k in range(shares[rank])
    ]
    assert same(together, read(loaders[kind, "jpg"]))


def test_a_rewritten_file_gives_the_same(kind: str, loaders: Loaders, tmp_path: Path) -> None:
    again = train_loader(stored(tmp_path), kind, workers=3)
    assert same(read(again), read(loaders[kind, "jpg"]))


def test_indices_into_the_store_are_followed(kind: str, jpg: Prepared) -> None:
    some = replace(jpg, label_fraction=0.5)
    _, indices, labels = some.split("train")
    assert 12 <= len(indices) < SAMPLES
    loader = train_loader(some, kind, augment={"scale": (1.0, 1.0), "flip": 0.0})
    store = Store(jpg.train_store)
    for batch in read(loader):
        for image, index, label in zip(batch.images, batch.index, batch.labels, strict=True):
            assert label == labels[index]
            picture = store.read(int(indices[index]))
            boxes = loader._boxes(0, np.array([int(index)]))
            wanted = resize_box(picture, boxes[0, :4], 48, mirrored=False)
            assert np.abs(image.permute(1, 2, 0).numpy().astype(int) - wanted).max() <= 1


@pytest.mark.parametrize("policy", ["randaugment", "trivialaugment"])
def test_policies_under_both_kinds_of_pixels(policy: str, raw: Prepared, loaders: Loaders) -> None:
    chosen = {"augment": {"policy": policy}}
    plain = read(loaders["numba", "raw"], 1)
    found = read(train_loader(raw, "numba", workers=1, **chosen), 1)
    assert same(found, read(train_loader(raw, "numba", workers=3, **chosen), 1))
    assert not same(found, plain)
    others = read(train_loader(raw, "torchvision", **chosen), 1)
    close = [
        float((a.images.int() - b.images.int()).abs().float().mean())
        for a, b in zip(found, others, strict=True)
    ]
    # A rounding difference of one can become large where an operation has a threshold.
    assert np.median(close) < 1


def test_what_was_handed_out_stays(kind: str, large: Prepared) -> None:
    loader = train_loader(large, kind, **LARGE)
    copies = []
    with loader.epoch(0) as batches:
        kept = []
        for batch in batches:
            kept.append(batch)
            copies.append(replace(batch, images=batch.images.clone()))
    assert len(kept) == 32
    assert same(kept, copies)


def test_leaving_early_ends_the_threads(kind: str, large: Prepared) -> None:
    loader = train_loader(large, kind, **LARGE)
    before = set(threading.enumerate())
    for number in range(4):
        with loader.epoch(number) as batches:
            for _ in itertools.islice(batches, number):
                pass
        assert set(threading.enumerate()) <= before
    with pytest.raises(KeyboardInterrupt), loader.epoch(0) as batches:
        next(batches)
        raise KeyboardInterrupt
    assert set(threading.enumerate()) <= before
    assert len(read(loader)) == 32


def test_torch_keeps_its_threads(kind: str, loaders: Loaders, jpg: Prepared) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        read(train_loader(jpg, kind))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_an_error_in_a_worker_reaches_the_loop(kind: str, loaders: Loaders) -> None:
    loader = loaders[kind, "jpg"]
    original, calls = loader._boxes, itertools.count()

    def broken(epoch: int, index: Any) -> Any:
        if next(calls) == 2:
            raise ZeroDivisionError("in a worker")
        return original(epoch, index)

    before = set(threading.enumerate())
    many = np.tile(epoch_order(0, 0, SAMPLES), 40)[:2000].reshape(-1, M)
    try:
        loader._boxes = broken
        with pytest.raises(ZeroDivisionError, match="in a worker"):
            list(loader._micro_batches(0, many))
    finally:
        del loader._boxes
    assert set(threading.enumerate()) <= before


def test_a_damaged_picture_is_noticed(kind: str, jpg: Prepared, tmp_path: Path) -> None:
    content = bytearray(jpg.train_store.read_bytes())
    store = Store(jpg.train_store)
    first, size = int(store._offsets[17]), int(store._sizes[17])
    content[first + size // 2 : first + size] = bytes(size - size // 2)
    path = tmp_path / "train.beton"
    path.write_bytes(content)
    loader = train_loader(replace(jpg, train_store=path), kind)
    with pytest.raises(UserError, match="record 17 cannot be decoded"):
        read(loader, 0), read(loader, 1)


def test_a_truncated_store_is_noticed(kind: str, jpg: Prepared, tmp_path: Path) -> None:
    path = tmp_path / "train.beton"
    path.write_bytes(jpg.train_store.read_bytes()[:-100])
    with pytest.raises(UserError, match="is damaged"):
        train_loader(replace(jpg, train_store=path), kind)


@pytest.mark.parametrize("asked", ["numba", "ffcv"])
def test_what_is_asked_for_cannot_be_used(
    asked: str, jpg: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if numba, or FFCV, were not installed.
    monkeypatch.setitem(sys.modules, f"adafilter_dist.data.loading.{asked}_backend", None)
    with pytest.raises(UserError, match=rf"data\.loader={asked}: .*\(.*\).* data\.loader=\w"):
        train_loader(jpg, asked)
    loader = train_loader(jpg, "auto")
    assert (loader.kind == "torchvision") == (asked == "numba")
    assert (loader.notice is not None) == (asked == "numba")
    assert loader.notice is None or "\n" not in loader.notice


@pytest.mark.parametrize("stored_as", ["jpg", "raw"])
def test_nvjpeg_where_it_cannot_be_used(
    stored_as: str, jpg: Prepared, raw: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store({"jpg": jpg, "raw": raw}[stored_as].train_store)
    chosen = recipe(data={"loader": "nvjpeg"})

    def refused(device: str) -> str:
        with pytest.raises(UserError, match=r"^data\.loader=nvjpeg: .*data\.loader=numba") as told:
            choose_backend(chosen, store, 48, 2, torch.device(device), None)
        assert "\n" not in str(told.value)
        return str(told.value)

    assert "trains on the CPU" in refused("cpu")
    if stored_as == "raw":
        assert "holds raw pixels" in refused("cuda")
    else:
        monkeypatch.setitem(sys.modules, "adafilter_dist.data.loading.nvjpeg_backend", None)
        assert "pip install 'torchcodec" in refused("cuda")


def test_what_goes_wrong_on_the_device(
    jpg: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_torchcodec()
    from adafilter_dist.data.loading import nvjpeg_backend

    loader, decode_jpeg = train_loader(jpg, "nvjpeg"), nvjpeg_backend.decode_jpeg
    refused = Store(jpg.train_store).encoded(17).tolist()

    def refuses(encoded: list[torch.Tensor], **how: Any) -> Any:
        if any(one.tolist() == refused for one in encoded):
            raise RuntimeError("NVJPEG_STATUS_JPEG_NOT_SUPPORTED\nin a file")
        return decode_jpeg(encoded, **how)

    monkeypatch.setattr(nvjpeg_backend, "decode_jpeg", refuses)
    with pytest.raises(UserError, match=r"record 17 is whole, .*cpu.*NOT_SUPPORTED") as told:
        read(loader, 0), read(loader, 1)
    assert "\n" not in str(told.value)

    def fails(encoded: list[torch.Tensor], **how: Any) -> Any:
        if len(encoded) > 1:
            raise torch.OutOfMemoryError("of the GPU")
        return decode_jpeg(encoded, **how)

    monkeypatch.setattr(nvjpeg_backend, "decode_jpeg", fails)
    with pytest.raises(torch.OutOfMemoryError):
        read(loader)


def test_auto_takes_numba(jpg: Prepared) -> None:
    assert train_loader(jpg, "auto").kind == "numba"


@pytest.mark.parametrize(
    ("asked", "before", "taken"),
    [
        ("auto", "torchvision", "torchvision"),
        ("auto", "ffcv", "numba"),
        ("auto", "numba", "numba"),
        ("auto", "nvjpeg", "numba"),
        ("numba", "torchvision", "numba"),
    ],
)
def test_a_run_goes_on_with_its_pixels(asked: str, before: str, taken: str, jpg: Prepared) -> None:
    loader = train_loader(jpg, asked, before=before)
    assert loader.kind == taken
    kept_or_lost = before == "nvjpeg" or taken == "torchvision"
    assert (loader.notice is not None) == (asked == "auto" and kept_or_lost)


def test_sizes_that_cannot_work(jpg: Prepared) -> None:
    with pytest.raises(UserError, match=r"global_batch=64 is larger than .* 53 samples"):
        train_loader(jpg, train={"global_batch": 64})


_LEAVE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.data.conftest import prepared, train_loader
how = sys.argv[3]
train = {"global_batch": 60, "micro_batch": 30}
loader = train_loader(prepared(Path(sys.argv[2])), sys.argv[4], train=train)
for number in range(3):
    with loader.epoch(number) as batches:
        for count, batch in enumerate(batches):
            if count == number:
                break
with loader.epoch(5) as one, loader.epoch(6) as other:
    for _ in zip(one, other):
        pass
kept = loader.epoch(7)
batches = kept.__enter__()
print(next(batches).images.double().mean().item(), flush=True)
if how == "raise":
    raise SystemExit(3)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("decoder", "threads"),
    [
        ("numba", ("default", "default")),
        ("ffcv", ("default", "workqueue")),
        pytest.param("ffcv", ("workqueue", "default"), marks=pytest.mark.long),
    ],
)
def test_a_process_that_leaves_in_the_middle_ends_well(
    large: Prepared, decoder: str, threads: tuple[str, str]
) -> None:
    """Without closing what it opened, even: stock FFCV aborts now and then."""
    if decoder == "ffcv":
        needs_ffcv()
    root = str(Path(__file__).parents[3])
    started = []
    for how, layer in zip(("end", "raise"), threads, strict=True):
        line = [sys.executable, "-c", _LEAVE, root, str(large.train_store), how, decoder]
        environment = {**os.environ, "NUMBA_THREADING_LAYER": layer}
        started.append(subprocess.Popen(line, stdout=-1, stderr=-1, text=True, env=environment))
    said = [process.communicate(timeout=200) for process in started]
    assert [process.returncode for process in started] == [0, 3], said
    assert len({out for out, _ in said}) == 1
    assert [error for _, error in said] == ["", ""]


def test_evaluation_counts_every_sample_once(jpg: Prepared) -> None:
    one = list(eval_loader(jpg))
    assert [len(batch.index) for batch in one] == [8] * 6 + [5]
    assert torch.equal(torch.cat([batch.index for batch in one]), torch.arange(SAMPLES))
    for world_size in (2, 3, 9):
        loaders = [eval_loader(jpg, rank, world_size) for rank in range(world_size)]
        assert sum(len(loader) for loader in loaders) == 7
        assert all(loader.total == SAMPLES for loader in loaders)
        assert same([batch for loader in loaders for batch in loader], one)


def test_evaluation_left_early_ends_its_threads(jpg: Prepared) -> None:
    before = set(threading.enumerate())
    for _ in eval_loader(jpg):
        break
    assert set(threading.enumerate()) <= before


def eval_loader(data: Prepared, rank: int = 0, world_size: int = 1) -> EvalLoader:
    return EvalLoader(
        data,
        "test",
        recipe(),
        PREPROCESS,
        rank=rank,
        world_size=world_size,
        batch_size=8,
    )
