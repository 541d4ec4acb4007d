"""Where the frozen part ends, and that the network computes the same from there on."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adafilter_dist.activations.find_cut import NotFrozen, computes_the_same, find_frozen_part
from adafilter_dist.activations.frozen_part import FrozenPart
from adafilter_dist.methods import TrainableModel, build_method
from adafilter_dist.models.backbone.backbones import load_backbone
from adafilter_dist.recipe.schema import Recipe

SIDE = 28
PICTURES = torch.rand(5, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def built(
    method: dict[str, Any], augment: dict[str, Any] | None = None, **model: Any
) -> TrainableModel:
    recipe = Recipe.model_validate(
        {
            "name": "t",
            "data": {"name": "fashion_mnist", "resolution": SIDE},
            "model": {"name": "small_resnet", "ungated": "freeze", **model},
            "method": method,
            "augment": augment or {},
        }
    )
    return build_method(load_backbone(recipe, 10), recipe)


def found(trainable: TrainableModel) -> FrozenPart:
    model, example = trainable.model, PICTURES[:4]
    return find_frozen_part(model, trainable.head, example, nullcontext, trainable.penalty)


LATE = r"blocks\.2"


@pytest.mark.parametrize(
    ("method", "at"),
    [
        ({"name": "adafilter", "layers": LATE}, "blocks.1"),
        ({"name": "adafilter", "layers": LATE, "gate": {"recipe": "paper"}}, "blocks.1"),
        # The shortcut of block 1 goes past its first half, to the sum.
        ({"name": "adafilter", "layers": r"blocks\.1\.second|blocks\.2"}, "blocks.0"),
        ({"name": "finetune", "layers": LATE}, "blocks.1"),
        ({"name": "linear_probe"}, "pool"),
        ({"name": "co_tuning", "layers": LATE}, "blocks.1"),
        ({"name": "bss", "eta": 1.0, "layers": LATE}, "blocks.1"),
        ({"name": "stochnorm", "layers": LATE}, "blocks.1"),
        ({"name": "spd", "layers": LATE}, "blocks.1"),
        ({"name": "auto_rgn", "layers": LATE}, "blocks.1"),
        # Two of its maps are of frozen blocks.
        ({"name": "delta", "layers": LATE}, "blocks.1"),
    ],
    ids=[
        *("adafilter", "paper", "in a block", "finetune", "linear_probe", "co_tuning", "bss"),
        *("stochnorm", "spd", "auto_rgn", "delta"),
    ],
)
def test_the_cut_is_before_the_first_trained_layer(method: dict[str, Any], at: str) -> None:
    trainable = built(method)
    before = {name: tensor.clone() for name, tensor in trainable.model.state_dict().items()}
    state = torch.default_generator.get_state()
    part = found(trainable)
    assert part.cut.at == at
    # Looking for it changed nothing.
    assert torch.equal(torch.default_generator.get_state(), state)
    after = trainable.model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert not any("forward" in module.__dict__ for module in trainable.model.modules())


def test_a_reference_beside_the_network_goes_on_from_the_same_activations() -> None:
    trainable = built({"name": "delta", "layers": LATE, "maps": LATE})
    part, labels = found(trainable), torch.zeros(5, dtype=torch.int64)
    assert part.cut.at == "blocks.1" and part.cut.before == ("blocks.0", "stem")
    model = trainable.model.train()
    penalties: list[Tensor] = []
    for pictures in (PICTURES, PICTURES.flip(3)):
        model(pictures)
        penalties.append(trainable.penalty(labels))
    activations = part.run(PICTURES)
    model(PICTURES.flip(3))
    trainable.penalty(labels)
    with part.skipped():
        model(activations)
        assert torch.equal(trainable.penalty(labels), penalties[0])
    assert not torch.equal(*penalties)


class Remembering(nn.Module):
    """A penalty from what a hook within the frozen part sees: nothing, where that is skipped."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3).requires_grad_(False))
        self.head = nn.Linear(4, 10)
        self.seen = torch.zeros(())
        self.stem[0].register_forward_pre_hook(self.remember)

    def remember(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.seen = inputs[0].mean()

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.stem(images).mean((2, 3)))


def test_what_a_method_remembers_of_pictures_is_not_taken_for_computed() -> None:
    model = Remembering()
    with pytest.raises(NotFrozen, match=r"what follows stem .* needs more than its output"):
        find_frozen_part(model, "head", PICTURES[:4], nullcontext, lambda labels: model.seen)


def test_bi_tunings_keys_are_from_activations_where_they_are_of_the_same_picture() -> None:
    method = {"name": "bi_tuning", "layers": LATE}
    assert found(built(method, augment={"flip": 0.0})).cut.at == "blocks.1"
    with pytest.raises(NotFrozen, match="needs more than its output"):
        found(built(method))  # mirrored activations are not those of mirrored pictures


def test_training_from_activations_has_the_same_bits() -> None:
    trainable = built({"name": "adafilter", "layers": LATE})
    model, part = trainable.model.train(), found(trainable)

    def gradients(x: Tensor) -> list[Tensor]:
        model.zero_grad()
        (model(x).square().sum() + trainable.penalty(torch.zeros(5, dtype=torch.int64))).backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    whole = gradients(PICTURES)
    activations = part.run(PICTURES)
    with part.skipped():
        short = gradients(activations)
    assert len(whole) == len(short) > 10
    assert all(torch.equal(*pair) for pair in zip(whole, short, strict=True))


def test_the_best_model_has_the_part_of_the_one_in_training() -> None:
    part = found(built({"name": "adafilter", "layers": LATE}))
    other = built({"name": "finetune", "layers": LATE}, dropout=False)
    again = FrozenPart.of(other.model, part.cut)
    assert again is not None and again.has_weights_of(part) and again.sha256 == part.sha256
    with torch.no_grad():
        other.model.blocks[1].second[0].weight[0, 0, 0, 0] += 1e-3
    changed = FrozenPart.of(other.model, part.cut)
    assert changed is not None and not changed.has_weights_of(part)
    assert changed.sha256 != part.sha256


def test_everything_trained_leaves_nothing_to_keep() -> None:
    with pytest.raises(NotFrozen, match=r"no layer comes before stem\.0 \(Conv2d\), which is tr"):
        found(built({"name": "finetune"}, ungated="train"))


class Drawing(nn.Module):
    """A frozen stem, and a part that draws, moves its statistics, or reads the picture."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.stem = nn.Conv2d(3, 3, 3, padding=1).requires_grad_(False)
        self.drop = nn.Dropout2d(0.5) if kind == "draws" else nn.Identity()
        self.norm = nn.BatchNorm2d(3).requires_grad_(False)
        if kind != "moves":
            self.norm.train = lambda mode=True: self.norm  # type: ignore[method-assign,assignment]
            self.norm.training = False
        self.relu = nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(3, 8, 3)
        self.head = nn.Linear(8, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.relu(self.norm(self.drop(self.stem(images))))
        if self.kind == "reads the picture":
            x = x + 0.1 * images
        # The same module again, behind what is kept.
        return self.head(self.relu(self.conv(x)).mean((2, 3)))


def test_activations_stay_as_they_are() -> None:
    model = Drawing("plain")
    part = find_frozen_part(model, "head", PICTURES[:4], nullcontext, no_penalty)
    activations = part.run(PICTURES)
    kept = activations.clone()
    with part.skipped():
        model(activations)  # its ReLU writes into its input
    assert torch.equal(activations, kept)


def no_penalty(labels: Tensor) -> Tensor:
    return torch.zeros(())


@pytest.mark.parametrize(
    ("kind", "at"), [("plain", "norm"), ("draws", "stem"), ("moves", "drop")], ids=str
)
def test_the_cut_is_before_what_draws_or_moves(kind: str, at: str) -> None:
    part = find_frozen_part(Drawing(kind), "head", PICTURES[:4], nullcontext, no_penalty)
    assert part.cut.at == at


def test_what_reads_the_picture_later_is_refused() -> None:
    model = Drawing("reads the picture")
    with pytest.raises(NotFrozen, match=r"what follows norm .* needs more than its output"):
        find_frozen_part(model, "head", PICTURES[:4], nullcontext, no_penalty)


def test_a_layer_that_reads_past_the_cut_gives_no_number() -> None:
    part = find_frozen_part(Drawing("plain"), "head", PICTURES[:4], nullcontext, no_penalty)
    model = Drawing("reads the picture")
    other = FrozenPart.of(model, part.cut)
    assert other is not None
    assert not computes_the_same(model, other, PICTURES, nullcontext)
    with torch.no_grad(), other.skipped():
        assert model(other.run(PICTURES)).isnan().all()
