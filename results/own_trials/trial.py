"""Trains a variant of README.md's own network: the runs of this folder. To be run two folders above.

    PYTHONPATH=. python results/own_trials/trial.py front=whitening scale=0.125 label_smoothing=0.1

The words change VARIANT, which is also in the config.json of the run.
"""

import math
import sys

import augment, data, train  # before Keras: they set it up
import keras
import numpy as np
from keras import layers

VARIANT = {
    "front": "learned",  # or "whitening": see patch_whitening
    "scale": 1.0,  # of what the last layer gets
    "label_smoothing": 0.1,
    "weight_decay": 0.01,
    "epochs": 5,
    "seed": 0,
    "holdout": 1,  # 1: 45,000 images, scored on 5,000 others; 0: all images, scored on the test set
    "sample": 0,  # 1: the sample of 1,500 images, in float32 and batches of 32
}
for word in sys.argv[1:]:
    key, value = word.split("=")
    VARIANT[key] = type(VARIANT[key])(value)


def patch_whitening(images, size=2, epsilon=5e-4):
    """Return a frozen Conv2D layer that whitens patches: (B, H, W, C) -> (B, H − size + 1, W − size + 1, 2·size²·C).

    images: standardised images (N, H, W, C), as a network gets them; two thousand are enough. The layer does to each
    patch of size×size pixels what augment.zca_matrix does to a whole image, but for the last step: it takes the patch
    apart into the directions in which patches vary, and scales each to the variance 1. The results stay as they are,
    one channel for each direction. The same small matrix is used at every place, so a convolution can do it. Each
    filter is there twice, the second time with its sign reversed, because ReLU or GELU removes most of what is
    negative. Nothing is centred: standardised images have means near 0. `epsilon`, here added to the variances, keeps
    directions that hardly vary, mostly noise, from being scaled up much. The idea is from
    https://arxiv.org/abs/2404.00498.
    """
    # In `windows` each place has its patch: (N, H − size + 1, W − size + 1, C, size, size). In `patches` each patch has
    # a row, with its numbers in the order in which a kernel of Conv2D has them.
    windows = np.lib.stride_tricks.sliding_window_view(images, (size, size), axis=(1, 2))
    patches = np.moveaxis(windows, 3, -1).reshape(-1, size * size * images.shape[-1]).astype(float)
    variances, directions = np.linalg.eigh(patches.T @ patches / len(patches))
    filters = directions / np.sqrt(variances + epsilon)  # one in each column
    layer = layers.Conv2D(2 * len(filters), size, use_bias=False, trainable=False, name="patch_whitening")
    layer.build((None, *images.shape[1:]))
    layer.set_weights([np.concatenate([filters, -filters], axis=1).reshape(layer.kernel.shape)])
    return layer


if not VARIANT["sample"]:
    keras.config.set_dtype_policy("mixed_bfloat16")
keras.utils.set_random_seed(VARIANT["seed"])
images = data.load_cifar10("sample" if VARIANT["sample"] else None)
arrays = train.training_and_validation(images, holdout=bool(VARIANT["holdout"]))
settings = train.RECIPES["modern", "wrn"] | ({"batch_size": 32} if VARIANT["sample"] else {}) | VARIANT
standardiser = augment.standardiser(arrays[0], settings["scheme"])
front = layers.Conv2D(24, 2)
if VARIANT["front"] == "whitening":
    front = patch_whitening(standardiser.predict(arrays[0][:2000], verbose=0))
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
