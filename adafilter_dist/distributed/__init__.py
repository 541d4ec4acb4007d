"""How ranks meet, know of each other and part: process groups, addresses, a rank that is lost.

What they compute together is in `engine`.
"""

from adafilter_dist.distributed.world import World, join_world, set_arithmetic

__all__ = ["World", "join_world", "set_arithmetic"]
