"""Images in tar archives by WebDataset's convention, read in place without unpacking.

`archive.py` reads the headers of an archive, `samples.py` pairs images with labels, `index.py` stores their positions
in a file, and `columns.py` reads that file as lazy sequences. `writing.py` writes such archives.
"""
