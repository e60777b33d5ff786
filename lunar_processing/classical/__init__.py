"""Methods that need no training: pure functions on arrays, the honest baseline every network must beat."""
