"""From a picture to upright 8-bit RGB pixels: one way for preparing, evaluating and exports.

`reading` opens anything and brings it to the stored size, `modes` makes RGB of every kind of pixel,
`formats` says which files are pictures. docs/pictures.md says what comes out.
"""
