"""What several test files use."""

import data  # noqa: F401, I001 - first: it sets up Keras
import keras
import pytest


@pytest.fixture
def mixed_precision():
    """Within the test Keras's layers compute in float16, unless they are told otherwise."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    yield
    keras.config.set_dtype_policy(before)
