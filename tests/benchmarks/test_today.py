"""What the comparison with sentence-transformers counts, and that it compares one model."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from datetime import UTC, datetime

import pytest

from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.dual import Start, save_dual, start_dual
from benchmarks import once_mined, today
from benchmarks.once_mined import RECIPE, Setting
from benchmarks.today import ARMS, Trained
from tests.world import TOPICS, write_jsonl


@pytest.fixture
def setting(dataset, checkpoint) -> Setting:
    return Setting(dataset, checkpoint, steps=4, seed=1, threads=1)


def test_both_sides_give_one_vector_for_one_text(setting):
    long = [" ".join([topic, *TOPICS] * 4) for topic in TOPICS]  # more words than a query may have
    write_jsonl(setting.data / "queries.jsonl",
                [{"_id": f"q{n}", "text": text} for n, text in enumerate(long)])  # fmt: skip
    assert len(long[0].split()) > RECIPE.query_length
    assert once_mined.least_cosine(setting, setting.ckpt, setting.ckpt) > today.SAME


def test_two_models_are_told_apart(setting, backbone, tmp_path, monkeypatch):
    plain = Checkpoint(backbone)
    other = tmp_path / "other"
    save_dual(start_dual(plain, Start(head="paper", seed=2))[0], plain.settings, other)
    least = once_mined.least_cosine(setting, setting.ckpt, other)
    assert least < today.SAME
    monkeypatch.setattr(today, "in_a_process", lambda *_: (least, 0.0))
    with pytest.raises(SystemExit, match="would be of two models"):
        today.must_agree(setting, setting.ckpt, other)


def test_a_query_is_cut_where_its_last_token_ends(setting):
    model = once_mined._load(setting.ckpt, 1)
    words = [TOPICS[n % len(TOPICS)] for n in range(40)]
    cut, short = once_mined._as_queries(model, [" ".join(words), "word1  Word2"])
    assert cut == " ".join(words[: RECIPE.query_length - 2])  # [CLS] and [SEP]
    assert short == "word1  Word2"


def test_the_pairs_are_the_train_labels(setting):
    pairs = once_mined._pairs(
        setting, once_mined._load(setting.ckpt, 1), once_mined._passages(setting)
    )
    assert len(pairs) == 48  # 24 queries of two positives each
    assert pairs[0]["anchor"].split()[0] == pairs[0]["positive"].split()[0]


def test_the_last_refresh_is_not_counted_and_an_arm_may_mine_once(setting, tmp_path, monkeypatch):
    def event(second: float, what: str, **more: int) -> str:
        when = datetime.fromtimestamp(1000 + second, UTC).isoformat()
        return json.dumps({"time": when, "what": what, **more})

    asked = []

    def stand_in(*words):
        asked.append([str(word) for word in words])
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "events.jsonl").write_text(
            "\n".join(
                [
                    event(1, "loop started"),
                    event(10, "generation published", checkpoint_step=0),
                    event(40, "segment finished", step=2),
                    event(52, "generation published", checkpoint_step=2),
                    event(90, "segment finished", step=4),
                    event(200, "generation published", checkpoint_step=4),
                ]
            )
        )

    monkeypatch.setattr(today, "ance", stand_in)
    monkeypatch.setattr(today.time, "time", lambda: 1000.0)
    assert today.refreshed(ARMS["ance"], setting, tmp_path) == Trained(4, mining=22, training=68)
    for folder in ("run", "checkpoint"):
        (tmp_path / folder).rename(tmp_path / f"{folder}-before")
    today.refreshed(ARMS["ance-top-50-once"], setting, tmp_path)
    plans = [[words[words.index(flag) + 1] for flag in ("--refresh-every", "--segments")]
             for words in asked]  # fmt: skip
    assert plans == [["2", "2"], ["4", "1"]], "four steps, mined for twice and once"


def test_equal_time_is_as_many_steps_as_fit(setting, tmp_path, monkeypatch):
    arm = ARMS["st-ranks-time"]
    known = {
        arm.time_of: Trained(4, mining=30, training=70),
        arm.like: Trained(4, mining=20, training=25, stepping=20),  # 5 s a step, 5 s to load
    }
    for name, each in known.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / today.TRAINED).write_text(json.dumps(asdict(each)))
    (tmp_path / "mined-ranks.json").write_text("20.0")
    asked = []
    monkeypatch.setattr(today, "in_a_process", lambda *given: asked.append(given) or (74.0, 79.0))
    monkeypatch.setattr(today, "ance", lambda *_: "")
    monkeypatch.setattr(today, "must_agree", lambda *_: None)
    found = today.once_mined(arm, setting, tmp_path, tmp_path / "st-ranks-time")
    # 100 s in all, of which 20 mine and 5 load: 75 s at 5 s a step
    assert found == Trained(15, mining=20, training=79, stepping=74)
    assert [given[3] for given in asked] == [15]


def test_a_work_folder_holds_one_setting(setting, tmp_path):
    today.check(setting, tmp_path)
    today.check(setting, tmp_path)
    with pytest.raises(SystemExit, match="begun with other steps, seed"):
        today.check(replace(setting, steps=6, seed=2), tmp_path)


def test_arms_stand_below_those_they_need():
    order = list(ARMS)
    for name, arm in ARMS.items():
        assert all(order.index(needed) < order.index(name) for needed in arm.needs)
        assert arm.mining is None or arm.mining in once_mined.MINING
