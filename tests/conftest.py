"""What several test files use."""

import data  # noqa: F401, I001 - first: it sets up Keras
import keras
import pytest
import tensorflow as tf


@pytest.fixture(autouse=True)
def usual_settings():
    """Whatever a test sets, the next one begins with Keras's usual policy, and with graphs."""
    yield
    keras.config.set_dtype_policy("float32")
    tf.config.run_functions_eagerly(False)


@pytest.fixture
def mixed_precision():
    """Within the test Keras's layers compute in float16, unless they are told otherwise."""
    keras.config.set_dtype_policy("mixed_float16")
