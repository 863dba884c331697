"""Step 3 of 5: a simplified VGG network, with Keras's Sequential API.

    python svgg.py          print the network, layer by layer

If pydot and graphviz are installed, it also draws the network's graph (figures/svgg.png). The summary ends with

    Total params: 5,354,570 (20.43 MB)
    Trainable params: 5,352,778 (20.42 MB)
    Non-trainable params: 1,792 (7.00 KB)

A convolution moves small grids of weights, its filters, over the image; what one filter finds is a feature map, or
channel. A non-linearity follows it, such as ReLU, which replaces negative values by 0.

VGG's idea (Simonyan and Zisserman, https://arxiv.org/abs/1409.1556): filters no larger than 3×3 suffice if the network
is deep enough. Two stacked 3×3 filters see 5×5 pixels, as one 5×5 filter does, but with fewer weights and one more
non-linearity. Two rules set the number of filters. Layers with the same output size have equally many. Where height and
width are halved, it is doubled, so that each layer costs about the same (VGG stops at 512).

Why it mattered: in 2014, when other networks had larger filters or intricate modules, VGG came second in the
ImageNet contest with nothing but plain layers, and more of them. The rule of thumb that remains: no filters larger than
3×3, and 1×1 where a convolution only has to change the number of channels.

Different from the paper: three blocks in place of five, one hidden dense layer of 1,024 in place of two of 4,096, and
batch normalisation, which did not exist yet. Two remarks of the tutorial are wrong: this network has two blocks fewer
than the paper's configuration B, not one; and VGG does not end with global average pooling (one average for each
feature map), but flattens its last feature maps, as here.

Step 5 shows what the layers see in an image, which can explain a mistake (train.view_feature_maps).

Shapes: B images in a batch; height × width × channels.
"""

from data import CLASS_NAMES, IMAGE_SHAPE, Parser, UserError, draw_network, errors_in_one_line  # first: sets up Keras

# isort: split
import keras
from keras import layers


def conv_layer(filters):
    """Return one convolution as a list of two Keras layers: Conv 3×3 with its ReLU, and batch normalisation.

    Padding "same" keeps height and width. Batch normalisation shifts and scales each channel to mean 0 and variance 1,
    which makes deep networks easier to train. While training it takes mean and variance from the batch, and in
    evaluation running averages of them. Its last step is a learned scale and shift for each channel. Normalising after
    the ReLU is the tutorial's order; the Wide ResNet of the next step normalises before it.
    """
    return [layers.Conv2D(filters, 3, padding="same", activation="relu"), layers.BatchNormalization()]


def vgg_block(filters):
    """Return one block as a list of layers: two convolutions, then max pooling, which halves height and width."""
    # MaxPooling2D(2) keeps the largest of each 2×2 square: that a feature is there matters more than exactly where.
    return [*conv_layer(filters), *conv_layer(filters), layers.MaxPooling2D(2)]


def build_svgg(drop_rate=0.5):
    """Return the simplified VGG as an untrained keras.Sequential: (B, 32, 32, 3) -> (B, 10) class probabilities.

    It takes standardised images (see augment.standardiser). 5,354,570 parameters, 5,352,778 of them trained; the others
    are the running means and variances of batch normalisation. Raises UserError unless 0 <= drop_rate < 1.

    A chain of layers is a list, so the Sequential API is enough. The tutorial creates an empty Sequential() and then
    adds one layer after the other with model.add(layer); a list gives the same network.
    """
    if not 0 <= drop_rate < 1:  # Keras would accept 1, which drops everything
        raise UserError(f"the drop rate must be at least 0 and below 1, not {drop_rate}")
    return keras.Sequential(
        [
            keras.Input(IMAGE_SHAPE),  # (B, 32, 32, 3)
            *vgg_block(64),  # -> (B, 16, 16, 64)
            *vgg_block(128),  # -> (B, 8, 8, 128)
            *vgg_block(256),  # -> (B, 4, 4, 256)
            layers.Flatten(),  # all values of an image in one row, for the dense layers: -> (B, 4096)
            # 4,096 × 1,024 weights: four fifths of the whole network are in this one layer.
            layers.Dense(1024, activation="relu"),
            # While training, dropout sets each input to zero with the probability drop_rate, drawn anew each time, and
            # scales up the others, so that the sum stays about the same. So the next layer cannot rely on any single
            # input. In `evaluate` and `predict` dropout does nothing.
            layers.Dropout(drop_rate),
            # Softmax: ten positive numbers that sum to 1. In float32 even if earlier layers use float16, in which
            # small probabilities become 0, and 0 has no logarithm.
            layers.Dense(len(CLASS_NAMES), activation="softmax", dtype="float32"),  # -> (B, 10)
        ],
        name="svgg",
    )


def main(arguments=None):
    """Print the network and draw its graph: the command line of this step."""
    Parser(description="Step 3: the simplified VGG, its layers and its graph.").parse_args(arguments)
    network = build_svgg()
    network.summary()
    with errors_in_one_line():
        draw_network(network)


if __name__ == "__main__":
    main()
