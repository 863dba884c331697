"""Step 4 of 5: a Wide Residual Network (Wide ResNet), with Keras's functional API.

    python wrn.py                                       print WRN-40-2, layer by layer
    python wrn.py --num-convs 16 --full-resolution      another size; its first layers keep 32×32 pixels

If pydot and graphviz are installed, it also draws the network's graph (figures/wrn-40-2.png).

The summary ends with

    Total params: 2,268,394 (8.65 MB)
    Trainable params: 2,262,986 (8.63 MB)
    Non-trainable params: 5,408 (21.12 KB)

The words: a *miniblock* (the paper's "block") is two convolutions (the *main path*) and a *shortcut* around them: the
input is added to the main path's output. A *group* (the tutorial's resnet_block) is N miniblocks with feature maps of
the same size. Take care: "residual path" is the tutorial's name for the shortcut. In the paper of He and others (below)
the residual is what the main path computes.

Why residual: beyond some depth, plain networks get worse even on the training set, although extra layers could learn to
pass on their input unchanged (the identity). The usual explanation, and the tutorial's: the gradient shrinks on its way
back through every layer (vanishing gradient). The shortcut gives the gradient a short path, and the main path
only has to learn the difference between output and input. With it networks of hundreds of layers can be trained (He et
al., https://arxiv.org/abs/1512.03385). He et al. themselves think that vanishing gradients are unlikely to be the cause
once there is batch normalisation.

Why wide: in very deep residual networks many miniblocks contribute little. The shortcut leads around each of them, so
any one can be left out with hardly any harm. Fewer, wider miniblocks do as well or better and train much faster: a few
wide layers rival a thousand thin ones. Zagoruyko and Komodakis (https://arxiv.org/abs/1605.07146)
name three factors: the convolutions per miniblock (two are best), N miniblocks per group, and K, which multiplies the
number of filters.

    part       layers                                      output       with full_resolution
    input      convolution 3×3                             32×32×16     32×32×16
    group 1    N miniblocks, each two convolutions 3×3     16×16×16K    32×32×16K
    group 2    the same                                    8×8×32K      16×16×32K
    group 3    the same                                    4×4×64K      8×8×64K
    output     average of each map, Dense 128, Dense 10    10           10

WRN-n-K counts n convolutions: three groups × N miniblocks × 2, and four more: the network's first convolution, and one
1×1 shortcut in each group. So n = 6N + 4. WRN-40-2 has N = 6 and less than half of the simplified VGG's parameters;
the tutorial finds it three points more accurate. No filter is larger than 3×3. (Deeper ResNets save arithmetic with a
bottleneck: a 1×1 convolution before the 3×3 one reduces the number of channels, and another after it restores it. Here
width is wanted.)

Like the tutorial and unlike the paper: the first group already halves the image (`full_resolution` keeps 32×32, as the
paper does: finer detail for about four times the arithmetic); convolutions have biases, although batch normalisation
makes most of them redundant; there is a Dense layer of 128 before the classes; dropout drops whole feature maps. The
paper's WRN-40-2 has 2,248,954 parameters, as Keras counts them (with the running averages of batch normalisation).

Shapes: B images in a batch; height × width × channels. N miniblocks per group; K the widening factor.
"""

from data import CLASS_NAMES, IMAGE_SHAPE, Parser, UserError, draw_network, errors_in_one_line  # first: sets up Keras

# isort: split
import keras
from keras import layers

# The functional API: a layer is a function of a tensor. In layers.Conv2D(16, 3)(x) the first parentheses make the
# layer, the second ones apply it to the tensor x. A network with branches needs that: a tensor kept in a variable can
# be the input of two layers, and layers.Add() merges two tensors. (Several inputs and outputs are possible too.)


def bn_relu(x):
    """Return x after batch normalisation and ReLU."""
    return layers.ReLU()(layers.BatchNormalization()(x))


def conv(x, filters, size=3, strides=1):
    """Return x after a convolution with size×size filters; strides=2 halves height and width."""
    return layers.Conv2D(filters, size, strides=strides, padding="same")(x)


def resnet_input_block(images):
    """Return the first convolution of the network, normalised: (B, 32, 32, 3) -> (B, 32, 32, 16)."""
    return bn_relu(conv(images, 16))


def first_miniblock(block_input, filters, downsampling, drop_rate):
    """Begin a group: (B, H, W, any) -> (B, H/downsampling, W/downsampling, filters).

    The input block or the group before ends in batch normalisation and ReLU, so the convolutions can begin at once.
    """
    main_path = conv(block_input, filters, strides=downsampling)
    main_path = bn_relu(main_path)
    # Spatial dropout drops whole maps, since the neighbours of a dropped value would tell what it was (see build_wrn).
    main_path = layers.SpatialDropout2D(drop_rate)(main_path)
    main_path = conv(main_path, filters)
    # The two sides of the sum must have the same shape: a 1×1 convolution on the shortcut makes them fit.
    shortcut = conv(block_input, filters, size=1, strides=downsampling)
    return layers.Add()([main_path, shortcut])


def further_miniblock(block_input, filters, drop_rate):
    """Continue a group: (B, H, W, filters) -> (B, H, W, filters).

    Within a group batch normalisation and ReLU come before each convolution ("pre-activation",
    https://arxiv.org/abs/1603.05027), on the main path. The sums are left as they are until the end of the group. So
    nothing alters what is on the shortcut: each miniblock only adds to it.
    """
    main_path = conv(bn_relu(block_input), filters)
    # In the first miniblock dropout follows the ReLU, here the convolution; both as in the tutorial.
    main_path = layers.SpatialDropout2D(drop_rate)(main_path)
    main_path = conv(bn_relu(main_path), filters)
    return layers.Add()([main_path, block_input])


def resnet_block(x_in, num_filters, num_miniblocks, downsampling, drop_rate):
    """Return x_in after one group of N miniblocks; the function has the tutorial's name.

    (B, H, W, any) -> (B, H/downsampling, W/downsampling, num_filters)
    """
    x = first_miniblock(x_in, num_filters, downsampling, drop_rate)
    for _ in range(num_miniblocks - 1):
        x = further_miniblock(x, num_filters, drop_rate)
    return bn_relu(x)


def resnet_output_block(features):
    """Return the class probabilities: (B, H, H, channels) -> (B, 10). The feature maps must be square."""
    _, height, width, _ = features.shape
    if height != width:
        raise UserError(f"the last feature map must be square, not {height} by {width}; use square images")
    x = layers.AveragePooling2D(height)(features)  # each map's average: (B, H, H, channels) -> (B, 1, 1, channels)
    x = layers.Flatten()(x)  # -> (B, channels)
    x = layers.Dense(128, activation="relu")(x)
    return layers.Dense(len(CLASS_NAMES), activation="softmax", dtype="float32")(x)  # float32: see svgg.py


def build_wrn(num_convs=40, k_factor=2, drop_rate=0.0, full_resolution=False):
    """Return the network WRN-`num_convs`-`k_factor` as an untrained keras.Model: (B, 32, 32, 3) -> (B, 10).

    It takes standardised images (see augment.standardiser).
    num_convs: n = 6N + 4, N >= 1: 10, 16, 22, 28, 34, 40, …; k_factor: whole, K >= 1; drop_rate: 0 <= rate < 1;
    full_resolution: the first group keeps 32×32 pixels, so that the maps of all groups are twice as high and wide.
    Raises data.UserError, a kind of ValueError, for any other value.

    Dropout regularises: it makes memorising hard. Batch normalisation is there to ease optimisation, but its noisy
    means and variances regularise a little too, so dropout may add little. The paper drops single values, not maps,
    and gains a little in 200 epochs. In our ten epochs a rate of 0.3 lowered the accuracy of WRN-16-2 by 5.6 points
    (results/README.md).
    """
    num_miniblocks = (num_convs - 4) // 6
    if num_miniblocks < 1 or num_convs != 6 * num_miniblocks + 4:
        raise UserError(f"a WRN has 6N + 4 convolutions (10, 16, 22, 28, 34, 40, ...), not {num_convs}")
    if k_factor < 1 or k_factor != int(k_factor):
        raise UserError(f"the widening factor K must be a whole number from 1, not {k_factor}")
    if not 0 <= drop_rate < 1:
        raise UserError(f"the drop rate must be at least 0 and below 1, not {drop_rate}")

    # From group to group: halve the size, double the filters. The shapes in the comments are those with the image
    # halved in all groups.
    images = keras.Input(IMAGE_SHAPE)  # (B, 32, 32, 3)
    x = resnet_input_block(images)  # -> (B, 32, 32, 16)
    x = resnet_block(x, 16 * k_factor, num_miniblocks, 1 if full_resolution else 2, drop_rate)  # -> (B, 16, 16, 16·K)
    x = resnet_block(x, 32 * k_factor, num_miniblocks, 2, drop_rate)  # -> (B, 8, 8, 32·K)
    x = resnet_block(x, 64 * k_factor, num_miniblocks, 2, drop_rate)  # -> (B, 4, 4, 64·K)
    name = f"wrn-{num_convs}-{k_factor}" + ("-full-resolution" if full_resolution else "")
    return keras.Model(images, resnet_output_block(x), name=name)  # -> (B, 10)


def main(arguments=None):
    """Print a Wide ResNet and draw its graph: the command line of this step."""
    parser = Parser(description="Step 4: a Wide ResNet, its layers and its graph.")
    parser.add_argument("--num-convs", type=int, default=40, metavar="n", help="convolutions, 6N + 4 (default: 40)")
    parser.add_argument("--k-factor", type=int, default=2, metavar="K", help="widening factor (default: 2)")
    parser.add_argument("--full-resolution", action="store_true", help="the first group keeps 32 by 32 pixels")
    options = parser.parse_args(arguments)
    with errors_in_one_line():
        network = build_wrn(options.num_convs, options.k_factor, full_resolution=options.full_resolution)
        network.summary()
        draw_network(network)


if __name__ == "__main__":
    main()
