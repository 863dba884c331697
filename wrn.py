"""Step 4 of the tutorial: a Wide Residual Network (Wide ResNet), with Keras's functional API.

    python wrn.py                                       print WRN-40-2 and draw its graph (figures/wrn-40-2.png)
    python wrn.py --num-convs 16 --full-resolution      another size; its first group keeps 32×32 pixels

The summary ends with

    Total params: 2,268,394 (8.65 MB)
    Trainable params: 2,262,986 (8.63 MB)
    Non-trainable params: 5,408 (21.12 KB)

Why residual: beyond some depth, plain networks get worse even on the training set, although extra layers could learn
the identity. The usual explanation: the gradient shrinks on its way back through every layer (vanishing gradient). A
shortcut that adds a block's input to its output gives the gradient a short path and leaves the block only the
difference to learn; networks of hundreds of layers train (He et al., https://arxiv.org/abs/1512.03385).

Why wide: in very deep residual networks many blocks contribute little; with so many paths, most can be skipped. Fewer,
wider blocks do as well or better and train much faster; a wide network of few layers rivals one of a thousand thin
ones. Zagoruyko and Komodakis (https://arxiv.org/abs/1605.07146) name three factors: the convolutions per block (two are
best), N blocks per group, and K, which multiplies the number of filters.

The words: a *miniblock* is a pair of convolutions with a shortcut around it (the paper's "block"); a *group* is N
miniblocks with feature maps of the same size (the tutorial's "resnet_block"). WRN-n-K counts n convolutions: three
groups × N miniblocks × 2, and four more, which are the first one and the 1×1 shortcut of each group. So n = 6N + 4.
WRN-40-2 has N = 6 and less than half of the SVGG's parameters; the tutorial finds it three points more accurate.

Different from the paper, as in the tutorial: the first group already halves the image (`full_resolution` keeps 32×32,
as the paper does: finer detail for four times the arithmetic); convolutions have biases, although batch
normalisation makes nearly all of them redundant; there is a Dense layer of 128 before the classes; dropout drops whole
feature maps. The paper's WRN-40-2 has 2,248,954 parameters.

Shapes: B images in a batch; height × width × channels. N miniblocks per group; K the widening factor.
"""

import argparse

from data import CLASS_NAMES, IMAGE_SHAPE, errors_in_one_line, figure_path  # first: it sets up Keras

# isort: split
import keras
from keras import layers

# The functional API: a layer is a function of a tensor, written layer(parameters)(input). A network with branches needs
# it, since a branch starts at a tensor that has a name and is used twice. (It allows several inputs and outputs too.)


def bn_relu(x):
    """Return x after batch normalisation and ReLU."""
    return layers.ReLU()(layers.BatchNormalization()(x))


def conv(x, filters, size=3, strides=1):
    """Return x after a convolution with size×size filters; `strides` 2 halves height and width."""
    return layers.Conv2D(filters, size, strides=strides, padding="same")(x)


def resnet_input_block(images):
    """Return the first convolution of the network, normalised: (B, 32, 32, 3) -> (B, 32, 32, 16)."""
    return bn_relu(conv(images, 16))


def first_miniblock(block_input, filters, downsampling, drop_rate):
    """Change the size and the number of channels: (B, H, W, any) -> (B, H/downsampling, W/downsampling, filters).

    Its input is already normalised, for both branches, so that no normalisation comes first.
    """
    residual = conv(block_input, filters, strides=downsampling)
    residual = bn_relu(residual)
    # Neighbouring values of a feature map are correlated: dropping single ones would hide little, so whole maps go.
    # Whether that helps beside batch normalisation, which adds some noise itself, depends on the recipe: the paper
    # gains a little in 200 epochs; in ten epochs it costs accuracy (results/README.md).
    residual = layers.SpatialDropout2D(drop_rate)(residual)
    residual = conv(residual, filters)
    # The two sides of the sum must have the same shape: a 1×1 convolution on the shortcut makes them fit.
    shortcut = conv(block_input, filters, size=1, strides=downsampling)
    return layers.Add()([residual, shortcut])


def further_miniblock(block_input, filters, drop_rate):
    """Keep the shape: (B, H, W, filters) -> (B, H, W, filters).

    Batch normalisation and ReLU come before each convolution ("pre-activation", https://arxiv.org/abs/1603.05027), so
    that the shortcut is a clean sum: nothing stands between the output of one miniblock and of the next.
    """
    residual = conv(bn_relu(block_input), filters)
    residual = layers.SpatialDropout2D(drop_rate)(residual)  # before the normalisation here: the tutorial's order
    residual = conv(bn_relu(residual), filters)
    return layers.Add()([residual, block_input])


def resnet_block(x_in, num_filters, num_miniblocks, downsampling, drop_rate):
    """Return one group of miniblocks: (B, H, W, any) -> (B, H/downsampling, W/downsampling, num_filters)."""
    x = first_miniblock(x_in, num_filters, downsampling, drop_rate)
    for _ in range(num_miniblocks - 1):
        x = further_miniblock(x, num_filters, drop_rate)
    return bn_relu(x)


def resnet_output_block(features):
    """Return the class probabilities: (B, H, H, channels) -> (B, 10). The feature maps must be square."""
    _, height, width, _ = features.shape
    if height != width:
        raise ValueError(f"the last feature map must be square, got {height}×{width}; use square images")
    x = layers.AveragePooling2D(height)(features)  # each map's average: (B, H, H, channels) -> (B, 1, 1, channels)
    x = layers.Flatten()(x)  # -> (B, channels)
    x = layers.Dense(128, activation="relu")(x)
    return layers.Dense(len(CLASS_NAMES), activation="softmax", dtype="float32")(x)  # float32: see svgg.py


def build_wrn(num_convs=40, k_factor=2, drop_rate=0.0, full_resolution=False):
    """Return the network WRN-`num_convs`-`k_factor` as an untrained keras.Model: (B, 32, 32, 3) -> (B, 10).

    It takes standardised images (see augment.standardiser).
    num_convs: n = 6N + 4 with N from 1: 10, 16, 22, 28, 34, 40, …; k_factor: K from 1; drop_rate: 0 ≤ rate < 1;
    full_resolution: the first group keeps 32×32 pixels, so that all groups see twice the height and width.
    Raises ValueError for any other; the message names the nearest possible n.
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

    # Halve the size, double the filters. The shapes in the comments are those with the image halved in all groups.
    images = keras.Input(IMAGE_SHAPE)  # (B, 32, 32, 3)
    x = resnet_input_block(images)  # -> (B, 32, 32, 16)
    x = resnet_block(x, 16 * k_factor, num_miniblocks, 1 if full_resolution else 2, drop_rate)  # -> (B, 16, 16, 16·K)
    x = resnet_block(x, 32 * k_factor, num_miniblocks, 2, drop_rate)  # -> (B, 8, 8, 32·K)
    x = resnet_block(x, 64 * k_factor, num_miniblocks, 2, drop_rate)  # -> (B, 4, 4, 64·K)
    name = f"wrn-{num_convs}-{k_factor}" + ("-full-resolution" if full_resolution else "")
    return keras.Model(images, resnet_output_block(x), name=name)  # -> (B, 10)


def main(arguments=None):
    """Print a Wide ResNet and draw its graph: the command line of this step."""
    parser = argparse.ArgumentParser(description="Step 4: a Wide ResNet, its layers and its graph.")
    parser.add_argument("--num-convs", type=int, default=40, metavar="n", help="convolutions, 6N + 4 (default: 40)")
    parser.add_argument("--k-factor", type=int, default=2, metavar="K", help="widening factor (default: 2)")
    parser.add_argument("--full-resolution", action="store_true", help="the first group keeps 32×32 pixels")
    options = parser.parse_args(arguments)
    try:
        network = build_wrn(options.num_convs, options.k_factor, full_resolution=options.full_resolution)
    except ValueError as error:
        parser.error(str(error))
    network.summary()
    with errors_in_one_line():
        path = figure_path(f"{network.name}.png")
        try:
            keras.utils.plot_model(network, path, show_shapes=True, show_layer_names=False)
            print(f"The network's graph: {path}")
        except ImportError:
            print("No graph drawn: that needs pydot (pip install pydot) and graphviz (apt install graphviz)")


if __name__ == "__main__":
    main()
