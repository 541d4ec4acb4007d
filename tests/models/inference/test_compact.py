"""Compacted networks: what a constant gate leaves out changes no bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from adafilter_dist import load
from adafilter_dist.errors import UserError
from adafilter_dist.evaluate.gate_counts import GateCounts
from adafilter_dist.models.gating.convert import AdaFilterNet, convert
from adafilter_dist.models.gating.gate_overrides import observe_gates, override_gates
from adafilter_dist.models.inference.compact import (
    compact,
    constant_gates,
    count_dropped,
    read_constant,
    write_constant,
)
from adafilter_dist.models.inference.selected_conv import InferenceNet, SelectedConv, for_inference
from tests.models.gates import random_gates, unsettle
from tests.models.networks import images, network, pairs


def net_and_gates(
    name: str, x: Tensor, dtype: torch.dtype
) -> tuple[AdaFilterNet, dict[str, Tensor]]:
    """A network, and which of its gates are constant over the pictures x."""
    net = convert(network(name, dtype), example_input=x[:1]).eval()
    unsettle(net)
    counts = GateCounts(net.gate)
    with torch.no_grad(), observe_gates(net, counts.observe):
        net(x[:2])
        net(x[2:])
    chosen, seen, _, _ = counts.complete()
    assert seen == len(x)
    return net, constant_gates(chosen, seen)


@pytest.mark.parametrize("name", ["resnet18", pytest.param("mobilenet_v2", marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_same_bits_where_the_gates_are_constant(name: str, dtype: torch.dtype) -> None:
    x = images(5, dtype=dtype)
    net, constant = net_and_gates(name, x, dtype)
    values = torch.cat(list(constant.values()))
    assert {-1, 0, 1} == set(values.tolist())
    fast, small = for_inference(net), compact(net, constant)
    with torch.no_grad():
        for pictures in (x, x[:1], x[3:]):
            assert torch.equal(small(pictures), fast(pictures))
    dropped, filters = count_dropped(small, constant)
    assert filters == len(values) and dropped == int((values >= 0).sum()) > 0.3 * filters
    for name, layer in small.gated_layers.items():
        assert isinstance(layer, SelectedConv)
        assert len(layer.rows) == len(constant[name]) + int((constant[name] < 0).sum())


def test_a_network_without_decisions_asks_no_gate() -> None:
    net, x = convert(pairs(), size=16).eval(), images(3, 16)
    unsettle(net)
    override = random_gates(1.0)
    first = {
        name: override(index, torch.zeros(1, layer.conv.out_channels))[0].to(torch.int8)
        for index, (name, layer) in enumerate(net.gated_layers.items())
    }
    small = compact(net, first)
    with torch.no_grad(), override_gates(net, override):
        wanted = net(x)
        torch.testing.assert_close(small(x), wanted, rtol=1e-11, atol=1e-11)
        assert not small.gate.decisions.logits
        # Whoever looks still sees gates.
        seen: dict[str, Tensor] = {}
        with observe_gates(small, lambda i, name, gates, p: seen.update({name: gates})):
            torch.testing.assert_close(small(x), wanted, rtol=1e-11, atol=1e-11)
    assert all(torch.equal(seen[name][2], first[name].double()) for name in first)


def test_fractions_and_overrides_leave_constant_filters_alone() -> None:
    x = images(4)
    net, constant = net_and_gates("resnet18", x, torch.float64)
    small = compact(net, constant)

    def forced(index: int, gates: Tensor) -> Tensor:
        values = constant[net.gate.names[index]].to(gates)
        return torch.where(values < 0, 0.4, values).expand_as(gates)

    with torch.no_grad(), override_gates(net, forced):
        wanted = net(x)
        with override_gates(small, lambda index, gates: torch.full_like(gates, 0.4)):
            torch.testing.assert_close(small(x), wanted, rtol=1e-9, atol=1e-9)


def test_counting_gates_against_expected_ones() -> None:
    net, x = convert(pairs(), size=16).eval(), images(3, 16)
    widths = {name: layer.conv.out_channels for name, layer in net.gated_layers.items()}
    expected = {"conv1": torch.tensor([1, 0, -1, 1], dtype=torch.int8)}
    counts = GateCounts(net.gate, expected)

    def bits(index: int, gates: Tensor) -> Tensor:
        rows = [[1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 1, 0]]
        return torch.tensor(rows).to(gates) if index == 0 else torch.ones_like(gates)

    with torch.no_grad(), override_gates(net, bits), observe_gates(net, counts.observe):
        net(x)
    chosen, seen, others, compared = counts.complete()
    assert (seen, others, compared) == (3, 1 + 1 + 2, 9)
    assert chosen["conv1"].tolist() == [2, 1, 2, 1]
    assert chosen["conv2"].tolist() == [3] * widths["conv2"]
    assert constant_gates(chosen, 3)["conv2"].tolist() == [1] * widths["conv2"]
    assert constant_gates(chosen, 3)["conv1"].tolist() == [-1] * 4
    assert constant_gates({"a": torch.tensor([0, 2, 1])}, 2)["a"].tolist() == [0, 1, -1]


def test_the_entry_of_the_configuration() -> None:
    constant = {"conv1": torch.tensor([1, 0, -1, 1], dtype=torch.int8)}
    entry = write_constant(constant)
    assert entry == {"gates": {"conv1": "10-1"}}
    assert torch.equal(read_constant(entry)["conv1"], constant["conv1"])
    with pytest.raises(UserError, match="gates of conv1"):
        read_constant({"gates": {"conv1": "10x"}})


def test_gates_that_do_not_fit_are_refused() -> None:
    net = convert(pairs(), size=16)
    with pytest.raises(UserError, match="2 gates for layer conv1, the network has 4"):
        compact(net, {"conv1": torch.zeros(2, dtype=torch.int8)})
    with pytest.raises(UserError, match="layer conv9, the network has no"):
        compact(net, {"conv9": torch.zeros(2, dtype=torch.int8)})


@pytest.mark.slow
def test_older_folders_are_read_as_before_and_fast(tmp_path: Path) -> None:
    from adafilter_dist.methods.export import export_model
    from tests.methods.test_export import CLASSES, METHODS, PREPROCESS, build

    for number, method in enumerate(METHODS):
        folder = tmp_path / str(number)
        trainable = build(method)
        export_model(folder, trainable, classes=CLASSES, preprocess=PREPROCESS)
        read_by_0_2_0 = method["name"] in ("finetune", "linear_probe")
        assert f'"format": {1 if read_by_0_2_0 else 3},' in (folder / "config.json").read_text()
        plain, _ = load(folder)
        fast, _ = load(folder, fast=True)
        assert fast.classes == plain.classes == CLASSES
        assert isinstance(fast, InferenceNet) == isinstance(plain, AdaFilterNet)
        x = images(3, dtype=torch.float32)
        with torch.no_grad():
            torch.testing.assert_close(fast(x), plain(x), rtol=1e-3, atol=1e-3)
