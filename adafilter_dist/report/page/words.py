"""What the rows of the accuracy chart are, in a sentence each, for who has read nothing else."""

from __future__ import annotations

from collections.abc import Collection

from adafilter_dist.evaluate.ablations import TITLES
from adafilter_dist.report.page.blocks import Cell, Column, Table

_OTHER_GATES = {
    "all_1": "the fine-tuned filters alone, for every picture",
    "all_0": "the pre-trained filters alone, for every picture",
    "mean": "both filters, mixed as often as the gate chose each: the same for every picture",
    "permuted": "the choice that was made for another test picture, drawn by chance",
    "same_class": "the choice for another picture of the same class",
    "other_class": "the choice for a picture of another class",
    "same_domain": "the choice for another picture of the same domain",
    "other_domain": "the choice for a picture of another domain",
    "domain_mean": "both filters, mixed as often as the gate chose each in the picture's domain",
    "oracle": "the choice that the recipe names for the picture's domain (evaluate.oracle)",
}


def title_of(ablation: str) -> str:
    """The name of a row, complete without the row above it."""
    return TITLES.get(ablation, ablation).replace("... ", "another picture's, ")


def words_table(ablations: Collection[str], groups: Collection[str]) -> Table:
    """A table of names and meanings, folded; only of what the page shows."""
    known = {
        "control": "another run or a simpler classifier, to compare with",
        "domain": "the test pictures of one kind alone",
    }
    rows = [[name, meaning] for name, meaning in known.items() if name in groups]
    if ablations:
        rows += [
            ["gate", "chooses, for a picture and a filter, the pre-trained or the fine-tuned one"],
            ["other gates", "the same network; choices are taken from elsewhere, as below"],
        ]
    rows += [[title_of(name), _OTHER_GATES[name]] for name in ablations if name in _OTHER_GATES]
    cells: list[list[Cell | str]] = [list(row) for row in rows]
    columns = [Column("name"), Column("what it is")]
    return Table("words", "What the names mean", columns, cells, folded=True, shown=40)
