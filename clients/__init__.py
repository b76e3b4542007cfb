"""The Flower ClientApp: one speaker."""
