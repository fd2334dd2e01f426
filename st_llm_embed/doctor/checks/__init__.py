"""The static checks: files in, findings out, one file for each kind of trap."""
