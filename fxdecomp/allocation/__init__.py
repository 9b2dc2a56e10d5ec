"""A budget to a method and a rank at every layer: candidates, the solver, sensitivities, planning."""
