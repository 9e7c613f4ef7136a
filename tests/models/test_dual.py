"""Both encoders as one model: what is shared, what is frozen, and what comes back from disk."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ance_cli.errors import BadInput, UsageProblem
from ance_cli.models.checkpoint import Checkpoint
from ance_cli.models.dual import (
    DualEncoder,
    Start,
    enable_gradient_checkpointing,
    freeze_passages,
    load_dual,
    save_dual,
    start_dual,
)
from ance_cli.models.encoder import described, set_dropout
from ance_cli.models.tokens import Tokenizer
from tests.families import FAMILIES
from tests.models.test_encoder import TEXTS, our_vectors
from tests.world import tree


def tensors(folder, texts=TEXTS, side="passage"):
    token_ids, mask = Tokenizer(Checkpoint(folder))(texts, side).padded(range(len(texts)), 0)
    return torch.from_numpy(token_ids), torch.from_numpy(mask)


def save(dual, start, folder, **options):
    save_dual(dual, start.settings, folder, **options)
    return Checkpoint(folder)


def their_vectors(folder):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu")
    return model.encode_query(TEXTS), model.encode_document(TEXTS), model.encode(TEXTS)


def move_query_tower(dual):
    with torch.no_grad():
        dual.query.chain[2].linear.weight[0, 0] += 1.0


# ---------------------------------------------------------------- one model


def test_two_towers_give_different_vectors_for_a_side(two_towers):
    queries, passages = load_dual(Checkpoint(two_towers))(*tensors(two_towers) * 2)
    assert queries.shape == passages.shape == (len(TEXTS), 32)
    assert not torch.allclose(queries, passages, atol=1e-2)
    passages_alone = our_vectors(two_towers, side="passage", query_length=24)
    np.testing.assert_allclose(passages.detach(), passages_alone, atol=1e-5)


@pytest.mark.parametrize("folder", ["checkpoint", "two_towers"])
def test_either_side_may_be_left_out(request, folder):
    folder = request.getfixturevalue(folder)
    dual = load_dual(Checkpoint(folder))
    inputs = tensors(folder)
    both = dual(*inputs, *inputs)
    queries, nothing = dual(*inputs, None, None)
    assert nothing is None and torch.equal(queries, both[0])
    nothing, passages = dual(None, None, *inputs)
    assert nothing is None and torch.equal(passages, both[1])


def test_the_state_holds_each_weight_once(checkpoint, two_towers):
    shared, two = load_dual(Checkpoint(checkpoint)), load_dual(Checkpoint(two_towers))
    assert shared.shared and shared.query is shared.passage and shared.dim == 32
    assert not two.shared and two.query is not two.passage
    one_tower = set(shared.query.state_dict())
    assert set(shared.state_dict()) == {f"towers.shared.{name}" for name in one_tower}
    assert len(two.state_dict()) == 2 * len(one_tower)
    for dual in (shared, two):
        places = [value.data_ptr() for value in dual.state_dict().values()]
        assert len(set(places)) == len(places)
    assert sum(p.numel() for p in two.parameters()) == 2 * sum(
        p.numel() for p in shared.parameters()
    )


def test_every_parameter_that_trains_gets_a_gradient(tmp_path, two_towers):
    """SqueezeBERT always has a pooler, whose output nobody reads."""
    from transformers import AutoTokenizer, SqueezeBertConfig, SqueezeBertModel

    plain = tmp_path / "squeezebert"
    AutoTokenizer.from_pretrained(two_towers / "query_0_Transformer").save_pretrained(plain)
    SqueezeBertModel(
        SqueezeBertConfig(vocab_size=160, hidden_size=16, embedding_size=16, num_hidden_layers=1,
                          num_attention_heads=2, intermediate_size=16, max_position_embeddings=66)
    ).save_pretrained(plain)  # fmt: skip
    dual, _ = start_dual(Checkpoint(plain), Start(head="paper", seed=1))
    queries, passages = dual(*tensors(plain) * 2)
    (queries * passages.flip(0)).sum().backward()
    frozen = [name for name, p in dual.named_parameters() if not p.requires_grad]
    assert frozen and all("pooler" in name for name in frozen)
    assert all(p.grad is not None for p in dual.parameters() if p.requires_grad)


# ---------------------------------------------------------------- starting


def test_two_towers_start_as_copies_of_the_shared_one(checkpoint):
    dual, fresh = start_dual(Checkpoint(checkpoint), Start(towers="two"))
    assert not dual.shared and not fresh
    query, passage = dual.query.state_dict(), dual.passage.state_dict()
    assert all(torch.equal(query[name], passage[name]) for name in query)
    move_query_tower(dual)
    linears = [encoder.chain[2].linear.weight for encoder in (dual.query, dual.passage)]
    assert torch.equal(linears[1], passage["chain.2.linear.weight"])
    assert not torch.equal(*linears)


def test_towers_stay_as_the_checkpoint_has_them(checkpoint, two_towers):
    for towers in (None, "shared"):
        assert start_dual(Checkpoint(checkpoint), Start(towers=towers))[0].shared
    for towers in (None, "two"):
        assert not start_dual(Checkpoint(two_towers), Start(towers=towers))[0].shared


def test_two_towers_do_not_become_one(two_towers):
    with pytest.raises(UsageProblem, match="has two towers, which cannot become one"):
        start_dual(Checkpoint(two_towers), Start(towers="shared"))


def test_a_fresh_head_for_cosine(tmp_path, backbone):
    plain = Checkpoint(backbone)
    cosine = plain.with_settings(similarity="cosine", scale=20.0)
    dual, fresh = start_dual(cosine, Start(head="paper", dim=16, seed=5, towers="two"))
    assert fresh and not dual.shared
    for encoder in (dual.query, dual.passage):
        assert described(encoder) == "cls -> Dense -> LayerNorm -> Normalize"
    dot, _ = start_dual(plain, Start(head="paper", dim=16, seed=5))
    assert described(dot.query) == "cls -> Dense -> LayerNorm"
    assert torch.equal(dual.query.chain[2].linear.weight, dot.query.chain[2].linear.weight)
    saved = save(dual, cosine, tmp_path / "saved")
    assert saved.is_cosine and saved.dim == 16
    vectors = our_vectors(tmp_path / "saved", side="query")
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)


@pytest.mark.parametrize("normalize", [False, True])
def test_a_head_that_is_compared_by_cosine_from_now_on(tmp_path, checkpoint, normalize):
    start = Checkpoint(checkpoint).with_settings(similarity="cosine")
    dual, fresh = start_dual(start, Start(normalize=normalize))
    assert not fresh and (type(dual.query.head[-1]).__name__ == "Normalize") is normalize
    whole = our_vectors(checkpoint)
    expected = whole / np.linalg.norm(whole, axis=1, keepdims=True)
    saved = save(dual, start, tmp_path / "saved")
    assert saved.settings.similarity == "cosine"
    np.testing.assert_allclose(our_vectors(saved.path), expected, atol=1e-6)


def test_backbones_of_two_widths_need_a_dim(tmp_path, backbone):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Router, Transformer
    from transformers import AutoTokenizer, BertConfig, BertModel

    narrow = tmp_path / "narrow"
    AutoTokenizer.from_pretrained(backbone).save_pretrained(narrow)
    BertModel(
        BertConfig(vocab_size=160, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                   intermediate_size=16), add_pooling_layer=False,
    ).save_pretrained(narrow)  # fmt: skip
    router = Router.for_query_document([Transformer(str(narrow))], [Transformer(str(backbone))])
    SentenceTransformer(modules=[router]).save(str(tmp_path / "st"))
    plain = Checkpoint(tmp_path / "st")
    assert not plain.has_head and not plain.shared
    with pytest.raises(UsageProblem, match="its towers are 16 and 32 wide"):
        start_dual(plain, Start(head="paper", seed=1))
    dual, fresh = start_dual(plain, Start(head="paper", dim=8, seed=1))
    assert fresh and dual.dim == dual.passage.dim == 8
    with pytest.raises(BadInput, match="has no pooling and head"):
        load_dual(plain)


# ---------------------------------------------------------------- saving


@pytest.mark.parametrize("folder", ["checkpoint", "two_towers"])
def test_what_is_saved_comes_back(request, tmp_path, folder):
    start = Checkpoint(request.getfixturevalue(folder))
    saved = save(load_dual(start), start, tmp_path / "saved")
    assert tree(saved.path) == tree(start.path)
    assert saved.shared is start.shared and saved.settings == start.settings
    for side in ("query", "passage"):
        assert saved.tower_hash(side) == start.tower_hash(side)
        np.testing.assert_array_equal(our_vectors(saved.path, side=side),
                                      our_vectors(start.path, side=side))  # fmt: skip


def test_the_hash_of_a_tower_is_not_of_its_folder(tmp_path, checkpoint):
    """The vectors of a shared checkpoint stay valid when the query tower is trained further."""
    start = Checkpoint(checkpoint)
    dual = freeze_passages(load_dual(start))
    move_query_tower(dual)
    split = save(dual, start, tmp_path / "split", frozen_passage_from=start)
    assert not split.shared
    assert split.tower_hash("passage") == start.tower_hash("passage")
    assert split.tower_hash("query") != start.tower_hash("query")
    np.testing.assert_array_equal(our_vectors(split.path), our_vectors(checkpoint))
    assert not np.allclose(our_vectors(split.path, side="query"),
                           our_vectors(checkpoint, side="query"))  # fmt: skip
    # and on from the two towers
    dual = freeze_passages(load_dual(split))
    move_query_tower(dual)
    again = save(dual, split, tmp_path / "again", frozen_passage_from=split)
    assert again.tower_hash("passage") == start.tower_hash("passage")
    assert again.tower_hash("query") != split.tower_hash("query")


def test_a_foreign_passage_tower_is_copied_not_written_anew(tmp_path, backbone):
    """Its config and tokenizer files are another program's, and its cosine is not a module."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    modules = [Transformer(str(backbone), max_seq_length=20), Pooling(32, "mean")]
    SentenceTransformer(modules=modules, similarity_fn_name="cosine").save(str(tmp_path / "st"))
    start = Checkpoint(tmp_path / "st")
    dual = freeze_passages(load_dual(start))
    split = save(dual, start, tmp_path / "split", frozen_passage_from=start)
    assert split.tower_hash("passage") == start.tower_hash("passage")
    assert split.is_cosine
    written = save(dual, start, tmp_path / "written")
    assert written.tower_hash("passage") != start.tower_hash("passage")


def test_a_frozen_passage_tower_of_an_older_layout(tmp_path):
    """It is loaded as its own files say, without the fields that newer versions write."""
    FAMILIES["old-layout"](tmp_path / "st")
    start = Checkpoint(tmp_path / "st")
    dual = freeze_passages(load_dual(start))
    move_query_tower(dual)
    split = save(dual, start, tmp_path / "split", frozen_passage_from=start)
    assert split.tower_hash("passage") == start.tower_hash("passage")
    _, passages, default = their_vectors(split.path)
    np.testing.assert_array_equal(default, passages)
    passages /= np.linalg.norm(passages, axis=1, keepdims=True)
    np.testing.assert_allclose(our_vectors(split.path), passages, atol=1e-5)
    np.testing.assert_array_equal(our_vectors(split.path), our_vectors(start.path))


def test_moving_on_moves_the_step_alone(tmp_path, two_towers):
    start = Checkpoint(two_towers)
    moved = replace(start.settings, training_step=9)
    save_dual(load_dual(start), moved, tmp_path / "saved")
    saved = Checkpoint(tmp_path / "saved")
    assert saved.settings.training_step == 9
    assert saved.tower_hash("query") == start.tower_hash("query")


# ---------------------------------------------------------------- sentence-transformers


def test_sentence_transformers_reads_two_towers(two_towers):
    queries, passages, default = their_vectors(two_towers)
    np.testing.assert_allclose(our_vectors(two_towers, side="query"), queries, atol=1e-5)
    np.testing.assert_allclose(our_vectors(two_towers, side="passage"), passages, atol=1e-5)
    np.testing.assert_array_equal(default, passages)


def test_sentence_transformers_reads_a_frozen_passage_tower(tmp_path, checkpoint):
    start = Checkpoint(checkpoint).with_settings(query_length=30)  # longer than passages
    dual = freeze_passages(load_dual(start))
    move_query_tower(dual)
    save(dual, start, tmp_path / "split", frozen_passage_from=start)
    queries, passages, _ = their_vectors(tmp_path / "split")
    np.testing.assert_allclose(our_vectors(tmp_path / "split", side="query"), queries, atol=1e-5)
    np.testing.assert_allclose(our_vectors(tmp_path / "split"), passages, atol=1e-5)


@pytest.mark.parametrize("after", [False, True], ids=["in the routes", "after the router"])
def test_we_read_the_routers_of_sentence_transformers(tmp_path, backbone, after):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import (
        Dense,
        LayerNorm,
        Normalize,
        Pooling,
        Router,
        Transformer,
    )

    torch.manual_seed(3)
    tail = [] if after else [Normalize()]
    query = [Transformer(str(backbone), max_seq_length=10), Pooling(32, "mean"), Dense(32, 16)]
    document = [Transformer(str(backbone), max_seq_length=20), Pooling(32, "cls"), Dense(32, 16)]
    router = Router.for_query_document(
        [*query, LayerNorm(16), *tail], [*document, LayerNorm(16), *tail]
    )
    modules = [router, Normalize()] if after else [router]
    prompts = {"query": "bread ", "document": "comet "}
    SentenceTransformer(modules=modules, prompts=prompts).save(str(tmp_path / "st"))
    found = Checkpoint(tmp_path / "st")
    assert not found.shared and found.is_cosine and found.dim == 16
    settings = found.settings
    assert (settings.query_length, settings.passage_length, settings.similarity) == (
        10,
        20,
        "cosine",
    )
    queries, passages, _ = their_vectors(tmp_path / "st")
    np.testing.assert_allclose(our_vectors(found.path, side="query"), queries, atol=1e-5)
    np.testing.assert_allclose(our_vectors(found.path, side="passage"), passages, atol=1e-5)
    # and written by us, it is still theirs
    save(load_dual(found), found, tmp_path / "us")
    for one, other in zip(their_vectors(tmp_path / "us"), (queries, passages), strict=False):
        np.testing.assert_allclose(one, other, atol=1e-6)


# ---------------------------------------------------------------- training


def test_frozen_passages_do_not_train_and_do_not_tremble(checkpoint):
    shared = load_dual(Checkpoint(checkpoint))
    dual = freeze_passages(shared)
    assert not dual.shared and shared.shared
    inputs = tensors(checkpoint)
    still = shared(None, None, *inputs)[1]
    queries, passages = dual.train()(*inputs, *inputs)
    assert torch.equal(passages, still) and not passages.requires_grad
    assert not torch.allclose(queries, still)  # its dropout is on
    assert {name.split(".")[1] for name, p in dual.named_parameters() if p.requires_grad} == {
        "query"
    }
    assert freeze_passages(dual).passage is dual.passage


def test_dropout_is_set_in_both_towers(two_towers):
    dual = load_dual(Checkpoint(two_towers))
    inputs = tensors(two_towers) * 2
    still = dual(*inputs)
    set_dropout(dual, 0.0)
    torch.testing.assert_close(dual.train()(*inputs), still)


@pytest.mark.parametrize("towers", ["shared", "two"])
def test_gradient_checkpointing_gives_the_same_gradients(checkpoint, towers):
    gradients = []
    for checkpointing in (False, True):
        dual, _ = start_dual(Checkpoint(checkpoint), Start(towers=towers))
        set_dropout(dual, 0.0)
        calls = []
        for encoder in {dual.query, dual.passage}:
            layer = encoder.backbone.encoder.layer[0]
            layer.attention.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        if checkpointing:
            enable_gradient_checkpointing(dual)
        queries, passages = dual.train()(*tensors(checkpoint) * 2)
        (queries * passages.flip(0)).sum().backward()
        gradients.append([p.grad for p in dual.parameters()])
        assert len(calls) == (4 if checkpointing else 2)  # each layer runs again going back
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_a_backbone_that_cannot_checkpoint(checkpoint):
    dual = load_dual(Checkpoint(checkpoint))
    dual.query.backbone.supports_gradient_checkpointing = False
    with pytest.raises(UsageProblem, match="BertModel cannot do gradient checkpointing"):
        enable_gradient_checkpointing(dual)


def test_copies_share_nothing(checkpoint):
    encoder = load_dual(Checkpoint(checkpoint)).query
    assert DualEncoder(encoder, encoder).shared
    dual = freeze_passages(DualEncoder(encoder, encoder))
    ours = {p.data_ptr() for p in dual.query.parameters()}
    assert not ours & {p.data_ptr() for p in dual.passage.parameters()}
