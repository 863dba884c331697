"""What the tests of train.py share: a little data, a network of 490 parameters, and readers for what a run leaves."""

import csv
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import augment
import data
import train

SAMPLE = data.load_cifar10("sample")
X_TRAIN, Y_TRAIN, X_VAL, Y_VAL = ARRAYS = [array[: 60 - 30 * (i > 1)] for i, array in enumerate(SAMPLE[:4])]
TINY = train.RECIPES["tutorial", "wrn"] | {"scheme": 3, "epochs": 3, "batch_size": 20}
TINY |= {"schedule": "constant", "learning_rate": 0.01}


def tiny_network(*_, name="tiny", pooling=layers.AveragePooling2D, activation="linear", rate=0.2):
    """Return a network of 490 parameters: pooling over 8×8 pixels, dropout, and one dense layer."""
    stack = [
        keras.Input((32, 32, 3)),
        pooling(8),
        layers.Flatten(),
        layers.Activation(activation),
        layers.Dropout(rate),
    ]
    return keras.Sequential([*stack, layers.Dense(10, activation="softmax", dtype="float32")], name=name)


def tiny_model(seed=0, **changes):
    """Return the standardiser and the tiny network, its weights drawn from the seed."""
    keras.utils.set_random_seed(seed)
    return train.assemble(augment.standardiser(X_TRAIN, 3), tiny_network(**changes))


def train_tiny(model, run_dir, arrays=ARRAYS, lr_schedule_fn=None, **changes):
    """Train on 60 images for three epochs of three batches; return the history."""
    keywords = {"run_dir": run_dir, "lr_schedule_fn": lr_schedule_fn}
    return train.compile_and_train(model, "tiny", *arrays, TINY | changes, **keywords)[0]


def run_main(*arguments, network=tiny_network, pictures=False):
    """Run main with a tiny network in place of the WRN; without pictures, which take longer than the training."""
    with pytest.MonkeyPatch.context() as patch:
        for name in () if pictures else ("look", "plot_histories"):
            patch.setattr(train, name, lambda *_: None)
        patch.setattr(train.wrn, "build_wrn", lambda *_: network(name="wrn-10-1"))
        train.main(["wrn", "--scheme", "3", *map(str, arguments)])


def save_data(path, train_count, test_count):
    """Write an .npz file of the sample's first images; return its path."""
    counts = {"train": train_count, "test": test_count}
    names = ("x_train", "y_train", "x_test", "y_test")
    np.savez(path, **{name: getattr(SAMPLE, name)[: counts[name[2:]]] for name in names})
    return str(path)


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


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


def error_of(function, *arguments):
    """Return the one line with which main gives up."""
    with pytest.raises(SystemExit) as exit_:
        function(*arguments)
    line = exit_.value.code
    assert isinstance(line, str)  # so that Python prints it and the exit status is 1
    assert line.startswith("error: ")
    assert "\n" not in line
    return line
