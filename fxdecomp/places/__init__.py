"""What is reduced together: a layer and the one that reads it, with the axis that they share."""
