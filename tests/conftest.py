"""What all tests share."""

import jax
import pytest

import purerl


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture(scope="session")
def cartpole():
    return purerl.make("CartPole-v1")
