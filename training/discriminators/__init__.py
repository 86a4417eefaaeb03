"""The networks that tell real frames from the generator's."""
