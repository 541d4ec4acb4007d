"""Where data sets come from: one file per layout, each with ``find`` and maybe ``fetch``.

``find(data) -> Found`` reads folders and lists, never the network; UserError says which layout is
expected where. ``fetch(data, say)`` downloads what is missing, through torchvision where it can.
"""
