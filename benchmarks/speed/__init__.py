"""How fast is it? In ratios, by other means, and in lines of code."""
