import math

import numpy as np
import pytest
import torch

from ance_cli.training.loss import (
    DISTILLATIONS,
    LOSSES,
    doc_scores,
    likely_positives,
    margin_mse,
    nll,
    pairwise,
    scores_by_width,
    with_batch_negatives,
)

ABSENT = -math.inf
UNSCORED = math.nan


def softplus(x):
    return math.log1p(math.exp(x))


def log_softmax(values):
    whole = math.log(sum(map(math.exp, values)))
    return [value - whole for value in values]


def mean(values):
    return sum(values) / len(values)


# one row: the score of the positive, then those of the negatives that there are
LOSS_TWINS = {
    "nll": lambda s, negatives, margin: -log_softmax([s, *negatives])[0],
    "pairwise": lambda s, negatives, margin: mean([softplus(x - s) for x in negatives]),
    "bce": lambda s, negatives, margin: softplus(-s) + mean([softplus(x) for x in negatives]),
    "hinge": lambda s, negatives, margin: mean([max(0.0, margin - s + x) for x in negatives]),
}


def loss_twin(name, scores, margin):
    total = 0.0
    for positive, *negatives in scores:
        if present := [x for x in negatives if x != ABSENT]:
            total += LOSS_TWINS[name](positive, present, margin)
    return total / len(scores)


def distillation_twin(name, scores, teacher):
    total = 0.0
    for row, teacher_row in zip(scores, teacher, strict=True):
        if math.isnan(teacher_row[0]):
            continue
        both = [(s, t) for s, t in zip(row, teacher_row, strict=True)
                if s != ABSENT and not math.isnan(t)]  # fmt: skip
        (s, t), negatives = both[0], both[1:]
        if name == "margin-mse" and negatives:
            total += mean([((s - x) - (t - y)) ** 2 for x, y in negatives])
        elif name == "kl":
            found, expected = (log_softmax(values) for values in zip(*both, strict=True))
            total += sum(math.exp(p) * (p - q) for p, q in zip(expected, found, strict=True))
    return total / len(scores)


def some_scores(seed=0, scale=3.0):
    """(6, 5) scores with absent entries: some, none, all of a row."""
    scores = np.random.default_rng(seed).normal(size=(6, 5)) * scale
    scores[0, 2:] = scores[1, 1] = scores[2, 1:] = scores[3, 3] = ABSENT
    return scores


def some_teacher():
    """(6, 5) scores of a teacher: what it left out includes a positive, and all of a row."""
    teacher = np.random.default_rng(1).normal(size=(6, 5))
    teacher[0, 4] = teacher[1, 2] = teacher[3, 1:] = teacher[4, 0] = teacher[5] = UNSCORED
    teacher[4, 1:3] = UNSCORED
    return teacher


def loss_with_twin(name, dtype):
    """A loss of tensors and its twin of lists, each over the scores alone."""
    if name in LOSSES:
        return lambda s: LOSSES[name](s, 0.7), lambda s: loss_twin(name, s, 0.7)
    teacher = some_teacher()
    tensor = torch.tensor(teacher, dtype=dtype)
    return (
        lambda s: DISTILLATIONS[name](s, tensor),
        lambda s: distillation_twin(name, s, teacher.tolist()),
    )


def gradient_of(loss, scores):
    leaf = torch.tensor(scores, requires_grad=True)
    loss(leaf).backward()
    return leaf.grad


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("scale", [0.1, 3.0, 20.0])
def test_losses_against_their_twins(name, scale):
    scores = some_scores(scale=scale)
    found = float(LOSSES[name](torch.tensor(scores), 0.7))
    assert found == pytest.approx(loss_twin(name, scores.tolist(), 0.7), rel=1e-12)


@pytest.mark.parametrize("name", DISTILLATIONS)
def test_distillations_against_their_twins(name):
    scores, teacher = some_scores(), some_teacher()
    found = float(DISTILLATIONS[name](torch.tensor(scores), torch.tensor(teacher)))
    expected = distillation_twin(name, scores.tolist(), teacher.tolist())
    assert expected > 0.01
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", [*LOSSES, *DISTILLATIONS])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradients_are_the_twins_slopes_and_finite(name, dtype):
    """Central differences of the twin, which leaves absent entries out."""
    scores = some_scores()
    loss, twin = loss_with_twin(name, dtype)
    leaf = torch.tensor(scores, dtype=dtype, requires_grad=True)
    loss(leaf).backward()
    assert leaf.grad.isfinite().all()
    for place in np.ndindex(scores.shape):
        up, down = scores.copy(), scores.copy()
        up[place] += 1e-5
        down[place] -= 1e-5
        slope = (twin(up.tolist()) - twin(down.tolist())) / 2e-5
        assert float(leaf.grad[place]) == pytest.approx(slope, abs=1e-6), place


@pytest.mark.parametrize("name", [name for name in [*LOSSES, *DISTILLATIONS] if name != "hinge"])
def test_gradcheck_over_the_present_entries(name):
    """Without the hinge, which has corners. The absent entries are constants here."""
    scores, teacher = torch.tensor(some_scores()), torch.tensor(some_teacher())
    present = scores != ABSENT

    def value(entries):
        whole = scores.masked_scatter(present, entries)
        return LOSSES[name](whole, 0.0) if name in LOSSES else DISTILLATIONS[name](whole, teacher)

    assert torch.autograd.gradcheck(value, scores[present].requires_grad_())


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("scores", [[[1.5]], [[1.5, ABSENT, ABSENT]]])
def test_a_query_without_negatives_adds_nothing(name, scores):
    scores = np.array(scores)
    assert float(LOSSES[name](torch.tensor(scores), 5.0)) == 0.0
    assert not gradient_of(lambda s: LOSSES[name](s, 5.0), scores).any()


@pytest.mark.parametrize("name", DISTILLATIONS)
@pytest.mark.parametrize(
    "scores,teacher",
    [
        ([[1.5, 0.5]], [[UNSCORED, 2.0]]),
        ([[1.5, 0.5]], [[2.0, UNSCORED]]),
        ([[1.5, ABSENT]], [[2.0, 1.0]]),
        ([[1.5, 0.5]], [[UNSCORED, UNSCORED]]),
        ([[1.5]], [[2.0]]),
    ],
)
def test_nothing_to_distil_adds_nothing(name, scores, teacher):
    loss = DISTILLATIONS[name]
    scores, teacher = np.array(scores), torch.tensor(teacher, dtype=torch.float64)
    assert float(loss(torch.tensor(scores), teacher)) == 0.0
    assert not gradient_of(lambda s: loss(s, teacher), scores).any()


@pytest.mark.parametrize("name", DISTILLATIONS)
def test_a_student_that_agrees_up_to_a_shift_has_nothing_to_learn(name):
    teacher = torch.tensor(np.random.default_rng(5).normal(size=(3, 4)))
    assert float(DISTILLATIONS[name](teacher + 2.0, teacher)) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("name", [*LOSSES, *DISTILLATIONS])
@pytest.mark.parametrize("place", [0, 1])
def test_a_diverged_score_is_not_hidden(name, place):
    scores = torch.zeros(2, 3)
    scores[0, place] = math.nan
    teacher = torch.zeros(2, 3)
    loss = LOSSES[name](scores, 1.0) if name in LOSSES else DISTILLATIONS[name](scores, teacher)
    assert loss.isnan()


def test_nll_of_one_negative_is_the_logistic_loss_of_the_margin():
    scores = torch.tensor([[2.0, 0.5]], dtype=torch.float64)
    assert float(nll(scores)) == pytest.approx(math.log1p(math.exp(-1.5)), rel=1e-12)
    assert float(pairwise(scores)) == pytest.approx(float(nll(scores)), rel=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_large_margins_do_not_overflow(name):
    for scores in ([[1e4, -1e4]], [[-1e4, 1e4]]):
        leaf = torch.tensor(scores, requires_grad=True)
        loss = LOSSES[name](leaf, 1.0)
        loss.backward()
        assert loss.isfinite() and leaf.grad.isfinite().all()


def test_margin_mse_of_scores_in_another_unit_than_the_teachers():
    scores, teacher = torch.tensor([[3.0, 1.0]]), torch.tensor([[10.0, 5.0]])
    assert float(margin_mse(scores, teacher)) == 9.0


def test_doc_scores_take_the_best_segment():
    rng = np.random.default_rng(2)
    queries, rows = rng.normal(size=(3, 4)), rng.normal(size=(7, 4))
    rows_of = np.array([[0, 1, -1], [2, -1, -1], [3, 4, 5], [6, -1, -1], [2, 6, 0]])
    found = doc_scores(torch.tensor(queries), torch.tensor(rows), torch.tensor(rows_of))
    assert found.shape == (3, 5)
    for b in range(3):
        for document in range(5):
            expected = max(queries[b] @ rows[r] for r in rows_of[document] if r >= 0)
            assert float(found[b, document]) == pytest.approx(expected, rel=1e-12)


def test_doc_scores_of_one_row_each():
    rng = np.random.default_rng(3)
    queries, rows = rng.normal(size=(2, 4)), rng.normal(size=(3, 4))
    found = doc_scores(*map(torch.tensor, (queries, rows, np.array([[2], [0], [2]]))))
    np.testing.assert_allclose(found.numpy(), (queries @ rows.T)[:, [2, 0, 2]], rtol=1e-12)


@pytest.mark.parametrize("is_cosine", [False, True])
def test_scores_of_cut_vectors_against_their_twin(is_cosine):
    """The best segment of a document may be another one at another width."""
    rng = np.random.default_rng(4)
    queries, rows = rng.normal(size=(3, 6)), rng.normal(size=(7, 6))
    rows_of = np.array([[0, 1, -1], [2, -1, -1], [3, 4, 5], [6, -1, -1]])
    found = scores_by_width(*map(torch.tensor, (queries, rows, rows_of)), [6, 4, 1], is_cosine)
    chosen = []
    for width, scores in zip([6, 4, 1], found, strict=True):
        cut_queries, cut_rows = queries[:, :width], rows[:, :width]
        if is_cosine and width < 6:
            cut_queries, cut_rows = (
                np.array([vector / math.hypot(*vector) for vector in vectors])
                for vectors in (cut_queries, cut_rows)
            )
        for b in range(3):
            for document in range(4):
                by_row = {r: cut_queries[b] @ cut_rows[r] for r in rows_of[document] if r >= 0}
                chosen.append((b, document, max(by_row, key=by_row.get)))
                expected = max(by_row.values())
                assert float(scores[b, document]) == pytest.approx(expected, rel=1e-6)
    assert len(set(chosen)) > 3 * 4


def test_only_the_best_segment_has_a_gradient():
    rows = torch.tensor([[9.0, 9.0], [1.0, 0.0], [2.0, 0.0]], requires_grad=True)
    rows_of = torch.tensor([[1, 2], [1, -1]])  # a missing segment is clamped to row 0
    doc_scores(torch.tensor([[1.0, 0.5]]), rows, rows_of)[:, 0].sum().backward()
    assert rows.grad.tolist() == [[0.0, 0.0], [0.0, 0.0], [1.0, 0.5]]


def batch_negatives_twin(scores, members, banned, mode, picks):
    rows = []
    for b, own in enumerate(members):
        positive = scores[b][own[0]]
        if mode == "all":
            entries = [ABSENT if out else s for s, out in zip(scores[b], banned[b], strict=True)]
            rows.append([positive, *entries])
            continue
        row = [scores[b][d] if d >= 0 else ABSENT for d in own]
        allowed = [d for d in range(len(scores[b])) if not banned[b][d] and d not in own]
        if mode == "hardest":
            row.append(max((scores[b][d] for d in allowed), default=ABSENT))
        elif mode == "random":
            chosen = allowed[math.floor(picks[b] * len(allowed))] if allowed else None
            row.append(ABSENT if chosen is None else scores[b][chosen])
        rows.append(row)
    return rows


def a_batch(seed, num_docs=8):
    """Six queries with up to three negatives; the last one has nothing to choose from."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(6, num_docs))
    members = np.stack([rng.permutation(num_docs)[:4] for _ in range(6)])
    members[1, 2:] = members[2, 1:] = -1
    banned = rng.random((6, num_docs)) < 0.25
    banned[np.arange(6), members[:, 0]] = True
    banned[5] = True
    return scores, members, banned, rng.random(6)


@pytest.mark.parametrize("mode", ["none", "all", "hardest", "random"])
@pytest.mark.parametrize("seed", range(5))
def test_batch_negatives_against_their_twin(mode, seed):
    scores, members, banned, picks = a_batch(seed)
    leaf = torch.tensor(scores, requires_grad=True)
    found = with_batch_negatives(
        leaf, *map(torch.tensor, (members, banned)), mode, torch.tensor(picks)
    )
    expected = batch_negatives_twin(scores.tolist(), members.tolist(), banned, mode, picks)
    assert found.tolist() == expected
    for loss in LOSSES.values():
        leaf.grad = None
        loss(found, 1.0).backward(retain_graph=True)
        assert leaf.grad.isfinite().all()
    for b, own in enumerate(members):  # what may not be a negative is not pushed away
        forbidden = [d for d in range(scores.shape[1]) if banned[b, d] and d not in own]
        assert not leaf.grad[b, forbidden].any()


@pytest.mark.parametrize("mode", ["none", "all", "hardest", "random"])
@pytest.mark.parametrize("margin", [-0.5, 0.0, 0.4, 100.0, -100.0])
def test_likely_positives_against_their_twin(mode, margin):
    """The query's own mined negatives stay, however high they score."""
    scores, members, banned, picks = a_batch(7)
    left_out = likely_positives(*map(torch.tensor, (scores, members)), margin)
    expected = banned.copy()
    for b, own in enumerate(members):
        limit = scores[b, own[0]] + margin
        others = [d for d in range(scores.shape[1]) if d not in own]
        expected[b, [d for d in others if scores[b, d] > limit]] = True
        assert not left_out[b, [d for d in own if d >= 0]].any()
    together = torch.tensor(banned) | left_out
    assert together.tolist() == expected.tolist()
    found = with_batch_negatives(
        *map(torch.tensor, (scores, members)), together, mode, torch.tensor(picks)
    )
    assert found.tolist() == batch_negatives_twin(
        scores.tolist(), members.tolist(), expected, mode, picks
    )


def test_likely_positives_are_judged_without_gradients():
    scores = torch.tensor([[1.0, 2.0, 1.5]], requires_grad=True)
    found = likely_positives(scores, torch.tensor([[0]]), 0.5)
    assert found.tolist() == [[False, True, False]] and not found.requires_grad


def test_a_diverged_positive_leaves_nothing_out():
    scores = torch.tensor([[math.nan, 2.0], [0.0, math.nan]])
    assert not likely_positives(scores, torch.tensor([[0], [0]]), 0.0).any()


def test_random_negatives_are_uniform_over_the_allowed():
    scores = torch.arange(6.0).repeat(1000, 1)
    members = torch.tensor([[1, 4]]).repeat(1000, 1)
    banned = torch.zeros(1000, 6, dtype=torch.bool)
    banned[:, :2] = True
    picks = torch.arange(1000, dtype=torch.float64) / 1000
    drawn = with_batch_negatives(scores, members, banned, "random", picks)[:, -1]
    assert drawn.unique(return_counts=True)[1].tolist() == [334, 333, 333]
    assert drawn.unique().tolist() == [2.0, 3.0, 5.0]


def test_the_largest_pick_is_the_last_document():
    largest = torch.tensor([np.nextafter(1.0, 0.0)])
    for num_docs in (2, 3, 4, 1001):
        scores = torch.arange(float(num_docs)).unsqueeze(0)
        banned = torch.zeros(1, num_docs, dtype=torch.bool)
        banned[0, 0] = True
        found = with_batch_negatives(scores, torch.tensor([[0]]), banned, "random", largest)
        assert found.tolist() == [[0.0, num_docs - 1.0]]


@pytest.mark.parametrize("mode", ["hardest", "random"])
def test_the_added_negative_learns(mode):
    scores = torch.tensor([[2.0, 1.0, 0.0, 3.0]], requires_grad=True)
    banned = torch.tensor([[True, False, False, False]])
    picks = torch.tensor([0.99], dtype=torch.float64)
    nll(with_batch_negatives(scores, torch.tensor([[0, 1]]), banned, mode, picks)).backward()
    assert (scores.grad[0] != 0).tolist() == [True, True, False, True]


def test_an_unknown_mode_and_missing_picks():
    batch = torch.zeros(1, 2), torch.tensor([[0]]), torch.zeros(1, 2, dtype=torch.bool)
    for mode in ("some", "random"):
        with pytest.raises(ValueError, match=mode):
            with_batch_negatives(*batch, mode)
