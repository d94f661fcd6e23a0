"""Package data: the bundled model's weights and its held-out and calibration images."""
