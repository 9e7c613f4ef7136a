import json

import pytest

from ance_cli.errors import ResourceExhausted
from ance_cli.formats import atomic, lease
from ance_cli.formats.hashing import hash_json
from ance_cli.formats.retention import check_free, ending_need, has_room, prune
from ance_cli.formats.run_folder import RunFolder

IDENTITY = {"kind": "generation", "format_version": 1, "algorithm_version": 1, "shaped_by": {},
            "inputs": {}}  # fmt: skip
MANIFEST = {**IDENTITY, "fingerprint": hash_json(IDENTITY), "content": {"files": {}},
            "stats": {"checkpoint_step": 0, "dev": {}}}  # fmt: skip
DATA = {"corpus": "c", "queries": "q", "qrels": "r"}


def make_run(tmp_path, generations=4):
    run = RunFolder(tmp_path / "run")
    run.write_settings("run.json", {"identity": {}, "data": DATA})
    run.publish(generations, 0, run.generation(generations).path)
    for number in range(1, generations + 1):
        folder = run.generation(number).path
        for part in ("embeddings", "candidates"):
            (folder / part).mkdir(parents=True)
            (folder / part / "data").write_bytes(b"x" * 100)
        for name in ("negatives.jsonl", "dev.json"):
            (folder / name).write_text("{}")
        (folder / "manifest.json").write_text(json.dumps(MANIFEST))
    (run.generations / ".0005.partial").mkdir()
    return run


def test_the_large_parts_of_old_generations_go_and_nothing_else(tmp_path):
    run = make_run(tmp_path)
    removed = prune(run, 2)
    assert [path.relative_to(run.generations).as_posix() for path in removed] == [
        "0001/embeddings", "0001/candidates", "0002/embeddings", "0002/candidates",
    ]  # fmt: skip
    for number in (1, 2, 3, 4):
        names = {path.name for path in run.generation(number).path.iterdir()}
        kept = {"embeddings", "candidates"} if number > 2 else set()
        assert names == {"negatives.jsonl", "dev.json", "manifest.json"} | kept
    assert (run.generations / ".0005.partial").exists()
    event = json.loads((run.path / "events.jsonl").read_text())
    assert event["what"] == "pruned" and len(event["parts"]) == 4
    assert prune(run, 2) == []
    assert len((run.path / "events.jsonl").read_text().splitlines()) == 1


def large_parts(run):
    """The numbers of the generations that have their vectors."""
    return [each.number for each in run.all_generations() if each.embeddings.exists()]


@pytest.mark.parametrize("keep", [1, 0, -1])
def test_the_published_generation_keeps_its_parts(tmp_path, keep):
    run = make_run(tmp_path)
    run.publish(2, 0, run.generation(2).path)
    prune(run, keep)
    assert large_parts(run) == [2, 4]


def test_generations_are_counted_as_numbers(tmp_path):
    run = make_run(tmp_path, generations=2)
    for old, new in ((1, 9999), (2, 10_000)):
        run.generation(old).path.rename(run.generation(new).path)
    run.publish(10_000, 0, run.generation(10_000).path)
    prune(run, 1)
    assert large_parts(run) == [10_000]


def test_a_damaged_generation_is_neither_pruned_nor_counted(tmp_path):
    run = make_run(tmp_path)
    for number in (1, 3):
        run.generation(number).manifest.write_text("{")
    prune(run, 2)
    assert large_parts(run) == [1, 2, 3, 4]
    prune(run, 1)
    assert large_parts(run) == [1, 3, 4]


@pytest.mark.parametrize("name", ["run.json", "negatives.json"])
@pytest.mark.parametrize("text", [None, "", "{}"])
def test_nothing_is_pruned_in_a_run_that_is_not_whole(tmp_path, name, text):
    run = make_run(tmp_path)
    for step in (1, 2, 3):
        run.state(step).path.mkdir(parents=True)
        run.state(step).progress.write_text(json.dumps({"step": step}))
    (run.path / name).unlink()
    if text is not None:
        (run.path / name).write_text(text)
    assert prune(run, 1) == []
    assert large_parts(run) == [1, 2, 3, 4]
    run.prune_states()
    has_no_pointer_yet = (name, text) == ("negatives.json", None)
    assert len(list(run.states.iterdir())) == (2 if has_no_pointer_yet else 3)


def test_what_somebody_reads_stays_until_he_is_done(tmp_path):
    run = make_run(tmp_path)
    with lease.reading(run.generation(1).path / "embeddings"):
        prune(run, 1)
        assert (run.generation(1).path / "embeddings" / "data").exists()
        assert not (run.generation(1).path / "candidates").exists()
        with lease.reading(run.generation(1).path / "embeddings"):
            pass  # readers do not exclude each other
    assert [path.name for path in prune(run, 1)] == ["embeddings"]


def test_a_dead_readers_lease_holds_nothing(tmp_path):
    run = make_run(tmp_path)
    left = run.generation(1).path / f".embeddings.reader-{'x' * 5}"
    left.write_text("{}")
    prune(run, 1)
    assert not (run.generation(1).path / "embeddings").exists() and not left.exists()


def test_the_room_that_the_end_of_a_training_takes(tmp_path, monkeypatch):
    run = RunFolder(tmp_path)
    checkpoint, state = run.checkpoint(0).path, run.state(0).path
    for folder, facts, data in ((checkpoint, "ance.json", {"training_step": 0}),
                                (checkpoint / "2_Dense", "config.json", {})):  # fmt: skip
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(bytes(500))
        (folder / facts).write_text(json.dumps(data))
    weights = sum(len(path.read_bytes()) for path in checkpoint.rglob("*.*") if path.is_file())
    ledgers = 1 << 20
    assert ending_need(run) - ledgers == 4 * weights > 4000
    state.mkdir(parents=True)
    (state / "state.json").write_text('{"step": 0}')
    (state / "model.safetensors").write_bytes(bytes(700))
    assert ending_need(run) - ledgers == weights + 700 + len('{"step": 0}')

    for free, enough in ((ending_need(run), True), (ending_need(run) - 1, False)):
        monkeypatch.setattr(atomic, "free_bytes", lambda path, free=free: free)
        assert has_room(run) is enough
    with pytest.raises(ResourceExhausted, match="no room left on the disk for the checkpoint"):
        check_free(run)
