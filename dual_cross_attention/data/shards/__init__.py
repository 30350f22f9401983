"""Images in tar archives by WebDataset's convention, read in place: nothing is ever unpacked.

`archive.py` walks the headers of an archive, `samples.py` puts image and label together, `index.py` writes down where
they are, once, and `columns.py` makes lists of that which stay on disk. `writing.py` makes such archives.
"""
