"""The methods: one file each, all in the registry tuple `METHODS`."""
