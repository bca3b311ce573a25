"""The perceptual loss: loss networks, its terms, style targets."""
