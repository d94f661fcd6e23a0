"""What a network is fed: images from disk, preprocessing, the samples of a check, class names."""
