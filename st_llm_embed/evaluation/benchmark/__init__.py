"""Official mteb tasks: models named and prompted, a preflight, runs that go on, and the report beside published scores."""
