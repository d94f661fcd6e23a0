"""Package data: the digits, held out and for calibration, and the names of ImageNet's classes."""
