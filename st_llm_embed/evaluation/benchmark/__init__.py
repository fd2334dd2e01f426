"""Official mteb tasks: models named and prompted, a preflight, runs that go on, a report beside published scores."""
