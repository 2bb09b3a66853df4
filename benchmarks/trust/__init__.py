"""Is a wrong answer ever given without a word? Random layers, each verb against the dense matrix in float64."""
