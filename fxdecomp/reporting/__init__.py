"""What people see: reports, graph diffs, tables."""
