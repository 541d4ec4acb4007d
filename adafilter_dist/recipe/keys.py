"""The keys that a recipe has, and which one was meant by another word."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from functools import cache

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from adafilter_dist.errors import closest
from adafilter_dist.recipe.schema import Recipe

# What other trainers call it.
_ELSEWHERE = {
    **dict.fromkeys(("batch_size", "batch", "bs", "b"), "train.global_batch"),
    **dict.fromkeys(("learning_rate", "base_lr", "rate"), "optim.lr"),
    **dict.fromkeys(("optimizer", "optimiser", "opt"), "optim.name"),
    **dict.fromkeys(("scheduler", "lr_scheduler", "sched"), "optim.schedule"),
    **dict.fromkeys(("warmup", "warm_up"), "optim.warmup_epochs"),
    **dict.fromkeys(("wd", "decay"), "optim.weight_decay"),
    **dict.fromkeys(("epoch", "num_epochs", "max_epochs", "n_epochs"), "train.epochs"),
    **dict.fromkeys(("amp", "fp16", "bf16", "mixed_precision"), "train.precision"),
    **dict.fromkeys(("grad_clip", "clip_grad", "clip"), "train.clip_norm"),
    **dict.fromkeys(("workers", "j", "num_threads"), "data.num_workers"),
    **dict.fromkeys(("data_dir", "data_path", "data_root", "datadir", "path"), "data.root"),
    **dict.fromkeys(("dataset",), "data.name"),
    **dict.fromkeys(("image_size", "img_size", "input_size", "size"), "data.resolution"),
    **dict.fromkeys(("arch", "backbone", "network", "architecture"), "model.name"),
    **dict.fromkeys(("pretrained",), "model.weights"),
    **dict.fromkeys(("output", "output_dir", "out", "out_dir", "outdir", "save_dir"), "run_dir"),
    **dict.fromkeys(("gpus", "num_gpus", "ngpus", "gpus_per_task"), "launch.gpus_per_node"),
    **dict.fromkeys(("num_nodes", "nnodes", "n"), "launch.nodes"),
    **dict.fromkeys(("random_seed", "rng"), "seed"),
    **dict.fromkeys(("config", "cfg", "conf", "config_file", "experiment", "yaml"), "recipe"),
}


def sections_in(annotation: typing.Any) -> Iterator[type[BaseModel]]:
    """The sections inside a type: itself, or the members of a union of them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in typing.get_args(annotation):
        yield from sections_in(part)


def fields_of(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """All keys of a section, dotted, with their types; some more than once.

    A section comes before what is in it.
    """
    for key, field in section.model_fields.items():
        yield prefix + key, field
        for inner in sections_in(field.annotation):
            yield from fields_of(inner, f"{prefix}{key}.")


def keys_of(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The names alone of ``fields_of``."""
    return (key for key, _ in fields_of(section, prefix))


def means_recipe(word: str) -> bool:
    """Whether a word that is no key stands for ``recipe``."""
    bare = word.strip(" -,;:=.").replace("-", "_").lower()
    if bare == "recipe" or _ELSEWHERE.get(bare) == "recipe":
        return True
    tops = [key for key in all_keys() if "." not in key]
    return bare not in tops and closest(bare, tops, cutoff=0.7) == "recipe"


@cache
def all_keys() -> tuple[str, ...]:
    """The dotted keys and sections of a recipe, and ``recipe`` and ``over``, each once."""
    return tuple(dict.fromkeys(("recipe", "over", *keys_of(Recipe))))


def meant(word: str) -> str:
    """The full key that ``word`` stands for: itself, the key that ends so, or the nearest.

    Several that end so are joined by `` or ``; empty for a word like none of them.
    """
    bare = word.strip(" -,;:=.").replace("-", "_").lower()
    keys = all_keys()
    if means_recipe(bare):
        return "recipe"
    if bare in keys:
        return bare
    ending = [key for key in keys if key.endswith(f".{bare}")] if bare else []
    if ending:
        return " or ".join(ending[:3])
    last = bare.rpartition(".")[2]
    if (known := _ELSEWHERE.get(bare) or _ELSEWHERE.get(last)) is not None:
        return known
    ending = [key for key in keys if "." in bare and key.endswith(f".{last}")]
    if ending:
        return " or ".join(ending[:3])
    tails: dict[str, str] = {}
    for key in keys:
        tails.setdefault(key.rpartition(".")[2], key)
        tails[key] = key
    closest_tail = closest(bare, tails, cutoff=0.7)
    return tails[closest_tail] if closest_tail else ""
