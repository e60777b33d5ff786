"""The only rooms that open raster files."""

import os

# GDAL would take 5 % of the memory for decoded blocks. Here each block is decoded once and handed on, so a small
# cache loses nothing and memory stays the same for a strip of any length. Has to be said before GDAL starts.
os.environ.setdefault("GDAL_CACHEMAX", "64")
