"""A small classifier, and what its layers still know of an image."""

import invconv.lightning  # noqa: F401  (which says what is missing)
