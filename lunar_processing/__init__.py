"""Images of the Moon: see into shadow, find what is strange, count rocks. Headless; never imports QGIS."""

import os

# Threads of torch that wait for work sleep, and leave the processor to reading and writing. Spinning, as they would
# otherwise, took a tenth of all processor time and made nothing faster. Must be said before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

__version__ = "1.0.0"
