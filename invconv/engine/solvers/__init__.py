"""The ways to factor a convolution, one a file."""
