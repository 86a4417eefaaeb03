"""Networks that tell real frames from the generator's output."""
