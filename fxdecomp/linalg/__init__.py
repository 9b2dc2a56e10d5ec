"""Numbers only: singular value decompositions, range finders, triangular factors."""
