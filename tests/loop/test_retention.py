import json

from ance_cli.formats import lease
from ance_cli.formats.run_folder import RunFolder
from ance_cli.loop.retention import prune


def make_run(tmp_path, generations=4):
    run = RunFolder(tmp_path / "run")
    for number in range(1, generations + 1):
        folder = run.generation_at(number)
        for part in ("embeddings", "candidates"):
            (folder / part).mkdir(parents=True)
            (folder / part / "data").write_bytes(b"x" * 100)
        for name in ("negatives.jsonl", "dev.json", "manifest.json"):
            (folder / name).write_text("{}")
    (run.generations / ".0005.partial").mkdir()
    return run


def test_the_large_parts_of_old_generations_go_and_nothing_else(tmp_path):
    run = make_run(tmp_path)
    removed = prune(run, 2)
    assert [path.relative_to(run.generations).as_posix() for path in removed] == [
        "0001/embeddings", "0001/candidates", "0002/embeddings", "0002/candidates",
    ]  # fmt: skip
    for number in (1, 2, 3, 4):
        names = {path.name for path in run.generation_at(number).iterdir()}
        kept = {"embeddings", "candidates"} if number > 2 else set()
        assert names == {"negatives.jsonl", "dev.json", "manifest.json"} | kept
    assert (run.generations / ".0005.partial").exists()
    event = json.loads((run.path / "events.jsonl").read_text())
    assert event["what"] == "pruned" and len(event["parts"]) == 4
    assert prune(run, 2) == []
    assert len((run.path / "events.jsonl").read_text().splitlines()) == 1


def test_what_somebody_reads_stays_until_he_is_done(tmp_path):
    run = make_run(tmp_path)
    with lease.reading(run.generation_at(1) / "embeddings"):
        prune(run, 1)
        assert (run.generation_at(1) / "embeddings" / "data").exists()
        assert not (run.generation_at(1) / "candidates").exists()
        with lease.reading(run.generation_at(1) / "embeddings"):
            pass  # readers do not exclude each other
    assert [path.name for path in prune(run, 1)] == ["embeddings"]


def test_a_dead_readers_lease_holds_nothing(tmp_path):
    run = make_run(tmp_path)
    left = run.generation_at(1) / f".embeddings.reader-{'x' * 5}"
    left.write_text("{}")
    prune(run, 1)
    assert not (run.generation_at(1) / "embeddings").exists() and not left.exists()
