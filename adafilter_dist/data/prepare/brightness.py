"""Sets of 16-bit pictures that use a few of their bits: they would be stored almost black."""

from __future__ import annotations

from collections.abc import Sequence

from adafilter_dist.data.prepare.read_pictures import Stored

# Cameras and scanners have these; a file that uses 15 bits is as bright as pictures may be.
_DEPTHS = (8, 10, 12, 14)


def dark_notes(stored: Sequence[Stored]) -> list[str]:
    """A line where no 16-bit picture of the set is brighter than 14 bits go, else nothing."""
    brightest = [picture.brightest for picture in stored if picture.brightest is not None]
    most = max(brightest, default=0)
    depth = next((bits for bits in _DEPTHS if most < 1 << bits), None)
    if not brightest or depth is None:
        return []
    pictures = f"{len(brightest):,} 16-bit pictures" if len(brightest) > 1 else "one 16-bit picture"
    return [
        f"warning: the set is dark: the brightest value of {pictures} is {most:,} of 65,535, which "
        f"looks like {depth}-bit pixels in 16-bit files; they are stored as they are, at most "
        f"{most * 255 / 65535:.0f} of 255; multiply them by {1 << 16 - depth} and prepare again"
    ]
