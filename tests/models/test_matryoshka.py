import numpy as np
import pytest
import torch

from ance_cli.models.matryoshka import cut


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_cut_vectors_for_cosine_have_length_one_again(dtype):
    vectors = torch.tensor(np.random.default_rng(0).normal(size=(3, 6)), dtype=dtype)
    found = cut(vectors, 4, is_cosine=True)
    expected = vectors.numpy()[:, :4].astype(np.float64)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert found.dtype == dtype
    np.testing.assert_allclose(found.numpy(), expected, rtol=torch.finfo(dtype).eps)


def test_cut_vectors_for_dot_products_keep_their_size():
    vectors = torch.arange(6.0).view(2, 3)
    assert cut(vectors, 2, is_cosine=False).tolist() == [[0.0, 1.0], [3.0, 4.0]]


@pytest.mark.parametrize("is_cosine", [False, True])
def test_whole_vectors_stay_as_they_are(is_cosine):
    vectors = torch.arange(6.0).view(2, 3)
    assert cut(vectors, 3, is_cosine) is vectors


def test_a_vector_of_zeros_has_no_direction():
    vectors = torch.tensor([[0.0, 0.0, 1.0]])
    assert cut(vectors, 2, is_cosine=True).tolist() == [[0.0, 0.0]]
