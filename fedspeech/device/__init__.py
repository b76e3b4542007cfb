"""What an edge box runs; needs neither Flower nor Ray."""
