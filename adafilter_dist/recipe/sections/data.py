"""``data:`` and ``augment:``, which pictures there are, and how they are read and changed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from adafilter_dist.recipe.sections.base import (
    AbsolutePath,
    Count,
    Fraction,
    NotNegative,
    Pixels,
    Section,
    Threads,
)

# Channels on the scale from 0 to 1, and how far they spread: a mean of 123 is one of 0 to 255.
Mean = tuple[Fraction, Fraction, Fraction]
Spread = Annotated[float, Field(gt=0.0, le=10.0)]
Std = tuple[Spread, Spread, Spread]
Aspect = Annotated[float, Field(gt=0.0, le=100.0)]


Change = Literal["inverted", "turned", "shuffled", "edges", "relabelled"]


class MixedDomains(Section):
    """Two domains of Fashion-MNIST: pictures as they are, or changed too, and changed ones."""

    changes: list[Change] = Field(
        ["inverted", "turned"],
        description="what is done to the pictures of the second domain, in this order; shuffled: "
        "their 4x4 patches, relabelled: their classes; [] for one domain",
    )
    original_changes: list[Change] = Field(
        [],
        description="what is done to the pictures of the first domain; [] leaves them as they are",
    )
    original_per_class: Count = Field(2, description="training pictures per class, first domain")
    changed_per_class: Count = Field(10, description="training pictures per class, second domain")

    @model_validator(mode="after")
    def _check(self) -> MixedDomains:
        if self.original_changes and self.original_changes == self.changes:
            raise ValueError(
                "original_changes and changes are the same, and both domains then; leave out one "
                "of their changes (original_changes=[])"
            )
        if self.original_changes and not self.changes:
            raise ValueError(
                "original_changes is the first of two domains; changes=[] is one domain: exchange "
                "the two, or leave original_changes out"
            )
        return self


class Data(Section):
    """Which pictures, how they are split and stored, how they are read."""

    name: Literal[
        "fashion_mnist",
        "mixed_domains",
        "food101",
        "caltech256",
        "stanford_dogs",
        "fgvc_aircraft",
        "indoor67",
        "ucf101",
        "omniglot",
        "imagefolder",
    ] = Field(description="the data set; imagefolder: pictures of your own")
    root: AbsolutePath | None = Field(
        None,
        description="folder of the pictures as published; default below $ADAFILTER_CACHE or "
        "~/.cache/adafilter for what can be downloaded",
    )
    prepared: AbsolutePath | None = Field(
        None, description="folder for what `prepare` writes; default beside the data"
    )
    stage_to: str | None = Field(
        None,
        description="folder on a disk of each node, where the prepared files are copied before "
        "training; $VARIABLES are those of the node, e.g. $SLURM_TMPDIR",
    )
    csv: AbsolutePath | None = Field(
        None, description="imagefolder: a CSV of path,label,split,domain"
    )
    download: bool = Field(True, description="let `prepare` fetch what is missing")
    classes: list[str] | None = Field(None, description="use only these classes")
    train_per_class: Count | None = Field(
        None, description="training pictures drawn per class (seeded); default all"
    )
    test_per_class: Count | None = Field(
        None, description="test pictures drawn per class (seeded); default all"
    )
    test_fraction: Fraction = Field(0.2, description="cut off where no test split is published")
    test_split: Literal["test", "val"] = Field(
        "test",
        description="imagefolder: val tests on the data's own validation split, as is usual where "
        "there are only train and val",
    )
    join_validation: bool = Field(
        False,
        description="the data's own validation split joins the training pictures, of which "
        "val_fraction is then validation",
    )
    mixed: MixedDomains = Field(
        MixedDomains(), description="mixed_domains: what the two domains are"
    )
    val_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.1,
        description="cut from the training set, stratified, seeded; 0 for none; without effect "
        "where the data have a validation split",
    )
    label_fraction: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        1.0, description="share of the training labels used, stratified"
    )
    split_seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        0, description="what is drawn of the data: test, validation and training pictures"
    )
    draw: Literal["split_seed", "seed"] = Field(
        "split_seed",
        description="seed draws other training pictures (train_per_class, label_fraction) for each "
        "seed of a run, from one prepared folder; test and validation stay those of split_seed",
    )
    stored_size: Pixels = Field(256, description="shortest side of a stored picture, px")
    stored_format: Literal["jpg", "raw"] = Field("jpg", description="raw: larger, faster")
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] = Field(
        95, description="of stored pictures, with stored_format=jpg"
    )
    resolution: Pixels | None = Field(
        None, description="side of the network's input, px; default from the weights"
    )
    eval_resize: Pixels | None = Field(
        None, description="shortest side before the centre crop; default from the weights"
    )
    interpolation: Literal["bilinear", "bicubic"] | None = Field(
        None, description="how pictures are resized; default from the weights"
    )
    mean: Annotated[Mean, Field(strict=False)] | None = Field(
        None, description="default from the weights"
    )
    std: Annotated[Std, Field(strict=False)] | None = Field(
        None, description="default from the weights"
    )
    loader: Literal["auto", "numba", "ffcv", "torchvision", "nvjpeg"] = Field(
        "auto",
        description="what decodes pictures; auto: code compiled by numba, where it can be used; "
        "nvjpeg: the GPU, to other pixels",
    )
    num_workers: Threads | None = Field(
        None, description="decoding threads per rank; default the cores of this rank"
    )
    on_bad: Literal["error", "skip"] = Field(
        "error", description="pictures that cannot be read: stop with their list, or leave them out"
    )
    verify: Literal["once", "always", "never"] = Field(
        "once",
        description="compare the prepared files with their sha256: once a node and version of a "
        "file, at every start, or never",
    )

    @model_validator(mode="after")
    def _check(self) -> Data:
        if self.csv is not None and self.name != "imagefolder":
            raise ValueError("csv is only for data.name=imagefolder")
        if self.test_split != "test" and self.name != "imagefolder":
            raise ValueError("test_split is only for data.name=imagefolder")
        if self.join_validation and self.test_split == "val":
            raise ValueError("test_split=val leaves no validation split for join_validation=true")
        mixed = self.name == "mixed_domains"
        if self.mixed != MixedDomains() and not mixed:
            raise ValueError("mixed is only for data.name=mixed_domains")
        if mixed and self.train_per_class is not None:
            raise ValueError(
                "train_per_class is not for data.name=mixed_domains, which has "
                "mixed.original_per_class and mixed.changed_per_class"
            )
        if mixed and self.draw != "split_seed":
            raise ValueError(
                "draw=seed is not for data.name=mixed_domains, which draws with split_seed"
            )
        for key in ("original_changes", "changes"):
            if mixed and self.classes is not None and "relabelled" in getattr(self.mixed, key):
                raise ValueError(
                    f"mixed.{key}=[relabelled] exchanges all ten classes; leave out data.classes"
                )
        if self.loader == "nvjpeg" and self.stored_format == "raw":
            raise ValueError(
                "loader=nvjpeg decodes JPEGs, and stored_format=raw stores none; use loader=numba"
            )
        if self.stage_to is not None and not self.stage_to.startswith(("/", "$", "~")):
            raise ValueError(
                f"stage_to={self.stage_to}: must begin with / or a variable such as $SLURM_TMPDIR"
            )
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std go together: give both or neither")
        return self


class Augment(Section):
    """Training augmentation, all of it a pure function of (seed, epoch, sample index)."""

    scale: tuple[Fraction, Fraction] = Field(
        (0.08, 1.0), strict=False, description="area of the random crop"
    )
    ratio: tuple[Aspect, Aspect] = Field((3 / 4, 4 / 3), strict=False, description="its aspect")
    flip: Fraction = Field(0.5, description="probability of a horizontal flip")
    policy: Literal["none", "randaugment", "trivialaugment"] = Field(
        "none", description="changes of colour and shape after crop and flip"
    )
    randaugment_ops: Annotated[int, Field(ge=1, le=100)] = Field(
        2, description="policy=randaugment: changes of each picture"
    )
    randaugment_magnitude: Annotated[int, Field(ge=0, le=30)] = Field(
        9, description="policy=randaugment: their strength"
    )
    erasing: Fraction = Field(0.0, description="probability of erasing a random box")
    mixup: NotNegative = Field(0.0, description="alpha of Beta(alpha, alpha); 0 for off")
    cutmix: NotNegative = Field(0.0, description="alpha of Beta(alpha, alpha); 0 for off")

    @model_validator(mode="after")
    def _check(self) -> Augment:
        for key in ("scale", "ratio"):
            low, high = getattr(self, key)
            if not 0 < low <= high:
                raise ValueError(f"{key}=[{low:g},{high:g}] must be 0 < low <= high")
        return self
