"""From a picture to upright 8-bit RGB pixels: one way for preparing, evaluating and exports.

`reading.read_picture` opens anything, `modes` makes RGB of every kind of pixel, `scaling` brings it
to the stored size, `formats` says which files are pictures. docs/pictures.md says what comes out.
"""
