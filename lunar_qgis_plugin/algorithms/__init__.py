"""The tools, as QGIS shows them."""

from .enhance_psr import EnhancePsr
from .score_anomalies import ScoreAnomalies
from .segment_rocks import SegmentRocks
from .set_up_engine import SetUpEngine
from .simulate_scene import SimulateScene

ALGORITHMS = (EnhancePsr, ScoreAnomalies, SegmentRocks, SimulateScene, SetUpEngine)
