"""Trains a variant of README.md's own network: the runs of this folder. To be run two folders above.

    PYTHONPATH=. python results/own_trials/trial.py front=whitening scale=0.125 label_smoothing=0.1

The words change VARIANT, which is also in the config.json of the run.
"""

import math
import sys

import augment, data, train  # before Keras: they set it up
import keras
from keras import layers

VARIANT = {
    "front": "learned",  # or "whitening": augment.patch_whitening
    "scale": 1.0,  # of what the last layer gets
    "label_smoothing": 0.1,
    "weight_decay": 0.01,
    "epochs": 5,
    "seed": 0,
    "holdout": 1,  # 1: 45,000 images, scored on 5,000 others; 0: all images, scored on the test set
}
for word in sys.argv[1:]:
    key, value = word.split("=")
    VARIANT[key] = type(VARIANT[key])(value)

keras.config.set_dtype_policy("mixed_bfloat16")
keras.utils.set_random_seed(VARIANT["seed"])
images = data.load_cifar10()
arrays = train.training_and_validation(images, holdout=bool(VARIANT["holdout"]))
settings = train.RECIPES["modern", "wrn"] | VARIANT
standardiser = augment.standardiser(arrays[0], settings["scheme"])
front = layers.Conv2D(24, 2)
if VARIANT["front"] == "whitening":
    front = augment.patch_whitening(standardiser.predict(arrays[0][:2000], verbose=0))
stack = [keras.Input(data.IMAGE_SHAPE), front, layers.Activation("gelu")]
for filters in (64, 256, 256):
    for pooling in ([layers.MaxPooling2D(2)], []):
        stack += [layers.Conv2D(filters, 3, padding="same", use_bias=False), *pooling]
        stack += [layers.BatchNormalization(), layers.Activation("gelu")]
stack += [layers.GlobalMaxPooling2D(), layers.Rescaling(VARIANT["scale"])]
network = keras.Sequential([*stack, layers.Dense(10, activation="softmax", dtype="float32")], name="own")

optimizer = train.make_optimizer(settings, math.ceil(len(arrays[0]) / settings["batch_size"]))
model = train.assemble(standardiser, network)
how = {name: settings[name] for name in ("scheme", "epochs", "batch_size", "label_smoothing")}
train.compile_and_train(
    model, "own", *arrays, optimizer=optimizer, seed=VARIANT["seed"], notes={"variant": VARIANT}, **how
)
