"""RUN/test-outcomes.safetensors: what the best model said of each test picture.

Runs on the same pictures are compared picture by picture from these files, without their models.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from adafilter_dist.data.stored.manifest import read_manifest
from adafilter_dist.data.stored.prepared import Prepared
from adafilter_dist.errors import UserError
from adafilter_dist.evaluate import Outcomes
from adafilter_dist.run.files import RunFiles
from adafilter_dist.system.files import write_bytes

FORMAT = 1


@dataclass(frozen=True, eq=False)
class PictureOutcomes:
    """Of n test pictures in the order of their store: labels, predictions int64 (n,); losses.

    ``losses`` is float64 (n,), cross entropy in nats. ``data`` is the fingerprint of all prepared
    pictures, ``test_pictures`` the sha256 of the test store: where it is equal, picture i is the
    same one, whatever the training pictures were.
    """

    labels: NDArray[np.int64]
    predictions: NDArray[np.int64]
    losses: NDArray[np.float64]
    classes: list[str]
    data: str
    test_pictures: str

    @property
    def correct(self) -> NDArray[np.bool_]:
        """(n,): the largest logit is the label's."""
        return self.labels == self.predictions

    def write(self, run: Path) -> None:
        """Keep them in a run folder; the file appears whole or not at all."""
        tensors = {
            "labels": self.labels,
            "predictions": self.predictions,
            "losses": self.losses,
        }
        about = {
            "format": str(FORMAT),
            "data": self.data,
            "test_pictures": self.test_pictures,
            "classes": json.dumps(self.classes),
        }
        path = RunFiles(run).test_outcomes
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, safetensors.numpy.save(tensors, about))


def write_test_outcomes(run: Path, outcomes: Outcomes, prepared: Prepared) -> None:
    """Keep ``outcomes`` of ``prepared``'s test split in a run folder."""
    manifest = read_manifest(prepared.folder)
    PictureOutcomes(
        labels=outcomes.labels.cpu().numpy(),
        predictions=outcomes.predictions.cpu().numpy(),
        losses=outcomes.losses.cpu().double().numpy(),
        classes=list(prepared.classes),
        data=prepared.fingerprint,
        test_pictures=manifest.test.sha256 if manifest is not None else "",
    ).write(run)


def read_test_outcomes(run: Path) -> PictureOutcomes:
    """Those of a finished run; UserError where the file is missing, damaged or of newer format."""
    path = RunFiles(run).test_outcomes
    try:
        with safetensors.safe_open(path, "np") as file:
            about = file.metadata() or {}
            if about.get("format") != str(FORMAT):
                raise UserError(
                    f"{path} has format {about.get('format')}, this version reads {FORMAT}; "
                    "install a newer adafilter-dist"
                )
            columns = {name: file.get_tensor(name) for name in ("labels", "predictions", "losses")}
        return PictureOutcomes(
            **columns,
            classes=json.loads(about["classes"]),
            data=about["data"],
            test_pictures=about["test_pictures"],
        )
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing: the run is not finished, or of an earlier version; to write it: "
            f"adafilter evaluate {run}"
        ) from None
    except (OSError, KeyError, ValueError, safetensors.SafetensorError) as error:
        raise UserError(
            f"{path} is damaged ({error}); remove it, then: adafilter evaluate {run}"
        ) from None
