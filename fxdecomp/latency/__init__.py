"""How long a chain or a mock network takes on a provider; the cache of measured times."""
