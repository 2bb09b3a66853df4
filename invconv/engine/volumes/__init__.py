"""Ways to a log-volume that are cheaper than the solver's, or exact where the solver's is lost."""
