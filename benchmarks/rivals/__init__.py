"""What others published or offer, to be measured beside ours."""
