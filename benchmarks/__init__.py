"""Eight questions about invconv, asked as `python -m benchmarks.QUESTION`; README.md beside this file has the map."""
