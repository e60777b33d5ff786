"""The tools, as QGIS shows them."""

from .batch import Batch
from .enhance_psr import EnhancePsr
from .rock_size_frequency import RockSizeFrequency
from .score_anomalies import ScoreAnomalies
from .segment_rocks import SegmentRocks
from .set_up_engine import SetUpEngine
from .simulate_scene import SimulateScene

ALGORITHMS = (EnhancePsr, ScoreAnomalies, SegmentRocks, RockSizeFrequency, SimulateScene, Batch, SetUpEngine)
