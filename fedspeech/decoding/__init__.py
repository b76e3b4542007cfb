"""From a model's output to text."""
