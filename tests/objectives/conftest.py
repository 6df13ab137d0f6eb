"""The toy encoders and batches of ``catalign.testing`` as fixtures."""

import pytest
import torch

from catalign.testing import toy_batch, toy_catalogue, toy_encoders, toy_vocabulary


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def vocabulary():
    return toy_vocabulary()


@pytest.fixture
def catalogue():
    return toy_catalogue()


@pytest.fixture
def encoders():
    return toy_encoders()


@pytest.fixture
def encoders_of():
    return lambda image="vit", **behaviour: toy_encoders(image, {"behaviour": behaviour})


@pytest.fixture
def batch():
    return toy_batch()


@pytest.fixture
def batch_of():
    return toy_batch


@pytest.fixture
def seeded():
    return lambda seed=0: torch.Generator().manual_seed(seed)
