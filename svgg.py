"""Step 3 of the tutorial: a simplified VGG network, with Keras's Sequential API.

    python svgg.py          print the network, layer by layer, and draw its graph (figures/svgg.png)

The summary ends with

    Total params: 5,354,570 (20.43 MB)
    Trainable params: 5,352,778 (20.42 MB)
    Non-trainable params: 1,792 (7.00 KB)

VGG's idea (Simonyan and Zisserman, https://arxiv.org/abs/1409.1556): small 3×3 filters suffice if the network is deep
enough, because stacked they see a large field; two of them see 5×5 pixels, with fewer weights than one 5×5 filter and
one more non-linearity. Two rules that the ResNet paper later drew from it: layers whose output has the same size have
the same number of filters; where the size is halved the number of filters is doubled, so that each layer costs about
the same. (VGG itself stops doubling at 512.)

Different from the paper: three blocks in place of five, and batch normalisation, which did not exist yet. The tutorial
calls this "one block less than configuration B" and says that VGG ends with global average pooling; it is two blocks
less, and VGG ends, like this network, by flattening its last feature maps into fully connected layers.

Shapes: B images in a batch; height × width × channels.
"""

from data import CLASS_NAMES, IMAGE_SHAPE, draw_network  # first: it quietens TensorFlow

# isort: split
import keras
from keras import layers


def conv_layer(filters):
    """Return one convolution as a list of two Keras layers: Conv 3×3 with its ReLU, and batch normalisation.

    "same" padding keeps height and width. Normalising after the ReLU is the tutorial's order; the Wide ResNet of the
    next step has it the other way round.
    """
    return [layers.Conv2D(filters, 3, padding="same", activation="relu"), layers.BatchNormalization()]


def vgg_block(filters):
    """Return one block as a list of layers: two convolutions, then height and width are halved."""
    return [*conv_layer(filters), *conv_layer(filters), layers.MaxPooling2D(2)]


def build_svgg(drop_rate=0.5):
    """Return the simplified VGG as an untrained keras.Sequential: (B, 32, 32, 3) -> (B, 10) class probabilities.

    It takes standardised images; augment.standardiser makes them. 5,354,570 parameters, 5,352,778 of them trained (the
    others are the means and variances of batch normalisation). A chain of layers is a list, so the Sequential API.
    """
    return keras.Sequential(
        [
            keras.Input(IMAGE_SHAPE),  # (B, 32, 32, 3)
            *vgg_block(64),  # -> (B, 16, 16, 64)
            *vgg_block(128),  # -> (B, 8, 8, 128)
            *vgg_block(256),  # -> (B, 4, 4, 256)
            layers.Flatten(),  # -> (B, 4096)
            # 4,096 × 1,024 weights: four fifths of the whole network sit in this one layer.
            layers.Dense(1024, activation="relu"),
            layers.Dropout(drop_rate),  # where most of the weights are, there is most to overfit with
            layers.Dense(len(CLASS_NAMES), activation="softmax"),  # -> (B, 10)
        ],
        name="svgg",
    )


if __name__ == "__main__":
    network = build_svgg()
    network.summary()
    print(draw_network(network, "figures/svgg.png"))
