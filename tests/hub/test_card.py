"""A card says what the run folder says, and nothing of the machine it was made on."""

import json
import re
import shutil
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import ModelCard

from ance_cli.errors import BadInput, ResourceExhausted, UsageProblem
from ance_cli.formats.checkpoint_folder import leads_out
from ance_cli.hub.card import _without_folder, lineage, model_card
from ance_cli.hub.push import push
from tests.hub_server import TOKEN, running_hub
from tests.world import Ance, AnceInside, make_dataset, tree


@pytest.fixture(scope="module")
def world(tmp_path_factory, backbone):
    """A warm-up on BM25 negatives, then two generations of ANCE."""
    folder = tmp_path_factory.mktemp("card")
    make_dataset(folder / "data")
    ance = AnceInside(folder)
    common = ["--data", "data", "--batch-size", 4, "--gpus", "none"]
    short = ["--query-length", 12, "--passage-length", 24]
    ance("bm25-negatives", "--data", "data", "--engine", "bm25s", "--depth", 5, "-o", "bm25.jsonl")
    ance("train-segment", "bm25.jsonl", *common, *short, "--ckpt", backbone, "--steps", 2,
         "-o", "warmup")  # fmt: skip
    ance("train-segment", "bm25.jsonl", *common, "--ckpt", "warmup/latest", "--steps", 0,
         "--total-steps", 4, "-o", "ance")  # fmt: skip
    for _ in range(2):
        ance("refresh", "ance", "--depth", 12, "--negatives", 4, "--gpus", "none")
        newest = max((folder / "ance" / "generations").glob("[0-9]*"))
        ance("train-segment", newest / "negatives.jsonl", "--steps", 2, "-o", "ance",
             "--gpus", "none")  # fmt: skip
    return ance


def test_a_card_holds_data_recipe_measures_and_lineage(world, backbone):
    text = model_card(world.cwd / "ance" / "checkpoints" / "step-00000002", "me/small")
    card = ModelCard(text)
    assert card.data.library_name == "sentence-transformers"
    assert card.data.pipeline_tag == "sentence-similarity" and "ance" in card.data.tags
    stats = json.loads((world.cwd / "ance/generations/0002/manifest.json").read_text())["stats"]
    assert {r.metric_type: r.metric_value for r in card.data.eval_results} == stats["dev"]
    assert card.data.eval_results[0].dataset_name == "data dev"
    for words in (
        "# me/small\n",
        'SentenceTransformer("me/small")',
        "ance encode --ckpt me/small --data",
        f"1. `{backbone.name}`: the start\n",
        "2. `warmup`: a fresh head, 2 steps on data, negatives: `bm25.jsonl`\n",
        "3. `ance`: 2 steps on data, negatives: 1 generation mined by the model itself",
        "| vectors | 32 dimensions, compared by cosine |",
        "| split | train |",
        "| batch size | 4 |",
        "| refresh: depth | 12 |",
        "mined from the whole corpus by the model being trained",
        f"| **2** | **2** | **{next(iter(stats['dev'].values()))}** |",
    ):
        assert words in text, words
    assert not re.search(r"(/tmp|/home|" + re.escape(str(world.cwd)) + ")", text)
    assert len(lineage_of(world, "ance/latest")) == 3


def lineage_of(world, name):
    from ance_cli.models.checkpoint import Checkpoint

    return lineage(Checkpoint(world.cwd / name))


def test_a_warm_up_and_a_checkpoint_without_its_run(world, tmp_path, checkpoint):
    warm = model_card(world.cwd / "warmup")
    assert "# warmup\n" in warm and "mined from the whole corpus" not in warm
    assert "## Measures" not in warm and "model-index" not in warm
    alone = model_card(checkpoint)
    assert "1. `ckpt`" in alone and "## Recipe" not in alone
    ModelCard(alone).data.to_dict()


def test_a_start_from_the_hub_is_the_base_model(world, tmp_path, checkpoint):
    import shutil

    commit = "0123456789abcdef0123456789abcdef01234567"
    start = tmp_path / "models--org--base" / "snapshots" / commit
    shutil.copytree(checkpoint, start)
    run = tmp_path / "run"
    shutil.copytree(world.cwd / "warmup", run, symlinks=True)
    facts = json.loads((run / "run.json").read_text()) | {"start_checkpoint": str(start)}
    (run / "run.json").write_text(json.dumps(facts))
    text = model_card(run)
    assert ModelCard(text).data.base_model == "org/base"
    assert "1. `org/base at 0123456789ab`: the start" in text


def test_what_has_no_card(backbone, tmp_path):
    with pytest.raises(BadInput, match="has no pooling and head"):
        model_card(backbone)
    with pytest.raises(BadInput, match="no such checkpoint folder"):
        model_card(tmp_path / "nothing")


def test_the_command(world):
    on_stdout = world("card", "ance").stdout
    assert on_stdout.startswith("---\n") and "# ance\n" in on_stdout
    world("card", "ance/best", "--name", "me/small", "-o", "README.md")
    found = world("card", "ance", "-o", "README.md", code=2)
    assert "README.md: exists" in found.stderr and "--force" in found.stderr
    assert "# me/small\n" in (world.cwd / "README.md").read_text()
    world("card", "ance", "-o", "README.md", "--force")
    assert "# ance\n" in (world.cwd / "README.md").read_text()


# ---------------------------------------------------------------- push


@pytest.fixture
def hub(monkeypatch):
    """A hub that takes everything; gives what came."""
    came = []

    class Api:
        def create_repo(self, repo_id, private, exist_ok, repo_type):
            assert repo_type == "model"
            came.append(("repo", repo_id, private, exist_ok))

        def create_commit(self, repo_id, operations, *, commit_message, repo_type):
            assert repo_type == "model"
            files = {operation.path_in_repo: operation for operation in operations}
            came.append(("commit", repo_id, files, commit_message))
            return type("Commit", (), {"commit_url": f"https://hub/{repo_id}/commit/1"})

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    return came


def test_push_sends_the_checkpoint_and_its_card_in_one_commit(world, hub):
    folder = (world.cwd / "ance" / "latest").resolve()
    for name in ("pytorch_model.bin", "notes.txt", "trainer_state.json"):
        (folder / name).write_bytes(b"never")
    found = push(world.cwd / "ance", "me/small")
    for name in found["left_out"]:
        (folder / name).unlink()
    assert found["left_out"] == ["notes.txt", "pytorch_model.bin", "trainer_state.json"]
    assert hub[0] == ("repo", "me/small", True, True) and len(hub) == 2
    assert found["visibility"] == "private"
    files = hub[1][2]
    expected = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert set(files) == expected | {"README.md"} == set(found["files"])
    assert "1_Pooling/config.json" in files and "ance.json" in files
    assert Path(files["model.safetensors"].path_or_fileobj) == folder / "model.safetensors"
    assert b"# me/small\n" in files["README.md"].path_or_fileobj
    assert found["url"] == "https://hub/me/small/commit/1"


def test_a_model_is_public_only_if_that_was_asked(world, hub):
    assert push(world.cwd / "ance", "me/small", public=True)["visibility"] == "public"
    assert hub[0] == ("repo", "me/small", False, True)


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer_config.json"])
def test_a_link_that_leads_out_of_the_checkpoint_is_not_followed(world, hub, tmp_path, name):
    (tmp_path / "id_rsa").write_text("SECRET")
    folder = tmp_path / "ckpt"
    shutil.copytree(world.cwd / "ance" / "latest", folder)
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(tmp_path / "id_rsa")
    with pytest.raises(BadInput):  # at the checkpoint's own hashes, or at the link
        push(folder, "me/small")
    assert not hub
    assert leads_out(folder / name, folder) and not leads_out(folder / "ance.json", folder)


def test_the_files_of_a_snapshot_in_the_hub_cache_are_inside(tmp_path):
    blob = tmp_path / "models--me--small" / "blobs" / "abc"
    snapshot = tmp_path / "models--me--small" / "snapshots" / "1234"
    blob.parent.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    blob.write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/abc")
    (snapshot / "vocab.txt").symlink_to("/etc/passwd")
    assert not leads_out(snapshot / "config.json", snapshot)
    assert leads_out(snapshot / "vocab.txt", snapshot)


def test_a_path_of_this_machine_does_not_reach_the_card(world):
    shown = {"teacher": "/srv/secret/cross", "index_factory": "IVF16,Flat", "loss": "nll"}
    assert [_without_folder(value) for value in shown.values()] == ["cross", "IVF16,Flat", "nll"]
    assert _without_folder("../secret/cross") == "cross" and _without_folder(0.5) == 0.5
    assert _without_folder("cross-encoder/ms-marco") == "cross-encoder/ms-marco"


def test_a_readme_of_its_own_goes_first(world, hub):
    own = (world.cwd / "warmup" / "latest").resolve() / "README.md"
    own.write_text("mine")
    push(world.cwd / "warmup" / "latest", "me/warm")
    own.unlink()
    assert Path(hub[1][2]["README.md"].path_or_fileobj) == own


def test_a_dry_run_asks_the_hub_nothing(world, hub):
    found = json.loads(
        world("checkpoint", "push", "ance", "me/small", "--dry-run", "--json").stdout
    )
    assert hub == [] and found["dry_run"] is True
    assert "README.md" in found["files"] and "model.safetensors" in found["files"]


def test_what_the_hub_refuses_is_said(world, monkeypatch, backbone):
    class Api:
        def create_repo(self, *_, **__):
            raise RuntimeError("401 Client Error\nand a long story")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    with pytest.raises(ResourceExhausted, match=r"refused the model \(401 Client Error\)"):
        push(world.cwd / "ance", "me/small")
    with pytest.raises(UsageProblem, match="cannot be a name on the hub"):
        push(world.cwd / "ance", "me/ance/small")
    with pytest.raises(BadInput, match="has no pooling and head"):
        push(backbone, "me/small")


@pytest.mark.long
def test_there_and_back_over_a_socket(world, tmp_path):
    """The programs and the hub's own client, against a hub of its HTTP interface."""
    folder = (world.cwd / "ance" / "latest").resolve()
    ance, hub_home = Ance(world.cwd), str(tmp_path / "hub")
    with running_hub() as hub:
        there = {**hub.environment, "HF_HOME": hub_home}
        push = ["checkpoint", "push", "ance", "me/small"]
        found = json.loads(ance(*push, "--json", **there).stdout)
        assert hub.private == {"me/small": True} and hub.messages == [
            "Checkpoint step-00000004, by ance"
        ]
        (commit,) = hub.commits("me/small")
        assert found["url"] == f"{hub.endpoint}/me/small/commit/{commit}"
        sent = dict(hub.models["me/small"][0])
        card = ModelCard(sent.pop("README.md").decode())
        assert card.data.library_name == "sentence-transformers"
        assert sent == tree(folder)
        weights = {name for name in sent if name.endswith(".safetensors")}
        assert len(weights) == 1 == sum(asked.startswith("PUT /store/") for asked in hub.asked)

        # the model is there: a second commit
        assert ance("checkpoint", "push", "warmup", "me/small", "--quiet", **there).stderr == ""
        assert len(hub.commits("me/small")) == 2 and hub.private == {"me/small": True}
        newest, pinned = (
            json.loads(ance("checkpoint", "inspect", name, "--json", **there).stdout)
            for name in ("me/small", f"me/small@{commit}")
        )
        ours = json.loads(world("checkpoint", "inspect", folder, "--json").stdout)
        assert pinned["hashes"] == ours["hashes"] != newest["hashes"]

        data = ["--data", "data", "--gpus", "none"]
        fetched = ["encode", "--ckpt", f"me/small@{commit}", *data, "-o", "hub.emb", "-q"]
        assert ance(*fetched, **there).stderr == ""
        run = ["train-segment", "bm25.jsonl", *data, "--steps", 1, "--batch-size", 4, "-o", "again"]
        ance(*run, "--ckpt", "me/small", **there)

        refused = ance(*push, code=5, **{**there, "HF_TOKEN": "hf_another"})
        assert "me/small: the hub refused the model (" in refused.stderr
        missing = ance("encode", "--ckpt", "me/nothing", *data, "-o", "x", code=3, **there)
        assert "the model hub returned no model of that name" in missing.stderr
    world("encode", "--ckpt", folder, *data, "-o", "here.emb")
    vectors = [
        (world.cwd / name / "embeddings.npy").read_bytes() for name in ("hub.emb", "here.emb")
    ]
    assert vectors[0] == vectors[1]
    assert "me/small at" in model_card(world.cwd / "again")
    assert TOKEN not in found["url"] and TOKEN not in (world.cwd / "again" / "run.json").read_text()


@pytest.mark.parametrize(
    "words", [["ance"], ["ance", "me/small", "more"], ["ance", "me/small", "-o", "x"]]
)
def test_what_push_takes(world, hub, words):
    found = world("checkpoint", "push", *words, code=2)
    assert (
        "push takes a checkpoint or a dataset folder, and its name on the hub" in found.stderr
        and hub == []
    )
