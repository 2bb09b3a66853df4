"""A multi-scale flow of invertible convolutions, trained on images."""

import invconv.lightning  # noqa: F401  (which says what is missing)
