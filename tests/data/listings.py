"""What a data set is listed as, or why it is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from adafilter_dist.data.sources.datasets import list_dataset
from adafilter_dist.data.sources.listing import Listing, Sample
from adafilter_dist.errors import UserError
from adafilter_dist.recipe.sections.data import Data


def listed(name: str, root: Path | None, **keys: Any) -> Listing:
    return list_dataset(Data(name=name, root=root, download=False, **keys))


def refused(name: str, root: Path | None, **keys: Any) -> str:
    with pytest.raises(UserError) as caught:
        listed(name, root, **keys)
    message = str(caught.value)
    assert "\n" not in message
    return message


def per_class(samples: list[Sample]) -> list[int]:
    return [count for _, count in sorted(Counter(s.label for s in samples).items())]


def names(samples: list[Sample]) -> set[str]:
    return {sample.name for sample in samples}
