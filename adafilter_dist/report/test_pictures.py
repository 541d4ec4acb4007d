"""RUN/test-pictures.npz: how sure the best model was of each test picture, and its gates.

Beside test-outcomes.safetensors, whose order of pictures it has; the run's page is made of both.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adafilter_dist.data.stored.prepared import Domains, Prepared
from adafilter_dist.evaluate import Outcomes
from adafilter_dist.evaluate.gate_choices import GateChoices
from adafilter_dist.run.files import RunFiles
from adafilter_dist.system.files import write_bytes

FORMAT = 1


@dataclass(frozen=True, eq=False)
class TestPictures:
    """``confidences`` float32 (n,): the probability of what was predicted.

    ``gates``: None where the network has none of 0 and 1, or they were not measured. ``data`` is
    the fingerprint of the prepared pictures.
    """

    __test__ = False  # no test, whatever its name

    data: str
    confidences: NDArray[np.float32]
    gates: GateChoices | None = None
    domains: Domains | None = None

    def write(self, run: Path) -> None:
        """Keep them in a run folder; the file appears whole or not at all. Raises OSError."""
        about = {
            "format": FORMAT,
            "data": self.data,
            "layers": self.gates.layers if self.gates else [],
            "domains": list(self.domains.names) if self.domains else [],
        }
        columns: dict[str, Any] = {"confidences": self.confidences}
        if self.gates is not None:
            columns |= {"filters": self.gates.filters, "fine_tuned": self.gates.fine_tuned}
        if self.domains is not None:
            columns["domain"] = self.domains.numbers.astype(np.uint16)
        content = io.BytesIO()
        np.savez_compressed(content, about=np.array(json.dumps(about)), **columns)
        path = RunFiles(run).test_pictures
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content.getvalue())


def write_test_pictures(
    run: Path, outcomes: Outcomes, gates: GateChoices | None, prepared: Prepared
) -> None:
    """Keep what is known of ``prepared``'s test split in a run folder."""
    confidences = outcomes.confidences.cpu().numpy().astype(np.float32)
    TestPictures(prepared.fingerprint, confidences, gates, prepared.domains_of("test")).write(run)


def read_test_pictures(run: Path) -> TestPictures | None:
    """Those of a finished run; None where the file is missing, damaged or of a newer format."""
    try:
        with np.load(RunFiles(run).test_pictures) as file:
            about = json.loads(str(file["about"]))
            if about["format"] != FORMAT:
                return None
            gates = domains = None
            if about["layers"]:
                gates = GateChoices(about["layers"], file["filters"], file["fine_tuned"])
            if about["domains"]:
                domains = Domains(about["domains"], file["domain"].astype(np.int64))
            return TestPictures(about["data"], file["confidences"], gates, domains)
    except Exception:  # a damaged archive raises anything
        return None
