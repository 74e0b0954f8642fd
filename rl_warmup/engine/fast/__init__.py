"""The fast path: the same numbers as the plain one, without padding and without computing anything twice."""
