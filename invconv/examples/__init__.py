"""What a user could write: trainings of a flow, an autoencoder and a classifier, and photographs of a shaken camera."""
