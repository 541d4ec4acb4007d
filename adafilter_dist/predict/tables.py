"""Predictions as lines for people, as CSV, and as JSON lines; each line as soon as it is known."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from adafilter_dist.errors import printable
from adafilter_dist.predict.explain import Explainer, Explanation
from adafilter_dist.predict.predictor import Prediction

Format = Literal["table", "csv", "jsonl"]
_WIDEST = 60


class Table:
    """A line a picture: its path, and the likeliest classes with their probabilities.

    With an ``explainer`` two more lines say which filters were used. Bad pictures are left out:
    they are reported elsewhere.
    """

    def __init__(self, paths: Sequence[Path], explainer: Explainer | None) -> None:
        self._width = min(_WIDEST, max((len(printable(path)) for path in paths), default=0))
        self._explainer = explainer

    def header(self) -> str:
        """Nothing: the lines tell what they are."""
        return ""

    def row(self, prediction: Prediction) -> str:
        """The lines of a picture, with their ends; empty for a bad one."""
        if prediction.error:
            return ""
        pairs = zip(prediction.classes, prediction.probabilities, strict=True)
        guesses = [f"{name} {probability:.1%}" for name, probability in pairs]
        line = f"{printable(prediction.path):<{self._width}}  {'   '.join(guesses)}\n"
        if self._explainer is None:
            return line
        explanation = self._explainer.explain(prediction)
        return line + "".join(f"    {words}\n" for words in _in_words(explanation, prediction))


def _in_words(explanation: Explanation, prediction: Prediction) -> Iterator[str]:
    yield (
        f"{explanation.tuned:.0%} of its filters are fine-tuned, the others pre-trained; "
        f"mostly fine-tuned: layers {explanation.mostly()}"
    )
    if explanation.distance is not None:
        name = printable(prediction.classes[0])
        own, usual = 100 * explanation.distance, 100 * (explanation.usual or 0)
        yield (
            f"pictures of {name}: {explanation.class_tuned:.0%} on average. By layer this picture "
            f"is {own:.0f} points from that average, theirs are {usual:.0f}"
        )


class Csv:
    """A row a picture, with a column for what is wrong with it."""

    def __init__(self, top: int, explainer: Explainer | None) -> None:
        self._top, self._explainer = top, explainer

    def header(self) -> str:
        """The names of the columns."""
        columns = ["picture"]
        for rank in range(1, self._top + 1):
            columns += [f"class_{rank}", f"probability_{rank}"]
        if self._explainer is not None:
            columns += ["tuned", "class_tuned", "distance", "usual_distance"]
            columns += [f"tuned:{name}" for name in self._explainer.names]
        return _csv([*columns, "error"])

    def row(self, prediction: Prediction) -> str:
        """The row of a picture."""
        guesses: list[object] = []
        for rank in range(self._top):
            known = rank < len(prediction.classes)
            guesses.append(prediction.classes[rank] if known else "")
            guesses.append(f"{prediction.probabilities[rank]:.6g}" if known else "")
        cells: list[object] = [_path(prediction.path), *guesses]
        if self._explainer is not None:
            cells += self._explained(prediction, self._explainer)
        return _csv([*cells, prediction.error])

    @staticmethod
    def _explained(prediction: Prediction, explainer: Explainer) -> list[object]:
        if prediction.error:
            return [""] * (4 + len(explainer.names))
        e = explainer.explain(prediction)
        figures = [e.tuned, e.class_tuned, e.distance, e.usual, *e.layers.values()]
        return ["" if figure is None else f"{figure:.4g}" for figure in figures]


class JsonLines:
    """An object a picture: ``picture``, ``predictions`` or ``error``; ``gates`` if explained."""

    def __init__(self, explainer: Explainer | None) -> None:
        self._explainer = explainer

    def header(self) -> str:
        """Nothing."""
        return ""

    def row(self, prediction: Prediction) -> str:
        """The line of a picture."""
        entry: dict[str, Any] = {"picture": _path(prediction.path)}
        if prediction.error:
            return json.dumps(entry | {"error": prediction.error}) + "\n"
        pairs = zip(prediction.classes, prediction.probabilities, strict=True)
        entry["predictions"] = [{"class": name, "probability": share} for name, share in pairs]
        if self._explainer is not None:
            explanation = self._explainer.explain(prediction)
            entry["gates"] = {
                "tuned": explanation.tuned,
                "class_tuned": explanation.class_tuned,
                "distance": explanation.distance,
                "usual_distance": explanation.usual,
                "layers": explanation.layers,
            }
        return json.dumps(entry) + "\n"


Writer = Table | Csv | JsonLines


def writer_of(form: Format, paths: Sequence[Path], top: int, explainer: Explainer | None) -> Writer:
    """What writes predictions of ``paths`` in a form; ``top`` is how many classes there are."""
    makers: dict[Format, Callable[[], Writer]] = {
        "table": lambda: Table(paths, explainer),
        "csv": lambda: Csv(top, explainer),
        "jsonl": lambda: JsonLines(explainer),
    }
    return makers[form]()


def _path(path: Path) -> str:
    """The path as it is; bytes that are no UTF-8 escaped, so that the file stays readable."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def _csv(cells: Sequence[object]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()
