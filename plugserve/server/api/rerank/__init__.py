"""Documents in the order of their relevance to a query, and scores of pairs of texts."""
