"""Every setting, once: name, type, default, range, help and panel (see `setting`).

The field names are the flags' names. Nothing heavy is imported, so that `--help` is fast.
"""

from ance_cli.config.data import MIN_REL
from ance_cli.config.encoding import (
    ClusterConfig,
    ComputeConfig,
    DeviceConfig,
    DriverConfig,
    EncodeConfig,
)
from ance_cli.config.evaluation import REPORT_CASES, DiagnoseConfig, ReadConfig
from ance_cli.config.interop import ExportConfig, VectorStoreConfig
from ance_cli.config.loop import (
    FollowConfig,
    LoopConfig,
    LoopDevices,
    RefreshConfig,
    RefreshDevices,
    RefreshTiming,
)
from ance_cli.config.mining import Bm25Config, DrawConfig, DrawRules, MineConfig
from ance_cli.config.queries import QueryConfig
from ance_cli.config.retrieval import (
    MEASURES,
    PAIR_LENGTH,
    SEED,
    BenchSearchConfig,
    FuseConfig,
    IndexConfig,
    RerankConfig,
    SearchConfig,
)
from ance_cli.config.setting import shaped_by
from ance_cli.config.setup import DemoConfig
from ance_cli.config.training import SegmentConfig, TrainConfig

__all__ = [
    "MEASURES",
    "MIN_REL",
    "PAIR_LENGTH",
    "REPORT_CASES",
    "SEED",
    "BenchSearchConfig",
    "Bm25Config",
    "ClusterConfig",
    "ComputeConfig",
    "DemoConfig",
    "DeviceConfig",
    "DiagnoseConfig",
    "DrawConfig",
    "DrawRules",
    "DriverConfig",
    "EncodeConfig",
    "ExportConfig",
    "FollowConfig",
    "FuseConfig",
    "IndexConfig",
    "LoopConfig",
    "LoopDevices",
    "MineConfig",
    "QueryConfig",
    "ReadConfig",
    "RefreshConfig",
    "RefreshDevices",
    "RefreshTiming",
    "RerankConfig",
    "SearchConfig",
    "SegmentConfig",
    "TrainConfig",
    "VectorStoreConfig",
    "shaped_by",
]
