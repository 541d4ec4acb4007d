"""Forwards that repeat are replayed, by a GPU's path on the stand-in for CUDA graphs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from adafilter_dist.models.gating.convert import convert
from adafilter_dist.models.gating.gate_overrides import constant, observe_gates, override_gates
from adafilter_dist.models.inference import inference_gate, selected_conv
from adafilter_dist.models.inference.selected_conv import (
    InferenceNet,
    SelectedConv,
    for_inference,
)
from adafilter_dist.models.ops import device_kind
from adafilter_dist.models.ops.operator_tape import TapeRecorder
from tests.models.networks import images, pairs


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> Iterator[InferenceNet]:
    """By the GPU's path, without its kernels: both filters of a pair, then chosen."""
    net = convert(pairs(), size=16).eval()
    for layer in net.gated_layers.values():
        layer.conv.weight.data.mul_(1.3)
    fast = for_inference(net)
    monkeypatch.setattr(device_kind, "on_gpu", lambda x: True)
    monkeypatch.setattr(selected_conv, "selected_kernel", lambda: None)
    monkeypatch.setattr(inference_gate, "can_step", lambda x, step: False)
    fast._replayed.recorder = TapeRecorder()
    yield fast


def counts(fast: InferenceNet) -> tuple[int, int]:
    recorder = fast._replayed.recorder
    assert isinstance(recorder, TapeRecorder)
    return recorder.records, recorder.replays


def once(fast: InferenceNet, x: Tensor) -> Tensor:
    """Without a recording."""
    before, fast.replay = fast.replay, False
    try:
        found: Tensor = fast(x)
    finally:
        fast.replay = before
    return found


def pictures(seed: int, count: int = 3) -> Tensor:
    noise = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    return images(count, 16) + noise


def test_from_the_fourth_forward_of_a_kind_on_it_is_replayed(fast: InferenceNet) -> None:
    with torch.inference_mode():
        kept = []
        for seed in range(6):
            x = pictures(seed)
            found = fast(x)
            assert torch.equal(found, once(fast, x))
            kept.append((found, found.clone()))
        assert counts(fast) == (1, 4)  # one of them proved it
        assert all(torch.equal(*pair) for pair in kept)  # no replay writes into an answer
        bits = {index: gates.clone() for index, gates in fast.gate.decisions.gates.items()}
        once(fast, x)
        assert all(torch.equal(bits[i], g) for i, g in fast.gate.decisions.gates.items())
        # Another batch size is another kind, as is another mode of autocast.
        for _ in range(4):
            assert fast(pictures(9, 2)).shape == (2, 5)
        assert counts(fast)[0] == 2
    with torch.no_grad():  # the same recordings
        assert torch.equal(fast(x), once(fast, x))
        assert counts(fast) == (2, 7)


def test_weights_that_change_are_recorded_anew(fast: InferenceNet) -> None:
    layer = next(iter(fast.gated_layers.values()))
    assert isinstance(layer, SelectedConv)

    def load() -> None:
        state = {name: tensor.clone() for name, tensor in fast.state_dict().items()}
        fast.load_state_dict({n: 1.1 * t if t.is_floating_point() else t for n, t in state.items()})

    changes: list[Callable[[], object]] = [
        lambda: None,
        load,
        lambda: layer.bias.add_(0.5),
        lambda: fast.float().double(),
    ]
    with torch.no_grad():
        for change in changes:
            change()
            fast.gate.prepare()
            for seed in range(4):
                x = pictures(seed)
                assert torch.equal(fast(x), once(fast, x))
    assert counts(fast)[0] == 4


def test_whoever_looks_on_or_overrides_sees_every_forward(fast: InferenceNet) -> None:
    seen: list[str] = []
    with torch.no_grad():
        for seed in range(5):
            fast(pictures(seed))
        _, replays = counts(fast)
        x = pictures(7)
        with observe_gates(fast, lambda index, name, gates, probability: seen.append(name)):
            fast(x)
        assert len(seen) == len(fast.gate.names)
        with override_gates(fast, constant(1.0)):
            assert torch.equal(fast(x), once(fast, x))
        handle = fast.backbone.register_forward_hook(lambda *_: seen.append("hook"))
        fast(x)
        handle.remove()
        assert seen[-1] == "hook"
        assert counts(fast) == (1, replays)
        fast(x)
        assert counts(fast) == (1, replays + 1)
    twin = copy.deepcopy(fast)
    assert twin._replayed is not fast._replayed and not twin._replayed._recordings


def test_what_cannot_be_recorded_is_said_once(
    fast: InferenceNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = fast.backbone.forward
    monkeypatch.setattr(fast.backbone, "forward", lambda x: inner(x * 1 if x.sum() > 0 else x))
    line = "not replayed as CUDA graphs: NotRecordable"
    with torch.no_grad(), pytest.warns(UserWarning, match=line) as said:
        for seed in range(6):
            x = pictures(seed)
            assert torch.equal(fast(x), once(fast, x))
    assert len(said) == 1
