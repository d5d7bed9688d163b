"""Documents become chunks, vectors and full text; a question becomes hits with the probability that each answers it."""
