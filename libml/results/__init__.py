"""What people see of a run: files, tables, pictures, log."""
