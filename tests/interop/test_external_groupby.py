"""`ExternalGroupBy` against a sort in memory."""

import random

from ance_cli.interop import external_groupby as spill
from ance_cli.interop.external_groupby import ExternalGroupBy


def test_records_come_by_group_in_the_order_in_which_they_were_added(tmp_path, monkeypatch):
    monkeypatch.setattr(spill, "_BUFFERED_BYTES", 100)
    rng, groups, twin = random.Random(5), ExternalGroupBy(tmp_path / "spill", groups_in_file=4), {}
    for number in range(500):
        group = rng.randrange(30)
        groups.add(group, f"record {number}", None, number / 3)
        twin.setdefault(group, []).append([f"record {number}", None, number / 3])
    assert len(list((tmp_path / "spill").iterdir())) > 3
    assert list(groups.groups()) == [twin[group] for group in sorted(twin)]
    assert not (tmp_path / "spill").exists()
