"""An autoencoder without a decoder, trained on images."""

import invconv.lightning  # noqa: F401  (which says what is missing)
