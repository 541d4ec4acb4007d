"""Pictures and labels: where they lie, how they are split, stored and read."""
