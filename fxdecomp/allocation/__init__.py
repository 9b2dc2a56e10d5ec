"""Candidates, their costs, and the choice among them."""
