"""The words that mean a split, as names of folders and in the split column of a list."""

from __future__ import annotations

import difflib
import re

from adafilter_dist.data.sources.split import SplitName

WORDS: dict[str, SplitName] = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev", "development"), "val"),
    **dict.fromkeys(("test", "testing", "tst", "eval", "evaluation"), "test"),
}
_FILLERS = (
    r"(?:images?|imgs?|pictures?|pics?|photos?|datasets?|data|sets?|splits?|folders?|jpe?gs?|pngs?)"
)
_SPLIT = re.compile(rf"{_FILLERS}*({'|'.join(sorted(WORDS, key=len, reverse=True))}){_FILLERS}*")
_FILLER = re.compile(rf"{_FILLERS}+")


def split_of(name: str) -> SplitName | None:
    """The split that a name means: Training, VALID, test_images, train2017; None if it is none."""
    match = _SPLIT.fullmatch(_letters(name))
    return WORDS[match[1]] if match else None


def split_of_word(word: str) -> SplitName | None:
    """The split that a word in a list means; numbers in it are no part of such a word."""
    return None if any(c.isdigit() for c in word) else split_of(word)


def resembles(name: str) -> SplitName | None:
    """The split that a name is close to: seg_train, test_old, tset, trianing; None for others."""
    split = split_of(name)
    if split is not None:
        return split
    for part in re.split(r"[^a-z]+", name.lower()):
        if part in WORDS:
            return WORDS[part]
    close = difflib.get_close_matches(_letters(name), list(WORDS), n=1, cutoff=0.74)
    return WORDS[close[0]] if close else None


def is_filler(name: str) -> bool:
    """Whether a folder's name says only that pictures are in it: images, data, img_dataset."""
    return _FILLER.fullmatch(_letters(name)) is not None


def _letters(name: str) -> str:
    """The name in lower case without digits and separators; empty for letters beyond a to z."""
    lower = name.strip().casefold()
    return re.sub(r"[\W\d_]+", "", lower) if lower.isascii() else ""
