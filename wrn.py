"""Step 4 of the tutorial: a Wide Residual Network (Wide ResNet), with Keras's functional API.

    python wrn.py                                print WRN-40-2 and draw its graph (figures/wrn-40-2.png)
    python wrn.py --num-convs 16 --k-factor 4    the same for another size

The summary ends with

    Total params: 2,268,394 (8.65 MB)
    Trainable params: 2,262,986 (8.63 MB)
    Non-trainable params: 5,408 (21.12 KB)

Why residual: beyond some depth a plain network gets worse, on the training images too, though it could copy a shallower
one. It is hard to optimise: what a layer learns has to pass through all the others, and so has its gradient. A shortcut
that adds a block's input to its output leaves the block only the difference to learn, and gives the gradient a short
path; networks of hundreds of layers train (He et al., https://arxiv.org/abs/1512.03385).

Why wide: with so many paths through a very deep residual network most blocks contribute little. Fewer, wider blocks do
as well or better and train much faster. Zagoruyko and Komodakis (https://arxiv.org/abs/1605.07146) name three factors:
the convolutions in a block (two are best), N blocks in a group, and K, which multiplies the channels.

WRN-n-K counts n convolutions: three groups × N blocks × 2, and four more, which are the first one and the 1×1 shortcut
at the start of each group. So n = 6N + 4. WRN-40-2 has N = 6 and less than half of the SVGG's parameters.

Different from the paper, as in the tutorial: the first group halves the image already (the paper's keeps 32×32, sees
finer detail and costs four times as much); convolutions have biases, though batch normalisation follows and makes them
all but redundant; a Dense layer of 128 before the classes; dropout of whole feature maps. The paper's WRN-40-2
has 2,248,954 parameters.

A miniblock here is what the paper calls a block; resnet_block makes a group of N of them.

Shapes: B images in a batch; height × width × channels. N miniblocks in a group; K the widening factor.
"""

import argparse

from data import CLASS_NAMES, IMAGE_SHAPE, draw_network  # first: it quietens TensorFlow

# isort: split
import keras
from keras import layers

# The functional API: layers are functions of tensors, written layer(parameters)(input). A network with branches needs
# it, since a branch point is a tensor that has a name and is used twice.


def _bn_relu(tensor):
    return layers.ReLU()(layers.BatchNormalization()(tensor))


def _conv(tensor, filters, size=3, strides=1):
    return layers.Conv2D(filters, size, strides=strides, padding="same")(tensor)


def resnet_input_block(images):
    """Return the first convolution of the network, normalised: (B, 32, 32, 3) -> (B, 32, 32, 16)."""
    return _bn_relu(_conv(images, 16))


def _first_miniblock(tensor, filters, drop_rate, downsampling):
    """Divide the size by `downsampling` and change the number of channels: (B, 2H, 2W, any) -> (B, H, W, filters).

    The input has been normalised where it was made, for both branches, so that no normalisation stands in front.
    """
    main = _conv(tensor, filters, strides=downsampling)
    main = _bn_relu(main)
    main = layers.SpatialDropout2D(drop_rate)(main)
    main = _conv(main, filters)
    # The two sides of the sum must have the same shape: a 1×1 convolution on the shortcut makes them fit.
    shortcut = _conv(tensor, filters, size=1, strides=downsampling)
    return layers.Add()([main, shortcut])


def _further_miniblock(tensor, filters, drop_rate):
    """Keep the shape: (B, H, W, filters) -> (B, H, W, filters).

    Batch normalisation and ReLU come before each convolution ("pre-activation",
    https://arxiv.org/abs/1603.05027), so that the shortcut is a clean sum:
    nothing stands between one block's output and the next one's.
    """
    main = _conv(_bn_relu(tensor), filters)
    # Neighbouring pixels of a feature map are correlated: dropping single ones would hide little. So whole maps go.
    # (Here before the normalisation and in the first miniblock after it: the tutorial's order, kept.)
    main = layers.SpatialDropout2D(drop_rate)(main)
    main = _conv(_bn_relu(main), filters)
    return layers.Add()([main, tensor])


def resnet_block(tensor, num_miniblocks, filters, drop_rate, downsampling=2):
    """Return a group of `num_miniblocks` miniblocks: (B, 2H, 2W, any) -> (B, H, W, filters), normalised."""
    tensor = _first_miniblock(tensor, filters, drop_rate, downsampling)
    for _ in range(num_miniblocks - 1):
        tensor = _further_miniblock(tensor, filters, drop_rate)
    return _bn_relu(tensor)


def resnet_output_block(tensor):
    """Return the class probabilities: (B, H, H, channels) -> (B, 10). The feature map must be square."""
    _, height, width, _ = tensor.shape
    if height != width:
        raise ValueError(f"the last feature map must be square, got {height}×{width}; use square images")
    tensor = layers.AveragePooling2D(height)(tensor)  # (B, H, H, channels) -> (B, 1, 1, channels)
    tensor = layers.Flatten()(tensor)  # -> (B, channels)
    tensor = layers.Dense(128, activation="relu")(tensor)
    return layers.Dense(len(CLASS_NAMES), activation="softmax")(tensor)


def build_wrn(num_convs=40, k_factor=2, drop_rate=0.0, full_resolution=False):
    """Return the network WRN-`num_convs`-`k_factor` as an untrained keras.Model: (B, 32, 32, 3) -> (B, 10).

    It takes standardised images; augment.standardiser makes them.
    num_convs: n = 6N + 4 with N from 1: 10, 16, 22, 28, 34, 40, …; k_factor: K from 1; drop_rate: 0 ≤ rate < 1;
    full_resolution: the first group keeps 32×32 pixels, as in the paper.
    Raises ValueError for any other; the message names the nearest n that there are.
    """
    num_miniblocks, rest = divmod(num_convs - 4, 6)
    if rest or num_miniblocks < 1:
        lower = 6 * num_miniblocks + 4
        nearest = f"{lower} or {lower + 6}" if lower >= 10 else "10"
        raise ValueError(f"a WRN has 6N + 4 convolutions (10, 16, 22, …), not {num_convs}; the nearest: {nearest}")
    if not isinstance(k_factor, int) or k_factor < 1:
        raise ValueError(f"the widening factor K must be a whole number from 1, not {k_factor}")
    if not 0 <= drop_rate < 1:
        raise ValueError(f"the drop rate must be at least 0 and below 1, not {drop_rate}")

    images = keras.Input(IMAGE_SHAPE)  # (B, 32, 32, 3)
    tensor = resnet_input_block(images)  # -> (B, 32, 32, 16)
    first = 1 if full_resolution else 2  # 1: twice the height and width in all three groups
    tensor = resnet_block(tensor, num_miniblocks, 16 * k_factor, drop_rate, first)  # -> (B, 16, 16, 16·K)
    tensor = resnet_block(tensor, num_miniblocks, 32 * k_factor, drop_rate)  # -> (B, 8, 8, 32·K)
    tensor = resnet_block(tensor, num_miniblocks, 64 * k_factor, drop_rate)  # -> (B, 4, 4, 64·K)
    name = f"wrn-{num_convs}-{k_factor}{'-full-resolution' if full_resolution else ''}"
    return keras.Model(images, resnet_output_block(tensor), name=name)  # -> (B, 10)


def main(arguments=None):
    """Print a Wide ResNet and draw its graph: the command line of this step."""
    parser = argparse.ArgumentParser(description="Step 4: a Wide ResNet, its layers and its graph.")
    parser.add_argument("--num-convs", type=int, default=40, metavar="n", help="convolutions, 6N + 4 (default: 40)")
    parser.add_argument("--k-factor", type=int, default=2, metavar="K", help="widening factor (default: 2)")
    options = parser.parse_args(arguments)
    try:
        network = build_wrn(options.num_convs, options.k_factor)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    network.summary()
    print(draw_network(network, f"figures/{network.name}.png"))


if __name__ == "__main__":
    main()
