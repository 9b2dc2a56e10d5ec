"""What is in a network before it is changed: its layers, their spectra."""
