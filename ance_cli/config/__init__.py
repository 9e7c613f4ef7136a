"""Every default, once. Imports nothing heavy, so that `--help` can show them.

One frozen dataclass a stage. The field names are the flags' names; the docs of a flag stand in
`cli/flags.py`.
"""

from ance_cli.config.common import MEASURES, MIN_REL, REPORT_CASES, SEED
from ance_cli.config.negatives import Bm25Config, DrawConfig, MineConfig
from ance_cli.config.running import (
    DemoConfig,
    DiagnoseConfig,
    FollowConfig,
    LoopConfig,
    RefreshConfig,
)
from ance_cli.config.training import SegmentConfig, TrainConfig
from ance_cli.config.vectors import (
    EncodeConfig,
    ExportConfig,
    FuseConfig,
    IndexConfig,
    ReadConfig,
    RerankConfig,
    SearchConfig,
)

__all__ = [
    "MEASURES",
    "MIN_REL",
    "REPORT_CASES",
    "SEED",
    "Bm25Config",
    "DemoConfig",
    "DiagnoseConfig",
    "DrawConfig",
    "EncodeConfig",
    "ExportConfig",
    "FollowConfig",
    "FuseConfig",
    "IndexConfig",
    "LoopConfig",
    "MineConfig",
    "ReadConfig",
    "RefreshConfig",
    "RerankConfig",
    "SearchConfig",
    "SegmentConfig",
    "TrainConfig",
]
