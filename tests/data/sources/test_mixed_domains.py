"""The positive control's data: which pictures are in which domain, and what is done to them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from adafilter_dist.data.prepare.prepare import prepare
from adafilter_dist.data.sources import fashion_mnist
from adafilter_dist.data.sources.datasets import fetch_dataset, list_dataset
from adafilter_dist.data.sources.listing import Listing, Sample, SourceListing
from adafilter_dist.data.stored.manifest import settings_of
from adafilter_dist.data.stored.store import Store
from adafilter_dist.errors import UserError
from adafilter_dist.recipe import load_recipe
from adafilter_dist.recipe.identity import run_dir
from adafilter_dist.recipe.sections.data import Data
from tests.data.listings import per_class, refused


@pytest.fixture(scope="module", autouse=True)
def read_once() -> Iterator[SourceListing]:
    """The published data set, which is unpacked once for all tests."""
    data = Data(name="fashion_mnist")
    try:
        fetch_dataset(data, print)
    except UserError as error:
        pytest.skip(str(error))
    listing = fashion_mnist.find(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fashion_mnist, "find", lambda data: listing)
        yield listing


@pytest.fixture(scope="module")
def published(read_once: SourceListing) -> dict[str, Sample]:
    return {sample.name: sample for sample in (*read_once.train, *(read_once.test or []))}


def listed(mixed: dict[str, Any] | None = None, **keys: Any) -> Listing:
    return list_dataset(Data(name="mixed_domains", mixed=mixed or {}, **keys))


def source_of(sample: Sample) -> str:
    """The published picture's name: split/number."""
    return sample.name.partition("/")[2]


def test_two_domains_of_the_wanted_sizes_that_the_source_network_never_saw() -> None:
    listing = listed()
    assert listing.domains == ["original", "inverted+turned"]
    for domain, count in enumerate((2, 10)):
        assert per_class([s for s in listing.train if s.domain == domain]) == [count] * 10
        for part, size in ((listing.validation, 250), (listing.test, 1000)):
            assert sum(sample.domain == domain for sample in part) == size
    every = [source_of(s) for s in (*listing.train, *listing.validation, *listing.test)]
    assert len(set(every)) == len(every) == 120 + 500 + 2000
    assert all(name >= "train/50000" for name in every if name.startswith("train"))


def test_draws_depend_on_the_seed_and_are_nested_by_domain() -> None:
    def drawn(domain: int, **keys: Any) -> set[str]:
        seed = keys.pop("split_seed", 0)
        return {source_of(s) for s in listed(keys, split_seed=seed).train if s.domain == domain}

    few = drawn(0)
    assert few == drawn(0) < drawn(0, original_per_class=10)
    assert drawn(1) == drawn(1, original_per_class=10)  # whatever the other domain has
    assert len(few & drawn(0, split_seed=1)) < 3


@pytest.mark.parametrize("change", ["inverted", "turned", "shuffled", "edges", "relabelled"])
def test_changes(published: dict[str, Sample], change: str) -> None:
    listing = listed({"changes": [change]})
    classes: dict[int, set[int]] = {}
    for sample in listing.test:
        before = published[source_of(sample)]
        assert sample.pixels is not None and before.pixels is not None
        old, new = before.pixels.astype(int), sample.pixels.astype(int)
        if sample.domain == 0 or change == "relabelled":
            assert np.array_equal(old, new)
        elif change == "inverted":
            assert np.array_equal(old + new, np.full((28, 28), 255))
        elif change == "turned":
            assert np.array_equal(new[27 - np.arange(28)], old.T)
        elif change == "shuffled":
            assert not np.array_equal(old, new)
            assert sorted(patches(old)) == sorted(patches(new))
        elif change == "edges":
            means = {(0, 0): old[:2, :2].sum() / 9, (14, 14): old[13:16, 13:16].mean()}
            for place, mean in means.items():  # outside of the picture is black
                assert new[place] == round(min(255, max(0, 127.5 + 4 * (old[place] - mean))))
        if sample.domain == 1:
            classes.setdefault(before.label, set()).add(sample.label)
        else:
            assert sample.label == before.label
    exchanged = [labels != {label} for label, labels in classes.items()]
    assert all(exchanged) if change == "relabelled" else not any(exchanged)
    assert len({min(labels) for labels in classes.values()}) == 10
    assert all(len(labels) == 1 for labels in classes.values())


def patches(picture: np.ndarray) -> list[bytes]:
    return [
        picture[y : y + 7, x : x + 7].tobytes() for y in range(0, 28, 7) for x in range(0, 28, 7)
    ]


def test_both_domains_may_be_changed(published: dict[str, Sample]) -> None:
    both = {"original_changes": ["inverted"], "changes": ["relabelled"]}
    listing = listed(both)
    assert listing.domains == ["inverted", "relabelled"]
    alone = [listed({"changes": changes}) for changes in both.values()]
    # Each domain draws what it draws beside pictures as they are, and is changed in the same way.
    assert per_class([s for s in listing.train if s.domain == 0]) == [2] * 10
    for sample in (*listing.train, *listing.test):
        before = published[source_of(sample)]
        assert sample.pixels is not None and before.pixels is not None
        if sample.domain == 0:
            assert np.array_equal(255 - before.pixels, sample.pixels)
            assert sample.label == before.label
        else:
            assert np.array_equal(before.pixels, sample.pixels)
    second = [[(s.name, s.label) for s in each.train if s.domain] for each in (listing, alone[1])]
    assert second[0] == second[1]


def test_without_a_change_there_is_one_domain() -> None:
    wanted = ["Dress", "Shirt"]
    listing = listed({"changes": []}, classes=wanted)
    assert listing.domains == [] and listing.classes == wanted
    assert per_class(listing.train) == [12, 12]


def test_prepared_pictures_are_those_of_the_recipe(tmp_path: Any) -> None:
    recipe = load_recipe(["recipe=control/mixed-domains", f"data.prepared={tmp_path / 'p'}"])
    data = prepare(recipe, Console(quiet=True))
    listing = listed()
    for path, samples in ((data.train_store, listing.train_store), (data.test_store, listing.test)):
        store = Store(path)
        assert store.domains.tolist() == [sample.domain for sample in samples]
        for number in (0, 19, 20, len(samples) - 1):
            assert np.array_equal(store.read(number)[..., 1], samples[number].pixels)
    other = load_recipe(["recipe=control/mixed-domains", "data.mixed.changes=[edges]"])
    assert settings_of(other.data) != settings_of(recipe.data)
    assert run_dir(other) != run_dir(recipe)
    assert "original_changes" not in settings_of(recipe.data)["mixed"]  # as before there were any
    # Recipes that are older than the keys keep their folders and runs.
    assert "mixed" not in settings_of(load_recipe(["recipe=demo"]).data)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"mixed": {"changed_per_class": 600}}, "data.mixed.changed_per_class=600: class"),
        ({"train_per_class": 5}, "mixed.original_per_class and mixed.changed_per_class"),
        ({"mixed": {"changes": ["relabelled"]}, "classes": ["Dress", "Coat"]}, "leave out"),
        ({"mixed": {"changes": ["mirrored"]}}, "'relabelled'"),
        (
            {"mixed": {"original_changes": ["relabelled"]}, "classes": ["Dress", "Coat"]},
            "mixed.original_changes=[relabelled] exchanges all ten classes",
        ),
        ({"mixed": {"original_changes": ["edges"], "changes": ["edges"]}}, "are the same"),
        ({"mixed": {"original_changes": ["edges"], "changes": []}}, "exchange the two"),
    ],
)
def test_mistakes_are_named(keys: dict[str, Any], message: str) -> None:
    try:
        assert message in refused("mixed_domains", None, **keys)
    except ValueError as error:  # of the recipe's types, told in a line by load_recipe
        assert message in str(error)


def test_the_keys_are_for_this_data_set_alone() -> None:
    with pytest.raises(UserError, match=r"mixed is only for data\.name=mixed_domains"):
        load_recipe(["recipe=demo", "data.mixed.changed_per_class=3"])
