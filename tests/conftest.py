"""What several test files use."""

import data  # noqa: F401, I001 - first: it sets up Keras
import keras
import pytest


@pytest.fixture(autouse=True)
def usual_dtype_policy():
    """Whatever a test sets, the next one begins with Keras's usual policy."""
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def mixed_precision():
    """Within the test Keras's layers compute in float16, unless they are told otherwise."""
    keras.config.set_dtype_policy("mixed_float16")
