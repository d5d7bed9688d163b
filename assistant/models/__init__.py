"""Models: where base models come from, the versions in place, and one module for each kind that serves them."""
