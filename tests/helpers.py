"""What the tests of train.py share: a little data, a network of 490 parameters, and readers for what a run leaves."""

import csv

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from matplotlib.figure import Figure  # noqa: F401 - for the tests
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import augment
import data
import train

SAMPLE = data.load_cifar10("sample")
X_TRAIN, Y_TRAIN, X_VAL, Y_VAL = SAMPLE.x_train[:60], SAMPLE.y_train[:60], SAMPLE.x_val[:30], SAMPLE.y_val[:30]


def tiny_network(*_, name="tiny"):
    """Stands in for build_wrn: averages over 8×8 pixels, dropout, and one dense layer."""
    images = keras.Input((32, 32, 3))
    tensor = layers.Dropout(0.2)(layers.Flatten()(layers.AveragePooling2D(8)(images)))
    return keras.Model(images, layers.Dense(10, activation="softmax", dtype="float32")(tensor), name=name)


def tiny_model(seed=0):
    """Return the standardiser and the tiny network, its weights drawn from the seed."""
    keras.utils.set_random_seed(seed)
    return train.assemble(augment.standardiser(X_TRAIN, 3), tiny_network())


def train_tiny(model, out, optimizer=None, **changes):
    """Train on 60 images for three epochs of three batches; return (history, run_dir)."""
    keywords = {"epochs": 3, "batch_size": 20, "out": out} | changes
    return train.compile_and_train(model, "tiny", X_TRAIN, Y_TRAIN, X_VAL, Y_VAL, 3, optimizer, **keywords)


def save_data(path, train_count, test_count):
    """Write an .npz file of the sample's first images; return its path."""
    counts = {"train": train_count, "test": test_count}
    names = ("x_train", "y_train", "x_test", "y_test")
    np.savez(path, **{name: getattr(SAMPLE, name)[: counts[name[2:]]] for name in names})
    return str(path)


def read_history(run_dir):
    """Return the rows of history.csv as dicts of strings."""
    with open(run_dir / "history.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_scalars(folder):
    """Return {tag: {step: value}} of a folder of TensorBoard; a step that was repeated counts once."""
    log = EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()
    tags = log.Tags()["tensors"]
    return {tag: {event.step: float(tf.make_ndarray(event.tensor_proto)) for event in log.Tensors(tag)} for tag in tags}


def evaluate(model, images, labels):
    """Return loss and accuracy from the probabilities, in NumPy."""
    probabilities = np.asarray(model(images.astype("float32")), float)
    loss = -np.log(np.maximum(probabilities[np.arange(len(labels)), labels], 1e-38)).mean()
    return loss, (probabilities.argmax(1) == labels).mean()


def assert_equal_arrays(one, other):
    """Fail unless two lists have equal arrays, to the last bit."""
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)
