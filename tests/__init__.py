"""The test suite. Fakes of the heavy parts live in `tests.tiny`."""
