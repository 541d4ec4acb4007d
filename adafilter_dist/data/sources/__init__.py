"""Which pictures there are: one file a layout of data sets, their splits and classes.

Each layout has ``find(data) -> SourceListing``, which reads folders and lists, never the network,
and maybe ``fetch(data, say)``, which downloads what is missing, through torchvision where it can.
Reading and storing the pictures is in `data.prepare`.
"""
