"""Out of memory is one line with a micro_batch that would fit."""

from __future__ import annotations

import resource
import weakref
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image

from adafilter_dist import convert
from adafilter_dist.recipe import load_recipe
from adafilter_dist.training import out_of_memory
from adafilter_dist.training.memory import explain
from adafilter_dist.training.out_of_memory import is_out_of_memory, release
from tests.distributed import forked
from tests.distributed.launch import adafilter
from tests.shared.real_pictures import real_pictures


def limit_memory() -> None:
    """Allow this process little more than what is mapped once everything is imported."""
    torch.set_num_threads(1)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + 1800 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def test_several_micro_batches_in_a_forward_are_lowered_first() -> None:
    recipe = load_recipe(["recipe=demo", "train.micro_batches_per_forward=6"])
    line = str(explain(recipe, None, "rank 0 (cuda:0)"))
    assert "6 micro-batches of" in line and "train.micro_batches_per_forward: 3" in line
    assert "the same run goes on with it" in line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("could not create a primitive", True),
        ("could not create a primitive descriptor for a convolution forward", False),
        ("CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("CUDNN_STATUS_EXECUTION_FAILED", False),
        ("CUDA error: out of memory\nCUDA kernel errors might be reported later", True),
        (
            "NCCL error in: x.cpp:1, unhandled\nLast error:\nCuda failure 'out of memory'",
            True,
        ),
        ("NCCL error in: x.cpp:1, remote process exited", False),
        ("NCCL error in: x.cpp:1, Last error:\nFailed to CUDA calloc async 608 bytes", True),
        ("Triton Error [CUDA]: out of memory", True),
        ("Triton Error [CUDA]: misaligned address", False),
        ("CUDA driver error: out of memory", True),
        ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", True),
    ],
)
def test_libraries_below_torch_say_it_in_their_own_words(text: str, expected: bool) -> None:
    assert is_out_of_memory(RuntimeError(text)) is expected
    assert not is_out_of_memory(ValueError(text))


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "GET was unable to find an engine to execute this computation",
        "FIND was unable to find an engine to execute this computation",
        "Unable to find a valid cuDNN algorithm to run convolution",
        "NCCL error in: x.cpp:1, unhandled cuda error (run with NCCL_DEBUG=INFO for details)",
    ],
)
def test_what_a_library_says_for_many_reasons_counts_where_the_gpu_is_full(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not is_out_of_memory(RuntimeError(text))  # here is no GPU, or one that is not full
    monkeypatch.setattr(out_of_memory, "gpu_is_full", lambda: True)
    assert is_out_of_memory(RuntimeError(text))
    assert not is_out_of_memory(RuntimeError("device-side assert triggered"))


def test_nothing_holds_the_activations_of_a_forward_that_failed() -> None:
    net = convert(torchvision.models.resnet18(num_classes=4), size=32)
    early: list[weakref.ref[torch.Tensor]] = []

    def run_out(*_: object) -> None:
        raise torch.OutOfMemoryError("tried to allocate")

    first, *_, last = net.gated_layers.values()
    first.register_forward_hook(lambda *call: early.append(weakref.ref(call[2])))
    last.register_forward_pre_hook(run_out)
    try:
        net(torch.randn(4, 3, 32, 32))
    except torch.OutOfMemoryError as error:
        assert early[0]() is not None
        release(net.gate, error)
        assert early[0]() is None
    else:
        pytest.fail("the hook did not run")


@pytest.mark.slow
@pytest.mark.parametrize("mode", [[], ["--check"]], ids=["train", "check"])
def test_the_line_names_a_micro_batch_and_what_it_means(mode: list[str], tmp_path: Path) -> None:
    for number, picture in enumerate(real_pictures()[:16]):
        for split in ("train", "test"):
            place = tmp_path / "pictures" / split / f"class{number % 2}"
            place.mkdir(parents=True, exist_ok=True)
            Image.open(picture).convert("RGB").resize((64, 64)).save(place / f"{number}.jpg")
    words = [
        "recipe=imagefolder",
        f"data.root={tmp_path / 'pictures'}",
        "data.stored_size=64",
        "data.resolution=448",
        "data.val_fraction=0",
        "data.loader=torchvision",
        "data.num_workers=1",
        "model=resnet18",
        "model.weights=null",
        "train.global_batch=16",
        "train.micro_batch=16",
        "train.epochs=1",
        "optim.warmup_epochs=0",
        "engine.device=cpu",
    ]
    ended = adafilter("prepare", *words, folder=tmp_path)
    assert ended.code == 0, ended.output
    attempt = forked.server().fork(
        ["train", *words, *mode], folder=tmp_path, before=[__name__, limit_memory.__name__]
    )
    assert attempt.wait() == 2, attempt.printed()
    assert "Traceback" not in attempt.printed()
    assert "train.micro_batch=8 should fit" in attempt.printed()
    assert "another run with other numbers" in attempt.printed()
